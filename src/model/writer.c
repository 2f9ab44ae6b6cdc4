#include "model/writer.h"

#include "base/error.h"
#include "base/mem.h"
#include "model/state_file.h"

#include <assert.h>
#include <stdlib.h>

enum { CHUNK = 128 }; // rows of a prompt at a time
_Static_assert(CHUNK % STATE_CELL == 0, "cuts of a prompt may not show");

struct writer {
    struct model *model;
    struct run *run;
    struct feed *feed;
    struct state *state;
    struct buffer *memory;
    struct tensor token, rows, penalties;
    struct tensor restored; // (1,V) logits that came from a file
    struct tensor logits;   // of the last token fed; absent: nothing fed yet
    uint64_t position;
    int32_t pending; // drawn, not yet fed; -1: none
};

int writer_create(struct writer **out, struct model *m, struct error *err) {
    struct writer *w = mem_zero(1, sizeof *w);
    const size_t V = (size_t)m->dims.V, penalty = sample_penalty_bytes(V);
    struct carver plan = {0};
    w->model = m;
    for (int pass = 0; pass < 2; pass++) { // measure, then lay out
        if (pass == 1) {
            if (!(w->memory = buffer_create(m->be, plan.used, err))) goto bad;
            plan = (struct carver){.buf = w->memory};
        }
        w->token = carve(&plan, DT_I32, 1, &(size_t){1});
        w->rows = carve(&plan, DT_U8, 2, (size_t[]){1, sizeof(struct sample_row)});
        w->penalties = carve(&plan, DT_U8, 2, (size_t[]){1, penalty});
        w->restored = carve(&plan, m->be->real, 2, (size_t[]){1, V});
    }
    const struct run_limits limits = {.rows = CHUNK, .spans = 1, .outs = 1, .mode = RUN_INFER};
    if (run_create(&w->run, m, limits, err) ||
        feed_create(&w->feed, m->be, (struct feed_limits){CHUNK, 1, 1}, err) ||
        state_create(&w->state, m, 1, err))
        goto bad;
    writer_reset(w);
    *out = w;
    return 0;
bad:
    writer_destroy(w);
    return -1;
}

void writer_destroy(struct writer *w) {
    if (!w) return;
    run_destroy(w->run);
    feed_destroy(w->feed);
    state_destroy(w->state);
    buffer_destroy(w->memory);
    free(w);
}

void writer_reset(struct writer *w) {
    void *zeros = mem_zero(tensor_bytes(w->penalties), 1);
    state_zero(w->state, 0);
    w->model->be->class->upload(w->model->be, w->penalties, zeros);
    w->logits = tensor_none();
    w->position = 0;
    w->pending = -1;
    free(zeros);
}

static void feed_some(struct writer *w, const int32_t *tokens, int len) {
    const struct span span = {.len = len, .pos = (int32_t)w->position};
    const int32_t last = len - 1;
    feed_set(w->feed, &span, 1, tokens, &last, 1, NULL);
    w->logits = model_forward(w->model, w->run, w->feed, w->state);
    w->position += (uint64_t)len;
}

static void feed_pending(struct writer *w) {
    const int32_t token = w->pending;
    if (token < 0) return;
    w->pending = -1;
    feed_some(w, &token, 1);
}

void writer_feed(struct writer *w, const int32_t *tokens, size_t len) {
    feed_pending(w);
    for (size_t at = 0; at < len; at += CHUNK)
        feed_some(w, tokens + at, (int)(len - at < CHUNK ? len - at : CHUNK));
}

int32_t writer_next(struct writer *w, const struct writer_options *o) {
    struct backend *be = w->model->be;
    feed_pending(w);
    assert(tensor_is(w->logits));
    const struct sample_row row = {.temperature = o->temperature,
                                   .top_p = o->top_p,
                                   .min_p = o->min_p,
                                   .presence = o->presence,
                                   .repetition = o->repetition,
                                   .frequency = o->frequency,
                                   .penalty_decay = o->penalty_decay,
                                   .top_k = o->top_k,
                                   .seed = o->seed,
                                   .position = w->position};
    const bool penalised = o->presence != 0 || o->repetition != 0 || o->frequency != 0;
    be->class->upload(be, w->rows, &row);
    op_sample(be, w->token, w->logits, w->rows, penalised ? w->penalties : tensor_none(),
              tensor_none());
    be->class->download(be, &w->pending, w->token);
    return w->pending;
}

void writer_logits(struct writer *w, float *out) {
    struct backend *be = w->model->be;
    feed_pending(w);
    void *raw = mem_alloc(tensor_bytes(w->logits));
    be->class->download(be, raw, w->logits);
    dtype_convert(out, DT_F32, raw, w->logits.dtype, tensor_count(w->logits));
    free(raw);
}

int writer_save(struct writer *w, const char *path, uint64_t vocab_hash, struct error *err) {
    const size_t V = (size_t)w->model->dims.V;
    float *logits = NULL;
    void *penalties = mem_alloc(tensor_bytes(w->penalties));
    feed_pending(w);
    if (tensor_is(w->logits)) {
        logits = mem_alloc(V * sizeof *logits);
        writer_logits(w, logits);
    }
    w->model->be->class->download(w->model->be, penalties, w->penalties);
    const struct state_extra extra = {.vocab_hash = vocab_hash,
                                      .tokens = w->position,
                                      .last_token = -1,
                                      .logits = logits,
                                      .penalties = penalties};
    const int rc = state_save(path, w->model, w->state, 0, &extra, err);
    free(logits);
    free(penalties);
    return rc;
}

int writer_load(struct writer *w, const char *path, uint64_t vocab_hash, struct error *err) {
    struct backend *be = w->model->be;
    const size_t V = (size_t)w->model->dims.V;
    float *logits = mem_alloc(V * sizeof *logits);
    void *penalties = mem_zero(tensor_bytes(w->penalties), 1);
    struct state_extra extra;
    const int rc =
        state_load(path, w->model, w->state, 0, &extra, vocab_hash, logits, penalties, err);
    if (rc == 0) {
        w->position = extra.tokens;
        w->pending = -1;
        be->class->upload(be, w->penalties, penalties);
        w->logits = tensor_none();
        if (extra.logits) {
            void *raw = mem_alloc(V * dtype_size(be->real));
            dtype_convert(raw, be->real, logits, DT_F32, V);
            be->class->upload(be, w->restored, raw);
            w->logits = w->restored;
            free(raw);
        }
    }
    free(logits);
    free(penalties);
    return rc;
}
