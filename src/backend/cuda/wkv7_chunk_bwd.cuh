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

template <class E> struct wide_values { // v and dy of f32, split
    tile<T, N> v, dy;
};
template <> struct wide_values<uint16_t> {};

template <class E> struct memory : wide_values<E> {
    tile<T, N> r, a, b, k;                       // r̂ = r e^A …, as in forward
    tile<T, T> ak, rk, rb, solve, dab, dak, drk; // drb takes the place of rb
    tile<N, N> state, dstate; // S at the chunk's begin; S' at its end times decay; rows × columns
    tile<N, T> u, g;        // Uᵀ and Γᵀ; when gradients of triangles are there, along for Uᵀ
    float edge[2][N];       // what of dω comes from beyond the chunk
    float shrink[2][T * N]; // e^A of each token; for this chunk and for the next one
    chunk_rows<E> rows[2];
    alignas(16) E once[ONE_COUNT][T * N];
};

template <class E> __device__ const auto &v_of(const memory<E> &s, int turn) {
    if constexpr (splits<E>)
        return s.v;
    else
        return s.rows[turn].v;
}
template <class E> __device__ const auto &dy_of(const memory<E> &s, int turn) {
    if constexpr (splits<E>)
        return s.dy;
    else
        return s.rows[turn].dy;
}

template <class E> constexpr int piece = 16 / sizeof(E); // numbers

// Where row t's number lies in x, once, shrink and along.
__device__ inline int spread(int t, int col) {
    return t * N + (col ^ (t & 7) * 8);
}

// b̂ ⊙ db̂ + k̂ ⊙ dk̂ in place of Uᵀ.
template <class E> __device__ float *along_of(memory<E> &s) {
    static_assert(sizeof s.u == T * N * sizeof(float), "there is room");
    return (float *)&s.u;
}

// ---- copies ------------------------------------------------------------------------------------

// A chunk's tensors of E but ω, by a pair of warps.
template <class E> __device__ void ask_rows(chunk_rows<E> &to, const wkv7_args &a, size_t at) {
    const int tid = now((int)threadIdx.x % PAIR);
    const size_t plane = a.R * a.C;
    const E *const u = (const E *)a.u + at;
    const E *const from[] = {u + U_A * plane, u + U_B * plane, (const E *)a.r + at,
                             u + U_K * plane, u + U_V * plane, (const E *)a.dy + at};
    static_assert(X_W == 4, "the last of x");
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
            ask_bytes<16>(place, from[v] + (uint32_t)t * (uint32_t)a.C + col);
        }
}

// The state and the inverse that forward kept, by a pair of warps.
template <class E>
__device__ inline void ask_kept(memory<E> &s, const wkv7_args &a, size_t at, const float *chunk) {
    const int tid = now((int)threadIdx.x % PAIR);
#pragma unroll
    for (int i = 0; i < N * N / 4; i += PAIR) {
        const int e = i + tid, m = e / 8, step = m / 8 % STEPS, block = m / (8 * STEPS);
        const int row = 16 * block + 8 * (m & 1) + e % 8, col = 16 * step + 8 * (m >> 1 & 1);
        ask_bytes<16>(&(m & 4 ? s.state.lo : s.state.hi)[word_at<N>(row, col)], chunk + 4 * e);
    }
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

template <class E> __device__ const E *w_of(const wkv7_args &a) {
    return (const E *)a.u + U_W * a.R * a.C;
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

// Where the gradients are when a chunk is done: du's planes, then dr.
template <class E>
__device__ const E *result_at(const memory<E> &s, const chunk_rows<E> &rows, int v) {
    switch (v) {
    case U_W: return rows.x[X_W];
    case U_K: return s.once[ONE_DK];
    case U_V: return s.once[ONE_DV];
    case U_A: return rows.x[X_A];
    case U_B: return rows.x[X_B];
    default: return s.once[ONE_DR];
    }
}

// A row of theirs after the other, by all threads: as many tensors at once as these make rows of.
template <class E>
__device__ inline void put_out(const memory<E> &s, const chunk_rows<E> &rows, const wkv7_args &a,
                               size_t at) {
    enum { PIECES = N / piece<E>, ONCE = ALL / (T * PIECES) };
    static_assert(ONCE == 1 || ONCE == 2, "f32 or bf16");
    const int e = now((int)threadIdx.x % (T * PIECES)), t = e / PIECES, col = e % PIECES * piece<E>;
    const bool second = threadIdx.x >= T * PIECES;
    const size_t to = at + (size_t)t * a.C + col, plane = a.R * a.C;
#pragma unroll
    for (int v = 0; v <= U_B + 1; v += ONCE) {
        const E *from = result_at(s, rows, v);
        E *base = v <= U_B ? (E *)a.du + v * plane : (E *)a.dr;
        if (second) {
            from = result_at(s, rows, v + 1);
            base = v + 1 <= U_B ? (E *)a.du + (v + 1) * plane : (E *)a.dr;
        }
        copy_piece(base + to, from + spread(t, col));
    }
}

// ---- a chunk's matrices ------------------------------------------------------------------------

// e^E of a token, whose predecessor's place is given; the first has none.
__device__ inline float2 shrink_before(const float *shrink, int previous) {
    return previous < 0 ? make_float2(1, 1) : pair_at(shrink + previous);
}

// A warp's eight columns: a lane has two of them, of tokens g and g + 8.
template <class E> __device__ void prepare(memory<E> &s, int turn) {
    const int lane = now((int)threadIdx.x % WARP), g = lane >> 2;
    const int col = 8 * (int)(threadIdx.x / WARP) + 2 * (lane & 3);
    const chunk_rows<E> &rows = s.rows[turn];
    raw_pair<E> x[2][X_W], v[2], dy[2];
    float2 before[2], after[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int t = g + 8 * half, i = spread(t, col);
#pragma unroll
        for (int n = 0; n < X_W; n++) x[half][n] = raw_at<E>(rows.x[n], i);
        before[half] = shrink_before(s.shrink[turn], t ? spread(t - 1, col) : -1);
        after[half] = pair_at(s.shrink[turn] + i);
        if constexpr (splits<E>) v[half] = raw_at<E>(rows.v, i), dy[half] = raw_at<E>(rows.dy, i);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int t = g + 8 * half;
        const float2 grow = reciprocal(after[half]);
        put(s.r, t, col, times(x[half][X_R].wide(), after[half]));
        put(s.a, t, col, times(x[half][X_A].wide(), before[half]));
        put(s.b, t, col, times(x[half][X_B].wide(), grow));
        put(s.k, t, col, times(x[half][X_K].wide(), grow));
        if constexpr (splits<E>) {
            put(s.v, t, col, v[half].wide());
            put(s.dy, t, col, dy[half].wide());
        }
    }
}

// Of two triangles: left(i), what has met them, times U and V, 16 rows of the state each.
template <class A, class V>
__device__ inline void triangle_gradients(tile<T, T> &with_u, tile<T, T> &with_v, const A &left,
                                          const tile<N, T> &u, const V &v, bool strict) {
    float du[2][4] = {}, dv[2][4] = {};
#pragma unroll
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
template <class E> __device__ void load_wide(each_pair<raw_pair<E>> &to, const E *from, int col0) {
    each_of_wide(col0,
                 [&](int m, int n, int half, int i, int) { to[m][n][half] = raw_at<E>(from, i); });
}

} // namespace
