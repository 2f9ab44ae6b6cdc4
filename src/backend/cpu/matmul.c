// The cutting of matrix products into tasks. How a product is cut never shows in the result: each
// output is one chain over k (kernels/gemm.c), laid down and taken up at will.
#include "backend/cpu/internal.h"

#include "backend/ops.h"

#include <assert.h>
#include <string.h>

// k goes in blocks whose part of a panel stays in the second-level cache while the rows pass.
// Rows go in blocks whose x does, or, where each task must pack its panels first, in larger ones.
enum {
    K_BLOCK = 2048,
    ROWS_PACKED = 96,
    ROWS_MASTER = 768,
    FEW_ROWS = 12,
    SOME_ROWS = 4,
    FINISHED = 4
};

// 2 to 16 KiB ahead are alike; nothing ahead costs a quarter, 32 KiB a tenth.
enum { AHEAD_BYTES = 4096, WRITE_AHEAD = 6 };

// One product y = f(add + x W), ready to run.
struct part {
    float *y;
    const float *add;
    const float *x;        // f32 inputs
    const uint32_t *pairs; // bf16 inputs, rows of `pairs_step`
    struct quantised ints; // int8 and int4 weights
    const uint32_t *list;  // the k (or pairs) that are not zero; NULL: all
    size_t list_len;
    const void *panels; // packed, or NULL: `master` is to be packed
    const float *master;
    size_t in_step, out_step; // of master
    size_t in, out, R;
    enum dtype stored, inputs;
    int act;
    size_t row_chunk, row_chunks, panel_chunk, first_task;
};

enum { MAX_PARTS = 16 };

struct matmul_job {
    const struct kernels *k;
    struct part part[MAX_PARTS];
    int parts, tasks;
    float *scratch; // a thread's: sums of a row block, then a block of a panel
    size_t scratch_step, acc_floats;
};

static size_t pairs_step(size_t in) {
    return (in + 1) / 2;
}

// ---- tasks -------------------------------------------------------------------------------------

// The part of a panel from k on: where it lies packed, or packed now.
static const void *panel_block(const struct matmul_job *j, const struct part *p, size_t panel,
                               size_t k, size_t n, float *room) {
    if (p->panels)
        return (const char *)p->panels + panel * cpu_panel_bytes(p->in, p->stored) +
               cpu_panel_bytes(k, p->stored);
    const size_t first = panel * PANEL, outs = p->out - first < PANEL ? p->out - first : PANEL;
    const float *from = p->master + k * p->in_step + first * p->out_step;
    if (p->stored == DT_F32) {
        j->k->pack->f32(room, from, p->in_step, p->out_step, n, outs);
    } else {
        uint16_t *lines = (uint16_t *)(void *)room;
        j->k->pack->bf16(lines, from, p->in_step, p->out_step, n, outs);
        if (n & 1) memset(lines + n * PANEL, 0, PANEL * sizeof *lines);
    }
    return room;
}

// Panels lie one behind the other. What fits one tile of rows is read once: some lines ahead is
// enough. More tiles share the work of fetching the block that follows while they use this one.
static struct fetch what_next(const struct matmul_job *j, const struct part *p, const void *panel,
                              size_t rows, size_t n) {
    const bool integer = p->stored == DT_INT8 || p->stored == DT_INT4;
    const size_t tile = integer ? j->k->integer->tile_rows : j->k->gemm->tile_rows;
    const size_t tiles = (rows + tile - 1) / tile;
    const size_t whole = p->stored == DT_INT8   ? INT8_GROUP_BYTES
                         : p->stored == DT_INT4 ? INT4_GROUP_BYTES
                                                : 64;
    if (!p->panels) return (struct fetch){panel, 0};
    if (tiles == 1) return (struct fetch){(const char *)panel + AHEAD_BYTES, whole};
    return (struct fetch){(const char *)panel + cpu_panel_bytes(n, p->stored),
                          (whole + tiles - 1) / tiles};
}

