#include "model/model.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

static bool has_weight(const struct param *p) {
    return p->matrix && !p->unused;
}

static bool is_integer(enum dtype t) {
    return t == DT_INT8 || t == DT_INT4;
}

struct precision model_precision(struct model_options options, const struct param *p) {
    const bool large = p->id == P_HEAD || p->id == P_RECEPTANCE || p->id == P_KEY ||
                       p->id == P_VALUE || p->id == P_OUTPUT || p->id == P_FFN_KEY ||
                       p->id == P_FFN_VALUE;
    struct precision out = options.precision;
    if (!large && is_integer(out.stored)) out = (struct precision){DT_BF16, DT_BF16};
    return out;
}

// The embedding is looked up, not multiplied.
static enum dtype table_type(struct model_options o) {
    return o.precision.stored == DT_F32 ? DT_F32 : DT_BF16;
}

// Elements from the first matrix on, if products read them rounded.
static size_t rounded_count(const struct backend *be, const struct param *list, size_t all,
                            struct model_options o) {
    const bool rounds =
        o.trained && be->class->weight_rounds && be->class->weight_rounds(be, o.precision);
    return rounds ? all - (list[P_EMB].offset + list[P_EMB].count) : 0;
}

size_t model_bytes(const struct backend *be, const struct dims *d, struct model_options options) {
    struct param *list = mem_zero((size_t)params_count(d), sizeof *list);
    size_t vectors;
    const size_t all = params_list(list, d, &vectors), real = dtype_size(be->real);
    size_t bytes = options.trained
                       ? 2 * all * real
                       : vectors * real + list[P_EMB].count * dtype_size(table_type(options));
    for (int i = 0; i < params_count(d); i++)
        if (has_weight(&list[i]))
            bytes += be->class->weight_bytes(be, list[i].dim[0], list[i].dim[1],
                                             model_precision(options, &list[i]), options.trained);
    bytes += rounded_count(be, list, all, options) * dtype_size(options.precision.stored);
    free(list);
    return bytes;
}

static struct tensor flat(struct buffer *b, enum dtype type, size_t count) {
    return (struct tensor){.buf = b, .dtype = type, .ndim = 1, .dim = {count}};
}

static struct tensor view_of(struct tensor all, const struct param *p) {
    struct tensor t = tensor_slice(all, p->offset, p->count);
    const bool table = p->matrix || p->id == P_EMB;
    return table ? tensor_shape(t, 2, p->dim) : t;
}

static struct tensor rounded_of(const struct model *m, const struct param *p) {
    if (!tensor_is(m->rounded)) return tensor_none();
    const size_t first = tensor_count(m->master) - tensor_count(m->rounded);
    return tensor_shape(tensor_slice(m->rounded, p->offset - first, p->count), 2, p->dim);
}

int model_create(struct model **out, struct backend *be, const struct dims *d,
                 struct model_options options, struct error *err) {
    if (dims_check(d, err)) return -1;
    const enum dtype stored = options.precision.stored;
    if (stored != DT_F32 && stored != DT_BF16 && (options.trained || !is_integer(stored)))
        return fail(err, E_UNSUPPORTED, "weights stored as %s are not supported; %s are",
                    dtype_name(stored),
                    options.trained ? "f32 and bf16" : "f32, bf16, int8 and int4");
    if (options.half_states && !be->class->half_states)
        return fail(err, E_UNSUPPORTED, "the backend %s keeps states in %s; f16 is for cuda",
                    be->name, dtype_name(be->real));
    int rc = -1;
    struct model *m = mem_zero(1, sizeof *m);
    m->be = be;
    m->dims = *d;
    m->options = options;
    m->num_params = params_count(d);
    m->params = mem_zero((size_t)m->num_params, sizeof *m->params);
    m->weights = mem_zero((size_t)m->num_params, sizeof *m->weights);
    const size_t all = params_list(m->params, d, &m->num_vectors);
    const size_t kept = options.trained ? all : m->num_vectors, real = dtype_size(be->real);
    if (!(m->memory = buffer_create(be, kept * real, err))) goto out;
    m->master = flat(m->memory, be->real, kept);
    const struct param *emb = &m->params[P_EMB];
    if (options.trained) {
        const size_t last = rounded_count(be, m->params, all, options);
        if (!(m->grad_memory = buffer_create(be, all * real, err))) goto out;
        m->grad = flat(m->grad_memory, be->real, all);
        m->embedding = view_of(m->master, emb);
        if (last) {
            m->rounded_memory = buffer_create(be, last * dtype_size(stored), err);
            if (!m->rounded_memory) goto out;
            m->rounded = flat(m->rounded_memory, stored, last);
        }
        for (int i = 0; i < m->num_params; i++)
            if (has_weight(&m->params[i]))
                m->weights[i] =
                    be->class->weight_create(be, view_of(m->master, &m->params[i]),
                                             rounded_of(m, &m->params[i]), m->params[i].layout,
                                             model_precision(options, &m->params[i]), true);
    } else {
        const size_t bytes = emb->count * dtype_size(table_type(options));
        if (!(m->table_memory = buffer_create(be, bytes, err))) goto out;
        m->embedding =
            tensor_shape(flat(m->table_memory, table_type(options), emb->count), 2, emb->dim);
    }
    *out = m;
    rc = 0;
out:
    if (rc) {
        fail_in(err, "memory for the model");
        model_destroy(m);
    }
    return rc;
}

void model_destroy(struct model *m) {
    if (!m) return;
    for (int i = 0; m->weights && i < m->num_params; i++) weight_destroy(m->weights[i]);
    buffer_destroy(m->memory);
    buffer_destroy(m->table_memory);
    buffer_destroy(m->grad_memory);
    buffer_destroy(m->rounded_memory);
    free(m->weights);
    free(m->params);
    free(m);
}

void model_refresh(struct model *m) {
    assert(m->options.trained);
    m->hash = 0;
    for (int i = 0; i < m->num_params; i++)
        if (m->weights[i])
            m->be->class->weight_refresh(m->be, m->weights[i], view_of(m->master, &m->params[i]));
}

void model_changed(struct model *m) {
    if (tensor_is(m->rounded))
        m->hash = 0;
    else
        model_refresh(m);
}

struct tensor model_vector(const struct model *m, enum param_id id, int layer) {
    const struct param *p = &m->params[params_index(id, layer)];
    return tensor_shape(view_of(m->master, p), 1, &p->count);
}

struct tensor model_vectors(const struct model *m, enum param_id first, int n, int layer) {
    const struct param *p = &m->params[params_index(first, layer)];
    const size_t C = (size_t)m->dims.C;
    return tensor_shape(tensor_slice(m->master, p->offset, (size_t)n * C), 2,
                        (size_t[]){(size_t)n, C});
}

struct tensor model_master(const struct model *m, int param) {
    return view_of(m->master, &m->params[param]);
}

struct tensor model_grad(const struct model *m, int param) {
    return view_of(m->grad, &m->params[param]);
}

const struct weight *model_weight(const struct model *m, enum param_id id, int layer) {
    return m->weights[params_index(id, layer)];
}
