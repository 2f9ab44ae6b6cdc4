// Inside forward.c, backward.c and run.c: the intermediates of a pass. Shapes: R rows, C channels,
// F = 4C.
#pragma once
#include "model/forward.h"

#include "backend/ops.h"

#define LN_EPS 1e-5

// One layer's intermediates, in the order they come to be; names as in docs/math.md. What lies
// between products (°) is bf16 where the backend and the precision have it so, and so is its
// gradient; the residual stream and its norms are not.
struct acts {
    struct tensor z;                  // (R,C) LN1(x), LN2(x1): on the way to a mix, in all layers
    struct tensor m;                  // ° (6,R,C) token-shift mixes
    struct tensor rkv;                // ° (3,R,C) projections
    struct tensor hidden[LORA_COUNT]; // ° (R,D) after the activation
    struct tensor lora;               // ° (4,R,C)
    struct tensor u;                  // ° (5,R,C) inputs of wkv7
    struct tensor saved;              // what wkv7 keeps for its backward pass; training only
    struct tensor y, o;               // ° (R,C) readings of the state; gated readout
    struct tensor x1;                 // (R,C) residual stream after the time mix
    struct tensor m2;                 // ° (1,R,C)
    struct tensor h;                  // ° (R,F) relu²
};

// Gradients of one layer's intermediates, shared by all layers, and of the residual stream.
struct grads {
    struct tensor x;                  // (R,C) ∂ℓ/∂(residual stream), travels down the layers
    struct tensor rounded;            // (R,C) x as products take it: x itself where that is so
    struct tensor v_first;            // ° (R,C) summed over the layers above 0
    struct tensor z;                  // (R,C)
    struct tensor y, o;               // ° (R,C)
    struct tensor m;                  // ° (6,R,C); plane 0 also serves the channel mix
    struct tensor rkv, lora;          // ° (3 and 4,R,C)
    struct tensor u;                  // ° (5,R,C)
    struct tensor hidden[LORA_COUNT]; // ° (R,D)
    struct tensor h;                  // ° (R,F)
    bool more; // those of matrices are added to the model's; else they take their place
};

struct run {
    struct run_limits limits;
    struct buffer *memory;
    struct batch batch;    // the feed's, as exact as the model
    struct tensor e;       // (R,C) embedding rows
    struct tensor v_first; // ° (R,C) layer 0's values
    struct tensor x;    // (1 or L+1,R,C) residual stream at each layer's entry, and after the last
    struct acts *acts;  // 1 or L
    struct tensor z;    // (R,C) theirs
    struct tensor last; // (O,C) inference: rows that want logits
    struct tensor normed; // ° (O or R,C) LN_out
    struct tensor logits; // (O,V); training: ° (head_rows,V), where their gradient comes too
    struct tensor losses; // (R) training
    struct grads grads;   // training
    void *host_losses;
    void (*reached)(void *ctx, int layer); // run_watch
    void *reached_ctx;
    struct decoder *decoder; // steps of one row as one op; NULL: op by op
};

// Which parameters make which LoRA, and the mix it reads.
struct lora_ids {
    enum param_id w1, w2;
    int mix;
    enum act act;
};
extern const struct lora_ids lora_ids[LORA_COUNT];

// Lays the run out for the feed's batch.
void run_set(struct run *r, const struct model *m, const struct feed *f);
struct acts *run_acts(struct run *r, int layer);
void run_reached(const struct run *r, int layer);
struct tensor run_x(const struct run *r, int layer); // entry of the layer; L: after the last

// The whole pass as one op (backend/decoder.h). False: it is none, and nothing was done.
bool run_decode(struct run *r, const struct feed *f, struct state *s);

void embed_forward(struct model *m, struct run *r, const struct feed *f);
// x_out may be x. Layer 0 writes v_first, the others read it.
void layer_forward(struct model *m, int layer, struct acts *a, struct tensor x_out, struct tensor x,
                   struct tensor v_first, const struct batch *b, struct state *s);
