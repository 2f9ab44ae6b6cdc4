// Matrix products on packed panels: a tile of rows × vectors of outputs lives in registers while k
// runs upward, x broadcast over contiguous outputs. Each output is one chain of multiply-adds from
// k = 0, whatever the tile, so a row's bits do not depend on how many rows come with it. A chain
// may be laid down in `acc` and taken up again: f32 keeps it exactly.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"

// A tile is rows × some 32-bit vectors of a line of bf16, each of which makes two vectors of
// floats. Few rows take a panel's whole width at once, so that it is read from front to back.
#if defined(__AVX512F__)
enum { TILE_ROWS = 12 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 6 };
#elif defined(__aarch64__)
enum { TILE_ROWS = 8 };
#else
enum { TILE_ROWS = 4 };
#endif
enum { HALF = PANEL / 2, WIDE = HALF / LANES, NARROW = 1, VECS = 2 * WIDE };

// Where vector v of a tile that begins at line vector q lies among the outputs.
INLINE size_t place(int q, int v) {
    return (size_t)((v & 1) * HALF + (q + v / 2) * LANES);
}

// The accumulators of a tile from and to acc (rows, PANEL).
#define EACH_ROW  _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)
#define EACH_VEC  _Pragma("GCC unroll 8") for (int v = 0; v < 2 * width; v++)
#define EACH_LINE _Pragma("GCC unroll 4") for (int l = 0; l < width; l++)

INLINE void tile_begin(vf a[TILE_ROWS][VECS], int rows, int q, int width, const float *acc,
                       bool first) {
    EACH_ROW EACH_VEC a[r][v] = first ? (vf){0} : load(acc + r * PANEL + place(q, v));
}

INLINE void tile_end(float *acc, vf a[TILE_ROWS][VECS], int rows, int q, int width) {
    EACH_ROW EACH_VEC store(acc + r * PANEL + place(q, v), a[r][v]);
}

// Asks for a line; asking again for the same one costs next to nothing.
INLINE void fetch_step(struct fetch *next) {
    __builtin_prefetch(next->at);
    next->at += next->step;
}

INLINE void tile_f32(int rows, int q, int width, float *acc, const float *x, size_t row_step,
                     size_t k_step, const float *panel, size_t K, struct fetch next, bool first) {
    vf a[TILE_ROWS][VECS];
    tile_begin(a, rows, q, width, acc, first);
    for (size_t k = 0; k < K; k++, panel += PANEL) {
        vf w[VECS];
        fetch_step(&next);
        fetch_step(&next); // a k of an f32 panel is two lines
        EACH_VEC w[v] = load(panel + place(q, v));
        EACH_ROW {
            const vf xr = splat(x[(size_t)r * row_step + k * k_step]);
            EACH_VEC a[r][v] += xr * w[v];
        }
    }
    tile_end(acc, a, rows, q, width);
}

// ---- bf16 --------------------------------------------------------------------------------------

INLINE vf low_half(vu x) {
    return (vf)(x << 16);
}
INLINE vf high_half(vu x) {
    return (vf)(x & 0xffff0000u);
}

INLINE vu load_line(const uint16_t *line, int q) {
    vu v;
    memcpy(&v, line + 2 * q * LANES, sizeof v);
    return v;
}

INLINE void step_bf16(vf a[TILE_ROWS][VECS], int rows, int q, int width, const float *x,
                      size_t row_step, const uint16_t *line) {
    vf w[VECS];
    EACH_LINE {
        const vu both = load_line(line, q + l);
        w[2 * l] = low_half(both);
        w[2 * l + 1] = high_half(both);
    }
    EACH_ROW {
        const vf xr = splat(x[(size_t)r * row_step]);
        EACH_VEC a[r][v] += xr * w[v];
    }
}

