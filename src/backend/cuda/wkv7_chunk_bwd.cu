// The chunked recurrence, backward: the front group takes the gradient of the state through a
// chunk, the back group makes again what forward had, but for the inverse, which forward kept.
// Gradients of the inputs are sums over all rows and go through shared memory. Who only gives
// arrives at a barrier and goes on.
#include "wkv7_chunk.cuh"

namespace {

enum { GAMMA = 1, FRONT, DTRIANGLES, BACK, ALONG }; // barriers

template <class E> struct backward_memory {
    inputs<E> in;
    rates rate;
    tile<T, N, splits<E>> dy;
    tile<N, N> state, dstate; // S at the chunk's begin [column][row]; ∂ℓ/∂S at its end times decay
    tile<N, T> u, g;          // Uᵀ and Γᵀ
    tile<T, T> dab, dak, drb, drk;
    float edge[2][4]
              [N]; // Σ of S ⊙ ∂ℓ/∂S down a warp's rows, at this chunk's end and the one's before
    float along[T][N + 8]; // b̂ ⊙ db̂ + k̂ ⊙ dk̂
};

// x, but nothing made of it can be made earlier and held in registers.
__device__ int now(int x) {
#ifndef CUDA_EMU
    asm volatile("" : "+r"(x));
#endif
    return x;
}

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

// ---- the next chunk, as it lies in memory -------------------------------------------------------

// 16 bytes on their way to shared memory until stage_wait.
__device__ void stage(void *to, const void *from) {
#ifdef CUDA_EMU
    std::memcpy(to, from, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
#endif
}

__device__ void stage_wait() {
#ifndef CUDA_EMU
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Where number `col` of a row lies. Rows that lanes read at once are two apart: their pieces of 16
// bytes are interchanged, or all would lie in the same banks.
template <class E> __device__ int staged_at(int row, int col) {
    enum { PIECE = 16 / sizeof(E), PIECES = N / PIECE };
    return row * N + ((col / PIECE ^ row / 2 * (PIECES / 8)) * PIECE + col % PIECE);
}

// Tensors of E take the place of what a chunk is done with last: (6,T,N) that of dstate and u, dy
// and then the inverse that of g, the state that of the state.
template <class E> struct staged {
    E *in, *dy;
    float *solve, *state;

    __device__ explicit staged(backward_memory<E> &s)
        : in((E *)&s.dstate), dy((E *)&s.g), solve((float *)(dy + T * N)),
          state((float *)&s.state) {
        typedef backward_memory<E> m;
        static_assert(sizeof(m::dstate) + sizeof(m::u) >= 6 * T * N * sizeof(E) &&
                          sizeof(m::g) >= T * N * sizeof(E) + T * T * sizeof(float),
                      "what is staged has room");
    }

    // One row after the other by the threads of a group.
    __device__ void rows(E *to, const E *from, size_t C) const {
        enum { PIECE = 16 / sizeof(E), PIECES = N / PIECE };
        const int tid = now((int)threadIdx.x % GROUP);
#pragma unroll
        for (int i = 0; i < T * PIECES / GROUP; i++) {
            const int e = tid + i * GROUP, row = e / PIECES, col = e % PIECES * PIECE;
            stage(to + staged_at<E>(row, col), from + (uint32_t)row * (uint32_t)C + col);
        }
    }

    __device__ void begin_back(const wkv7_args &a, size_t at) const {
#pragma unroll 1
        for (int v = 0; v <= U_B; v++)
            rows(in + v * T * N, (const E *)a.u + v * a.R * a.C + at, a.C);
        rows(in + (U_B + 1) * T * N, (const E *)a.r + at, a.C);
    }

    __device__ void begin_front(const wkv7_args &a, size_t at, const float *from) const {
        const int tid = now((int)threadIdx.x);
        rows(dy, (const E *)a.dy + at, a.C);
        if (tid < T * 4) stage(solve + 4 * tid, a.saved + at + tid / 4 * a.C + tid % 4 * 4);
#pragma unroll
        for (int i = 0; i < N * N / 4 / GROUP; i++)
            stage(state + 4 * (tid + i * GROUP), from + 4 * (tid + i * GROUP));
    }
};

// This chunk's inputs, gradients of outputs, and state.
template <class E> struct chunk_loads {
    part<E, 8> mine;
    raw_pair<E> dy[part<E, 8>::TOKENS];
    float4 state[N * N / 4 / THREADS];
    float2 solve; // of the first half of the threads

    __device__ explicit chunk_loads(const staged<E> &from) : mine((int)(threadIdx.x >> 5)) {
#pragma unroll
        for (int i = 0; i < mine.TOKENS; i++) {
            const int at = staged_at<E>(mine.first + i, mine.col);
#pragma unroll
            for (int v = 0; v <= U_B; v++) mine.u[v][i] = raw_at<E>(from.in, v * T * N + at);
            mine.r[i] = raw_at<E>(from.in, (U_B + 1) * T * N + at);
            dy[i] = raw_at<E>(from.dy, at);
        }
#pragma unroll
        for (int i = 0; i < N * N / 4 / THREADS; i++)
            state[i] = ((const float4 *)from.state)[threadIdx.x + i * THREADS];
        if (threadIdx.x < T * T / 2) solve = pair_at(from.solve + 2 * threadIdx.x);
    }

    __device__ void prepare(backward_memory<E> &s) const {
        mine.prepare(s.in, &s.rate);
#pragma unroll
        for (int i = 0; i < mine.TOKENS; i++) put_raw(s.dy, mine.first + i, mine.col, dy[i]);
#pragma unroll
        for (int i = 0; i < N * N / 4 / THREADS; i++) {
            const int e = (int)threadIdx.x + i * THREADS, row = e / (N / 4), col = e % (N / 4) * 4;
            s.state.put(row, col, state[i].x, state[i].y);
            s.state.put(row, col + 2, state[i].z, state[i].w);
        }
        if (threadIdx.x < T * T / 2)
            s.in.solve.put((int)threadIdx.x / (T / 2), (int)threadIdx.x % (T / 2) * 2, solve.x,
                           solve.y);
    }
};

// Has what a chunk reads brought near, a row of a tensor by each thread: memory is waited for
// longer than anything here takes.
template <class E> __device__ void fetch_ahead(const wkv7_args &a, size_t at, const float *state) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int tid = now((int)threadIdx.x), row = tid % T;
    const size_t first = at + row * a.C, plane = a.R * a.C;
    const void *from;
    unsigned size = N * sizeof(E);
    switch (tid / T) {
    case U_W:
    case U_K:
    case U_V:
    case U_A:
    case U_B: from = (const E *)a.u + tid / T * plane + first; break;
    case 5: from = (const E *)a.r + first; break;
    case 6: from = (const E *)a.dy + first; break;
    case 7: from = (const E *)a.dr + first; break;
    case 8: from = (const E *)a.du + U_K * plane + first; break;
    case 9: from = (const E *)a.du + U_V * plane + first; break;
    case 10: from = a.saved + first, size = T * sizeof(float); break;
    case 11: size = N * N / T * sizeof(float), from = state + row * (N * N / T); break;
    default: return;
    }
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)),
                 "r"(size));
