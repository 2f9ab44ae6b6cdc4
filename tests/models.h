// What tests of models share: numbers that others have recorded as JSON, tensors to compare them
// with, and models that are made and not read.
#pragma once
#include "backend/backend.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "model/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

// clang-format off
#include <cmocka.h>
// clang-format on

static inline struct json *read_json(const char *path) {
    struct str text;
    struct json *doc;
    struct error err;
    str_init(&text, 64 << 20);
    if (file_read(&text, path, &err) || json_parse(&doc, text.data, text.len, 64 << 20, path, &err))
        fail_msg("%s", err.msg);
    str_free(&text);
    return doc;
}

static inline double number(const struct json *v) {
    double x;
    struct error err;
    if (json_read_float(&x, v, -1e300, 1e300, "a number", &err)) fail_msg("%s", err.msg);
    return x;
}

// All numbers of nested arrays in order; returns how many.
static inline size_t flatten(const struct json *v, double *out, size_t n) {
    if (json_kind(v) != JSON_KIND_ARRAY) {
        out[n] = number(v);
        return n + 1;
    }
    for (size_t i = 0; i < json_length(v); i++) n = flatten(json_item(v, i), out, n);
    return n;
}

static inline const struct json *at(const struct json *v, const char *a, const char *b) {
    v = json_member(v, a);
    assert_non_null(v);
    if (b) v = json_member(v, b);
    assert_non_null(v);
    return v;
}

static inline int tokens_of(const struct json *v, int32_t *out) {
    double numbers[4096];
    const size_t n = flatten(v, numbers, 0);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)numbers[i];
    return (int)n;
}

// As f64.
static inline void read_tensor(struct tensor t, double *out) {
    void *raw = mem_alloc(tensor_bytes(t));
    t.buf->be->class->download(t.buf->be, raw, t);
    dtype_convert(out, DT_F64, raw, t.dtype, tensor_count(t));
    free(raw);
}

// Of f32, to be trained.
static inline struct model *created(struct backend *be, struct dims d) {
    struct model *m;
    struct error err;
    dims_default_ranks(&d);
    if (model_create(&m, be, &d,
                     (struct model_options){.precision = {DT_F32, DT_F32}, .trained = true}, &err))
        fail_msg("%s", err.msg);
    return m;
}

static inline struct model *initialised(struct backend *be, struct dims d, uint64_t seed) {
    struct model *m = created(be, d);
    model_init(m, seed);
    return m;
}