INLINE void tile_bf16(int rows, int q, int width, float *acc, const float *x, size_t row_step,
                      const uint16_t *panel, size_t K, struct fetch next, bool first) {
    vf a[TILE_ROWS][VECS];
    tile_begin(a, rows, q, width, acc, first);
    for (size_t k = 0; k < K; k++, panel += PANEL) {
        fetch_step(&next);
        step_bf16(a, rows, q, width, x + k, row_step, panel);
    }
    tile_end(acc, a, rows, q, width);
}

INLINE void tile_bf16_some(int rows, int q, int width, float *acc, const float *x, size_t row_step,
                           const uint16_t *panel, const uint32_t *list, size_t len, bool first) {
    vf a[TILE_ROWS][VECS];
    tile_begin(a, rows, q, width, acc, first);
    for (size_t i = 0; i < len; i++) {
        if (width == WIDE) __builtin_prefetch(panel + (size_t)list[i + SOME_AHEAD] * PANEL);
        step_bf16(a, rows, q, width, x + list[i], row_step, panel + (size_t)list[i] * PANEL);
    }
    tile_end(acc, a, rows, q, width);
}

// A pair of products at once: the odd one first, as the instruction does it. Without it two
// multiply-adds give the same bits, denormals aside.
INLINE vf dot_pair(vf a, vu x, vu w) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)a, (__m512bh)x, (__m512bh)w);
#else
    a += high_half(x) * high_half(w);
    a += low_half(x) * low_half(w);
    return a;
#endif
}

INLINE void step_dot(vf a[TILE_ROWS][VECS], int rows, int q, int width, const uint32_t *x,
                     size_t row_step, const uint16_t *even, const uint16_t *odd) {
    vu w[VECS];
    EACH_LINE {
        const vu e = load_line(even, q + l), o = load_line(odd, q + l);
        w[2 * l] = (e & 0xffffu) | (o << 16);
        w[2 * l + 1] = (e >> 16) | (o & 0xffff0000u);
    }
    EACH_ROW {
        const vu xr = x[(size_t)r * row_step] - (vu){0};
        EACH_VEC a[r][v] = dot_pair(a[r][v], xr, w[v]);
    }
}

INLINE void tile_dot(int rows, int q, int width, float *acc, const uint32_t *x, size_t row_step,
                     size_t k_step, const uint16_t *panel, size_t K, struct fetch next,
                     bool first) {
    vf a[TILE_ROWS][VECS];
    tile_begin(a, rows, q, width, acc, first);
    for (size_t k = 0; k < K; k += 2, panel += 2 * PANEL) {
        fetch_step(&next);
        fetch_step(&next);
        step_dot(a, rows, q, width, x + k / 2 * k_step, row_step, panel, panel + PANEL);
    }
    tile_end(acc, a, rows, q, width);
}

INLINE void tile_dot_some(int rows, int q, int width, float *acc, const uint32_t *x,
                          size_t row_step, const uint16_t *panel, const uint32_t *list, size_t len,
                          bool first) {
    vf a[TILE_ROWS][VECS];
    tile_begin(a, rows, q, width, acc, first);
    for (size_t i = 0; i < len; i++, list += 3) {
        if (width == WIDE) {
            __builtin_prefetch(panel + (size_t)list[3 * SOME_AHEAD + 1] * PANEL);
            __builtin_prefetch(panel + (size_t)list[3 * SOME_AHEAD + 2] * PANEL);
        }
        step_dot(a, rows, q, width, x + list[0], row_step, panel + (size_t)list[1] * PANEL,
                 panel + (size_t)list[2] * PANEL);
    }
    tile_end(acc, a, rows, q, width);
}

// ---- rows → tiles ------------------------------------------------------------------------------

// TILE(n, q, width) for n rows, a constant, and `width` vectors of a line from q on.
#define WHOLE(n, TILE)                                                                             \
    case n:                                                                                        \
        TILE(n, 0, WIDE);                                                                          \
        break;
#define PARTS(n, TILE)                                                                             \
    case n:                                                                                        \
        for (int q = 0; q < WIDE; q++) TILE(n, q, NARROW);                                         \
        break;
