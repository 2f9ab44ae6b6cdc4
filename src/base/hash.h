// Checksums and content hashes: XXH3 in 64 and 128 bits (not for secrets).
#pragma once
#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *data, size_t len);

// The checksum of zip, gzip and PNG (reflected polynomial 0xedb88320).
uint32_t hash_crc32(const void *data, size_t len);

// Many pieces, one digest. One owner thread.
struct hasher;
struct hasher *hasher_create(void);
void hasher_add(struct hasher *h, const void *data, size_t len);
uint64_t hasher_digest(const struct hasher *h);
void hasher_destroy(struct hasher *h);
