// Packed weights and the cutting of matrix products into tasks. How a product is cut never shows in
// the result: each output is one chain over k (kernels/gemm.c).
#include "backend/cpu/internal.h"

#include "backend/ops.h"
#include "base/half.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct packed {
    void *data; // panels, see kernels.h
    size_t bytes;
    size_t in, out;
};

struct cpu_weight {
    struct weight base;
    struct packed fwd;  // y = x W
    struct packed back; // dx = dy Wᵀ; empty unless trained
};

static size_t panels(size_t out) {
    return (out + PANEL - 1) / PANEL;
}

static size_t panel_bytes(size_t in, enum dtype stored) {
    return stored == DT_BF16 ? (in + 1) / 2 * 2 * PANEL * 2 : in * PANEL * 4;
}

struct pack_job {
    struct packed *to;
    struct tensor src;
    enum dtype stored;
    size_t in_step, out_step; // of src, in elements
};

enum { PACK_ROWS = 16 };

// Rows k … k+PACK_ROWS of a panel as floats, [k][output]; zeros past the matrix. Whichever index is
// contiguous in src is the inner loop.
static void fetch(float rows[PACK_ROWS][PANEL], const struct pack_job *j, size_t k, size_t first) {
    const size_t left_k = j->to->in - k, left_o = j->to->out - first;
    const size_t n = left_k < PACK_ROWS ? left_k : PACK_ROWS,
                 outs = left_o < PANEL ? left_o : PANEL;
    const size_t start = k * j->in_step + first * j->out_step, size = dtype_size(j->src.dtype);
    const char *src = (const char *)tensor_host(j->src) + start * size;
    memset(rows, 0, PACK_ROWS * sizeof *rows);
    if (j->out_step == 1) {
        for (size_t r = 0; r < n; r++)
            dtype_convert(rows[r], DT_F32, src + r * j->in_step * size, j->src.dtype, outs);
        return;
    }
    for (size_t o = 0; o < outs; o++) {
        float column[PACK_ROWS];
        dtype_convert(column, DT_F32, src + o * j->out_step * size, j->src.dtype, n);
        for (size_t r = 0; r < n; r++) rows[r][o] = column[r];
    }
}

static void pack_panel(void *ctx, int task) {
    const struct pack_job *j = ctx;
    const size_t in = j->to->in;
    char *panel = (char *)j->to->data + (size_t)task * panel_bytes(in, j->stored);
    for (size_t k = 0; k < in; k += PACK_ROWS) {
        const size_t n = in - k < PACK_ROWS ? in - k : PACK_ROWS;
        float rows[PACK_ROWS][PANEL];
        fetch(rows, j, k, (size_t)task * PANEL);
        if (j->stored == DT_F32) {
            memcpy((float *)(void *)panel + k * PANEL, rows, n * sizeof *rows);
            continue;
        }
        uint16_t *p = (uint16_t *)(void *)panel + k * PANEL;
        for (size_t r = 0; r < n; r += 2) // an odd last k has a partner of zeros
            for (size_t o = 0; o < PANEL; o++) {
                *p++ = f32_to_bf16(rows[r][o]);
                *p++ = f32_to_bf16(rows[r + 1][o]);
            }
    }
}

static void pack(struct cpu *cpu, struct packed *to, struct tensor src, enum dtype stored,
                 size_t in_step, size_t out_step) {
    struct pack_job job = {to, src, stored, in_step, out_step};
    pool_run(cpu->pool, (int)panels(to->out), pack_panel, &job);
}

static struct packed packed_create(size_t in, size_t out, enum dtype stored) {
    struct packed p = {.in = in, .out = out, .bytes = panels(out) * panel_bytes(in, stored)};
    p.data = mem_pages(p.bytes);
    return p;
}

void cpu_weight_refresh(struct backend *be, struct weight *base, struct tensor src) {
    struct cpu_weight *w = (struct cpu_weight *)base;
    const size_t cols = src.dim[1];
    const bool oi = base->layout == WEIGHT_OUT_IN;
    const size_t in_step = oi ? 1 : cols, out_step = oi ? cols : 1;
    pack(cpu_of(be), &w->fwd, src, base->stored, in_step, out_step);
    if (base->trained) pack(cpu_of(be), &w->back, src, base->stored, out_step, in_step);
}

