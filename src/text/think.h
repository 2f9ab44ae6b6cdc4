// Splits an answer, as it arrives, into thoughts ("<think> … </think>" at its beginning) and what
// is said. White space around the tags belongs to neither.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct str;

// One owner. Zero-initialise; think_begin.
struct think {
    enum { THINK_OPENING, THINK_IN_TAG, THINK_THOUGHTS, THINK_ANSWER } stage;
    char held[16]; // what may still become a tag
    size_t num_held;
    bool blank; // nothing but white space since the stage began
};

// in_tag: the prompt ended with "<think", and the model goes on with ">".
void think_begin(struct think *t, bool in_tag);
// Appends to either. Never cuts a code point in two.
void think_feed(struct think *t, const char *text, size_t len, struct str *thoughts,
                struct str *answer);
// The end: what was held back goes where it belongs.
void think_flush(struct think *t, struct str *thoughts, struct str *answer);