static void multiply_block(const struct matmul_job *j, const struct part *p, float *acc,
                           const void *panel, size_t r, size_t rows, size_t k, size_t n) {
    const struct gemm_kernels *g = j->k->gemm;
    const struct fetch next = what_next(j, p, panel, rows, n);
    const bool first = k == 0;
    switch (p->stored) {
    case DT_INT8:
        j->k->integer->int8(acc, &p->ints, r, panel, rows, k / INT8_GROUP,
                            (k + n + INT8_GROUP - 1) / INT8_GROUP, next);
        break;
    case DT_INT4:
        j->k->integer->int4(acc, &p->ints, r, panel, rows, k / INT4_GROUP,
                            (k + n + INT4_GROUP - 1) / INT4_GROUP, next);
        break;
    case DT_BF16:
        if (p->inputs == DT_BF16) {
            const size_t step = pairs_step(p->in);
            const uint32_t *x = p->pairs + r * step + k / 2;
            if (p->list)
                g->dot_some(acc, x, step, panel, rows, p->list, p->list_len, first);
            else
                g->dot(acc, x, step, 1, panel, rows, n, next, first);
        } else if (p->list) {
            g->bf16_some(acc, p->x + r * p->in, p->in, panel, rows, p->list, p->list_len, first);
        } else {
            g->bf16(acc, p->x + r * p->in + k, p->in, panel, rows, n, next, first);
        }
        break;
    default: g->f32(acc, p->x + r * p->in + k, p->in, 1, panel, rows, n, next, first);
    }
}

// Sums of a block of rows against one panel.
static void multiply_panel(const struct matmul_job *j, const struct part *p, float *acc,
                           size_t panel, size_t r, size_t rows, float *room) {
    const size_t block = p->panels && p->R <= FEW_ROWS ? p->in : K_BLOCK;
    for (size_t k = 0; k < p->in; k += block) {
        const size_t n = p->in - k < block ? p->in - k : block;
        multiply_block(j, p, acc, panel_block(j, p, panel, k, n, room), r, rows, k, n);
    }
}

// Writes what n panels came to: a row's outputs of all of them in one go, for rows lie far apart.
static void finish_rows(const struct matmul_job *j, const struct part *p, const float *sums,
                        size_t panel, size_t n, size_t r, size_t rows) {
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; row + WRITE_AHEAD < rows && i < 2 * n; i++)
            __builtin_prefetch(p->y + (r + row + WRITE_AHEAD) * p->out + panel * PANEL + 16 * i, 1);
        for (size_t i = 0; i < n; i++) {
            const size_t o = (panel + i) * PANEL, outs = p->out - o < PANEL ? p->out - o : PANEL;
            const size_t at = (r + row) * p->out + o;
            j->k->rows->finish(p->y + at, sums + (i * rows + row) * PANEL,
                               p->add ? p->add + at : NULL, outs, p->act);
        }
    }
}

static void matmul_task(void *ctx, int task) {
    const struct matmul_job *j = ctx;
    int i = j->parts - 1;
    while ((size_t)task < j->part[i].first_task) i--;
    const struct part *p = &j->part[i];
    // Rows are the slow index: a thread's stretch of the tasks is a stretch of the rows.
    const size_t t = (size_t)task - p->first_task, all = cpu_panels(p->out);
    const size_t panel_chunks = (all + p->panel_chunk - 1) / p->panel_chunk;
    const size_t r = t / panel_chunks * p->row_chunk, first = t % panel_chunks * p->panel_chunk;
    const size_t rows = p->R - r < p->row_chunk ? p->R - r : p->row_chunk;
    const size_t end = first + p->panel_chunk < all ? first + p->panel_chunk : all;
    float *sums = j->scratch + (size_t)pool_thread() * j->scratch_step,
          *room = sums + j->acc_floats;
    for (size_t panel = first; panel < end; panel += FINISHED) {
        const size_t n = end - panel < FINISHED ? end - panel : FINISHED;
        for (size_t m = 0; m < n; m++)
            multiply_panel(j, p, sums + m * rows * PANEL, panel + m, r, rows, room);
        finish_rows(j, p, sums, panel, n, r, rows);
    }
}

