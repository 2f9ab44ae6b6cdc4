// The recurrence for heads of 64, chunks of 16 tokens at a time on tensor cores (docs/math.md, the
// chunked form): what both ways share. A block takes one head of one span. Warps own rows of the
// state S, or of its gradient, and transposed sums of all that depends on it stay in the warp's
// registers, one product's sum being the next one's A: nothing of the chain from chunk to chunk
// goes through memory.
//
// A token's result does not depend on those behind it: with 16 tokens decays multiply up to e^9.7
// at most and need no centre.
#pragma once
#include "mma.cuh"
#include "vector.cuh"
#include "wkv7.cuh"

namespace {

enum { N = 64, T = WKV7_CHUNK, STEPS = N / T };
constexpr float log2_e = 1.4426950408889634f;

struct place {
    size_t at; // the span's first token, this head
    int len;   // tokens of it that go in chunks
    state_at in;
    void *out;         // as out_of says
    const float *dout; // gradients of states
    float *din, *chunks;
    size_t chunk_step;
};

// WHOLE: no span's last chunk has less than its tokens.
template <bool WHOLE = true> __device__ inline place place_of(const wkv7_args &a, size_t h) {
    const int *span = a.span + 4 * blockIdx.y;
    const size_t first = (size_t)span[0], NN = (size_t)N * N;
    const size_t state = ((size_t)span[2] * a.H + h) * NN;
    place p = {};
    p.at = first * a.C + h * N;
    p.len = in_chunks(WHOLE, span[1]);
    p.in = state_of(a.state_in, state, a.half);
    p.out = state_of(a.state_out, state, a.half).at;
    if (a.dstate_out) p.dout = a.dstate_out + state;
    if (a.dstate_in) p.din = a.dstate_in + state;
    if (p.len < span[1]) {
        float *carry = a.carry + (blockIdx.y * (size_t)a.H + h) * NN;
        p.dout = carry;
        p.out = carry;
    }
    p.chunk_step = a.H * NN;
    if (a.saved) p.chunks = a.saved + a.R * a.C + ((first / T + blockIdx.y) * a.H + h) * NN;
    return p;
}

// Where the state goes, f32 if that is the carry. Looked up again, because a register that holds it
// through all chunks is one too many.
template <bool WHOLE> __device__ inline state_at out_of(const wkv7_args &a, const place &p) {
    const int tokens = a.span[4 * blockIdx.y + 1];
    return {p.out, a.half && in_chunks(WHOLE, tokens) == tokens};
}

// S' at the end of a head's i-th segment.
__device__ inline float *end_of(const wkv7_segments &cut, const wkv7_args &a, size_t h, int i) {
    const size_t before = (blockIdx.y * (size_t)a.H + h) * (size_t)(cut.count - 1) + (size_t)i;
    return cut.ends + before * N * N;
}

__device__ inline float2 pair_at(const float *p) {
    return *(const float2 *)p;
}

__device__ inline void put_pair(float *p, float x, float y) {
    *(float2 *)p = make_float2(x, y);
}

// x, but nothing made of it can be made before the loop over chunks and held in registers.
__device__ inline int now(int x) {
#ifndef CUDA_EMU
    asm volatile("" : "+r"(x));
#endif
    return x;
}
// Nor is it known any more that it is not negative, without which quotients are not just shifts.
__device__ inline unsigned now(unsigned x) {
    return (unsigned)now((int)x);
}

// 16 bytes, whatever they are.
__device__ inline void copy_piece(void *to, const void *from) {
#ifdef CUDA_EMU
    std::memcpy(to, from, 16);
#else
    *(float4 *)to = *(const float4 *)from;
#endif
}

// Tensors are of E: float, or uint16_t for bf16, whose numbers need no splitting.
template <class E> constexpr bool splits = sizeof(E) == 4;

__device__ inline void put_pair(uint16_t *p, float x, float y) {
    *(uint32_t *)p = bf16_pair(x, y);
}

// Two numbers as they come from memory: they are waited for where they are widened.
template <class E> struct raw_pair {
    float2 bits;
    __device__ float2 wide() const { return bits; }
};
template <> struct raw_pair<uint16_t> {
    uint32_t bits;
    __device__ float2 wide() const { return make_float2(bf16_low(bits), bf16_high(bits)); }
};

template <class E> __device__ inline raw_pair<E> raw_at(const void *base, size_t i) {
    return *(const raw_pair<E> *)((const E *)base + i);
}

template <int ROWS, int COLS>
__device__ inline void put_raw(tile<ROWS, COLS> &to, int row, int col, raw_pair<float> x) {
    to.put(row, col, x.bits.x, x.bits.y);
}
template <int ROWS, int COLS>
__device__ inline void put_raw(tile<ROWS, COLS, false> &to, int row, int col,
                               raw_pair<uint16_t> x) {
    to.hi[to.at(row, col)] = x.bits;
}

// To 2 ulp.
__device__ inline float power2(float x) {
#ifdef CUDA_EMU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// σ(x), and its derivative as `slope` unless NULL.
__device__ inline float quick_sigmoid(float x, float *slope = nullptr) {
    const float e = power2(-log2_e * x);
#ifdef CUDA_EMU
    const float s = 1.0f / (1.0f + e);
#else
    const float s = __fdividef(1.0f, 1.0f + e);
#endif
    if (slope) *slope = s * (fminf(e, 1e38f) * s);
    return s;
}

__device__ inline float reciprocal(float x) {
#ifdef CUDA_EMU
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
__device__ inline float2 reciprocal(float2 x) {
    return make_float2(reciprocal(x.x), reciprocal(x.y));
}
// Rounded, whatever follows: nothing is joined to one instruction, so it has the same bits
// everywhere.
__device__ inline float2 times(float2 x, float2 y) {
    return make_float2(__fmul_rn(x.x, y.x), __fmul_rn(x.y, y.y));
}

// For each pair of a lane's sums (mma.cuh): d[n][2·half] and its right neighbour at (row, col).
template <class F> __device__ inline void each_of_sum(const F &f) {
    const int lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) f(n, half, g + 8 * half, 8 * n + 2 * q);
}

// ---- what does not depend on the state ---------------------------------------------------------

// The matrices of a chunk: r̂ = r e^A, â = a e^E, b̂ = b e^-A, k̂ = k e^-A, v, where A_t and E_t are
// the sums of log-decays with and without token t.
template <class E> struct inputs {
    tile<T, N> r, a, b, k;
    tile<T, N, splits<E>> v;
    tile<T, T> ak, rk, rb, solve; // tril(â k̂ᵀ), …; solve = (I - tril(â b̂ᵀ))⁻¹
    alignas(16) float decay[N];   // e^A of the whole chunk
};

// What lies above the diagonal, or on it too if `strict`, is dropped: it need not be finite.
__device__ inline void store_lower(tile<T, T> &to, const float (&d)[2][4], bool strict) {
    float kept[2][4];
    each_of_sum([&](int n, int half, int row, int col) {
        const int most = row - strict;
        kept[n][2 * half] = col <= most ? d[n][2 * half] : 0;
        kept[n][2 * half + 1] = col + 1 <= most ? d[n][2 * half + 1] : 0;
    });
    store_a(to, 0, 0, a_of_sum(kept));
}

// left · rightᵀ as far as tokens see each other.
__device__ inline void triangle(tile<T, T> &to, const tile<T, N> &left, const tile<T, N> &right,
                                bool strict) {
    float d[2][4] = {}, other[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 32)
        multiply(d, a_of(left, 0, i), b_of_turned(right, 0, i), other, a_of(left, 0, i + 16),
                 b_of_turned(right, 0, i + 16));
    add(d, other);
    store_lower(to, d, strict);
}

// The inverse as it is kept, where tokens' s would be: of each row the words of the high parts,
// then those of the low. Pieces of 16 bytes, f(word of the tile, in memory); lanes from 0 on.
template <class F> __device__ inline void each_of_inverse(int lane, size_t C, const F &f) {
#pragma unroll
    for (int n = 0; n < T * 4; n += 32) {
        const int i = n + lane;
        f(i & 2, word_at<T>(i / 4, (i & 1) * 8), (size_t)(i / 4) * C + i % 4 * 4);
    }
}

// ---- the state ---------------------------------------------------------------------------------

// A warp's 16 rows of a state: 16 columns each, as sums.
typedef float rows_of_state[STEPS][2][4];

// In memory a state is [column][row]; f(number, offset). Of COUNT steps of 16 columns, the first at
// step `side`.
template <int COUNT, class F>
__device__ inline void each_of_rows(float (&S)[COUNT][2][4], int row0, const F &f, int side = 0) {
#pragma unroll
    for (int j = 0; j < COUNT; j++)
        each_of_sum([&](int n, int half, int row, int col) {
            const int at = (16 * (STEPS / COUNT * j + side) + col) * N + row0 + row;
            f(S[j][n][2 * half], at);
            f(S[j][n][2 * half + 1], at + N);
        });
}

// 16 columns of them.
__device__ inline void scale_columns(float (&S)[2][4], float2 left, float2 right) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const float2 x = times(make_float2(S[n][e], S[n][e + 1]), n ? right : left);
            S[n][e] = x.x, S[n][e + 1] = x.y;
        }
}

// A state that is kept for backward: its numbers in two, as they are multiplied. 16 × 16 of them
// are eight matrices of 8 × 8, first the high parts' (mma.cuh), each 128 bytes in one piece.
enum { KEPT_MATRIX = 32, KEPT_STEP = 8 * KEPT_MATRIX };

} // namespace
