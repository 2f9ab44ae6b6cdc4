// From matrices as they are stored to the panels of kernels.h. Weights that are trained change with
// every step, so this runs in front of every product: it must cost little beside one.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"

enum { HALF = PANEL / 2 };

// To the nearest bf16, ties to even, in the upper half of each lane. NaN stays NaN.
INLINE vu round_bf16(vf x) {
    const vu u = (vu)x;
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    const vi nan = (vi)((u & 0x7fffffffu) > 0x7f800000u);
    return ((vu)nan & ((u | 0x400000u) & 0xffff0000u)) | (~(vu)nan & rounded);
}

// One k: 32 neighbours in memory.
INLINE void line_f32(float *to, const float *from) {
    for (int v = 0; v < PANEL; v += LANES) store(to + v, load(from + v));
}

INLINE void line_bf16(uint16_t *to, const float *from) {
    for (int v = 0; v < HALF; v += LANES) {
        const vu low = round_bf16(load(from + v)), high = round_bf16(load(from + HALF + v));
        const vu both = (low >> 16) | high;
        memcpy(to + 2 * v, &both, sizeof both);
    }
}

// `count` ≤ LANES values of k for all outputs, from rows that run along k: squares are turned.
INLINE void turn(float out[LANES][PANEL], const float *from, size_t out_step, size_t count,
                 size_t outs) {
    for (size_t o = 0; o < PANEL; o += LANES) {
        vf square[LANES];
#pragma GCC unroll 16
        for (size_t l = 0; l < LANES; l++) {
            // Each row is a stream of its own: more than the processor follows.
            if (LANES == 16) __builtin_prefetch(from + (o + l) * out_step + 64);
            square[l] = o + l >= outs    ? (vf){0}
                        : count == LANES ? load(from + (o + l) * out_step)
                                         : load_some(from + (o + l) * out_step, count);
        }
        transpose_square(square);
#pragma GCC unroll 16
        for (size_t l = 0; l < LANES; l++) store(out[l] + o, square[l]);
    }
}

static void pack_f32(float *panel, const float *from, size_t in_step, size_t out_step, size_t K,
                     size_t outs) {
    if (out_step == 1) {
        for (size_t k = 0; k < K; k++, panel += PANEL, from += in_step)
            if (outs == PANEL) {
                line_f32(panel, from);
            } else {
                memset(panel, 0, PANEL * sizeof *panel);
                memcpy(panel, from, outs * sizeof *panel);
            }
        return;
    }
    for (size_t k = 0; k < K; k += LANES) {
        const size_t count = K - k < LANES ? K - k : LANES;
        float rows[LANES][PANEL];
        turn(rows, from + k, out_step, count, outs);
        memcpy(panel + k * PANEL, rows, count * sizeof *rows);
    }
}

static void pack_bf16(uint16_t *panel, const float *from, size_t in_step, size_t out_step, size_t K,
                      size_t outs) {
    if (out_step == 1) {
        float line[PANEL] = {0};
        for (size_t k = 0; k < K; k++, panel += PANEL, from += in_step)
            if (outs == PANEL) {
                line_bf16(panel, from);
            } else {
                memcpy(line, from, outs * sizeof *line);
                line_bf16(panel, line);
            }
        return;
    }
    for (size_t k = 0; k < K; k += LANES) {
        const size_t count = K - k < LANES ? K - k : LANES;
        float rows[LANES][PANEL];
        turn(rows, from + k, out_step, count, outs);
        for (size_t l = 0; l < count; l++) line_bf16(panel + (k + l) * PANEL, rows[l]);
    }
}

// Row-major pairs: two rows a and b (NULL: zeros), interleaved number by number.
static void pair_rows(uint32_t *to, const float *a, const float *b, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vu low = round_bf16(load(a + i)), high = b ? round_bf16(load(b + i)) : (vu){0};
        const vu both = (low >> 16) | high;
        memcpy(to + i, &both, sizeof both);
    }
    if (i < n) {
        const vu low = round_bf16(load_some(a + i, n - i));
        const vu high = b ? round_bf16(load_some(b + i, n - i)) : (vu){0};
        const vu both = (low >> 16) | high;
        memcpy(to + i, &both, (n - i) * sizeof *to);
    }
}

static void narrow(uint16_t *restrict to, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, 4);
        const uint32_t rounded = u + 0x7fff + (u >> 16 & 1), quiet = u | 0x400000;
        to[i] = (uint16_t)(((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded) >> 16);
    }
}

const struct pack_kernels LEVEL(pack_kernels) = {.f32 = pack_f32,
                                                 .bf16 = pack_bf16,
                                                 .pair_rows = pair_rows,
                                                 .narrow = narrow};
