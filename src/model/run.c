// The memory of a pass: one layout function plans it, allocates it and lays it out for each batch.
#include "model/run.h"

#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

const struct lora_ids lora_ids[LORA_COUNT] = {
    [LORA_W] = {P_W1, P_W2, MIX_W, ACT_TANH},
    [LORA_A] = {P_A1, P_A2, MIX_A, ACT_NONE},
    [LORA_V] = {P_V1, P_V2, MIX_V, ACT_NONE},
    [LORA_G] = {P_G1, P_G2, MIX_G, ACT_SIGMOID},
};

static struct tensor matrix(struct carver *c, enum dtype t, size_t rows, size_t cols) {
    return carve(c, t, 2, (size_t[]){rows, cols});
}

static struct tensor planes(struct carver *c, enum dtype t, size_t n, size_t rows, size_t cols) {
    return carve(c, t, 3, (size_t[]){n, rows, cols});
}

static void acts_carve(struct acts *a, struct carver *c, const struct backend *be,
                       const struct dims *d, int rows, int spans, bool trained) {
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

static void grads_carve(struct grads *g, struct carver *c, const struct backend *be,
                        const struct dims *d, int rows) {
    const size_t R = (size_t)rows, C = (size_t)d->C;
    const enum dtype t = be->real;
    struct tensor *one[] = {&g->x, &g->v_first, &g->z, &g->o, &g->y};
    for (size_t i = 0; i < sizeof one / sizeof one[0]; i++)
        *one[i] = carve(c, t, 2, (size_t[]){R, C});
    g->m = carve(c, t, 3, (size_t[]){MIX_COUNT, R, C});
    g->rkv = carve(c, t, 3, (size_t[]){RKV_COUNT, R, C});
    g->lora = carve(c, t, 3, (size_t[]){LORA_COUNT, R, C});
    g->u = carve(c, t, 3, (size_t[]){U_COUNT, R, C});
    const int width[LORA_COUNT] = {
        [LORA_W] = d->Dw, [LORA_A] = d->Da, [LORA_V] = d->Dv, [LORA_G] = d->Dg};
    for (int l = 0; l < LORA_COUNT; l++)
        g->hidden[l] = carve(c, t, 2, (size_t[]){R, (size_t)width[l]});
    g->h = carve(c, t, 2, (size_t[]){R, 4 * C});
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
    if (!n.head_rows) n.head_rows = 256;
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
    const struct precision p = m->options.precision;
    r->batch = f->batch;
    r->batch.exact = p.inputs == DT_F32 && (p.stored == DT_F32 || p.stored == DT_BF16);
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