// ---- inputs ------------------------------------------------------------------------------------

// Rows as the kernel wants them: bf16, or integers with scales.
struct convert_job {
    const struct kernels *k;
    const struct part *part;
    uint32_t *pairs;
    int8_t *value;
    float *scale, *padded; // padded: a row of whole groups for each thread
    int32_t *sum;
};

enum { CONVERT_ROWS = 8 };

static void convert_task(void *ctx, int task) {
    const struct convert_job *j = ctx;
    const struct part *p = j->part;
    const size_t first = (size_t)task * CONVERT_ROWS;
    const size_t end = first + CONVERT_ROWS < p->R ? first + CONVERT_ROWS : p->R;
    for (size_t r = first; r < end; r++) {
        const float *x = p->x + r * p->in;
        if (j->pairs) {
            uint16_t *to = (uint16_t *)(void *)(j->pairs + r * pairs_step(p->in));
            j->k->pack->narrow(to, x, p->in);
            if (p->in & 1) to[p->in] = 0;
            continue;
        }
        const size_t K = p->ints.K, groups = K / p->ints.group;
        if (K != p->in) {
            float *row = j->padded + (size_t)pool_thread() * K;
            memcpy(row, x, p->in * sizeof *row);
            memset(row + p->in, 0, (K - p->in) * sizeof *row);
            x = row;
        }
        j->k->integer->quantise(j->value + r * K, j->scale + r * groups, j->sum + r * groups, x, K,
                                p->ints.group);
    }
}

static bool is_integer(const struct part *p) {
    return p->stored == DT_INT8 || p->stored == DT_INT4;
}

static size_t up_to(size_t n, size_t step) {
    return (n + step - 1) / step * step;
}

// Floats of scratch that a part's inputs take: pairs or integers, then the list.
static size_t input_floats(const struct part *p, size_t threads) {
    size_t n = p->stored == DT_BF16 && p->R <= SOME_ROWS ? 3 * (p->in + SOME_AHEAD) : 0;
    if (is_integer(p)) {
        const size_t group = p->stored == DT_INT8 ? INT8_GROUP : INT4_GROUP;
        const size_t K = up_to(p->in, group);
        n += up_to(p->R * K, 64) / 4 + 2 * p->R * (K / group) + threads * K;
    } else if (p->inputs == DT_BF16) {
        n += p->R * pairs_step(p->in);
    }
    return up_to(n, 16);
}

// The k that have a number in some row; NULL where there are too many for it to pay.
static const uint32_t *list_some(struct part *p, uint32_t *list) {
    size_t n = 0;
    for (size_t k = 0; k < p->in; k++) {
        if (k == 128 && n > 96) return NULL; // an ordinary row shows at once
        bool any = false;
        for (size_t r = 0; r < p->R; r++) any |= p->x[r * p->in + k] != 0;
        list[n] = (uint32_t)k;
        n += any;
    }
    if (n > p->in / 2) return NULL;
    for (size_t i = 0; i < SOME_AHEAD; i++) list[n + i] = (uint32_t)p->in + (i < n ? list[i] : 0);
    p->list_len = n;
    return list;
}

