#include "config_table.h"

#include "config.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/nearest.h"
#include "base/str.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// One section being read into its struct.
struct reading {
    struct config_reader *r;
    const struct config_section *section;
    void *out;
    void *defaults; // a second struct with nothing but defaults, to tell what was changed
    bool given[CONFIG_MAX_KEYS];
    struct error *err;
};

static void *field(const struct config_key *key, const void *values) {
    return (char *)values + key->offset;
}

static const struct config_key *find_key(const struct config_section *s, const char *name) {
    for (const struct config_key *key = s->keys; key->name; key++) {
        if (!strcmp(key->name, name) || (key->alias && !strcmp(key->alias, name))) return key;
    }
    return NULL;
}

// Whether the section has keys in the table `prefix` ("ipc.").
static bool has_table(const struct config_section *s, const char *prefix) {
    for (const struct config_key *key = s->keys; key->name; key++) {
        if (!strncmp(key->name, prefix, strlen(prefix))) return true;
    }
    return false;
}

// Errors

static int refuse(const struct reading *a, const struct toml_value *v, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(const struct reading *a, const struct toml_value *v, const char *fmt, ...) {
    char what[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (a->r->set_key)
        return fail(a->err, E_CONFIG, "--set %s%s: %s", a->r->set_prefix, a->r->set_key, what);
    return toml_fail(&a->r->doc, v, a->err, "%s", what);
}

static int refuse_unknown(const struct reading *a, const struct toml_value *v, const char *name) {
    struct nearest near = {.typed = name};
    for (const struct config_key *key = a->section->keys; key->name; key++) {
        nearest_offer(&near, key->name);
        if (key->alias) nearest_offer(&near, key->alias);
    }
    return refuse(a, v, "the %s configuration has no key %s%s%s%s", a->section->title, name,
                  near.best ? "; did you mean " : "", near.best ? near.best : "",
                  near.best ? "?" : "; docs/config.md lists them");
}

// Copies the key of "key=value"; one that is too long is cut, and then unknown.
static void copy_set_key(char out[128], const char *set) {
    snprintf(out, 128, "%.*s", (int)strcspn(set, "="), set);
}

// The last override of the key, its name as it was given; false: none.
static bool find_set(char name[128], const struct config_reader *r, const struct config_section *s,
                     const struct toml_value *table, const struct config_key *row) {
    for (size_t i = r->num_sets; table == &r->doc.root && i-- > 0;) {
        copy_set_key(name, r->sets[i]);
        if (find_key(s, name) == row) return true;
    }
    return false;
}

static const struct toml_value *find_line(const struct toml_value *table,
                                          const struct config_key *row) {
    const struct toml_value *v = toml_get(table, row->name);
    return !v && row->alias ? toml_get(table, row->alias) : v;
}

bool config_given(const struct config_reader *r, const struct config_section *s,
                  const struct toml_value *table, const char *key) {
    char name[128];
    const struct config_key *row = find_key(s, key);
    assert(row);
    return find_set(name, r, s, table, row) || find_line(table, row);
}

int config_refuse(const struct config_reader *r, const struct config_section *s,
                  const struct toml_value *table, const char *key, struct error *err,
                  const char *fmt, ...) {
    char what[600], name[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    const struct config_key *row = find_key(s, key);
    assert(row);
    if (find_set(name, r, s, table, row))
        return fail(err, E_CONFIG, "--set %s%s: %s", r->set_prefix, name, what);
    const struct toml_value *v = find_line(table, row);
    return toml_fail(&r->doc, v ? v : table, err, "%s", what);
}

// One value into its field

static int check_bounds(const struct reading *a, const struct config_key *key,
                        const struct toml_value *v, double value) {
    const bool bounded = key->min != 0 || key->max != 0;
    if (isfinite(value) && (!bounded || (value >= key->min && value <= key->max))) return 0;
    return refuse(a, v, "%s is %.12g, wanted %.12g to %.12g", key->name, value, key->min, key->max);
}

static int refuse_type(const struct reading *a, const struct config_key *key,
                       const struct toml_value *v, const char *wanted) {
    return refuse(a, v, "%s is %s, wanted %s", key->name, toml_type_name(v->type), wanted);
}

static int read_int(const struct reading *a, const struct config_key *key,
                    const struct toml_value *v, int64_t *out) {
    if (v->type != TOML_INT) return refuse_type(a, key, v, "an integer");
    *out = v->integer;
    return check_bounds(a, key, v, (double)v->integer);
}

static int read_float(const struct reading *a, const struct config_key *key,
                      const struct toml_value *v, double *out) {
    if (v->type != TOML_FLOAT && v->type != TOML_INT) return refuse_type(a, key, v, "a number");
    *out = v->type == TOML_INT ? (double)v->integer : v->number;
    return check_bounds(a, key, v, *out);
}

static int read_string(const struct reading *a, const struct config_key *key,
                       const struct toml_value *v, const char **out) {
    if (v->type != TOML_STRING) return refuse_type(a, key, v, "a string in quotes");
    const char *text = v->string.data;
    if (strlen(text) != v->string.len) return refuse(a, v, "%s holds a NUL byte", key->name);
    if (key->choices && !str_among(key->choices, text))
        return refuse(a, v, "%s is \"%s\", wanted one of %s", key->name, text, key->choices);
    if (key->required && !text[strspn(text, " \t\r\n")])
        return refuse(a, v, "%s cannot be empty", key->name);
    *out = arena_copy(a->r->arena, text, v->string.len);
    return 0;
}

static int read_path(const struct reading *a, const struct config_key *key,
                     const struct toml_value *v, const char **out) {
    if (read_string(a, key, v, out)) return -1;
    const bool builtin = key->builtin && !strcmp(*out, key->builtin);
    if (builtin || a->r->set_key) return 0; // overrides stand where the program stands
    if (!**out) return refuse(a, v, "%s cannot be empty", key->name);
    char *joined = path_join(a->r->dir, *out);
    path_tidy(joined);
    *out = arena_copy(a->r->arena, joined, strlen(joined));
    free(joined);
    return 0;
}

static int read_ints(const struct reading *a, const struct config_key *key,
                     const struct toml_value *v, struct config_ints *out) {
    if (v->type != TOML_ARRAY) return refuse_type(a, key, v, "an array of integers");
    if (key->fallback && !v->items.count) return refuse(a, v, "%s cannot be empty", key->name);
    out->at = arena_alloc(a->r->arena, v->items.count * sizeof *out->at);
    out->count = 0;
    for (const struct toml_value *item = v->items.first; item; item = item->next) {
        if (read_int(a, key, item, &out->at[out->count++])) return -1;
    }
    return 0;
}

static int read_strings(const struct reading *a, const struct config_key *key,
                        const struct toml_value *v, struct config_strings *out) {
    if (v->type != TOML_ARRAY) return refuse_type(a, key, v, "an array of strings");
    out->at = arena_alloc(a->r->arena, v->items.count * sizeof *out->at);
    out->count = 0;
    for (const struct toml_value *item = v->items.first; item; item = item->next) {
        if (read_string(a, key, item, &out->at[out->count++])) return -1;
    }
    return 0;
}

static int read_field(const struct reading *a, const struct config_key *key,
                      const struct toml_value *v, void *out) {
    switch (key->type) {
    case CONFIG_INT: return read_int(a, key, v, field(key, out));
    case CONFIG_FLOAT: return read_float(a, key, v, field(key, out));
    case CONFIG_STRING: return read_string(a, key, v, field(key, out));
    case CONFIG_PATH: return read_path(a, key, v, field(key, out));
    case CONFIG_INTS: return read_ints(a, key, v, field(key, out));
    case CONFIG_STRINGS: return read_strings(a, key, v, field(key, out));
    case CONFIG_BOOL:
        if (v->type != TOML_BOOL) return refuse_type(a, key, v, "true or false");
        *(bool *)field(key, out) = v->flag;
        return 0;
    case CONFIG_TABLES:
        if (v->type != TOML_ARRAY) return refuse_type(a, key, v, "tables [[models]]");
        break;
    }
    return 0; // the section's owner reads the tables
}

static void put_path(struct json_writer *w, const struct config_key *key, const char *path) {
    const bool builtin = key->builtin && !strcmp(path, key->builtin);
    char *absolute = builtin ? mem_strdup(path) : path_absolute(path);
    json_put_text(w, absolute, strlen(absolute));
    free(absolute);
}

// A value as TOML text, which for these types JSON's is as well. False: there is nothing to write.
static bool put_field(struct str *out, const struct config_key *key, const void *values) {
    struct json_writer w = {.out = out};
    const void *at = field(key, values);
    const bool is_text = key->type == CONFIG_STRING || key->type == CONFIG_PATH;
    const char *text = is_text ? *(const char *const *)at : NULL;
    switch (key->type) {
    case CONFIG_INT: json_put_int(&w, *(const int64_t *)at); return true;
    case CONFIG_FLOAT: json_put_float(&w, *(const double *)at); return true;
    case CONFIG_BOOL: json_put_bool(&w, *(const bool *)at); return true;
    case CONFIG_STRING:
        if (text) json_put_text(&w, text, strlen(text));
        return text != NULL;
    case CONFIG_PATH:
        if (text) put_path(&w, key, text);
        return text != NULL;
    case CONFIG_INTS: {
        const struct config_ints *list = at;
        json_open(&w, '[');
        for (size_t i = 0; i < list->count; i++) json_put_int(&w, list->at[i]);
        json_close(&w, ']');
        return true;
    }
    case CONFIG_STRINGS: {
        const struct config_strings *list = at;
        if (!list->count) return false;
        json_open(&w, '[');
        for (size_t i = 0; i < list->count; i++)
            json_put_text(&w, list->at[i], strlen(list->at[i]));
        json_close(&w, ']');
        return true;
    }
    case CONFIG_TABLES: break;
    }
    return false;
}

static bool is_default(const struct reading *a, const struct config_key *key) {
    struct str got, usual;
    str_init(&got, TOML_MAX_BYTES);
    str_init(&usual, TOML_MAX_BYTES);
    put_field(&got, key, a->out);
    put_field(&usual, key, a->defaults);
    const bool same = !strcmp(got.data, usual.data);
    str_free(&got);
    str_free(&usual);
    return same;
}

static int apply_value(struct reading *a, const struct config_key *key,
                       const struct toml_value *v) {
    bool *given = &a->given[key - a->section->keys];
    if (*given && !a->r->set_key)
        return refuse(a, v, "%s and %s are the same key, and both are set", key->name, key->alias);
    *given = true;
    if (read_field(a, key, v, a->out)) return -1;
    if (key->later && !is_default(a, key))
        return refuse(a, v, "%s is for %s, which rwkv doesn't offer yet; %s%s%s", key->name,
                      key->later, key->fallback ? "leave it at " : "remove it",
                      key->fallback ? key->fallback : "", key->fallback ? " or remove it" : "");
    return 0;
}

// The file

// `prefix` is the table's name in the table of keys: "" or "ipc.". That table bounds the recursion.
static int apply_table(struct reading *a, const struct toml_value *table, const char *prefix) {
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        char name[128], below[130];
        snprintf(name, sizeof name, "%s%s", prefix, v->key);
        snprintf(below, sizeof below, "%s.", name);
        const bool has_nul = strlen(v->key) != v->key_len; // what is behind it counts too
        const struct config_key *key = has_nul ? NULL : find_key(a->section, name);
        int rc;
        if (key)
            rc = apply_value(a, key, v);
        else if (v->type == TOML_TABLE && has_table(a->section, below))
            rc = apply_table(a, v, below);
        else
            rc = refuse_unknown(a, v, name);
        if (rc) return -1;
    }
    return 0;
}

static int apply_defaults(struct reading *a) {
    for (const struct config_key *key = a->section->keys; key->name; key++) {
        if (!key->fallback) continue;
        struct toml doc;
        char text[256];
        snprintf(text, sizeof text, "value = %s", key->fallback);
        if (toml_parse(&doc, text, strlen(text), key->name, a->err)) return -1;
        const struct toml_value *v = doc.root.items.first;
        const int rc = read_field(a, key, v, a->out) || read_field(a, key, v, a->defaults);
        toml_free(&doc);
        if (rc) return -1;
    }
    return 0;
}

// `text` is TOML, or a bare word where a string is wanted.
static int apply_override(struct reading *a, const struct config_key *key, const char *text) {
    struct str line;
    struct toml doc = {0};
    str_init(&line, TOML_MAX_BYTES);
    const bool wants_text = key->type == CONFIG_STRING || key->type == CONFIG_PATH;
    struct toml_value bare = {.type = TOML_STRING};
    bare.string.data = text;
    bare.string.len = strlen(text);
    // One value and nothing behind it: a line feed in the text could bring a second key.
    const bool parsed = !str_printf(&line, "value = %s", text) &&
                        !toml_parse(&doc, line.data, line.len, key->name, NULL);
    const struct toml_value *v = parsed && doc.root.items.count == 1 ? doc.root.items.first : &bare;
    if (wants_text && v->type != TOML_STRING) v = &bare;
    const int rc = apply_value(a, key, v);
    if (parsed) toml_free(&doc);
    str_free(&line);
    return rc;
}

static int apply_overrides(struct reading *a) {
    for (size_t i = 0; i < a->r->num_sets; i++) {
        const char *set = a->r->sets[i], *equals = strchr(set, '=');
        char name[128];
        copy_set_key(name, set);
        a->r->set_key = name;
        const struct config_key *key = find_key(a->section, name);
        int rc;
        if (!equals)
            rc = refuse(a, NULL, "wanted --set KEY=VALUE");
        else if (!key)
            rc = refuse_unknown(a, NULL, name);
        else
            rc = apply_override(a, key, equals + 1);
        a->r->set_key = NULL;
        if (rc) return -1;
    }
    return 0;
}

static int check_required(struct reading *a, const struct toml_value *table) {
    for (const struct config_key *key = a->section->keys; key->name; key++) {
        if (key->required && !a->given[key - a->section->keys])
            return refuse(a, table, "%s is missing: %s", key->name, key->doc);
    }
    return 0;
}

int config_open_text(struct config_reader *r, const char *path, const char *text, size_t len,
                     struct error *err) {
    const int rc = toml_parse(&r->doc, text, len, path, err);
    if (rc && err) err->code = E_CONFIG;
    if (!rc) r->dir = path_dir(path);
    return rc;
}

int config_open(struct config_reader *r, const char *path, struct error *err) {
    struct str text;
    str_init(&text, TOML_MAX_BYTES);
    int rc = file_read(&text, path, err);
    if (rc && err) err->code = E_CONFIG;
    if (!rc) rc = config_open_text(r, path, text.data, text.len, err);
    str_free(&text);
    return rc;
}

void config_close(struct config_reader *r) {
    if (r->dir) toml_free(&r->doc);
    free(r->dir);
    r->dir = NULL;
}

int config_read(struct config_reader *r, const struct config_section *s,
                const struct toml_value *table, void *out, struct error *err) {
    struct reading a = {.r = r, .section = s, .out = out, .err = err};
    memset(out, 0, s->size);
    a.defaults = mem_zero(1, s->size);
    int rc = apply_defaults(&a);
    if (!rc) rc = apply_table(&a, table, "");
    if (!rc && table == &r->doc.root) rc = apply_overrides(&a);
    if (!rc) rc = check_required(&a, table);
    free(a.defaults);
    return rc;
}

// Printing

void config_write(struct str *out, const struct config_section *s, const void *values) {
    for (const struct config_key *key = s->keys; key->name; key++) {
        const size_t before = out->len;
        if (key->secret) continue;
        str_printf(out, "%s = ", key->name);
        if (put_field(out, key, values)) {
            str_putc(out, '\n');
        } else {
            out->len = before;
            out->data[before] = 0;
        }
    }
}

static const char *const type_names[] = {
    [CONFIG_INT] = "integer",     [CONFIG_FLOAT] = "number",  [CONFIG_BOOL] = "boolean",
    [CONFIG_STRING] = "string",   [CONFIG_PATH] = "path",     [CONFIG_INTS] = "integers",
    [CONFIG_STRINGS] = "strings", [CONFIG_TABLES] = "tables",
};

static void put_type(struct str *out, const struct config_key *key) {
    if (!key->choices) {
        str_puts(out, type_names[key->type]);
        if (key->max != 0) str_printf(out, ", %.12g to %.12g", key->min, key->max);
        return;
    }
    for (const char *c = key->choices; *c; c += strcspn(c, "|"), c += *c == '|')
        str_printf(out, "%s`\"%.*s\"`", c == key->choices ? "" : ", ", (int)strcspn(c, "|"), c);
}

static void put_key_docs(struct str *out, const struct config_key *key) {
    str_printf(out, "| `%s`", key->name);
    if (key->alias) str_printf(out, " (or `%s`)", key->alias);
    str_puts(out, " | ");
    put_type(out, key);
    if (key->fallback)
        str_printf(out, " | `%s` | ", key->fallback);
    else
        str_printf(out, " | %s | ", key->required ? "required" : "");
    str_printf(out, "%s.", key->doc);
    if (key->later && key->fallback)
        str_printf(out, " Refused unless `%s`, until there is %s.", key->fallback, key->later);
    else if (key->later)
        str_printf(out, " Refused until there is %s.", key->later);
    str_puts(out, " |\n");
}

void config_write_section_docs(struct str *out, const struct config_section *s) {
    str_printf(out, "\n## %s\n\n%s: %s\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
               s->title, s->where, s->intro);
    for (const struct config_key *key = s->keys; key->name; key++) put_key_docs(out, key);
}
