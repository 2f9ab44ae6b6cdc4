#include "weights/gguf.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/unicode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

// ---- the list ----------------------------------------------------------------------------------

static size_t slot_of(const struct weights *w, const char *name) {
    size_t i = hash64(name, strlen(name)) & (w->index_size - 1);
    while (w->index[i] && strcmp(w->tensors[w->index[i] - 1].name, name))
        i = (i + 1) & (w->index_size - 1);
    return i;
}

static void grow_index(struct weights *w) {
    free(w->index);
    w->index_size = w->index_size ? 2 * w->index_size : 256;
    w->index = mem_zero(w->index_size, sizeof *w->index);
    for (size_t i = 0; i < w->count; i++) w->index[slot_of(w, w->tensors[i].name)] = i + 1;
}

// Names are printed and written into other files, so what would upset a terminal stays outside.
static int check_name(const char *name, size_t len, struct error *err) {
    if (!len || len > WEIGHTS_MAX_NAME)
        return fail(err, E_LIMIT, "a tensor's name has %zu bytes, expected 1 to %d", len,
                    WEIGHTS_MAX_NAME);
    for (size_t i = 0, step; i < len; i += step) {
        uint32_t code;
        step = unicode_decode(name + i, len - i, &code);
        if (!step || code < ' ' || code == 0x7f)
            return fail(err, E_FORMAT, "a tensor's name is not printable UTF-8");
    }
    return 0;
}

int weights_add(struct weights *w, const struct weights_tensor *t, const char *name,
                size_t name_len, struct error *err) {
    static const char prefix[] = "_forward_module.";
    const size_t prefix_len = sizeof prefix - 1;
    if (name_len > prefix_len && memcmp(name, prefix, prefix_len) == 0) {
        name += prefix_len;
        name_len -= prefix_len;
    }
    if (check_name(name, name_len, err)) return -1;
    if (w->count == WEIGHTS_MAX_TENSORS)
        return fail(err, E_LIMIT, "more than %d tensors", WEIGHTS_MAX_TENSORS);
    if (2 * (w->count + 1) > w->index_size) grow_index(w);
    const char *copy = arena_copy(&w->arena, name, name_len);
    if (!copy) return fail(err, E_LIMIT, "names take more than %zu bytes", w->arena.max_bytes);
    const size_t slot = slot_of(w, copy);
    if (w->index[slot]) return fail(err, E_FORMAT, "the name \"%s\" is there twice", copy);
    if (w->count == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 64;
        w->tensors = mem_grow(w->tensors, w->cap, sizeof *w->tensors);
    }
    w->tensors[w->count] = *t;
    w->tensors[w->count++].name = copy;
    w->index[slot] = w->count;
    return 0;
}

const char *weights_path(const struct weights *w) {
    return w->path;
}
bool weights_shrank(const struct weights *w) {
    return file_shrank(&w->file);
}
const char *weights_format(const struct weights *w) {
    return w->format;
}
size_t weights_count(const struct weights *w) {
    return w->count;
}

const struct weights_note *weights_notes(const struct weights *w, size_t *count) {
    *count = w->num_notes;
    return w->notes;
}

const struct weights_tensor *weights_at(const struct weights *w, size_t i) {
    assert(i < w->count);
    return &w->tensors[i];
}

const struct weights_tensor *weights_find(const struct weights *w, const char *name) {
    if (!w->count) return NULL;
    const size_t slot = slot_of(w, name);
    return w->index[slot] ? &w->tensors[w->index[slot] - 1] : NULL;
}

int shape_count(size_t *out, int ndim, const size_t *dim) {
    size_t n = 1;
    if (ndim < 0 || ndim > WEIGHTS_MAX_DIMS) return -1;
    for (int d = 0; d < ndim; d++)
        if (__builtin_mul_overflow(n, dim[d], &n)) return -1;
    *out = n;
    return 0;
}

