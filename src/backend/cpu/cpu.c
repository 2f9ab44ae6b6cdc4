#include "backend/cpu/cpu.h"

#include "backend/cpu/internal.h"
#include "backend/host.h"
#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

float *cpu_scratch(struct cpu *cpu, size_t n) {
    if (n > cpu->scratch_floats) {
        mem_pages_free(cpu->scratch, cpu->scratch_floats * sizeof(float));
        cpu->scratch_floats = n + n / 4;
        cpu->scratch = mem_pages(cpu->scratch_floats * sizeof(float));
    }
    return cpu->scratch;
}

// ---- cutting rows into tasks -------------------------------------------------------------------

// Every op over rows is one of these: a function of the op's arguments and a range of rows.
// Backward passes also sum parameter gradients over rows: each block of rows has its own partial
// sums, and the blocks are added up in order, so that the sum does not depend on the threads.
struct rows_job {
    const struct row_kernels *k;
    void (*fn)(const struct rows_job *, size_t first, size_t end, float *part);
    const void *args;
    size_t R, block, part_len;
    float *parts;
};

static void rows_task(void *ctx, int task) {
    const struct rows_job *j = ctx;
    const size_t first = (size_t)task * j->block;
    const size_t end = first + j->block < j->R ? first + j->block : j->R;
    float *part = j->parts ? j->parts + (size_t)task * j->part_len : NULL;
    if (part) memset(part, 0, j->part_len * sizeof *part);
    j->fn(j, first, end, part);
}

static void run_rows(struct backend *be, size_t R,
                     void (*fn)(const struct rows_job *, size_t, size_t, float *),
                     const void *args) {
    struct cpu *cpu = cpu_of(be);
    const struct rows_job j = {
        .k = cpu->k->rows, .fn = fn, .args = args, .R = R, .block = ROW_BLOCK};
    pool_run(cpu->pool, row_blocks(R), rows_task, (void *)&j);
}

struct reduce_job {
    const struct row_kernels *k;
    const float *parts;
    float *out;
    size_t part_len, blocks, len;
};

enum { REDUCE_COLUMNS = 1024 };

static void reduce_task(void *ctx, int task) {
    const struct reduce_job *j = ctx;
    const size_t first = (size_t)task * REDUCE_COLUMNS;
    const size_t n = j->len - first < REDUCE_COLUMNS ? j->len - first : REDUCE_COLUMNS;
    for (size_t b = 0; b < j->blocks; b++)
        j->k->add(j->out + first, j->parts + b * j->part_len + first, n);
}

// As run_rows; the partial sums, part_len a block, end up added to the tensors of `sums` in turn.
static void run_rows_sum(struct backend *be, size_t R,
                         void (*fn)(const struct rows_job *, size_t, size_t, float *),
                         const void *args, const struct tensor *sums, int num_sums) {
    struct cpu *cpu = cpu_of(be);
    size_t part_len = 0;
    for (int i = 0; i < num_sums; i++) part_len += tensor_count(sums[i]);
    const struct rows_job j = {.k = cpu->k->rows,
                               .fn = fn,
                               .args = args,
                               .R = R,
                               .block = ROW_BLOCK,
                               .part_len = part_len,
                               .parts = cpu_scratch(cpu, part_len * (size_t)row_blocks(R))};
    pool_run(cpu->pool, row_blocks(R), rows_task, (void *)&j);
    size_t at = 0;
    for (int i = 0; i < num_sums; i++) {
        struct reduce_job reduce = {.k = cpu->k->rows,
                                    .parts = j.parts + at,
                                    .out = f32(sums[i]),
                                    .part_len = part_len,
                                    .blocks = (size_t)row_blocks(R),
                                    .len = tensor_count(sums[i])};
        pool_run(cpu->pool, (int)((reduce.len + REDUCE_COLUMNS - 1) / REDUCE_COLUMNS), reduce_task,
                 &reduce);
        at += reduce.len;
    }
}

// Elements instead of rows: blocks of this many, whatever the number of threads.
enum { ELEMENT_BLOCK = 16384 };

