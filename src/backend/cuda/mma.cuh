// Products on tensor cores at nearly f32's precision: a number is the sum of two bf16, the high and
// the low, which leaves an error of 2^-17 at most; of the four products of two such numbers the
// one of both low parts is left out. Sums are f32.
//
// A warp multiplies A (16,16) by B (16,16), two products of the instruction m16n8k16, whose layout
// this follows. Lane 4g + q holds of a sum d[n][e]: row g + 8(e / 2), column 8n + 2q + e % 2.
#pragma once
#include "device.cuh"

// A or B: a lane's eight numbers, in pairs. What bf16 holds as it is has no lower halves.
template <bool IN_TWO> struct frag_of {
    static constexpr bool in_two = true;
    uint32_t hi[4], lo[4];
};
template <> struct frag_of<false> {
    static constexpr bool in_two = false;
    uint32_t hi[4];
};
typedef frag_of<true> frag;

// Two numbers as pairs of bf16, x in the lower halves.
__device__ static inline void split(float x, float y, uint32_t &hi, uint32_t &lo) {
    hi = bf16_pair(x, y);
    lo = bf16_pair(x - bf16_low(hi), y - bf16_high(hi));
}

__device__ static inline float2 joined(uint32_t hi, uint32_t lo) {
    return make_float2(bf16_low(hi) + bf16_low(lo), bf16_high(hi) + bf16_high(lo));
}

// Where a matrix's number at (row, col), col even, lies in shared memory, in words of two. Eight
// rows that are read at once lie in different banks: of 64 columns each row has 16 bytes to spare,
// of 16 those of every other four rows are interchanged.
template <int COLS> __host__ __device__ constexpr int words_of_rows(int rows) {
    return rows * (COLS / 2 + (COLS > 16 ? 4 : 0));
}
template <int COLS> __device__ static inline int word_at(int row, int col) {
    static_assert(COLS == 16 || COLS == 64, "kinds of matrices");
    if (COLS == 16) return row * 8 + (((col / 8) ^ (row / 4)) & 1) * 4 + col % 8 / 2;
    return words_of_rows<COLS>(row) + col / 2;
}

// A matrix in shared memory, pairs along the row.
template <int ROWS, int COLS, bool IN_TWO = true> struct tile {
    static constexpr bool in_two = true;
    alignas(16) uint32_t hi[words_of_rows<COLS>(ROWS)], lo[words_of_rows<COLS>(ROWS)];

    __device__ static int at(int row, int col) { return word_at<COLS>(row, col); }
    __device__ const uint32_t *high(int row, int col) const { return &hi[at(row, col)]; }
    __device__ const uint32_t *low(int row, int col) const { return &lo[at(row, col)]; }
    // The numbers at (row, col) and (row, col + 1); col is even.
    __device__ void put(int row, int col, float x, float y) {
        split(x, y, hi[at(row, col)], lo[at(row, col)]);
    }
    __device__ float2 get(int row, int col) const {
        return joined(hi[at(row, col)], lo[at(row, col)]);
    }
};

template <int ROWS, int COLS> struct tile<ROWS, COLS, false> {
    static constexpr bool in_two = false;
    alignas(16) uint32_t hi[words_of_rows<COLS>(ROWS)];

    __device__ static int at(int row, int col) { return word_at<COLS>(row, col); }
    __device__ const uint32_t *high(int row, int col) const { return &hi[at(row, col)]; }
};

// ---- the instructions --------------------------------------------------------------------------

#ifdef CUDA_EMU
// For each number e of a lane's sum: f(e, word of A, word of B) for the words that meet in it.
template <class F>
static inline void emu_words(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const F &f) {
    static uint32_t all_a[EMU_WARPS][32][4], all_b[EMU_WARPS][32][2]; // of all lanes
    const int warp = emu_warp(), lane = (int)threadIdx.x & 31, g = lane >> 2;
    for (int i = 0; i < 4; i++) all_a[warp][lane][i] = a[i];
    all_b[warp][lane][0] = b0;
    all_b[warp][lane][1] = b1;
    __syncwarp();
    for (int e = 0; e < 4; e++) {
        const int column = 2 * (lane & 3) + (e & 1);
        for (int from = 0; from < 4; from++)
            for (int half = 0; half < 2; half++) // k of this lane's first words, and of its second
                f(e, all_a[warp][4 * g + from][2 * half + (e >> 1)],
                  all_b[warp][4 * column + from][half]);
    }
    __syncwarp();
}
#endif

// d (16,8) += A (16,16) · B (16,8)
__device__ static inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CUDA_EMU
    double sum[4] = {};
    emu_words(a, b0, b1, [&](int e, uint32_t u, uint32_t v) {
        sum[e] += (double)bf16_value((uint16_t)u) * (double)bf16_value((uint16_t)v);
        sum[e] += (double)bf16_value((uint16_t)(u >> 16)) * (double)bf16_value((uint16_t)(v >> 16));
    });
    for (int e = 0; e < 4; e++) d[e] = (float)((double)d[e] + sum[e]);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// d (16,8) += A (16,32) · B (32,8) of integers, bytes without and with a sign: four k a word, and
