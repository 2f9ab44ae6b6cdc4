// Any bytes: refused with a place, or a tree whose ranges lie inside the text and inside one
// another in source order, with no key twice.
#include "base/error.h"
#include "base/toml.h"

#include <string.h>

static void insist(bool holds) {
    if (!holds) __builtin_trap();
}

// By recursion, which the reader's depth bounds.
static void check(const struct toml_value *v, size_t begin, size_t end) {
    insist(v->begin <= v->end && v->begin >= begin && v->end <= end);
    insist(v->line >= 1 && v->column >= 1 && v->depth <= TOML_MAX_DEPTH);
    if (v->type == TOML_STRING) insist(v->string.data[v->string.len] == 0);
    if (v->type != TOML_ARRAY && v->type != TOML_TABLE) return;
    // Headers may stand anywhere; what is between braces stays between them.
    const bool closed = v->origin == TOML_ORIGIN_VALUE;
    size_t count = 0;
    for (const struct toml_value *item = v->items.first; item; item = item->next, count++) {
        insist((v->type == TOML_TABLE) == (item->key != NULL));
        insist(!item->next || item->next->begin >= item->begin || !closed);
        for (const struct toml_value *twin = v->type == TOML_TABLE ? item->next : NULL; twin;
             twin = twin->next)
            insist(twin->key_len != item->key_len || memcmp(twin->key, item->key, item->key_len));
        check(item, closed ? v->begin : 0, closed ? v->end : (size_t)-1);
    }
    insist(count == v->items.count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct error err = {0};
    struct toml doc;
    if (toml_parse(&doc, (const char *)data, len, "fuzz", &err)) {
        insist(!strncmp(err.msg, "fuzz:", 5));
        return 0;
    }
    check(&doc.root, 0, len);
    toml_free(&doc);
    return 0;
}
