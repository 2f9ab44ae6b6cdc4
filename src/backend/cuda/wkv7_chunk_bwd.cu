// The chunked recurrence, backward. Of eight warps two each go one way:
//
//   chain   the gradient of the state, S' here, through the chunk, and Γ; then the next chunk's
//           decays, and what they make of S'
//   values  U again, the gradients of the triangles, dv
//   reads   two triangles, dr, da, and in the end dω
//   keys    the third triangle, dk, db
//
// All eight prepare a chunk. What it reads is asked for a chunk ahead (cp.async); results take the
// place of what they were made of, and are carried away in whole rows while the next chunk is
// prepared; where a block has too little shared memory for that, both stay where they are (NEAR).
// Matrices read from shared memory take half of its turns, which is why a warp has 32 rows or
// columns of whatever it makes. Who only gives arrives and goes on.
//
// 16×512 tokens of 12 heads in bf16 take an H100 230 µs (`rwkv bench kernels`), of which
// memory takes 106. What bounds it is how fast instructions are fetched: four ways go through code
// of their own once a chunk. So what only addresses differ in is a loop in the code too, and what
// all do is there once (docs/performance.md).
#include "wkv7_chunk_bwd.cuh"

namespace {

enum { CHAIN, VALUES, READS, KEYS }; // pairs of warps
// Barriers: Γ, U and the gradients of triangles are there, for whom; so is what dω takes from keys,
// and r̂ is wanted no more; nor is the state; nor S' by others than the chain; decays are there.
enum { GAMMA = 1, GAMMA_READS, U_KEYS, DTRIANGLES, DTRIANGLES_KEYS, ALONG, STATE, DSTATE, DECAYS };

// ---- the chain ---------------------------------------------------------------------------------

typedef rows_of_state wide_rows[WIDE];

// Decays of a chunk, the 32 columns of this warp: a lane has two, of eight tokens.
template <class E, class R> __device__ void put_decays(float *shrink, const R &from, int col0) {
    const int lane = now((int)threadIdx.x % WARP), col = col0 + lane % 16 * 2;
    const int first = lane / 16 * (T / 2);
    raw_pair<E> w[T / 2];
#pragma unroll
    for (int i = 0; i < T / 2; i++) w[i] = raw_of(from, spread(first + i, col));
    float2 sum = make_float2(0, 0), upto[T / 2];
#pragma unroll
    for (int i = 0; i < T / 2; i++) {
        const float2 x = w[i].wide();
        sum.x -= c0 * log2_e * quick_sigmoid(x.x); // powers of two
        sum.y -= c0 * log2_e * quick_sigmoid(x.y);
        upto[i] = sum;
    }
    float2 ahead = make_float2(__shfl_sync(0xffffffffu, sum.x, lane % 16),
                               __shfl_sync(0xffffffffu, sum.y, lane % 16));
    if (!first) ahead = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < T / 2; i++)
        put_pair(shrink + spread(first + i, col), power2(ahead.x + upto[i].x),
                 power2(ahead.y + upto[i].y));
}

// S' at a chunk's end becomes that times decay, for others too.
template <class E, bool NEAR>
__device__ void scale(wide_rows &G, memory<E, NEAR> &s, const float *shrink, int row0) {
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const int col = 16 * j + 2 * (int)(threadIdx.x & 3);
        const float2 left = pair_at(shrink + spread(T - 1, col)),
                     right = pair_at(shrink + spread(T - 1, col + 8));
#pragma unroll
        for (int m = 0; m < WIDE; m++) {
            scale_columns(G[m][j], left, right);
            store_a(s.dstate, row0 + 16 * m, 16 * j, a_of_sum(G[m][j]));
        }
    }
}

// Where the chunk before this one begins, its state, and that of the one before; NULL: none.
struct ahead {
    size_t at;
    const float *chunk, *beyond;
};

