#include "train/optimizer.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>

static void lay_out(struct optimizer *o, struct carver *c, const struct model *m) {
    const size_t n = tensor_count(m->master);
    o->m = carve(c, m->be->real, 1, &n);
    o->v = carve(c, m->be->real, 1, &n);
    o->all_sums = carve(c, DT_F64, 2, (size_t[]){MAX_DEPTH, 2});
    o->now = carve(c, DT_F64, 1, &(size_t){3});
    o->groups = carve(c, DT_U8, 2, // at most
                      (size_t[]){(size_t)m->num_params, sizeof(struct adamw_group)});
}

size_t optimizer_bytes(const struct model *m) {
    struct optimizer o;
    struct carver c = {0};
    lay_out(&o, &c, m);
    return c.used;
}

static int by_offset(const void *a, const void *b) {
    const struct param *p = *(const struct param *const *)a, *q = *(const struct param *const *)b;
    return p->offset < q->offset ? -1 : p->offset > q->offset;
}

static void find_groups(struct optimizer *o) {
    const struct model *m = o->model;
    const size_t n = (size_t)m->num_params;
    const struct param **order = mem_zero(n, sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = &m->params[i];
    qsort(order, n, sizeof *order, by_offset);
    struct adamw_group *groups = mem_zero(n, sizeof *groups);
    size_t count = 0;
    bool joins = false; // whether the next one may join the last group
    for (size_t i = 0; i < n; i++) {
        const struct param *p = order[i];
        struct adamw_group *last = &groups[count];
        const struct adamw_group g = {
            .first = (int64_t)p->offset,
            .count = (int64_t)p->count,
            .lr_scale = p->lr_scale > 1 ? o->options.w0_lr_scale : 1,
            .weight_decay = p->decay ? o->options.weight_decay : 0,
        };
        if (p->unused)
            joins = false;
        else if (joins && last[-1].lr_scale == g.lr_scale &&
                 last[-1].weight_decay == g.weight_decay)
            last[-1].count = g.first + g.count - last[-1].first;
        else
            *last = g, count++, joins = true;
    }
    o->groups = tensor_slice(o->groups, 0, count);
    m->be->class->upload(m->be, o->groups, groups);
    free(order);
    free(groups);
}

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     struct error *err) {
    struct buffer *memory = buffer_create(m->be, optimizer_bytes(m), err);
    if (!memory) return fail_in(err, "memory for the optimizer");
    struct optimizer *o = mem_zero(1, sizeof *o);
    *o = (struct optimizer){.model = m, .options = options, .memory = memory};
    lay_out(o, &(struct carver){.buf = memory}, m);
    find_groups(o);
    *out = o;
    return 0;
}

void optimizer_destroy(struct optimizer *o) {
    if (!o) return;
    buffer_destroy(o->memory);
    free(o);
}

void optimizer_begin(struct optimizer *o, double lr, int64_t step) {
    const double t = (double)step,
                 now[] = {lr, 1 - pow(o->options.beta1, t), 1 - pow(o->options.beta2, t)};
    o->sums = tensor_at(o->all_sums, (size_t)(step % MAX_DEPTH));
    o->model->be->class->upload(o->model->be, o->now, now);
}

void optimizer_losses(struct optimizer *o, struct tensor losses, bool more) {
    op_sum(o->model->be, tensor_slice(o->sums, 1, 1), losses, more);
}

void optimizer_step(struct optimizer *o) {
    struct model *m = o->model;
    const struct optimizer_options *opt = &o->options;
    const struct adamw step = {.p = m->master,
                               .m = o->m,
                               .v = o->v,
                               .g = m->grad,
                               .rounded = m->rounded,
                               .groups = o->groups,
                               .sums = o->sums,
                               .now = o->now,
                               .beta1 = opt->beta1,
                               .beta2 = opt->beta2,
                               .eps = opt->eps,
                               .clip = opt->clip};
    op_sumsq(m->be, tensor_slice(o->sums, 0, 1), m->grad);
    op_adamw(m->be, &step);
    model_changed(m);
}
