// Any text as a vocabulary; what is accepted must encode any bytes and give them back.
#include "base/error.h"
#include "base/str.h"
#include "text/tok.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct tok *t;
    struct error err;
    int32_t tokens[64];
    struct str back;
    if (tok_parse(&t, (const char *)data, len, "fuzz", &err)) return 0;
    const size_t n = len < 64 ? len : 64, count = tok_encode(t, data + (len - n), n, tokens);
    str_init(&back, 1 << 20);
    if (tok_decode(t, tokens, count, &back) || back.len != n ||
        memcmp(back.data, data + (len - n), n))
        abort();
    str_free(&back);
    tok_close(t);
    return 0;
}
