// u64 length of the header, the header (JSON: name → dtype, shape, data_offsets), the data.
#include "weights/internal.h"

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"

#include <stdlib.h>
#include <string.h>

// The format allows 100 MB. Parsed JSON takes up to 30 times its text, and the largest models need
// less than one.
enum { MAX_HEADER = 16 << 20, MAX_NOTES = 4096 };

static const struct {
    const char *name;
    enum dtype dtype;
} dtypes[] = {{"F64", DT_F64}, {"F32", DT_F32}, {"BF16", DT_BF16}, {"F16", DT_F16}};

static enum dtype dtype_of(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(name, dtypes[i].name) == 0) return dtypes[i].dtype;
    return DT_NONE;
}

static const char *name_of(enum dtype t) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].dtype == t) return dtypes[i].name;
    return NULL;
}

static int read_shape(struct weights_tensor *t, const struct json *shape, struct error *err) {
    if (json_check_kind(shape, JSON_KIND_ARRAY, "shape", err)) return -1;
    if (json_length(shape) > WEIGHTS_MAX_DIMS)
        return fail(err, E_LIMIT, "%zu dimensions, at most %d are supported", json_length(shape),
                    WEIGHTS_MAX_DIMS);
    t->ndim = (int)json_length(shape);
    for (int d = 0; d < t->ndim; d++) {
        int64_t n;
        if (json_read_int(&n, json_item(shape, (size_t)d), 0, INT64_MAX, "a dimension", err))
            return -1;
        t->dim[d] = (size_t)n;
    }
    if (shape_count(&t->count, t->ndim, t->dim)) return fail(err, E_LIMIT, "the shape overflows");
    for (size_t d = (size_t)t->ndim, stride = 1; d-- > 0;) {
        t->stride[d] = stride;
        stride *= t->dim[d];
    }
    return 0;
}

struct extent {
    size_t begin, end;
};

static int read_tensor(struct weights_tensor *t, struct extent *x, const struct json *entry,
                       const uint8_t *data, size_t data_len, struct error *err) {
    const char *dtype;
    size_t len, bytes;
    int64_t begin, end;
    if (json_check_kind(entry, JSON_KIND_OBJECT, "the entry", err)) return -1;
    if (json_read_text(&dtype, &len, json_member(entry, "dtype"), "dtype", err)) return -1;
    t->dtype = dtype_of(dtype);
    if (!t->dtype)
        return fail(err, E_UNSUPPORTED, "dtype %.20s; supported are F64, F32, BF16 and F16", dtype);
    if (read_shape(t, json_member(entry, "shape"), err)) return -1;
    const struct json *offsets = json_member(entry, "data_offsets");
    if (json_check_kind(offsets, JSON_KIND_ARRAY, "data_offsets", err)) return -1;
    if (json_length(offsets) != 2)
        return fail(err, E_FORMAT, "data_offsets has %zu numbers, expected 2",
                    json_length(offsets));
    if (json_read_int(&begin, json_item(offsets, 0), 0, INT64_MAX, "data_offsets[0]", err) ||
        json_read_int(&end, json_item(offsets, 1), 0, INT64_MAX, "data_offsets[1]", err))
        return -1;
    if (begin > end || (uint64_t)end > data_len)
        return fail(err, E_FORMAT, "data_offsets %lld to %lld lie outside the %zu bytes of data",
                    (long long)begin, (long long)end, data_len);
    if (__builtin_mul_overflow(t->count, dtype_size(t->dtype), &bytes) ||
        bytes != (size_t)(end - begin))
        return fail(err, E_FORMAT, "%zu elements of %s take another size than its %lld bytes",
                    t->count, dtype, (long long)(end - begin));
    t->data = data + begin;
    *x = (struct extent){(size_t)begin, (size_t)end};
    return 0;
}

