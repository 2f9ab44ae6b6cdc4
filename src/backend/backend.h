// A backend: memory, weights and a table of ops. The model is written once against this page and
// ops.h; `ref` gives every op its meaning, the others are faster twins.
//
// Letters: R rows (tokens of a batch), C channels, H heads, N = C/H head size, F = 4C, V
// vocabulary, D LoRA rank, S slots, L layers.
#pragma once
#include "backend/dtype.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct backend;
struct ops;
struct decoder; // decoder.h
struct decoder_parts;
struct decode;

// ---- tensors -----------------------------------------------------------------------------------

// Backend memory. `host` is its address where the processor can reach it, else NULL.
struct buffer {
    struct backend *be;
    void *host;
    size_t bytes;
};

// A small contiguous row-major view, passed by value. It owns nothing. buf NULL means "absent".
struct tensor {
    struct buffer *buf;
    size_t offset; // bytes
    enum dtype dtype;
    int ndim;
    size_t dim[5];
};

struct tensor tensor_none(void);
bool tensor_is(struct tensor t); // present?
size_t tensor_count(struct tensor t);
size_t tensor_bytes(struct tensor t);
struct tensor tensor_at(struct tensor t, size_t i);                  // t[i]: one dimension less
struct tensor tensor_slice(struct tensor t, size_t first, size_t n); // t[first : first+n]
struct tensor tensor_shape(struct tensor t, int ndim, const size_t *dim); // same count, other dims
void *tensor_host(struct tensor t);                                       // host backends only

// Hands out aligned pieces of one buffer, or only counts them when buf is NULL: the same code plans
// and allocates, so that a plan cannot disagree with what follows it.
struct carver {
    struct buffer *buf;
    size_t used; // bytes
};
struct tensor carve(struct carver *c, enum dtype t, int ndim, const size_t *dim);

// ---- weights -----------------------------------------------------------------------------------

// Matrices of the model, opaque: a backend packs, transposes or quantises them as it likes.
struct weight;

enum weight_layout {
    WEIGHT_OUT_IN, // stored (O,K): y = x Wᵀ; every *.weight of the model
    WEIGHT_IN_OUT, // stored (K,O): y = x W;  the LoRA matrices
};

// How a matrix is held and what is multiplied by it. Sums are f32, or `real` where that is more.
struct precision {
    enum dtype stored; // DT_F32, DT_BF16; not trained: DT_INT8, DT_INT4 (backend/quant.h)
    enum dtype inputs; // x and dy are rounded to it first: DT_F32 (as they are) or DT_BF16, which
                       // goes with DT_BF16 weights. Integers multiply integers, whatever it says.
};

// By the name users know: "f32"; "bf16": weights and inputs; "bf16w": only the weights, inputs stay
// f32; "int8", "int4". Any other name: DT_NONE.
struct precision precision_parse(const char *name);
#define PRECISION_NAMES "f32|bf16|bf16w|int8|int4"

// ---- batches -----------------------------------------------------------------------------------

// A run of consecutive rows that are consecutive tokens of one sequence.
struct span {
    int32_t first; // row
    int32_t len;   // rows, ≥ 1
    int32_t slot;  // where the sequence's state lives
    int32_t pos;   // absolute position of the first token, anchors chunk grids
};

// What the ops that know time need of a batch, in backend memory. Spans cover all rows in order.
// Those of one row are quickest at the end, together.
struct batch {
    int rows, spans;
    int singles;         // spans of one row that end the batch
    int longest;         // of the spans before them, in rows; 1 if there are none
    uint64_t remainders; // bit i: the length of one of those is i modulo 64
    bool exact; // wkv7 keeps to f32 throughout; else it may lose what bf16 inputs have lost anyway
    struct tensor span; // (spans, 4) i32: struct span
    struct tensor prev; // (R) i32: the row of the previous token, or -1-slot at a span's first row
    struct tensor last; // (R) i32: the slot at a span's last row, else minus the rows up to that one
};

// Sets spans, singles, longest and remainders.
void batch_count(struct batch *b, const struct span *spans, int n);

// ---- several devices ---------------------------------------------------------------------------

// What processes that have a device each do together with a tensor that all of them have, in place.
enum collective {
    ALL_REDUCE,     // becomes the sum over all
    REDUCE_SCATTER, // cut into as many equal shares as there are processes: one's own share becomes
                    // its sum over all, the others mean nothing
    ALL_GATHER,     // every share becomes its owner's
    BROADCAST,      // becomes the first one's
};

// Of backends whose devices reach each other by themselves. Made and closed with the backend.
struct comms {
    size_t id_bytes;
    // What those that belong together have in common: one makes it, all open with it.
    int (*make_id)(struct backend *be, void *id, struct error *err);
    int (*open)(struct backend *be, const void *id, int rank, int size,
                struct error *err); // waits for all
    // After the ops before it; those after it may run at the same time until `wait`. Not left in a
    // queue, for the others' devices wait for it.
    void (*start)(struct backend *be, enum collective what, struct tensor t);
    void (*wait)(struct backend *be);
};

// ---- the backend -------------------------------------------------------------------------------

struct backend {
    const char *name;
    enum dtype real; // storage of activations, gradients, states and parameter vectors
    const struct ops *ops;
    const struct backend_class *class;
    // Passes that are worth having under way at a time: 1, or 2 where ops run beside the caller,
    // who then writes the next one down before the results of this one are there.
    int depth;
};

