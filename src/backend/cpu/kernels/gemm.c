// Matrix products on packed panels: a tile of rows × 2 vectors of outputs lives in registers while
// k runs upward, x broadcast over contiguous outputs. Each output is one chain of multiply-adds
// from k = 0, whatever the tile, so a row's bits do not depend on how many rows come with it.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"

enum { TILE_OUTS = 2 * LANES };

// Writes the first `outs` of one tile row.
INLINE void put(float *y, const vf acc[2], size_t outs, const float *add) {
    if (outs >= TILE_OUTS) {
        for (int v = 0; v < 2; v++)
            store(y + v * LANES, add ? load(add + v * LANES) + acc[v] : acc[v]);
        return;
    }
    float t[TILE_OUTS];
    for (int v = 0; v < 2; v++) store(t + v * LANES, acc[v]);
    for (size_t o = 0; o < outs; o++) y[o] = add ? add[o] + t[o] : t[o];
}

// `rows` is a constant at every call, so the accumulators stay in registers.
INLINE void tile_f32(int rows, float *y, size_t y_step, const float *x, size_t row_step,
                     size_t k_step, const float *panel, size_t K, size_t outs, const float *add,
                     size_t add_step) {
    vf acc[TILE_ROWS][2] = {0};
    for (size_t k = 0; k < K; k++, panel += PANEL) {
        const vf w0 = load(panel), w1 = load(panel + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const vf xr = splat(x[(size_t)r * row_step + k * k_step]);
            acc[r][0] += xr * w0;
            acc[r][1] += xr * w1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        put(y + (size_t)r * y_step, acc[r], outs, add ? add + (size_t)r * add_step : NULL);
}

INLINE void tile_bf16(int rows, float *y, size_t y_step, const float *x, size_t row_step,
                      const uint16_t *panel, size_t K, size_t outs, const float *add,
                      size_t add_step) {
    vf acc[TILE_ROWS][2] = {0};
    for (size_t k = 0; k + 1 < K; k += 2, panel += 2 * PANEL) {
        vu pair[2];
        memcpy(pair, panel, sizeof pair);
        const vf even0 = (vf)(pair[0] << 16), even1 = (vf)(pair[1] << 16);
        const vf odd0 = (vf)(pair[0] & 0xffff0000u), odd1 = (vf)(pair[1] & 0xffff0000u);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const float *xr = x + (size_t)r * row_step + k;
            const vf x0 = splat(xr[0]), x1 = splat(xr[1]);
            acc[r][0] += x0 * even0;
            acc[r][1] += x0 * even1;
            acc[r][0] += x1 * odd0;
            acc[r][1] += x1 * odd1;
        }
    }
    if (K & 1) {
        vu pair[2];
        memcpy(pair, panel, sizeof pair);
        const vf even0 = (vf)(pair[0] << 16), even1 = (vf)(pair[1] << 16);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const vf x0 = splat(x[(size_t)r * row_step + K - 1]);
            acc[r][0] += x0 * even0;
            acc[r][1] += x0 * even1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        put(y + (size_t)r * y_step, acc[r], outs, add ? add + (size_t)r * add_step : NULL);
}

static void gemm_f32(float *y, size_t y_step, const float *x, size_t row_step, size_t k_step,
                     const float *panel, size_t rows, size_t K, size_t outs, const float *add,
                     size_t add_step) {
    for (size_t o = 0; o < outs; o += TILE_OUTS) {
        const float *p = panel + o, *a = add ? add + o : NULL;
        const size_t left = outs - o;
        for (size_t r = 0; r < rows;) {
            const size_t n = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            float *yr = y + r * y_step + o;
            const float *xr = x + r * row_step, *ar = a ? a + r * add_step : NULL;
#define TILE(n) tile_f32(n, yr, y_step, xr, row_step, k_step, p, K, left, ar, add_step)
            switch (n) {
            case 1: TILE(1); break;
            case 2: TILE(2); break;
            case 3: TILE(3); break;
            case 4: TILE(4); break;
#if defined(__AVX2__)
            case 5: TILE(5); break;
            case 6: TILE(6); break;
#endif
#if defined(__AVX512F__)
            case 7: TILE(7); break;
            case 8: TILE(8); break;
            case 9: TILE(9); break;
            case 10: TILE(10); break;
            case 11: TILE(11); break;
            case 12: TILE(12); break;
#endif
            }
#undef TILE
            r += n;
        }
    }
}

static void gemm_bf16(float *y, size_t y_step, const float *x, size_t row_step,
                      const uint16_t *panel, size_t rows, size_t K, size_t outs, const float *add,
                      size_t add_step) {
    for (size_t o = 0; o < outs; o += TILE_OUTS) {
        const uint16_t *p = panel + 2 * o;
        const float *a = add ? add + o : NULL;
        const size_t left = outs - o;
        for (size_t r = 0; r < rows;) {
            const size_t n = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            float *yr = y + r * y_step + o;
            const float *xr = x + r * row_step, *ar = a ? a + r * add_step : NULL;
#define TILE(n) tile_bf16(n, yr, y_step, xr, row_step, p, K, left, ar, add_step)
            switch (n) {
            case 1: TILE(1); break;
            case 2: TILE(2); break;
            case 3: TILE(3); break;
            case 4: TILE(4); break;
#if defined(__AVX2__)
            case 5: TILE(5); break;
            case 6: TILE(6); break;
#endif
#if defined(__AVX512F__)
            case 7: TILE(7); break;
            case 8: TILE(8); break;
            case 9: TILE(9); break;
            case 10: TILE(10); break;
            case 11: TILE(11); break;
            case 12: TILE(12); break;
#endif
            }
#undef TILE
            r += n;
        }
    }
}

const struct gemm_kernels LEVEL(gemm_kernels) = {.f32 = gemm_f32, .bf16 = gemm_bf16};
