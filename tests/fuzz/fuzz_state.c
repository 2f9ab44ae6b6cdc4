// Any bytes as a saved state of a tiny model: an error, or a sequence that can be written on.
#include "base/error.h"
#include "base/hash.h"
#include "model/writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct writer *tiny_writer(const char *path) {
    struct backend *be;
    struct model *m;
    struct writer *w;
    struct error err;
    struct dims d = {.L = 1, .C = 16, .H = 1, .V = 4, .Dw = 1, .Da = 1, .Dv = 1, .Dg = 1};
    if (backend_open(&be, "cpu", 1, &err) ||
        model_create(&m, be, &d,
                     (struct model_options){.precision = {DT_F32, DT_F32}, .trained = true},
                     &err) ||
        writer_create(&w, m, &err))
        abort();
    model_init(m, 1);
    // A good file to start from, should the corpus be empty.
    writer_feed(w, (const int32_t[]){1, 2}, 2);
    if (writer_save(w, path, 0, &err)) abort();
    return w;
}

// Checksums are put right, so that what they guard is reached too.
static void mend(uint8_t *p, size_t len) {
    uint32_t count;
    if (len < 24) return;
    memcpy(&count, p + 16, 4);
    const size_t table = 24 + (size_t)(count % 17) * 40;
    if (len < table + 8) return;
    for (size_t at = 24; at + 40 <= table; at += 40) {
        uint64_t offset, bytes;
        memcpy(&offset, p + at + 16, 8);
        memcpy(&bytes, p + at + 24, 8);
        if (offset > len || bytes > len - offset) continue;
        const uint64_t hash = hash64(p + offset, bytes);
        memcpy(p + at + 32, &hash, 8);
    }
    const uint64_t hash = hash64(p, table);
    memcpy(p + table, &hash, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static struct writer *w;
    static char path[64];
    struct error err;
    if (!w) {
        snprintf(path, sizeof path, "/tmp/fuzz-state-%d", (int)getpid());
        w = tiny_writer(path);
    }
    uint8_t *copy = malloc(len + 1);
    if (!copy) abort();
    memcpy(copy, data, len);
    mend(copy, len);
    FILE *f = fopen(path, "wb");
    if (!f) abort();
    fwrite(copy, 1, len, f);
    fclose(f);
    free(copy);
    writer_reset(w);
    if (writer_load(w, path, 0, &err) == 0) {
        const struct writer_options o = {.temperature = 1, .top_p = 1, .presence = 1};
        writer_feed(w, (const int32_t[]){3}, 1);
        writer_next(w, &o);
    }
    unlink(path);
    return 0;
}
