// Host memory that is there or ends the program: no caller checks for NULL.
#pragma once
#include <stddef.h>

void *mem_alloc(size_t bytes);                        // uninitialised
void *mem_zero(size_t count, size_t size);            // zeroed; count·size is checked for overflow
void *mem_grow(void *old, size_t count, size_t size); // realloc; count·size is checked
char *mem_strdup(const char *s);

// 64-byte aligned and zeroed, on 2 MiB pages where the kernel gives them; for tensors. Free with
// mem_pages_free and the same size.
void *mem_pages(size_t bytes);
void mem_pages_free(void *p, size_t bytes);
