// What the way back through chunks has in shared memory, and how it comes there and leaves it.
#pragma once
#include "wkv7_chunk.cuh"

#include <type_traits>

namespace {

enum { WARP = 32, PAIR = 2 * WARP, ALL = 8 * WARP, WIDE = 2 }; // WIDE: blocks of 16 a warp has
enum { X_A, X_B, X_R, X_K, X_W, X_COUNT };  // inputs, for this chunk and for the next one
enum { ONE_DK, ONE_DV, ONE_DR, ONE_COUNT }; // gradients that are added to

// What a chunk reads. Every eight numbers of a row are interchanged with others so that eight rows'
// lie in different banks (spread); v and dy of bf16 are matrices as they come.
template <class E> struct chunk_rows {
    typedef std::conditional_t<splits<E>, E[T * N], tile<T, N, false>> values;
    alignas(16) E x[X_COUNT][T * N];
    values v, dy;
};

// NEAR: what a chunk reads comes into shared memory ahead of time, and what it makes waits there.
// Else, for blocks that may have no more than 99 KB, both stay in global memory, where each lane
// loads and stores its own numbers.
template <class E, bool NEAR> struct wide_values { // v and dy, of f32 split
    tile<T, N, splits<E>> v, dy;
};
template <> struct wide_values<uint16_t, true> {};

template <class E, bool NEAR> struct near_rows {
    chunk_rows<E> rows[2];
    alignas(16) E once[ONE_COUNT][T * N];
};
template <class E> struct near_rows<E, false> {};

// A state as forward keeps it (KEPT_STEP): it is copied as it lies.
struct kept_state {
    static constexpr bool in_two = true;
    alignas(16) uint32_t word[N * N];

