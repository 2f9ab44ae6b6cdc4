#include "base/mem.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void *mem_alloc(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes wanted", bytes);
    return p;
}

void *mem_zero(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) die("out of memory: %zu × %zu bytes wanted", count, size);
    return p;
}

void *mem_grow(void *old, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) die("out of memory: %zu × %zu", count, size);
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes wanted", bytes);
    return p;
}

char *mem_strdup(const char *s) {
    const size_t len = strlen(s) + 1;
    return memcpy(mem_alloc(len), s, len);
}

static const size_t huge = (size_t)2 << 20;

// Small blocks stay with malloc, so that the sanitizers see their edges.
void *mem_pages(size_t bytes) {
    if (bytes < huge) {
        void *p = NULL;
        if (posix_memalign(&p, 64, bytes ? bytes : 64)) die("out of memory: %zu bytes", bytes);
        return memset(p, 0, bytes);
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("out of memory: %zu bytes wanted", bytes);
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE); // a wish; without it the program is only slower
#endif
    return p;
}

void mem_pages_free(void *p, size_t bytes) {
    if (!p) return;
    if (bytes < huge)
        free(p);
    else
        munmap(p, bytes);
}
