// The recurrence for heads of 64, chunks of 16 tokens at a time on tensor cores (docs/math.md, the
// chunked form): what both ways share. A block takes one head of one span, in two groups of four
// warps. Each warp of the front group owns 16 rows of the state S, or of its gradient, and
// transposed sums of all that depends on it stay in the warp's registers, one product's sum being
// the next one's A: nothing of the chain from chunk to chunk goes through memory.
//
// A token's result does not depend on those behind it: with 16 tokens decays multiply up to e^9.7
// at most and need no centre.
#pragma once
#include "mma.cuh"
#include "wkv7.cuh"

namespace {

enum { N = 64, T = WKV7_CHUNK, STEPS = N / T, GROUP = 4 * 32, THREADS = 2 * GROUP };
constexpr float log2_e = 1.4426950408889634f;

struct place {
    size_t at; // the span's first token, this head
    int len;   // whole chunks of it
    const float *in, *dout;
    float *out, *din, *chunks; // states, and gradients of states
    size_t chunk_step;
};

__device__ inline place place_of(const wkv7_args &a, size_t h) {
    const int *span = a.span + 4 * blockIdx.y;
    const size_t first = (size_t)span[0], NN = (size_t)N * N;
    const size_t state = ((size_t)span[2] * a.H + h) * NN;
    place p = {};
    p.at = first * a.C + h * N;
    p.len = span[1] / T * T;
    if (a.state_in) p.in = a.state_in + state;
    if (a.state_out) p.out = a.state_out + state;
    if (a.dstate_out) p.dout = a.dstate_out + state;
    if (a.dstate_in) p.din = a.dstate_in + state;
    if (p.len < span[1]) p.dout = p.out = a.carry + (blockIdx.y * (size_t)a.H + h) * NN;
    p.chunk_step = a.H * NN;
    if (a.saved) p.chunks = a.saved + a.R * a.C + ((first / T + blockIdx.y) * a.H + h) * NN;
    return p;
}

__device__ inline float2 pair_at(const float *p) {
    return *(const float2 *)p;
}

__device__ inline void put_pair(float *p, float x, float y) {
    *(float2 *)p = make_float2(x, y);
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
    to.hi[row][col / 2] = x.bits;
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
    alignas(16) float ab[T][T];   // â b̂ᵀ, transposed
    float decay[N];               // e^A of the whole chunk
};

// What the way back wants besides, per token and column: the sums of log-decays, in powers of two,
// before and after token t at t and t + 1; -∂(log-decay)/∂ω. Rows lie in different banks.
struct rates {
    float sum[T + 1][N + 8], slope[T][N + 8];
};

// A lane's part of a chunk when WARPS warps prepare it: two columns, and TOKENS tokens.
template <class E, int WARPS> struct part {
    enum { TOKENS = WARPS == 4 ? 4 : 2, PAIRS = N / 2 / WARPS };
    static_assert(PAIRS * (T / TOKENS) == 32, "a warp has whole columns");
    int col, first;
    raw_pair<E> r[TOKENS], u[U_B + 1][TOKENS];

    // warp: of those that prepare
    __device__ explicit part(int warp) {
        const int lane = (int)(threadIdx.x & 31);
        col = 2 * (warp * PAIRS + lane % PAIRS);
        first = lane / PAIRS * TOKENS;
    }

    __device__ void load(const wkv7_args &a, size_t at) {
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const size_t from = at + (size_t)(first + i) * a.C + col;
            r[i] = raw_at<E>(a.r, from);
#pragma unroll
            for (int v = 0; v <= U_B; v++) u[v][i] = raw_at<E>(a.u, v * a.R * a.C + from);
        }
    }

