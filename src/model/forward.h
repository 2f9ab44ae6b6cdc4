// One forward pass for training, prefill and decoding, and its mirror.
#pragma once
#include "model/feed.h"
#include "model/model.h"
#include "model/state.h"

// How much a run remembers.
enum run_mode {
    RUN_INFER,      // one layer's intermediates, overwritten by the next
    RUN_TRAIN,      // every layer's
    RUN_CHECKPOINT, // every layer's input; the rest is computed again on the way back
};

struct run_limits {
    int rows, spans, outs; // largest batch
    int head_rows;         // rows of logits at a time in training; 0: what the backend likes
    enum run_mode mode;
};

// The memory of forward passes: planned once, nothing is allocated in a step. One owner thread.
struct run;
int run_create(struct run **out, struct model *m, struct run_limits limits, struct error *err);
void run_destroy(struct run *r); // NULL is fine
size_t run_bytes(const struct model *m, struct run_limits limits);

// Logits (outs,V) of the rows that the feed asked for, valid until the next call. `state` carries
// the sequences' slots and is updated; NULL: every span starts from zero and nothing is kept.
struct tensor model_forward(struct model *m, struct run *r, const struct feed *f,
                            struct state *state);

enum gradient {
    GRADIENT_NONE,
    GRADIENT_NEW,  // in place of what model->grad holds
    GRADIENT_MORE, // added to it
};

// A training pass: the losses of the feed's targets ≥ 0 (nats), and gradients of scale · Σ loss and
// of L2Wrap's share. The run's mode is not RUN_INFER. Nothing is waited for.
void model_pass(struct model *m, struct run *r, const struct feed *f, enum gradient gradient,
                double scale, bool l2wrap);
// Who wants to know how far a pass has come on the way back: reached(ctx, i) when the gradients of
// layer i and of all that is above are written down (i = L: of the head and its norm), down to -1
// for all. NULL: nobody.
void run_watch(struct run *r, void (*reached)(void *ctx, int layer), void *ctx);

// The losses of each row of the last pass, (R) in the backend's storage.
struct tensor run_losses(const struct run *r);

// A pass, and the sum of its losses.
double model_loss(struct model *m, struct run *r, const struct feed *f, enum gradient gradient,
                  double scale, bool l2wrap);
