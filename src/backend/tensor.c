#include "backend/backend.h"

#include <assert.h>
#include <string.h>

struct tensor tensor_none(void) {
    return (struct tensor){0};
}

bool tensor_is(struct tensor t) {
    return t.buf != NULL;
}

size_t tensor_count(struct tensor t) {
    size_t n = 1;
    for (int i = 0; i < t.ndim; i++) n *= t.dim[i];
    return n;
}

size_t tensor_bytes(struct tensor t) {
    return tensor_count(t) * dtype_size(t.dtype);
}

struct tensor tensor_at(struct tensor t, size_t i) {
    if (!tensor_is(t)) return t;
    assert(t.ndim >= 2 && i < t.dim[0]);
    struct tensor v = {.buf = t.buf, .dtype = t.dtype, .ndim = t.ndim - 1};
    for (int d = 1; d < t.ndim; d++) v.dim[d - 1] = t.dim[d];
    v.offset = t.offset + i * tensor_bytes(v);
    return v;
}

struct tensor tensor_slice(struct tensor t, size_t first, size_t n) {
    if (!tensor_is(t)) return t;
    assert(t.ndim >= 1 && first <= t.dim[0] && n <= t.dim[0] - first);
    struct tensor v = t;
    v.dim[0] = 1;
    v.offset = t.offset + first * tensor_bytes(v);
    v.dim[0] = n;
    return v;
}

struct tensor tensor_shape(struct tensor t, int ndim, const size_t *dim) {
    struct tensor v = {.buf = t.buf, .offset = t.offset, .dtype = t.dtype, .ndim = ndim};
    assert(ndim >= 1 && ndim <= 5);
    for (int d = 0; d < ndim; d++) v.dim[d] = dim[d];
    assert(!tensor_is(t) || tensor_count(v) == tensor_count(t));
    return v;
}

void *tensor_host(struct tensor t) {
    if (!tensor_is(t)) return NULL;
    assert(t.buf->host);
    return (char *)t.buf->host + t.offset;
}

struct tensor carve(struct carver *c, enum dtype type, int ndim, const size_t *dim) {
    struct tensor t = {.buf = c->buf, .dtype = type, .ndim = ndim};
    for (int d = 0; d < ndim; d++) t.dim[d] = dim[d];
    t.offset = (c->used + 63) & ~(size_t)63;
    c->used = t.offset + tensor_bytes(t);
    assert(!c->buf || c->used <= c->buf->bytes);
    return t;
}

struct precision precision_parse(const char *name) {
    static const struct {
        const char *name;
        struct precision precision;
    } known[] = {{"f32", {DT_F32, DT_F32}},
                 {"bf16", {DT_BF16, DT_BF16}},
                 {"bf16w", {DT_BF16, DT_F32}},
                 {"int8", {DT_INT8, DT_F32}},
                 {"int4", {DT_INT4, DT_F32}}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(name, known[i].name) == 0) return known[i].precision;
    return (struct precision){DT_NONE, DT_NONE};
}

void batch_count(struct batch *b, const struct span *spans, int n) {
    b->spans = n;
    b->singles = 0;
    while (b->singles < n && spans[n - 1 - b->singles].len == 1) b->singles++;
    b->longest = 1;
    b->remainders = 0;
    for (int i = 0; i < n - b->singles; i++) {
        if (spans[i].len > b->longest) b->longest = spans[i].len;
        b->remainders |= (uint64_t)1 << spans[i].len % 64;
    }
}
