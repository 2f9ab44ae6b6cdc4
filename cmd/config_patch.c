#include "config_patch.h"

#include "config_table.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/nearest.h"
#include "base/str.h"
#include "base/toml_edit.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The request, checked; everything in it belongs to the JSON.
struct patch {
    const struct json *upsert, *removals; // arrays, or NULL
    const char *names[CONFIG_PATCH_MAX_NAMES];
    const char *removed[CONFIG_PATCH_MAX_NAMES];
    size_t num_names, num_removed;
};

static bool is_blank(const char *s) {
    return !s[strspn(s, " \t\r\n")];
}

static bool is_among(const char *name, const char *const names[], size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(names[i], name)) return true;
    }
    return false;
}

// The request

static int check_fields(const struct json *request, struct error *err) {
    static const char *const fields[] = {"upsert", "remove_model_names", "dry_run", "force"};
    enum { COUNT = sizeof fields / sizeof *fields };
    const char *key;
    const struct json *value;
    for (void *at = NULL; json_next(request, &at, &key, &value);) {
        if (is_among(key, fields, COUNT)) continue;
        struct nearest near = {.typed = key};
        for (size_t i = 0; i < COUNT; i++) nearest_offer(&near, fields[i]);
        return fail(err, E_ARG, "a reload has no field \"%.80s\"; %s%s%s", key,
                    near.best ? "did you mean " : "it takes upsert, remove_model_names, dry_run ",
                    near.best ? near.best : "and force", near.best ? "?" : "");
    }
    return 0;
}

static int read_name(const char **out, const struct json *v, const char *what, struct error *err) {
    size_t len;
    if (json_read_text(out, &len, v, what, err)) return -1;
    if (strlen(*out) != len) return fail(err, E_ARG, "%s holds a NUL byte", what);
    if (is_blank(*out)) return fail(err, E_ARG, "%s cannot be empty", what);
    return 0;
}

static int read_list(const struct json **out, const struct json *request, const char *what,
                     struct error *err) {
    *out = json_member(request, what);
    if (*out && json_check_kind(*out, JSON_KIND_ARRAY, what, err)) return -1;
    if (*out && json_length(*out) > CONFIG_PATCH_MAX_NAMES)
        return fail(err, E_ARG, "%s has %zu items, at most %d are taken", what, json_length(*out),
                    CONFIG_PATCH_MAX_NAMES);
    return 0;
}

// The row of a key, so that a key and its alias are one. NULL: what the reader will refuse.
static const struct config_key *row_of(const char *name) {
    for (const struct config_key *row = config_infer_model.keys; row->name; row++) {
        if (!strcmp(row->name, name) || (row->alias && !strcmp(row->alias, name))) return row;
    }
    return NULL;
}

static bool is_same_key(const char *a, const char *b) {
    const struct config_key *row = row_of(a);
    return row ? row_of(b) == row : !strcmp(a, b);
}

static int check_value(const struct json *v, const char *what, bool in_array, struct error *err) {
    const enum json_kind kind = json_kind(v);
    if (kind == JSON_KIND_NULL)
        return fail(err, E_ARG, "%s is null; leave the key out to have its default", what);
    if (kind == JSON_KIND_OBJECT || (kind == JSON_KIND_ARRAY && in_array))
        return fail(err, E_ARG,
                    "%s %s %s, wanted a string, a number, a boolean or an array of these", what,
                    in_array ? "has an item that is" : "is",
                    kind == JSON_KIND_OBJECT ? "an object" : "an array");
    for (size_t i = 0; kind == JSON_KIND_ARRAY && i < json_length(v); i++) {
        if (check_value(json_item(v, i), what, true, err)) return -1;
    }
    return 0;
}

static int check_entry(const struct json *entry, size_t i, struct error *err) {
    const char *keys[CONFIG_MAX_KEYS], *key;
    const struct json *value;
    char what[160];
    size_t count = 0;
    for (void *at = NULL; json_next(entry, &at, &key, &value);) {
        snprintf(what, sizeof what, "upsert[%zu].%s", i, key);
        if (count == CONFIG_MAX_KEYS)
            return fail(err, E_ARG, "upsert[%zu] has more than %d keys", i, CONFIG_MAX_KEYS);
        for (size_t j = 0; j < count; j++) {
            if (is_same_key(keys[j], key))
                return fail(err, E_ARG, "upsert[%zu]: %s and %s are the same key", i, keys[j], key);
        }
        keys[count++] = key;
        if (check_value(value, what, false, err)) return -1;
    }
    return 0;
}

