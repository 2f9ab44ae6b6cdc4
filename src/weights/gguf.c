// "GGUF", version, how many tensors and how much metadata; the metadata (key, type, value); a line
// per tensor (name, sizes innermost first, type, offset); the data, aligned. What is read is the
// architecture "rwkv7" of llama.cpp, presented under the official names and shapes: transposed
// matrices by their strides, fused vectors as parts of one, nothing copied.
#include "weights/gguf.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/unicode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The largest vocabulary has 65,536 tokens and takes 1.5 MB; models have some 40 keys.
enum {
    MAX_HEADER = 256 << 20,
    MAX_KEYS = 1024,
    MAX_KEY = 256,
    MAX_ITEMS = 1 << 24,
    MAX_NOTE = 4096,
    MAX_ALIGNMENT = 1 << 16,
    MAX_DIMS = 4,
};

typedef unsigned long long ull;

struct value {
    const char *key; // not NUL-terminated
    size_t key_len;
    enum gguf_kind kind, item; // item: of an array
    const uint8_t *data;       // of the value; of a string or array, behind its length
    size_t len;                // bytes of a string, items of an array
};

struct info {
    const char *name; // not NUL-terminated
    size_t name_len, offset, bytes;
    uint32_t type;
    int ndim;
    size_t dim[MAX_DIMS], count; // as in memory: outermost first
};

struct gguf {
    const uint8_t *data;
    size_t len, at; // the header's ceiling, and how far it is read
    struct value *values;
    size_t num_values;
    struct info *infos;
    size_t num_infos, data_begin;
};

static const uint8_t sizes[GGUF_KINDS] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

// ---- bytes -------------------------------------------------------------------------------------

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t n = 0;
    for (int i = 0; i < bytes; i++) n |= (uint64_t)p[i] << 8 * i;
    return n;
}

// Where the next `len` bytes lie, or NULL.
static const uint8_t *take(struct gguf *g, uint64_t len, struct error *err) {
    if (len > g->len - g->at) {
        if (g->len == MAX_HEADER)
            fail_set(err, E_LIMIT, "the header has more than %d bytes", MAX_HEADER);
        else
            fail_set(err, E_FORMAT, "the header ends too early, at byte %zu", g->at);
        return NULL;
    }
    g->at += (size_t)len;
    return g->data + g->at - len;
}

static int take_int(uint64_t *out, struct gguf *g, int bytes, struct error *err) {
    const uint8_t *p = take(g, (uint64_t)bytes, err);
    if (!p) return -1;
    *out = little(p, bytes);
    return 0;
}

static int take_text(const char **text, size_t *len, struct gguf *g, struct error *err) {
    uint64_t n;
    if (take_int(&n, g, 8, err)) return -1;
    *text = (const char *)take(g, n, err);
    *len = (size_t)n;
    return *text ? 0 : -1;
}

// ---- metadata ----------------------------------------------------------------------------------

static int take_kind(enum gguf_kind *out, struct gguf *g, struct error *err) {
    uint64_t kind;
    if (take_int(&kind, g, 4, err)) return -1;
    if (kind >= GGUF_KINDS)
        return fail(err, E_FORMAT, "its type is %llu, expected 0 to %d", (ull)kind, GGUF_KINDS - 1);
    *out = (enum gguf_kind)kind;
    return 0;
}

static int take_array(struct value *v, struct gguf *g, struct error *err) {
    uint64_t count;
    if (take_kind(&v->item, g, err) || take_int(&count, g, 8, err)) return -1;
    if (v->item == GGUF_ARRAY) return fail(err, E_UNSUPPORTED, "it is an array of arrays");
    if (count > MAX_ITEMS)
        return fail(err, E_LIMIT, "it has %llu items, at most %d are supported", (ull)count,
                    MAX_ITEMS);
    v->len = (size_t)count;
    v->data = g->data + g->at;
    if (v->item != GGUF_STRING) return take(g, count * sizes[v->item], err) ? 0 : -1;
    for (uint64_t i = 0; i < count; i++) {
        const char *text;
        size_t len;
        if (take_text(&text, &len, g, err)) return -1;
    }
    return 0;
}

static int take_value(struct value *v, struct gguf *g, struct error *err) {
    if (take_kind(&v->kind, g, err)) return -1;
    if (v->kind == GGUF_ARRAY) return take_array(v, g, err);
    if (v->kind == GGUF_STRING) {
        const char *text;
        if (take_text(&text, &v->len, g, err)) return -1;
        v->data = (const uint8_t *)text;
        return 0;
    }
    v->data = take(g, sizes[v->kind], err);
    return v->data ? 0 : -1;
}

