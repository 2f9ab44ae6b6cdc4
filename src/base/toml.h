// A strict reader of TOML 1.0 (https://toml.io/en/v1.0.0; and \e, as toml-test wants): the whole
// text becomes a tree that remembers where each value stood, so that errors can point at it and a
// later writer can replace a value in its place and keep the comments around it.
#pragma once
#include "base/arena.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
    TOML_MAX_BYTES = 16 << 20, // of text
    TOML_MAX_TREE = 512 << 20, // bytes of memory for the tree
    TOML_MAX_DEPTH = 128,      // tables and arrays inside one another
};

enum toml_type {
    TOML_STRING,
    TOML_INT,
    TOML_FLOAT,
    TOML_BOOL,
    TOML_DATETIME,       // with an offset from UTC
    TOML_LOCAL_DATETIME, // without one: from here on, unused fields are 0
    TOML_LOCAL_DATE,
    TOML_LOCAL_TIME,
    TOML_ARRAY,
    TOML_TABLE,
};

struct toml_datetime {
    int year, month, day;
    int hour, minute, second; // second may be 60
    int nanosecond;           // further digits are cut off
    int offset_minutes;       // east of UTC
};

// How a table came to be, which decides who may add to it.
enum toml_origin {
    TOML_ORIGIN_VALUE,  // { … }, and arrays written [ … ]: closed once written
    TOML_ORIGIN_HEADER, // [name], and the array of [[name]]
    TOML_ORIGIN_PARENT, // only named on the way to a header below it
    TOML_ORIGIN_DOTTED, // by a key a.b = …
};

struct toml_value {
    enum toml_type type;
    enum toml_origin origin;  // of tables and arrays
    const char *key;          // in its table, NUL behind; NULL for the root and for items of arrays
    size_t key_len;           // bytes; a quoted key may hold NUL
    int key_line, key_column; // where the key stands (the value, when there is none), from 1;
    int line, column;         // where the value stands; columns count characters
    // The value in the text. A table by header: from its bracket to the end of its last own line
    // (without line end); the root: all; other tables without braces: an empty range.
    size_t begin, end;
    int depth;               // the root: 0
    struct toml_value *next; // the next one in the same table or array, in source order
    union {
        struct {
            const char *data; // NUL behind it, and perhaps inside
            size_t len;       // bytes
        } string;
        int64_t integer;
        double number;
        bool flag;
        struct toml_datetime datetime;
        struct {
            struct toml_value *first, *last;
            size_t count;
        } items; // of arrays and tables
    };
};

// A document owns all it gave out. One owner thread; the text may go after parsing.
struct toml {
    struct arena arena;
    const char *name; // of the file, for errors
    struct toml_value root;
};

// Errors read "name:line:column: what is wrong, what was wanted". `doc` needs no initialising and
// toml_free only on success.
int toml_parse(struct toml *doc, const char *text, size_t len, const char *name, struct error *err);
void toml_free(struct toml *doc);

// The value of a key, or NULL. Walks the table: for tables of the size that people write.
const struct toml_value *toml_get(const struct toml_value *table, const char *key);

// "an integer", "a table", …
const char *toml_type_name(enum toml_type type);

// Fills `err` with "name:line:column: message" of the value's place, and returns -1.
int toml_fail(const struct toml *doc, const struct toml_value *v, struct error *err,
              const char *fmt, ...) __attribute__((format(printf, 4, 5)));
