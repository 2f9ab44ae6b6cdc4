// Rows in registers: what norm.cu and norm_mix.cu share, so that a row has the same bits in both.
#pragma once
#include "moments.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

// A row is GROUP warps' (1 or all of a block), NV float4 a thread.
template <int GROUP> __device__ static float row_sum(float x, float *scratch) {
    if constexpr (GROUP == 1) return warp_sum(x);
    return block_sum<float, WARPS>(x, scratch);
}

template <int GROUP, int NV> struct row {
    several<4> v[NV];

    __device__ static size_t column(int i) {
        const int t = GROUP == 1 ? threadIdx.x & 31 : threadIdx.x;
        return (size_t)(i * 32 * GROUP + t) * 4;
    }
    __device__ void take(const float *x, size_t C) {
#pragma unroll
        for (int i = 0; i < NV; i++) v[i] = column(i) < C ? load<4>(x + column(i)) : several<4>{};
    }
    template <class T> __device__ void give(T *y, size_t C) const {
#pragma unroll
        for (int i = 0; i < NV; i++)
            if (column(i) < C) store<4>(y + column(i), v[i]);
    }
};

#define EACH_OF_ROW(i, c, C)                                                                       \
    _Pragma("unroll") for (int i = 0; i < NV; i++) if (const size_t c = R::column(i); c < (C))     \
        _Pragma("unroll") for (int e = 0; e < 4; e++)

template <int GROUP, int NV>
__device__ static float2 row_moments(const row<GROUP, NV> &x, float first, size_t C, float eps,
                                     float *scratch) {
    using R = row<GROUP, NV>;
    const auto each = [&](auto f, float) { EACH_OF_ROW(i, c, C) f(x.v[i][e]); };
    return moments_of(each, first, (float)C, eps,
                      [&](float sum) { return row_sum<GROUP>(sum, scratch); });
}

// GO(group, numbers a thread) by the width of a row.
#define BY_WIDTH(C, GO)                                                                            \
    do {                                                                                           \
        if ((C) <= 256)                                                                            \
            GO(1, 2);                                                                              \
        else if ((C) <= 512)                                                                       \
            GO(1, 4);                                                                              \
        else if ((C) <= 768)                                                                       \
            GO(1, 6);                                                                              \
        else if ((C) <= WARP_ROW)                                                                  \
            GO(1, 8);                                                                              \
        else                                                                                       \
            GO(WARPS, 4);                                                                          \
    } while (0)

enum { WIDEST = THREADS * 16 };
