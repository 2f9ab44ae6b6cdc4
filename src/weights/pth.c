// torch.save's container: a stored zip with <top>/data.pkl (the names and shapes) and one member
// <top>/data/KEY for each storage, which several tensors may share.
#include "weights/internal.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/str.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A tensor expanded from fewer elements may repeat them, within reason: strides of 0 would make
// terabytes out of a small file.
enum { MAX_REPEATED = 1 << 24 };

// ---- reading -----------------------------------------------------------------------------------

struct archive {
    struct zip_member *members; // sorted by name
    size_t count;
    const char *top; // with its slash; not NUL-terminated
    size_t top_len;
};

// The member "<top><folder><key>", or NULL.
static const struct zip_member *find_member(const struct archive *a, const char *folder,
                                            const char *key, size_t key_len) {
    char name[1200];
    if (a->top_len + strlen(folder) + key_len >= sizeof name) return NULL;
    const int len = snprintf(name, sizeof name, "%.*s%s%.*s", (int)a->top_len, a->top, folder,
                             (int)key_len, key);
    const struct zip_member wanted = {.name = name, .name_len = (size_t)len};
    return bsearch(&wanted, a->members, a->count, sizeof wanted, zip_order);
}

// "<top>/data.pkl" names the top folder, which is arbitrary and the same for all members.
static const struct zip_member *find_pickle(struct archive *a, struct error *err) {
    static const char tail[] = "/data.pkl";
    const struct zip_member *pickle = NULL;
    for (size_t i = 0; i < a->count; i++) {
        const struct zip_member *m = &a->members[i];
        const char *slash = memchr(m->name, '/', m->name_len);
        if (!slash || m->name + m->name_len - slash != sizeof tail - 1 ||
            memcmp(slash, tail, sizeof tail - 1))
            continue;
        if (pickle) {
            fail(err, E_FORMAT, "the zip archive holds several checkpoints");
            return NULL;
        }
        pickle = m;
        a->top = m->name;
        a->top_len = (size_t)(slash - m->name) + 1;
    }
    if (!pickle) fail(err, E_FORMAT, "a zip archive without data.pkl is no torch checkpoint");
    return pickle;
}

// The last element that the strides reach must lie inside the storage.
static int check_reach(const struct pickled_tensor *p, size_t count, size_t storage_bytes,
                       struct error *err) {
    size_t last = p->offset;
    if (!count) return 0;
    for (int d = 0; d < p->ndim; d++) {
        size_t step;
        if (__builtin_mul_overflow(p->dim[d] - 1, p->stride[d], &step) ||
            __builtin_add_overflow(last, step, &last))
            return fail(err, E_FORMAT, "its strides overflow");
    }
    if (last >= storage_bytes / dtype_size(p->dtype))
        return fail(err, E_FORMAT, "it reaches element %zu of a storage of %zu bytes of %s", last,
                    storage_bytes, dtype_name(p->dtype));
    return 0;
}

static int add_tensor(struct weights *w, const struct archive *a, const struct pickled_tensor *p,
                      struct error *err) {
    struct weights_tensor t = {.dtype = p->dtype, .ndim = p->ndim};
    memcpy(t.dim, p->dim, sizeof t.dim);
    memcpy(t.stride, p->stride, sizeof t.stride);
    if (shape_count(&t.count, t.ndim, t.dim)) return fail(err, E_LIMIT, "the shape overflows");
    const struct zip_member *m = find_member(a, "data/", p->storage, p->storage_len);
    if (!m)
        return fail(err, E_FORMAT, "its storage \"%.*s\" is not in the archive",
                    p->storage_len > 100 ? 100 : (int)p->storage_len, p->storage);
    if (p->storage_count > m->len / dtype_size(p->dtype))
        return fail(err, E_FORMAT, "its storage should have %zu elements of %s but has %zu bytes",
                    p->storage_count, dtype_name(p->dtype), m->len);
    if (t.count > p->storage_count && t.count > MAX_REPEATED)
        return fail(err, E_LIMIT, "its %zu elements repeat the %zu of its storage", t.count,
                    p->storage_count);
    if (check_reach(p, t.count, m->len, err)) return -1;
    t.data = m->data + (t.count ? p->offset * dtype_size(p->dtype) : 0);
    return weights_add(w, &t, p->name, p->name_len, err);
}

