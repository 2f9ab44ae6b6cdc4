#include "base/arena.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(16) unsigned char data[];
};

void *arena_alloc(struct arena *a, size_t bytes) {
    if (bytes > (size_t)-1 / 2) return NULL; // so that adding the block's header cannot wrap
    const size_t need = (bytes + 15) & ~(size_t)15;
    if (a->max_bytes && (need > a->max_bytes || a->used_bytes > a->max_bytes - need)) return NULL;
    struct arena_block *b = a->head;
    if (!b || b->cap - b->used < need) {
        const size_t cap = need > 65536 ? need : 65536;
        b = mem_alloc(sizeof *b + cap);
        *b = (struct arena_block){.next = a->head, .cap = cap};
        a->head = b;
    }
    void *p = b->data + b->used;
    b->used += need;
    a->used_bytes += need;
    return memset(p, 0, need);
}

char *arena_copy(struct arena *a, const char *s, size_t len) {
    char *p = arena_alloc(a, len + 1);
    if (p) memcpy(p, s, len);
    return p;
}

void arena_free(struct arena *a) {
    for (struct arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *a = (struct arena){.max_bytes = a->max_bytes};
}
