// The recurrence for heads of 64, chunks of 16 tokens at a time on tensor cores (docs/math.md, the
// chunked form). A block takes one head of one span, in two groups of four warps. Forward, the back
// group makes of the next chunk's inputs all that does not depend on the state S, while the front
// group goes through this one: each of its warps owns 16 rows of S, and transposed sums of all that
// depends on it stay in the warp's registers, one product's sum being the next one's A, so that
// nothing of the chain from chunk to chunk goes through memory. Backward is the same for the
// gradient of S; gradients of the inputs are sums over all rows and do go through shared memory.
//
// A token's result does not depend on those behind it: with 16 tokens decays multiply up to e^9.7
// at most and need no centre.
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

__device__ place place_of(const wkv7_args &a) {
    const int *span = a.span + 4 * blockIdx.y;
    const size_t h = blockIdx.x, first = (size_t)span[0], NN = (size_t)N * N;
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

__device__ float2 pair_at(const float *p) {
    return *(const float2 *)p;
}

__device__ void put_pair(float *p, float x, float y) {
    *(float2 *)p = make_float2(x, y);
}

// To 2 ulp.
__device__ float power2(float x) {
#ifdef CUDA_EMU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ float quick_sigmoid(float x) {
#ifdef CUDA_EMU
    return sigmoid(x);
#else
    return __fdividef(1.0f, 1.0f + power2(-log2_e * x));
#endif
}

// For each pair of a lane's sums (mma.cuh): d[n][2·half] and its right neighbour at (row, col).
template <class F> __device__ void each_of_sum(const F &f) {
    const int lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) f(n, half, g + 8 * half, 8 * n + 2 * q);
}

// ---- what does not depend on the state ---------------------------------------------------------

// The matrices of a chunk: r̂ = r e^A, â = a e^E, b̂ = b e^-A, k̂ = k e^-A, v, where A_t and E_t are
// the sums of log-decays with and without token t.
struct inputs {
    tile<T, N> r, a, b, k, v;
    tile<T, T> ak, rk, rb, solve; // tril(â k̂ᵀ), …; solve = (I - tril(â b̂ᵀ))⁻¹
    alignas(16) float ab[T][T];
    float decay[N]; // e^A of the whole chunk
};

// What the way back wants besides, per token and column: the sums of log-decays, in powers of two,
// before and after token t at t and t + 1; -∂(log-decay)/∂ω. Rows lie in different banks.
struct rates {
    float sum[T + 1][N + 8], slope[T][N + 8];
};

// A lane's part of a chunk when WARPS warps prepare it: two columns, and TOKENS tokens.
template <int WARPS> struct part {
    enum { TOKENS = WARPS == 4 ? 4 : 2, PAIRS = N / 2 / WARPS };
    static_assert(PAIRS * (T / TOKENS) == 32, "a warp has whole columns");
    int col, first;
    float2 r[TOKENS], u[U_B + 1][TOKENS];

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
            r[i] = pair_at(a.r + from);
#pragma unroll
            for (int v = 0; v <= U_B; v++) u[v][i] = pair_at(a.u + v * a.R * a.C + from);
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
    __device__ void prepare(inputs &s, rates *rate) const {
        float2 upto[TOKENS], sum = make_float2(0, 0), all;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            sum.x -= c0 * log2_e * quick_sigmoid(u[U_W][i].x); // powers of two
            sum.y -= c0 * log2_e * quick_sigmoid(u[U_W][i].y);
            upto[i] = sum;
        }
        const float2 ahead = make_float2(before(sum.x, all.x), before(sum.y, all.y));
        if (first == 0) put_pair(&s.decay[col], power2(all.x), power2(all.y));
        if (rate && first == 0) put_pair(&rate->sum[0][col], 0, 0);
        float2 shrink = make_float2(power2(ahead.x), power2(ahead.y)); // e^E
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const int t = first + i;
            s.a.put(t, col, u[U_A][i].x * shrink.x, u[U_A][i].y * shrink.y);
            const float2 sums = make_float2(ahead.x + upto[i].x, ahead.y + upto[i].y);
            shrink = make_float2(power2(sums.x), power2(sums.y));
            s.r.put(t, col, r[i].x * shrink.x, r[i].y * shrink.y);
            const float2 grow = make_float2(power2(-sums.x), power2(-sums.y));
            s.b.put(t, col, u[U_B][i].x * grow.x, u[U_B][i].y * grow.y);
            s.k.put(t, col, u[U_K][i].x * grow.x, u[U_K][i].y * grow.y);
            s.v.put(t, col, u[U_V][i].x, u[U_V][i].y);
            if (!rate) continue;
            const float2 w = u[U_W][i];
            put_pair(&rate->sum[t + 1][col], sums.x, sums.y);
            put_pair(&rate->slope[t][col], c0 * quick_sigmoid(w.x) * quick_sigmoid(-w.x),
                     c0 * quick_sigmoid(w.y) * quick_sigmoid(-w.y));
        }
    }
};

