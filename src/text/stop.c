#include "text/stop.h"

#include "base/mem.h"
#include "base/str.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// One string as the automaton of Knuth, Morris and Pratt: `matched` is the length of the longest
// end of the text so far that begins the string, border[n] the same for the string's own first n.
struct pattern {
    char *text;
    size_t len, matched;
    uint16_t *border;
};

struct stop {
    int count;
    struct pattern patterns[STOP_MAX_STRINGS];
    struct str held; // the longest beginning of a string that the text ends with
};

static void pattern_init(struct pattern *p, const char *text) {
    p->text = mem_strdup(text);
    p->len = strlen(text);
    p->border = mem_zero(p->len + 1, sizeof *p->border);
    for (size_t i = 1, k = 0; i < p->len; i++) {
        while (k && text[i] != text[k]) k = p->border[k];
        if (text[i] == text[k]) k++;
        p->border[i + 1] = (uint16_t)k;
    }
}

struct stop *stop_create(const char *const *strings, int count) {
    assert(count >= 0 && count <= STOP_MAX_STRINGS);
    struct stop *s = mem_zero(1, sizeof *s);
    s->count = count;
    for (int i = 0; i < count; i++) {
        assert(*strings[i] && strlen(strings[i]) <= STOP_MAX_BYTES);
        pattern_init(&s->patterns[i], strings[i]);
    }
    str_init(&s->held, STOP_MAX_BYTES);
    return s;
}

void stop_destroy(struct stop *s) {
    if (!s) return;
    for (int i = 0; i < s->count; i++) {
        free(s->patterns[i].text);
        free(s->patterns[i].border);
    }
    str_free(&s->held);
    free(s);
}

// Takes one byte; true: the string is complete.
static bool pattern_step(struct pattern *p, char c) {
    while (p->matched && p->text[p->matched] != c) p->matched = p->border[p->matched];
    if (p->text[p->matched] == c) p->matched++;
    return p->matched == p->len;
}

bool stop_feed(struct stop *s, const char *text, size_t len, struct str *out) {
    if (!s) {
        str_append(out, text, len);
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        size_t complete = 0, longest = 0;
        for (int k = 0; k < s->count; k++) {
            struct pattern *p = &s->patterns[k];
            if (pattern_step(p, text[i]) && p->len > complete) complete = p->len;
            if (p->matched > longest) longest = p->matched;
        }
        // `longest` counts this byte; of the bytes held before it, so many are free now.
        const size_t keep = complete ? complete - 1 : longest ? longest - 1 : 0;
        const size_t loose = s->held.len - keep;
        str_append(out, s->held.data, loose);
        if (complete) {
            str_clear(&s->held);
            return true;
        }
        memmove(s->held.data, s->held.data + loose, keep);
        s->held.len = keep;
        str_append(longest ? &s->held : out, &text[i], 1);
    }
    return false;
}

void stop_flush(struct stop *s, struct str *out) {
    if (!s) return;
    str_append(out, s->held.data, s->held.len);
    str_clear(&s->held);
}