static void run_elements(struct backend *be, size_t n,
                         void (*fn)(const struct rows_job *, size_t, size_t, float *),
                         const void *args) {
    struct cpu *cpu = cpu_of(be);
    const struct rows_job j = {
        .k = cpu->k->rows, .fn = fn, .args = args, .R = n, .block = ELEMENT_BLOCK};
    pool_run(cpu->pool, (int)((n + ELEMENT_BLOCK - 1) / ELEMENT_BLOCK), rows_task, (void *)&j);
}

// ---- rows --------------------------------------------------------------------------------------

struct args {
    struct tensor y, x, z, w, b, add, dy, in, extra, lora, rkv, u, dlora, drkv, du, dg;
    const struct batch *batch;
    size_t H;
    float scale;
    int kind;
    bool flag;
};

// What is common is fast: f32 and bf16 either way. The rest goes number by number.
static void convert(const struct row_kernels *k, void *y, enum dtype to, const void *x,
                    enum dtype from, size_t n) {
    if (to == DT_F32 && from == DT_BF16)
        k->widen(y, x, n);
    else if (to == DT_BF16 && from == DT_F32)
        k->narrow(y, x, n);
    else
        dtype_convert(y, to, x, from, n);
}

static void embed_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t C = a->y.dim[1], size = dtype_size(a->w.dtype);
    const int32_t *token = tensor_host(a->in), *drawn = tensor_host(a->extra);
    for (size_t r = first; r < end; r++) {
        assert(token[r] >= 0 || (size_t)(-1 - token[r]) < a->extra.dim[0]);
        const int32_t id = token[r] < 0 ? drawn[-1 - token[r]] : token[r];
        assert(id >= 0 && (size_t)id < a->w.dim[0]);
        const char *row = (const char *)tensor_host(a->w) + (size_t)id * C * size;
        convert(j->k, f32(a->y) + r * C, DT_F32, row, a->w.dtype, C);
    }
}

static void cpu_embed(struct backend *be, struct tensor y, struct tensor tokens,
                      struct tensor drawn, struct tensor table) {
    run_rows(be, y.dim[0], embed_rows,
             &(struct args){.y = y, .in = tokens, .extra = drawn, .w = table});
}

// Cut by columns: two rows may hold the same token, and their order must not be left to chance.
struct scatter_job {
    const struct row_kernels *k;
    float *table;
    const float *dy;
    const int32_t *token;
    size_t R, C, V;
};

enum { SCATTER_COLUMNS = 64 };

static void scatter_task(void *ctx, int task) {
    const struct scatter_job *j = ctx;
    const size_t c = (size_t)task * SCATTER_COLUMNS;
    const size_t n = j->C - c < SCATTER_COLUMNS ? j->C - c : SCATTER_COLUMNS;
    for (size_t r = 0; r < j->R; r++) {
        assert(j->token[r] >= 0 && (size_t)j->token[r] < j->V);
        j->k->add(j->table + (size_t)j->token[r] * j->C + c, j->dy + r * j->C + c, n);
    }
}

static void cpu_embed_bwd(struct backend *be, struct tensor dtable, struct tensor dy,
                          struct tensor tokens, struct tensor order) {
    (void)order;
    struct cpu *cpu = cpu_of(be);
    struct scatter_job j = {.k = cpu->k->rows,
                            .table = f32(dtable),
                            .dy = f32(dy),
                            .token = tensor_host(tokens),
                            .R = dy.dim[0],
                            .C = dy.dim[1],
                            .V = dtable.dim[0]};
    pool_run(cpu->pool, (int)((j.C + SCATTER_COLUMNS - 1) / SCATTER_COLUMNS), scatter_task, &j);
}

static void gather_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t C = a->x.dim[1];
    const int32_t *row = tensor_host(a->in);
    for (size_t o = first; o < end; o++)
        memcpy(f32(a->y) + o * C, f32(a->x) + (size_t)row[o] * C, C * sizeof(float));
}

static void cpu_gather_rows(struct backend *be, struct tensor y, struct tensor x,
                            struct tensor rows) {
    run_rows(be, y.dim[0], gather_some, &(struct args){.y = y, .x = x, .in = rows});
}

static void norm_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t C = a->x.dim[1];
    for (size_t r = first; r < end; r++)
        j->k->norm(f32(a->y) + r * C, f32(a->x) + r * C, f32(a->w), f32(a->b), C, a->scale);
}