// d = Σ of four products A(i)·B(i), i by steps of 16, in two chains.
template <class A, class B> __device__ void sum_of_four(float (&d)[2][4], const A &a, const B &b) {
    float other[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 32) {
        multiply(d, a(i), b(i));
        multiply(other, a(i + 16), b(i + 16));
    }
    add(d, other);
}

// left (T,N) · rightᵀ, one warp. Lanes hold it as mma.cuh says.
__device__ void cross(float (&d)[2][4], const tile<T, N> &left, const tile<T, N> &right) {
    sum_of_four(
        d, [&](int i) { return a_of(left, 0, i); },
        [&](int i) { return b_of_turned(right, 0, i); });
}

// What lies above the diagonal, or on it too if `strict`, is dropped: it need not be finite.
__device__ void store_lower(tile<T, T> &to, const float (&d)[2][4], bool strict) {
    each_of_sum([&](int n, int half, int row, int col) {
        const int most = row - strict;
        to.put(row, col, col <= most ? d[n][2 * half] : 0,
               col + 1 <= most ? d[n][2 * half + 1] : 0);
    });
}

// (I - ab)⁻¹ by forward substitution, a lane for each column; both halves of the warp do the same.
__device__ void invert(inputs &s) {
    float d[2][4] = {};
    cross(d, s.a, s.b);
    each_of_sum([&](int n, int half, int row, int col) {
        put_pair(&s.ab[row][col], d[n][2 * half], d[n][2 * half + 1]);
    });
    __syncwarp();
    const int lane = (int)(threadIdx.x & 31), col = lane % T;
    float x[T];
#pragma unroll
    for (int t = 0; t < T; t++) x[t] = t == col ? 1.0f : 0.0f;
#pragma unroll
    for (int k = 0; k < T; k++) // x[k] is done
#pragma unroll
        for (int t = k + 1; t < T; t++) x[t] = fmaf(s.ab[t][k], x[k], x[t]);
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float right = __shfl_down_sync(0xffffffffu, x[t], 1);
        if (lane < T && lane % 2 == 0) s.solve.put(t, col, x[t], right);
    }
}

// The four triangles of a chunk, one for each warp of a group; the last is inverted.
__device__ void triangles(inputs &s, int warp) {
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
    default: invert(s);
    }
}

// ---- forward -----------------------------------------------------------------------------------

// A warp's 16 rows of a state: 16 columns each, as sums.
typedef float rows_of_state[STEPS][2][4];

// In memory a state is [column][row]; f(number, offset).
template <class F> __device__ void each_of_rows(rows_of_state &S, int row0, const F &f) {
#pragma unroll
    for (int j = 0; j < STEPS; j++)
        each_of_sum([&](int n, int half, int row, int col) {
            f(S[j][n][2 * half], (16 * j + col) * N + row0 + row);
            f(S[j][n][2 * half + 1], (16 * j + col + 1) * N + row0 + row);
        });
}

__device__ void scale_columns(rows_of_state &S, const float *scale) {
    const int q = (int)(threadIdx.x & 3);
#pragma unroll
    for (int j = 0; j < STEPS; j++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float2 d = pair_at(scale + 16 * j + 8 * n + 2 * q);
            S[j][n][0] *= d.x, S[j][n][1] *= d.y, S[j][n][2] *= d.x, S[j][n][3] *= d.y;
        }
}