// The same in pairs: where one of the two is zero in all rows, the other's line stands in.
static const uint32_t *list_pairs(struct part *p, uint32_t *list) {
    size_t n = 0, lines = 0;
    for (size_t k = 0; k < pairs_step(p->in); k++) {
        if (k == 64 && lines > 96) return NULL;
        uint32_t any = 0;
        for (size_t r = 0; r < p->R; r++) any |= p->pairs[r * pairs_step(p->in) + k];
        const uint32_t even = (uint32_t)(2 * k);
        list[3 * n] = (uint32_t)k;
        list[3 * n + 1] = any & 0x7fffu ? even : even + 1;
        list[3 * n + 2] = any & 0x7fff0000u ? even + 1 : even;
        n += (any & 0x7fff7fffu) != 0;
        lines += ((any & 0x7fffu) != 0) + ((any & 0x7fff0000u) != 0);
    }
    if (lines > p->in / 2) return NULL;
    for (size_t i = 0; i < 3 * SOME_AHEAD; i++)
        list[3 * n + i] = (uint32_t)p->in + (i < 3 * n ? list[i] : 0);
    p->list_len = n;
    return list;
}

static void prepare(struct cpu *cpu, struct part *p, float *room) {
    struct convert_job c = {.k = cpu->k, .part = p};
    float *at = room;
    if (is_integer(p)) {
        const size_t group = p->stored == DT_INT8 ? INT8_GROUP : INT4_GROUP;
        const size_t K = up_to(p->in, group);
        c.value = (int8_t *)(void *)at;
        at += up_to(p->R * K, 64) / 4;
        c.scale = at;
        at += p->R * (K / group);
        c.sum = (int32_t *)(void *)at;
        at += p->R * (K / group);
        c.padded = at;
        p->ints = (struct quantised){c.value, c.scale, c.sum, K, group};
    } else if (p->inputs == DT_BF16) {
        c.pairs = (uint32_t *)(void *)at;
        p->pairs = c.pairs;
        at += p->R * pairs_step(p->in);
    }
    const int tasks = (int)((p->R + CONVERT_ROWS - 1) / CONVERT_ROWS);
    if (is_integer(p) || p->inputs == DT_BF16) pool_run(cpu->pool, tasks, convert_task, &c);
    if (p->stored == DT_BF16 && p->R <= SOME_ROWS && p->panels) {
        uint32_t *list = (uint32_t *)(void *)at;
        p->list = p->inputs == DT_BF16 ? list_pairs(p, list) : list_some(p, list);
    }
}

// ---- running -----------------------------------------------------------------------------------

// Few rows want few, even tasks over all parts together; many want tasks of some 4 panels.
static void cut(struct cpu *cpu, struct matmul_job *j) {
    size_t work = 0, task = 0;
    for (int i = 0; i < j->parts; i++) work += cpu_panels(j->part[i].out) * j->part[i].in;
    const size_t share = work / (8 * (size_t)pool_threads(cpu->pool)) + 1;
    for (int i = 0; i < j->parts; i++) {
        struct part *p = &j->part[i];
        const size_t most = p->panels ? ROWS_PACKED : ROWS_MASTER;
        p->row_chunk = p->R < most ? p->R : most;
        p->row_chunks = (p->R + p->row_chunk - 1) / p->row_chunk;
        p->panel_chunk = share / p->in + 1;
        if (p->row_chunks > 1 && p->panel_chunk > 4) p->panel_chunk = 4;
        p->first_task = task;
        task += (cpu_panels(p->out) + p->panel_chunk - 1) / p->panel_chunk * p->row_chunks;
        if (p->row_chunk * PANEL * FINISHED > j->acc_floats)
            j->acc_floats = p->row_chunk * PANEL * FINISHED;
    }
    j->tasks = (int)task;
}

static void run_parts(struct cpu *cpu, struct matmul_job *j) {
    const size_t threads = (size_t)pool_threads(cpu->pool);
    size_t inputs = 0;
    cut(cpu, j);
    for (int i = 0; i < j->parts; i++) inputs += input_floats(&j->part[i], threads);
    j->scratch_step = j->acc_floats + K_BLOCK * PANEL;
    float *room = cpu_scratch(cpu, inputs + threads * j->scratch_step);
    j->scratch = room + inputs;
    for (int i = 0; i < j->parts; i++) {
        prepare(cpu, &j->part[i], room);
        room += input_floats(&j->part[i], threads);
    }
    pool_run(cpu->pool, j->tasks, matmul_task, j);
}

