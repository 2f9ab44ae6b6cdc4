// Any bytes in any two pieces: the output is valid UTF-8 and does not depend on the cut.
#include "base/str.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void feed(struct str *out, const uint8_t *data, size_t len, size_t cut) {
    struct utf8 u = {0};
    str_init(out, 4 * len + 16);
    if (utf8_feed(&u, data, cut, out) || !utf8_valid(out->data, out->len) ||
        utf8_feed(&u, data + cut, len - cut, out) || utf8_flush(&u, out) ||
        !utf8_valid(out->data, out->len))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct str a, b;
    feed(&a, data, len, 0);
    feed(&b, data, len, len ? data[0] % (len + 1) : 0);
    if (a.len != b.len || memcmp(a.data, b.data, a.len)) abort();
    if (utf8_valid(data, len) && (a.len != len || (len && memcmp(a.data, data, len)))) abort();
    str_free(&a);
    str_free(&b);
    return 0;
}