// A warp's rows of the state through a chunk, and what they read out.
__device__ void advance(rows_of_state &S, const inputs &in, const wkv7_args &a, size_t at,
                        int row0) {
    float x[2][4] = {}, y[2][4] = {}, u[2][4] = {};
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag state = a_of_sum(S[j]);
        multiply(x, state, b_of_turned(in.a, 0, 16 * j));
        multiply(y, state, b_of_turned(in.r, 0, 16 * j));
    }
    const frag v = a_of_turned(in.v, 0, row0);
    multiply(x, v, b_of_turned(in.ak, 0, 0));
    multiply(y, v, b_of_turned(in.rk, 0, 0));
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
    const frag sums = a_of_sum(u); // rows of U: S_{t-1} a_t
    multiply(y, sums, b_of_turned(in.rb, 0, 0));
    each_of_sum([&](int n, int half, int row, int t) {
        float *to = a.y + at + (size_t)t * a.C + row0 + row;
        to[0] = y[n][2 * half];
        to[a.C] = y[n][2 * half + 1];
    });
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        multiply(S[j], v, b_of(in.k, 0, 16 * j));
        multiply(S[j], sums, b_of(in.b, 0, 16 * j));
    }
    scale_columns(S, in.decay);
}

__global__ void __launch_bounds__(THREADS, 2) forward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    inputs *s = (inputs *)bytes; // two, in turns
    const place p = place_of(a);
    const int chunks = p.len / T, warp = (int)(threadIdx.x >> 5) % 4, row0 = 16 * warp;
    if (!chunks) return;
    const size_t step = (size_t)T * a.C;
    if (threadIdx.x >= GROUP) {
        part<4> next(warp);
        next.load(a, p.at);
        for (int c = 0; c < chunks; c++) {
            next.prepare(s[c & 1], nullptr);
            if (c + 1 < chunks) next.load(a, p.at + (c + 1) * step);
            group_barrier(1, GROUP);
            triangles(s[c & 1], warp);
            __syncthreads(); // chunk c is ready, chunk c - 1 is done
        }
    } else {
        rows_of_state S = {};
        if (p.in) each_of_rows(S, row0, [&](float &x, int at) { x = p.in[at]; });
        for (int c = 0; c < chunks; c++) {
            if (a.saved)
                each_of_rows(S, row0,
                             [&](float &x, int at) { p.chunks[c * p.chunk_step + at] = x; });
            __syncthreads();
            advance(S, s[c & 1], a, p.at + c * step, row0);
        }
        if (p.out) each_of_rows(S, row0, [&](float &x, int at) { p.out[at] = x; });
    }
}

// ---- backward ----------------------------------------------------------------------------------

struct backward_memory {
    inputs in;
    rates rate;
    tile<T, N> dy;
    tile<N, N> state, dstate; // S at the chunk's begin [column][row]; ∂ℓ/∂S at its end times decay
    tile<N, T> u, g;          // Uᵀ and Γᵀ
    tile<T, T> dab, dak, drb, drk;
    float edge[2][4]
              [N]; // Σ of S ⊙ ∂ℓ/∂S down a warp's rows, at this chunk's end and the one's before
    float along[T][N + 8]; // b̂ ⊙ db̂ + k̂ ⊙ dk̂
};

// Numbers of an A where a sum has them.
__device__ void sum_of_a(float (&d)[2][4], const frag &f) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 x = joined(f.hi[i], f.lo[i]);
        d[i >> 1][2 * (i & 1)] = x.x;
        d[i >> 1][2 * (i & 1) + 1] = x.y;
    }
}

// Σ of x ⊙ y down a warp's rows, 16 columns.
__device__ void sum_products(float *to, const float (&x)[2][4], const float (&y)[2][4]) {
    const int lane = (int)(threadIdx.x & 31);
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float2 sum = make_float2(fmaf(x[n][0], y[n][0], x[n][2] * y[n][2]),
                                 fmaf(x[n][1], y[n][1], x[n][3] * y[n][3]));
#pragma unroll
        for (int d = 4; d < 32; d *= 2) {
            sum.x += __shfl_xor_sync(0xffffffffu, sum.x, d);
            sum.y += __shfl_xor_sync(0xffffffffu, sum.y, d);
        }
        if (lane < 4) put_pair(to + 8 * n + 2 * lane, sum.x, sum.y);
    }
}

// This chunk's inputs, gradients of outputs, and state.
struct chunk_loads {
    part<8> mine;
    float2 dy[part<8>::TOKENS];
    float4 state[N * N / 4 / THREADS];

    __device__ chunk_loads() : mine((int)(threadIdx.x >> 5)) {}

