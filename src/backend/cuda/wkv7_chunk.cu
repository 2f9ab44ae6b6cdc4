// The recurrence for heads of 64, chunks of 16 tokens at a time on tensor cores (docs/math.md, the
// chunked form). A block takes one head of one span. Each of its four main warps owns 16 rows of
// the state S, transposed sums of everything that depends on it stay in the warp's registers, one
// product's sum being the next one's A, so that nothing of the chain from chunk to chunk goes
// through memory. A fifth warp inverts the unit triangular matrix of the chunk meanwhile.
//
// A token's result does not depend on those behind it: with 16 tokens decays multiply up to e^9.7
// at most and need no centre.
#include "mma.cuh"
#include "wkv7.cuh"

namespace {

enum { N = 64, T = WKV7_CHUNK, MAIN = 4 * 32, THREADS = MAIN + 32, STEPS = N / T };
enum { QUARTER = 4 }; // tokens of a lane when inputs are prepared
constexpr float log2_e = 1.4426950408889634f;

struct place {
    size_t at; // the span's first token, this head
    int len;   // whole chunks of it
    const float *in, *dout;
    float *out, *din, *chunks; // states, and gradients of states
    size_t chunk_step;
};

// A lane's part when inputs are prepared: columns col and col + 1, tokens from `first` on.
struct part {
    int col, first;
};

__device__ part part_of() {
    const int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x >> 5);
    return {16 * warp + 2 * (lane & 7), QUARTER * (lane >> 3)};
}

__device__ float2 pair_at(const float *p) {
    return *(const float2 *)p;
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
// before and after token t at t and t + 1; -∂(log-decay)/∂ω.
struct rates {
    float sum[T + 1][N], slope[T][N];
};

struct raw {
    float2 r[QUARTER], u[U_B + 1][QUARTER];
};

__device__ void load_raw(raw &x, const wkv7_args &a, size_t at, const part &p) {
#pragma unroll
    for (int i = 0; i < QUARTER; i++) {
        const size_t from = at + (size_t)(p.first + i) * a.C + p.col;
        x.r[i] = pair_at(a.r + from);
#pragma unroll
        for (int v = 0; v <= U_B; v++) x.u[v][i] = pair_at(a.u + v * a.R * a.C + from);
    }
}

// Sums over the tokens before this lane's, of all lanes with these columns; `all`: over the chunk.
__device__ float before(float sum, float &all) {
    const int lane = (int)(threadIdx.x & 31);
    const float one = __shfl_up_sync(0xffffffffu, sum, 8);
    const float two = sum + (lane >= 8 ? one : 0);
    const float far = __shfl_up_sync(0xffffffffu, two, 16);
    const float upto = two + (lane >= 16 ? far : 0);
    all = __shfl_sync(0xffffffffu, upto, 24 + (lane & 7));
    const float less = __shfl_up_sync(0xffffffffu, upto, 8);
    return lane >= 8 ? less : 0;
}

__device__ void prepare(inputs &s, const raw &x, const part &p, rates *rate) {
    float2 upto[QUARTER], sum = make_float2(0, 0), all;
#pragma unroll
    for (int i = 0; i < QUARTER; i++) {
        sum.x -= c0 * log2_e * sigmoid(x.u[U_W][i].x); // powers of two
        sum.y -= c0 * log2_e * sigmoid(x.u[U_W][i].y);
        upto[i] = sum;
    }
    const float2 ahead = make_float2(before(sum.x, all.x), before(sum.y, all.y));
    if (p.first == 0) {
        s.decay[p.col] = exp2f(all.x);
        s.decay[p.col + 1] = exp2f(all.y);
    }
    if (rate) *(float2 *)&rate->sum[p.first][p.col] = ahead;
    float2 shrink = make_float2(exp2f(ahead.x), exp2f(ahead.y)); // e^E
#pragma unroll
    for (int i = 0; i < QUARTER; i++) {
        const int t = p.first + i;
        s.a.put(t, p.col, x.u[U_A][i].x * shrink.x, x.u[U_A][i].y * shrink.y);
        const float2 sums = make_float2(ahead.x + upto[i].x, ahead.y + upto[i].y);
        shrink = make_float2(exp2f(sums.x), exp2f(sums.y));
        s.r.put(t, p.col, x.r[i].x * shrink.x, x.r[i].y * shrink.y);
        const float2 grow = make_float2(exp2f(-sums.x), exp2f(-sums.y));
        s.b.put(t, p.col, x.u[U_B][i].x * grow.x, x.u[U_B][i].y * grow.y);
        s.k.put(t, p.col, x.u[U_K][i].x * grow.x, x.u[U_K][i].y * grow.y);
        s.v.put(t, p.col, x.u[U_V][i].x, x.u[U_V][i].y);
        if (!rate) continue;
        const float2 w = x.u[U_W][i];
        *(float2 *)&rate->sum[t + 1][p.col] = sums;
        *(float2 *)&rate->slope[t][p.col] =
            make_float2(c0 * sigmoid(w.x) * sigmoid(-w.x), c0 * sigmoid(w.y) * sigmoid(-w.y));
    }
}

// left (T,N) · rightᵀ, one warp. Lanes hold it as mma.cuh says.
__device__ void cross(float (&d)[2][4], const tile<T, N> &left, const tile<T, N> &right) {
#pragma unroll
    for (int j = 0; j < N; j += 16) multiply(d, a_of(left, 0, j), b_of_turned(right, 0, j));
}

// For each element of a lane's sums: its row and column.
template <class F> __device__ void each_of_sum(const F &f) {
    const int lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) f(n, half, g + 8 * half, 8 * n + 2 * q);
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
        s.ab[row][col] = d[n][2 * half];
        s.ab[row][col + 1] = d[n][2 * half + 1];
    });
    __syncwarp();
    const int lane = (int)(threadIdx.x & 31), col = lane % T;
    float x[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        x[t] = t == col ? 1.0f : 0.0f;
#pragma unroll
        for (int k = 0; k < t; k++) x[t] = fmaf(s.ab[t][k], x[k], x[t]);
        const float right = __shfl_down_sync(0xffffffffu, x[t], 1);
        if (lane < T && lane % 2 == 0) s.solve.put(t, col, x[t], right);
    }
}

