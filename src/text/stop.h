// Stop strings in a text that arrives in pieces: what could still become one is held back, and the
// text ends before the first one that is complete, however the pieces were cut.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct str;

enum { STOP_MAX_STRINGS = 24, STOP_MAX_BYTES = 1024 };

// One owner thread.
struct stop;

// The strings (count ≤ STOP_MAX_STRINGS, each 1..STOP_MAX_BYTES bytes) are copied.
struct stop *stop_create(const char *const *strings, int count);
void stop_destroy(struct stop *s); // NULL is fine

// Appends what is certain to belong to the text. True: a stop string came; it and what follows it
// are not part of the text, and nothing more is to be fed. Of strings that end at the same byte the
// longest counts. NULL has no strings.
bool stop_feed(struct stop *s, const char *text, size_t len, struct str *out);
// The end came otherwise: appends what was held back.
void stop_flush(struct stop *s, struct str *out);