    __device__ static int at(int row, int col) {
        const int quarter = (row >> 3 & 1) + 2 * (col >> 3 & 1);
        return ((row >> 4) * STEPS + (col >> 4)) * KEPT_STEP + quarter * KEPT_MATRIX +
               (row & 7) * 4 + (col >> 1 & 3);
    }
    __device__ const uint32_t *high(int row, int col) const { return &word[at(row, col)]; }
    __device__ const uint32_t *low(int row, int col) const {
        return &word[at(row, col) + 4 * KEPT_MATRIX];
    }
};

template <class E, bool NEAR> struct memory : wide_values<E, NEAR>, near_rows<E, NEAR> {
    tile<T, N> r, a, b, k;                       // r̂ = r e^A …, as in forward
    tile<T, T> ak, rk, rb, solve, dab, dak, drk; // drb takes the place of rb
    kept_state state;                            // at the chunk's begin; rows × columns, like
    tile<N, N> dstate;                           // S' at its end times decay
    tile<N, T> u, g;        // Uᵀ and Γᵀ; when gradients of triangles are there, along for Uᵀ
    float edge[2][N];       // what of dω comes from beyond the chunk
    float shrink[2][T * N]; // e^A of each token; for this chunk and for the next one
};

template <class E, bool NEAR> __device__ const auto &v_of(const memory<E, NEAR> &s, int turn) {
    if constexpr (splits<E> || !NEAR)
        return s.v;
    else
        return s.rows[turn].v;
}
template <class E, bool NEAR> __device__ const auto &dy_of(const memory<E, NEAR> &s, int turn) {
    if constexpr (splits<E> || !NEAR)
        return s.dy;
    else
        return s.rows[turn].dy;
}

template <class E> constexpr int piece = 16 / sizeof(E); // numbers

// Where row t's number lies in x, once, shrink and along.
__device__ inline int spread(int t, int col) {
    return t * N + (col ^ (t & 7) * 8);
}

// A chunk's rows of a tensor in global memory; numbers go by where spread would put them.
template <class E> struct far_rows {
    E *first;
    size_t C;

    __device__ E *at(int i) const {
        const int t = i / N, col = i % N ^ (t & 7) * 8;
        return first + (uint32_t)t * (uint32_t)C + col;
    }
};

template <class E> __device__ raw_pair<E> raw_of(const E *rows, int i) {
    return raw_at<E>(rows, (size_t)i);
}
template <class E> __device__ raw_pair<E> raw_of(far_rows<E> rows, int i) {
    return raw_at<E>(rows.at(i), 0);
}
template <class E> __device__ void put_raw_at(E *rows, int i, raw_pair<E> x) {
    *(raw_pair<E> *)(rows + i) = x;
}
template <class E> __device__ void put_raw_at(far_rows<E> rows, int i, raw_pair<E> x) {
    *(raw_pair<E> *)rows.at(i) = x;
}
__device__ inline void set_raw(raw_pair<float> &p, float x, float y) {
    p.bits = make_float2(x, y);
}
__device__ inline void set_raw(raw_pair<uint16_t> &p, float x, float y) {
    p.bits = bf16_pair(x, y);
}

// b̂ ⊙ db̂ + k̂ ⊙ dk̂ in place of Uᵀ.
template <class E, bool NEAR> __device__ float *along_of(memory<E, NEAR> &s) {
    static_assert(sizeof s.u == T * N * sizeof(float), "there is room");
    return (float *)&s.u;
}

// ---- copies ------------------------------------------------------------------------------------

enum { X_V = X_COUNT, X_DY, DR = U_B + 1 }; // besides X_A …; besides planes of du

// Input X_… of the chunk at `at`.
template <class E> __device__ E *input_at(const wkv7_args &a, size_t at, int n) {
    const size_t plane = a.R * a.C;
    E *const u = (E *)a.u + at;
    switch (n) {
    case X_A: return u + U_A * plane;
    case X_B: return u + U_B * plane;
    case X_R: return (E *)a.r + at;
    case X_K: return u + U_K * plane;
    case X_W: return u + U_W * plane;
    case X_V: return u + U_V * plane;
    default: return (E *)a.dy + at;
    }
}

// A chunk's tensors of E but ω, by a pair of warps.
template <class E> __device__ void ask_rows(chunk_rows<E> &to, const wkv7_args &a, size_t at) {
    const int tid = now((int)threadIdx.x % PAIR);
    static_assert(X_W == X_COUNT - 1, "the last of x");
#pragma unroll
    for (int v = 0; v < X_W + 2; v++)
#pragma unroll
        for (int i = 0; i < T * N / piece<E>; i += PAIR) {
            const int e = i + tid, t = e / (N / piece<E>);
            const int col = e % (N / piece<E>)*piece<E>;
            void *place;
            if (v < X_W)
                place = &to.x[v][spread(t, col)];
            else if constexpr (splits<E>)
                place = &(v == X_W ? to.v : to.dy)[spread(t, col)];
            else
                place = &(v == X_W ? to.v : to.dy).hi[word_at<N>(t, col)];
            ask_bytes<16>(place, input_at<E>(a, at, v < X_W ? v : v + 1) +
                                     (uint32_t)t * (uint32_t)a.C + col);
        }
}

// The state and the inverse that forward kept, by a pair of warps.
template <class E, bool NEAR>
__device__ inline void ask_kept(memory<E, NEAR> &s, const wkv7_args &a, size_t at,
                                const float *chunk) {
    const int tid = now((int)threadIdx.x % PAIR);
    uint32_t *const to = s.state.word + 4 * tid;
    chunk += 4 * tid;
#pragma unroll
    for (int i = 0; i < N * N; i += 4 * PAIR) ask_bytes<16>(to + i, chunk + i);
    if (tid < WARP)
        each_of_inverse(tid, a.C, [&](bool low, int word, size_t from) {
            ask_bytes<16>(&(low ? s.solve.lo : s.solve.hi)[word], a.saved + at + from);
        });
}

// What only this warp wants, its columns of a tensor.
template <class E>
__device__ inline void ask_mine(E *to, const void *from, const wkv7_args &a, size_t at, int col0) {
    enum { PIECES = 16 * WIDE / piece<E> };
    const int lane = now((int)threadIdx.x % WARP);
#pragma unroll
    for (int i = 0; i < T * PIECES; i += WARP) {
        const int e = i + lane, t = e / PIECES;
        const int col = col0 + e % PIECES * piece<E>;
        ask_bytes<16>(&to[spread(t, col)], (const E *)from + at + (size_t)t * a.C + col);
    }
}

// Has all that a chunk reads brought near, by a pair of warps: memory is waited for longer than
// there is time between asking and wanting.
template <class E> __device__ void bring_near(const wkv7_args &a, size_t at, const float *chunk) {
    const int tid = now((int)threadIdx.x % PAIR), tensor = tid / T;
    const size_t plane = a.R * a.C, row = at + (size_t)(tid % T) * a.C;
    const E *const u = (const E *)a.u + row, *const du = (const E *)a.du + row;
    prefetch(u + tensor * plane); // ω, k, v, a
    prefetch(tensor == 0   ? u + U_B * plane
             : tensor == 1 ? (const E *)a.r + row
             : tensor == 2 ? (const E *)a.dy + row
                           : (const E *)a.dr + row);
    if (tensor < 2)
        prefetch(du + (tensor ? U_K : U_V) * plane);
    else if (tensor == 2)
        prefetch(a.saved + row);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!tid)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                         __cvta_generic_to_global(chunk)),
                     "n"(N * N * sizeof(float)));
