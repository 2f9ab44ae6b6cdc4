// A warp's walk over the rows of a matrix that a list names, eight outputs a lane: what listed.cu
// and decode_listed.cuh share, so that a row has the same bits in both.
#pragma once
#include "vector.cuh"

enum { LANE = 8 }; // outputs of a lane, 16 bytes

// LANES lanes have a row; the 32 / LANES of the warp that go together have every so many-th of the
// list. Adds to this lane's outputs, which begin at w in row 0, rows `line` bytes apart, AHEAD of
// them on their way at once. Of an entry row_of says which row it is and input_of what it is times.
template <int LANES, int AHEAD, class Row, class Input>
__device__ static inline void add_rows(float (&sum)[LANE], const uint16_t *list, int count,
                                       const char *w, uint32_t line, Row row_of, Input input_of) {
    enum { ROWS = 32 / LANES };
    const int first = (int)(threadIdx.x & 31) / LANES;
#pragma unroll 1
    for (int base = first; base < count + first; base += ROWS * AHEAD) {
        uint32_t row[AHEAD][LANE / 2], entry[AHEAD];
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            const bool is = base + s * ROWS < count;
            entry[s] = list[is ? base + s * ROWS : 0];
            load_once<LANE / 2>(row[s], w + (uint64_t)row_of(entry[s]) * line, is);
        }
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            const float x = input_of(entry[s]), by = base + s * ROWS < count ? x : 0;
#pragma unroll
            for (int e = 0; e < LANE / 2; e++) {
                sum[2 * e] = fmaf(bf16_low(row[s][e]), by, sum[2 * e]);
                sum[2 * e + 1] = fmaf(bf16_high(row[s][e]), by, sum[2 * e + 1]);
            }
        }
    }
}

// Over the lanes that have the same outputs, into `to` of the first of them.
template <int LANES> __device__ static inline void put_total(float *to, float (&sum)[LANE]) {
    const int lane = (int)threadIdx.x & 31;
#pragma unroll
    for (int d = LANES; d < 32; d *= 2)
#pragma unroll
        for (int e = 0; e < LANE; e++) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], d);
    if (lane < LANES)
#pragma unroll
        for (int e = 0; e < LANE; e++) to[LANE * lane + e] = sum[e];
}
