// What the two halves of the TOML reader share (toml.c: structure, toml_scalar.c: strings, numbers,
// dates). Not for others.
#pragma once
#include "base/toml.h"

struct toml_reader {
    const char *text;
    size_t len, at; // bytes; `at` is the next to be read
    struct toml *doc;
    struct error *err;
    // The last byte whose place was asked for. Places are asked for in ascending order, so all of
    // them together cost one walk through the text.
    size_t mark;
    int mark_line, mark_column;
    // Every key of every table, so that a duplicate is found at once: open addressing, by (table,
    // key), NULL: free.
    struct toml_slot *slots;
    size_t slot_count, used_slots; // slot_count: a power of two
};

struct toml_slot {
    const struct toml_value *table;
    struct toml_value *value;
};

// E_FORMAT with the place of byte `at`; returns -1.
int toml_refuse(struct toml_reader *r, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

// The same for "got X, wanted …": X is the word at `at`, the end of the line or of the file.
int toml_refuse_word(struct toml_reader *r, size_t at, const char *wanted);

// Memory of the tree; NULL, with the error filled, past its ceiling.
void *toml_new(struct toml_reader *r, size_t bytes);

// At a quote. Keys may not use the three-quote forms.
int toml_read_string(struct toml_reader *r, bool is_key, const char **out, size_t *len);

// At the first byte of a bare value: boolean, number, date or time.
int toml_read_bare(struct toml_reader *r, struct toml_value *v);
