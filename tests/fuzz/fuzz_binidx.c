// Any bytes as an index beside 64 bytes of tokens: what opens can be read whole.
#include "base/error.h"
#include "data/binidx.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void put(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f) abort();
    fwrite(data, 1, len, f);
    fclose(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static char prefix[64], idx[80], bin[80];
    static const uint16_t tokens[32] = {1, 2, 3, 0};
    struct binidx *b;
    struct error err;
    snprintf(prefix, sizeof prefix, "/tmp/fuzz-binidx-%d", (int)getpid());
    snprintf(idx, sizeof idx, "%s.idx", prefix);
    snprintf(bin, sizeof bin, "%s.bin", prefix);
    put(bin, tokens, sizeof tokens);
    put(idx, data, len);
    if (binidx_open(&b, prefix, &err) == 0) {
        for (uint64_t i = 0; i < b->num_documents; i++)
            if (binidx_document_start(b, i) > binidx_document_start(b, i + 1) ||
                binidx_document_start(b, i + 1) > b->num_tokens)
                abort();
        binidx_max_token(b);
        binidx_close(b);
    }
    unlink(idx);
    unlink(bin);
    return 0;
}