static void cpu_norm(struct backend *be, struct tensor y, struct tensor x, struct tensor w,
                     struct tensor b, double eps) {
    run_rows(be, x.dim[0], norm_rows,
             &(struct args){.y = y, .x = x, .w = w, .b = b, .scale = (float)eps});
}

static void norm_bwd_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    const struct args *a = j->args;
    const size_t C = a->x.dim[1];
    const float *add = f32(a->add);
    for (size_t r = first; r < end; r++)
        j->k->norm_bwd(f32(a->y) + r * C, part, f32(a->dy) + r * C, f32(a->x) + r * C, f32(a->w),
                       add ? add + r * C : NULL, C, a->scale);
}

static void cpu_norm_bwd(struct backend *be, struct tensor dx, struct tensor dw, struct tensor db,
                         struct tensor dy, struct tensor x, struct tensor w, double eps,
                         struct tensor add) {
    const struct args a = {.y = dx, .dy = dy, .x = x, .w = w, .add = add, .scale = (float)eps};
    run_rows_sum(be, x.dim[0], norm_bwd_rows, &a, (struct tensor[]){dw, db}, 2);
}

// ---- token shift -------------------------------------------------------------------------------

static const float *before_row(const struct args *a, size_t r) {
    const size_t C = a->z.dim[1];
    const int32_t p = ((const int32_t *)tensor_host(a->batch->prev))[r];
    if (p >= 0) return f32(a->z) + (size_t)p * C;
    return tensor_is(a->in) ? f32(a->in) + (size_t)(-1 - p) * C : NULL;
}

static void mix_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t R = a->z.dim[0], C = a->z.dim[1];
    for (size_t r = first; r < end; r++)
        j->k->mix(f32(a->y) + r * C, f32(a->z) + r * C, before_row(a, r), f32(a->w), a->w.dim[0],
                  R * C, C);
}

static void cpu_shift_mix(struct backend *be, struct tensor m, struct tensor shift_out,
                          struct tensor z, struct tensor shift_in, struct tensor mix,
                          const struct batch *b) {
    const size_t R = z.dim[0], C = z.dim[1];
    run_rows(be, R, mix_rows, &(struct args){.y = m, .z = z, .in = shift_in, .w = mix, .batch = b});
    const int32_t *last = tensor_host(b->last);
    for (size_t r = 0; tensor_is(shift_out) && r < R; r++)
        if (last[r] >= 0)
            memcpy(f32(shift_out) + (size_t)last[r] * C, f32(z) + r * C, C * sizeof(float));
}

static void mix_bwd_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    const struct args *a = j->args;
    const size_t R = a->z.dim[0], C = a->z.dim[1];
    const int32_t *last = tensor_host(a->batch->last);
    for (size_t r = first; r < end; r++) {
        const float *dm = f32(a->dy) + r * C;
        j->k->mix_bwd(f32(a->y) + r * C, part, dm, last[r] < 0 ? dm + C : NULL, f32(a->z) + r * C,
                      before_row(a, r), f32(a->w), a->w.dim[0], R * C, C);
    }
}

static void cpu_shift_mix_bwd(struct backend *be, struct tensor dz, struct tensor dmix,
                              struct tensor dm, struct tensor z, struct tensor shift_in,
                              struct tensor mix, const struct batch *b) {
    const struct args a = {.y = dz, .dy = dm, .z = z, .in = shift_in, .w = mix, .batch = b};
    run_rows_sum(be, z.dim[0], mix_bwd_rows, &a, &dmix, 1);
}

// ---- elements ----------------------------------------------------------------------------------

static void act_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    j->k->act(f32(a->y) + first, f32(a->x) + first, end - first, a->kind);
}

static void cpu_act(struct backend *be, struct tensor y, struct tensor x, enum act f) {
    run_elements(be, tensor_count(y), act_some, &(struct args){.y = y, .x = x, .kind = (int)f});
}

static void act_bwd_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    j->k->act_bwd(f32(a->y) + first, f32(a->dy) + first, f32(a->x) + first, end - first, a->kind);
}

static void cpu_act_bwd(struct backend *be, struct tensor dx, struct tensor dy, struct tensor y,
                        enum act f) {
    run_elements(be, tensor_count(y), act_bwd_some,
                 &(struct args){.y = dx, .dy = dy, .x = y, .kind = (int)f});
}

