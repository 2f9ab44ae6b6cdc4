// What the files of this backend share.
#pragma once
#include "backend/backend.h"
#include "backend/cpu/kernels/kernels.h"
#include "base/pool.h"

struct product;
struct input_grad;
struct weight_grad;

struct cpu {
    struct backend base;
    struct pool *pool;
    const struct kernels *k;
    float *scratch; // grows to the largest op's need; one op at a time uses it
    size_t scratch_floats;
    struct slab *slabs; // weight.c
};

static inline struct cpu *cpu_of(struct backend *be) {
    return (struct cpu *)be;
}

static inline float *f32(struct tensor t) {
    return (float *)tensor_host(t);
}

// At least n floats, contents undefined, valid until the next call.
float *cpu_scratch(struct cpu *cpu, size_t n);

// The same for each thread: n floats at index pool_thread() · n.
static inline float *cpu_scratch_each(struct cpu *cpu, size_t n) {
    return cpu_scratch(cpu, n * (size_t)pool_threads(cpu->pool));
}

// Rows are handed out in blocks of this many: enough work for a task, few enough for balance.
enum { ROW_BLOCK = 16 };
static inline int row_blocks(size_t R) {
    return (int)((R + ROW_BLOCK - 1) / ROW_BLOCK);
}

// weight.c
struct cpu_weight {
    struct weight base;
    void *data;          // panels, see kernels.h; NULL: trained
    struct slab *slab;   // which they lie in
    const float *master; // trained: the numbers themselves
};

// Weights of a model stand in a row: 2 MiB pages for all of them, and one allocation for many.
struct slab {
    struct slab *next;
    char *data;
    size_t bytes, used;
    int live; // weights in it
};

static inline size_t cpu_panels(size_t out) {
    return (out + PANEL - 1) / PANEL;
}
size_t cpu_panel_bytes(size_t in, enum dtype stored); // of one panel, whole groups
struct weight *cpu_weight_create(struct backend *be, struct tensor src, struct tensor rounded,
                                 enum weight_layout layout, struct precision p, bool trained);
void cpu_weight_refresh(struct backend *be, struct weight *w, struct tensor src);
void cpu_weight_destroy(struct weight *w);
size_t cpu_weight_bytes(const struct backend *be, size_t rows, size_t cols, struct precision p,
                        bool trained);

// matmul.c
void cpu_matmul(struct backend *be, const struct product *products, int n);
void cpu_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n);
void cpu_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n);

// time.c
size_t cpu_wkv7_saved_bytes(const struct backend *be, int rows, int spans, int H, int N);
void cpu_wkv7(struct backend *be, struct tensor y, struct tensor state_out, struct tensor saved,
              struct tensor r, struct tensor u, struct tensor state_in, const struct batch *b,
              int H);
void cpu_wkv7_bwd(struct backend *be, struct tensor dr, struct tensor du, struct tensor dstate_in,
                  struct tensor dy, struct tensor r, struct tensor u, struct tensor saved,
                  struct tensor dstate_out, const struct batch *b, int H);

// measure.c
double cpu_measure(struct backend *be, enum limit what);

// sample.c
void cpu_sample(struct backend *be, struct tensor token, struct tensor logits, struct tensor rows,
                struct tensor penalties, struct tensor biases);