static int read_request(struct patch *p, const struct json *request, struct error *err) {
    char what[64];
    p->num_names = p->num_removed = 0;
    if (json_check_kind(request, JSON_KIND_OBJECT, "the request", err) ||
        check_fields(request, err) || read_list(&p->upsert, request, "upsert", err) ||
        read_list(&p->removals, request, "remove_model_names", err))
        return -1;
    for (size_t i = 0; p->upsert && i < json_length(p->upsert); i++) {
        const struct json *entry = json_item(p->upsert, i);
        const char **name = &p->names[i];
        snprintf(what, sizeof what, "upsert[%zu]", i);
        if (json_check_kind(entry, JSON_KIND_OBJECT, what, err)) return -1;
        snprintf(what, sizeof what, "upsert[%zu].model_name", i);
        if (read_name(name, json_member(entry, "model_name"), what, err)) return -1;
        if (is_among(*name, p->names, i))
            return fail(err, E_ARG, "upsert[%zu]: duplicated model_name: %.200s", i, *name);
        if (check_entry(entry, i, err)) return -1;
        p->num_names++;
    }
    for (size_t i = 0; p->removals && i < json_length(p->removals); i++) {
        const char *name;
        snprintf(what, sizeof what, "remove_model_names[%zu]", i);
        if (read_name(&name, json_item(p->removals, i), what, err)) return -1;
        // To remove a thing twice is to remove it.
        if (!is_among(name, p->removed, p->num_removed)) p->removed[p->num_removed++] = name;
    }
    return 0;
}

// Values

static bool is_same_value(const struct toml_value *old, const struct json *now) {
    const char *text;
    int64_t integer;
    double number;
    size_t len;
    bool flag;
    switch (json_kind(now)) {
    case JSON_KIND_TEXT:
        return old->type == TOML_STRING && !json_read_text(&text, &len, now, "", NULL) &&
               old->string.len == len && !memcmp(old->string.data, text, len);
    case JSON_KIND_INT:
        return old->type == TOML_INT &&
               !json_read_int(&integer, now, INT64_MIN, INT64_MAX, "", NULL) &&
               old->integer == integer;
    case JSON_KIND_FLOAT:
        return old->type == TOML_FLOAT &&
               !json_read_float(&number, now, -INFINITY, INFINITY, "", NULL) &&
               old->number == number;
    case JSON_KIND_BOOL:
        return old->type == TOML_BOOL && !json_read_bool(&flag, now, "", NULL) && old->flag == flag;
    case JSON_KIND_ARRAY: break;
    default: return false;
    }
    if (old->type != TOML_ARRAY || old->items.count != json_length(now)) return false;
    size_t i = 0;
    for (const struct toml_value *item = old->items.first; item; item = item->next, i++) {
        if (!is_same_value(item, json_item(now, i))) return false;
    }
    return true;
}

static void put_number(struct str *out, double number) {
    struct json_writer w = {.out = out};
    const size_t begin = out->len;
    json_put_float(&w, number);
    if (!strpbrk(out->data + begin, ".e")) str_puts(out, ".0"); // 4.0 is no 4 to TOML
}

// TOML's text of a checked value; strings are written as JSON's.
static void put_value(struct str *out, const struct json *v) {
    struct json_writer w = {.out = out};
    const char *text = "";
    int64_t integer = 0;
    double number = 0;
    size_t len = 0;
    bool flag = false;
    switch (json_kind(v)) {
    case JSON_KIND_TEXT:
        json_read_text(&text, &len, v, "", NULL);
        json_put_text(&w, text, len);
        break;
    case JSON_KIND_INT:
        json_read_int(&integer, v, INT64_MIN, INT64_MAX, "", NULL);
        json_put_int(&w, integer);
        break;
    case JSON_KIND_FLOAT:
        json_read_float(&number, v, -INFINITY, INFINITY, "", NULL);
        put_number(out, number);
        break;
    case JSON_KIND_BOOL:
        json_read_bool(&flag, v, "", NULL);
        json_put_bool(&w, flag);
        break;
    default:
        str_putc(out, '[');
        for (size_t i = 0; i < json_length(v); i++) {
            if (i) str_puts(out, ", ");
            put_value(out, json_item(v, i));
        }
        str_putc(out, ']');
    }
}

// The text

static const char *name_of(const struct toml_value *table) {
    const struct toml_value *name =
        table->type == TOML_TABLE ? toml_get(table, "model_name") : NULL;
    return name && name->type == TOML_STRING ? name->string.data : NULL;
}