static void add_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    j->k->add(f32(a->y) + first, f32(a->x) + first, end - first);
}

static void cpu_add(struct backend *be, struct tensor y, struct tensor x) {
    run_elements(be, tensor_count(y), add_some, &(struct args){.y = y, .x = x});
}

static void copy_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t to = dtype_size(a->y.dtype), from = dtype_size(a->x.dtype);
    convert(j->k, (char *)tensor_host(a->y) + first * to, a->y.dtype,
            (const char *)tensor_host(a->x) + first * from, a->x.dtype, end - first);
}

static void cpu_copy(struct backend *be, struct tensor y, struct tensor x) {
    run_elements(be, tensor_count(y), copy_some, &(struct args){.y = y, .x = x});
}

struct fill_args {
    char *y;
    size_t size;
    uint64_t pattern[8]; // the value's bytes, over and over
};

static void fill_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct fill_args *a = j->args;
    char *y = a->y + first * a->size;
    const size_t bytes = (end - first) * a->size;
    if (!a->pattern[0]) { // all our floats write zero as zero bytes
        memset(y, 0, bytes);
        return;
    }
    size_t i = 0;
    for (; i + sizeof a->pattern <= bytes; i += sizeof a->pattern)
        memcpy(y + i, a->pattern, sizeof a->pattern);
    memcpy(y + i, a->pattern, bytes - i);
}

static void cpu_fill(struct backend *be, struct tensor y, double value) {
    struct fill_args a = {.y = tensor_host(y), .size = dtype_size(y.dtype)};
    for (size_t i = 0; i < sizeof a.pattern; i += a.size)
        dtype_convert((char *)a.pattern + i, y.dtype, &value, DT_F64, 1);
    run_elements(be, tensor_count(y), fill_some, &a);
}

// ---- time mix ----------------------------------------------------------------------------------

static float *at_row(struct tensor t, size_t r) {
    return f32(t) + r * t.dim[t.ndim - 1];
}

static void key_prep_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t C = a->u.dim[2], plane = a->u.dim[1] * C;
    for (size_t r = first; r < end; r++)
        j->k->key_prep(at_row(a->u, r), at_row(a->rkv, r), at_row(a->lora, r),
                       tensor_is(a->in) ? at_row(a->in, r) : NULL, f32(a->w), plane, C, C / a->H);
}

static void cpu_key_prep(struct backend *be, struct tensor u, struct tensor rkv, struct tensor lora,
                         struct tensor v_first, struct tensor vecs, int H) {
    run_rows(
        be, u.dim[1], key_prep_rows,
        &(struct args){.u = u, .rkv = rkv, .lora = lora, .in = v_first, .w = vecs, .H = (size_t)H});
}

static void key_prep_bwd_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    const struct args *a = j->args;
    const size_t C = a->du.dim[2], plane = a->du.dim[1] * C;
    for (size_t r = first; r < end; r++)
        j->k->key_prep_bwd(at_row(a->drkv, r), at_row(a->dlora, r),
                           tensor_is(a->in) ? at_row(a->extra, r) : NULL, part, at_row(a->du, r),
                           at_row(a->rkv, r), at_row(a->lora, r),
                           tensor_is(a->in) ? at_row(a->in, r) : NULL, f32(a->w), plane, C,
                           C / a->H);
}

static void cpu_key_prep_bwd(struct backend *be, struct tensor drkv, struct tensor dlora,
                             struct tensor dv_first, struct tensor dvecs, struct tensor du,
                             struct tensor rkv, struct tensor lora, struct tensor v_first,
                             struct tensor vecs, int H) {
    const struct args a = {.drkv = drkv,
                           .dlora = dlora,
                           .extra = dv_first,
                           .du = du,
                           .rkv = rkv,
                           .lora = lora,
                           .in = v_first,
                           .w = vecs,
                           .H = (size_t)H};
    run_rows_sum(be, du.dim[1], key_prep_bwd_rows, &a, &dvecs, 1);
}

static void readout_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t C = a->u.dim[2], plane = a->u.dim[1] * C;
    for (size_t r = first; r < end; r++)
        j->k->readout(at_row(a->y, r), at_row(a->x, r), at_row(a->z, r), at_row(a->u, r),
                      at_row(a->in, r), f32(a->w), plane, C, C / a->H);
}

