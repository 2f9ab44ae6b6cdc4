// One Unicode scalar value to and from UTF-8, strictly: no surrogates, no overlong forms.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Reads the code point at s; returns its length in bytes, 0 when the bytes are not UTF-8 (or len
// is 0). `code` may be NULL.
size_t unicode_decode(const char *s, size_t len, uint32_t *code);

// Writes 1 to 4 bytes and returns how many; 0 when `code` is no scalar value.
size_t unicode_encode(char out[4], uint32_t code);
