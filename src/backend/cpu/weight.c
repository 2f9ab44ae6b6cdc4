// Matrices as the kernels want them. What is only read is packed once, into slabs of huge pages;
// what is trained stays where it is and is packed a piece at a time in front of each product.
#include "backend/cpu/internal.h"

#include "backend/quant.h"
#include "base/half.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// ---- slabs -------------------------------------------------------------------------------------

enum { SLAB_BYTES = 32 << 20 };

static void *slab_take(struct cpu *cpu, size_t bytes, struct slab **owner) {
    bytes = (bytes + 63) / 64 * 64;
    struct slab *s = cpu->slabs;
    if (!s || s->bytes - s->used < bytes) {
        s = mem_zero(1, sizeof *s);
        s->bytes = bytes > SLAB_BYTES ? bytes : SLAB_BYTES;
        s->data = mem_pages(s->bytes);
        s->next = cpu->slabs;
        cpu->slabs = s;
    }
    void *p = s->data + s->used;
    s->used += bytes;
    s->live++;
    *owner = s;
    return p;
}

static void slab_leave(struct cpu *cpu, struct slab *s) {
    if (--s->live) return;
    struct slab **at = &cpu->slabs;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    mem_pages_free(s->data, s->bytes);
    free(s);
}

// ---- packing -----------------------------------------------------------------------------------

size_t cpu_panel_bytes(size_t in, enum dtype stored) {
    switch (stored) {
    case DT_BF16: return (in + 1) / 2 * 2 * PANEL * 2; // whole pairs of k
    case DT_INT8: return (in + INT8_GROUP - 1) / INT8_GROUP * INT8_GROUP_BYTES;
    case DT_INT4: return (in + INT4_GROUP - 1) / INT4_GROUP * INT4_GROUP_BYTES;
    default: return in * PANEL * 4;
    }
}

struct pack_job {
    const struct pack_kernels *k;
    const struct row_kernels *rows;
    struct tensor src;
    char *to;
    enum dtype stored;
    size_t in, out, in_step, out_step; // steps of src, in elements
    float *scratch;                    // PIECE numbers a thread
};

enum { PIECE_K = 512, PIECE = PIECE_K * PANEL }; // k of a panel at a time

// A piece of src as floats with steps of its own: a view where it is f32 already.
static const float *fetch(const struct pack_job *j, size_t k, size_t n, size_t first, size_t outs,
                          size_t *in_step, size_t *out_step) {
    const size_t size = dtype_size(j->src.dtype), start = k * j->in_step + first * j->out_step;
    const char *src = (const char *)tensor_host(j->src) + start * size;
    *in_step = j->in_step;
    *out_step = j->out_step;
    if (j->src.dtype == DT_F32) return (const float *)(const void *)src;
    float *to = j->scratch + (size_t)pool_thread() * PIECE;
    const bool along_k = j->in_step == 1;
    const size_t rows = along_k ? outs : n, cols = along_k ? n : outs;
    const size_t step = along_k ? j->out_step : j->in_step;
    for (size_t r = 0; r < rows; r++)
        if (j->src.dtype == DT_BF16)
            j->rows->widen(to + r * cols, (const uint16_t *)(const void *)(src + r * step * size),
                           cols);
        else
            dtype_convert(to + r * cols, DT_F32, src + r * step * size, j->src.dtype, cols);
    *in_step = along_k ? 1 : cols;
    *out_step = along_k ? cols : 1;
    return to;
}

// One group of k for 32 outputs, from values [k][output]: integers, then scales.
static void pack_group(uint8_t *to, float values[][PANEL], enum dtype stored) {
    const size_t group = quant_group(stored);
    uint16_t *scales = (uint16_t *)(void *)(to + group * PANEL / (stored == DT_INT4 ? 2 : 1));
    for (size_t o = 0; o < PANEL; o++) {
        float column[QUANT_MAX_GROUP];
        uint8_t q[QUANT_MAX_GROUP];
        for (size_t k = 0; k < group; k++) column[k] = values[k][o];
        const float scale = quant_weights(q, column, group, stored);
        scales[o < PANEL / 2 ? 2 * o : 2 * (o - PANEL / 2) + 1] = f32_to_bf16(scale);
        if (stored == DT_INT8)
            for (size_t k = 0; k < group; k++) to[k / 4 * 4 * PANEL + 4 * o + k % 4] = q[k];
        else
            for (size_t k = 0; k < group; k += 8)
                for (size_t i = 0; i < 4; i++)
                    to[k / 8 * 4 * PANEL + 4 * o + i] = (uint8_t)(q[k + i] | q[k + 4 + i] << 4);
    }
}