    // The sum over the tokens before this lane's in its column; `all`: over the chunk.
    __device__ float before(float sum, float &all) const {
        const int lane = (int)(threadIdx.x & 31);
#pragma unroll
        for (int d = PAIRS; d < 32; d *= 2) {
            const float less = __shfl_up_sync(0xffffffffu, sum, d);
            if (lane >= d) sum += less;
        }
        all = __shfl_sync(0xffffffffu, sum, 32 - PAIRS + lane % PAIRS);
        const float less = __shfl_up_sync(0xffffffffu, sum, PAIRS);
        return lane >= PAIRS ? less : 0;
    }

    // rate may be NULL.
    __device__ void prepare(inputs<E> &s, rates *rate) const {
        float2 upto[TOKENS], slope[TOKENS], sum = make_float2(0, 0), all;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const float2 w = u[U_W][i].wide();
            sum.x -= c0 * log2_e * quick_sigmoid(w.x, &slope[i].x); // powers of two
            sum.y -= c0 * log2_e * quick_sigmoid(w.y, &slope[i].y);
            upto[i] = sum;
        }
        const float2 ahead = make_float2(before(sum.x, all.x), before(sum.y, all.y));
        if (first == 0) put_pair(&s.decay[col], power2(all.x), power2(all.y));
        if (rate && first == 0) put_pair(&rate->sum[0][col], 0, 0);
        float2 shrink = make_float2(power2(ahead.x), power2(ahead.y)); // e^E
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const int t = first + i;
            const float2 x = u[U_A][i].wide(), b = u[U_B][i].wide(), k = u[U_K][i].wide(),
                         read = r[i].wide();
            s.a.put(t, col, x.x * shrink.x, x.y * shrink.y);
            const float2 sums = make_float2(ahead.x + upto[i].x, ahead.y + upto[i].y);
            shrink = make_float2(power2(sums.x), power2(sums.y));
            s.r.put(t, col, read.x * shrink.x, read.y * shrink.y);
            const float2 grow = make_float2(power2(-sums.x), power2(-sums.y));
            s.b.put(t, col, b.x * grow.x, b.y * grow.y);
            s.k.put(t, col, k.x * grow.x, k.y * grow.y);
            put_raw(s.v, t, col, u[U_V][i]);
            if (!rate) continue;
            put_pair(&rate->sum[t + 1][col], sums.x, sums.y);
            put_pair(&rate->slope[t][col], c0 * slope[i].x, c0 * slope[i].y);
        }
    }
};

// Of a sum whose rows are channels and whose columns tokens, d[n][2·half] and its right neighbour:
// two channels of one token, f(n, half, channel, token, pair). Neighbouring lanes give each other
// one number, and what lies together in memory is one load or store.
template <class F> __device__ inline void each_of_channels(const float (&d)[2][4], const F &f) {
    const bool odd = threadIdx.x & 4; // of rows g and g ^ 1
    each_of_sum([&](int n, int half, int row, int t) {
        const float own[2] = {d[n][2 * half], d[n][2 * half + 1]};
        const float theirs = __shfl_xor_sync(0xffffffffu, odd ? own[0] : own[1], 4);
        f(n, half, row & ~1, t + odd,
          odd ? make_float2(theirs, own[1]) : make_float2(own[0], theirs));
    });
}

// d = Σ of four products A(i)·B(i), i by steps of 16, in two chains.
template <class A, class B>
__device__ inline void sum_of_four(float (&d)[2][4], const A &a, const B &b) {
    float other[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 32) {
        multiply(d, a(i), b(i));
        multiply(other, a(i + 16), b(i + 16));
    }
    add(d, other);
}

// left (T,N) · rightᵀ, one warp. Lanes hold it as mma.cuh says.
__device__ inline void cross(float (&d)[2][4], const tile<T, N> &left, const tile<T, N> &right) {
    sum_of_four(
        d, [&](int i) { return a_of(left, 0, i); },
        [&](int i) { return b_of_turned(right, 0, i); });
}