void cpu_matmul(struct backend *be, const struct product *products, int n) {
    struct cpu *cpu = cpu_of(be);
    struct matmul_job job = {.k = cpu->k};
    assert(n <= MAX_PARTS);
    for (int i = 0; i < n; i++) {
        const struct product *p = &products[i];
        const struct cpu_weight *w = (const struct cpu_weight *)p->w;
        const bool oi = w->base.layout == WEIGHT_OUT_IN;
        if (!p->x.dim[0]) continue;
        job.part[job.parts++] = (struct part){.y = f32(p->y),
                                              .x = f32(p->x),
                                              .add = f32(p->add),
                                              .panels = w->data,
                                              .master = w->master,
                                              .in_step = oi ? 1 : w->base.out,
                                              .out_step = oi ? w->base.in : 1,
                                              .in = w->base.in,
                                              .out = w->base.out,
                                              .R = p->x.dim[0],
                                              .stored = w->base.precision.stored,
                                              .inputs = w->base.precision.inputs,
                                              .act = (int)p->act};
    }
    if (job.parts) run_parts(cpu, &job);
}

static void input_grad_of(struct cpu *cpu, const struct input_grad *g) {
    const struct cpu_weight *w = (const struct cpu_weight *)g->w;
    const struct weight *base = g->w;
    const bool oi = base->layout == WEIGHT_OUT_IN;
    struct matmul_job job = {.k = cpu->k, .parts = 1};
    if (!g->dy.dim[0]) return;
    job.part[0] = (struct part){.y = f32(g->dx),
                                .x = f32(g->dy),
                                .add = f32(g->add),
                                .master = w->master,
                                .in_step = oi ? base->in : 1,
                                .out_step = oi ? 1 : base->out,
                                .in = base->out,
                                .out = base->in,
                                .R = g->dy.dim[0],
                                .stored = base->precision.stored,
                                .inputs = base->precision.inputs,
                                .act = ACT_NONE};
    run_parts(cpu, &job);
}

void cpu_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n) {
    for (int i = 0; i < n; i++) {
        const struct input_grad *g = &grads[i];
        input_grad_of(cpu_of(be), g);
        if (tensor_is(g->y)) op_act_bwd(be, g->dx, g->dx, g->y, g->act);
    }
}

// ---- dw = Aᵀ B --------------------------------------------------------------------------------

// dw (M,cols) =, or +=, Σ_r a (R,M)[r] b (R,cols)[r], r upward. First b becomes panels, which all
// tasks share; then a task turns some columns of a into rows [R][48] (bf16: pairs of rows) and runs
// them against a stretch of panels, so that dw is read and written in long pieces.
enum { COLUMNS = 48, STRETCH = 24 };

struct outer_job {
    const struct kernels *k;
    float *dw, *scratch;
    char *panels;
    const float *a, *b;
    size_t R, M, cols, stretches, scratch_step, panel_bytes;
    bool bf16, more;
};

static size_t outer_steps(const struct outer_job *j) {
    return j->bf16 ? pairs_step(j->R) : j->R;
}

static void outer_pack_task(void *ctx, int task) {
    const struct outer_job *j = ctx;
    const size_t col = (size_t)task * PANEL;
    const size_t outs = j->cols - col < PANEL ? j->cols - col : PANEL;
    void *panel = j->panels + (size_t)task * j->panel_bytes;
    if (!j->bf16) {
        j->k->pack->f32(panel, j->b + col, j->cols, 1, j->R, outs);
        return;
    }
    j->k->pack->bf16(panel, j->b + col, j->cols, 1, j->R, outs);
    if (j->R & 1) memset((uint16_t *)panel + j->R * PANEL, 0, PANEL * sizeof(uint16_t));
}