static void pack_integers(const struct pack_job *j, uint8_t *panel, const float *from,
                          size_t in_step, size_t out_step, size_t n, size_t outs) {
    const size_t group = quant_group(j->stored);
    const size_t bytes = cpu_panel_bytes(group, j->stored);
    for (size_t k = 0; k < n; k += group, panel += bytes) {
        float values[QUANT_MAX_GROUP][PANEL] = {0};
        for (size_t i = 0; i < group && k + i < n; i++)
            for (size_t o = 0; o < outs; o++) values[i][o] = from[(k + i) * in_step + o * out_step];
        pack_group(panel, values, j->stored);
    }
}

static void pack_panel(void *ctx, int task) {
    const struct pack_job *j = ctx;
    const size_t first = (size_t)task * PANEL;
    const size_t outs = j->out - first < PANEL ? j->out - first : PANEL;
    char *panel = j->to + (size_t)task * cpu_panel_bytes(j->in, j->stored);
    for (size_t k = 0; k < j->in; k += PIECE_K) {
        const size_t n = j->in - k < PIECE_K ? j->in - k : PIECE_K;
        size_t in_step, out_step;
        const float *from = fetch(j, k, n, first, outs, &in_step, &out_step);
        void *to = panel + cpu_panel_bytes(k, j->stored);
        if (j->stored == DT_BF16)
            j->k->bf16(to, from, in_step, out_step, n, outs);
        else if (j->stored == DT_F32)
            j->k->f32(to, from, in_step, out_step, n, outs);
        else
            pack_integers(j, to, from, in_step, out_step, n, outs);
    }
}

// ---- the weight --------------------------------------------------------------------------------

static struct weight *create(struct cpu *cpu, struct tensor src, enum weight_layout layout,
                             struct precision p, bool trained) {
    struct cpu_weight *w = mem_zero(1, sizeof *w);
    const bool oi = layout == WEIGHT_OUT_IN;
    w->base = (struct weight){.be = &cpu->base,
                              .in = src.dim[oi ? 1 : 0],
                              .out = src.dim[oi ? 0 : 1],
                              .precision = p,
                              .layout = layout,
                              .trained = trained};
    return &w->base;
}

struct weight *cpu_weight_create(struct backend *be, struct tensor src, struct tensor rounded,
                                 enum weight_layout layout, struct precision p, bool trained) {
    (void)rounded;
    struct cpu *cpu = cpu_of(be);
    struct cpu_weight *w = (struct cpu_weight *)create(cpu, src, layout, p, trained);
    if (trained) {
        assert(src.dtype == DT_F32 && (p.stored == DT_F32 || p.stored == DT_BF16));
        w->master = f32(src);
        return &w->base;
    }
    w->data =
        slab_take(cpu, cpu_panels(w->base.out) * cpu_panel_bytes(w->base.in, p.stored), &w->slab);
    cpu_weight_refresh(be, &w->base, src);
    return &w->base;
}

void cpu_weight_refresh(struct backend *be, struct weight *base, struct tensor src) {
    struct cpu *cpu = cpu_of(be);
    struct cpu_weight *w = (struct cpu_weight *)base;
    if (base->trained) return; // packed anew in every product
    const bool oi = base->layout == WEIGHT_OUT_IN;
    struct pack_job job = {.k = cpu->k->pack,
                           .rows = cpu->k->rows,
                           .src = src,
                           .to = w->data,
                           .stored = base->precision.stored,
                           .in = base->in,
                           .out = base->out,
                           .in_step = oi ? 1 : base->out,
                           .out_step = oi ? base->in : 1,
                           .scratch = cpu_scratch_each(cpu, PIECE)};
    pool_run(cpu->pool, (int)cpu_panels(base->out), pack_panel, &job);
}

void cpu_weight_destroy(struct weight *base) {
    struct cpu_weight *w = (struct cpu_weight *)base;
    if (w->slab) slab_leave(cpu_of(base->be), w->slab);
    free(w);
}

size_t cpu_weight_bytes(const struct backend *be, size_t rows, size_t cols, struct precision p,
                        bool trained) {
    (void)be;
    return trained ? 0 : cpu_panels(rows) * cpu_panel_bytes(cols, p.stored);
}
