#include "base/str.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char empty[1];

void str_init(struct str *s, size_t max) {
    *s = (struct str){.data = empty, .max = max};
}

void str_free(struct str *s) {
    if (s->cap) free(s->data);
    str_init(s, s->max);
}

void str_clear(struct str *s) {
    s->len = 0;
    if (s->cap) s->data[0] = 0;
}

static int reserve(struct str *s, size_t more) {
    if (more > s->max || s->len > s->max - more) return -1;
    const size_t need = s->len + more + 1;
    if (need <= s->cap) return 0;
    size_t cap = s->cap ? s->cap : 64;
    while (cap < need) cap += cap / 2 + 64;
    s->data = mem_grow(s->cap ? s->data : NULL, cap, 1);
    s->cap = cap;
    return 0;
}

int str_append(struct str *s, const void *data, size_t len) {
    if (reserve(s, len)) return -1;
    if (len) memcpy(s->data + s->len, data, len);
    s->len += len;
    s->data[s->len] = 0;
    return 0;
}

int str_puts(struct str *s, const char *text) {
    return str_append(s, text, strlen(text));
}

int str_putc(struct str *s, char c) {
    return str_append(s, &c, 1);
}

int str_printf(struct str *s, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = -1;
    if (n >= 0 && !reserve(s, (size_t)n)) {
        vsnprintf(s->data + s->len, (size_t)n + 1, fmt, again);
        s->len += (size_t)n;
        rc = 0;
    }
    va_end(again);
    return rc;
}

bool str_among(const char *words, const char *text) {
    const size_t len = strlen(text);
    for (const char *word = words;; word++) {
        const size_t word_len = strcspn(word, "|");
        if (word_len == len && !memcmp(word, text, len)) return true;
        word += word_len;
        if (!*word) return false;
    }
}