static const struct toml_value *find_model(const struct toml_value *models, const char *name) {
    const struct toml_value *table = models ? models->items.first : NULL;
    for (; table; table = table->next) {
        const char *its = name_of(table);
        if (its && !strcmp(its, name)) return table;
    }
    return NULL;
}

static const struct toml_value *find_key(const struct toml_value *table, const char *key) {
    const struct toml_value *v = table->items.first;
    while (v && (strlen(v->key) != v->key_len || !is_same_key(v->key, key))) v = v->next;
    return v;
}

static bool has_key(const struct json *entry, const struct toml_value *v) {
    const char *key;
    const struct json *value;
    for (void *at = NULL; json_next(entry, &at, &key, &value);) {
        if (strlen(v->key) == v->key_len && is_same_key(v->key, key)) return true;
    }
    return false;
}

static void replace(struct toml_edit *e, const struct toml_value *table, const struct json *entry) {
    const char *key;
    const struct json *value;
    struct str text;
    str_init(&text, SIZE_MAX / 4);
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        if (!has_key(entry, v)) toml_edit_remove(e, v);
    }
    for (void *at = NULL; json_next(entry, &at, &key, &value);) {
        const struct toml_value *old = find_key(table, key);
        if (old && is_same_value(old, value)) continue;
        str_clear(&text);
        put_value(&text, value);
        toml_edit_set(e, table, old ? old->key : key, text.data);
    }
    str_free(&text);
}

static void append(struct toml_edit *e, const struct json *entry) {
    struct toml_pair pairs[CONFIG_MAX_KEYS];
    const char *key;
    const struct json *value;
    struct str text;
    size_t count = 0;
    str_init(&text, SIZE_MAX / 4);
    for (void *at = NULL; json_next(entry, &at, &key, &value);) {
        str_clear(&text);
        put_value(&text, value);
        pairs[count++] = (struct toml_pair){key, arena_copy(&e->arena, text.data, text.len)};
    }
    toml_edit_append(e, "models", pairs, count);
    str_free(&text);
}

static int refuse_unknown(const struct toml_value *models, const char *name, struct error *err) {
    struct nearest near = {.typed = name};
    const struct toml_value *table = models ? models->items.first : NULL;
    for (; table; table = table->next) {
        const char *its = name_of(table);
        if (its) nearest_offer(&near, its);
    }
    return fail(err, E_ARG, "remove_model_names: there is no model \"%.200s\"%s%.200s%s", name,
                near.best ? "; did you mean " : "", near.best ? near.best : "",
                near.best ? "?" : "");
}

static int change(struct toml_edit *e, const struct patch *p, struct error *err) {
    const struct toml_value *models = toml_get(&e->doc.root, "models");
    if (models && (models->type != TOML_ARRAY || models->origin != TOML_ORIGIN_HEADER))
        return toml_fail(&e->doc, models, err,
                         "a reload changes models that are tables [[models]], one below the other; "
                         "here models is %s",
                         models->type == TOML_ARRAY ? "written in [brackets]"
                                                    : toml_type_name(models->type));
    for (size_t i = 0; i < p->num_removed; i++) {
        const struct toml_value *table = find_model(models, p->removed[i]);
        if (!table) return refuse_unknown(models, p->removed[i], err);
        if (!is_among(p->removed[i], p->names, p->num_names)) toml_edit_remove(e, table);
    }
    for (size_t i = 0; i < p->num_names; i++) {
        const struct toml_value *table = find_model(models, p->names[i]);
        const struct json *entry = json_item(p->upsert, i);
        if (table)
            replace(e, table, entry);
        else
            append(e, entry);
    }
    return 0;
}

int config_patch(struct str *text, const char *path, const struct json *request,
                 struct error *err) {
    struct patch p;
    struct toml_edit e;
    struct str changed;
    if (read_request(&p, request, err)) {
        if (err) err->code = E_ARG;
        return -1;
    }
    int rc = toml_edit_open(&e, text->data, text->len, path, err);
    if (rc) {
        if (err) err->code = E_CONFIG;
        return -1;
    }
    str_init(&changed, text->max);
    rc = change(&e, &p, err);
    if (!rc) rc = toml_edit_finish(&e, &changed, err);
    toml_edit_close(&e);
    if (rc) {
        str_free(&changed);
        return -1;
    }
    str_free(text);
    *text = changed;
    return 0;
}

int config_save(const char *path, const char *text, size_t len, struct error *err) {
    char *target = realpath(path, NULL);
    if (!target) return fail(err, E_IO, "%s: cannot find the file: %s", path, strerror(errno));
    const int rc = file_replace(target, text, len, err);
    free(target);
    return rc;
}