void weights_shape_text(char *out, size_t cap, int ndim, const size_t *dim) {
    size_t len = (size_t)snprintf(out, cap, "(");
    for (int d = 0; d < ndim && len < cap; d++)
        len += (size_t)snprintf(out + len, cap - len, "%s%zu", d ? "," : "", dim[d]);
    if (len < cap) snprintf(out + len, cap - len, ")");
}

const char *weights_storage(const struct weights_tensor *t) {
    return t->blocks ? gguf_blocks[t->blocks].name : dtype_name(t->dtype);
}

// Elements that lie in a row, from `offset` on.
static void read_run(const struct weights_tensor *t, enum dtype to, void *out, size_t offset,
                     size_t run) {
    if (t->blocks)
        blocks_read(t->blocks, out, to, t->data, offset, run);
    else
        dtype_convert(out, to, t->data + offset * dtype_size(t->dtype), t->dtype, run);
}

// A matrix whose columns lie in rows (GGUF's LoRA) is converted by these.
static void read_turned(const struct weights_tensor *t, enum dtype to, char *out) {
    const size_t rows = t->dim[0], cols = t->dim[1], size = dtype_size(to);
    char *column = mem_alloc(rows * size);
    for (size_t c = 0; c < cols; c++) {
        read_run(t, to, column, c * t->stride[1], rows);
        for (size_t r = 0; r < rows; r++)
            memcpy(out + (r * cols + c) * size, column + r * size, size);
    }
    free(column);
}

// Innermost dimensions that lie in a row are converted at once, the rest is walked by an odometer.
void weights_read(const struct weights_tensor *t, enum dtype to, void *out) {
    if (!t->count) return;
    if (t->ndim == 2 && t->stride[0] == 1 && t->stride[1] != 1) {
        read_turned(t, to, out);
        return;
    }
    int outer = t->ndim;
    size_t run = 1;
    while (outer > 0 && (t->stride[outer - 1] == run || t->dim[outer - 1] == 1))
        run *= t->dim[--outer];
    size_t at[WEIGHTS_MAX_DIMS] = {0};
    char *to_bytes = out;
    for (size_t done = 0; done < t->count; done += run) {
        size_t offset = 0;
        for (int d = 0; d < outer; d++) offset += at[d] * t->stride[d];
        read_run(t, to, to_bytes + done * dtype_size(to), offset, run);
        for (int d = outer - 1; d >= 0 && ++at[d] == t->dim[d]; d--) at[d] = 0;
    }
}

const void *weights_in_place(const struct weights_tensor *t) {
    size_t run = 1;
    if (t->blocks || !t->count || (uintptr_t)t->data % dtype_size(t->dtype)) return NULL;
    for (int d = t->ndim; d-- > 0; run *= t->dim[d])
        if (t->stride[d] != run && t->dim[d] != 1) return NULL;
    return t->data;
}

// The whole pages inside a tensor.
static void advise(const struct weights_tensor *t, int advice) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)weights_in_place(t);
    const uintptr_t first = (at + page - 1) / page * page;
    const uintptr_t end = (at + t->count * dtype_size(t->dtype)) / page * page;
    if (at && end > first) madvise((void *)first, end - first, advice); // a wish
}

void weights_want(const struct weights_tensor *t) {
#ifdef MADV_POPULATE_READ
    advise(t, MADV_POPULATE_READ);
#else
    advise(t, MADV_WILLNEED);
#endif
}

void weights_drop(const struct weights_tensor *t) {
    advise(t, MADV_DONTNEED);
}

// ---- opening -----------------------------------------------------------------------------------

// Ignoring case: web pages begin with <!DOCTYPE and <!doctype.
static bool starts(const struct file *f, const char *text) {
    return f->len >= strlen(text) && strncasecmp((const char *)f->data, text, strlen(text)) == 0;
}