int pth_read(struct weights *w, struct error *err) {
    struct archive a = {0};
    struct pickled_tensor *tensors = NULL;
    size_t count = 0;
    int rc = -1;
    w->format = "pth";
    if (zip_read(&a.members, &a.count, w->file.data, w->file.len, err)) return -1;
    const struct zip_member *pickle = find_pickle(&a, err);
    if (!pickle) goto out;
    const struct zip_member *order = find_member(&a, "", "byteorder", strlen("byteorder"));
    if (order && (order->len != 6 || memcmp(order->data, "little", 6))) {
        fail(err, E_UNSUPPORTED, "its byteorder is not \"little\"; save it on another machine");
        goto out;
    }
    if (pickle_read(&tensors, &count, pickle->data, pickle->len, err)) goto out;
    for (size_t i = 0; i < count; i++)
        if (add_tensor(w, &a, &tensors[i], err)) {
            fail_in(err, "tensor \"%.*s\"",
                    tensors[i].name_len > 100 ? 100 : (int)tensors[i].name_len, tensors[i].name);
            goto out;
        }
    rc = 0;
out:
    free(tensors);
    free(a.members);
    return rc;
}

// ---- writing -----------------------------------------------------------------------------------

enum { MAX_PICKLE = 64 << 20, RECORD_ALIGN = 64 };

uint64_t pth_zip64_from = 0xffffffff;

static void put(struct str *s, const char *bytes, size_t len) {
    str_append(s, bytes, len);
}

static void put_int(struct str *s, uint64_t n) {
    if (n < 256) {
        put(s, (const char[]){'K', (char)n}, 2);
    } else if (n < 0x7fffffff) {
        str_putc(s, 'J');
        for (int i = 0; i < 4; i++) str_putc(s, (char)(n >> 8 * i));
    } else { // LONG1, eight bytes: below 2^63 the sign is right
        put(s, "\x8a\x08", 2);
        for (int i = 0; i < 8; i++) str_putc(s, (char)(n >> 8 * i));
    }
}

static void put_text(struct str *s, const char *text) {
    const size_t len = strlen(text);
    str_putc(s, 'X');
    for (int i = 0; i < 4; i++) str_putc(s, (char)(len >> 8 * i));
    put(s, text, len);
}

static void put_sizes(struct str *s, int n, const size_t *size) {
    str_putc(s, '(');
    for (int d = 0; d < n; d++) put_int(s, size[d]);
    str_putc(s, 't');
}

static size_t elements(const struct weights_source *s) {
    size_t n = 1;
    for (int d = 0; d < s->ndim; d++) n *= s->dim[d];
    return n;
}

static const char *storage_type(enum dtype t) {
    return t == DT_BF16  ? "BFloat16Storage"
           : t == DT_F16 ? "HalfStorage"
           : t == DT_F32 ? "FloatStorage"
                         : "DoubleStorage";
}