enum { MAX_DEPTH = 2, MAX_FETCHES = 4 };

// What the machine can do, for shares in benches.
enum limit { LIMIT_READ, LIMIT_F32, LIMIT_BF16, LIMIT_INT8 };

// The part of a backend that is not an op. One owner thread; everything before `sync` may be
// queued.
struct backend_class {
    void (*destroy)(struct backend *be);

    struct buffer *(*buffer_create)(struct backend *be, size_t bytes, struct error *err); // zeroed
    void (*buffer_destroy)(struct buffer *b);
    // tensor_bytes(dst) bytes, in the queue's order; src is the caller's again on return.
    void (*upload)(struct backend *be, struct tensor dst, const void *src);
    void (*download)(struct backend *be, void *dst, struct tensor src); // waits for it
    int (*sync)(struct backend *be, struct error *err);                 // where device faults show
    // A download in two halves, up to MAX_FETCHES under way, first come, first served. fetch: dst
    // will hold what src is once all that is queued so far is done; nothing that is queued before
    // the second half may write src. fetched waits for the oldest fetch and for nothing behind it;
    // -1: the device failed, and all bits of dst are set.
    void (*fetch)(struct backend *be, void *dst, struct tensor src);
    int (*fetched)(struct backend *be, struct error *err);

    // src is a (rows, cols) tensor of this backend in any float storage; it may be freed
    // afterwards. Values are rounded to `precision.stored`. A trained weight can do matmul_bwd_x;
    // its src is in `real` storage and has to stay, for the backend may read it in place. So has
    // `rounded`, which is given where weight_rounds says so, else absent.
    struct weight *(*weight_create)(struct backend *be, struct tensor src, struct tensor rounded,
                                    enum weight_layout layout, struct precision precision,
                                    bool trained);
    // Whether products with trained weights of this precision read src as a copy in
    // precision.stored, which refresh writes, and op_adamw with the parameters themselves. NULL:
    // no.
    bool (*weight_rounds)(const struct backend *be, struct precision precision);
    void (*weight_refresh)(struct backend *be, struct weight *w, struct tensor src); // src changed
    void (*weight_destroy)(struct weight *w);
    // Bytes it takes besides src and rounded.
    size_t (*weight_bytes)(const struct backend *be, size_t rows, size_t cols,
                           struct precision precision, bool trained);

    // Measures now, with all threads: GB/s of reading the backend's packed weights once (or 256 MB
    // where there are none), or GFLOP/s (GOP/s) of products in the nearest cache. 0: cannot say.
    double (*measure)(struct backend *be, enum limit what);

    // Bytes that wkv7 saves for wkv7_bwd, for a batch of up to `rows` rows in `spans` spans.
    size_t (*wkv7_saved_bytes)(const struct backend *be, int rows, int spans, int H, int N);
    // A sequence has the same bits whole and in pieces that begin at multiples of so many tokens,
    // and in any pieces where a batch is `exact`.
    int (*wkv7_grain)(const struct backend *be, int N);

    // For steps of one row of a model whose tensors and weights stay as they are; *out NULL if this
    // model is not for it. The function NULL: no model is.
    int (*decoder_create)(struct decoder **out, struct backend *be, const struct decoder_parts *,
                          struct error *err);
    void (*decoder_destroy)(struct decoder *d);
    void (*decode)(struct decoder *d, const struct decode *);

    // From so many rows on, tensors that are only inputs of products with weights of this precision
    // are better DT_BF16 (ops.h says which can be), rounded where they arise, in a model of so many
    // channels; 0: never.
    int (*narrow_from)(const struct backend *be, struct precision precision, int channels);
    bool half_states; // states of wkv7 and recall may be DT_F16 (ops.h)
    int head_rows;    // rows of logits in f32 at a time that training likes; of bf16 twice as many
    int prompt_rows; // tokens of prompts that a step of serving takes beside those that are written
    // As many rows or a few more, so that passes of few different sizes come, and come again: what
    // was prepared for one is there the next time. NULL: any number is as good.
    int (*round_rows)(const struct backend *be, int rows);

    const struct comms *comms; // NULL: processes reach each other through host memory
};

// Every weight begins with this: what ops.c checks shapes against.
struct weight {
    struct backend *be;
    size_t in, out; // y (R,out) = x (R,in) · W
    struct precision precision;
    enum weight_layout layout;
    bool trained;
};

// Opens by name: "cpu", "ref" (float, one thread, the meaning) or "ref64" (the same in double).
// num_threads 0: all. An unknown or absent backend is an error that lists the ones there are.
// "cuda:1" is the second device; one that is not there is an error with the number there is.
int backend_open(struct backend **out, const char *name, int num_threads, struct error *err);
// The same with the id apart; backends without devices pay it no heed.
int backend_open_device(struct backend **out, const char *name, int device, int num_threads,
                        struct error *err);
void backend_destroy(struct backend *be); // NULL is fine
const char *const *backend_names(void);   // NULL-terminated

// Short forms.
struct buffer *buffer_create(struct backend *be, size_t bytes, struct error *err);
void buffer_destroy(struct buffer *b);              // NULL is fine
void weight_destroy(struct weight *w);              // NULL is fine
int batch_rows(const struct backend *be, int rows); // as round_rows has it
// DT_BF16 or be->real: the storage of what only products read, in a batch of so many rows.
enum dtype input_type(const struct backend *be, struct precision precision, int rows, int channels);
bool can_narrow(const struct backend *be); // whether that is ever DT_BF16
