#include "data/binidx.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/mem.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// magic 9 | version u64 | dtype u8 | items u64 | documents u64 | i32 length[items] |
// i64 byte offset[items] | i64 document[documents]: items + 1 entries 0, 1, …
enum { HEADER = 34, DTYPE_U16 = 8 };
static const char magic[9] = "MMIDIDX\0";

static const char *const dtype_names[] = {"?",   "u8",  "i8",  "i16", "i32",
                                          "i64", "f32", "f64", "u16"};

static char *with_ext(const char *prefix, const char *ext) {
    const size_t len = strlen(prefix) + strlen(ext) + 1;
    char *p = mem_alloc(len);
    snprintf(p, len, "%s%s", prefix, ext);
    return p;
}

static uint64_t u64_at(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static int32_t length_at(const struct binidx *b, uint64_t i) {
    int32_t v;
    memcpy(&v, b->idx.data + HEADER + 4 * i, 4);
    return v;
}

static int check(struct binidx *b, struct error *err) {
    const struct file *f = &b->idx;
    if (f->len < HEADER || memcmp(f->data, magic, sizeof magic))
        return fail(err, E_FORMAT, "%s.idx: does not start as a binidx index (MMIDIDX)", b->prefix);
    if (u64_at(f->data + 9) != 1)
        return fail(err, E_FORMAT, "%s.idx: version %llu, expected 1", b->prefix,
                    (unsigned long long)u64_at(f->data + 9));
    const unsigned dtype = f->data[17];
    if (dtype != DTYPE_U16)
        return fail(err, E_UNSUPPORTED, "%s.idx: tokens are of type %u (%s), expected 8 (u16)",
                    b->prefix, dtype, dtype < 9 ? dtype_names[dtype] : "?");
    const uint64_t items = u64_at(f->data + 18), documents = u64_at(f->data + 26);
    const uint64_t left = f->len - HEADER;
    if (items > left / 12 || documents > (left - 12 * items) / 8 ||
        left != 12 * items + 8 * documents)
        return fail(err, E_FORMAT,
                    "%s.idx: says %llu items and %llu documents, which its %zu bytes don't hold",
                    b->prefix, (unsigned long long)items, (unsigned long long)documents, f->len);
    b->num_documents = items;
    b->num_tokens = b->bin.len / 2;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < items; i++) {
        if (length_at(b, i) < 0 || u64_at(f->data + HEADER + 4 * items + 8 * i) != 2 * sum)
            return fail(err, E_FORMAT, "%s.idx: document %llu has a length or offset that is wrong",
                        b->prefix, (unsigned long long)i);
        sum += (uint64_t)length_at(b, i);
    }
    if (b->bin.len % 2 || sum != b->num_tokens)
        return fail(err, E_FORMAT, "%s.bin: has %zu bytes, the index says %llu tokens of 2",
                    b->prefix, b->bin.len, (unsigned long long)sum);
    return 0;
}

int binidx_open(struct binidx **out, const char *prefix, struct error *err) {
    struct binidx *b = mem_zero(1, sizeof *b);
    char *bin = with_ext(prefix, ".bin"), *idx = with_ext(prefix, ".idx");
    b->prefix = mem_strdup(prefix);
    int rc = -1;
    if (file_map(&b->bin, bin, err) || file_map(&b->idx, idx, err) || check(b, err)) goto out;
    b->tokens = (const uint16_t *)(const void *)b->bin.data; // mapped, hence aligned
    *out = b;
    rc = 0;
out:
    free(bin);
    free(idx);
    if (rc) binidx_close(b);
    return rc;
}

void binidx_close(struct binidx *b) {
    if (!b) return;
    file_unmap(&b->bin);
    file_unmap(&b->idx);
    free(b->prefix);
    free(b);
}

uint64_t binidx_document_start(const struct binidx *b, uint64_t i) {
    return i < b->num_documents ? u64_at(b->idx.data + HEADER + 4 * b->num_documents + 8 * i) / 2
                                : b->num_tokens;
}

uint16_t binidx_max_token(const struct binidx *b) {
    uint16_t max = 0;
    for (uint64_t i = 0; i < b->num_tokens; i++) max = b->tokens[i] > max ? b->tokens[i] : max;
    return max;
}

uint64_t binidx_hash(const struct binidx *b) {
    return hash64(b->bin.data, b->bin.len);
}

// ---- writing -----------------------------------------------------------------------------------

int binidx_create(struct binidx_writer *w, const char *prefix, struct error *err) {
    char *bin = with_ext(prefix, ".bin");
    *w = (struct binidx_writer){.prefix = mem_strdup(prefix), .err = err};
    const int rc = file_create(&w->bin, bin, err);
    free(bin);
    return rc;
}

int binidx_add(struct binidx_writer *w, const int32_t *tokens, size_t count) {
    uint16_t block[4096];
    if (count >= INT_MAX)
        return fail(w->err, E_LIMIT, "a document of %zu tokens; the index holds less than 2^31",
                    count);
    for (size_t at = 0; at <= count;) { // the last one is the 0 that ends the document
        size_t n = 0;
        for (; n < sizeof block / sizeof block[0] && at <= count; n++, at++)
            block[n] = at < count ? (uint16_t)tokens[at] : 0;
        if (file_write(&w->bin, block, n * sizeof *block)) return -1;
    }
    if (w->num_documents == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 1024;
        w->lengths = mem_grow(w->lengths, w->cap, sizeof *w->lengths);
    }
    w->lengths[w->num_documents++] = (uint32_t)count + 1;
    w->num_tokens += count + 1;
    return 0;
}

static int write_idx(struct binidx_writer *w) {
    char *path = with_ext(w->prefix, ".idx");
    struct file_writer f;
    const uint64_t version = 1, items = w->num_documents, documents = items + 1;
    int rc = file_create(&f, path, w->err);
    free(path);
    if (rc) return -1;
    file_write(&f, magic, sizeof magic);
    file_write(&f, &version, 8);
    file_write(&f, &(uint8_t){DTYPE_U16}, 1);
    file_write(&f, &items, 8);
    file_write(&f, &documents, 8);
    file_write(&f, w->lengths, items * sizeof *w->lengths);
    for (uint64_t i = 0, at = 0; i < items; at += 2 * (uint64_t)w->lengths[i++])
        file_write(&f, &at, 8);
    for (uint64_t i = 0; i < documents; i++) file_write(&f, &i, 8);
    return file_commit(&f);
}

// The data first: an index without its data would be believed.
int binidx_commit(struct binidx_writer *w) {
    const int rc = file_commit(&w->bin) || write_idx(w) ? -1 : 0;
    binidx_abort(w);
    return rc;
}

void binidx_abort(struct binidx_writer *w) {
    file_abort(&w->bin);
    free(w->lengths);
    free(w->prefix);
    w->lengths = NULL;
    w->prefix = NULL;
}
