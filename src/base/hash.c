#include "base/hash.h"

#include "base/error.h"

#include <pthread.h>
#include <xxhash.h>

uint64_t hash64(const void *data, size_t len) {
    return XXH3_64bits(data, len);
}

// crc_table[k][b]: byte b followed by k zero bytes, so that eight bytes are eight look-ups instead
// of a chain of eight.
static uint32_t crc_table[8][256];

static void fill_crc_table(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int i = 0; i < 8; i++) c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
        crc_table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            crc_table[k][b] = crc_table[k - 1][b] >> 8 ^ crc_table[0][crc_table[k - 1][b] & 255];
}

uint32_t hash_crc32(const void *data, size_t len) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_crc_table);
    const uint8_t *p = data;
    uint32_t c = 0xffffffff;
    for (; len >= 8; p += 8, len -= 8) {
        const uint8_t first[4] = {p[0] ^ (c & 255), p[1] ^ (c >> 8 & 255), p[2] ^ (c >> 16 & 255),
                                  p[3] ^ c >> 24};
        c = 0;
        for (int i = 0; i < 4; i++) c ^= crc_table[7 - i][first[i]] ^ crc_table[3 - i][p[4 + i]];
    }
    for (; len; p++, len--) c = crc_table[0][(c ^ *p) & 255] ^ c >> 8;
    return ~c;
}

// The library's own state under our name: no second allocation, no header leak.
struct hasher *hasher_create(void) {
    XXH3_state_t *s = XXH3_createState();
    if (!s) die("out of memory: hash state");
    XXH3_64bits_reset(s);
    return (struct hasher *)s;
}

void hasher_add(struct hasher *h, const void *data, size_t len) {
    XXH3_64bits_update((XXH3_state_t *)h, data, len);
}

uint64_t hasher_digest(const struct hasher *h) {
    return XXH3_64bits_digest((const XXH3_state_t *)h);
}

void hasher_destroy(struct hasher *h) {
    XXH3_freeState((XXH3_state_t *)h);
}