template <class E, bool NEAR>
__device__ void go_chain(wide_rows &G, memory<E, NEAR> &s, const wkv7_args &a, int row0, int turn,
                         ahead next) {
    wide_sum du = {}, g = {};
#pragma unroll 1
    for (int j = 0; j < N; j += 16) {
        const frag b = b_of_turned(s.b, 0, j);
        multiply(du[0], a_of(s.dstate, row0, j), b, du[1], a_of(s.dstate, row0 + 16, j), b);
    }
    __syncthreads(); // the triangles
    const frag rb = b_of(s.rb, 0, 0), solve = b_of(s.solve, 0, 0);
    const frag_of<splits<E>> dy[] = {a_of_turned(dy_of(s, turn), 0, row0),
                                     a_of_turned(dy_of(s, turn), 0, row0 + 16)};
    multiply(du[0], dy[0], rb, du[1], dy[1], rb);
    multiply(g[0], a_of_sum(du[0]), solve, g[1], a_of_sum(du[1]), solve);
    const frag gamma[] = {a_of_sum(g[0]), a_of_sum(g[1])};
#pragma unroll
    for (int m = 0; m < WIDE; m++) store_a(s.g, row0 + 16 * m, 0, gamma[m]);
    group_arrive(GAMMA, 2 * PAIR);
    group_arrive(GAMMA_READS, 2 * PAIR);
    if constexpr (NEAR) {
        if (next.chunk) ask_mine(s.rows[turn ^ 1].x[X_W], input_at<E>(a, 0, X_W), a, next.at, row0);
        asked();
    }
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag r = b_of(s.r, 0, 16 * j), x = b_of(s.a, 0, 16 * j);
        multiply(G[0][j], dy[0], r, G[1][j], dy[1], r);
        multiply(G[0][j], gamma[0], x, G[1][j], gamma[1], x);
    }
    group_arrive(ALONG, 3 * PAIR); // r̂ was read
    if (next.chunk) {
        wait_for_asked<0>();
        __syncwarp();
        put_decays<E>(s.shrink[turn ^ 1], input_of(s, a, next.at, turn ^ 1, X_W), row0);
        group_barrier(DECAYS, PAIR);
    }
    group_barrier(DSTATE, 4 * PAIR);
    if (!next.chunk) return;
    scale(G, s, s.shrink[turn ^ 1], row0);
}

// ---- the other ways ----------------------------------------------------------------------------

template <class E, bool NEAR>
__device__ void go_values(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int row0, int turn,
                          ahead next) {
    const auto &v = v_of(s, turn);
    const auto &dy = dy_of(s, turn);
    wide_sum x = {}, u = {}, dv = {};
#pragma unroll 1
    for (int j = 0; j < N; j += 16) {
        const frag xa = b_of_turned(s.a, 0, j);
        multiply(x[0], a_of(s.state, row0, j), xa, x[1], a_of(s.state, row0 + 16, j), xa);
    }
    __syncthreads(); // the triangles
    const frag ak = b_of_turned(s.ak, 0, 0), solve = b_of_turned(s.solve, 0, 0);
    multiply(x[0], a_of_turned(v, 0, row0), ak, x[1], a_of_turned(v, 0, row0 + 16), ak);
    multiply(u[0], a_of_sum(x[0]), solve, u[1], a_of_sum(x[1]), solve);
#pragma unroll
    for (int m = 0; m < WIDE; m++) store_a(s.u, row0 + 16 * m, 0, a_of_sum(u[m]));
    group_arrive(U_KEYS, 2 * PAIR);
    group_barrier(GAMMA, 2 * PAIR); // and U, among ourselves
    if (row0)
        triangle_gradients(
            s.rb, s.drk, [&](int i) { return a_of(dy, 0, i); }, s.u, v, false);
    else
        triangle_gradients(
            s.dab, s.dak, [&](int i) { return a_of_turned(s.g, i, 0); }, s.u, v, true);
    group_arrive(DTRIANGLES, 2 * PAIR);
    group_arrive(DTRIANGLES_KEYS, 2 * PAIR);
    if constexpr (NEAR) {
        ask_mine(s.once[ONE_DV], (const E *)a.du + U_V * a.R * a.C, a, at, row0);
        asked();
    }
#pragma unroll 1
    for (int j = 0; j < N; j += 16) {
        const frag k = a_of(s.k, 0, j);
        multiply(dv[0], k, b_of_turned(s.dstate, row0, j), dv[1], k,
                 b_of_turned(s.dstate, row0 + 16, j));
    }
    group_arrive(DSTATE, 4 * PAIR);
    const frag rk = a_of_turned(s.rk, 0, 0), turned_ak = a_of_turned(s.ak, 0, 0);
    multiply(dv[0], rk, b_of(dy, 0, row0), dv[1], rk, b_of(dy, 0, row0 + 16));
    multiply(dv[0], turned_ak, b_of_turned(s.g, row0, 0), dv[1], turned_ak,
             b_of_turned(s.g, row0 + 16, 0));
    wait_for_asked<0>();
    __syncwarp();
    const auto result = result_of(s, a, at, turn, U_V);
    each_pair<raw_pair<E>> was;
    load_wide(was, result, row0);
    each_of_wide(row0, [&](int m, int n, int half, int, int) {
        const float2 x = was[m][n][half].wide();
        set_raw(was[m][n][half], x.x + dv[m][n][2 * half], x.y + dv[m][n][2 * half + 1]);
    });
    store_wide(result, was, row0);
    if constexpr (NEAR)
        if (next.chunk) ask_rows(s.rows[turn ^ 1], a, next.at);
    if (next.beyond) bring_near<E>(a, next.at - (size_t)T * a.C, next.beyond);
    asked();
}

