// Any bytes: refused with a message, or read; what was read is written, and reads back the same.
#include "base/error.h"
#include "base/json.h"
#include "base/str.h"

#include <assert.h>
#include <float.h>
#include <string.h>

// By recursion, which the façade's depth bounds.
static void write_value(struct json_writer *w, const struct json *v) {
    struct error err;
    bool flag = false;
    int64_t whole = 0;
    double number = 0;
    const char *text = NULL, *key = NULL;
    size_t len = 0;
    void *at = NULL;
    const struct json *member = NULL;
    switch (json_kind(v)) {
    case JSON_KIND_NULL: json_put_null(w); break;
    case JSON_KIND_BOOL:
        assert(!json_read_bool(&flag, v, "value", &err));
        json_put_bool(w, flag);
        break;
    case JSON_KIND_INT:
        assert(!json_read_int(&whole, v, INT64_MIN, INT64_MAX, "value", &err));
        json_put_int(w, whole);
        break;
    case JSON_KIND_FLOAT:
        assert(!json_read_float(&number, v, -DBL_MAX, DBL_MAX, "value", &err));
        json_put_float(w, number);
        break;
    case JSON_KIND_TEXT:
        assert(!json_read_text(&text, &len, v, "value", &err));
        json_put_text(w, text, len);
        break;
    case JSON_KIND_ARRAY:
        json_open(w, '[');
        for (size_t i = 0; i < json_length(v); i++) write_value(w, json_item(v, i));
        json_close(w, ']');
        break;
    case JSON_KIND_OBJECT:
        json_open(w, '{');
        while (json_next(v, &at, &key, &member)) {
            json_put_key(w, key);
            write_value(w, member);
        }
        json_close(w, '}');
        break;
    }
}

static void write_document(struct str *out, const struct json *v) {
    str_init(out, 1 << 24);
    struct json_writer w = {.out = out};
    write_value(&w, v);
    assert(!json_done(&w));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct error err = {0};
    struct json *v = NULL, *again = NULL;
    if (json_parse(&v, (const char *)data, len, 1 << 20, "fuzz", &err)) {
        assert(err.msg[0] && !v);
        return 0;
    }
    struct str once, twice;
    write_document(&once, v);
    if (json_parse(&again, once.data, once.len, 1 << 24, "written", &err)) __builtin_trap();
    write_document(&twice, again);
    assert(once.len == twice.len && !memcmp(once.data, twice.data, once.len));
    str_free(&once);
    str_free(&twice);
    json_free(v);
    json_free(again);
    return 0;
}