// What people hand over by mistake, and what helps.
static const struct {
    const char *start, *what;
} strangers[] = {
    {"ggmf", "an old ggml file; use the .pth it was made from"},
    {"fmgg", "an rwkv.cpp file; use the .pth it was made from"},
    {"version https://git-lfs", "a git-lfs pointer, not the weights; run `git lfs pull`"},
    {"<!DOCTYPE", "a web page; the download went wrong"},
    {"<html", "a web page; the download went wrong"},
    {"NRUB", "a burn .bpk record; use the .pth it was made from"},
    {"\x80\x02", "a bare pickle (torch before 1.6 saved those); load and save it again with torch"},
    {"\x80\x03", "a bare pickle, not a checkpoint that torch.save wrote"},
    {"\x80\x04", "a bare pickle, not a checkpoint that torch.save wrote"},
    {"\x80\x05", "a bare pickle, not a checkpoint that torch.save wrote"},
    {"\x1f\x8b", "gzip-compressed; unpack it with gunzip"},
    {"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it with unzstd"},
    {"{", "JSON text, not weights"},
};

static int read_format(struct weights *w, struct error *err) {
    const struct file *f = &w->file;
    if (!f->len) return fail(err, E_FORMAT, "the file is empty");
    if (path_has_ext(w->path, "mpk"))
        return fail(err, E_UNSUPPORTED,
                    "burn's .mpk records cannot be read yet; use the .pth or .safetensors it was "
                    "made from (`rwkv convert` turns one into the other)");
    if (starts(f, "PK\x03\x04")) return pth_read(w, err);
    if (f->len >= 4 && memcmp(f->data, "GGUF", 4) == 0) return gguf_read(w, err);
    // Before the strangers: a length of 640 begins like a pickle, one of 123 like JSON. A length
    // below 4 GiB and a brace make none of them.
    const bool brace = f->len > 8 && f->data[8] == '{';
    if (brace && !(f->data[4] | f->data[5] | f->data[6] | f->data[7]))
        return safetensors_read(w, err);
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++)
        if (starts(f, strangers[i].start))
            return fail(err, E_UNSUPPORTED, "this is %s", strangers[i].what);
    if (brace) return safetensors_read(w, err);
    return fail(err, E_FORMAT,
                "neither a .pth (zip), a .safetensors nor a .gguf file: it starts with %02x %02x "
                "%02x %02x",
                f->data[0], f->len > 1 ? f->data[1] : 0, f->len > 2 ? f->data[2] : 0,
                f->len > 3 ? f->data[3] : 0);
}

int weights_open(struct weights **out, const char *path, struct error *err) {
    struct weights *w = mem_zero(1, sizeof *w);
    w->path = mem_strdup(path);
    w->arena.max_bytes = (size_t)64 << 20;
    if (file_map(&w->file, path, err)) goto bad;
    if (read_format(w, err)) {
        fail_in(err, "%s", path);
        goto bad;
    }
    if (weights_shrank(w)) {
        fail(err, E_IO, "%s: was cut short while it was being read", path);
        goto bad;
    }
    *out = w;
    return 0;
bad:
    weights_close(w);
    return -1;
}

void weights_close(struct weights *w) {
    if (!w) return;
    file_unmap(&w->file);
    arena_free(&w->arena);
    free(w->tensors);
    free(w->index);
    free(w->path);
    free(w);
}

int weights_write(const char *path, const struct weights_source *sources, size_t count,
                  struct error *err) {
    for (size_t i = 0; i < count; i++)
        assert(sources[i].dtype >= DT_F64 && sources[i].dtype <= DT_F16 &&
               sources[i].ndim <= WEIGHTS_MAX_DIMS);
    if (path_has_ext(path, "safetensors")) return safetensors_write(path, sources, count, err);
    if (path_has_ext(path, "pth")) return pth_write(path, sources, count, err);
    if (path_has_ext(path, "gguf"))
        return weights_write_gguf(path, sources, count, &(struct weights_gguf){0}, err);
    return fail(err, E_ARG, "%s: weights are written as .pth, .safetensors or .gguf", path);
}
