// The ways through the recurrence: token by token (wkv7.cu), and for heads of 64 in chunks on
// tensor cores (wkv7_chunk.cu, wkv7_chunk_bwd.cu). A span gives the same bits in pieces that end
// where chunks do. In training what is left behind whole chunks goes token by token; otherwise the
// last chunk may have less than its tokens, but one alone, which as a span of its own goes a
// quicker way to the bits that it has token by token (step.cu).
#pragma once
#include "device.cuh"

#include "kernels.h"

enum { WKV7_CHUNK = 16 };

__host__ __device__ static inline bool chunked(int N) {
    return N == 64;
}

// How many tokens of a span of heads of 64 go in chunks. whole: only whole ones do.
__host__ __device__ static inline int in_chunks(bool whole, int tokens) {
    return whole ? tokens / WKV7_CHUNK * WKV7_CHUNK : tokens - (tokens % WKV7_CHUNK == 1);
}
__host__ __device__ static inline int in_chunks(const wkv7_args &a, int tokens) {
    return a.exact ? 0 : in_chunks(a.saved || a.dr, tokens);
}

// Backward, spans are cut into segments of whole chunks where there are few heads: the gradients of
// the states at the ends of all segments but the last are found first. The same bits, cut or not.
struct wkv7_segments {
    int count, chunks; // of each
    float *ends;       // (spans, H, count - 1, N, N)
};

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a);

// step.cu: whether spans of one row can go its way, and those behind the first a.spans do.
bool wkv7_steps(const wkv7_args &a);
void wkv7_step(struct queue *q, const wkv7_args &a);

void wkv7_chunk_ends(struct queue *q, const wkv7_args &a, wkv7_segments cut);
void wkv7_chunk_backward(struct queue *q, const wkv7_args &a, wkv7_segments cut);

// ---- one token of one row ----------------------------------------------------------------------

__device__ static inline float decay_of(float omega) {
    return expf(-c0 * sigmoid(omega));
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
__device__ static inline uint32_t half_states(float x, float y) {
    return f16_pair(fminf(fmaxf(x, -65504.0f), 65504.0f), fminf(fmaxf(y, -65504.0f), 65504.0f));
}
__device__ static inline void store_state(uint16_t *p, float x, float y) {
    *(uint32_t *)p = half_states(x, y);
}

// What f16 makes of a number, where a cell of tokens ends (ops.h).
__device__ static inline float half_state(float x) {
    return f16_value((uint16_t)half_states(x, 0));
}
__device__ static inline bool ends_cell(bool half, int tokens) {
    return half && tokens % STATE_CELL == 0;
}

// A state of either kind, or none.
struct state_at {
    void *at;
    bool half;

    __device__ float get(size_t i) const {
        return half ? f16_value(((const uint16_t *)at)[i]) : ((const float *)at)[i];
    }
    __device__ void put(size_t i, float x) const {
        if (half)
            ((uint16_t *)at)[i] = (uint16_t)half_states(x, 0);
        else
            ((float *)at)[i] = x;
    }
};

__device__ static inline state_at state_of(const void *states, size_t i, bool half) {
    if (!states) return {};
    return {(char *)states + i * (half ? sizeof(uint16_t) : sizeof(float)), half};
}
