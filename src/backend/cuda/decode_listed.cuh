// ffn.value of wide models in decode.cu: of its rows those that relu² has left wanted, nine of ten
// of which are not with trained weights. They do not come through the ring, for they are not known
// before the inputs; while they are on their way the ring takes in the next layer's weights. Lists,
// and the order of sums, are those of listed.cu in its narrow blocks, and so are the bits.
#pragma once
#include "decode.cuh"

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
    enum { LANES = 2, ROWS = 32 / LANES, AHEAD = 4, EACH = 8 }; // outputs of a lane
    const int lane = (int)threadIdx.x & 31, first = lane / LANES;
    float sum[EACH] = {};
    w += lane % LANES * 16;
#pragma unroll 1
    for (int base = 0; base < count; base += ROWS * AHEAD) {
        uint32_t row[AHEAD][EACH / 2];
        float by[AHEAD];
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            const int i = base + s * ROWS + first, at = i < count ? list[i] : 0;
            const int k = (at & ~15) + number_at(at & 15);
            load_once<EACH / 2>(row[s], w + (size_t)k * (size_t)line, i < count);
            by[s] = i < count ? bf16_value(*(const uint16_t *)(x + 2 * at)) : 0;
        }
#pragma unroll
        for (int s = 0; s < AHEAD; s++)
#pragma unroll
            for (int e = 0; e < EACH / 2; e++) {
                sum[2 * e] = fmaf(bf16_low(row[s][e]), by[s], sum[2 * e]);
                sum[2 * e + 1] = fmaf(bf16_high(row[s][e]), by[s], sum[2 * e + 1]);
            }
    }
#pragma unroll
    for (int d = LANES; d < 32; d *= 2)
#pragma unroll
        for (int e = 0; e < EACH; e++) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], d);
    if (lane < LANES)
#pragma unroll
        for (int e = 0; e < EACH; e++) to[EACH * lane + e] = sum[e];
}

#endif // HOPPER
