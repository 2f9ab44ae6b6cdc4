// Many small things that live and die together: names, parsed files, plans.
#pragma once
#include <stddef.h>

// One owner thread. Zero-initialise, use, arena_free.
struct arena {
    struct arena_block *head;
    size_t used_bytes; // sum of what was asked for, each rounded up to 16
    size_t max_bytes;  // 0: no ceiling; else arena_alloc returns NULL past it
};

void *arena_alloc(struct arena *a, size_t bytes);             // zeroed, 16-byte aligned
char *arena_copy(struct arena *a, const char *s, size_t len); // NUL added
void arena_free(struct arena *a);