#else
    prefetch(chunk + tid * 32);
    prefetch(chunk + (PAIR + tid) * 32);
#endif
}

// Where an input is, and where a gradient is when the chunk is done: du's planes, or dr.
template <class E, bool NEAR>
__device__ auto input_of(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn, int n) {
    if constexpr (NEAR)
        return (E *)s.rows[turn].x[n];
    else
        return far_rows<E>{input_at<E>(a, at, n), a.C};
}
template <class E> __device__ E *near_result(memory<E, true> &s, int turn, int v) {
    switch (v) {
    case U_W: return s.rows[turn].x[X_W];
    case U_K: return s.once[ONE_DK];
    case U_V: return s.once[ONE_DV];
    case U_A: return s.rows[turn].x[X_A];
    case U_B: return s.rows[turn].x[X_B];
    default: return s.once[ONE_DR];
    }
}
template <class E, bool NEAR>
__device__ auto result_of(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn, int v) {
    if constexpr (NEAR)
        return near_result(s, turn, v);
    else
        return far_rows<E>{(v == DR ? (E *)a.dr : (E *)a.du + v * a.R * a.C) + at, a.C};
}

// Where gradients go: planes of du, and dr.
template <class E> struct places_out {
    E *du, *dr;
    size_t plane;
    uint32_t C;
};
template <class E> __device__ places_out<E> places_of(const wkv7_args &a) {
    return {(E *)a.du, (E *)a.dr, a.R * a.C, (uint32_t)a.C};
}

// A row of the gradients after the other, by all threads: as many tensors at once as these make
// rows of.
template <class E>
__device__ inline void put_out(memory<E, true> &s, const places_out<E> &a, size_t at, int turn) {
    enum { PIECES = N / piece<E>, ONCE = ALL / (T * PIECES) };
    static_assert(ONCE == 1 || ONCE == 2, "f32 or bf16");
    const uint32_t e = now(threadIdx.x % (T * PIECES)), t = e / PIECES, col = e % PIECES * piece<E>;
    const bool second = threadIdx.x >= T * PIECES;
    const size_t to = at + t * a.C + col;
#pragma unroll
    for (int v = 0; v <= DR; v += ONCE) {
        const E *from = near_result(s, turn, v);
        E *base = v < DR ? a.du + v * a.plane : a.dr;
        if (second) {
            from = near_result(s, turn, v + 1);
            base = v + 1 < DR ? a.du + (v + 1) * a.plane : a.dr;
        }
        copy_piece(base + to, from + spread((int)t, (int)col));
    }
}

// ---- a chunk's matrices ------------------------------------------------------------------------

// e^E of a token, whose predecessor's place is given; the first has none.
__device__ inline float2 shrink_before(const float *shrink, int previous) {
    return previous < 0 ? make_float2(1, 1) : pair_at(shrink + previous);
}

// A number of v or dy, where it has to become part of a matrix.
template <class E, bool NEAR>
__device__ raw_pair<E> value_of(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn, int n,
                                int i) {
    if constexpr (NEAR)
        return raw_of((const E *)(n == X_V ? s.rows[turn].v : s.rows[turn].dy), i);
    else
        return raw_of(far_rows<E>{input_at<E>(a, at, n), a.C}, i);
}