static const struct value *find_value(const struct gguf *g, const char *key, size_t key_len) {
    for (size_t i = 0; i < g->num_values; i++)
        if (g->values[i].key_len == key_len && memcmp(g->values[i].key, key, key_len) == 0)
            return &g->values[i];
    return NULL;
}

static int read_values(struct gguf *g, uint64_t count, struct error *err) {
    if (count > MAX_KEYS)
        return fail(err, E_LIMIT, "%llu entries of metadata, at most %d are supported", (ull)count,
                    MAX_KEYS);
    g->values = mem_zero((size_t)count, sizeof *g->values);
    for (uint64_t i = 0; i < count; i++) {
        struct value v = {0};
        if (take_text(&v.key, &v.key_len, g, err)) return -1;
        if (!v.key_len || v.key_len > MAX_KEY)
            return fail(err, E_LIMIT, "a key of the metadata has %zu bytes, expected 1 to %d",
                        v.key_len, MAX_KEY);
        for (size_t k = 0; k < v.key_len; k++)
            if (v.key[k] <= ' ' || v.key[k] > '~')
                return fail(err, E_FORMAT, "a key of the metadata is not printable ASCII");
        if (find_value(g, v.key, v.key_len))
            return fail(err, E_FORMAT, "the key \"%.*s\" is there twice", (int)v.key_len, v.key);
        if (take_value(&v, g, err)) return fail_in(err, "key \"%.*s\"", (int)v.key_len, v.key);
        g->values[g->num_values++] = v;
    }
    return 0;
}

static double number_of(const struct value *v) {
    const uint64_t n = little(v->data, sizes[v->kind]);
    const uint32_t half = (uint32_t)n;
    float f;
    double d;
    switch (v->kind) {
    case GGUF_I8: return (double)(int8_t)n;
    case GGUF_I16: return (double)(int16_t)n;
    case GGUF_I32: return (double)(int32_t)n;
    case GGUF_I64: return (double)(int64_t)n;
    case GGUF_F32: memcpy(&f, &half, 4); return (double)f;
    case GGUF_F64: memcpy(&d, &n, 8); return d;
    default: return (double)n;
    }
}

// A number of the metadata, whatever type it was written with; `fallback` where there is none.
static int number(double *out, const struct gguf *g, const char *key, double fallback,
                  struct error *err) {
    const struct value *v = find_value(g, key, strlen(key));
    *out = fallback;
    if (!v) return 0;
    if (v->kind == GGUF_STRING || v->kind == GGUF_ARRAY || v->kind == GGUF_BOOL)
        return fail(err, E_FORMAT, "key \"%s\" is not a number", key);
    *out = number_of(v);
    return 0;
}

static int check_architecture(const struct gguf *g, struct error *err) {
    static const char key[] = "general.architecture", want[] = "rwkv7";
    const struct value *v = find_value(g, key, sizeof key - 1);
    if (!v || v->kind != GGUF_STRING)
        return fail(err, E_FORMAT, "a GGUF file without the text \"%s\"", key);
    if (v->len != sizeof want - 1 || memcmp(v->data, want, sizeof want - 1)) {
        char name[24] = {0};
        for (size_t i = 0; i < v->len && i < sizeof name - 1; i++)
            name[i] = (char)(v->data[i] > ' ' && v->data[i] <= '~' ? v->data[i] : '?');
        return fail(err, E_UNSUPPORTED, "a GGUF file of the architecture \"%s\"; \"%s\" is read",
                    name, want);
    }
    return 0;
}

// What the file says must be what this program computes.
static int check_values(const struct gguf *g, struct error *err) {
    static const struct {
        const char *key;
        double want, off;
    } rules[] = {
        {"rwkv7.attention.layer_norm_epsilon", 1e-5, 1e-8},
        {"rwkv7.token_shift_count", 2, 0},
        {"split.count", 1, 0}, // a model in several files
    };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        double got;
        if (number(&got, g, rules[i].key, rules[i].want, err)) return -1;
        if (!(fabs(got - rules[i].want) <= rules[i].off))
            return fail(err, E_UNSUPPORTED, "\"%s\" is %g, only %g is supported", rules[i].key, got,
                        rules[i].want);
    }
    return 0;
}

