#include "model/feed.h"

#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// One block of 32-bit words: span (S,4) | prev (R) | last (R) | tokens (R) | outs (O), and with
// targets: targets (R) | order (R), each padded to 16 words, laid out anew for the current sizes.
static size_t padded(size_t n) {
    return (n + 15) & ~(size_t)15;
}

static size_t words(struct feed_limits n) {
    return padded(4 * (size_t)n.spans) + 5 * padded((size_t)n.rows) + padded((size_t)n.outs);
}

int feed_create(struct feed **out, struct backend *be, struct feed_limits limits,
                struct error *err) {
    struct feed *f = mem_zero(1, sizeof *f);
    f->be = be;
    f->limits = limits;
    f->memory = buffer_create(be, words(limits) * 4, err);
    if (!f->memory) {
        free(f);
        return -1;
    }
    f->staging = mem_zero(words(limits), 4);
    f->sorted = mem_zero((size_t)limits.rows, sizeof *f->sorted);
    *out = f;
    return 0;
}

void feed_destroy(struct feed *f) {
    if (!f) return;
    buffer_destroy(f->memory);
    free(f->staging);
    free(f->sorted);
    free(f);
}

static struct tensor view(struct feed *f, size_t at, int ndim, size_t d0, size_t d1) {
    return (struct tensor){
        .buf = f->memory, .offset = at * 4, .dtype = DT_I32, .ndim = ndim, .dim = {d0, d1}};
}

// Rows by their tokens, those of one token upwards: a byte of the token at a time.
static void sort_rows(int32_t *order, int32_t *other, const int32_t *tokens, size_t R) {
    uint32_t all = 0;
    for (size_t r = 0; r < R; r++) {
        order[r] = (int32_t)r;
        all |= (uint32_t)tokens[r];
    }
    for (int shift = 0; shift < 32 && all >> shift; shift += 8) {
        size_t at[257] = {0};
        for (size_t r = 0; r < R; r++) at[((uint32_t)tokens[r] >> shift & 255) + 1]++;
        for (int b = 0; b < 256; b++) at[b + 1] += at[b];
        for (size_t r = 0; r < R; r++)
            other[at[(uint32_t)tokens[order[r]] >> shift & 255]++] = order[r];
        memcpy(order, other, R * sizeof *order);
    }
}

void feed_set(struct feed *f, const struct span *spans, int num_spans, const int32_t *tokens,
              const int32_t *out_rows, int outs, const int32_t *targets) {
    int rows = 0;
    for (int s = 0; s < num_spans; s++) {
        assert(spans[s].first == rows && spans[s].len > 0);
        rows += spans[s].len;
    }
    assert(rows <= f->limits.rows && num_spans <= f->limits.spans && outs <= f->limits.outs);
    const size_t R = (size_t)rows, S = (size_t)num_spans;
    const size_t prev = padded(4 * S), last = prev + padded(R), token = last + padded(R),
                 out = token + padded(R), target = out + padded((size_t)outs),
                 order = target + padded(R), end = targets ? order + padded(R) : target;
    int32_t *w = f->staging;
    memcpy(w, spans, S * sizeof *spans);
    for (size_t s = 0; s < S; s++)
        for (int i = 0; i < spans[s].len; i++) {
            const int r = spans[s].first + i;
            w[prev + (size_t)r] = i ? r - 1 : -1 - spans[s].slot;
            const int left = spans[s].len - 1 - i;
            w[last + (size_t)r] = left ? -left : spans[s].slot;
        }
    memcpy(w + token, tokens, R * sizeof *tokens);
    f->num_targets = 0;
    if (targets) {
        memcpy(w + target, targets, R * sizeof *targets);
        for (size_t r = 0; r < R; r++) f->num_targets += targets[r] >= 0;
        sort_rows(w + order, f->sorted, tokens, R);
    }
    if (outs) memcpy(w + out, out_rows, (size_t)outs * sizeof *out_rows);
    f->batch = (struct batch){.rows = rows,
                              .span = view(f, 0, 2, S, 4),
                              .prev = view(f, prev, 1, R, 0),
                              .last = view(f, last, 1, R, 0)};
    batch_count(&f->batch, spans, num_spans);
    f->tokens = view(f, token, 1, R, 0);
    f->targets = targets ? view(f, target, 1, R, 0) : tensor_none();
    f->order = targets ? view(f, order, 1, R, 0) : tensor_none();
    f->out_rows = view(f, out, 1, (size_t)outs, 0);
    f->outs = outs;
    f->be->class->upload(f->be, view(f, 0, 1, end, 0), w);
}

void feed_set_grid(struct feed *f, int B, int T, const int32_t *tokens, const int32_t *targets) {
    struct span *spans = mem_zero((size_t)B, sizeof *spans);
    for (int b = 0; b < B; b++) spans[b] = (struct span){.first = b * T, .len = T, .slot = b};
    feed_set(f, spans, B, tokens, NULL, 0, targets);
    free(spans);
}