struct weight *cpu_weight_create(struct backend *be, struct tensor src, enum weight_layout layout,
                                 enum dtype stored, bool trained) {
    assert(stored == DT_F32 || stored == DT_BF16);
    struct cpu_weight *w = mem_zero(1, sizeof *w);
    const bool oi = layout == WEIGHT_OUT_IN;
    const size_t in = src.dim[oi ? 1 : 0], out = src.dim[oi ? 0 : 1];
    w->base = (struct weight){
        .be = be, .in = in, .out = out, .stored = stored, .layout = layout, .trained = trained};
    w->fwd = packed_create(in, out, stored);
    if (trained) w->back = packed_create(out, in, stored);
    cpu_weight_refresh(be, &w->base, src);
    return &w->base;
}

void cpu_weight_destroy(struct weight *base) {
    struct cpu_weight *w = (struct cpu_weight *)base;
    mem_pages_free(w->fwd.data, w->fwd.bytes);
    mem_pages_free(w->back.data, w->back.bytes);
    free(w);
}

size_t cpu_weight_bytes(const struct backend *be, size_t rows, size_t cols, enum dtype stored,
                        bool trained) {
    (void)be;
    const size_t one = panels(rows) * panel_bytes(cols, stored);
    return trained ? one + panels(cols) * panel_bytes(rows, stored) : one;
}

// ---- y = add + x W -----------------------------------------------------------------------------

struct matmul_job {
    const struct gemm_kernels *gemm;
    float *y;
    const float *x, *add;
    const struct packed *w;
    enum dtype stored;
    size_t R, row_chunk, row_chunks, panel_chunk;
};

// k goes in blocks whose part of a panel (256 KiB) stays in the second-level cache while the rows
// pass; the sums wait in y. The blocks depend on k alone, so a row still has one order of
// operations.
enum { K_BLOCK = 2048 };

static void panel_rows(const struct matmul_job *j, size_t p, size_t r, size_t rows, size_t k) {
    const size_t in = j->w->in, out = j->w->out, o = p * PANEL;
    const size_t outs = out - o < PANEL ? out - o : PANEL, n = in - k < K_BLOCK ? in - k : K_BLOCK;
    const char *panel = (const char *)j->w->data + p * panel_bytes(in, j->stored);
    float *y = j->y + r * out + o;
    const float *x = j->x + r * in + k, *add = k ? y : j->add ? j->add + r * out + o : NULL;
    if (j->stored == DT_BF16)
        j->gemm->bf16(y, out, x, in, (const uint16_t *)(const void *)panel + k * PANEL, rows, n,
                      outs, add, out);
    else
        j->gemm->f32(y, out, x, in, 1, (const float *)(const void *)panel + k * PANEL, rows, n,
                     outs, add, out);
}

// A task is a block of rows times a few panels: the rows' x stays in the second-level cache.
static void matmul_task(void *ctx, int task) {
    const struct matmul_job *j = ctx;
    const size_t r = (size_t)task % j->row_chunks * j->row_chunk;
    const size_t rows = j->R - r < j->row_chunk ? j->R - r : j->row_chunk;
    const size_t first = (size_t)task / j->row_chunks * j->panel_chunk, all = panels(j->w->out);
    for (size_t p = first; p < all && p < first + j->panel_chunk; p++)
        for (size_t k = 0; k < j->w->in; k += K_BLOCK) panel_rows(j, p, r, rows, k);
}

