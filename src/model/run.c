// The memory of a pass: one layout function plans it, allocates it and lays it out for each batch.
#include "model/run.h"

#include "backend/decoder.h"
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

// `in` is the storage of what lies between products.
static void acts_carve(struct acts *a, struct carver *c, const struct model *m, enum dtype in,
                       int rows, int spans, bool trained) {
    const struct dims *d = &m->dims;
    const size_t R = (size_t)rows, C = (size_t)d->C;
    const enum dtype t = m->be->real;
    a->m = planes(c, in, MIX_COUNT, R, C);
    a->rkv = planes(c, in, RKV_COUNT, R, C);
    a->hidden[LORA_W] = matrix(c, in, R, (size_t)d->Dw);
    a->hidden[LORA_A] = matrix(c, in, R, (size_t)d->Da);
    a->hidden[LORA_V] = matrix(c, in, R, (size_t)d->Dv);
    a->hidden[LORA_G] = matrix(c, in, R, (size_t)d->Dg);
    a->lora = planes(c, in, LORA_COUNT, R, C);
    a->u = planes(c, in, U_COUNT, R, C);
    a->y = matrix(c, in, R, C);
    a->o = matrix(c, in, R, C);
    a->x1 = matrix(c, t, R, C);
    a->m2 = planes(c, in, 1, R, C);
    a->h = matrix(c, in, R, 4 * C);
    a->saved = tensor_none();
    if (trained) {
        const struct backend *be = m->be;
        const size_t bytes = be->class->wkv7_saved_bytes(be, rows, spans, d->H, (int)C / d->H);
        a->saved = carve(c, DT_U8, 1, &bytes);
    }
}

static void grads_carve(struct grads *g, struct carver *c, const struct model *m, enum dtype in,
                        int rows) {
    const struct dims *d = &m->dims;
    const size_t R = (size_t)rows, C = (size_t)d->C;
    const enum dtype t = m->be->real;
    g->x = carve(c, t, 2, (size_t[]){R, C});
    g->z = carve(c, t, 2, (size_t[]){R, C});
    g->v_first = carve(c, in, 2, (size_t[]){R, C});
    g->rounded = in == t ? g->x : carve(c, in, 2, (size_t[]){R, C});
    g->y = carve(c, in, 2, (size_t[]){R, C});
    g->o = carve(c, in, 2, (size_t[]){R, C});
    g->m = carve(c, in, 3, (size_t[]){MIX_COUNT, R, C});
    g->rkv = carve(c, in, 3, (size_t[]){RKV_COUNT, R, C});
    g->lora = carve(c, in, 3, (size_t[]){LORA_COUNT, R, C});
    g->u = carve(c, in, 3, (size_t[]){U_COUNT, R, C});
    const int width[LORA_COUNT] = {
        [LORA_W] = d->Dw, [LORA_A] = d->Da, [LORA_V] = d->Dv, [LORA_G] = d->Dg};
    for (int l = 0; l < LORA_COUNT; l++)
        g->hidden[l] = carve(c, in, 2, (size_t[]){R, (size_t)width[l]});
    g->h = carve(c, in, 2, (size_t[]){R, 4 * C});
}

static enum dtype input_of(const struct model *m, int rows) {
    return input_type(m->be, m->options.precision, rows, m->dims.C);
}

// The layout of a run for one batch; also, with no buffer behind, the plan of the largest.
static void lay_out(struct run *r, struct carver *c, const struct model *m, int rows, int spans,
                    int outs) {
    const struct dims *d = &m->dims;
    const size_t R = (size_t)rows, C = (size_t)d->C, V = (size_t)d->V, L = (size_t)d->L;
    const enum dtype t = m->be->real, in = input_of(m, rows);
    const bool trained = r->limits.mode != RUN_INFER;
    r->e = matrix(c, t, R, C);
    r->v_first = matrix(c, in, R, C);
    // One residual stream in inference, one a layer where the way back wants it.
    r->x = planes(c, t, trained ? L + 1 : 1, R, C);
    r->z = matrix(c, t, R, C);
    for (int i = 0; i < (r->limits.mode == RUN_TRAIN ? d->L : 1); i++) {
        acts_carve(&r->acts[i], c, m, in, rows, spans, trained);
        r->acts[i].z = r->z;
    }
    if (!trained) {
        r->last = matrix(c, t, (size_t)outs, C);
        r->normed = matrix(c, in, (size_t)outs, C);
        r->logits = matrix(c, t, (size_t)outs, V);
        return;
    }
    const size_t limit = (size_t)r->limits.head_rows, chunk = limit < R ? limit : R;
    r->normed = matrix(c, in, R, C);
    r->logits = matrix(c, in, chunk, V);
    r->losses = carve(c, t, 1, &R);
    grads_carve(&r->grads, c, m, in, rows);
}

static struct run_limits complete(const struct model *m, struct run_limits n) {
    const bool narrow = input_of(m, n.rows) != m->be->real;
    if (!n.head_rows) n.head_rows = m->be->class->head_rows * (narrow ? 2 : 1);
    return n;
}

static size_t bytes_of(struct run *r, const struct model *m, int rows) {
    const struct run_limits *n = &r->limits;
    struct carver c = {0};
    lay_out(r, &c, m, rows, n->spans, n->outs);
    return c.used;
}