// The four triangles of a chunk, a warp each; the fifth warp's is inverted.
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
    case 4: invert(s); break;
    default: break;
    }
}

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

// ---- forward -----------------------------------------------------------------------------------

// A warp's 16 rows of a state: [16 columns each][n][e] of the sums of mma.cuh.
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
            const float2 d = *(const float2 *)(scale + 16 * j + 8 * n + 2 * q);
            S[j][n][0] *= d.x, S[j][n][1] *= d.y, S[j][n][2] *= d.x, S[j][n][3] *= d.y;
        }
}

__global__ void __launch_bounds__(THREADS, 2) forward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    inputs &s = *(inputs *)bytes;
    const place p = place_of(a);
    if (!p.len) return;
    const int warp = (int)(threadIdx.x >> 5), row0 = 16 * warp;
    const bool main = warp < 4;
    const part mine = part_of();
    rows_of_state S = {};
    raw next;
    if (main) {
        if (p.in) each_of_rows(S, row0, [&](float &x, int at) { x = p.in[at]; });
        load_raw(next, a, p.at, mine);
    }
    for (int t0 = 0; t0 < p.len; t0 += T) {
        if (t0) __syncthreads();
        if (main) prepare(s, next, mine, nullptr);
        __syncthreads();
        triangles(s, warp);
        float x[2][4] = {}, y[2][4] = {}, u[2][4] = {};
        if (main) {
            if (t0 + T < p.len) load_raw(next, a, p.at + (size_t)(t0 + T) * a.C, mine);
            if (a.saved)
                each_of_rows(S, row0,
                             [&](float &e, int at) { p.chunks[t0 / T * p.chunk_step + at] = e; });
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                const frag state = a_of_sum(S[j]);
                multiply(x, state, b_of_turned(s.a, 0, 16 * j));
                multiply(y, state, b_of_turned(s.r, 0, 16 * j));
            }
        }
        __syncthreads();
        if (!main) continue;
        const frag v = a_of_turned(s.v, 0, row0);
        multiply(x, v, b_of_turned(s.ak, 0, 0));
        multiply(u, a_of_sum(x), b_of_turned(s.solve, 0, 0));
        const frag sums = a_of_sum(u); // rows of U: S_{t-1} a_t
        multiply(y, v, b_of_turned(s.rk, 0, 0));
        multiply(y, sums, b_of_turned(s.rb, 0, 0));
        each_of_sum([&](int n, int half, int row, int t) {
            float *to = a.y + p.at + (size_t)(t0 + t) * a.C + row0 + row;
            to[0] = y[n][2 * half];
            to[a.C] = y[n][2 * half + 1];
        });
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            multiply(S[j], v, b_of(s.k, 0, 16 * j));
            multiply(S[j], sums, b_of(s.b, 0, 16 * j));
        }
        scale_columns(S, s.decay);
    }
    if (main && p.out) each_of_rows(S, row0, [&](float &x, int at) { p.out[at] = x; });
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
};

