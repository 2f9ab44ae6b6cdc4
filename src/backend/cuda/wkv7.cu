// The recurrence, token by token: a block takes one head of one span, or some of its rows, four
// threads a row of the state, which stays in registers. Nothing crosses rows on the way up, so
// there is one barrier for every STAGE tokens; on the way back there is one a token. Bound by the
// latency of that chain.
#include "wkv7.cuh"

// A thread (i, q) has of row i the columns 16m + 4q + {0…3}: NJ of them. EXACT: N is 4·NJ.
enum { QUAD = 4, STAGE = 8, GROUP = 4 };
enum { V_R = 5, V_DY, V_S, FORWARD_VECTORS = 6, BACKWARD_VECTORS = 8 }; // after those of U

template <int NJ> __host__ __device__ constexpr int chunk_of() {
    return NJ <= 16 ? 16 : NJ == 32 ? 8 : 4; // what fits into shared memory
}

int k_wkv7_chunk(int N) {
    return N <= 64 ? chunk_of<16>() : N == 128 ? chunk_of<32>() : chunk_of<64>();
}

int k_wkv7_grain(int N) {
    return chunked(N) ? WKV7_CHUNK : 1;
}

struct place {
    int first, len; // of what is done here
    int before;     // tokens of the span
    state_at in, out;
    const float *dout; // gradients of states
    float *din;
    float *chunks; // of this span and head, H·N·N apart
    size_t chunk_step;
};

__device__ static place place_of(const wkv7_args &a, int N, int chunk, size_t h) {
    const int *span = a.span + 4 * blockIdx.y;
    const int before = in_chunks(a, span[1]); // in wkv7_chunk.cu
    const size_t NN = (size_t)N * N, first = (size_t)span[0];
    const size_t state = ((size_t)span[2] * a.H + h) * NN;
    float *carry = before ? a.carry + (blockIdx.y * (size_t)a.H + h) * NN : nullptr;
    place p = {};
    p.first = span[0] + before;
    p.len = span[1] - before;
    p.before = before;
    p.in = state_of(a.state_in, state, a.half);
    p.out = state_of(a.state_out, state, a.half);
    if (a.dstate_out) p.dout = a.dstate_out + state;
    if (a.dstate_in) p.din = a.dstate_in + state;
    if (carry) {
        p.in = {carry, false};
        p.din = carry;
    }
    p.chunk_step = a.H * NN;
    if (a.saved)
        p.chunks =
            a.saved + a.R * a.C + ((first / chunk + blockIdx.y + before / chunk) * a.H + h) * NN;
    return p;
}

