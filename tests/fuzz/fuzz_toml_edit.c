// Any TOML and any set of changes to it: the changed text reads as the changed tree; lines that
// nobody asked about are all there, in their order; and what is edited back is as it was. The first
// four bytes choose the changes, by a hash of each value's place, so that nothing has to be written
// down about them.
#include "base/error.h"
#include "base/hash.h"
#include "base/str.h"
#include "base/toml_edit.h"

#include <string.h>

enum action { KEEP, REMOVE, SET, ADD };

#define MARK "424242"

static uint32_t seed;

static void insist(bool holds) {
    if (!holds) __builtin_trap();
}

static bool is_open(const struct toml_value *v) {
    return (v->type == TOML_TABLE || v->type == TOML_ARRAY) && v->origin != TOML_ORIGIN_VALUE;
}

static bool has_header(const struct toml_value *v) {
    return v->type == TOML_TABLE && v->origin == TOML_ORIGIN_HEADER;
}

// What happens to `v` in `parent` (NULL: the root itself).
static enum action action_of(const struct toml_value *v, const struct toml_value *parent) {
    const int place[4] = {v->key_line, v->key_column, v->depth, (int)(seed >> 8)};
    const unsigned bits = (unsigned)hash64(place, sizeof place);
    const unsigned mask = seed & 7; // which kinds of change this run has
    if (parent && (mask & 1) && bits % 4 == 0) return REMOVE;
    if (parent && has_header(parent) && (mask & 2) && bits % 4 == 1) return SET;
    return has_header(v) && (mask & 4) && bits % 2 && !toml_get(v, "zz") ? ADD : KEEP;
}

static bool appends(const struct toml_value *root) {
    const struct toml_value *m = toml_get(root, "models");
    return (seed & 8) && (!m || (m->type == TOML_ARRAY && is_open(m) && action_of(m, root) != SET));
}

static bool removed_header;

static void note_headers(const struct toml_value *v) {
    if (has_header(v)) removed_header = true;
    for (const struct toml_value *item = is_open(v) ? v->items.first : NULL; item;
         item = item->next)
        note_headers(item);
}

static void change(struct toml_edit *e, const struct toml_value *table) {
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        const enum action action = action_of(v, table);
        if (action == REMOVE || (action == SET && is_open(v))) note_headers(v);
        if (action == REMOVE)
            toml_edit_remove(e, v);
        else if (action == SET && strlen(v->key) == v->key_len)
            toml_edit_set(e, table, v->key, MARK);
        else if (is_open(v))
            change(e, v);
    }
    if (action_of(table, NULL) == ADD) toml_edit_set(e, table, "zz", MARK);
}

// The law of the tree

static bool is_mark(const struct toml_value *v) {
    return v && v->type == TOML_INT && v->integer == 424242;
}

static const struct toml_value *twin_of(const struct toml_value *v,
                                        const struct toml_value *table) {
    const struct toml_value *twin = table->items.first;
    while (twin && (twin->key_len != v->key_len || memcmp(twin->key, v->key, v->key_len)))
        twin = twin->next;
    return twin;
}

static bool is_set(const struct toml_value *v, const struct toml_value *parent) {
    return parent->type == TOML_TABLE && action_of(v, parent) == SET &&
           strlen(v->key) == v->key_len;
}

// Tables that are there only for what is in them go with it.
static bool vanishes(const struct toml_value *v, const struct toml_value *parent) {
    if (action_of(v, parent) == REMOVE) return true;
    if (!is_open(v) || has_header(v) || is_set(v, parent)) return false;
    for (const struct toml_value *item = v->items.first; item; item = item->next) {
        if (!vanishes(item, v)) return false;
    }
    return true;
}

static void compare(const struct toml_value *old, const struct toml_value *now, bool changed);

static void compare_items(const struct toml_value *old, const struct toml_value *now,
                          bool changed) {
    const struct toml_value *next = now->items.first;
    size_t count = changed && has_header(old) && action_of(old, NULL) == ADD;
    if (count) insist(is_mark(toml_get(now, "zz")));
    for (const struct toml_value *v = old->items.first; v; v = v->next) {
        if (changed && vanishes(v, old)) continue;
        const struct toml_value *twin = old->type == TOML_TABLE ? twin_of(v, now) : next;
        insist(twin != NULL);
        if (changed && is_set(v, old))
            insist(is_mark(twin));
        else
            compare(v, twin, changed && is_open(v));
        if (next) next = next->next;
        count++;
    }
    if (!changed || old->key || old->depth || !appends(old)) {
        insist(count == now->items.count || (old->key && !strcmp(old->key, "models")));
        return;
    }
    const struct toml_value *models = toml_get(now, "models"), *before = toml_get(old, "models");
    insist(models && models->type == TOML_ARRAY && is_mark(toml_get(models->items.last, "k")));
    insist(count + (!before || vanishes(before, old)) == now->items.count);
}