// Down a warp's rows.
__device__ void sum_products(float *to, const rows_of_state &S, const rows_of_state &G) {
    const int lane = (int)(threadIdx.x & 31), q = lane & 3;
#pragma unroll
    for (int j = 0; j < STEPS; j++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float x = fmaf(S[j][n][e], G[j][n][e], S[j][n][e + 2] * G[j][n][e + 2]);
                for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
                if (lane < 4) to[16 * j + 8 * n + 2 * q + e] = x;
            }
}

__device__ void load_state(rows_of_state &S, const tile<N, N> &state, int row0) {
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag f = a_of_turned(state, 16 * j, row0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 x = joined(f.hi[i], f.lo[i]);
            S[j][i >> 1][2 * (i & 1)] = x.x;
            S[j][i >> 1][2 * (i & 1) + 1] = x.y;
        }
    }
}

// This chunk's inputs, gradients of outputs, and state.
__device__ void load_chunk(backward_memory &s, const wkv7_args &a, size_t at, const float *state,
                           const part &p) {
    raw x;
    load_raw(x, a, at, p);
    float2 dy[QUARTER];
#pragma unroll
    for (int i = 0; i < QUARTER; i++)
        dy[i] = pair_at(a.dy + at + (size_t)(p.first + i) * a.C + p.col);
    float4 rows[N * N / 4 / MAIN];
#pragma unroll
    for (int i = 0; i < N * N / 4 / MAIN; i++)
        rows[i] = ((const float4 *)state)[threadIdx.x + i * MAIN];
    prepare(s.in, x, p, &s.rate);
#pragma unroll
    for (int i = 0; i < QUARTER; i++) s.dy.put(p.first + i, p.col, dy[i].x, dy[i].y);
#pragma unroll
    for (int i = 0; i < N * N / 4 / MAIN; i++) {
        const int e = (int)threadIdx.x + i * MAIN, row = e / (N / 4), col = e % (N / 4) * 4;
        s.state.put(row, col, rows[i].x, rows[i].y);
        s.state.put(row, col + 2, rows[i].z, rows[i].w);
    }
}

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

__device__ void add_pair(float *to, float x, float y) {
    const float2 old = pair_at(to);
    *(float2 *)to = make_float2(old.x + x, old.y + y);
}

