#include "train/optimizer.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/model.h"
#include "train/dist.h"

#include <math.h>
#include <stdlib.h>

static void lay_out(struct optimizer *o, struct carver *c, const struct model *m,
                    const struct optimizer_options *options, const struct dist *dist) {
    buckets_cut(&o->buckets, m, dist, !options->whole, options->bucket_bytes);
    const size_t groups = (size_t)m->num_params + (size_t)o->buckets.n; // at most
    o->m = carve(c, m->be->real, 1, &o->buckets.held);
    o->v = carve(c, m->be->real, 1, &o->buckets.held);
    o->all_sums = carve(c, DT_F64, 2, (size_t[]){MAX_DEPTH, 2});
    o->now = carve(c, DT_F64, 1, &(size_t){3});
    o->groups = carve(c, DT_U8, 2, (size_t[]){groups, sizeof(struct adamw_group)});
}

size_t optimizer_bytes(const struct model *m, struct optimizer_options options,
                       const struct dist *dist) {
    struct optimizer o;
    struct carver c = {0};
    lay_out(&o, &c, m, &options, dist);
    buckets_free(&o.buckets);
    return c.used;
}

static int by_offset(const void *a, const void *b) {
    const struct param *p = *(const struct param *const *)a, *q = *(const struct param *const *)b;
    return p->offset < q->offset ? -1 : p->offset > q->offset;
}

// Of the model's layout, in order; returns how many.
static size_t find_groups(struct adamw_group *groups, const struct optimizer *o) {
    const struct model *m = o->model;
    const size_t n = (size_t)m->num_params;
    const struct param **order = mem_zero(n, sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = &m->params[i];
    qsort(order, n, sizeof *order, by_offset);
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
    free(order);
    return count;
}

// The groups as this process's shares cut them, bucket by bucket.
static void cut_groups(struct optimizer *o) {
    const size_t most = o->groups.dim[0];
    struct adamw_group *all = mem_zero(most, sizeof *all), *cut = mem_zero(most, sizeof *cut);
    const size_t n = find_groups(all, o);
    int count = 0;
    o->first_group = mem_zero((size_t)o->buckets.n + 1, sizeof *o->first_group);
    for (int b = 0; b < o->buckets.n; b++) {
        const struct share *s = &o->buckets.at[b].own;
        const int64_t first = (int64_t)s->first, end = first + (int64_t)s->count;
        o->first_group[b] = count;
        for (size_t i = 0; i < n; i++) {
            const int64_t from = all[i].first > first ? all[i].first : first;
            const int64_t stop = all[i].first + all[i].count, to = stop < end ? stop : end;
            if (from >= to) continue;
            cut[count] = all[i];
            cut[count].first = from - first;
            cut[count++].count = to - from;
        }
    }
    o->first_group[o->buckets.n] = count;
    o->groups = tensor_slice(o->groups, 0, (size_t)count);
    o->model->be->class->upload(o->model->be, o->groups, cut);
    free(all);
    free(cut);
}

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     const struct dist *dist, struct error *err) {
    struct buffer *memory = buffer_create(m->be, optimizer_bytes(m, options, dist), err);
    if (!memory) return fail_in(err, "memory for the optimizer");
    struct optimizer *o = mem_zero(1, sizeof *o);
    *o = (struct optimizer){.model = m, .dist = dist, .options = options, .memory = memory};
    lay_out(o, &(struct carver){.buf = memory}, m, &options, dist);
    cut_groups(o);
    *out = o;
    return 0;
}

void optimizer_destroy(struct optimizer *o) {
    if (!o) return;
    buffer_destroy(o->memory);
    buckets_free(&o->buckets);
    free(o->first_group);
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

void optimizer_reached(void *ctx, int layer) {
    const struct optimizer *o = ctx;
    buckets_reduce(&o->buckets, o->dist, o->model->grad, layer);
    if (layer < 0) dist_wait(o->dist);
}

// Of each bucket the share; what everybody has, the first process counts.
static void sum_up(struct optimizer *o) {
    struct backend *be = o->model->be;
    const struct tensor norm2 = tensor_slice(o->sums, 0, 1);
    if (o->dist) op_fill(be, norm2, 0);
    for (int b = 0; b < o->buckets.n; b++) {
        const struct bucket *k = &o->buckets.at[b];
        if (k->split || dist_rank(o->dist) == 0)
            op_sumsq(be, norm2, tensor_slice(o->model->grad, k->own.first, k->own.count),
                     o->dist != NULL);
    }
    dist_start(o->dist, ALL_REDUCE, o->sums);
    dist_wait(o->dist);
}

static void update(struct optimizer *o, int b) {
    struct model *m = o->model;
    const struct optimizer_options *opt = &o->options;
    const struct share *s = &o->buckets.at[b].own;
    const int first = o->first_group[b], count = o->first_group[b + 1] - first;
    const struct adamw step = {.p = tensor_slice(m->master, s->first, s->count),
                               .m = tensor_slice(o->m, s->at, s->count),
                               .v = tensor_slice(o->v, s->at, s->count),
                               .g = tensor_slice(m->grad, s->first, s->count),
                               .rounded = o->dist ? tensor_none() : m->rounded,
                               .groups = tensor_slice(o->groups, (size_t)first, (size_t)count),
                               .sums = o->sums,
                               .now = o->now,
                               .beta1 = opt->beta1,
                               .beta2 = opt->beta2,
                               .eps = opt->eps,
                               .clip = opt->clip};
    if (count) op_adamw(m->be, &step);
}

// The shares of a bucket come together while the next bucket is updated.
void optimizer_step(struct optimizer *o) {
    sum_up(o);
    for (int b = 0; b < o->buckets.n; b++) {
        update(o, b);
        bucket_gather(&o->buckets.at[b], o->dist, o->model->master);
    }
    dist_wait(o->dist);
    if (o->dist)
        model_refresh(o->model); // the others' shares are not rounded yet
    else
        model_changed(o->model);
}

struct tensor optimizer_gather(struct optimizer *o, struct tensor moment) {
    const struct model *m = o->model;
    if (tensor_count(moment) == tensor_count(m->grad)) return moment;
    for (int b = 0; b < o->buckets.n; b++) {
        const struct share *s = &o->buckets.at[b].own;
        op_copy(m->be, tensor_slice(m->grad, s->first, s->count),
                tensor_slice(moment, s->at, s->count));
        bucket_gather(&o->buckets.at[b], o->dist, m->grad);
    }
    dist_wait(o->dist);
    return m->grad;
}

void optimizer_scatter(struct optimizer *o, struct tensor moment, const void *all) {
    struct backend *be = o->model->be;
    for (int b = 0; b < o->buckets.n; b++) {
        const struct share *s = &o->buckets.at[b].own;
        be->class->upload(be, tensor_slice(moment, s->at, s->count),
                          (const char *)all + s->first * dtype_size(moment.dtype));
    }
}
