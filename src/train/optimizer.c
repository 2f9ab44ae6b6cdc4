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

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     struct error *err) {
    const size_t n = tensor_count(m->master);
    struct buffer *memory = buffer_create(m->be, optimizer_bytes(m->be, n), err);
    if (!memory) return fail_in(err, "memory for the optimizer");
    struct optimizer *o = mem_zero(1, sizeof *o);
    *o = (struct optimizer){.model = m, .options = options, .memory = memory};
    lay_out(o, &(struct carver){.buf = memory}, m->be, n);
    *out = o;
    return 0;
}

void optimizer_destroy(struct optimizer *o) {
    if (!o) return;
    buffer_destroy(o->memory);
    free(o);
}

void optimizer_zero_grad(struct optimizer *o) {
    op_fill(o->model->be, o->model->grad, 0);
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
    for (int i = 0; i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        if (p->unused) continue;
        const struct adamw h = {.lr = lr * (p->lr_scale > 1 ? opt->w0_lr_scale : 1),
                                .beta1 = opt->beta1,
                                .beta2 = opt->beta2,
                                .eps = opt->eps,
                                .weight_decay = p->decay ? opt->weight_decay : 0,
                                .step = step,
                                .clip = opt->clip};
        op_adamw(m->be, tensor_slice(m->master, p->offset, p->count),
                 tensor_slice(o->m, p->offset, p->count), tensor_slice(o->v, p->offset, p->count),
                 tensor_slice(m->grad, p->offset, p->count), o->norm2, &h);
    }
    model_refresh(m);
}