// dr as far as it comes from the state; and Σ of S ⊙ S' down the columns, which is the diagonal of
// a product.
template <class E, bool NEAR>
__device__ void read_state(wide_sum &dr, memory<E, NEAR> &s, int col0, int turn) {
    wide_sum edge = {};
#pragma unroll 1
    for (int i = 0; i < N; i += 16) {
        const auto dy = a_of(dy_of(s, turn), 0, i);
        const frag state[] = {b_of(s.state, i, col0), b_of(s.state, i, col0 + 16)};
        multiply(dr[0], dy, state[0], dr[1], dy, state[1]);
        multiply(edge[0], a_of_turned(s.state, i, col0), b_of(s.dstate, i, col0), edge[1],
                 a_of_turned(s.state, i, col0 + 16), b_of(s.dstate, i, col0 + 16));
    }
    const int lane = (int)(threadIdx.x % WARP), g = lane >> 2;
#pragma unroll
    for (int m = 0; m < WIDE; m++)
        if (g >> 1 == (lane & 3)) {
            s.edge[0][col0 + 16 * m + g] = g & 1 ? edge[m][0][1] : edge[m][0][0];
            s.edge[0][col0 + 16 * m + 8 + g] = g & 1 ? edge[m][1][3] : edge[m][1][2];
        }
}

// 1 where a token is not before another one: times it, sums over a token and those behind it.
__device__ frag_of<false> behind() {
    const uint32_t one = 0x3f80, both = 0x3f803f80; // bf16
    const int lane = (int)(threadIdx.x % WARP), g = lane >> 2, t = 2 * (lane & 3);
    const uint32_t part = (t >= g ? one : 0) | (t + 1 >= g ? one << 16 : 0);
    return {{part, 0, both, part}};
}