#if defined(__AVX512F__)
#define CASES(T)                                                                                   \
    WHOLE(1, T)                                                                                    \
    WHOLE(2, T)                                                                                    \
    WHOLE(3, T)                                                                                    \
    WHOLE(4, T)                                                                                    \
    WHOLE(5, T)                                                                                    \
    WHOLE(6, T) WHOLE(7, T) WHOLE(8, T) WHOLE(9, T) WHOLE(10, T) WHOLE(11, T) WHOLE(12, T)
#elif defined(__AVX2__)
#define CASES(T) WHOLE(1, T) WHOLE(2, T) PARTS(3, T) PARTS(4, T) PARTS(5, T) PARTS(6, T)
#elif defined(__aarch64__)
#define CASES(T)                                                                                   \
    WHOLE(1, T) WHOLE(2, T) PARTS(3, T) PARTS(4, T) PARTS(5, T) PARTS(6, T) PARTS(7, T) PARTS(8, T)
#else
#define CASES(T) WHOLE(1, T) PARTS(2, T) PARTS(3, T) PARTS(4, T)
#endif

// Walks the rows in tiles; the tile's own acc and x are `to` and `xr`.
#define FOR_TILES(type, TILE)                                                                      \
    for (size_t at = 0; at < rows;) {                                                              \
        const size_t n = rows - at < TILE_ROWS ? rows - at : TILE_ROWS;                            \
        float *to = acc + at * PANEL;                                                              \
        const type *xr = x + at * row_step;                                                        \
        switch (n) { CASES(TILE) }                                                                 \
        at += n;                                                                                   \
        next.at += K * next.step;                                                                  \
    }

static void gemm_f32(float *acc, const float *x, size_t row_step, size_t k_step, const float *panel,
                     size_t rows, size_t K, struct fetch next, bool first) {
#define TILE(n, q, width) tile_f32(n, q, width, to, xr, row_step, k_step, panel, K, next, first)
    FOR_TILES(float, TILE)
#undef TILE
}

static void gemm_bf16(float *acc, const float *x, size_t row_step, const uint16_t *panel,
                      size_t rows, size_t K, struct fetch next, bool first) {
#define TILE(n, q, width) tile_bf16(n, q, width, to, xr, row_step, panel, K, next, first)
    FOR_TILES(float, TILE)
#undef TILE
}

static void gemm_bf16_some(float *acc, const float *x, size_t row_step, const uint16_t *panel,
                           size_t rows, const uint32_t *list, size_t len, bool first) {
    struct fetch next = {0};
    const size_t K = 0;
#define TILE(n, q, width) tile_bf16_some(n, q, width, to, xr, row_step, panel, list, len, first)
    FOR_TILES(float, TILE)
#undef TILE
}

static void gemm_dot(float *acc, const uint32_t *x, size_t row_step, size_t k_step,
                     const uint16_t *panel, size_t rows, size_t K, struct fetch next, bool first) {
#define TILE(n, q, width) tile_dot(n, q, width, to, xr, row_step, k_step, panel, K, next, first)
    FOR_TILES(uint32_t, TILE)
#undef TILE
}

static void gemm_dot_some(float *acc, const uint32_t *x, size_t row_step, const uint16_t *panel,
                          size_t rows, const uint32_t *list, size_t len, bool first) {
    struct fetch next = {0};
    const size_t K = 0;
#define TILE(n, q, width) tile_dot_some(n, q, width, to, xr, row_step, panel, list, len, first)
    FOR_TILES(uint32_t, TILE)
#undef TILE
}

const struct gemm_kernels LEVEL(gemm_kernels) = {.tile_rows = TILE_ROWS,
                                                 .f32 = gemm_f32,
                                                 .bf16 = gemm_bf16,
                                                 .bf16_some = gemm_bf16_some,
                                                 .dot = gemm_dot,
                                                 .dot_some = gemm_dot_some};
