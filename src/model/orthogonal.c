// By Cholesky: A = Q R with R's diagonal positive is unique, and AᵀA = RᵀR. So R is the Cholesky
// factor of the Gram matrix and Q = A R⁻¹: two matrix products, in double. The Gram matrix squares
// the condition number, which costs nothing for a tall normal matrix (κ near 1) and is repaired by
// a second pass for a square one ("CholeskyQR2").
#include "model/orthogonal.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef double row8 __attribute__((vector_size(64), aligned(8)));

enum { TILE = 64, DEPTH = 256, MR = 2, NR = 8 };

// c (MR,NR; c_step) += Σ_k a(r,k) b(k,·): a's element is a[r·a_row + k·a_k], b's row b + k·b_k.
static void micro(double *c, size_t c_step, const double *a, size_t a_row, size_t a_k,
                  const double *b, size_t b_k, size_t depth) {
    row8 s0 = *(const row8 *)c, s1 = *(const row8 *)(c + c_step);
    for (size_t k = 0; k < depth; k++) {
        const row8 bk = *(const row8 *)(b + k * b_k);
        s0 += a[k * a_k] * bk;
        s1 += a[a_row + k * a_k] * bk;
    }
    *(row8 *)c = s0;
    *(row8 *)(c + c_step) = s1;
}

// ---- G = AᵀA, upper tiles ----------------------------------------------------------------------

struct gram {
    const double *A; // (m,n), n a multiple of TILE by padding
    double *G;       // (n,n)
    size_t m, n, tiles;
};

static void gram_tile(void *ctx, int task) {
    const struct gram *g = ctx;
    const size_t ti = (size_t)task / g->tiles, tj = (size_t)task % g->tiles;
    if (ti > tj) return;
    double *pack = mem_zero(2 * DEPTH * TILE + TILE * TILE, sizeof *pack);
    double *left = pack, *right = left + DEPTH * TILE, *sum = right + DEPTH * TILE;
    for (size_t r = 0; r < g->m; r += DEPTH) {
        const size_t depth = g->m - r < DEPTH ? g->m - r : DEPTH;
        for (size_t k = 0; k < depth; k++) {
            const double *row = g->A + (r + k) * g->n;
            memcpy(left + k * TILE, row + ti * TILE, TILE * sizeof *left);
            memcpy(right + k * TILE, row + tj * TILE, TILE * sizeof *right);
        }
        for (size_t i = 0; i < TILE; i += MR)
            for (size_t j = 0; j < TILE; j += NR)
                micro(sum + i * TILE + j, TILE, left + i, 1, TILE, right + j, TILE, depth);
    }
    for (size_t i = 0; i < TILE; i++)
        memcpy(g->G + (ti * TILE + i) * g->n + tj * TILE, sum + i * TILE, TILE * sizeof *sum);
    free(pack);
}

// G (upper) → R, upper, with G = RᵀR; the padded columns have a diagonal of 1.
static void cholesky(double *G, size_t n) {
    for (size_t k = 0; k < n; k++) {
        double *row = G + k * n;
        if (row[k] <= 0) row[k] = 1e-300; // cannot happen for a normal matrix in double
        const double inverse = 1 / sqrt(row[k]);
        for (size_t j = k; j < n; j++) row[j] *= inverse;
        for (size_t i = k + 1; i < n; i++) {
            const double f = row[i];
            double *to = G + i * n;
            for (size_t j = i; j < n; j++) to[j] -= f * row[j];
        }
    }
}

// X = R⁻¹, upper; by rows from the bottom: R X = I.
static void invert_upper(double *X, const double *R, size_t n) {
    memset(X, 0, n * n * sizeof *X);
    for (size_t i = n; i-- > 0;) {
        double *x = X + i * n;
        x[i] = 1;
        for (size_t k = i + 1; k < n; k++) {
            const double f = R[i * n + k];
            const double *from = X + k * n;
            for (size_t j = k; j < n; j++) x[j] -= f * from[j];
        }
        const double inverse = 1 / R[i * n + i];
        for (size_t j = i; j < n; j++) x[j] *= inverse;
    }
}

// ---- A ← A X -----------------------------------------------------------------------------------

struct product {
    double *A;       // (m,n), m a multiple of MR by padding
    const double *X; // (n,n) upper
    size_t m, n;
};

static void product_rows(void *ctx, int task) {
    const struct product *p = ctx;
    const size_t first = (size_t)task * TILE, n = p->n;
    const size_t rows = p->m - first < TILE ? p->m - first : TILE;
    double *out = mem_zero(TILE * n, sizeof *out);
    for (size_t j = 0; j < n; j += NR)
        for (size_t r = 0; r < rows; r += MR)
            micro(out + r * n + j, n, p->A + (first + r) * n, n, 1, p->X + j, n,
                  j + NR < n ? j + NR : n); // X is zero below its diagonal
    memcpy(p->A + first * n, out, rows * n * sizeof *out);
    free(out);
}

static void orthonormalise(double *A, size_t m, size_t n, size_t padding, struct pool *pool) {
    double *G = mem_zero(n * n, sizeof *G), *X = mem_zero(n * n, sizeof *X);
    const size_t tiles = n / TILE;
    struct gram gram = {.A = A, .G = G, .m = m, .n = n, .tiles = tiles};
    pool_run(pool, (int)(tiles * tiles), gram_tile, &gram);
    for (size_t i = n - padding; i < n; i++) G[i * n + i] = 1;
    cholesky(G, n);
    invert_upper(X, G, n);
    struct product product = {.A = A, .X = X, .m = m, .n = n};
    pool_run(pool, (int)((m + TILE - 1) / TILE), product_rows, &product);
    free(G);
    free(X);
}

// ---- the normal matrix -------------------------------------------------------------------------

struct draw {
    double *A; // (m, step): numbers in the order of the result's elements
    size_t rows, cols, step;
    bool transposed;
    uint64_t seed, stream;
};

static void draw_row(void *ctx, int task) {
    const struct draw *d = ctx;
    const size_t r = (size_t)task;
    for (size_t c = 0; c < d->cols; c++)
        d->A[d->transposed ? c * d->step + r : r * d->step + c] =
            rng_normal(d->seed, d->stream, r * d->cols + c);
}

void orthogonal_fill(float *out, size_t rows, size_t cols, double gain, uint64_t seed,
                     uint64_t stream, struct pool *pool) {
    const bool transposed = rows < cols;
    const size_t m = transposed ? cols : rows, n = transposed ? rows : cols;
    const size_t step = (n + TILE - 1) / TILE * TILE, height = (m + MR - 1) / MR * MR;
    double *A = mem_zero(height * step, sizeof *A);
    struct draw d = {A, rows, cols, step, transposed, seed, stream};
    pool_run(pool, (int)rows, draw_row, &d);
    orthonormalise(A, height, step, step - n, pool);
    if (m < 4 * n) orthonormalise(A, height, step, step - n, pool);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            out[r * cols + c] = (float)(gain * (transposed ? A[c * step + r] : A[r * step + c]));
    free(A);
}
