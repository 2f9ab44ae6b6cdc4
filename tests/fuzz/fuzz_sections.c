// Any bytes as a checkpoint: what opens lies inside the file and can be verified. The checksum of
// the table is put right first, or nothing behind it would ever be reached.
#include "base/error.h"
#include "base/hash.h"
#include "base/sections.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static char path[64];
    struct sections *c;
    struct error err;
    uint8_t *copy = malloc(len + 1);
    if (!copy || len > 1 << 16) {
        free(copy);
        return 0;
    }
    memcpy(copy, data, len);
    if (len >= 24) {
        uint32_t count;
        memcpy(&count, copy + 16, 4);
        const size_t table = 24 + (size_t)(count % 17) * 40;
        if (len >= table + 8) {
            const uint64_t hash = hash64(copy, table);
            memcpy(copy + table, &hash, 8);
        }
    }
    snprintf(path, sizeof path, "/tmp/fuzz-sections-%d", (int)getpid());
    FILE *f = fopen(path, "wb");
    if (!f) abort();
    fwrite(copy, 1, len, f);
    fclose(f);
    free(copy);
    if (sections_open(&c, path, "RWKVCKPT", &err) == 0) {
        for (int i = 0; i < sections_count(c); i++)
            hash64(sections_at(c, i)->data, sections_at(c, i)->bytes); // reads every byte
        sections_verify(c, &err);
        sections_close(c);
    }
    unlink(path);
    return 0;
}