__device__ static float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Element i of a tensor that may be narrow.
__device__ static float number(const wkv7_args &a, const void *p, size_t i) {
    return a.narrow ? bf16_value(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

__device__ static void put_number(const wkv7_args &a, void *p, size_t i, float x) {
    if (a.narrow)
        ((uint16_t *)p)[i] = bf16_bits(x);
    else
        ((float *)p)[i] = x;
}

__device__ static void add_number(const wkv7_args &a, void *p, size_t i, float x) {
    put_number(a, p, i, number(a, p, i) + x);
}

// Element `col` of vector `kind` at row t, decay instead of ω.
__device__ static float fetch(const wkv7_args &a, int kind, size_t t, size_t at, int col) {
    const size_t i = t * a.C + at + col;
    if (kind == V_R) return number(a, a.r, i);
    if (kind == V_DY) return number(a, a.dy, i);
    if (kind == V_S) return a.saved[i];
    const float x = number(a, a.u, kind * a.R * a.C + i);
    return kind == U_W ? decay_of(x) : x;
}

// Columns j to j+3 of row i; in memory a state is [column][row]. Eight rows of a warp lie together.
__device__ static float4 state_row(state_at s, int i, int N, int j) {
    const auto get = [&](int col) { return s.get((size_t)(col * N + i)); };
    return make_float4(get(j), get(j + 1), get(j + 2), get(j + 3));
}

__device__ static void put_state_row(state_at s, int i, int N, int j, float4 x) {
    const auto put = [&](int col, float e) { s.put((size_t)(col * N + i), e); };
    put(j, x.x), put(j + 1, x.y), put(j + 2, x.z), put(j + 3, x.w);
}

// ---- forward -----------------------------------------------------------------------------------

// Rows do not know of each other, so SPLIT blocks can share a head where there are few heads.
template <int NJ, bool EXACT, int SPLIT>
static __global__ void __launch_bounds__(NJ * 16 / SPLIT) wkv7_forward(wkv7_args a) {
    begin_kernel();
    constexpr int MOST = NJ * QUAD, CHUNK = chunk_of<NJ>();
    constexpr int LOADS = STAGE * FORWARD_VECTORS * SPLIT / QUAD;
    __shared__ float4 vec4[STAGE][FORWARD_VECTORS][MOST / 4];
    const int N = EXACT ? MOST : (int)(a.C / a.H);
    const int tid = threadIdx.x, threads = QUAD * N / SPLIT, q = tid & 3;
    const int i = (int)(blockIdx.x % SPLIT) * (N / SPLIT) + (tid >> 2);
    const size_t at = blockIdx.x / SPLIT * (size_t)N;
    const place p = place_of(a, N, CHUNK, blockIdx.x / SPLIT);
    if (!p.len) return;
    float4 S[NJ / 4];
#pragma unroll
    for (int m = 0; m < NJ / 4; m++)
        if (EXACT || m < N / 16)
            S[m] = p.in.at ? state_row(p.in, i, N, 16 * m + 4 * q) : make_float4(0, 0, 0, 0);
    float next[LOADS];
    auto load = [&](int t0) {
#pragma unroll
        for (int n = 0; n < LOADS; n++) {
            const int e = tid + n * threads, v = e / N, t = t0 + v / FORWARD_VECTORS;
            next[n] = t < p.len ? fetch(a, v % FORWARD_VECTORS, p.first + t, at, e % N) : 0;
        }
    };
    load(0);
    for (int t0 = 0; t0 < p.len; t0 += STAGE) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < LOADS; n++) {
            const int e = tid + n * threads, v = e / N;
            ((float *)vec4[v / FORWARD_VECTORS][v % FORWARD_VECTORS])[e % N] = next[n];
        }
        __syncthreads();
        load(t0 + STAGE);
        for (int k = 0; k < STAGE && t0 + k < p.len; k++) {
            const size_t row = (size_t)(p.first + t0 + k) * a.C + at + i;
            if (a.saved && (t0 + k) % CHUNK == 0)
#pragma unroll
                for (int m = 0; m < NJ / 4; m++)
                    if (EXACT || m < N / 16)
                        put_state_row({p.chunks + (t0 + k) / CHUNK * p.chunk_step, false}, i, N,
                                      16 * m + 4 * q, S[m]);
            float4 sums = make_float4(0, 0, 0, 0), ys = sums; // four short chains, not a long one
#pragma unroll
            for (int m = 0; m < NJ / 4; m++)
                if (EXACT || m < N / 16) add_products(sums, S[m], vec4[k][U_A][4 * m + q]);
            const float s = quad_sum((sums.x + sums.y) + (sums.z + sums.w));
            const float v = ((const float *)vec4[k][U_V])[i];
#pragma unroll
            for (int m = 0; m < NJ / 4; m++)
                if (EXACT || m < N / 16) {
                    const float4 w = vec4[k][U_W][4 * m + q], b = vec4[k][U_B][4 * m + q],
                                 x = vec4[k][U_K][4 * m + q];
                    S[m] = next_state(S[m], w, s, b, v, x);
                    add_products(ys, S[m], vec4[k][V_R][4 * m + q]);
                }
            const float y = quad_sum((ys.x + ys.y) + (ys.z + ys.w));
            if (q == 0) put_number(a, a.y, row, y);
            if (q == 1 && a.saved) a.saved[row] = s;
            if (ends_cell(a.half, p.before + t0 + k + 1))
#pragma unroll
                for (int m = 0; m < NJ / 4; m++)
                    if (EXACT || m < N / 16)
                        S[m] = make_float4(half_state(S[m].x), half_state(S[m].y),
                                           half_state(S[m].z), half_state(S[m].w));
        }
    }
    if (!p.out.at) return;
#pragma unroll
    for (int m = 0; m < NJ / 4; m++)
        if (EXACT || m < N / 16) put_state_row(p.out, i, N, 16 * m + 4 * q, S[m]);
}

// ---- backward ----------------------------------------------------------------------------------

