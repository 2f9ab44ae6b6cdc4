// The inner loops of the CPU backend: one text, compiled once for each level of the instruction set
// (v1: the baseline; v3: AVX2 and FMA; v4: AVX-512; bf16: AVX-512 with the products of bf16 and of
// bytes), chosen at run time. Pure functions on plain
// arrays: no threads, no memory, no tensors. All storage is f32 unless said.
//
// A row's result depends on the row alone, and on a machine always in the same order of operations.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Weights are packed into panels of 32 outputs, padded with zeros:
//   f32   [in][32]
//   bf16  [in][32], a cache line for each k; the halves interleaved: 0 16 1 17 … 15 31, so that a
//         shift and a mask make two vectors of floats of it, in order
//   int8  groups of 64 k: [16][32][4] u8, value + 128, four neighbours in k a lane; then 32 scales
//   int4  groups of 32 k: [4][32][4] u8, k in the low and k + 4 in the high half, value + 8; then
//         32 scales
// Scales are bf16 with interleaved halves. K is padded to whole groups.
enum { PANEL = 32, INT8_GROUP = 64, INT4_GROUP = 32 };
enum { INT8_GROUP_BYTES = INT8_GROUP * PANEL + 2 * PANEL };
enum { INT4_GROUP_BYTES = INT4_GROUP * PANEL / 2 + 2 * PANEL };

// A list of k is followed by so many entries more, of lines that are worth asking for early: those
// with which the next panel begins.
enum { SOME_AHEAD = 16 };

// Rows quantised for the integer kernels: x ≈ value · scale, per row and group of k.
struct quantised {
    const int8_t *value; // (rows, K)
    const float *scale;  // (rows, K / group)
    const int32_t *sum;  // the same shape: of the group's values
    size_t K, group;
};

// acc (rows, 32) = (first ? 0 : acc) + x · panel, for one panel from some k on. Element (row, k) of
// x is x[row · row_step + k · k_step] (1 where there is no k_step).
//
// While a product runs it asks for what comes next: `step` bytes from `at` on for each line of the
// panel (each group, with integers) and each tile of rows. step 0: nothing but the line at `at`.
struct fetch {
    const char *at;
    size_t step;
};

struct gemm_kernels {
    size_t tile_rows;
    void (*f32)(float *acc, const float *x, size_t row_step, size_t k_step, const float *panel,
                size_t rows, size_t K, struct fetch next, bool first);
    void (*bf16)(float *acc, const float *x, size_t row_step, const uint16_t *panel, size_t rows,
                 size_t K, struct fetch next, bool first);
    // Only the k of `list`; the others have nothing but zeros in x.
    void (*bf16_some)(float *acc, const float *x, size_t row_step, const uint16_t *panel,
                      size_t rows, const uint32_t *list, size_t len, bool first);
    // x holds bf16 pairs of k, K is even, steps count pairs. Of each pair of products the odd one
    // is added first: vdpbf16ps, or two multiply-adds with the same bits.
    void (*dot)(float *acc, const uint32_t *x, size_t row_step, size_t k_step,
                const uint16_t *panel, size_t rows, size_t K, struct fetch next, bool first);
    // list: (pair, line for the even k, line for the odd k), three numbers an entry. Where x is
    // zero, any line will do.
    void (*dot_some)(float *acc, const uint32_t *x, size_t row_step, const uint16_t *panel,
                     size_t rows, const uint32_t *list, size_t len, bool first);
};

// The same with integers: groups [from, to), of which `panel` holds the first; x from row `row` on.
// A group's sum is exact, the sum over groups runs upward.
struct integer_kernels {
    size_t tile_rows;
    void (*int8)(float *acc, const struct quantised *x, size_t row, const uint8_t *panel,
                 size_t rows, size_t from, size_t to, struct fetch next);
    void (*int4)(float *acc, const struct quantised *x, size_t row, const uint8_t *panel,
                 size_t rows, size_t from, size_t to, struct fetch next);
    // One row of K numbers, K a multiple of the group: the largest |x| of a group becomes 127.
    void (*quantise)(int8_t *value, float *scale, int32_t *sum, const float *x, size_t K,
                     size_t group);
};

// Into panels, and into rows of bf16. One of the two steps between the numbers of `from` is 1.
struct pack_kernels {
    void (*f32)(float *panel, const float *from, size_t in_step, size_t out_step, size_t K,
                size_t outs);
    void (*bf16)(uint16_t *panel, const float *from, size_t in_step, size_t out_step, size_t K,
                 size_t outs);
    void (*pair_rows)(uint32_t *to, const float *a, const float *b, size_t n); // b NULL: zeros
    void (*narrow)(uint16_t *to, const float *x, size_t n);
};

// β, 1-β and the bias corrections 1/(1-βᵗ), worked out in double: 1-0.99f is off by 1e-6.
struct adamw_constants {
    float factor; // on the gradient
    float b1, e1, b2, e2, c1, c2, eps, lr, wd;
};

