// Models from and to weight files: strict by name and shape, naming both sides of a mismatch.
#include "base/error.h"
#include "base/hash.h"
#include "base/mem.h"
#include "model/model.h"
#include "weights/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Dimensions of 1 are written by some tools and not by others, and mean nothing.
static bool same_shape(const struct weights_tensor *t, const struct param *p) {
    int i = 0, k = 0;
    for (;;) {
        while (i < t->ndim && t->dim[i] == 1) i++;
        while (k < p->ndim && p->dim[k] == 1) k++;
        if (i == t->ndim || k == p->ndim) return i == t->ndim && k == p->ndim;
        if (t->dim[i++] != p->dim[k++]) return false;
    }
}

// ---- sizes -------------------------------------------------------------------------------------

static int read_dim(int *out, const struct weights *w, const char *name, int axis, int ndim,
                    struct error *err) {
    const struct weights_tensor *t = weights_find(w, name);
    if (!t)
        return fail(err, E_FORMAT,
                    "%s: has no tensor \"%s\"; is it an RWKV-7 model with official "
                    "names?",
                    weights_path(w), name);
    if (t->ndim != ndim || t->dim[axis] > (size_t)1 << 24) {
        char shape[64];
        weights_shape_text(shape, sizeof shape, t->ndim, t->dim);
        return fail(err, E_FORMAT, "%s: %s is %s, expected %d dimensions", weights_path(w), name,
                    shape, ndim);
    }
    *out = (int)t->dim[axis];
    return 0;
}

int model_dims_of(struct dims *out, const struct weights *w, struct error *err) {
    struct dims d = {0};
    char name[48];
    const struct {
        int *size;
        const char *name;
        int axis;
    } reads[] = {{&d.V, "emb.weight", 0},       {&d.C, "emb.weight", 1},
                 {&d.H, "blocks.0.att.r_k", 0}, {&d.Dw, "blocks.0.att.w1", 1},
                 {&d.Da, "blocks.0.att.a1", 1}, {&d.Dg, "blocks.0.att.g1", 1}};
    for (size_t i = 0; i < sizeof reads / sizeof reads[0]; i++)
        if (read_dim(reads[i].size, w, reads[i].name, reads[i].axis, 2, err)) return -1;
    do {
        snprintf(name, sizeof name, "blocks.%d.ln1.weight", d.L);
    } while (weights_find(w, name) && ++d.L <= 1024);
    // Layer 0 has no use for a value LoRA, and some files none at all.
    const char *v1 = d.L > 1 ? "blocks.1.att.v1" : "blocks.0.att.v1";
    if (d.L > 1 || weights_find(w, v1)) {
        if (read_dim(&d.Dv, w, v1, 1, 2, err)) return -1;
    } else {
        dims_default_ranks(&d);
    }
    if (dims_check(&d, err)) return fail_in(err, "%s", weights_path(w));
    *out = d;
    return 0;
}

// ---- reading -----------------------------------------------------------------------------------

// Tensors of relatives of RWKV-7 that share its names.
static const struct {
    const char *part, *what;
} relatives[] = {
    {".ffn.s_emb", "DeepEmbed (rwkv7a)"},
    {".ffn.s0", "DeepEmbed (rwkv7a)"},
    {".ffn.s1", "DeepEmbed (rwkv7a)"},
    {".ffn.s2", "DeepEmbed (rwkv7a)"},
    {".qkv.", "extra attention (rwkv7b)"},
    {"time_maa", "RWKV-6"},
    {"time_faaaa", "RWKV-6"},
    {"time_state", "a tuned state, not a model"},
    {"model.layers.", "flash-linear-attention's naming"},
};

static int refuse_unknown(const struct model *m, const struct weights *w, struct error *err) {
    for (size_t i = 0; i < weights_count(w); i++) {
        const char *name = weights_at(w, i)->name;
        int p = 0;
        while (p < m->num_params && strcmp(name, m->params[p].name)) p++;
        if (p < m->num_params) continue;
        for (size_t k = 0; k < sizeof relatives / sizeof relatives[0]; k++)
            if (strstr(name, relatives[k].part))
                return fail(err, E_UNSUPPORTED,
                            "%s: tensor \"%s\" belongs to %s, which is not "
                            "supported",
                            weights_path(w), name, relatives[k].what);
        return fail(err, E_FORMAT,
                    "%s: tensor \"%s\" is not one of an RWKV-7 model's with %d layers",
                    weights_path(w), name, m->dims.L);
    }
    return 0;
}

static int check_param(const struct weights_tensor *t, const struct param *p,
                       const struct weights *w, struct error *err) {
    char got[80], want[80];
    weights_shape_text(want, sizeof want, p->ndim, p->dim);
    if (!t)
        return fail(err, E_FORMAT, "%s: has no tensor \"%s\" %s", weights_path(w), p->name, want);
    if (same_shape(t, p)) return 0;
    weights_shape_text(got, sizeof got, t->ndim, t->dim);
    return fail(err, E_FORMAT, "%s: %s is %s, expected %s", weights_path(w), p->name, got, want);
}

static void load_into(struct model *m, struct tensor to, const struct weights_tensor *t) {
    if (to.buf->host) {
        weights_read(t, to.dtype, tensor_host(to));
        return;
    }
    void *raw = mem_alloc(tensor_bytes(to));
    weights_read(t, to.dtype, raw);
    m->be->class->upload(m->be, to, raw);
    free(raw);
}