// The same thread is (i, q) of G's rows and (j, q) of the columns of G and of the states: sums over
// columns and over rows both stay within a quad. States between the kept ones are made again from
// s, which takes no sums: first those at every GROUP tokens of the chunk, then those of each group.
template <int NJ, bool EXACT>
static __global__ void __launch_bounds__(NJ * 16) wkv7_backward(wkv7_args a) {
    begin_kernel();
    constexpr int MOST = NJ * QUAD, CHUNK = chunk_of<NJ>(), GROUPS = CHUNK / GROUP;
    alignas(16) __shared__ float vec[CHUNK][BACKWARD_VECTORS][MOST];
    alignas(16) __shared__ float dsum[2][MOST];
    const int N = EXACT ? MOST : (int)(a.C / a.H), nj = EXACT ? NJ : N / 4;
    const int tid = threadIdx.x, j = tid >> 2, q = tid & 3, which = tid / N, col = tid % N;
    const size_t at = blockIdx.x * (size_t)N, plane = a.R * a.C;
    const place p = place_of(a, N, CHUNK, blockIdx.x);
    if (!p.len) return;
    float Gr[NJ], Gc[NJ], begin[GROUPS][NJ];
    // The n-th element of a thread stands at column, or row, 16m + 4q + e.
#define AT(n)     (16 * ((n) / 4) + 4 * q + (n) % 4)
#define EACH_N(n) _Pragma("unroll") for (int n = 0; n < NJ; n++) if (EXACT || n < nj)
    EACH_N(n) {
        Gr[n] = p.dout ? p.dout[AT(n) * N + j] : 0;
        Gc[n] = p.dout ? p.dout[j * N + AT(n)] : 0;
    }
    for (int c = (p.len - 1) / CHUNK; c >= 0; c--) {
        const int t0 = c * CHUNK, count = p.len - t0 < CHUNK ? p.len - t0 : CHUNK;
        __syncthreads();
        for (int n = 0; n < CHUNK * BACKWARD_VECTORS / QUAD; n++) {
            const int v = QUAD * n + which, t = v / BACKWARD_VECTORS;
            if (t < count)
                vec[t][v % BACKWARD_VECTORS][col] =
                    fetch(a, v % BACKWARD_VECTORS, p.first + t0 + t, at, col);
        }
        __syncthreads();
        const float *kept = p.chunks + c * p.chunk_step;
        const int groups = (count + GROUP - 1) / GROUP;
        float S[NJ];
        EACH_N(n) S[n] = kept[j * N + AT(n)];
        auto step = [&](float *to, const float *from, int t) {
            const float w = vec[t][U_W][j], b = vec[t][U_B][j], k = vec[t][U_K][j];
            EACH_N(n)
            to[n] = fmaf(from[n], w, fmaf(vec[t][V_S][AT(n)], b, vec[t][U_V][AT(n)] * k));
        };
        for (int g = 0; g < groups; g++) {
            EACH_N(n) begin[g][n] = S[n];
            for (int k = 0; k < GROUP && g + 1 < groups; k++) step(S, S, g * GROUP + k);
        }
        for (int g = groups - 1; g >= 0; g--) {
            const int left = count - g * GROUP;
            float P[GROUP + 1][NJ];
            EACH_N(n) P[0][n] = begin[g][n];
#pragma unroll
            for (int k = 0; k < GROUP; k++)
                if (k < left) step(P[k + 1], P[k], g * GROUP + k);
#pragma unroll
            for (int k = GROUP - 1; k >= 0; k--) {
                if (k >= left) continue;
                const int t = g * GROUP + k;
                const size_t row = (size_t)(p.first + t0 + t) * a.C + at + j;
                const float dy = vec[t][V_DY][j], r = vec[t][V_R][j];
                float dv = 0, dr = 0, dw = 0, dk = 0, db = 0, da = 0, sums[4] = {};
                EACH_N(n) {
                    Gr[n] = fmaf(dy, vec[t][V_R][AT(n)], Gr[n]);
                    dv = fmaf(Gr[n], vec[t][U_K][AT(n)], dv);
                    sums[n % 4] = fmaf(Gr[n], vec[t][U_B][AT(n)], sums[n % 4]);
                }
                const float ds = quad_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
                if (q == 0) dsum[t & 1][j] = ds;
                EACH_N(n) {
                    const float dyi = vec[t][V_DY][AT(n)];
                    Gc[n] = fmaf(dyi, r, Gc[n]);
                    dr = fmaf(P[k + 1][n], dyi, dr);
                    dw = fmaf(Gc[n], P[k][n], dw);
                    dk = fmaf(Gc[n], vec[t][U_V][AT(n)], dk);
                    db = fmaf(Gc[n], vec[t][V_S][AT(n)], db);
                }
                __syncthreads();
                const float w = vec[t][U_W][j], x = vec[t][U_A][j];
                EACH_N(n) {
                    const float dsi = dsum[t & 1][AT(n)];
                    da = fmaf(P[k][n], dsi, da);
                    Gc[n] = fmaf(Gc[n], w, dsi * x);
                    Gr[n] = fmaf(Gr[n], vec[t][U_W][AT(n)], ds * vec[t][U_A][AT(n)]);
                }
                dv = quad_sum(dv), dr = quad_sum(dr), dw = quad_sum(dw), dk = quad_sum(dk),
                db = quad_sum(db), da = quad_sum(da);
                if (q == 0) {
                    add_number(a, a.dr, row, dr);
                    put_number(a, a.du, U_A * plane + row, da);
                } else if (q == 1) {
                    add_number(a, a.du, U_K * plane + row, dk);
                    put_number(a, a.du, U_B * plane + row, db);
                } else if (q == 2) {
                    add_number(a, a.du, U_V * plane + row, dv);
                } else {
                    const size_t of = U_W * plane + row; // 1 - σ(ω) would be nothing but rounding
                    const float omega = number(a, a.u, of);
                    put_number(a, a.du, of, -c0 * dw * w * sigmoid(omega) * sigmoid(-omega));
                }
            }
        }
    }
    if (p.din) EACH_N(n) p.din[j * N + AT(n)] = Gc[n];
#undef AT
#undef EACH_N
}

