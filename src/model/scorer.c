#include "model/scorer.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 256 }; // tokens at a time; logits exist for so many rows

struct scorer {
    struct model *model;
    struct run *run;
    struct feed *feed;
    struct state *state;
    struct buffer *memory;
    struct tensor losses, best, greedy;
    int32_t rows[ROWS];
};

int scorer_create(struct scorer **out, struct model *m, struct error *err) {
    struct scorer *s = mem_zero(1, sizeof *s);
    struct carver plan = {0};
    const size_t row = sizeof(struct sample_row);
    s->model = m;
    for (int pass = 0; pass < 2; pass++) { // measure, then lay out
        if (pass == 1) {
            if (!(s->memory = buffer_create(m->be, plan.used, err))) goto bad;
            plan = (struct carver){.buf = s->memory};
        }
        s->losses = carve(&plan, m->be->real, 1, &(size_t){ROWS});
        s->best = carve(&plan, DT_I32, 1, &(size_t){ROWS});
        s->greedy = carve(&plan, DT_U8, 2, (size_t[]){ROWS, row}); // zeros: temperature 0
    }
    for (int i = 0; i < ROWS; i++) s->rows[i] = i;
    const struct run_limits limits = {.rows = ROWS, .spans = 1, .outs = ROWS, .mode = RUN_INFER};
    if (run_create(&s->run, m, limits, err) ||
        feed_create(&s->feed, m->be, (struct feed_limits){ROWS, 1, ROWS}, err) ||
        state_create(&s->state, m, 1, err))
        goto bad;
    *out = s;
    return 0;
bad:
    scorer_destroy(s);
    return -1;
}

void scorer_destroy(struct scorer *s) {
    if (!s) return;
    run_destroy(s->run);
    feed_destroy(s->feed);
    state_destroy(s->state);
    buffer_destroy(s->memory);
    free(s);
}

static void score_some(struct scorer *s, const int32_t *tokens, size_t at, int len, double *losses,
                       bool *hits) {
    struct backend *be = s->model->be;
    const struct span span = {.len = len, .pos = (int32_t)at};
    const size_t n = (size_t)len;
    char raw[ROWS * sizeof(double)];
    int32_t best[ROWS];
    feed_set(s->feed, &span, 1, tokens, s->rows, len, tokens + 1);
    const struct tensor logits = model_forward(s->model, s->run, s->feed, s->state);
    const struct tensor out = tensor_slice(s->losses, 0, n), choice = tensor_slice(s->best, 0, n);
    op_xent(be, out, tensor_none(), logits, s->feed->targets, 1, false);
    be->class->download(be, raw, out);
    dtype_convert(losses, DT_F64, raw, be->real, n);
    if (!hits) return;
    op_sample(be, choice, logits, tensor_slice(s->greedy, 0, n), tensor_none(), tensor_none());
    be->class->download(be, best, choice);
    for (size_t i = 0; i < n; i++) hits[i] = best[i] == tokens[i + 1];
}

void scorer_run(struct scorer *s, const int32_t *tokens, size_t n, double *losses, bool *hits) {
    state_zero(s->state, 0);
    // States that are rounded after each step are rounded after each token, as in decoding.
    const size_t most = s->model->options.half_states ? 1 : ROWS;
    for (size_t at = 0; at + 1 < n; at += most) {
        const size_t left = n - 1 - at;
        score_some(s, tokens + at, at, (int)(left < most ? left : most), losses + at,
                   hits ? hits + at : NULL);
    }
}
