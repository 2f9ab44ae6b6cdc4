// The forward pass reads from top to bottom; backward.c is its mirror.
#include "model/forward.h"

#include "backend/ops.h"
#include "model/run.h"

#include <assert.h>

static struct tensor slot_shift(const struct state *s, int layer, int which) {
    return s ? tensor_at(tensor_at(s->shift, (size_t)layer), (size_t)which) : tensor_none();
}

static struct tensor slot_wkv(const struct state *s, int layer) {
    return s ? tensor_at(s->wkv, (size_t)layer) : tensor_none();
}

// y = f(x W₁) W₂; the decay's f is tanh, the gate's σ, the others have none.
static void lora(struct model *m, int layer, struct acts *a, int which) {
    const struct lora_ids *l = &lora_ids[which];
    const struct tensor hidden = a->hidden[which];
    op_matmul(m->be, hidden, tensor_at(a->m, (size_t)l->mix), model_weight(m, l->w1, layer),
              tensor_none());
    if (l->has_act) op_act(m->be, hidden, hidden, l->act);
    op_matmul(m->be, tensor_at(a->lora, (size_t)which), hidden, model_weight(m, l->w2, layer),
              tensor_none());
}

void layer_forward(struct model *m, int i, struct acts *a, struct tensor x_out, struct tensor x,
                   struct tensor v_first, const struct batch *b, struct state *s) {
    struct backend *be = m->be;
    const struct tensor none = tensor_none();
    const int H = m->dims.H;

    // time mix
    op_norm(be, a->z1, x, model_vector(m, P_LN1_W, i), model_vector(m, P_LN1_B, i), LN_EPS);
    op_shift_mix(be, a->m, slot_shift(s, i, 0), a->z1, slot_shift(s, i, 0),
                 model_vectors(m, P_X_R, MIX_COUNT, i), b);
    op_matmul(be, tensor_at(a->rkv, RKV_R), tensor_at(a->m, MIX_R),
              model_weight(m, P_RECEPTANCE, i), none);
    op_matmul(be, tensor_at(a->rkv, RKV_K), tensor_at(a->m, MIX_K), model_weight(m, P_KEY, i),
              none);
    op_matmul(be, tensor_at(a->rkv, RKV_V), tensor_at(a->m, MIX_V), model_weight(m, P_VALUE, i),
              none);
    lora(m, i, a, LORA_W);
    lora(m, i, a, LORA_A);
    lora(m, i, a, LORA_G);
    if (i > 0) lora(m, i, a, LORA_V); // layer 0's values are the ones the others look back at
    op_key_prep(be, a->u, a->rkv, a->lora, i > 0 ? v_first : none,
                model_vectors(m, P_W0, KEY_COUNT, i), H);
    if (i == 0) op_copy(be, v_first, tensor_at(a->u, U_V));
    op_wkv7(be, a->y, slot_wkv(s, i), a->saved, tensor_at(a->rkv, RKV_R), a->u, slot_wkv(s, i), b,
            H);
    op_readout(be, a->o, a->y, tensor_at(a->rkv, RKV_R), a->u, tensor_at(a->lora, LORA_G),
               model_vectors(m, P_LNX_W, READ_COUNT, i), H);
    op_matmul(be, a->x1, a->o, model_weight(m, P_OUTPUT, i), x);

    // channel mix
    op_norm(be, a->z2, a->x1, model_vector(m, P_LN2_W, i), model_vector(m, P_LN2_B, i), LN_EPS);
    op_shift_mix(be, a->m2, slot_shift(s, i, 1), a->z2, slot_shift(s, i, 1),
                 model_vectors(m, P_FFN_X_K, 1, i), b);
    op_matmul(be, a->h, tensor_at(a->m2, 0), model_weight(m, P_FFN_KEY, i), none);
    op_act(be, a->h, a->h, ACT_RELU2);
    op_matmul(be, x_out, a->h, model_weight(m, P_FFN_VALUE, i), a->x1);
}

void embed_forward(struct model *m, struct run *r, const struct feed *f) {
    op_embed(m->be, r->e, f->tokens, m->embedding);
    op_norm(m->be, run_x(r, 0), r->e, model_vector(m, P_LN0_W, 0), model_vector(m, P_LN0_B, 0),
            LN_EPS);
}

struct tensor model_forward(struct model *m, struct run *r, const struct feed *f,
                            struct state *state) {
    assert(r->limits.mode == RUN_INFER);
    run_set(r, m, f);
    embed_forward(m, r, f);
    const struct tensor x = run_x(r, 0);
    for (int i = 0; i < m->dims.L; i++)
        layer_forward(m, i, run_acts(r, i), x, x, r->v_first, &f->batch, state);
    if (!f->outs) return tensor_none();
    op_gather_rows(m->be, r->last, x, f->out_rows);
    op_norm(m->be, r->normed, r->last, model_vector(m, P_OUT_W, 0), model_vector(m, P_OUT_B, 0),
            LN_EPS);
    op_matmul(m->be, r->logits, r->normed, model_weight(m, P_HEAD, 0), tensor_none());
    return r->logits;
}
