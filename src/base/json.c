#include "base/json.h"

#include "base/error.h"

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const json_t *in(const struct json *v) {
    return (const json_t *)v;
}

static const struct json *out_of(const json_t *v) {
    return (const struct json *)v;
}

void json_init(void) {
    json_object_seed(0);
}

// The library reads nested values by recursion, to a depth of its own that is not ours to choose.
// So brackets outside strings are counted first; for a valid document that is its exact depth.
static int check_depth(const char *text, size_t len, const char *name, struct error *err) {
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        const char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (in_string)
            continue;
        else if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth)
            depth--;
        if (depth > JSON_MAX_DEPTH)
            return fail(err, E_LIMIT, "%s: byte %zu is nested deeper than %d", name, i,
                        JSON_MAX_DEPTH);
    }
    return 0;
}

int json_parse(struct json **out, const char *text, size_t len, size_t max_bytes, const char *name,
               struct error *err) {
    *out = NULL;
    if (len > max_bytes)
        return fail(err, E_LIMIT, "%s: %zu bytes of JSON, at most %zu are read", name, len,
                    max_bytes);
    if (len && memchr(text, 0, len)) // the library takes one behind a number for its end
        return fail(err, E_FORMAT, "%s: byte %zu is NUL", name,
                    (size_t)((const char *)memchr(text, 0, len) - text));
    if (check_depth(text, len, name, err)) return -1;
    json_error_t why;
    json_t *root =
        json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!root) return fail(err, E_FORMAT, "%s:%d:%d: %s", name, why.line, why.column, why.text);
    *out = (struct json *)root;
    return 0;
}

void json_free(struct json *root) {
    json_decref((json_t *)root);
}

enum json_kind json_kind(const struct json *v) {
    switch (json_typeof(in(v))) {
    case JSON_OBJECT: return JSON_KIND_OBJECT;
    case JSON_ARRAY: return JSON_KIND_ARRAY;
    case JSON_STRING: return JSON_KIND_TEXT;
    case JSON_INTEGER: return JSON_KIND_INT;
    case JSON_REAL: return JSON_KIND_FLOAT;
    case JSON_TRUE:
    case JSON_FALSE: return JSON_KIND_BOOL;
    case JSON_NULL: break;
    }
    return JSON_KIND_NULL;
}

const struct json *json_member(const struct json *object, const char *key) {
    return out_of(json_object_get(in(object), key));
}

size_t json_length(const struct json *v) {
    return json_is_array(in(v)) ? json_array_size(in(v)) : json_object_size(in(v));
}

const struct json *json_item(const struct json *array, size_t i) {
    const json_t *item = json_array_get(in(array), i);
    assert(item);
    return out_of(item);
}

bool json_next(const struct json *object, void **at, const char **key, const struct json **value) {
    json_t *o = (json_t *)object; // the library's iterator reads only, yet asks for this
    *at = *at ? json_object_iter_next(o, *at) : json_object_iter(o);
    if (!*at) return false;
    *key = json_object_iter_key(*at);
    *value = out_of(json_object_iter_value(*at));
    return true;
}

// Checked reads

static const char *const kind_names[] = {
    [JSON_KIND_NULL] = "null",          [JSON_KIND_BOOL] = "a boolean",
    [JSON_KIND_INT] = "a whole number", [JSON_KIND_FLOAT] = "a number",
    [JSON_KIND_TEXT] = "a string",      [JSON_KIND_ARRAY] = "an array",
    [JSON_KIND_OBJECT] = "an object",
};

int json_check_kind(const struct json *v, enum json_kind wanted, const char *what,
                    struct error *err) {
    if (!v) return fail(err, E_FORMAT, "%s is missing, wanted %s", what, kind_names[wanted]);
    if (json_kind(v) == wanted) return 0;
    return fail(err, E_FORMAT, "%s is %s, wanted %s", what, kind_names[json_kind(v)],
                kind_names[wanted]);
}

int json_read_bool(bool *out, const struct json *v, const char *what, struct error *err) {
    if (json_check_kind(v, JSON_KIND_BOOL, what, err)) return -1;
    *out = json_is_true(in(v));
    return 0;
}

int json_read_int(int64_t *out, const struct json *v, int64_t min, int64_t max, const char *what,
                  struct error *err) {
    if (json_check_kind(v, JSON_KIND_INT, what, err)) return -1;
    const int64_t value = json_integer_value(in(v));
    if (value < min || value > max)
        return fail(err, E_FORMAT, "%s is %lld, wanted %lld to %lld", what, (long long)value,
                    (long long)min, (long long)max);
    *out = value;
    return 0;
}

int json_read_float(double *out, const struct json *v, double min, double max, const char *what,
                    struct error *err) {
    if (!v || json_kind(v) != JSON_KIND_INT) {
        if (json_check_kind(v, JSON_KIND_FLOAT, what, err)) return -1;
    }
    const double value = json_number_value(in(v));
    if (value < min || value > max)
        return fail(err, E_FORMAT, "%s is %g, wanted %g to %g", what, value, min, max);
    *out = value;
    return 0;
}

int json_read_text(const char **out, size_t *len, const struct json *v, const char *what,
                   struct error *err) {
    if (json_check_kind(v, JSON_KIND_TEXT, what, err)) return -1;
    *out = json_string_value(in(v));
    *len = json_string_length(in(v));
    return 0;
}