// The gradients of r, ω, k, a and b in the 16 columns of a warp.
__device__ void finish(const backward_memory &s, const wkv7_args &a, size_t at, int col0,
                       const float (&edge)[4][N]) {
    const inputs &in = s.in;
    float dr[2][4] = {}, da[2][4] = {}, db[2][4] = {}, dk[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag state = b_of_turned(s.state, col0, i), dstate = b_of(s.dstate, i, col0);
        multiply(dr, a_of(s.dy, 0, i), state);
        multiply(da, a_of_turned(s.g, i, 0), state);
        multiply(db, a_of_turned(s.u, i, 0), dstate);
        multiply(dk, a_of(in.v, 0, i), dstate);
    }
    const frag b = b_of(in.b, 0, col0), k = b_of(in.k, 0, col0);
    multiply(dr, a_of(s.drb, 0, 0), b);
    multiply(dr, a_of(s.drk, 0, 0), k);
    multiply(da, a_of(s.dab, 0, 0), b);
    multiply(da, a_of(s.dak, 0, 0), k);
    const frag x = b_of(in.a, 0, col0), r = b_of(in.r, 0, col0);
    multiply(db, a_of_turned(s.dab, 0, 0), x);
    multiply(db, a_of_turned(s.drb, 0, 0), r);
    multiply(dk, a_of_turned(s.dak, 0, 0), x);
    multiply(dk, a_of_turned(s.drk, 0, 0), r);

    const size_t plane = a.R * a.C;
    float2 along[2][2], own[2][2]; // [n][half], of â ⊙ dâ and of everything
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const float2 r = in.r.get(t, col), x = in.a.get(t, col), b = in.b.get(t, col),
                     k = in.k.get(t, col);
        own[n][half] = make_float2(x.x * da[n][e], x.y * da[n][e + 1]);
        along[n][half] =
            make_float2(own[n][half].x + r.x * dr[n][e] - b.x * db[n][e] - k.x * dk[n][e],
                        own[n][half].y + r.y * dr[n][e + 1] - b.y * db[n][e + 1] -
                            k.y * dk[n][e + 1]);
    });
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float x[2] = {along[n][0].x, along[n][1].x}, y[2] = {along[n][0].y, along[n][1].y};
        sum_behind(x);
        sum_behind(y);
        along[n][0] = make_float2(x[0], y[0]);
        along[n][1] = make_float2(x[1], y[1]);
    }
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const size_t to = at + (size_t)t * a.C + col;
        const float2 before = pair_at(&s.rate.sum[t][col]),
                     after = pair_at(&s.rate.sum[t + 1][col]);
        const float2 slope = pair_at(&s.rate.slope[t][col]);
        const float2 grow = make_float2(exp2f(-after.x), exp2f(-after.y));
        float2 end = make_float2(0, 0);
#pragma unroll
        for (int w = 0; w < 4; w++) end.x += edge[w][col], end.y += edge[w][col + 1];
        add_pair(a.dr + to, dr[n][e] * exp2f(after.x), dr[n][e + 1] * exp2f(after.y));
        add_pair(a.du + U_K * plane + to, dk[n][e] * grow.x, dk[n][e + 1] * grow.y);
        *(float2 *)(a.du + U_B * plane + to) =
            make_float2(db[n][e] * grow.x, db[n][e + 1] * grow.y);
        *(float2 *)(a.du + U_A * plane + to) =
            make_float2(da[n][e] * exp2f(before.x), da[n][e + 1] * exp2f(before.y));
        *(float2 *)(a.du + U_W * plane + to) =
            make_float2(-slope.x * (along[n][half].x - own[n][half].x + end.x),
                        -slope.y * (along[n][half].y - own[n][half].y + end.y));
    });
}