// dω, from the sums of what a column's tokens give it, and a ⊙ da.
template <class E, bool NEAR>
__device__ void put_decay_gradient(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn,
                                   const wide_sum &sum, const wide_sum &own, int col0) {
    const auto result = result_of(s, a, at, turn, U_W);
    each_pair<raw_pair<E>> w;
    load_wide(w, input_of(s, a, at, turn, X_W), col0);
    float2 edge[WIDE][2][2];
#pragma unroll
    for (int m = 0; m < WIDE; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                edge[m][n][i] =
                    pair_at(&s.edge[i][col0 + 16 * m + 8 * n + 2 * (int)(threadIdx.x & 3)]);
    each_of_wide(col0, [&](int m, int n, int half, int, int) {
        const float2 x = w[m][n][half].wide(), state = edge[m][n][0], keys = edge[m][n][1];
        const int e = 2 * half;
        float2 slope;
        quick_sigmoid(x.x, &slope.x);
        quick_sigmoid(x.y, &slope.y);
        set_raw(w[m][n][half], -c0 * slope.x * (sum[m][n][e] - own[m][n][e] + (state.x + keys.x)),
                -c0 * slope.y * (sum[m][n][e + 1] - own[m][n][e + 1] + (state.y + keys.y)));
    });
    store_wide(result, w, col0);
}

template <class E, bool NEAR>
__device__ void go_reads(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int col0, int turn) {
    triangle(col0 ? s.ak : s.rb, col0 ? s.a : s.r, col0 ? s.k : s.b, col0);
    if constexpr (NEAR) {
        ask_mine(s.once[ONE_DR], a.dr, a, at, col0);
        asked();
    }
    __syncthreads();
    wide_sum dr = {}, da = {};
    read_state(dr, s, col0, turn);
    group_arrive(DSTATE, 4 * PAIR);
    group_barrier(GAMMA_READS, 2 * PAIR);
#pragma unroll 1
    for (int i = 0; i < N; i += 16) {
        const frag gamma = a_of_turned(s.g, i, 0); // reading the state again beats spilling it
        multiply(da[0], gamma, b_of(s.state, i, col0), da[1], gamma, b_of(s.state, i, col0 + 16));
    }
    group_arrive(STATE, 2 * PAIR);
    group_barrier(DTRIANGLES, 2 * PAIR);
    {
        const frag rb = a_of(s.rb, 0, 0), ab = a_of(s.dab, 0, 0), rk = a_of(s.drk, 0, 0),
                   ak = a_of(s.dak, 0, 0);
#pragma unroll
        for (int m = 0; m < WIDE; m++) {
            const frag b = b_of(s.b, 0, col0 + 16 * m), k = b_of(s.k, 0, col0 + 16 * m);
            multiply(dr[m], rb, b, da[m], ab, b);
            multiply(dr[m], rk, k, da[m], ak, k);
        }
    }
    wait_for_asked<0>();
    __syncwarp();
    // From here on dr is r̂ ⊙ dr̂ + â ⊙ dâ, and da is â ⊙ dâ.
    const auto dr_result = result_of(s, a, at, turn, DR),
               da_result = result_of(s, a, at, turn, U_A);
    each_pair<raw_pair<E>> r, x, was;
    each_pair<float2> before, after;
    load_wide(was, dr_result, col0);
    load_wide(r, input_of(s, a, at, turn, X_R), col0);
    load_wide(x, input_of(s, a, at, turn, X_A), col0);
    each_of_wide(col0, [&](int m, int n, int half, int i, int previous) {
        before[m][n][half] = shrink_before(s.shrink[turn], previous);
        after[m][n][half] = pair_at(s.shrink[turn] + i);
    });
    each_of_wide(col0, [&](int m, int n, int half, int, int) {
        float *const pr = &dr[m][n][2 * half], *const pa = &da[m][n][2 * half];
        const float2 old = was[m][n][half].wide(), xr = r[m][n][half].wide(),
                     xa = x[m][n][half].wide();
        const float2 gr = times(make_float2(pr[0], pr[1]), after[m][n][half]);
        const float2 ga = times(make_float2(pa[0], pa[1]), before[m][n][half]);
        set_raw(was[m][n][half], old.x + gr.x, old.y + gr.y);
        set_raw(x[m][n][half], ga.x, ga.y);
        pa[0] = xa.x * ga.x, pa[1] = xa.y * ga.y;
        pr[0] = fmaf(xr.x, gr.x, pa[0]), pr[1] = fmaf(xr.y, gr.y, pa[1]);
    });
    store_wide(dr_result, was, col0);
    store_wide(da_result, x, col0);
    group_barrier(ALONG, 3 * PAIR); // nobody reads r̂ any more: what is summed up takes its place
    each_pair<float2> less;
    each_of_wide(col0, [&](int m, int n, int half, int i, int) {
        less[m][n][half] = pair_at(along_of(s) + i);
    });
#pragma unroll
    for (int m = 0; m < WIDE; m++) {
        each_of_sum([&](int n, int half, int, int) {
            const float2 x = less[m][n][half];
            dr[m][n][2 * half] -= x.x, dr[m][n][2 * half + 1] -= x.y;
        });
        store_a(s.r, 0, col0 + 16 * m, a_of_sum(dr[m]));
    }
    __syncwarp();
    wide_sum sum = {};
    multiply(sum[0], behind(), b_of(s.r, 0, col0), sum[1], behind(), b_of(s.r, 0, col0 + 16));
    put_decay_gradient(s, a, at, turn, sum, da, col0);
}

// A lane's b, k and e^-A.
template <class E> struct keys_of_chunk {
    each_pair<raw_pair<E>> b, k;
    each_pair<float2> grow;

    template <bool NEAR>
    __device__ keys_of_chunk(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn,
                             int col0) {
        load_wide(b, input_of(s, a, at, turn, X_B), col0);
        load_wide(k, input_of(s, a, at, turn, X_K), col0);
        each_of_wide(col0, [&](int m, int n, int half, int i, int) {
            grow[m][n][half] = reciprocal(pair_at(s.shrink[turn] + i));
        });
    }
};

// What keys have given to the state behind the chunk is what they read of its gradient.
template <class E, bool NEAR>
__device__ void edge_of_keys(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn,
                             const wide_sum &db, const wide_sum &dk, int col0) {
    const keys_of_chunk<E> x(s, a, at, turn, col0);
    float2 given[WIDE][2] = {};
    each_of_wide(col0, [&](int m, int n, int half, int, int) {
        const float *const gb = &db[m][n][2 * half], *const gk = &dk[m][n][2 * half];
        const float2 xb = x.b[m][n][half].wide(), xk = x.k[m][n][half].wide();
        const float2 by = x.grow[m][n][half];
        given[m][n].x += by.x * fmaf(xb.x, gb[0], xk.x * gk[0]);
        given[m][n].y += by.y * fmaf(xb.y, gb[1], xk.y * gk[1]);
    });
#pragma unroll
    for (int m = 0; m < WIDE; m++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int lane = (int)(threadIdx.x % WARP);
            float2 sum = given[m][n];
#pragma unroll
            for (int d = 4; d < WARP; d *= 2) {
                sum.x += __shfl_xor_sync(0xffffffffu, sum.x, d);
                sum.y += __shfl_xor_sync(0xffffffffu, sum.y, d);
            }
            if (lane < 4) put_pair(&s.edge[1][col0 + 16 * m + 8 * n + 2 * lane], sum.x, sum.y);
        }
}

template <class E, bool NEAR>
__device__ void go_keys(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int col0, int turn,
                        ahead next) {
    if (!col0) triangle(s.rk, s.r, s.k, false);
    if constexpr (NEAR) {
        ask_mine(s.once[ONE_DK], (const E *)a.du + U_K * a.R * a.C, a, at, col0);
        asked();
    }
    __syncthreads();
    wide_sum db = {}, dk = {};
    group_barrier(U_KEYS, 2 * PAIR);
#pragma unroll 1
    for (int i = 0; i < N; i += 16) {
        const frag u = a_of_turned(s.u, i, 0);
        const auto v = a_of(v_of(s, turn), 0, i);
        const frag dstate[] = {b_of(s.dstate, i, col0), b_of(s.dstate, i, col0 + 16)};
        multiply(db[0], u, dstate[0], db[1], u, dstate[1]);
        multiply(dk[0], v, dstate[0], dk[1], v, dstate[1]);
    }
    group_arrive(DSTATE, 4 * PAIR);
    edge_of_keys(s, a, at, turn, db, dk, col0);
    group_barrier(DTRIANGLES_KEYS, 2 * PAIR); // and nobody reads Uᵀ any more
    {
        const frag ab = a_of_turned(s.dab, 0, 0), ak = a_of_turned(s.dak, 0, 0),
                   rb = a_of_turned(s.rb, 0, 0), rk = a_of_turned(s.drk, 0, 0);
#pragma unroll
        for (int m = 0; m < WIDE; m++) {
            const frag x = b_of(s.a, 0, col0 + 16 * m), r = b_of(s.r, 0, col0 + 16 * m);
            multiply(db[m], ab, x, dk[m], ak, x);
            multiply(db[m], rb, r, dk[m], rk, r);
        }
    }
    const keys_of_chunk<E> x(s, a, at, turn, col0);
    each_of_wide(col0, [&](int m, int n, int half, int i, int) {
        float *const gb = &db[m][n][2 * half], *const gk = &dk[m][n][2 * half];
        const float2 xb = x.b[m][n][half].wide(), xk = x.k[m][n][half].wide();
        const float2 by = x.grow[m][n][half];
        gb[0] *= by.x, gb[1] *= by.y, gk[0] *= by.x, gk[1] *= by.y;
        put_pair(along_of(s) + i, fmaf(xb.x, gb[0], xk.x * gk[0]), fmaf(xb.y, gb[1], xk.y * gk[1]));
    });
    group_arrive(ALONG, 3 * PAIR);
    wait_for_asked<0>(); // what dk is added to
    __syncwarp();
    each_pair<raw_pair<E>> was;
    const auto dk_result = result_of(s, a, at, turn, U_K),
               db_result = result_of(s, a, at, turn, U_B);
    load_wide(was, dk_result, col0);
    each_of_wide(col0, [&](int m, int n, int half, int, int) {
        const float2 old = was[m][n][half].wide();
        set_raw(was[m][n][half], old.x + dk[m][n][2 * half], old.y + dk[m][n][2 * half + 1]);
    });
    store_wide(dk_result, was, col0);
    each_of_wide(col0, [&](int m, int n, int half, int, int) {
        set_raw(was[m][n][half], db[m][n][2 * half], db[m][n][2 * half + 1]);
    });
    store_wide(db_result, was, col0);
    group_barrier(STATE, 2 * PAIR); // nor has the inverse been wanted since Γ and U are there
    if (next.chunk) ask_kept(s, a, next.at, next.chunk);
    asked();
}

// ---- a head of a span --------------------------------------------------------------------------

// What all do between one chunk and the next, in one place for those ways that keep nothing
// meanwhile.
template <class E>
__device__ __attribute__((noinline)) void turn_over(memory<E, true> &s, const places_out<E> out,
                                                    size_t at, int turn, bool first) {
    wait_for_asked<0>();
    __syncthreads(); // everybody is done with the chunk before, and this one is there
    if (!first) put_out(s, out, at, turn ^ 1);
    prepare(s, {}, 0, turn);
    __syncthreads();
}

// Chunks from last to first: all prepare them, then a pair of warps goes its way. Each has a loop
// of its own: what it KEEPS in registers is no concern of the others.
template <bool KEEPS, class E, bool NEAR, class F>
__device__ void each_chunk(memory<E, NEAR> &s, const wkv7_args &a, const place &p, int first,
                           int last, const F &go) {
    const size_t step = (size_t)T * a.C;
    for (int c = last; c >= first; c--) {
        const size_t at = p.at + c * step;
        const float *const state = p.chunks + c * p.chunk_step;
        const ahead next = {at - step, c > first ? state - p.chunk_step : nullptr,
                            c > first + 1 ? state - 2 * p.chunk_step : nullptr};
        const int turn = c & 1;
        if constexpr (NEAR && !KEEPS) {
            turn_over(s, places_of<E>(a), at + step, turn, c == last);
        } else {
            wait_for_asked<0>();
            __syncthreads();
            if constexpr (NEAR)
                if (c < last) put_out(s, places_of<E>(a), at + step, turn ^ 1);
            prepare(s, a, at, turn);
            __syncthreads();
        }
        go(at, turn, next);
    }
    if constexpr (NEAR) {
        __syncthreads();
        put_out(s, places_of<E>(a), p.at + first * step, first & 1);
    }
}

// The chain from S' at the last chunk's end, or NULL, to where it goes, if anywhere.
template <class E, bool NEAR>
__device__ void follow_chain(memory<E, NEAR> &s, const wkv7_args &a, const place &p, int first,
                             int last, int row0, const float *from, float *to) {
    const size_t end = p.at + (size_t)last * T * a.C;
    wide_rows G = {}; // S' at the chunk's end
    if constexpr (NEAR) {
        ask_mine(s.rows[last & 1].x[X_W], input_at<E>(a, 0, X_W), a, end, row0);
        asked();
        wait_for_asked<0>();
        __syncwarp();
    }
    put_decays<E>(s.shrink[last & 1], input_of(s, a, end, last & 1, X_W), row0);
    if (from)
#pragma unroll
        for (int m = 0; m < WIDE; m++)
            each_of_rows(G[m], row0 + 16 * m, [&](float &x, int at) { x = from[at]; });
    group_barrier(DECAYS, PAIR);
    scale(G, s, s.shrink[last & 1], row0);
    each_chunk<true>(s, a, p, first, last, [&](size_t, int turn, const ahead &next) {
        go_chain(G, s, a, row0, turn, next);
    });
    if (to)
#pragma unroll
        for (int m = 0; m < WIDE; m++)
            each_of_rows(G[m], row0 + 16 * m, [&](float &x, int at) { to[at] = x; });
}

// Blocks of a multiprocessor: two where there is room, as of Hopper's.
template <class E, bool NEAR> constexpr int blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
    return NEAR && !splits<E> ? 2 : 1;
#else
    return 1;
#endif
}

