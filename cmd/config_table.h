// Configuration keys as rows: what reads, checks, prints and documents a section of keys without
// knowing any of them. For config.c and config_keys.c.
#pragma once
#include "base/toml.h"
#include <stdbool.h>
#include <stddef.h>

struct error;
struct str;

enum config_type {  // the field's type:
    CONFIG_INT,     // int64_t
    CONFIG_FLOAT,   // double; an integer in the TOML will do
    CONFIG_BOOL,    // bool
    CONFIG_STRING,  // const char *
    CONFIG_PATH,    // const char *, resolved
    CONFIG_INTS,    // struct config_ints
    CONFIG_STRINGS, // struct config_strings
    CONFIG_TABLES,  // [[name]]: read by the section's owner, not by the table
};

struct config_key {
    const char *name; // "ipc.enabled" is `enabled` in the table [ipc]
    enum config_type type;
    size_t offset;        // of the field in the section's struct
    const char *fallback; // the default as TOML text; NULL: none
    double min, max;      // of numbers (of each one, in a list), inclusive; both 0: no bounds
    const char *choices;  // "f32|bf16": the only strings allowed; NULL: any
    const char *builtin;  // of a path: a name that means something built in and is no path
    const char *alias;    // another name of the key
    const char *later;    // NULL: honoured. Else what will honour it: until then only the default
                          // may be set
    const char *doc;      // one sentence, without a final full stop
    bool required;        // strings: and not blank
    bool secret;          // never printed or written
    bool reloadable;      // a hot reload applies it
};

// One kind of file, or of [[table]] in it.
struct config_section {
    const char *title;             // "train"
    const char *where;             // which file it is in
    const char *intro;             // a paragraph for docs/config.md
    const struct config_key *keys; // ended by a row without a name
    size_t size;                   // bytes of the struct the rows' fields are in
};

extern const struct config_section config_model, config_train, config_infer, config_infer_model;

enum { CONFIG_MAX_KEYS = 128 }; // of a section

// A file being read, with what overrides it. One owner thread; lives as long as its file is read.
struct config_reader {
    struct toml doc;
    char *dir;               // that the file is in
    struct arena *arena;     // of the result
    const char *const *sets; // "key=value"
    size_t num_sets;
    const char *set_prefix; // what stood before these keys on the command line: "model." or ""
    const char *set_key;    // the override being applied, for errors; NULL: it is the file
};

int config_open(struct config_reader *r, const char *path, struct error *err);
// The same for a text that is to stand, or stands, at `path`. It may go after this.
int config_open_text(struct config_reader *r, const char *path, const char *text, size_t len,
                     struct error *err);
void config_close(struct config_reader *r);

// Fills `out` from defaults, the TOML table and, for the root, the overrides; checks each value by
// its row.
int config_read(struct config_reader *r, const struct config_section *s,
                const struct toml_value *table, void *out, struct error *err);

// Whether the file or an override names the key.
bool config_given(const struct config_reader *r, const struct config_section *s,
                  const struct toml_value *table, const char *key);

// E_CONFIG at the place that the key's value came from: its override, its line (under name or
// alias), or the table's beginning. Returns -1.
int config_refuse(const struct config_reader *r, const struct config_section *s,
                  const struct toml_value *table, const char *key, struct error *err,
                  const char *fmt, ...) __attribute__((format(printf, 6, 7)));

// Appends "key = value" lines, and the section's part of docs/config.md.
void config_write(struct str *out, const struct config_section *s, const void *values);
void config_write_section_docs(struct str *out, const struct config_section *s);