// Of the largest batch, or of the largest that is not narrow yet.
size_t run_bytes(const struct model *m, struct run_limits limits) {
    struct run r = {.limits = complete(m, limits)};
    r.acts = mem_zero((size_t)m->dims.L, sizeof *r.acts);
    const size_t all = bytes_of(&r, m, limits.rows);
    int below = limits.rows;
    while (below && input_of(m, below) != m->be->real) below--;
    const size_t wide = bytes_of(&r, m, below);
    free(r.acts);
    return all > wide ? all : wide;
}

// ---- decoding as one op ------------------------------------------------------------------------

static void describe_layer(struct decoder_layer *l, const struct model *m, int i) {
    *l = (struct decoder_layer){.ln1_w = model_vector(m, P_LN1_W, i),
                                .ln1_b = model_vector(m, P_LN1_B, i),
                                .ln2_w = model_vector(m, P_LN2_W, i),
                                .ln2_b = model_vector(m, P_LN2_B, i),
                                .mix = model_vectors(m, P_X_R, MIX_COUNT, i),
                                .ffn_mix = model_vectors(m, P_FFN_X_K, 1, i),
                                .key_vecs = model_vectors(m, P_W0, KEY_COUNT, i),
                                .read_vecs = model_vectors(m, P_LNX_W, READ_COUNT, i),
                                .rkv = {[RKV_R] = model_weight(m, P_RECEPTANCE, i),
                                        [RKV_K] = model_weight(m, P_KEY, i),
                                        [RKV_V] = model_weight(m, P_VALUE, i)},
                                .output = model_weight(m, P_OUTPUT, i),
                                .key = model_weight(m, P_FFN_KEY, i),
                                .value = model_weight(m, P_FFN_VALUE, i)};
    for (int k = 0; k < LORA_COUNT; k++) {
        l->lora1[k] = model_weight(m, lora_ids[k].w1, i);
        l->lora2[k] = model_weight(m, lora_ids[k].w2, i);
    }
}

static int decoder_for(struct run *r, const struct model *m, struct error *err) {
    const struct backend_class *class = m->be->class;
    if (r->limits.mode != RUN_INFER || !class->decoder_create || m->options.trained) return 0;
    struct decoder_layer *layers = mem_zero((size_t)m->dims.L, sizeof *layers);
    for (int i = 0; i < m->dims.L; i++) describe_layer(&layers[i], m, i);
    const struct decoder_parts parts = {.L = m->dims.L,
                                        .H = m->dims.H,
                                        .eps = LN_EPS,
                                        .embedding = m->embedding,
                                        .ln0_w = model_vector(m, P_LN0_W, 0),
                                        .ln0_b = model_vector(m, P_LN0_B, 0),
                                        .out_w = model_vector(m, P_OUT_W, 0),
                                        .out_b = model_vector(m, P_OUT_B, 0),
                                        .head = model_weight(m, P_HEAD, 0),
                                        .layers = layers};
    const int rc = class->decoder_create(&r->decoder, m->be, &parts, err);
    free(layers);
    return rc;
}

bool run_decode(struct run *r, const struct feed *f, struct state *s) {
    if (!r->decoder || !s || f->batch.rows != 1) return false;
    const struct decode d = {.logits = f->outs ? r->logits : tensor_none(),
                             .token = f->tokens,
                             .slot = f->batch.last,
                             .drawn = f->drawn,
                             .shift = s->shift,
                             .wkv = s->wkv};
    r->decoder->be->class->decode(r->decoder, &d);
    return true;
}

// ---- a run -------------------------------------------------------------------------------------

int run_create(struct run **out, struct model *m, struct run_limits limits, struct error *err) {
    limits = complete(m, limits);
    struct buffer *memory = buffer_create(m->be, run_bytes(m, limits), err);
    if (!memory) return fail_in(err, "memory for batches of %d rows", limits.rows);
    struct run *r = mem_zero(1, sizeof *r);
    r->limits = limits;
    r->memory = memory;
    r->acts = mem_zero((size_t)m->dims.L, sizeof *r->acts);
    r->host_losses = mem_zero((size_t)limits.rows, sizeof(double));
    if (decoder_for(r, m, err)) {
        run_destroy(r);
        return fail_in(err, "memory for steps of one row");
    }
    *out = r;
    return 0;
}

void run_destroy(struct run *r) {
    if (!r) return;
    if (r->decoder) r->decoder->be->class->decoder_destroy(r->decoder);
    buffer_destroy(r->memory);
    free(r->acts);
    free(r->host_losses);
    free(r);
}

void run_set(struct run *r, const struct model *m, const struct feed *f) {
    assert(f->batch.rows <= r->limits.rows && f->batch.spans <= r->limits.spans &&
           f->outs <= r->limits.outs);
    struct carver c = {.buf = r->memory};
    lay_out(r, &c, m, f->batch.rows, f->batch.spans, f->outs);
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

void run_watch(struct run *r, void (*reached)(void *ctx, int layer), void *ctx) {
    r->reached = reached;
    r->reached_ctx = ctx;
}

void run_reached(const struct run *r, int layer) {
    if (r->reached) r->reached(r->reached_ctx, layer);
}

struct tensor run_losses(const struct run *r) {
    return r->losses;
}