// A warp's eight columns: a lane has two of them, of tokens g and g + 8. a: not for NEAR.
template <class E, bool NEAR>
__device__ void prepare(memory<E, NEAR> &s, const wkv7_args &a, size_t at, int turn) {
    constexpr bool copies = splits<E> || !NEAR;
    const int lane = now((int)threadIdx.x % WARP), g = lane >> 2;
    const int col0 = 8 * (int)(threadIdx.x / WARP), col = col0 + 2 * (lane & 3);
    raw_pair<E> x[2][X_W], v[2], dy[2];
    float2 before[2], after[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int t = g + 8 * half, i = spread(t, col);
        if constexpr (copies)
#pragma unroll
            for (int n = 0; n < X_W; n++) x[half][n] = raw_of(input_of(s, a, at, turn, n), i);
        before[half] = shrink_before(s.shrink[turn], t ? spread(t - 1, col) : -1);
        after[half] = pair_at(s.shrink[turn] + i);
        if constexpr (copies) {
            v[half] = value_of(s, a, at, turn, X_V, i);
            dy[half] = value_of(s, a, at, turn, X_DY, i);
        }
    }
    if constexpr (!copies) {
        const int piece = spread(lane & 15, col0);
#pragma unroll
        for (int n = 0; n < X_W; n += 2) { // two tensors at once
            uint32_t word[4];
            load_matrices<false>(word, (const uint32_t *)(s.rows[turn].x[n + (lane >> 4)] + piece));
#pragma unroll
            for (int i = 0; i < 4; i++) x[i & 1][n + (i >> 1)].bits = word[i];
        }
    }
    float2 y[X_W][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float2 grow = reciprocal(after[half]);
        y[X_R][half] = times(x[half][X_R].wide(), after[half]);
        y[X_A][half] = times(x[half][X_A].wide(), before[half]);
        y[X_B][half] = times(x[half][X_B].wide(), grow);
        y[X_K][half] = times(x[half][X_K].wide(), grow);
        if constexpr (copies) {
            put_raw(s.v, g + 8 * half, col, v[half]);
            put_raw(s.dy, g + 8 * half, col, dy[half]);
        }
    }
    tile<T, N> *const to[] = {&s.a, &s.b, &s.r, &s.k};
    static_assert(X_A == 0 && X_B == 1 && X_R == 2 && X_K == 3 && X_W == 4, "as they are listed");
    const int at16 = word_at<N>(lane & 15, col0);
#pragma unroll
    for (int n = 0; n < X_W; n++) {
        uint32_t word[4]; // both halves' high parts, then their low ones
#pragma unroll
        for (int half = 0; half < 2; half++)
            split(y[n][half].x, y[n][half].y, word[half], word[2 + half]);
        store_matrices((lane >> 4 ? to[n]->lo : to[n]->hi) + at16, word);
    }
}

// Of two triangles: left(i), what has met them, times U and V, 16 rows of the state each.
template <class A, class V>
__device__ inline void triangle_gradients(tile<T, T> &with_u, tile<T, T> &with_v, const A &left,
                                          const tile<N, T> &u, const V &v, bool strict) {
    float du[2][4] = {}, dv[2][4] = {};
#pragma unroll 1
    for (int i = 0; i < N; i += 16) {
        const auto x = left(i);
        multiply(du, x, b_of(u, i, 0), dv, x, b_of_turned(v, 0, i));
    }
    store_lower(with_u, du, strict);
    store_lower(with_v, dv, strict);
}

typedef float wide_sum[WIDE][2][4];
template <class X> using each_pair = X[WIDE][2][2];

// f(block of 16, n, half, where the pair lies as spread has it, and where the token's before, which
// is negative for the first) for each pair of a lane's.
template <class F> __device__ void each_of_wide(int col0, const F &f) {
    const int lane = now((int)threadIdx.x % WARP), g = lane >> 2, col = col0 + 2 * (lane & 3);
    const int here = spread(g, col), previous = spread(g + 7, col);
#pragma unroll
    for (int m = 0; m < WIDE; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int j = 16 * m + 8 * n;
                const int before = half ? previous ^ j : g ? (previous ^ j) - 8 * N : -1;
                f(m, n, half, (here ^ j) + half * 8 * N, before);
            }
}

// All that is loaded is asked for before any of it is waited for.
template <class E, class R>
__device__ void load_wide(each_pair<raw_pair<E>> &to, const R &from, int col0) {
    each_of_wide(col0,
                 [&](int m, int n, int half, int i, int) { to[m][n][half] = raw_of(from, i); });
}
template <class E, class R>
__device__ void store_wide(const R &to, const each_pair<raw_pair<E>> &from, int col0) {
    each_of_wide(col0,
                 [&](int m, int n, int half, int i, int) { put_raw_at(to, i, from[m][n][half]); });
}

// Of bf16 in shared memory eight columns are a piece, and eight rows of those go there at once. (To
// load them so, too, is no faster.)
__device__ inline int piece_of_lane(int col0) {
    const int lane = now((int)threadIdx.x % WARP);
    return spread(lane & 15, col0 + 8 * (lane >> 4));
}
__device__ inline void store_wide(uint16_t *to, const each_pair<raw_pair<uint16_t>> &from,
                                  int col0) {
    __syncwarp(); // a lane stores where another one may have loaded
    const int at = piece_of_lane(col0);
#pragma unroll
    for (int m = 0; m < WIDE; m++) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = from[m][i >> 1][i & 1].bits;
        store_matrices((uint32_t *)(to + (at ^ 16 * m)), word);
    }
}

} // namespace
