// What products of few rows on tensor cores share (tensor.cu, integers.cu): how they are cut, and
// what becomes of the sums.
//
// STRETCHES warps make a block, one stretch of k each, of 8·VEC outputs: lane 4g + t takes the
// outputs VEC·g… and four k of every sixteen, 4t…, in one load each. They are the A of the product,
// two of its rows a pair of outputs; x is B, TILES · 8 rows of it. So a weight is read once for all
// rows, straight into the registers it is used from, and how many rows there are changes no bit of
// any.
#pragma once
#include "mma.cuh"
#include "products.cuh"
#include "vector.cuh"

enum { STRETCHES = 16, STEP = 16, TILE_ROWS = 8, FEW_THREADS = STRETCHES * 32 };

// k of a stretch; those of a unit belong together.
static inline int stretch_of(size_t K, int unit) {
    const size_t all = STRETCHES * (size_t)unit;
    return (int)((K + all - 1) / all) * unit;
}

// Four numbers of which `left` are there; the others are zero.
__device__ static inline float4 inputs(const float *x, int left, bool whole) {
    if (whole) return left > 0 ? *(const float4 *)x : make_float4(0, 0, 0, 0);
    return make_float4(left > 0 ? x[0] : 0, left > 1 ? x[1] : 0, left > 2 ? x[2] : 0,
                       left > 3 ? x[3] : 0);
}
__device__ static inline bool has_fours(const product_args &p) {
    return ((uintptr_t)p.x | p.xr * sizeof(float) | p.K * sizeof(float)) % 16 == 0;
}

// A block's sums, from row0 and output o0 on.
template <int VEC, int TILES> struct few_sums {
    enum { WIDTH = 8 * VEC, PITCH = WIDTH + 4 }; // other banks

    float acc[VEC / 2][TILES][4];
    float before[TILES]; // of the output that this thread will end, of every eight rows

    __device__ static int column() { return threadIdx.x % WIDTH; }
    __device__ static int row() { return threadIdx.x / WIDTH; }
    __device__ static bool in(const product_args &p, size_t row0, size_t o0, int n) {
        return row() < TILE_ROWS && o0 + column() < p.O && row0 + row() + TILE_ROWS * n < p.R;
    }
    __device__ static size_t at(const product_args &p, size_t row0, size_t o0, int n) {
        return (row0 + row() + TILE_ROWS * n) * p.O + o0 + column();
    }

    // What is added to is on its way while the weights are.
    __device__ void begin(const product_args &p, size_t row0, size_t o0) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
            before[n] = p.add && in(p, row0, o0, n) ? p.add[at(p, row0, o0, n)] : 0;
#pragma unroll
        for (int v = 0; v < VEC / 2; v++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[v][n][e] = 0;
    }

    // Eight rows' sums of this warp: part[row][output].
    __device__ void put(float (*part)[PITCH], int n) const {
        const int lane = threadIdx.x & 31, o = VEC * (lane >> 2), row = 2 * (lane & 3);
#pragma unroll
        for (int v = 0; v < VEC / 2; v++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                *(float2 *)&part[row + i][o + 2 * v] = make_float2(acc[v][n][i], acc[v][n][2 + i]);
    }

    // Stretches, of len each, are added up in order.
    __device__ void end(const product_args &p, int len, size_t row0, size_t o0) const {
        __shared__ float part[STRETCHES][TILE_ROWS][PITCH];
        const int warp = threadIdx.x >> 5, K = (int)p.K;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            if (n) __syncthreads();
            if (warp * len < K) put(part[warp], n);
            __syncthreads();
            if (!in(p, row0, o0, n)) continue;
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STRETCHES; s++) sum += s * len < K ? part[s][row()][column()] : 0;
            p.y[at(p, row0, o0, n)] = activate(before[n] + sum, p.act);
        }
    }
};

// A block's part of a launch, by FEW of VEC and TILES: what needs no inputs before the kernel ahead
// has ended, then the rest.
template <class FEW, int VEC, int TILES>
__device__ static inline void multiply_part(const launch_list &a) {
    const int which = product_of_block(a);
    const product_args &p = a.list.p[which];
    const size_t row0 = blockIdx.y * (size_t)(TILES * TILE_ROWS);
    const size_t o0 = (blockIdx.x - a.first_block[which]) * (size_t)(8 * VEC);
    FEW all;
    all.begin(p, a.stretch[which], row0, o0);
    begin_kernel();
    all.run(p, a.stretch[which], row0, o0);
}

// Up to 8·VEC outputs of a product are a block's.
static inline dim3 few_blocks(launch_list *a, const product_list &list, int vec, int tiles,
                              int unit) {
    const int grid = lay_out_blocks(a, &list, 8 * vec);
    for (int i = 0; i < MAX_PRODUCTS; i++)
        a->stretch[i] = i < list.n ? stretch_of(list.p[i].K, unit) : 0;
    return dim3(grid, blocks(list.p[0].R, (size_t)(tiles * TILE_ROWS)));
}