#else
    (void)a, (void)at, (void)state;
#endif
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

// What is there before something is added to it: asked for early, it comes from far.
template <class E> struct old_pairs {
    raw_pair<E> pair[2][2];

    __device__ void load(const void *base, size_t at, size_t C) {
        each_of_sum([&](int n, int half, int t, int col) {
            pair[n][half] = raw_at<E>(base, at + (size_t)t * C + col);
        });
    }
};

// The gradients of b and k in 16 columns, from what of them comes from the state; leaves
// b̂ ⊙ db̂ + k̂ ⊙ dk̂.
template <class E>
__device__ void finish_keys(backward_memory<E> &s, const wkv7_args &a, size_t at, int col0,
                            float (&db)[2][4], float (&dk)[2][4], const old_pairs<E> &old) {
    const inputs<E> &in = s.in;
    const size_t plane = a.R * a.C;
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
    group_arrive(ALONG, THREADS);
    each_of_sum([&](int n, int half, int t, int c) {
        const int col = col0 + c, e = 2 * half;
        const size_t to = at + (size_t)t * a.C + col;
        const float2 sum = pair_at(&s.rate.sum[t + 1][col]);
        const float2 grow = make_float2(power2(-sum.x), power2(-sum.y));
        const float2 was = old.pair[n][half].wide();
        put_pair((E *)a.du + U_K * plane + to, fmaf(dk[n][e], grow.x, was.x),
                 fmaf(dk[n][e + 1], grow.y, was.y));
        put_pair((E *)a.du + U_B * plane + to, db[n][e] * grow.x, db[n][e + 1] * grow.y);
    });
}

