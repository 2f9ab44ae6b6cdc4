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

// Products that do not wait for each other go out together.
struct product_list {
    struct product p[8];
    int n;
};

static void add_product(struct product_list *l, struct tensor y, struct tensor x,
                        const struct weight *w, enum act act) {
    l->p[l->n++] = (struct product){.y = y, .x = x, .w = w, .add = tensor_none(), .act = act};
}

// The projections, and the LoRAs y = f(x W₁) W₂: the decay's f is tanh, the gate's σ, the others
// have none. Layer 0 has no value LoRA: its values are the ones the others look back at.
static void project(struct model *m, int layer, struct acts *a) {
    static const int of[RKV_COUNT][2] = {
        [RKV_R] = {P_RECEPTANCE, MIX_R}, [RKV_K] = {P_KEY, MIX_K}, [RKV_V] = {P_VALUE, MIX_V}};
    struct product_list one = {0}, two = {0};
    for (int i = 0; i < RKV_COUNT; i++)
        add_product(&one, tensor_at(a->rkv, (size_t)i), tensor_at(a->m, (size_t)of[i][1]),
                    model_weight(m, (enum param_id)of[i][0], layer), ACT_NONE);
    for (int i = 0; i < LORA_COUNT; i++) {
        const struct lora_ids *l = &lora_ids[i];
        if (i == LORA_V && layer == 0) continue;
        add_product(&one, a->hidden[i], tensor_at(a->m, (size_t)l->mix),
                    model_weight(m, l->w1, layer), l->act);
        add_product(&two, tensor_at(a->lora, (size_t)i), a->hidden[i],
                    model_weight(m, l->w2, layer), ACT_NONE);
    }
    op_matmul(m->be, one.p, one.n);
    op_matmul(m->be, two.p, two.n);
}

static void linear(struct model *m, enum param_id id, int layer, struct tensor y, struct tensor x,
                   struct tensor add, enum act act) {
    const struct product p = {y, x, model_weight(m, id, layer), add, act};
    op_matmul(m->be, &p, 1);
}

void layer_forward(struct model *m, int i, struct acts *a, struct tensor x_out, struct tensor x,
                   struct tensor v_first, const struct batch *b, struct state *s) {
    struct backend *be = m->be;
    const struct tensor none = tensor_none();

    // time mix
    op_norm_mix(be, a->m, slot_shift(s, i, 0), a->z, x, model_vector(m, P_LN1_W, i),
                model_vector(m, P_LN1_B, i), LN_EPS, slot_shift(s, i, 0),
                model_vectors(m, P_X_R, MIX_COUNT, i), b);
    project(m, i, a);
    const struct recall r = {.o = a->o,
                             .v_out = i == 0 ? v_first : none,
                             .state = slot_wkv(s, i),
                             .saved = a->saved,
                             .rkv = a->rkv,
                             .lora = a->lora,
                             .v_first = i > 0 ? v_first : none,
                             .key_vecs = model_vectors(m, P_W0, KEY_COUNT, i),
                             .read_vecs = model_vectors(m, P_LNX_W, READ_COUNT, i),
                             .u = a->u,
                             .y = a->y};
    op_recall(be, &r, b, m->dims.H);
    linear(m, P_OUTPUT, i, a->x1, a->o, x, ACT_NONE);

    // channel mix
    op_norm_mix(be, a->m2, slot_shift(s, i, 1), a->z, a->x1, model_vector(m, P_LN2_W, i),
                model_vector(m, P_LN2_B, i), LN_EPS, slot_shift(s, i, 1),
                model_vectors(m, P_FFN_X_K, 1, i), b);
    linear(m, P_FFN_KEY, i, a->h, tensor_at(a->m2, 0), none, ACT_RELU2);
    linear(m, P_FFN_VALUE, i, x_out, a->h, a->x1, ACT_NONE);
}

void embed_forward(struct model *m, struct run *r, const struct feed *f) {
    op_embed(m->be, r->e, f->tokens, f->drawn, m->embedding);
    op_norm(m->be, run_x(r, 0), r->e, model_vector(m, P_LN0_W, 0), model_vector(m, P_LN0_B, 0),
            LN_EPS);
}

struct tensor model_forward(struct model *m, struct run *r, const struct feed *f,
                            struct state *state) {
    assert(r->limits.mode == RUN_INFER);
    run_set(r, m, f);
    if (run_decode(r, f, state)) return f->outs ? r->logits : tensor_none();
    embed_forward(m, r, f);
    const struct tensor x = run_x(r, 0);
    for (int i = 0; i < m->dims.L; i++)
        layer_forward(m, i, run_acts(r, i), x, x, r->v_first, &r->batch, state);
    if (!f->outs) return tensor_none();
    op_gather_rows(m->be, r->last, x, f->out_rows);
    op_norm(m->be, r->normed, r->last, model_vector(m, P_OUT_W, 0), model_vector(m, P_OUT_B, 0),
            LN_EPS);
    linear(m, P_HEAD, 0, r->logits, r->normed, tensor_none(), ACT_NONE);
    return r->logits;
}