// What lies above the diagonal, or on it too if `strict`, is dropped: it need not be finite.
__device__ inline void store_lower(tile<T, T> &to, const float (&d)[2][4], bool strict) {
    each_of_sum([&](int n, int half, int row, int col) {
        const int most = row - strict;
        to.put(row, col, col <= most ? d[n][2 * half] : 0,
               col + 1 <= most ? d[n][2 * half + 1] : 0);
    });
}

// (I - ab)⁻¹ by forward substitution, a lane for each column; both halves of the warp do the same.
template <class E> __device__ inline void invert(inputs<E> &s) {
    float d[2][4] = {};
    cross(d, s.b, s.a);
    each_of_sum([&](int n, int half, int row, int col) {
        put_pair(&s.ab[row][col], d[n][2 * half], d[n][2 * half + 1]);
    });
    __syncwarp();
    const int lane = (int)(threadIdx.x & 31), col = lane % T;
    float x[T];
#pragma unroll
    for (int t = 0; t < T; t++) x[t] = t == col ? 1.0f : 0.0f;
#pragma unroll
    for (int k = 0; k < T - 1; k++) { // x[k] is done
        float4 of[T / 4];
#pragma unroll
        for (int t = (k + 1) / 4; t < T / 4; t++) of[t] = *(const float4 *)&s.ab[k][4 * t];
#pragma unroll
        for (int t = k + 1; t < T; t++) {
            const float4 f = of[t / 4];
            const float by = t % 4 == 0 ? f.x : t % 4 == 1 ? f.y : t % 4 == 2 ? f.z : f.w;
            x[t] = fmaf(by, x[k], x[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float right = __shfl_down_sync(0xffffffffu, x[t], 1);
        if (lane < T && lane % 2 == 0) s.solve.put(t, col, x[t], right);
    }
}

// The inverse to where backward finds it, rows C apart; the warp that made it.
template <class E> __device__ inline void keep_inverse(const inputs<E> &s, float *to, size_t C) {
    __syncwarp();
    const int lane = (int)(threadIdx.x & 31), col = lane % 8 * 2;
#pragma unroll
    for (int i = 0; i < T / 4; i++) {
        const int t = 4 * i + lane / 8;
        const float2 x = s.solve.get(t, col);
        put_pair(to + t * C + col, x.x, x.y);
    }
}

// The three triangles of a chunk that stay as they are, one for each warp of a group.
template <class E> __device__ inline void triangles(inputs<E> &s, int warp) {
    float d[2][4] = {};
    switch (warp) {
    case 0:
        cross(d, s.a, s.k);
        store_lower(s.ak, d, true);
        break;
    case 1:
        cross(d, s.r, s.k);
        store_lower(s.rk, d, false);
        break;
    case 2:
        cross(d, s.r, s.b);
        store_lower(s.rb, d, false);
        break;
    default: break;
    }
}

// ---- the state ---------------------------------------------------------------------------------

// A warp's 16 rows of a state: 16 columns each, as sums.
typedef float rows_of_state[STEPS][2][4];

// In memory a state is [column][row]; f(number, offset).
template <class F> __device__ inline void each_of_rows(rows_of_state &S, int row0, const F &f) {
#pragma unroll
    for (int j = 0; j < STEPS; j++)
        each_of_sum([&](int n, int half, int row, int col) {
            f(S[j][n][2 * half], (16 * j + col) * N + row0 + row);
            f(S[j][n][2 * half + 1], (16 * j + col + 1) * N + row0 + row);
        });
}

__device__ inline void scale_columns(rows_of_state &S, const float *scale) {
    const int q = (int)(threadIdx.x & 3);
#pragma unroll
    for (int j = 0; j < STEPS; j++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float2 d = pair_at(scale + 16 * j + 8 * n + 2 * q);
            S[j][n][0] *= d.x, S[j][n][1] *= d.y, S[j][n][2] *= d.x, S[j][n][3] *= d.y;
        }
}

} // namespace