// 16 further on as many.
__device__ static inline void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CUDA_EMU
    emu_words(a, b0, b1, [&](int e, uint32_t u, uint32_t v) {
        for (int byte = 0; byte < 32; byte += 8)
            d[e] += (int)(u >> byte & 0xff) * (int)(int8_t)(v >> byte);
    });
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8 × 8 matrices; lane 8m + r brings the address of row r of matrix m. Lane 4g + q gets row g,
// columns 2q and 2q + 1 of each; transposed: column g, rows 2q and 2q + 1.
template <bool TRANSPOSED>
__device__ static inline void load_matrices(uint32_t (&to)[4], const uint32_t *row) {
#ifdef CUDA_EMU
    static const uint32_t *all[EMU_WARPS][32]; // of all lanes
    emu_touch(row);
    const int warp = emu_warp(), lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
    all[warp][lane] = row;
    __syncwarp();
    for (int m = 0; m < 4; m++) {
        if (TRANSPOSED) {
            const uint32_t first = all[warp][8 * m + 2 * q][g / 2] >> 16 * (g & 1);
            const uint32_t second = all[warp][8 * m + 2 * q + 1][g / 2] >> 16 * (g & 1);
            to[m] = (first & 0xffff) | second << 16;
        } else {
            to[m] = all[warp][8 * m + g][q];
        }
    }
    __syncwarp();
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
#endif
}

// The way back of load_matrices, not transposed.
__device__ static inline void store_matrices(uint32_t *row, const uint32_t (&from)[4]) {
#ifdef CUDA_EMU
    static uint32_t *all[EMU_WARPS][32]; // of all lanes
    emu_touch(row);
    const int warp = emu_warp(), lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
    all[warp][lane] = row;
    __syncwarp();
    for (int m = 0; m < 4; m++) all[warp][8 * m + g][q] = from[m];
    __syncwarp();
#elif __CUDA_ARCH__ < 900
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    const int lane = (int)(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int m = 0; m < 4; m++)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(__shfl_sync(0xffffffffu, at, 8 * m + g) +
                                                     4 * q),
                     "r"(from[m])
                     : "memory");
#else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(row)),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
#endif
}

// ---- operands ----------------------------------------------------------------------------------

// The four quarters of 16 × 16 at (row, col) of a tile. ACROSS: first along the row, then down.
template <bool ACROSS, bool TRANSPOSED, class T>
__device__ static inline frag_of<T::in_two> load_quarters(const T &t, int row, int col) {
    const int lane = (int)(threadIdx.x & 31), m = lane >> 3;
    row += (lane & 7) + 8 * (ACROSS ? m >> 1 : m & 1);
    col += 8 * (ACROSS ? m & 1 : m >> 1);
    frag_of<T::in_two> f;
    load_matrices<TRANSPOSED>(f.hi, t.high(row, col));
    if constexpr (T::in_two) load_matrices<TRANSPOSED>(f.lo, t.low(row, col));
    return f;
}

// A and B whose element (0, 0) is t[row][col]: as the matrix lies there, or its transpose.
template <class T> __device__ static inline frag_of<T::in_two> a_of(const T &t, int row, int col) {
    return load_quarters<false, false>(t, row, col);
}
template <class T>
__device__ static inline frag_of<T::in_two> a_of_turned(const T &t, int row, int col) {
    return load_quarters<true, true>(t, row, col);
}
template <class T> __device__ static inline frag_of<T::in_two> b_of(const T &t, int row, int col) {
    return load_quarters<false, true>(t, row, col);
}
template <class T>
__device__ static inline frag_of<T::in_two> b_of_turned(const T &t, int row, int col) {
    return load_quarters<true, false>(t, row, col);
}

// A sum as the next product's A: it lies in the same lanes.
__device__ static inline frag a_of_sum(const float (&d)[2][4]) {
    frag f;
#pragma unroll
    for (int i = 0; i < 4; i++)
        split(d[i >> 1][2 * (i & 1)], d[i >> 1][2 * (i & 1) + 1], f.hi[i], f.lo[i]);
    return f;
}

// To a tile, as the rows and columns of A from (row, col) on.
template <class T> __device__ static inline void store_a(T &t, int row, int col, const frag &f) {
    const int lane = (int)(threadIdx.x & 31);
    const int at = t.at(row + (lane & 15), col + 8 * (lane >> 4));
    store_matrices(&t.hi[at], f.hi);
    store_matrices(&t.lo[at], f.lo);
}

__device__ static inline void add(float (&d)[2][4], const float (&x)[2][4]) {
#pragma unroll
    for (int e = 0; e < 8; e++) d[e / 4][e % 4] += x[e / 4][e % 4];
}

// Of the products of halves that d += A · B consists of, one, for both halves of d's columns.
enum { LOW_A, LOW_B, HIGH };
template <int WHICH, class A, class B>
__device__ static inline void multiply_part(float (&d)[2][4], const A &a, const B &b) {
#pragma unroll
    for (int n = 0; n < 2; n++)
        if constexpr (WHICH == HIGH) {
            mma(d[n], a.hi, b.hi[2 * n], b.hi[2 * n + 1]);
        } else if constexpr (WHICH == LOW_A) {
            if constexpr (A::in_two) mma(d[n], a.lo, b.hi[2 * n], b.hi[2 * n + 1]);
        } else {
            if constexpr (B::in_two) mma(d[n], a.hi, b.lo[2 * n], b.lo[2 * n + 1]);
        }
}

// d (16,16) += A · B
template <class A, class B>
__device__ static inline void multiply(float (&d)[2][4], const A &a, const B &b) {
    multiply_part<LOW_A>(d, a, b);
    multiply_part<LOW_B>(d, a, b);
    multiply_part<HIGH>(d, a, b);
}

// The same with two sums in turns: a sum can be added to every 24 clocks, the instruction begin
// every 6.
template <class A, class B, class X, class Y>
__device__ static inline void multiply(float (&d)[2][4], const A &a, const B &b, float (&e)[2][4],
                                       const X &x, const Y &y) {
    multiply_part<LOW_A>(d, a, b);
    multiply_part<LOW_A>(e, x, y);
    multiply_part<LOW_B>(d, a, b);
    multiply_part<LOW_B>(e, x, y);
    multiply_part<HIGH>(d, a, b);
    multiply_part<HIGH>(e, x, y);
}