static char *note_value(struct arena *a, const struct value *v) {
    char text[64];
    bool fine = v->len <= MAX_NOTE;
    if (v->kind == GGUF_ARRAY) {
        snprintf(text, sizeof text, "(%zu items)", v->len);
    } else if (v->kind == GGUF_STRING) {
        for (size_t i = 0, step; fine && i < v->len; i += step) {
            step = unicode_decode((const char *)v->data + i, v->len - i, NULL);
            fine = step && v->data[i];
            if (!step) break;
        }
        if (fine) return arena_copy(a, (const char *)v->data, v->len);
        snprintf(text, sizeof text, "(%zu bytes)", v->len);
    } else if (v->kind == GGUF_BOOL) {
        snprintf(text, sizeof text, "%s", v->data[0] ? "true" : "false");
    } else {
        snprintf(text, sizeof text, "%.9g", number_of(v));
    }
    return arena_copy(a, text, strlen(text));
}

static int add_notes(struct weights *w, const struct gguf *g, struct error *err) {
    w->notes = arena_alloc(&w->arena, g->num_values * sizeof *w->notes);
    for (size_t i = 0; w->notes && i < g->num_values; i++) {
        struct weights_note *note = &w->notes[i];
        note->key = arena_copy(&w->arena, g->values[i].key, g->values[i].key_len);
        note->value = note_value(&w->arena, &g->values[i]);
        if (!note->key || !note->value) break;
        w->num_notes++;
    }
    if (w->num_notes == g->num_values) return 0;
    return fail(err, E_LIMIT, "the metadata takes more than %zu bytes", w->arena.max_bytes);
}

// ---- tensors -----------------------------------------------------------------------------------

static enum dtype dtype_of(uint32_t type) {
    switch (type) {
    case GGUF_TYPE_F32:
    case GGUF_TYPE_Q4_0:
    case GGUF_TYPE_Q8_0: return DT_F32; // what a block's numbers are exactly
    case GGUF_TYPE_F16: return DT_F16;
    case GGUF_TYPE_BF16: return DT_BF16;
    case GGUF_TYPE_F64: return DT_F64;
    default: return DT_NONE;
    }
}

static int check_type(uint32_t type, struct error *err) {
    if (dtype_of(type)) return 0;
    if (!gguf_type_name(type)) return fail(err, E_FORMAT, "its type is %u, which is none", type);
    return fail(err, E_UNSUPPORTED,
                "it is stored as %s; f32, f16, bf16, q8_0 and q4_0 are read: make the file "
                "again with one of these (`rwkv convert` does, from the .pth)",
                gguf_type_name(type));
}

static int take_dims(struct info *t, struct gguf *g, struct error *err) {
    uint64_t ndim, dim;
    if (take_int(&ndim, g, 4, err)) return -1;
    if (ndim < 1 || ndim > MAX_DIMS)
        return fail(err, E_FORMAT, "it has %llu dimensions, expected 1 to %d", (ull)ndim, MAX_DIMS);
    t->ndim = (int)ndim;
    for (int d = t->ndim - 1; d >= 0; d--) {
        if (take_int(&dim, g, 8, err)) return -1;
        if (dim < 1 || dim > INT64_MAX) return fail(err, E_FORMAT, "a dimension is %llu", (ull)dim);
        t->dim[d] = (size_t)dim;
    }
    if (shape_count(&t->count, t->ndim, t->dim)) return fail(err, E_LIMIT, "the shape overflows");
    return 0;
}

static int take_info(struct info *t, struct gguf *g, struct error *err) {
    uint64_t type, offset;
    if (take_dims(t, g, err) || take_int(&type, g, 4, err) || take_int(&offset, g, 8, err))
        return -1;
    t->type = (uint32_t)type;
    t->offset = (size_t)offset;
    if (check_type(t->type, err)) return -1;
    const enum weights_blocks kind = gguf_blocks_of(t->type);
    if (kind) {
        if (t->dim[t->ndim - 1] % GGUF_BLOCK)
            return fail(err, E_FORMAT, "rows of %zu numbers are no whole blocks of %s",
                        t->dim[t->ndim - 1], gguf_blocks[kind].name);
        if (!__builtin_mul_overflow(t->count / GGUF_BLOCK, gguf_blocks[kind].bytes, &t->bytes))
            return 0;
    } else if (!__builtin_mul_overflow(t->count, dtype_size(dtype_of(t->type)), &t->bytes)) {
        return 0;
    }
    return fail(err, E_LIMIT, "the shape overflows");
}