    __device__ void load(const wkv7_args &a, size_t at, const float *from) {
        mine.load(a, at);
#pragma unroll
        for (int i = 0; i < mine.TOKENS; i++)
            dy[i] = pair_at(a.dy + at + (size_t)(mine.first + i) * a.C + mine.col);
#pragma unroll
        for (int i = 0; i < N * N / 4 / THREADS; i++)
            state[i] = ((const float4 *)from)[threadIdx.x + i * THREADS];
    }

    __device__ void prepare(backward_memory &s) const {
        mine.prepare(s.in, &s.rate);
#pragma unroll
        for (int i = 0; i < mine.TOKENS; i++) s.dy.put(mine.first + i, mine.col, dy[i].x, dy[i].y);
#pragma unroll
        for (int i = 0; i < N * N / 4 / THREADS; i++) {
            const int e = (int)threadIdx.x + i * THREADS, row = e / (N / 4), col = e % (N / 4) * 4;
            s.state.put(row, col, state[i].x, state[i].y);
            s.state.put(row, col + 2, state[i].z, state[i].w);
        }
    }
};

// Sums over this token and those behind it in the chunk: x[half] is of token g + 8·half.
__device__ void sum_behind(float (&x)[2]) {
    const int lane = (int)(threadIdx.x & 31);
#pragma unroll
    for (int d = 4; d < 32; d *= 2)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float more = __shfl_down_sync(0xffffffffu, x[half], d);
            if (lane + d < 32) x[half] += more;
        }
    x[0] += __shfl_sync(0xffffffffu, x[1], lane & 3);
}

// What is there before something is added to it: asked for early, it comes from far.
typedef float2 pairs_of_sum[2][2];

__device__ void load_pairs(pairs_of_sum &old, const float *from, size_t C) {
    each_of_sum([&](int n, int half, int t, int col) {
        old[n][half] = pair_at(from + (size_t)t * C + col);
    });
}

// The gradients of b and k in 16 columns; leaves b̂ ⊙ db̂ + k̂ ⊙ dk̂.
__device__ void finish_keys(backward_memory &s, const wkv7_args &a, size_t at, int col0,
                            const pairs_of_sum &old) {
    const inputs &in = s.in;
    const size_t plane = a.R * a.C;
    float db[2][4] = {}, dk[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag dstate = b_of(s.dstate, i, col0);
        multiply(db, a_of_turned(s.u, i, 0), dstate);
        multiply(dk, a_of(in.v, 0, i), dstate);
    }
    const frag x = b_of(in.a, 0, col0), r = b_of(in.r, 0, col0);
    multiply(db, a_of_turned(s.dab, 0, 0), x);
    multiply(dk, a_of_turned(s.dak, 0, 0), x);
    multiply(db, a_of_turned(s.drb, 0, 0), r);
    multiply(dk, a_of_turned(s.drk, 0, 0), r);
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const float2 b = in.b.get(t, col), k = in.k.get(t, col);
        put_pair(&s.along[t][col], fmaf(b.x, db[n][e], k.x * dk[n][e]),
                 fmaf(b.y, db[n][e + 1], k.y * dk[n][e + 1]));
    });
    __syncthreads();
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const size_t to = at + (size_t)t * a.C + col;
        const float2 sum = pair_at(&s.rate.sum[t + 1][col]);
        const float2 grow = make_float2(power2(-sum.x), power2(-sum.y));
        put_pair(a.du + U_K * plane + to, fmaf(dk[n][e], grow.x, old[n][half].x),
                 fmaf(dk[n][e + 1], grow.y, old[n][half].y));
        put_pair(a.du + U_B * plane + to, db[n][e] * grow.x, db[n][e + 1] * grow.y);
    });
}