static int by_begin(const void *a, const void *b) {
    const struct extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

// The data must be covered exactly: no holes to hide things in, no bytes used twice.
static int check_cover(struct extent *x, size_t count, size_t data_len, struct error *err) {
    size_t at = 0;
    if (count) qsort(x, count, sizeof *x, by_begin);
    for (size_t i = 0; i < count; i++) {
        if (x[i].begin != at)
            return fail(err, E_FORMAT, "tensors %s at byte %zu of the data",
                        x[i].begin < at ? "overlap" : "leave a gap", at);
        at = x[i].end;
    }
    if (at != data_len)
        return fail(err, E_FORMAT, "%zu bytes of data follow the last tensor", data_len - at);
    return 0;
}

static int read_notes(struct weights *w, const struct json *entry, struct error *err) {
    if (json_check_kind(entry, JSON_KIND_OBJECT, "__metadata__", err)) return -1;
    const size_t count = json_length(entry);
    if (count > MAX_NOTES)
        return fail(err, E_LIMIT, "__metadata__ has %zu entries, at most %d are supported", count,
                    MAX_NOTES);
    w->notes = arena_alloc(&w->arena, count * sizeof *w->notes);
    void *at = NULL;
    const char *key;
    const struct json *value;
    while (w->notes && json_next(entry, &at, &key, &value)) {
        const char *text;
        size_t len;
        if (json_read_text(&text, &len, value, "a text of __metadata__", err)) return -1;
        struct weights_note *note = &w->notes[w->num_notes];
        note->key = arena_copy(&w->arena, key, strlen(key));
        note->value = arena_copy(&w->arena, text, len);
        if (!note->key || !note->value) break;
        w->num_notes++;
    }
    if (w->num_notes < count)
        return fail(err, E_LIMIT, "__metadata__ takes more than %zu bytes", w->arena.max_bytes);
    return 0;
}

static int read_entries(struct weights *w, const struct json *header, const uint8_t *data,
                        size_t data_len, struct error *err) {
    if (json_check_kind(header, JSON_KIND_OBJECT, "the header", err)) return -1;
    struct extent *extents = mem_zero(json_length(header), sizeof *extents);
    size_t count = 0;
    int rc = -1;
    void *at = NULL;
    const char *key;
    const struct json *entry;
    while (json_next(header, &at, &key, &entry)) {
        if (strcmp(key, "__metadata__") == 0) {
            if (read_notes(w, entry, err)) goto out;
            continue;
        }
        struct weights_tensor t = {0};
        if (read_tensor(&t, &extents[count], entry, data, data_len, err) ||
            weights_add(w, &t, key, strlen(key), err)) {
            fail_in(err, "tensor \"%.100s\"", key);
            goto out;
        }
        count++;
    }
    rc = check_cover(extents, count, data_len, err);
out:
    free(extents);
    return rc;
}

int safetensors_read(struct weights *w, struct error *err) {
    const struct file *f = &w->file;
    uint64_t header_len = 0;
    w->format = "safetensors";
    for (int i = 0; i < 8; i++) header_len |= (uint64_t)f->data[i] << 8 * i;
    if (header_len > f->len - 8)
        return fail(err, E_FORMAT, "the header claims %llu bytes; the file has %zu",
                    (unsigned long long)header_len, f->len);
    if (header_len > MAX_HEADER)
        return fail(err, E_LIMIT, "the header has %llu bytes, at most %d are supported",
                    (unsigned long long)header_len, MAX_HEADER);
    struct json *header;
    if (json_parse(&header, (const char *)f->data + 8, header_len, MAX_HEADER, "header", err))
        return -1;
    const int rc = read_entries(w, header, f->data + 8 + header_len, f->len - 8 - header_len, err);
    json_free(header);
    return rc;
}

static int write_header(struct str *out, const struct weights_source *sources, size_t count) {
    struct json_writer w = {.out = out};
    size_t at = 0;
    json_open(&w, '{');
    json_put_key(&w, "__metadata__");
    json_open(&w, '{');
    json_put_key(&w, "format");
    json_put_text(&w, "pt", 2);
    json_close(&w, '}');
    for (size_t i = 0; i < count; i++) {
        const struct weights_source *s = &sources[i];
        size_t elements = 1;
        json_put_key(&w, s->name);
        json_open(&w, '{');
        json_put_key(&w, "dtype");
        json_put_text(&w, name_of(s->dtype), strlen(name_of(s->dtype)));
        json_put_key(&w, "shape");
        json_open(&w, '[');
        for (int d = 0; d < s->ndim; d++) {
            json_put_int(&w, (int64_t)s->dim[d]);
            elements *= s->dim[d];
        }
        json_close(&w, ']');
        json_put_key(&w, "data_offsets");
        json_open(&w, '[');
        json_put_int(&w, (int64_t)at);
        at += elements * dtype_size(s->dtype);
        json_put_int(&w, (int64_t)at);
        json_close(&w, ']');
        json_close(&w, '}');
    }
    json_close(&w, '}');
    while (out->len % 8) // so that the data is aligned, as the format's own writer does
        if (str_putc(out, ' ')) return -1;
    return json_done(&w);
}

int safetensors_write(const char *path, const struct weights_source *sources, size_t count,
                      struct error *err) {
    struct str header;
    struct file_writer f;
    int rc = -1;
    str_init(&header, MAX_HEADER);
    if (write_header(&header, sources, count)) {
        fail(err, E_LIMIT, "%s: the header would pass %d bytes", path, MAX_HEADER);
        goto out;
    }
    if (file_create(&f, path, err)) goto out;
    uint8_t len[8];
    for (int i = 0; i < 8; i++) len[i] = (uint8_t)((uint64_t)header.len >> 8 * i);
    file_write(&f, len, sizeof len);
    file_write(&f, header.data, header.len);
    for (size_t i = 0; i < count && !f.failed; i++) {
        size_t elements = 1;
        for (int d = 0; d < sources[i].ndim; d++) elements *= sources[i].dim[d];
        const size_t bytes = elements * dtype_size(sources[i].dtype);
        void *data = mem_alloc(bytes);
        sources[i].read(&sources[i], data);
        file_write(&f, data, bytes);
        free(data);
    }
    rc = file_commit(&f);
out:
    str_free(&header);
    return rc;
}