static void multiply(struct backend *be, struct tensor y, struct tensor x, const struct packed *w,
                     enum dtype stored, struct tensor add) {
    struct cpu *cpu = cpu_of(be);
    const size_t R = x.dim[0], row_chunk = R < 96 ? R : 96;
    if (!R) return;
    const size_t row_chunks = (R + row_chunk - 1) / row_chunk;
    // Decode wants few, even tasks; a tall product wants tasks of some 4 panels.
    size_t tasks = row_chunks > 1 ? (panels(w->out) + 3) / 4 : 4 * (size_t)pool_threads(cpu->pool);
    if (tasks > panels(w->out)) tasks = panels(w->out);
    const size_t panel_chunk = (panels(w->out) + tasks - 1) / tasks;
    struct matmul_job job = {.gemm = cpu->k->gemm,
                             .y = f32(y),
                             .x = f32(x),
                             .add = f32(add),
                             .w = w,
                             .stored = stored,
                             .R = R,
                             .row_chunk = row_chunk,
                             .row_chunks = row_chunks,
                             .panel_chunk = panel_chunk};
    const size_t panel_tasks = (panels(w->out) + panel_chunk - 1) / panel_chunk;
    pool_run(cpu->pool, (int)(panel_tasks * row_chunks), matmul_task, &job);
}

void cpu_matmul(struct backend *be, struct tensor y, struct tensor x, const struct weight *w,
                struct tensor add) {
    multiply(be, y, x, &((const struct cpu_weight *)w)->fwd, w->stored, add);
}

void cpu_matmul_bwd_x(struct backend *be, struct tensor dx, struct tensor dy,
                      const struct weight *w, struct tensor add) {
    multiply(be, dx, dy, &((const struct cpu_weight *)w)->back, w->stored, add);
}

// ---- dw += Aᵀ B --------------------------------------------------------------------------------

// dw (M,cols) += Σ_r a (R,M)[r] b (R,cols)[r]: each task packs 32 columns of b and runs them
// against a block of a's columns; r runs upward.
struct outer_job {
    const struct gemm_kernels *gemm;
    float *dw, *scratch;
    const float *a, *b;
    size_t R, M, cols, m_chunk, m_chunks;
};

static void outer_task(void *ctx, int task) {
    const struct outer_job *j = ctx;
    const size_t m = (size_t)task % j->m_chunks * j->m_chunk;
    const size_t rows = j->M - m < j->m_chunk ? j->M - m : j->m_chunk;
    const size_t col = (size_t)task / j->m_chunks * PANEL;
    const size_t outs = j->cols - col < PANEL ? j->cols - col : PANEL;
    float *panel = j->scratch + (size_t)pool_thread() * j->R * PANEL;
    for (size_t r = 0; r < j->R; r++) {
        memcpy(panel + r * PANEL, j->b + r * j->cols + col, outs * sizeof *panel);
        if (outs < PANEL) memset(panel + r * PANEL + outs, 0, (PANEL - outs) * sizeof *panel);
    }
    float *y = j->dw + m * j->cols + col;
    j->gemm->f32(y, j->cols, j->a + m, 1, j->M, panel, rows, j->R, outs, y, j->cols);
}

void cpu_matmul_bwd_w(struct backend *be, struct tensor dw, struct tensor dy, struct tensor x,
                      enum weight_layout layout) {
    struct cpu *cpu = cpu_of(be);
    const bool oi = layout == WEIGHT_OUT_IN;
    const struct tensor a = oi ? dy : x, b = oi ? x : dy;
    const size_t R = x.dim[0], M = a.dim[1], cols = b.dim[1];
    if (!R) return;
    // Blocks of at least 192 columns of a, so that packing b costs under 1 % of the product.
    size_t m_chunks = M / 192 ? M / 192 : 1;
    const size_t enough = 8 * (size_t)pool_threads(cpu->pool) / panels(cols) + 1;
    if (m_chunks > enough) m_chunks = enough;
    const size_t m_chunk = (M + m_chunks - 1) / m_chunks;
    m_chunks = (M + m_chunk - 1) / m_chunk;
    const size_t tasks = panels(cols) * m_chunks;
    struct outer_job job = {.gemm = cpu->k->gemm,
                            .dw = f32(dw),
                            .scratch = cpu_scratch_each(cpu, R * PANEL),
                            .a = f32(a),
                            .b = f32(b),
                            .R = R,
                            .M = M,
                            .cols = cols,
                            .m_chunk = m_chunk,
                            .m_chunks = m_chunks};
    pool_run(cpu->pool, (int)tasks, outer_task, &job);
}