// The gradients of r, a and ω in 16 columns, from dr and da as far as they come from the state.
__device__ void finish_rest(backward_memory &s, const wkv7_args &a, size_t at, int col0,
                            float (&dr)[2][4], float (&da)[2][4], const float (&edge)[4][N],
                            const pairs_of_sum &old) {
    const inputs &in = s.in;
    const size_t plane = a.R * a.C;
    const frag b = b_of(in.b, 0, col0), k = b_of(in.k, 0, col0);
    multiply(dr, a_of(s.drb, 0, 0), b);
    multiply(da, a_of(s.dab, 0, 0), b);
    multiply(dr, a_of(s.drk, 0, 0), k);
    multiply(da, a_of(s.dak, 0, 0), k);
    float2 all[2][2], own[2][2]; // [n][half], of r̂ ⊙ dr̂ + â ⊙ dâ - …, and of â ⊙ dâ alone
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const float2 r = in.r.get(t, col), x = in.a.get(t, col);
        own[n][half] = make_float2(x.x * da[n][e], x.y * da[n][e + 1]);
        all[n][half] = make_float2(fmaf(r.x, dr[n][e], own[n][half].x),
                                   fmaf(r.y, dr[n][e + 1], own[n][half].y));
        const size_t to = at + (size_t)t * a.C + col;
        const float2 before = pair_at(&s.rate.sum[t][col]),
                     after = pair_at(&s.rate.sum[t + 1][col]);
        put_pair(a.dr + to, fmaf(dr[n][e], power2(after.x), old[n][half].x),
                 fmaf(dr[n][e + 1], power2(after.y), old[n][half].y));
        put_pair(a.du + U_A * plane + to, da[n][e] * power2(before.x),
                 da[n][e + 1] * power2(before.y));
    });
    __syncthreads();
    each_of_sum([&](int n, int half, int t, int c) {
        const float2 less = pair_at(&s.along[t][col0 + c]);
        all[n][half].x -= less.x;
        all[n][half].y -= less.y;
    });
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float x[2] = {all[n][0].x, all[n][1].x}, y[2] = {all[n][0].y, all[n][1].y};
        sum_behind(x);
        sum_behind(y);
        all[n][0] = make_float2(x[0], y[0]);
        all[n][1] = make_float2(x[1], y[1]);
    }
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c;
        const float2 slope = pair_at(&s.rate.slope[t][col]);
        float2 end = make_float2(0, 0);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float2 more = pair_at(&edge[w][col]);
            end.x += more.x, end.y += more.y;
        }
        put_pair(a.du + U_W * plane + at + (size_t)t * a.C + col,
                 -slope.x * (all[n][half].x - own[n][half].x + end.x),
                 -slope.y * (all[n][half].y - own[n][half].y + end.y));
    });
}

// What the triangles of this chunk owe, one for each warp of a group.
__device__ void triangle_gradients(backward_memory &s, int warp) {
    const inputs &in = s.in;
    const auto gamma = [&](int i) { return a_of_turned(s.g, i, 0); };
    const auto dy = [&](int i) { return a_of(s.dy, 0, i); };
    const auto u = [&](int i) { return b_of(s.u, i, 0); };
    const auto v = [&](int i) { return b_of_turned(in.v, 0, i); };
    float d[2][4] = {};
    switch (warp) {
    case 0:
        sum_of_four(d, gamma, u);
        store_lower(s.dab, d, true);
        break;
    case 1:
        sum_of_four(d, gamma, v);
        store_lower(s.dak, d, true);
        break;
    case 2:
        sum_of_four(d, dy, u);
        store_lower(s.drb, d, false);
        break;
    default: sum_of_four(d, dy, v); store_lower(s.drk, d, false);
    }
}

// A chunk, the front group: ∂ℓ/∂S, G, and what comes from it. Barriers stand as in the other's.
__device__ void retreat(rows_of_state &G, backward_memory &s, const wkv7_args &a, size_t at,
                        int row0, int turn) {
    const inputs &in = s.in;
    float du[2][4] = {}, dv[2][4] = {}, g[2][4] = {};
    float old_dv[2][4];
    each_of_sum([&](int n, int half, int row, int t) {
        const float *from = a.du + U_V * a.R * a.C + at + (size_t)t * a.C + row0 + row;
        old_dv[n][2 * half] = from[0];
        old_dv[n][2 * half + 1] = from[a.C];
    });
    scale_columns(G, in.decay);
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag d = a_of_sum(G[j]);
        store_a(s.dstate, row0, 16 * j, d);
        multiply(du, d, b_of_turned(in.b, 0, 16 * j));
        multiply(dv, d, b_of_turned(in.k, 0, 16 * j));
    }
    __syncthreads(); // the triangles
    const frag dy = a_of_turned(s.dy, 0, row0);
    multiply(du, dy, b_of(in.rb, 0, 0));
    multiply(g, a_of_sum(du), b_of(in.solve, 0, 0));
    const frag gamma = a_of_sum(g);
    store_a(s.g, row0, 0, gamma);
    multiply(dv, dy, b_of(in.rk, 0, 0));
    multiply(dv, gamma, b_of(in.ak, 0, 0));
    each_of_sum([&](int n, int half, int row, int t) {
        float *to = a.du + U_V * a.R * a.C + at + (size_t)t * a.C + row0 + row;
        to[0] = old_dv[n][2 * half] + dv[n][2 * half];
        to[a.C] = old_dv[n][2 * half + 1] + dv[n][2 * half + 1];
    });
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        multiply(G[j], dy, b_of(in.r, 0, 16 * j));
        multiply(G[j], gamma, b_of(in.a, 0, 16 * j));
        float state[2][4];
        sum_of_a(state, a_of_turned(s.state, 16 * j, row0));
        sum_products(&s.edge[turn ^ 1][row0 / 16][16 * j], state, G[j]);
    }
    __syncthreads(); // Γ, U
    pairs_of_sum old;
    load_pairs(old, a.dr + at + row0, a.C);
    float dr[2][4] = {}, da[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag state = b_of_turned(s.state, row0, i);
        multiply(dr, a_of(s.dy, 0, i), state);
        multiply(da, a_of_turned(s.g, i, 0), state);
    }
    __syncthreads(); // gradients of the triangles
    finish_rest(s, a, at, row0, dr, da, s.edge[turn], old);
}