// ---- by head size ------------------------------------------------------------------------------

template <int NJ, bool EXACT, int SPLIT>
static void forward(struct queue *s, const struct wkv7_args &a, int N) {
    LAUNCH((wkv7_forward<NJ, EXACT, SPLIT>), dim3(a.H * SPLIT, a.spans), QUAD * N / SPLIT, s, a);
}

// Spans of one row at the end go another way, if there is one for them.
static wkv7_args settled(const struct wkv7_args *given) {
    wkv7_args a = *given;
    a.exact |= !chunked((int)(a.C / a.H));
    if (wkv7_steps(a)) {
        a.spans -= a.singles;
    } else if (a.singles) {
        a.remainders |= 1 << 1;
        a.singles = 0;
    }
    return a;
}

static bool has_chunks(const wkv7_args &a) {
    return in_chunks(a, a.longest);
}

// Whether some spans have tokens besides.
static bool has_rest(const wkv7_args &a) {
    bool rest = !has_chunks(a);
    for (int i = 0; i < 64; i++) rest |= (a.remainders >> i & 1) && in_chunks(a, i) != i;
    return rest;
}

// Segments for two blocks a multiprocessor where heads alone are not enough, of some chunks each.
static wkv7_segments segments_of(const wkv7_args &a) {
    enum { LEAST = 4 };
    const int chunks = a.longest / WKV7_CHUNK;
    int count = 2 * processors() / (a.spans * a.H);
    if (count > chunks / LEAST) count = chunks / LEAST;
    if (count < 2) return {1, chunks, nullptr};
    const int each = (chunks + count - 1) / count;
    return {(chunks + each - 1) / each, each, nullptr};
}

static size_t states(const wkv7_args &a) {
    return (size_t)a.spans * a.C * (a.C / (size_t)a.H);
}

static size_t carried(const wkv7_args &a) {
    return has_chunks(a) && has_rest(a) ? states(a) : 0;
}

size_t k_wkv7_scratch(const struct wkv7_args *given) {
    const wkv7_args a = settled(given);
    const bool cut = a.dr && has_chunks(a);
    return carried(a) + (cut ? states(a) * (size_t)(segments_of(a).count - 1) : 0);
}

void k_wkv7(struct queue *s, const struct wkv7_args *given) {
    const wkv7_args a = settled(given);
    const int N = (int)(a.C / a.H);
    if (a.singles) wkv7_step(s, a);
    if (!a.spans) return;
    if (has_chunks(a)) wkv7_chunk_forward(s, a);
    if (!has_rest(a)) return;
    const bool few = a.spans * a.H < 256; // heads: two for a multiprocessor
    switch (N) {
    case 16: forward<4, true, 1>(s, a, N); break;
    case 32: forward<8, true, 1>(s, a, N); break;
    case 64: few ? forward<16, true, 4>(s, a, N) : forward<16, true, 1>(s, a, N); break;
    case 128: forward<32, true, 4>(s, a, N); break;
    default: N < 64 ? forward<16, false, 1>(s, a, N) : forward<64, false, 1>(s, a, N);
    }
}

template <int NJ, bool EXACT>
static void backward(struct queue *s, const struct wkv7_args &a, int N) {
    LAUNCH((wkv7_backward<NJ, EXACT>), dim3(a.H, a.spans), QUAD * N, s, a);
}

static void backward_rest(struct queue *s, const struct wkv7_args &a, int N) {
    switch (N) {
    case 16: backward<4, true>(s, a, N); break;
    case 32: backward<8, true>(s, a, N); break;
    case 64: backward<16, true>(s, a, N); break;
    case 128: backward<32, true>(s, a, N); break;
    default: N < 64 ? backward<16, false>(s, a, N) : backward<64, false>(s, a, N);
    }
}

void k_wkv7_bwd(struct queue *s, const struct wkv7_args *given) {
    const wkv7_args a = settled(given);
    if (!a.spans) return;
    if (has_rest(a)) backward_rest(s, a, (int)(a.C / a.H));
    if (!has_chunks(a)) return;
    wkv7_segments cut = segments_of(a);
    cut.ends = a.carry + carried(a);
    if (cut.count > 1) wkv7_chunk_ends(s, a, cut);
    wkv7_chunk_backward(s, a, cut);
}