static void compare(const struct toml_value *old, const struct toml_value *now, bool changed) {
    insist(old->type == now->type);
    switch (old->type) {
    case TOML_STRING:
        insist(old->string.len == now->string.len &&
               !memcmp(old->string.data, now->string.data, old->string.len));
        break;
    case TOML_INT: insist(old->integer == now->integer); break;
    case TOML_FLOAT: insist(!memcmp(&old->number, &now->number, sizeof old->number)); break;
    case TOML_BOOL: insist(old->flag == now->flag); break;
    case TOML_ARRAY:
    case TOML_TABLE: compare_items(old, now, changed); break;
    default: insist(!memcmp(&old->datetime, &now->datetime, sizeof old->datetime));
    }
}

// The law of the bytes

static size_t count_comments(const struct toml_edit *e) {
    size_t count = 0;
    for (size_t i = 0; i < e->num_lines; i++) count += e->lines[i].kind == TOML_LINE_COMMENT;
    return count;
}

// Without the line end, which the last line may have lost or got.
static size_t line_len(const struct toml_edit *e, size_t i) {
    size_t len = e->lines[i + 1].begin - e->lines[i].begin;
    const char *line = e->text + e->lines[i].begin;
    while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
    return len;
}

// Every line is one of the old ones, in their order, or says what was set (as an old one may too).
static void check_lines(const struct toml_edit *old, const struct toml_edit *now) {
    size_t from = 0;
    for (size_t i = 0; i < now->num_lines; i++) {
        const char *line = now->text + now->lines[i].begin;
        const size_t len = line_len(now, i);
        if (len >= 11 && !memcmp(line + len - 11, "zz = " MARK, 11)) continue;
        size_t at = from;
        while (at < old->num_lines && (line_len(old, at) != len ||
                                       memcmp(old->text + old->lines[at].begin, line, len) != 0))
            at++;
        insist(at < old->num_lines);
        from = at + 1;
    }
    if (!removed_header) insist(count_comments(old) == count_comments(now));
}

// Editing back

static void there_and_back(const char *text, size_t len, const struct toml_edit *e) {
    struct error err = {0};
    struct toml_edit there = {0}, back = {0};
    struct str now, then;
    const struct toml_pair pair = {"k", MARK};
    const struct toml_value *m = toml_get(&e->doc.root, "models");
    const size_t num_models = m ? m->items.count : 0;
    const bool can_append = !m || (m->type == TOML_ARRAY && is_open(m));
    const bool can_set = !toml_get(&e->doc.root, "zz");
    if (!can_append && !can_set) return;
    str_init(&now, TOML_MAX_BYTES);
    str_init(&then, TOML_MAX_BYTES);
    insist(!toml_edit_open(&there, text, len, "fuzz", &err));
    if (can_append) toml_edit_append(&there, "models", &pair, 1);
    if (can_set) toml_edit_set(&there, &there.doc.root, "zz", MARK);
    insist(!toml_edit_finish(&there, &now, &err));
    insist(!toml_edit_open(&back, now.data, now.len, "fuzz", &err));
    m = toml_get(&back.doc.root, "models");
    if (can_append) insist(m && m->items.count == num_models + 1);
    if (can_append) toml_edit_remove(&back, m->items.last);
    if (can_set) toml_edit_remove(&back, toml_get(&back.doc.root, "zz"));
    insist(!toml_edit_finish(&back, &then, &err));
    insist(then.len == len && !memcmp(then.data, text, len));
    toml_edit_close(&there);
    toml_edit_close(&back);
    str_free(&now);
    str_free(&then);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct error err = {0};
    struct toml_edit old, now;
    struct str out;
    const struct toml_pair pair = {"k", MARK};
    if (len < sizeof seed) return 0;
    memcpy(&seed, data, sizeof seed);
    const char *text = (const char *)data + sizeof seed;
    len -= sizeof seed;
    if (toml_edit_open(&old, text, len, "fuzz", &err)) return 0;
    str_init(&out, TOML_MAX_BYTES);
    removed_header = false;
    change(&old, &old.doc.root);
    const bool appended = appends(&old.doc.root);
    if (appended) toml_edit_append(&old, "models", &pair, 1);
    insist(!toml_edit_finish(&old, &out, &err));
    insist(!toml_edit_open(&now, out.data, out.len, "fuzz", &err));
    compare(&old.doc.root, &now.doc.root, true);
    if (!(seed & 2) && !appended) check_lines(&old, &now);
    there_and_back(text, len, &old);
    toml_edit_close(&now);
    toml_edit_close(&old);
    str_free(&out);
    return 0;
}