static void cpu_readout(struct backend *be, struct tensor o, struct tensor y, struct tensor r,
                        struct tensor u, struct tensor g, struct tensor vecs, int H) {
    run_rows(be, y.dim[0], readout_rows,
             &(struct args){.y = o, .x = y, .z = r, .u = u, .in = g, .w = vecs, .H = (size_t)H});
}

static void readout_bwd_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    const struct args *a = j->args;
    const size_t C = a->u.dim[2], plane = a->u.dim[1] * C;
    for (size_t r = first; r < end; r++)
        j->k->readout_bwd(at_row(a->y, r), at_row(a->extra, r), at_row(a->du, r), at_row(a->dg, r),
                          part, at_row(a->dy, r), at_row(a->x, r), at_row(a->z, r), at_row(a->u, r),
                          at_row(a->in, r), f32(a->w), plane, C, C / a->H);
}

static void cpu_readout_bwd(struct backend *be, struct tensor dy, struct tensor dr,
                            struct tensor du, struct tensor dg, struct tensor dvecs,
                            struct tensor d_o, struct tensor y, struct tensor r, struct tensor u,
                            struct tensor g, struct tensor vecs, int H) {
    const struct args a = {.y = dy,
                           .extra = dr,
                           .du = du,
                           .dg = dg,
                           .dy = d_o,
                           .x = y,
                           .z = r,
                           .u = u,
                           .in = g,
                           .w = vecs,
                           .H = (size_t)H};
    run_rows_sum(be, y.dim[0], readout_bwd_rows, &a, &dvecs, 1);
}

// ---- loss and optimizer ------------------------------------------------------------------------

static void xent_rows(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    const size_t V = a->x.dim[1];
    const int32_t *target = tensor_host(a->in);
    for (size_t r = first; r < end; r++)
        f32(a->y)[r] = j->k->xent(tensor_is(a->dy) ? f32(a->dy) + r * V : NULL, f32(a->x) + r * V,
                                  V, target[r], a->scale, a->flag);
}

static void cpu_xent(struct backend *be, struct tensor loss, struct tensor dlogits,
                     struct tensor logits, struct tensor target, float scale, bool l2wrap) {
    run_rows(be, logits.dim[0], xent_rows,
             &(struct args){.y = loss,
                            .dy = dlogits,
                            .x = logits,
                            .in = target,
                            .scale = scale,
                            .flag = l2wrap});
}

static void cpu_sum(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    (void)be;
    double s = more ? *(double *)tensor_host(sum) : 0;
    for (size_t i = 0; i < tensor_count(x); i++) s += (double)f32(x)[i];
    *(double *)tensor_host(sum) = s;
}

static void sumsq_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct args *a = j->args;
    // The parts are doubles, one a block.
    ((double *)tensor_host(a->y))[first / ELEMENT_BLOCK] =
        j->k->sumsq(f32(a->x) + first, end - first);
}

static void cpu_sumsq(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    const size_t n = tensor_count(x), blocks = (n + ELEMENT_BLOCK - 1) / ELEMENT_BLOCK;
    struct buffer parts = {.be = be, .host = cpu_scratch(cpu_of(be), 2 * blocks)};
    run_elements(be, n, sumsq_some,
                 &(struct args){.x = x, .y = {.buf = &parts, .dtype = DT_F64, .ndim = 1}});
    double s = more ? *(double *)tensor_host(sum) : 0;
    for (size_t b = 0; b < blocks; b++) s += ((const double *)parts.host)[b];
    *(double *)tensor_host(sum) = s;
}

struct adamw_args {
    float *p, *m, *v;
    const float *g;
    struct adamw_constants c;
};

static void adamw_some(const struct rows_job *j, size_t first, size_t end, float *part) {
    (void)part;
    const struct adamw_args *a = j->args;
    j->k->adamw(a->p + first, a->m + first, a->v + first, a->g + first, end - first, &a->c);
}

