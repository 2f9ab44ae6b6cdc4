#include "train/optimizer.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>

static void lay_out(struct optimizer *o, struct carver *c, const struct backend *be, size_t n) {
    o->m = carve(c, be->real, 1, &n);
    o->v = carve(c, be->real, 1, &n);
    o->norm2 = carve(c, DT_F64, 1, &(size_t){1});
}

size_t optimizer_bytes(const struct backend *be, size_t parameters) {
    struct optimizer o;
    struct carver c = {0};
    lay_out(&o, &c, be, parameters);
    return c.used;
}

static int by_offset(const void *a, const void *b) {
    const struct param *p = *(const struct param *const *)a, *q = *(const struct param *const *)b;
    return p->offset < q->offset ? -1 : p->offset > q->offset;
}

static void find_runs(struct optimizer *o) {
    const struct model *m = o->model;
    const size_t n = (size_t)m->num_params;
    const struct param **order = mem_zero(n, sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = &m->params[i];
    qsort(order, n, sizeof *order, by_offset);
    o->runs = mem_zero(n, sizeof *o->runs);
    bool joins = false; // whether the next one may join the last run
    for (size_t i = 0; i < n; i++) {
        const struct param *p = order[i];
        struct run_of_params *last = &o->runs[o->num_runs];
        const struct run_of_params r = {
            .first = p->offset,
            .count = p->count,
            .lr_scale = p->lr_scale > 1 ? o->options.w0_lr_scale : 1,
            .weight_decay = p->decay ? o->options.weight_decay : 0,
        };
        if (p->unused)
            joins = false;
        else if (joins && last[-1].lr_scale == r.lr_scale &&
                 last[-1].weight_decay == r.weight_decay)
            last[-1].count = p->offset + p->count - last[-1].first;
        else
            *last = r, o->num_runs++, joins = true;
    }
    free(order);
}

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     struct error *err) {
    const size_t n = tensor_count(m->master);
    struct buffer *memory = buffer_create(m->be, optimizer_bytes(m->be, n), err);
    if (!memory) return fail_in(err, "memory for the optimizer");
    struct optimizer *o = mem_zero(1, sizeof *o);
    *o = (struct optimizer){.model = m, .options = options, .memory = memory};
    lay_out(o, &(struct carver){.buf = memory}, m->be, n);
    find_runs(o);
    *out = o;
    return 0;
}

void optimizer_destroy(struct optimizer *o) {
    if (!o) return;
    buffer_destroy(o->memory);
    free(o->runs);
    free(o);
}

double optimizer_grad_norm(struct optimizer *o) {
    double norm2;
    op_sumsq(o->model->be, o->norm2, o->model->grad);
    o->model->be->class->download(o->model->be, &norm2, o->norm2);
    return sqrt(norm2);
}

void optimizer_step(struct optimizer *o, double lr, int64_t step) {
    struct model *m = o->model;
    const struct optimizer_options *opt = &o->options;
    for (int i = 0; i < o->num_runs; i++) {
        const struct run_of_params *r = &o->runs[i];
        const struct adamw h = {.lr = lr * r->lr_scale,
                                .beta1 = opt->beta1,
                                .beta2 = opt->beta2,
                                .eps = opt->eps,
                                .weight_decay = r->weight_decay,
                                .step = step,
                                .clip = opt->clip};
        op_adamw(m->be, tensor_slice(m->master, r->first, r->count),
                 tensor_slice(o->m, r->first, r->count), tensor_slice(o->v, r->first, r->count),
                 tensor_slice(m->grad, r->first, r->count), o->norm2, &h);
    }
    model_refresh(m);
}