template <class E, bool NEAR>
__global__ void __launch_bounds__(ALL, (blocks<E, NEAR>()))
    backward(wkv7_args a, wkv7_segments cut) {
    begin_kernel();
    SHARED_BYTES(bytes);
    auto &s = *(memory<E, NEAR> *)bytes;
    const int head = (int)blockIdx.x / cut.count, segment = (int)blockIdx.x % cut.count;
    const place p = place_of(a, (size_t)head);
    const int chunks = p.len / T, first = segment * cut.chunks, way = (int)threadIdx.x / PAIR;
    const int last = (first + cut.chunks < chunks ? first + cut.chunks : chunks) - 1;
    const int mine = (int)threadIdx.x / WARP % 2 * 16 * WIDE; // first row or column of the warp
    if (last < first) return;
    if (way == CHAIN) {
        const float *from = last == chunks - 1 ? p.dout : end_of(cut, a, (size_t)head, segment);
        follow_chain(s, a, p, first, last, mine, from, segment ? nullptr : p.din);
    } else if (way == VALUES) {
        const size_t step = (size_t)T * a.C, end = p.at + last * step;
        if constexpr (NEAR) ask_rows(s.rows[last & 1], a, end);
        asked();
        if (last > first) bring_near<E>(a, end - step, p.chunks + (last - 1) * p.chunk_step);
        each_chunk<false>(s, a, p, first, last, [&](size_t at, int turn, const ahead &next) {
            go_values(s, a, at, mine, turn, next);
        });
    } else if (way == READS) {
        each_chunk<false>(s, a, p, first, last, [&](size_t at, int turn, const ahead &) {
            go_reads(s, a, at, mine, turn);
        });
    } else {
        ask_kept(s, a, p.at + (size_t)last * T * a.C, p.chunks + last * p.chunk_step);
        asked();
        each_chunk<false>(s, a, p, first, last, [&](size_t at, int turn, const ahead &next) {
            go_keys(s, a, at, mine, turn, next);
        });
    }
}

template <class E, bool NEAR> void start(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    launch_with(q, backward<E, NEAR>, dim3((unsigned)(a.H * cut.count), (unsigned)a.spans), ALL,
                sizeof(memory<E, NEAR>), a, cut);
}

template <class E> void start_backward(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    static_assert(sizeof(memory<E, false>) <= 99 << 10, "what the smallest devices have");
    if (most_shared() >= sizeof(memory<E, true>))
        start<E, true>(q, a, cut);
    else
        start<E, false>(q, a, cut);
}

} // namespace

void wkv7_chunk_backward(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    if (a.narrow)
        start_backward<uint16_t>(q, a, cut);
    else
        start_backward<float>(q, a, cut);
}