static void cpu_adamw(struct backend *be, const struct adamw *t) {
    const double *sums = tensor_host(t->sums), *now = tensor_host(t->now);
    if (!isfinite(sums[0]) || !isfinite(sums[1])) return;
    const double want = t->clip / (sqrt(sums[0]) + 1e-6);
    for (size_t k = 0; k < t->groups.dim[0]; k++) {
        const struct adamw_group *g = (const struct adamw_group *)tensor_host(t->groups) + k;
        const struct adamw_args a = {.p = f32(t->p) + g->first,
                                     .m = f32(t->m) + g->first,
                                     .v = f32(t->v) + g->first,
                                     .g = f32(t->g) + g->first,
                                     .c = {.factor = t->clip > 0 && want < 1 ? (float)want : 1.0f,
                                           .b1 = (float)t->beta1,
                                           .e1 = (float)(1 - t->beta1),
                                           .b2 = (float)t->beta2,
                                           .e2 = (float)(1 - t->beta2),
                                           .c1 = (float)(1 / now[1]),
                                           .c2 = (float)(1 / now[2]),
                                           .eps = (float)t->eps,
                                           .lr = (float)(now[0] * g->lr_scale),
                                           .wd = (float)g->weight_decay}};
        run_elements(be, (size_t)g->count, adamw_some, &a);
    }
    const size_t last = tensor_is(t->rounded) ? t->rounded.dim[0] : 0;
    if (last) cpu_copy(be, t->rounded, tensor_slice(t->p, t->p.dim[0] - last, last));
}

// ---- the backend -------------------------------------------------------------------------------

static const struct ops cpu_ops = {
    .embed = cpu_embed,
    .embed_bwd = cpu_embed_bwd,
    .gather_rows = cpu_gather_rows,
    .norm = cpu_norm,
    .norm_bwd = cpu_norm_bwd,
    .shift_mix = cpu_shift_mix,
    .shift_mix_bwd = cpu_shift_mix_bwd,
    .matmul = cpu_matmul,
    .matmul_bwd_x = cpu_matmul_bwd_x,
    .matmul_bwd_w = cpu_matmul_bwd_w,
    .act = cpu_act,
    .act_bwd = cpu_act_bwd,
    .key_prep = cpu_key_prep,
    .key_prep_bwd = cpu_key_prep_bwd,
    .wkv7 = cpu_wkv7,
    .wkv7_bwd = cpu_wkv7_bwd,
    .readout = cpu_readout,
    .readout_bwd = cpu_readout_bwd,
    .xent = cpu_xent,
    .sample = cpu_sample,
    .sum = cpu_sum,
    .sumsq = cpu_sumsq,
    .adamw = cpu_adamw,
    .fill = cpu_fill,
    .copy = cpu_copy,
    .add = cpu_add,
};

static void cpu_destroy(struct backend *be) {
    struct cpu *cpu = cpu_of(be);
    pool_destroy(cpu->pool);
    mem_pages_free(cpu->scratch, cpu->scratch_floats * sizeof(float));
    free(cpu);
}

static const struct backend_class cpu_class = {
    .destroy = cpu_destroy,
    .buffer_create = host_buffer_create,
    .buffer_destroy = host_buffer_destroy,
    .upload = host_upload,
    .download = host_download,
    .sync = host_sync,
    .fetch = host_download,
    .fetched = host_fetched,
    .weight_create = cpu_weight_create,
    .weight_refresh = cpu_weight_refresh,
    .weight_destroy = cpu_weight_destroy,
    .weight_bytes = cpu_weight_bytes,
    .measure = cpu_measure,
    .wkv7_saved_bytes = cpu_wkv7_saved_bytes,
    .wkv7_grain = host_wkv7_grain,
    .head_rows = 256,
    .prompt_rows = 256,
};

int cpu_open(struct backend **out, int num_threads, struct error *err) {
    if (num_threads < 0 || num_threads > 1024)
        return fail(err, E_ARG, "num_threads is %d, expected 0 (all) to 1024", num_threads);
    struct cpu *cpu = mem_zero(1, sizeof *cpu);
    cpu->base = (struct backend){
        .name = "cpu", .real = DT_F32, .ops = &cpu_ops, .class = &cpu_class, .depth = 1};
    cpu->pool = pool_create(num_threads);
    cpu->k = kernels_pick();
    *out = &cpu->base;
    return 0;
}

const char *cpu_isa(const struct backend *be) {
    return ((const struct cpu *)be)->k->isa;
}
