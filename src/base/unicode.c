#include "base/unicode.h"

size_t unicode_decode(const char *s, size_t len, uint32_t *code) {
    if (!len) return 0;
    const unsigned char *u = (const unsigned char *)s;
    // The lead byte tells the length; below `least` a shorter form would have done.
    const size_t n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 0 || n > len || u[0] > 0xf4) return 0;
    uint32_t c = n == 1 ? u[0] : u[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (u[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    if (code) *code = c;
    return n;
}

size_t unicode_encode(char out[4], uint32_t code) {
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
    const size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(lead[n] | code);
    return n;
}
