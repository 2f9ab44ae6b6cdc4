#include "base/hash.h"

#include "base/error.h"

#include <xxhash.h>

uint64_t hash64(const void *data, size_t len) {
    return XXH3_64bits(data, len);
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
