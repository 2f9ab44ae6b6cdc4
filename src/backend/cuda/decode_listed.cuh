// ffn.value of wide models in decode.cu: of its rows those that relu² has left wanted, nine of ten
// of which are not with trained weights. They do not come through the ring, for they are not known
// before the inputs; while they are on their way the ring takes in the next layer's weights. Lists,
// and the order of sums, are those of listed.cu in its narrow blocks, and so are the bits.
#pragma once
#include "decode.cuh"
#include "listed.cuh"

#ifdef HOPPER

// Which of sixteen numbers lies at a place of an input row (row_pitch).
__device__ static inline int number_at(int place) {
    return (place >> 2 & 3) * 2 + (place >> 1 & 1) * 8 + (place & 1);
}

// Where in its stretch of inputs a warp has numbers that are not zero, in the order of k. Returns
// how many.
__device__ static inline int list_wanted(uint16_t *list, const char *x, int have) {
    const int lane = (int)threadIdx.x & 31;
    int count = 0;
#pragma unroll 1
    for (int at = 16 * lane; at - 16 * lane < have; at += 16 * 32) {
        uint2 w[4] = {};
        int n = 0;
        if (at < have)
#pragma unroll
            for (int i = 0; i < 4; i++) w[i] = *(const uint2 *)(x + 2 * at + 8 * i);
        const auto each = [&](auto f) {
#pragma unroll
            for (int i = 0; i < 8; i++) { // pairs
                const int place = i % 4 * 4 + i / 4 * 2;
                const uint32_t pair = i < 4 ? w[i % 4].x : w[i % 4].y;
                f(place, pair & 0x7fff), f(place + 1, pair & 0x7fff0000);
            }
        };
        each([&](int, uint32_t bits) { n += bits != 0; });
        int upto = n;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int before = __shfl_up_sync(0xffffffffu, upto, d);
            if (lane >= d) upto += before;
        }
        int to = count + upto - n;
        each([&](int place, uint32_t bits) {
            if (bits) list[to++] = (uint16_t)(at + place);
        });
        count += __shfl_sync(0xffffffffu, upto, 31);
    }
    __syncwarp();
    return count;
}

// This warp's sums of a slice of 16 outputs into `to`. w: the slice in the stretch's first row;
// line: bytes from row to row.
__device__ static inline void add_wanted(float *to, const uint16_t *list, int count, const char *x,
                                         const char *w, int line) {
    enum { LANES = 16 / LANE, AHEAD = 4 };
    float sum[LANE] = {};
    w += (int)threadIdx.x % LANES * 16;
    add_rows<LANES, AHEAD>(
        sum, list, count, w, (uint32_t)line,
        [](uint32_t at) { return (at & ~15u) + (uint32_t)number_at((int)at & 15); },
        [=](uint32_t at) { return bf16_value(*(const uint16_t *)(x + 2 * at)); });
    put_total<LANES>(to, sum);
}

#endif // HOPPER