// A chunk, the back group. end: 1: behind this chunk ∂ℓ/∂S is given, -1: it is zero, 0: there is
// another chunk.
__device__ void retreat_beside(backward_memory &s, const wkv7_args &a, size_t at, int row0,
                               int turn, int end) {
    const inputs &in = s.in;
    float x[2][4] = {}, u[2][4] = {};
    triangles(s.in, row0 / 16);
#pragma unroll
    for (int j = 0; j < STEPS; j++)
        multiply(x, a_of_turned(s.state, 16 * j, row0), b_of_turned(in.a, 0, 16 * j));
    __syncthreads();
    const frag v = a_of_turned(in.v, 0, row0);
    multiply(x, v, b_of_turned(in.ak, 0, 0));
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
    const frag sums = a_of_sum(u);
    store_a(s.u, row0, 0, sums);
    if (end)
#pragma unroll
        for (int j = 0; j < STEPS; j++) { // the state behind this chunk, but for the decay
            float state[2][4], dstate[2][4] = {};
            sum_of_a(state, a_of_turned(s.state, 16 * j, row0));
            multiply(state, v, b_of(in.k, 0, 16 * j));
            multiply(state, sums, b_of(in.b, 0, 16 * j));
            if (end > 0) sum_of_a(dstate, a_of(s.dstate, row0, 16 * j));
            sum_products(&s.edge[turn][row0 / 16][16 * j], state, dstate);
        }
    __syncthreads();
    pairs_of_sum old;
    load_pairs(old, a.du + U_K * a.R * a.C + at + row0, a.C);
    triangle_gradients(s, row0 / 16);
    __syncthreads();
    finish_keys(s, a, at, row0, old);
}

__global__ void __launch_bounds__(THREADS, 2) backward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    backward_memory &s = *(backward_memory *)bytes;
    const place p = place_of(a);
    const int chunks = p.len / T, row0 = 16 * ((int)(threadIdx.x >> 5) % 4);
    if (!chunks) return;
    const bool front = threadIdx.x < GROUP;
    const size_t step = (size_t)T * a.C;
    rows_of_state G = {}; // ∂ℓ/∂S at the chunk's end
    if (front && p.dout) each_of_rows(G, row0, [&](float &x, int at) { x = p.dout[at]; });
    for (int c = chunks - 1; c >= 0; c--) {
        const size_t at = p.at + c * step;
        chunk_loads loads;
        loads.load(a, at, p.chunks + c * p.chunk_step);
        if (c + 1 < chunks) __syncthreads(); // everybody is done with the chunk before
        loads.prepare(s);
        __syncthreads();
        if (front)
            retreat(G, s, a, at, row0, c & 1);
        else
            retreat_beside(s, a, at, row0, c & 1, c + 1 < chunks ? 0 : p.dout ? 1 : -1);
    }
    if (front && p.din) each_of_rows(G, row0, [&](float &x, int at) { p.din[at] = x; });
}

} // namespace

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a) {
    launch_with(q, forward, dim3(a.H, a.spans), THREADS, 2 * sizeof(inputs), a);
}

void wkv7_chunk_backward(struct queue *q, const wkv7_args &a) {
    launch_with(q, backward, dim3(a.H, a.spans), THREADS, sizeof(backward_memory), a);
}