// Without masters a matrix only passes through: from the file's numbers into the packed form. A
// backend in host memory reads them where they are.
static int load_matrix(struct model *m, int i, const struct weights_tensor *t, struct error *err) {
    const struct param *p = &m->params[i];
    const void *there = m->memory->host ? weights_in_place(t) : NULL;
    const enum dtype type = there || t->dtype == DT_BF16 ? t->dtype : m->be->real;
    struct buffer file = {.be = m->be, .host = (void *)(uintptr_t)there, .bytes = p->count},
                  *b = NULL;
    if (!there && !(b = buffer_create(m->be, p->count * dtype_size(type), err))) return -1;
    const struct tensor src = {.buf = there ? &file : b,
                               .dtype = type,
                               .ndim = 2,
                               .dim = {p->dim[0], p->dim[1]}};
    if (!there) load_into(m, src, t);
    weight_destroy(m->weights[i]);
    m->weights[i] = m->be->class->weight_create(m->be, src, tensor_none(), p->layout,
                                                model_precision(m->options, p), false);
    buffer_destroy(b);
    return 0;
}

static void hash_numbers(struct hasher *h, const struct weights_tensor *t) {
    const size_t bytes = t->count * dtype_size(t->dtype);
    const void *there = weights_in_place(t);
    if (there) {
        hasher_add(h, there, bytes);
        return;
    }
    void *flat = mem_alloc(bytes);
    weights_read(t, t->dtype, flat);
    hasher_add(h, flat, bytes);
    free(flat);
}

static int load_param(struct model *m, int i, const struct weights_tensor *t, struct error *err) {
    const struct param *p = &m->params[i];
    if (p->id == P_EMB)
        load_into(m, m->embedding, t);
    else if (m->options.trained || !p->matrix)
        load_into(m, model_master(m, i), t);
    else if (!p->unused)
        return load_matrix(m, i, t, err);
    return 0;
}

// The hash is of the sizes and of every number as it is stored: the same weights hash the same in
// .pth and .safetensors.
static int load_params(struct model *m, const struct weights *w, struct error *err) {
    struct hasher *h = hasher_create();
    int rc = 0;
    hasher_add(h, &m->dims, sizeof m->dims);
    for (int i = 0; rc == 0 && i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        const struct weights_tensor *t = weights_find(w, p->name);
        if (!t) continue;
        weights_want(t);
        if (!p->unused) hash_numbers(h, t);
        rc = load_param(m, i, t, err);
        weights_drop(t);
        if (rc) fail_in(err, "%s: %s", weights_path(w), p->name);
    }
    const uint64_t hash = hasher_digest(h);
    m->hash = hash ? hash : 1;
    hasher_destroy(h);
    return rc;
}

int model_load(struct model *m, const struct weights *w, struct error *err) {
    for (int i = 0; i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        const struct weights_tensor *t = weights_find(w, p->name);
        if (!(p->unused && !t) && check_param(t, p, w, err)) return -1;
    }
    if (refuse_unknown(m, w, err)) return -1;
    if (load_params(m, w, err)) return -1;
    if (weights_shrank(w))
        return fail(err, E_IO,
                    "%s: was cut short while it was being read; new weights are best put in an old "
                    "file's place by renaming",
                    weights_path(w));
    if (m->options.trained) model_refresh(m);
    return 0;
}

int model_open(struct model **out, struct backend *be, const char *path,
               struct model_options options, struct error *err) {
    struct weights *w;
    struct model *m = NULL;
    struct dims d;
    if (weights_open(&w, path, err)) return -1;
    int rc = model_dims_of(&d, w, err);
    if (rc == 0) rc = model_create(&m, be, &d, options, err);
    if (rc == 0) rc = model_load(m, w, err);
    weights_close(w);
    if (rc)
        model_destroy(m);
    else
        *out = m;
    return rc;
}

// ---- writing -----------------------------------------------------------------------------------

struct saved_param {
    struct backend *be;
    struct tensor values;
};

static void read_param(const struct weights_source *s, void *out) {
    const struct saved_param *p = s->context;
    void *copy = NULL; // only where the numbers are not in host memory already
    if (!p->values.buf->host) {
        copy = mem_alloc(tensor_bytes(p->values));
        p->be->class->download(p->be, copy, p->values);
    }
    dtype_convert(out, s->dtype, copy ? copy : tensor_host(p->values), p->values.dtype,
                  tensor_count(p->values));
    free(copy);
}

static int save(const struct model *m, const char *path, enum dtype stored,
                struct tensor (*values)(const struct model *, int), struct error *err) {
    assert(m->options.trained);
    struct weights_source *sources = mem_zero((size_t)m->num_params, sizeof *sources);
    struct saved_param *params = mem_zero((size_t)m->num_params, sizeof *params);
    for (int i = 0; i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        params[i] = (struct saved_param){m->be, values(m, i)};
        sources[i] = (struct weights_source){.name = p->name,
                                             .dtype = stored,
                                             .ndim = p->ndim,
                                             .read = read_param,
                                             .context = &params[i]};
        memcpy(sources[i].dim, p->dim, sizeof p->dim);
    }
    const int rc = weights_write(path, sources, (size_t)m->num_params, err);
    free(sources);
    free(params);
    return rc;
}

int model_save(const struct model *m, const char *path, enum dtype stored, struct error *err) {
    return save(m, path, stored, model_master, err);
}

int model_save_grads(const struct model *m, const char *path, struct error *err) {
    return save(m, path, m->be->real, model_grad, err);
}
