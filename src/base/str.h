// A growing byte string that carries its ceiling from birth.
#pragma once
#include <stdbool.h>
#include <stddef.h>

// One owner. data is NUL-terminated once anything was appended (and "" right after str_init).
struct str {
    char *data;
    size_t len, cap;
    size_t max; // bytes; an append past it is refused and leaves the string as it was
};

void str_init(struct str *s, size_t max);
void str_free(struct str *s);
void str_clear(struct str *s); // keeps the memory

// 0, or -1 when the ceiling is in the way.
int str_append(struct str *s, const void *data, size_t len);
int str_puts(struct str *s, const char *text);
int str_putc(struct str *s, char c);
int str_printf(struct str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// Whether `text` is one of the words of "cpu|cuda|wgpu".
bool str_among(const char *words, const char *text);