// One row unless said. C channels in heads of N. Gradients of parameter vectors go to `part`, which
// the caller sums over blocks of rows in a fixed order.
struct row_kernels {
    void (*norm)(float *y, const float *x, const float *w, const float *b, size_t C, float eps);
    void (*norm_bwd)(float *dx, float *part, const float *dy, const float *x, const float *w,
                     const float *add, size_t C, float eps); // part: dw (C), db (C)
    // All n mixes of a row: m's and dm's planes are `plane` apart, mix and part are (n,C). before
    // and dm_next (the row after, dm + C) NULL: none. dz =, part +=.
    void (*mix)(float *m, const float *z, const float *before, const float *mix, size_t n,
                size_t plane, size_t C);
    void (*mix_bwd)(float *dz, float *part, const float *dm, const float *dm_next, const float *z,
                    const float *before, const float *mix, size_t n, size_t plane, size_t C);
    // n elements; y may be x
    void (*act)(float *y, const float *x, size_t n, int f);
    void (*act_bwd)(float *dx, const float *dy, const float *y, size_t n, int f);
    void (*add)(float *y, const float *x, size_t n);
    // y = f(add + acc), f an enum act; add NULL: 0; y may be add
    void (*finish)(float *y, const float *acc, const float *add, size_t n, int f);
    void (*scale)(float *y, size_t n, float s);
    float (*read)(const float *x, size_t n); // a sum of sorts, as fast as memory gives them
    void (*widen)(float *y, const uint16_t *x, size_t n);  // from bf16
    void (*narrow)(uint16_t *y, const float *x, size_t n); // to bf16
    double (*sumsq)(const float *x, size_t n);
    void (*adamw)(float *p, float *m, float *v, const float *g, size_t n,
                  const struct adamw_constants *c);
    // u, rkv, lora: the row's planes, `plane` floats apart
    void (*key_prep)(float *u, const float *rkv, const float *lora, const float *v_first,
                     const float *vecs, size_t plane, size_t C, size_t N);
    void (*key_prep_bwd)(float *drkv, float *dlora, float *dv_first, float *part, const float *du,
                         const float *rkv, const float *lora, const float *v_first,
                         const float *vecs, size_t plane, size_t C, size_t N); // part: (5,C)
    void (*readout)(float *o, const float *y, const float *r, const float *u, const float *g,
                    const float *vecs, size_t plane, size_t C, size_t N);
    void (*readout_bwd)(float *dy, float *dr, float *du, float *dg, float *part, const float *d_o,
                        const float *y, const float *r, const float *u, const float *g,
                        const float *vecs, size_t plane, size_t C, size_t N); // part: (3,C)
    // Returns the loss; g NULL: no gradient; g may be x.
    float (*xent)(float *g, const float *x, size_t V, int32_t target, float scale, bool l2wrap);
    // p_i = exp((x_i - max)/temperature)
    void (*exp_shifted)(float *p, const float *x, size_t n, float max, float inverse_temperature);
    size_t (*argmax)(const float *x, size_t n); // the first of the largest
};

enum { WKV_CHUNK = 16 }; // a state is saved every so many tokens of a span

// One head of one span. Sequences have `step` floats between tokens; u's planes are `plane` apart.
struct wkv7_kernels {
    // T (N,N), the state as ops.h has it, in and out; chunks (⌈len/16⌉,N,N; [value][key]) and s
    // (len,N; `step`) receive what the backward pass wants, NULL: nothing. scratch: wkv7_scratch.
    void (*forward)(float *y, float *T, float *chunks, float *s, const float *r, const float *u,
                    size_t plane, size_t step, size_t len, size_t N, float *scratch);
    // dstate (N,N): ∂ℓ/∂(final state) on entry, ∂ℓ/∂(initial state) on return.
    // dr, du[K], du[V] +=; du[W], du[A], du[B] =.
    void (*backward)(float *dr, float *du, float *dstate, const float *dy, const float *chunks,
                     const float *s, const float *r, const float *u, size_t plane, size_t step,
                     size_t len, size_t N, float *scratch);
};

size_t wkv7_scratch(size_t N); // floats, for either direction

// The tables of each level that this build has; NULL: not on this architecture.
struct kernels {
    const char *isa; // "x86-64", "x86-64-v3", …
    const struct gemm_kernels *gemm;
    const struct integer_kernels *integer;
    const struct pack_kernels *pack;
    const struct row_kernels *rows;
    const struct wkv7_kernels *wkv7;
};

// The best level of this machine, or the one that RWKV_ISA (v1, v3, v4, bf16) names if it is there.
const struct kernels *kernels_pick(void);
// Level i of those this machine can run, NULL past the last: for tests.
const struct kernels *kernels_level(int i);