// The gradients of r, a and ω in 16 columns, from dr and da as far as they come from the state.
template <class E>
__device__ void finish_rest(backward_memory<E> &s, const wkv7_args &a, size_t at, int col0,
                            float (&dr)[2][4], float (&da)[2][4], const float (&edge)[4][N],
                            const old_pairs<E> &old) {
    const inputs<E> &in = s.in;
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
        const float2 was = old.pair[n][half].wide();
        put_pair((E *)a.dr + to, fmaf(dr[n][e], power2(after.x), was.x),
                 fmaf(dr[n][e + 1], power2(after.y), was.y));
        put_pair((E *)a.du + U_A * plane + to, da[n][e] * power2(before.x),
                 da[n][e + 1] * power2(before.y));
    });
    group_barrier(ALONG, THREADS);
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
        put_pair((E *)a.du + U_W * plane + at + (size_t)t * a.C + col,
                 -slope.x * (all[n][half].x - own[n][half].x + end.x),
                 -slope.y * (all[n][half].y - own[n][half].y + end.y));
    });
}

// What the triangles of this chunk owe, one for each warp of a group.
template <class E> __device__ void triangle_gradients(backward_memory<E> &s, int warp) {
    const inputs<E> &in = s.in;
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

// A chunk, the front group: ∂ℓ/∂S, G, and what comes from it.
// next: the state at the begin of the chunk before this one, or NULL.
template <class E>
__device__ void retreat(rows_of_state &G, backward_memory<E> &s, const wkv7_args &a, size_t at,
                        int row0, int turn, const float *next) {
    const inputs<E> &in = s.in;
    float du[2][4] = {}, dv[2][4] = {}, g[2][4] = {};
    const size_t dv_at = U_V * a.R * a.C + at + row0;
    raw_pair<E> old_dv[2][2];
    each_of_channels(dv, [&](int n, int half, int row, int t, float2) {
        old_dv[n][half] = raw_at<E>(a.du, dv_at + (size_t)t * a.C + row);
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
    const auto dy = a_of_turned(s.dy, 0, row0);
    multiply(du, dy, b_of(in.rb, 0, 0));
    multiply(g, a_of_sum(du), b_of(in.solve, 0, 0));
    const frag gamma = a_of_sum(g);
    store_a(s.g, row0, 0, gamma);
    group_arrive(GAMMA, THREADS);
    multiply(dv, dy, b_of(in.rk, 0, 0));
    multiply(dv, gamma, b_of(in.ak, 0, 0));
    each_of_channels(dv, [&](int n, int half, int row, int t, float2 pair) {
        const float2 was = old_dv[n][half].wide();
        put_pair((E *)a.du + dv_at + (size_t)t * a.C + row, was.x + pair.x, was.y + pair.y);
    });
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        multiply(G[j], dy, b_of(in.r, 0, 16 * j));
        multiply(G[j], gamma, b_of(in.a, 0, 16 * j));
        float state[2][4];
        sum_of_a(state, a_of_turned(s.state, 16 * j, row0));
        sum_products(&s.edge[turn ^ 1][row0 / 16][16 * j], state, G[j]);
    }
    group_barrier(FRONT, GROUP);
    old_pairs<E> old;
    old.load(a.dr, at + row0, a.C);
    float dr[2][4] = {}, da[2][4] = {}, other_dr[2][4] = {}, other_da[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag state = b_of_turned(s.state, row0, i);
        multiply(i & 16 ? other_dr : dr, a_of(s.dy, 0, i), state);
        multiply(i & 16 ? other_da : da, a_of_turned(s.g, i, 0), state);
    }
    add(dr, other_dr);
    add(da, other_da);
    group_barrier(DTRIANGLES, THREADS); // and the state and g were read
    if (next) staged<E>(s).begin_front(a, at - T * a.C, next);
    finish_rest(s, a, at, row0, dr, da, s.edge[turn], old);
}

// A chunk, the back group. end: 1: behind this chunk ∂ℓ/∂S is given, -1: it is zero, 0: there is
// another chunk.
template <class E>
__device__ void retreat_beside(backward_memory<E> &s, const wkv7_args &a, size_t at, int row0,
                               int turn, int end, bool next) {
    const inputs<E> &in = s.in;
    float x[2][4] = {}, u[2][4] = {};
    triangles(s.in, row0 / 16);
    sum_of_four(
        x, [&](int i) { return a_of_turned(s.state, i, row0); },
        [&](int i) { return b_of_turned(in.a, 0, i); });
    __syncthreads();
    const auto v = a_of_turned(in.v, 0, row0);
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
    group_barrier(GAMMA, THREADS); // and U, among ourselves
    old_pairs<E> old;
    old.load(a.du, U_K * a.R * a.C + at + row0, a.C);
    triangle_gradients(s, row0 / 16);
    group_arrive(DTRIANGLES, THREADS);
    float db[2][4] = {}, dk[2][4] = {}, other_db[2][4] = {}, other_dk[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag dstate = b_of(s.dstate, i, row0);
        multiply(i & 16 ? other_db : db, a_of_turned(s.u, i, 0), dstate);
        multiply(i & 16 ? other_dk : dk, a_of(in.v, 0, i), dstate);
    }
    add(db, other_db);
    add(dk, other_dk);
    group_barrier(BACK, GROUP); // and dstate and u were read
    if (next) staged<E>(s).begin_back(a, at - T * a.C);
    finish_keys(s, a, at, row0, db, dk, old);
}

template <class E> __global__ void __launch_bounds__(THREADS, 2) backward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    backward_memory<E> &s = *(backward_memory<E> *)bytes;
    const place p = place_of(a, blockIdx.x);
    const int chunks = p.len / T, row0 = 16 * ((int)(threadIdx.x >> 5) % 4);
    if (!chunks) return;
    const bool front = threadIdx.x < GROUP;
    const size_t step = (size_t)T * a.C;
    rows_of_state G = {}; // ∂ℓ/∂S at the chunk's end
    if (front && p.dout) each_of_rows(G, row0, [&](float &x, int at) { x = p.dout[at]; });
    const staged<E> from(s);
    if (front)
        from.begin_front(a, p.at + (chunks - 1) * step, p.chunks + (chunks - 1) * p.chunk_step);
    else
        from.begin_back(a, p.at + (chunks - 1) * step);
    for (int c = chunks - 1; c >= 0; c--) {
        const size_t at = p.at + c * step;
        const float *next = c ? p.chunks + (c - 1) * p.chunk_step : nullptr;
        stage_wait();
        __syncthreads(); // everybody is done with the chunk before
        const chunk_loads<E> loads(from);
        if (next) fetch_ahead<E>(a, at - step, next);
        __syncthreads(); // everybody has loaded
        loads.prepare(s);
        __syncthreads();
        if (front)
            retreat(G, s, a, at, row0, c & 1, next);
        else
            retreat_beside(s, a, at, row0, c & 1, c + 1 < chunks ? 0 : p.dout ? 1 : -1, next);
    }
    if (front && p.din) each_of_rows(G, row0, [&](float &x, int at) { p.din[at] = x; });
}

} // namespace

void wkv7_chunk_backward(struct queue *q, const wkv7_args &a) {
    const dim3 grid(a.H, a.spans);
    if (a.narrow)
        launch_with(q, backward<uint16_t>, grid, THREADS, sizeof(backward_memory<uint16_t>), a);
    else
        launch_with(q, backward<float>, grid, THREADS, sizeof(backward_memory<float>), a);
}
