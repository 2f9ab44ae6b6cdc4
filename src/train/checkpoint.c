#include "train/checkpoint.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// | magic 8 | version u32 | byte order u32 | sections u32 | reserved u32 | table | hash of all that
// | then each section at a multiple of 64.
static const char magic[8] = "RWKVCKPT";
enum { VERSION = 1, BYTE_ORDER_MARK = 0x01020304, ALIGN = 64 };

struct head {
    char magic[8];
    uint32_t version, byte_order, sections, reserved;
};

struct entry {
    char name[SECTION_NAME];
    uint64_t offset, bytes, hash;
};

struct checkpoint {
    char *path;
    struct file file;
    int count;
    struct section sections[MAX_SECTIONS];
    uint64_t hashes[MAX_SECTIONS];
};

static uint64_t aligned(uint64_t n) {
    return (n + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
}

static size_t table_bytes(int count) {
    return sizeof(struct head) + (size_t)count * sizeof(struct entry);
}

int checkpoint_write(const char *path, const struct section *sections, int count,
                     struct error *err) {
    if (count < 1 || count > MAX_SECTIONS) die("bug: checkpoint of %d sections", count);
    unsigned char table[sizeof(struct head) + MAX_SECTIONS * sizeof(struct entry) + 8] = {0};
    const struct head head = {.version = VERSION,
                              .byte_order = BYTE_ORDER_MARK,
                              .sections = (uint32_t)count};
    memcpy(table, &head, sizeof head);
    memcpy(table, magic, sizeof magic);
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

static int read_table(struct checkpoint *c, struct error *err) {
    const struct file *f = &c->file;
    struct head head;
    if (f->len < sizeof head + 8)
        return fail(err, E_FORMAT, "%zu bytes, too short for a checkpoint", f->len);
    memcpy(&head, f->data, sizeof head);
    if (memcmp(head.magic, magic, sizeof magic))
        return fail(err, E_FORMAT, "not a checkpoint of rwkv");
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
        struct section *s = &c->sections[c->count];
        memcpy(s->name, e.name, sizeof s->name);
        s->data = f->data + e.offset;
        s->bytes = e.bytes;
        c->hashes[c->count++] = e.hash;
    }
    return 0;
}

int checkpoint_open(struct checkpoint **out, const char *path, struct error *err) {
    struct checkpoint *c = mem_zero(1, sizeof *c);
    c->path = mem_strdup(path);
    if (file_map(&c->file, path, err)) goto bad;
    if (read_table(c, err)) {
        fail_in(err, "%s", path);
        goto bad;
    }
    *out = c;
    return 0;
bad:
    checkpoint_close(c);
    return -1;
}

int checkpoint_verify(const struct checkpoint *c, struct error *err) {
    for (int i = 0; i < c->count; i++)
        if (hash64(c->sections[i].data, c->sections[i].bytes) != c->hashes[i])
            return fail(err, E_FORMAT, "%s: section \"%s\" is damaged (checksum)", c->path,
                        c->sections[i].name);
    return 0;
}

const struct section *checkpoint_find(const struct checkpoint *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (strncmp(c->sections[i].name, name, SECTION_NAME) == 0) return &c->sections[i];
    return NULL;
}

int checkpoint_count(const struct checkpoint *c) {
    return c->count;
}

const struct section *checkpoint_at(const struct checkpoint *c, int i) {
    return &c->sections[i];
}

void checkpoint_close(struct checkpoint *c) {
    if (!c) return;
    file_unmap(&c->file);
    free(c->path);
    free(c);
}

char *checkpoint_path(const char *dir, int64_t step) {
    char name[40];
    snprintf(name, sizeof name, "step-%010" PRId64 ".ckpt", step);
    return path_join(dir, name);
}

static int newest_first(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int checkpoint_list(int64_t *steps, int max, const char *dir) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && n < max && (e = readdir(d));) {
        int64_t step;
        int end = 0;
        if (sscanf(e->d_name, "step-%10" SCNd64 ".ckpt%n", &step, &end) == 1 && end && step >= 0 &&
            !e->d_name[end])
            steps[n++] = step;
    }
    if (d) closedir(d);
    if (n) qsort(steps, (size_t)n, sizeof *steps, newest_first);
    return n;
}