__global__ void __launch_bounds__(THREADS, 2) backward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    backward_memory &s = *(backward_memory *)bytes;
    const inputs &in = s.in;
    const place p = place_of(a);
    if (!p.len) return;
    const int warp = (int)(threadIdx.x >> 5), row0 = 16 * warp;
    const bool main = warp < 4;
    const part mine = part_of();
    rows_of_state G = {}; // ∂ℓ/∂S at the chunk's end
    if (main && p.dout) each_of_rows(G, row0, [&](float &x, int at) { x = p.dout[at]; });
    const int chunks = p.len / T;
    for (int c = chunks - 1; c >= 0; c--) {
        const bool last = c + 1 == chunks;
        const size_t at = p.at + (size_t)c * T * a.C;
        if (!last) __syncthreads();
        if (main) load_chunk(s, a, at, p.chunks + c * p.chunk_step, mine);
        __syncthreads();
        triangles(s.in, warp);
        float x[2][4] = {}, u[2][4] = {}, du[2][4] = {}, dv[2][4] = {}, g[2][4] = {};
        rows_of_state D; // G times decay
        if (main) {
#pragma unroll
            for (int j = 0; j < STEPS; j++)
#pragma unroll
                for (int e = 0; e < 8; e++) D[j][e / 4][e % 4] = G[j][e / 4][e % 4];
            scale_columns(D, in.decay);
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                multiply(x, a_of_turned(s.state, 16 * j, row0), b_of_turned(in.a, 0, 16 * j));
                const frag d = a_of_sum(D[j]);
                store_a(s.dstate, row0, 16 * j, d);
                multiply(du, d, b_of_turned(in.b, 0, 16 * j));
                multiply(dv, d, b_of_turned(in.k, 0, 16 * j));
            }
        }
        __syncthreads();
        if (main) {
            const frag v = a_of_turned(in.v, 0, row0), dy = a_of_turned(s.dy, 0, row0);
            multiply(x, v, b_of_turned(in.ak, 0, 0));
            multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
            const frag sums = a_of_sum(u);
            store_a(s.u, row0, 0, sums);
            multiply(du, dy, b_of(in.rb, 0, 0));
            multiply(g, a_of_sum(du), b_of(in.solve, 0, 0));
            const frag gamma = a_of_sum(g);
            store_a(s.g, row0, 0, gamma);
            multiply(dv, dy, b_of(in.rk, 0, 0));
            multiply(dv, gamma, b_of(in.ak, 0, 0));
            each_of_sum([&](int n, int half, int row, int t) {
                float *to = a.du + U_V * a.R * a.C + at + (size_t)t * a.C + row0 + row;
                to[0] += dv[n][2 * half];
                to[a.C] += dv[n][2 * half + 1];
            });
            rows_of_state S;
            load_state(S, s.state, row0);
            if (last && p.dout) {
                rows_of_state end;
#pragma unroll
                for (int j = 0; j < STEPS; j++) {
#pragma unroll
                    for (int e = 0; e < 8; e++) end[j][e / 4][e % 4] = S[j][e / 4][e % 4];
                    multiply(end[j], v, b_of(in.k, 0, 16 * j));
                    multiply(end[j], sums, b_of(in.b, 0, 16 * j));
                }
                sum_products(s.edge[c & 1][warp], end, D);
            } else if (last) {
                s.edge[c & 1][warp][threadIdx.x & 31] = 0;
                s.edge[c & 1][warp][32 + (threadIdx.x & 31)] = 0;
            }
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                multiply(D[j], dy, b_of(in.r, 0, 16 * j));
                multiply(D[j], gamma, b_of(in.a, 0, 16 * j));
#pragma unroll
                for (int e = 0; e < 8; e++) G[j][e / 4][e % 4] = D[j][e / 4][e % 4];
            }
            sum_products(s.edge[(c & 1) ^ 1][warp], S, G);
        }
        __syncthreads();
        float d[2][4] = {};
        switch (warp) { // what the triangles owe
        case 0:         // Γ Uᵀ
#pragma unroll
            for (int i = 0; i < N; i += 16) multiply(d, a_of_turned(s.g, i, 0), b_of(s.u, i, 0));
            store_lower(s.dab, d, true);
            break;
        case 1: // Γ Vᵀ
#pragma unroll
            for (int i = 0; i < N; i += 16)
                multiply(d, a_of_turned(s.g, i, 0), b_of_turned(in.v, 0, i));
            store_lower(s.dak, d, true);
            break;
        case 2: // dY Uᵀ
#pragma unroll
            for (int i = 0; i < N; i += 16) multiply(d, a_of(s.dy, 0, i), b_of(s.u, i, 0));
            store_lower(s.drb, d, false);
            break;
        case 3: // dY Vᵀ
            cross(d, s.dy, in.v);
            store_lower(s.drk, d, false);
            break;
        default: break;
        }
        __syncthreads();
        if (main) finish(s, a, at, row0, s.edge[c & 1]);
    }
    if (main && p.din) each_of_rows(G, row0, [&](float &x, int at) { p.din[at] = x; });
}

} // namespace

void wkv7_chunk_backward(struct queue *q, const wkv7_args &a) {
    launch_with(q, backward, dim3(a.H, a.spans), THREADS, sizeof(backward_memory), a);
}

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a) {
    launch_with(q, forward, dim3(a.H, a.spans), THREADS, sizeof(inputs), a);
}
