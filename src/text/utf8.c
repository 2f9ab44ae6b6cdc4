#include "text/utf8.h"

#include "base/str.h"

#include <string.h>

static const char replacement[] = "\xef\xbf\xbd";

// Whether byte number i (≥ 1) may follow the i bytes at p: the well-formed sequences of Unicode's
// table 3-7 (no overlong forms, no surrogates, nothing past U+10FFFF).
static bool continues(const uint8_t *p, int i, uint8_t byte) {
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1) {
        if (p[0] == 0xe0) low = 0xa0;
        if (p[0] == 0xed) high = 0x9f;
        if (p[0] == 0xf0) low = 0x90;
        if (p[0] == 0xf4) high = 0x8f;
    }
    return byte >= low && byte <= high;
}

// Bytes that a sequence beginning so has; 0: no sequence begins so.
static int length_of(uint8_t first) {
    return first < 0x80   ? 1
           : first < 0xc2 ? 0
           : first < 0xe0 ? 2
           : first < 0xf0 ? 3
           : first < 0xf5 ? 4
                          : 0;
}

int utf8_feed(struct utf8 *u, const void *data, size_t len, struct str *out) {
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++) {
        if (u->num_held && !continues(u->held, u->num_held, p[i])) {
            u->num_held = 0;
            if (str_puts(out, replacement)) return -1;
        }
        if (!u->num_held && !length_of(p[i])) {
            if (str_puts(out, replacement)) return -1;
            continue;
        }
        u->held[u->num_held++] = p[i];
        if (u->num_held < length_of(u->held[0])) continue;
        const size_t n = (size_t)u->num_held;
        u->num_held = 0;
        if (str_append(out, u->held, n)) return -1;
    }
    return 0;
}

int utf8_flush(struct utf8 *u, struct str *out) {
    const bool unfinished = u->num_held > 0;
    u->num_held = 0;
    return unfinished ? str_puts(out, replacement) : 0;
}

bool utf8_valid(const void *data, size_t len) {
    const uint8_t *p = data;
    for (size_t i = 0; i < len;) {
        const int n = length_of(p[i]);
        if (!n || (size_t)n > len - i) return false;
        for (int k = 1; k < n; k++)
            if (!continues(p + i, k, p[i + (size_t)k])) return false;
        i += (size_t)n;
    }
    return true;
}
