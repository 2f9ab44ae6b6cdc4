// The two ways through the recurrence: token by token (wkv7.cu), and for heads of 64 in chunks on
// tensor cores (wkv7_chunk.cu, wkv7_chunk_bwd.cu). What is left of a span behind its whole chunks
// goes token by token, so that a span gives the same bits in pieces that end where chunks do.
#pragma once
#include "device.cuh"

#include "kernels.h"

enum { WKV7_CHUNK = 16 };

__host__ __device__ static inline bool chunked(int N) {
    return N == 64;
}

// Backward, spans are cut into segments of whole chunks where there are few heads: the gradients of
// the states at the ends of all segments but the last are found first. The same bits, cut or not.
struct wkv7_segments {
    int count, chunks; // of each
    float *ends;       // (spans, H, count - 1, N, N)
};

bool wkv7_chunk_trains(); // whether there is room for the way back
void wkv7_chunk_forward(struct queue *q, const wkv7_args &a);
void wkv7_chunk_ends(struct queue *q, const wkv7_args &a, wkv7_segments cut);
void wkv7_chunk_backward(struct queue *q, const wkv7_args &a, wkv7_segments cut);

// ---- one token of one row ----------------------------------------------------------------------

__device__ static inline float decay_of(float omega) {
    return expf(-c0 * sigmoid(omega));
}

// Columns j to j+3 of a row; in memory a state is [column][row]. Eight rows of a warp lie together.
__device__ static inline float4 load_row(const float *state, int N, int j) {
    return make_float4(state[j * N], state[(j + 1) * N], state[(j + 2) * N], state[(j + 3) * N]);
}

__device__ static inline void store_row(float *state, int N, int j, float4 x) {
    state[j * N] = x.x;
    state[(j + 1) * N] = x.y;
    state[(j + 2) * N] = x.z;
    state[(j + 3) * N] = x.w;
}

__device__ static inline void add_products(float4 &sum, float4 x, float4 y) {
    sum.x = fmaf(x.x, y.x, sum.x);
    sum.y = fmaf(x.y, y.y, sum.y);
    sum.z = fmaf(x.z, y.z, sum.z);
    sum.w = fmaf(x.w, y.w, sum.w);
}

// S = S ⊙ w + s b + v k, four columns of a row: one order of operations, the same bits everywhere.
__device__ static inline float4 next_state(float4 S, float4 w, float s, float4 b, float v,
                                           float4 k) {
    return make_float4(fmaf(S.x, w.x, fmaf(s, b.x, v * k.x)), fmaf(S.y, w.y, fmaf(s, b.y, v * k.y)),
                       fmaf(S.z, w.z, fmaf(s, b.z, v * k.z)),
                       fmaf(S.w, w.w, fmaf(s, b.w, v * k.w)));
}

// ---- numbers of a state, f32 or f16 ------------------------------------------------------------

// Two neighbours, as they lie in memory. What f16 cannot hold becomes the largest that it can: an
// infinity would not go away any more.
template <class E> struct state_pair_of { typedef float2 type; };
template <> struct state_pair_of<uint16_t> { typedef uint32_t type; };
template <class E> using state_pair = typename state_pair_of<E>::type;

template <class E> __device__ static inline state_pair<E> load_state(const E *p) {
    return *(const state_pair<E> *)p;
}
__device__ static inline float2 state_wide(float2 pair) {
    return pair;
}
__device__ static inline float2 state_wide(uint32_t pair) {
    return make_float2(f16_value((uint16_t)pair), f16_value((uint16_t)(pair >> 16)));
}
__device__ static inline void store_state(float *p, float x, float y) {
    *(float2 *)p = make_float2(x, y);
}
__device__ static inline void store_state(uint16_t *p, float x, float y) {
    *(uint32_t *)p =
        f16_pair(fminf(fmaxf(x, -65504.0f), 65504.0f), fminf(fmaxf(y, -65504.0f), 65504.0f));
}
