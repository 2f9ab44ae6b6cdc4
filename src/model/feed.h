// What one forward pass is fed with: tokens, spans, and which rows want logits or have targets.
#pragma once
#include "backend/backend.h"

struct feed_limits {
    int rows, spans, outs;
};

// Owns its backend memory, sized once. One owner thread.
struct feed {
    struct backend *be;
    struct feed_limits limits;
    struct buffer *memory;
    int32_t *staging;       // host: built here, uploaded at once
    int32_t *sorted;        // host: room to sort in
    struct batch batch;     // views for the current rows and spans
    struct tensor tokens;   // (R) i32
    struct tensor drawn;    // (D) i32: what tokens below 0 stand for (op_embed); the caller's
    struct tensor targets;  // (R) i32, -1: none; absent unless given
    struct tensor order;    // (R) i32: rows by their tokens, where there are targets
    struct tensor out_rows; // (O) i32
    int outs;
    int num_targets; // targets ≥ 0
};

int feed_create(struct feed **out, struct backend *be, struct feed_limits limits,
                struct error *err);
void feed_destroy(struct feed *f); // NULL is fine

// spans cover rows 0.. in order. out_rows and targets may be NULL. Our own mistakes (too many rows,
// gaps) are asserts.
void feed_set(struct feed *f, const struct span *spans, int num_spans, const int32_t *tokens,
              const int32_t *out_rows, int outs, const int32_t *targets);

// B sequences of T tokens each from position 0, slots 0..B-1.
void feed_set_grid(struct feed *f, int B, int T, const int32_t *tokens, const int32_t *targets);
