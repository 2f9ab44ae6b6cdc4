// Changes a TOML text where it stands: values in their places, keys and tables by whole lines. What
// is not asked for stays byte for byte: comments, order, blank lines, spelling, line ends.
//
//     struct toml_edit e;
//     if (toml_edit_open(&e, text, len, path, err)) return -1;
//     toml_edit_set(&e, table, "max_batch_size", "8"); // `table` found in e.doc.root
//     rc = toml_edit_finish(&e, &out, err);
//     toml_edit_close(&e);
//
// All changes are collected against the one tree that was read and applied together by _finish, so
// their number costs nothing extra. The tree doesn't change meanwhile: hence each key is set or
// removed at most once, and nothing inside what is removed.
#pragma once
#include "base/arena.h"
#include "base/toml.h"
#include <stddef.h>
#include <stdint.h>

struct error;
struct str;

// One line of the text. What keys and headers don't cover is blank or a comment.
struct toml_line {
    uint32_t begin; // byte; behind a byte order mark
    enum toml_line_kind { TOML_LINE_OTHER, TOML_LINE_BLANK, TOML_LINE_COMMENT } kind;
};

// One owner thread. The text must stay while the edit is open.
struct toml_edit {
    struct toml doc;
    const char *text;
    size_t len;
    const char *eol;         // as the text's first line ends
    struct toml_line *lines; // num_lines of them, and one behind them that begins at `len`
    size_t num_lines;
    struct arena arena; // of the replacements
    struct toml_splice *splices;
    size_t num_splices, max_splices;
};

struct toml_pair {
    const char *key, *value; // the value is TOML text
};

// _close is harmless after a failure and wanted after success.
int toml_edit_open(struct toml_edit *e, const char *text, size_t len, const char *name,
                   struct error *err);
void toml_edit_close(struct toml_edit *e);

// `table` is the root or has a header. A plain value is replaced in its place; anything else under
// that key is removed. A new key goes below the last of the table's own lines, indented like it.
// `value` is TOML text of one value.
void toml_edit_set(struct toml_edit *e, const struct toml_value *table, const char *key,
                   const char *value);

// Not for what stands between braces or brackets. A key goes with its lines and the comment behind
// it; the comments above it stay. A table with a header goes with the comments that touch it
// (comments between two tables belong to the lower one), one blank line (above it, else below it),
// and the tables below it. A table of dotted keys goes with all of them.
void toml_edit_remove(struct toml_edit *e, const struct toml_value *v);

// A new [[name]] under the root, behind the last one or else at the end, a blank line above it.
// The root's `name`, if there, must have come from headers [[name]].
void toml_edit_append(struct toml_edit *e, const char *name, const struct toml_pair *pairs,
                      size_t num_pairs);

// Appends the changed text to `out`; it has been read once more and is TOML. A text that had no
// line end behind its last line has none now. Errors: E_LIMIT (of `out`), or those of toml_parse
// when a value that was given is none. May be called again after more changes.
int toml_edit_finish(const struct toml_edit *e, struct str *out, struct error *err);

// Appends a key as TOML wants it: bare or in quotes.
void toml_put_key(struct str *out, const char *key);
