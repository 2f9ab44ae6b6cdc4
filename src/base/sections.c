#include "base/sections.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// | magic 8 | version u32 | byte order u32 | sections u32 | reserved u32 | table | hash of all that
// | then each section at a multiple of 64.
enum { VERSION = 1, BYTE_ORDER_MARK = 0x01020304, ALIGN = 64 };

struct head {
    char magic[8];
    uint32_t version, byte_order, sections, reserved;
};

struct entry {
    char name[SECTION_NAME];
    uint64_t offset, bytes, hash;
};

struct sections {
    char *path;
    struct file file;
    int count;
    struct section list[MAX_SECTIONS];
    uint64_t hashes[MAX_SECTIONS];
};

static uint64_t aligned(uint64_t n) {
    return (n + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
}

static size_t table_bytes(int count) {
    return sizeof(struct head) + (size_t)count * sizeof(struct entry);
}

int sections_write(const char *path, const char magic[8], const struct section *sections, int count,
                   struct error *err) {
    if (count < 1 || count > MAX_SECTIONS) die("bug: a file of %d sections", count);
    unsigned char table[sizeof(struct head) + MAX_SECTIONS * sizeof(struct entry) + 8] = {0};
    const struct head head = {.version = VERSION,
                              .byte_order = BYTE_ORDER_MARK,
                              .sections = (uint32_t)count};
    memcpy(table, &head, sizeof head);
    memcpy(table, magic, sizeof head.magic);
    uint64_t at = aligned(table_bytes(count) + 8);
    for (int i = 0; i < count; i++) {
        struct entry e = {.offset = at,
                          .bytes = sections[i].bytes,
                          .hash = hash64(sections[i].data, sections[i].bytes)};
        memcpy(e.name, sections[i].name, sizeof e.name);
        memcpy(table + sizeof head + (size_t)i * sizeof e, &e, sizeof e);
        at = aligned(at + e.bytes);
    }
    const uint64_t hash = hash64(table, table_bytes(count));
    memcpy(table + table_bytes(count), &hash, sizeof hash);

    static const char zeros[ALIGN];
    struct file_writer w;
    if (file_create(&w, path, err)) return -1;
    file_write(&w, table, table_bytes(count) + 8);
    for (int i = 0; i < count; i++) {
        file_write(&w, zeros, aligned(w.written) - w.written);
        file_write(&w, sections[i].data, sections[i].bytes);
    }
    return file_commit(&w);
}

static int read_table(struct sections *c, const char magic[8], struct error *err) {
    const struct file *f = &c->file;
    struct head head;
    if (f->len < sizeof head + 8) return fail(err, E_FORMAT, "%zu bytes, too short", f->len);
    memcpy(&head, f->data, sizeof head);
    if (memcmp(head.magic, magic, sizeof head.magic))
        return fail(err, E_FORMAT, "not a file of rwkv's of this kind (%.8s)", magic);
    if (head.byte_order != BYTE_ORDER_MARK)
        return fail(err, E_FORMAT, "written on a machine of the other byte order");
    if (head.version != VERSION)
        return fail(err, E_FORMAT, "version %u, expected %d", head.version, VERSION);
    if (head.sections < 1 || head.sections > MAX_SECTIONS)
        return fail(err, E_FORMAT, "%u sections, expected 1 to %d", head.sections, MAX_SECTIONS);
    const size_t table = table_bytes((int)head.sections);
    if (f->len < table + 8) return fail(err, E_FORMAT, "ends inside its table of sections");
    uint64_t hash;
    memcpy(&hash, f->data + table, sizeof hash);
    if (hash != hash64(f->data, table))
        return fail(err, E_FORMAT, "the table of sections is damaged (checksum)");
    for (uint32_t i = 0; i < head.sections; i++) {
        struct entry e;
        memcpy(&e, f->data + sizeof head + i * sizeof e, sizeof e);
        if (e.name[SECTION_NAME - 1] || e.offset > f->len || e.bytes > f->len - e.offset ||
            e.offset % ALIGN)
            return fail(err, E_FORMAT, "section %u lies outside the file of %zu bytes", i, f->len);
        struct section *s = &c->list[c->count];
        memcpy(s->name, e.name, sizeof s->name);
        s->data = f->data + e.offset;
        s->bytes = e.bytes;
        c->hashes[c->count++] = e.hash;
    }
    return 0;
}

int sections_open(struct sections **out, const char *path, const char magic[8], struct error *err) {
    struct sections *c = mem_zero(1, sizeof *c);
    c->path = mem_strdup(path);
    if (file_map(&c->file, path, err)) goto bad;
    if (read_table(c, magic, err)) {
        fail_in(err, "%s", path);
        goto bad;
    }
    *out = c;
    return 0;
bad:
    sections_close(c);
    return -1;
}

int sections_verify(const struct sections *c, struct error *err) {
    for (int i = 0; i < c->count; i++)
        if (hash64(c->list[i].data, c->list[i].bytes) != c->hashes[i])
            return fail(err, E_FORMAT, "%s: section \"%s\" is damaged (checksum)", c->path,
                        c->list[i].name);
    return 0;
}

const struct section *sections_find(const struct sections *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (strncmp(c->list[i].name, name, SECTION_NAME) == 0) return &c->list[i];
    return NULL;
}

int sections_count(const struct sections *c) {
    return c->count;
}

const struct section *sections_at(const struct sections *c, int i) {
    return &c->list[i];
}

void sections_close(struct sections *c) {
    if (!c) return;
    file_unmap(&c->file);
    free(c->path);
    free(c);
}
