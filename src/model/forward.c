// The forward pass reads from top to bottom; backward.c is its mirror.
#include "model/forward.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/run.h"

#include <assert.h>
#include <stdlib.h>

// ---- memory ------------------------------------------------------------------------------------

static struct tensor matrix(struct carver *c, enum dtype t, size_t rows, size_t cols) {
    return carve(c, t, 2, (size_t[]){rows, cols});
}

static struct tensor planes(struct carver *c, enum dtype t, size_t n, size_t rows, size_t cols) {
    return carve(c, t, 3, (size_t[]){n, rows, cols});
}

void acts_carve(struct acts *a, struct carver *c, const struct backend *be, const struct dims *d,
                int rows, int spans, bool trained) {
    const size_t R = (size_t)rows, C = (size_t)d->C;
    const enum dtype t = be->real;
    a->z1 = matrix(c, t, R, C);
    a->m = planes(c, t, MIX_COUNT, R, C);
    a->rkv = planes(c, t, RKV_COUNT, R, C);
    a->hidden[LORA_W] = matrix(c, t, R, (size_t)d->Dw);
    a->hidden[LORA_A] = matrix(c, t, R, (size_t)d->Da);
    a->hidden[LORA_V] = matrix(c, t, R, (size_t)d->Dv);
    a->hidden[LORA_G] = matrix(c, t, R, (size_t)d->Dg);
    a->lora = planes(c, t, LORA_COUNT, R, C);
    a->u = planes(c, t, U_COUNT, R, C);
    a->y = matrix(c, t, R, C);
    a->o = matrix(c, t, R, C);
    a->x1 = matrix(c, t, R, C);
    a->z2 = matrix(c, t, R, C);
    a->m2 = planes(c, t, 1, R, C);
    a->h = matrix(c, t, R, 4 * C);
    a->saved = tensor_none();
    if (trained) {
        const size_t bytes = be->class->wkv7_saved_bytes(be, rows, spans, d->H, (int)C / d->H);
        a->saved = carve(c, DT_U8, 1, &bytes);
    }
}

// The layout of a run for one batch; also, with no buffer behind, the plan of the largest.
static void lay_out(struct run *r, struct carver *c, const struct backend *be, const struct dims *d,
                    int rows, int spans, int outs) {
    const size_t R = (size_t)rows, C = (size_t)d->C, V = (size_t)d->V, L = (size_t)d->L;
    const enum dtype t = be->real;
    const bool trained = r->limits.mode != RUN_INFER;
    r->e = matrix(c, t, R, C);
    r->v_first = matrix(c, t, R, C);
    // One residual stream in inference, one a layer where the way back wants it.
    r->x = planes(c, t, trained ? L + 1 : 1, R, C);
    for (int i = 0; i < (r->limits.mode == RUN_TRAIN ? d->L : 1); i++)
        acts_carve(&r->acts[i], c, be, d, rows, spans, trained);
    if (!trained) {
        r->last = matrix(c, t, (size_t)outs, C);
        r->normed = matrix(c, t, (size_t)outs, C);
        r->logits = matrix(c, t, (size_t)outs, V);
        return;
    }
    const size_t chunk = (size_t)r->limits.head_rows;
    r->normed = matrix(c, t, R, C);
    r->logits = matrix(c, t, chunk, V);
    r->losses = carve(c, t, 1, &R);
    grads_carve(&r->grads, c, be, d, rows);
}

static struct run_limits complete(struct run_limits n) {
    if (!n.head_rows) n.head_rows = 128;
    return n;
}

size_t run_bytes(const struct backend *be, const struct dims *d, struct run_limits limits) {
    struct run r = {.limits = complete(limits)};
    r.acts = mem_zero((size_t)d->L, sizeof *r.acts);
    struct carver c = {0};
    lay_out(&r, &c, be, d, limits.rows, limits.spans, limits.outs);
    free(r.acts);
    return c.used;
}

int run_create(struct run **out, struct model *m, struct run_limits limits, struct error *err) {
    limits = complete(limits);
    struct buffer *memory = buffer_create(m->be, run_bytes(m->be, &m->dims, limits), err);
    if (!memory) return fail_in(err, "memory for batches of %d rows", limits.rows);
    struct run *r = mem_zero(1, sizeof *r);
    r->limits = limits;
    r->memory = memory;
    r->acts = mem_zero((size_t)m->dims.L, sizeof *r->acts);
    r->host_losses = mem_zero((size_t)limits.rows, sizeof(double));
    *out = r;
    return 0;
}

void run_destroy(struct run *r) {
    if (!r) return;
    buffer_destroy(r->memory);
    free(r->acts);
    free(r->host_losses);
    free(r);
}

void run_set(struct run *r, const struct model *m, const struct feed *f) {
    assert(f->batch.rows <= r->limits.rows && f->batch.spans <= r->limits.spans &&
           f->outs <= r->limits.outs);
    struct carver c = {.buf = r->memory};
    lay_out(r, &c, m->be, &m->dims, f->batch.rows, f->batch.spans, f->outs);
}

struct acts *run_acts(struct run *r, int layer) {
    return &r->acts[r->limits.mode == RUN_TRAIN ? layer : 0];
}

struct tensor run_x(const struct run *r, int layer) {
    return tensor_at(r->x, r->limits.mode == RUN_INFER ? 0 : (size_t)layer);
}

struct tensor run_losses(const struct run *r) {
    return r->losses;
}

// ---- the layer ---------------------------------------------------------------------------------

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