static int read_infos(struct gguf *g, uint64_t count, struct error *err) {
    if (count > WEIGHTS_MAX_TENSORS)
        return fail(err, E_LIMIT, "%llu tensors, at most %d are supported", (ull)count,
                    WEIGHTS_MAX_TENSORS);
    g->infos = mem_zero((size_t)count, sizeof *g->infos);
    for (uint64_t i = 0; i < count; i++) {
        struct info *t = &g->infos[g->num_infos++];
        if (take_text(&t->name, &t->name_len, g, err)) return -1;
        if (take_info(t, g, err))
            return fail_in(err, "tensor \"%.*s\"", t->name_len > 100 ? 100 : (int)t->name_len,
                           t->name);
    }
    return 0;
}

static int by_offset(const void *a, const void *b) {
    const struct info *x = *(struct info *const *)a, *y = *(struct info *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

// Each tensor begins where the one before it ends, rounded up to the alignment, and so does the end
// of the file, whose padding may be missing.
static int check_cover(const struct gguf *g, size_t data_len, size_t alignment, struct error *err) {
    struct info **order = mem_zero(g->num_infos, sizeof *order);
    size_t at = 0;
    int rc = 0;
    for (size_t i = 0; i < g->num_infos; i++) order[i] = &g->infos[i];
    if (g->num_infos) qsort(order, g->num_infos, sizeof *order, by_offset);
    for (size_t i = 0; i < g->num_infos && rc == 0; i++) {
        const struct info *t = order[i];
        const char *wrong = NULL;
        at = (at + alignment - 1) & ~(alignment - 1);
        if (t->offset != at)
            wrong = t->offset < at ? "overlaps another one" : "leaves a gap";
        else if (at > data_len || t->bytes > data_len - at)
            wrong = "reaches past the end of the file";
        at += t->bytes;
        if (wrong)
            rc = fail(err, E_FORMAT, "tensor \"%.*s\" %s, at byte %zu of %zu bytes of data",
                      t->name_len > 100 ? 100 : (int)t->name_len, t->name, wrong, t->offset,
                      data_len);
    }
    free(order);
    if (rc == 0 && data_len > at && data_len - at >= alignment)
        rc = fail(err, E_FORMAT, "%zu bytes of data follow the last tensor", data_len - at);
    return rc;
}

// ---- names -------------------------------------------------------------------------------------

static bool same_name(const struct info *t, size_t skip, const char *name) {
    return t->name_len - skip == strlen(name) && memcmp(t->name + skip, name, strlen(name)) == 0;
}

// The row that a name belongs to, or NULL; layer -1: one of those that exist once.
static const struct gguf_name *row_of(int *layer, const struct info *t) {
    size_t at = 4;
    int n = 0;
    *layer = -1;
    for (const struct gguf_name *row = gguf_once; row->gguf; row++)
        if (same_name(t, 0, row->gguf)) return row;
    if (t->name_len < 7 || memcmp(t->name, "blk.", 4)) return NULL;
    const size_t digits = at;
    for (; at < t->name_len && at < digits + 4 && t->name[at] >= '0' && t->name[at] <= '9'; at++)
        n = 10 * n + (t->name[at] - '0');
    if (at == digits || at == t->name_len || t->name[at] != '.') return NULL;
    if (t->name[digits] == '0' && at > digits + 1) return NULL;
    *layer = n;
    for (const struct gguf_name *row = gguf_layer; row->gguf; row++)
        if (same_name(t, at + 1, row->gguf)) return row;
    return NULL;
}

static int add_part(struct weights *w, const struct weights_tensor *t, int layer, const char *part,
                    struct error *err) {
    char name[64];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", part);
    else
        snprintf(name, sizeof name, "blocks.%d.%s", layer, part);
    return weights_add(w, t, name, strlen(name), err);
}

static void set_shape(struct weights_tensor *t, int ndim, size_t a, size_t b, size_t c) {
    const size_t dim[3] = {a, b, c};
    memset(t->dim, 0, sizeof t->dim);
    t->ndim = ndim;
    t->count = 1;
    for (int d = ndim; d-- > 0;) {
        t->dim[d] = dim[d];
        t->stride[d] = t->count;
        t->count *= dim[d];
    }
}

static int add_fused(struct weights *w, const struct info *i, struct weights_tensor *t, int layer,
                     struct error *err) {
    if (i->ndim < 2 || i->dim[0] != GGUF_MIXES || i->count / GGUF_MIXES != i->dim[i->ndim - 1])
        return fail(err, E_FORMAT, "expected the shape (6,1,1,C)");
    for (int m = 0; m < GGUF_MIXES; m++) {
        set_shape(t, 3, 1, 1, i->count / GGUF_MIXES);
        if (add_part(w, t, layer, gguf_mixes[m], err)) return -1;
        t->data += i->bytes / GGUF_MIXES;
    }
    return 0;
}

static int add_tensor(struct weights *w, const struct gguf *g, const struct info *i,
                      double head_size, struct error *err) {
    int layer;
    const struct gguf_name *row = row_of(&layer, i);
    struct weights_tensor t = {.dtype = dtype_of(i->type),
                               .blocks = gguf_blocks_of(i->type),
                               .data = g->data + g->data_begin + i->offset};
    t.ndim = i->ndim;
    t.count = i->count;
    memcpy(t.dim, i->dim, sizeof i->dim);
    for (size_t d = (size_t)i->ndim, stride = 1; d-- > 0; stride *= i->dim[d]) t.stride[d] = stride;
    // A stranger keeps its name: whoever needs to know that it is none of the model's sees it.
    if (!row) return weights_add(w, &t, i->name, i->name_len, err);
    if (gguf_is_dummy(row->official, layer)) return 0;
    switch (row->form) {
    case GGUF_SAME: break;
    case GGUF_ROW: set_shape(&t, 3, 1, 1, i->count); break;
    case GGUF_HEADS:
        if (!(head_size >= 1 && head_size <= 65536) || i->count % (size_t)head_size)
            return fail(err, E_FORMAT,
                        "\"rwkv7.wkv.head_size\" is %g, which does not divide its %zu numbers",
                        head_size, i->count);
        set_shape(&t, 2, i->count / (size_t)head_size, (size_t)head_size, 0);
        break;
    case GGUF_TURNED:
        if (i->ndim != 2) return fail(err, E_FORMAT, "%d dimensions, expected 2", i->ndim);
        for (int d = 0; d < 2; d++) t.dim[d] = i->dim[1 - d];
        t.stride[0] = 1;
        t.stride[1] = i->dim[1];
        break;
    case GGUF_FUSED: return add_fused(w, i, &t, layer, err);
    }
    return add_part(w, &t, layer, row->official, err);
}

// ---- the file ----------------------------------------------------------------------------------

static int read_header(struct gguf *g, struct error *err) {
    uint64_t magic, version, tensors, values;
    if (take_int(&magic, g, 4, err) || take_int(&version, g, 4, err)) return -1;
    if (version && !(version & 0xffff))
        return fail(err, E_UNSUPPORTED, "a GGUF file for big-endian machines is not read");
    if (version != 2 && version != 3)
        return fail(err, E_UNSUPPORTED, "version %llu of GGUF; 2 and 3 are read", (ull)version);
    if (take_int(&tensors, g, 8, err) || take_int(&values, g, 8, err) ||
        read_values(g, values, err) || check_architecture(g, err) || check_values(g, err))
        return -1;
    return read_infos(g, tensors, err);
}

static int add_all(struct weights *w, struct gguf *g, struct error *err) {
    double alignment, head_size;
    if (number(&alignment, g, "general.alignment", GGUF_ALIGNMENT, err) ||
        number(&head_size, g, "rwkv7.wkv.head_size", 0, err))
        return -1;
    const size_t align = alignment >= 1 && alignment <= MAX_ALIGNMENT ? (size_t)alignment : 0;
    if (!align || (align & (align - 1)) || (double)align != alignment)
        return fail(err, E_FORMAT, "\"general.alignment\" is %g, expected a power of 2 up to %d",
                    alignment, MAX_ALIGNMENT);
    g->data_begin = (g->at + align - 1) & ~(align - 1);
    if (g->data_begin > w->file.len) {
        if (g->num_infos) return fail(err, E_FORMAT, "the file ends before its data");
        g->data_begin = w->file.len;
    }
    if (check_cover(g, w->file.len - g->data_begin, align, err)) return -1;
    for (size_t i = 0; i < g->num_infos; i++)
        if (add_tensor(w, g, &g->infos[i], head_size, err))
            return fail_in(err, "tensor \"%.*s\"",
                           g->infos[i].name_len > 100 ? 100 : (int)g->infos[i].name_len,
                           g->infos[i].name);
    return add_notes(w, g, err);
}

int gguf_read(struct weights *w, struct error *err) {
    struct gguf g = {.data = w->file.data,
                     .len = w->file.len < MAX_HEADER ? w->file.len : MAX_HEADER};
    w->format = "gguf";
    int rc = read_header(&g, err);
    if (rc == 0) rc = add_all(w, &g, err);
    free(g.values);
    free(g.infos);
    return rc;
}