// Columns m … m+n of a, row by row.
static void gather_columns(const struct outer_job *j, float *to, size_t m, size_t n) {
    for (size_t s = 0; s < outer_steps(j); s++, to += COLUMNS)
        if (j->bf16) {
            const float *row = j->a + 2 * s * j->M + m;
            j->k->pack->pair_rows((uint32_t *)(void *)to, row, 2 * s + 1 < j->R ? row + j->M : NULL,
                                  n);
        } else {
            memcpy(to, j->a + s * j->M + m, n * sizeof *to);
        }
}

static void outer_product(const struct outer_job *j, float *acc, const float *a, const void *panel,
                          size_t rows) {
    const struct fetch next = {panel, 0};
    if (j->bf16)
        j->k->gemm->dot(acc, (const uint32_t *)(const void *)a, 1, COLUMNS, panel, rows,
                        2 * outer_steps(j), next, true);
    else
        j->k->gemm->f32(acc, a, 1, COLUMNS, panel, rows, j->R, next, true);
}

static void outer_task(void *ctx, int task) {
    const struct outer_job *j = ctx;
    const size_t m = (size_t)task / j->stretches * COLUMNS, all = cpu_panels(j->cols);
    const size_t rows = j->M - m < COLUMNS ? j->M - m : COLUMNS;
    const size_t first = (size_t)task % j->stretches * STRETCH;
    const size_t end = first + STRETCH < all ? first + STRETCH : all;
    float *acc = j->scratch + (size_t)pool_thread() * j->scratch_step;
    float *a = acc + FINISHED * COLUMNS * PANEL;
    gather_columns(j, a, m, rows);
    for (size_t panel = first; panel < end; panel += FINISHED) {
        const size_t n = end - panel < FINISHED ? end - panel : FINISHED;
        for (size_t i = 0; i < n; i++)
            outer_product(j, acc + i * COLUMNS * PANEL, a, j->panels + (panel + i) * j->panel_bytes,
                          rows);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < n; i++) {
                const size_t col = (panel + i) * PANEL;
                const size_t outs = j->cols - col < PANEL ? j->cols - col : PANEL;
                float *y = j->dw + (m + r) * j->cols + col;
                j->k->rows->finish(y, acc + (i * COLUMNS + r) * PANEL, j->more ? y : NULL, outs,
                                   ACT_NONE);
            }
    }
}

static void weight_grad_of(struct cpu *cpu, const struct weight_grad *g) {
    const bool oi = g->w->layout == WEIGHT_OUT_IN;
    const struct tensor a = oi ? g->dy : g->x, b = oi ? g->x : g->dy;
    struct outer_job j = {.k = cpu->k,
                          .dw = f32(g->dw),
                          .a = f32(a),
                          .b = f32(b),
                          .R = a.dim[0],
                          .M = a.dim[1],
                          .cols = b.dim[1],
                          .bf16 = g->w->precision.inputs == DT_BF16,
                          .more = g->more};
    if (!j.R) {
        if (!g->more) op_fill(&cpu->base, g->dw, 0);
        return;
    }
    const size_t threads = (size_t)pool_threads(cpu->pool), panels = cpu_panels(j.cols);
    j.panel_bytes = cpu_panel_bytes(j.R, j.bf16 ? DT_BF16 : DT_F32);
    j.stretches = (panels + STRETCH - 1) / STRETCH;
    j.scratch_step = FINISHED * COLUMNS * PANEL + up_to(outer_steps(&j) * COLUMNS, 16);
    const size_t shared = panels * j.panel_bytes / sizeof(float);
    j.panels = (char *)cpu_scratch(cpu, shared + threads * j.scratch_step);
    j.scratch = (float *)(void *)j.panels + shared;
    pool_run(cpu->pool, (int)panels, outer_pack_task, &j);
    pool_run(cpu->pool, (int)((j.M + COLUMNS - 1) / COLUMNS * j.stretches), outer_task, &j);
}

void cpu_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n) {
    for (int i = 0; i < n; i++) weight_grad_of(cpu_of(be), &grads[i]);
}