// {name: _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()), …}, protocol 2.
static int write_pickle(struct str *s, const struct weights_source *sources, size_t count) {
    put(s, "\x80\x02}(", 4);
    for (size_t i = 0; i < count; i++) {
        const struct weights_source *t = &sources[i];
        size_t stride[WEIGHTS_MAX_DIMS];
        for (size_t d = (size_t)t->ndim, n = 1; d-- > 0;) {
            stride[d] = n;
            n *= t->dim[d];
        }
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        put_text(s, t->name);
        str_puts(s, "ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(s, "storage");
        str_printf(s, "ctorch\n%s\n", storage_type(t->dtype));
        put_text(s, key);
        put_text(s, "cpu");
        put_int(s, elements(t));
        put(s, "tQ", 2);
        put_int(s, 0);
        put_sizes(s, t->ndim, t->dim);
        put_sizes(s, t->ndim, stride);
        str_puts(s, "\x89"
                    "ccollections\nOrderedDict\n)RtR");
    }
    return str_append(s, "u.", 2);
}

struct zip_out {
    struct file_writer file;
    struct str directory;
    uint64_t members;
};

static void put_little(struct str *s, uint64_t n, int bytes) {
    for (int i = 0; i < bytes; i++) str_putc(s, (char)(n >> 8 * i));
}

// The fields that local header and directory share, from "version needed" to the sizes.
static void put_common(struct str *s, uint32_t crc, uint64_t size) {
    const bool wide = size >= pth_zip64_from;
    put_little(s, wide ? 45 : 20, 2);
    put_little(s, 0, 2);          // flags
    put_little(s, 0, 2);          // stored
    put_little(s, 0, 2);          // time
    put_little(s, 1 << 5 | 1, 2); // 1 January 1980: the same weights give the same file
    put_little(s, crc, 4);
    put_little(s, wide ? 0xffffffff : size, 4);
    put_little(s, wide ? 0xffffffff : size, 4);
}

static void add_member(struct zip_out *z, const char *name, const void *data, uint64_t size) {
    struct str head;
    const uint64_t at = z->file.written;
    const uint32_t crc = hash_crc32(data, size);
    const bool wide = size >= pth_zip64_from, far = at >= pth_zip64_from;
    str_init(&head, 4096);
    put_little(&head, 0x04034b50, 4);
    put_common(&head, crc, size);
    // The data starts at a multiple of 64: an extra field ("FB", as torch has it) fills up.
    const uint64_t zip64 = wide ? 20 : 0, before = at + 30 + strlen(name) + zip64 + 4;
    const uint64_t padding = (RECORD_ALIGN - before % RECORD_ALIGN) % RECORD_ALIGN;
    put_little(&head, strlen(name), 2);
    put_little(&head, zip64 + 4 + padding, 2);
    str_puts(&head, name);
    if (wide) {
        put_little(&head, 1, 2);
        put_little(&head, 16, 2);
        put_little(&head, size, 8);
        put_little(&head, size, 8);
    }
    str_puts(&head, "FB");
    put_little(&head, padding, 2);
    for (uint64_t i = 0; i < padding; i++) str_putc(&head, 'Z');
    file_write(&z->file, head.data, head.len);
    file_write(&z->file, data, size);
    str_free(&head);

    struct str *d = &z->directory;
    const unsigned extra = wide || far ? 4u + (wide ? 16 : 0) + (far ? 8 : 0) : 0;
    put_little(d, 0x02014b50, 4);
    put_little(d, 45, 2); // made by
    put_common(d, crc, size);
    put_little(d, strlen(name), 2);
    put_little(d, extra, 2);
    put_little(d, 0, 2); // comment
    put_little(d, 0, 2); // disk
    put_little(d, 0, 2); // internal attributes
    put_little(d, 0, 4); // external attributes
    put_little(d, far ? 0xffffffff : at, 4);
    str_puts(d, name);
    if (extra) {
        put_little(d, 1, 2);
        put_little(d, extra - 4, 2);
        if (wide) {
            put_little(d, size, 8);
            put_little(d, size, 8);
        }
        if (far) put_little(d, at, 8);
    }
    z->members++;
}

static void end_archive(struct zip_out *z) {
    const uint64_t at = z->file.written, bytes = z->directory.len, n = z->members;
    struct str *d = &z->directory;
    const bool wide = at >= pth_zip64_from || bytes >= pth_zip64_from || n >= 0xffff;
    if (wide) {
        put_little(d, 0x06064b50, 4);
        put_little(d, 44, 8);
        put_little(d, 45, 2);
        put_little(d, 45, 2);
        put_little(d, 0, 4);
        put_little(d, 0, 4);
        put_little(d, n, 8);
        put_little(d, n, 8);
        put_little(d, bytes, 8);
        put_little(d, at, 8);
        put_little(d, 0x07064b50, 4);
        put_little(d, 0, 4);
        put_little(d, at + bytes, 8);
        put_little(d, 1, 4);
    }
    put_little(d, 0x06054b50, 4);
    put_little(d, 0, 4);
    put_little(d, wide ? 0xffff : n, 2);
    put_little(d, wide ? 0xffff : n, 2);
    put_little(d, wide ? 0xffffffff : bytes, 4);
    put_little(d, wide ? 0xffffffff : at, 4);
    put_little(d, 0, 2);
    file_write(&z->file, d->data, d->len);
}

int pth_write(const char *path, const struct weights_source *sources, size_t count,
              struct error *err) {
    struct str pickle;
    struct zip_out z = {0};
    int rc = -1;
    str_init(&pickle, MAX_PICKLE);
    str_init(&z.directory, MAX_PICKLE);
    if (write_pickle(&pickle, sources, count)) {
        fail(err, E_LIMIT, "%s: the names would pass %d bytes", path, MAX_PICKLE);
        goto out;
    }
    if (file_create(&z.file, path, err)) goto out;
    add_member(&z, "archive/data.pkl", pickle.data, pickle.len);
    add_member(&z, "archive/byteorder", "little", 6);
    for (size_t i = 0; i < count && !z.file.failed; i++) {
        char name[40];
        snprintf(name, sizeof name, "archive/data/%zu", i);
        const uint64_t bytes = elements(&sources[i]) * dtype_size(sources[i].dtype);
        void *data = mem_alloc(bytes);
        sources[i].read(&sources[i], data);
        add_member(&z, name, data, bytes);
        free(data);
    }
    add_member(&z, "archive/version", "3\n", 2);
    end_archive(&z);
    rc = file_commit(&z.file);
out:
    str_free(&pickle);
    str_free(&z.directory);
    return rc;
}
