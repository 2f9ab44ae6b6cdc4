// UTF-8 as it arrives: tokens may end inside a code point, readers must never see half of one.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct str;

bool utf8_valid(const void *data, size_t len);

// Zero-initialise. Holds at most the 3 bytes of an unfinished code point.
struct utf8 {
    uint8_t held[4];
    int num_held;
};

// Appends every code point that is complete. What can no longer become one is replaced by U+FFFD,
// one for each maximal part of a valid sequence, as browsers do. -1: `out` is at its ceiling.
int utf8_feed(struct utf8 *u, const void *data, size_t len, struct str *out);
// The end: an unfinished code point becomes U+FFFD.
int utf8_flush(struct utf8 *u, struct str *out);
