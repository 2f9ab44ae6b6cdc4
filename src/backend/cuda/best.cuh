// The largest of many numbers, and where it is.
#pragma once
#include "device.cuh"

struct best {
    float value;
    int index;
};

// The first of the largest; NaN is never it, unless there is nothing else.
__device__ static inline bool better(best a, best b) {
    if (isnan(a.value) || isnan(b.value))
        return isnan(a.value) && isnan(b.value) ? a.index < b.index : isnan(b.value);
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Of a block of whole warps; all threads get it. Ends with everybody past the scratch, one a warp.
__device__ static inline best block_best(best x, best *scratch) {
    for (int round = 0; round < 2; round++) {
        for (int d = 16; d; d >>= 1) {
            const best y = {__shfl_xor_sync(0xffffffffu, x.value, d),
                            __shfl_xor_sync(0xffffffffu, x.index, d)};
            if (better(y, x)) x = y;
        }
        if (round) break;
        if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
        __syncthreads();
        x = scratch[(threadIdx.x & 31) % (blockDim.x >> 5)];
    }
    __syncthreads();
    return x;
}
