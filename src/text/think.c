#include "text/think.h"

#include "base/str.h"

#include <string.h>

void think_begin(struct think *t, bool in_tag) {
    *t = (struct think){.stage = in_tag ? THINK_IN_TAG : THINK_OPENING, .blank = true};
}

static const char *tag_of(const struct think *t) {
    return t->stage == THINK_OPENING    ? "<think>"
           : t->stage == THINK_IN_TAG   ? ">"
           : t->stage == THINK_THOUGHTS ? "</think>"
                                        : "";
}

static void enter(struct think *t, int stage) {
    t->stage = stage;
    t->num_held = 0;
    t->blank = true;
}

// White space at the beginning of thoughts and of the answer is dropped.
static void put(struct think *t, char c, struct str *out) {
    if (t->blank && strchr(" \n\t\r", c)) return;
    t->blank = false;
    str_putc(out, c);
}

static void put_held(struct think *t, struct str *out) {
    for (size_t i = 0; i < t->num_held; i++) put(t, t->held[i], out);
    t->num_held = 0;
}

// One byte outside of a tag: where does the text go that is not one?
static void not_a_tag(struct think *t, struct str *thoughts, struct str *answer) {
    const size_t n = t->num_held;
    if (t->stage == THINK_THOUGHTS) {
        put_held(t, thoughts);
        return;
    }
    const int stage = t->stage == THINK_IN_TAG ? THINK_THOUGHTS : THINK_ANSWER;
    char held[sizeof t->held];
    memcpy(held, t->held, n);
    enter(t, stage);
    for (size_t i = 0; i < n; i++) put(t, held[i], stage == THINK_ANSWER ? answer : thoughts);
}

void think_feed(struct think *t, const char *text, size_t len, struct str *thoughts,
                struct str *answer) {
    for (size_t i = 0; i < len;) {
        const char *tag = tag_of(t), c = text[i];
        if (t->stage == THINK_ANSWER) {
            put(t, c, answer);
            i++;
        } else if (tag[t->num_held] == c) {
            t->held[t->num_held++] = c;
            i++;
            if (!tag[t->num_held])
                enter(t, t->stage == THINK_THOUGHTS ? THINK_ANSWER : THINK_THOUGHTS);
        } else if (!t->num_held && t->stage == THINK_THOUGHTS) {
            put(t, c, thoughts);
            i++;
        } else if (!t->num_held && strchr(" \n\t\r", c)) {
            i++; // before the tag
        } else {
            not_a_tag(t, thoughts, answer); // and looks at c again
        }
    }
}

void think_flush(struct think *t, struct str *thoughts, struct str *answer) {
    if (t->num_held) not_a_tag(t, thoughts, answer);
}
