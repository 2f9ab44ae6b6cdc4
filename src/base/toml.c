// TOML's structure: keys, tables, headers, arrays. The text is checked as UTF-8 once, up front, so
// that what follows can go by bytes. Arrays and inline tables nest by recursion, which the depth of
// the tree bounds.
#include "base/toml.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/toml_reader.h"
#include "base/unicode.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Places and errors

static void locate(struct toml_reader *r, size_t at) {
    if (at < r->mark) r->mark = 0; // only an error points back
    if (r->mark == 0) r->mark_line = r->mark_column = 1;
    for (; r->mark < at; r->mark++) {
        const unsigned char c = (unsigned char)r->text[r->mark];
        if (c == '\n') {
            r->mark_line++;
            r->mark_column = 1;
        } else if ((c & 0xc0) != 0x80) {
            r->mark_column++; // bytes inside a character count nothing
        }
    }
}

int toml_refuse(struct toml_reader *r, size_t at, const char *fmt, ...) {
    char what[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    locate(r, at);
    return fail(r->err, E_FORMAT, "%s:%d:%d: %s", r->doc->name, r->mark_line, r->mark_column, what);
}

int toml_refuse_word(struct toml_reader *r, size_t at, const char *wanted) {
    size_t end = at;
    while (end < r->len && end - at < 40 && !strchr(" \t\r\n,=#[]{}", r->text[end])) end++;
    while (end < r->len && ((unsigned char)r->text[end] & 0xc0) == 0x80) end++;
    if (at >= r->len) return toml_refuse(r, at, "the file ends here, %s", wanted);
    if (r->text[at] == '\n' || r->text[at] == '\r')
        return toml_refuse(r, at, "the line ends here, %s", wanted);
    if (end == at) end++;
    return toml_refuse(r, at, "got %.*s, %s", (int)(end - at), r->text + at, wanted);
}

int toml_fail(const struct toml *doc, const struct toml_value *v, struct error *err,
              const char *fmt, ...) {
    char what[800];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return fail(err, E_CONFIG, "%s:%d:%d: %s", doc->name, v->key_line, v->key_column, what);
}

const char *toml_type_name(enum toml_type type) {
    static const char *const names[] = {
        [TOML_STRING] = "a string",
        [TOML_INT] = "an integer",
        [TOML_FLOAT] = "a float",
        [TOML_BOOL] = "a boolean",
        [TOML_DATETIME] = "a date and time",
        [TOML_LOCAL_DATETIME] = "a local date and time",
        [TOML_LOCAL_DATE] = "a date",
        [TOML_LOCAL_TIME] = "a time",
        [TOML_ARRAY] = "an array",
        [TOML_TABLE] = "a table",
    };
    return names[type];
}

// The tree

void *toml_new(struct toml_reader *r, size_t bytes) {
    void *p = arena_alloc(&r->doc->arena, bytes);
    if (!p)
        fail(r->err, E_LIMIT, "%s: more than %d MiB of values", r->doc->name, TOML_MAX_TREE >> 20);
    return p;
}

static struct toml_slot *find_slot(const struct toml_reader *r, const struct toml_value *table,
                                   const char *key, size_t len) {
    const uint64_t hash = hash64(key, len) ^ hash64(&table, sizeof table);
    for (size_t i = (size_t)hash;; i++) {
        struct toml_slot *slot = &r->slots[i & (r->slot_count - 1)];
        const struct toml_value *v = slot->value;
        if (!v || (slot->table == table && v->key_len == len && !memcmp(v->key, key, len)))
            return slot;
    }
}

static struct toml_value *find(const struct toml_reader *r, const struct toml_value *table,
                               const char *key, size_t len) {
    return find_slot(r, table, key, len)->value;
}

static void index_key(struct toml_reader *r, const struct toml_value *table, struct toml_value *v) {
    if (2 * (r->used_slots + 1) > r->slot_count) {
        struct toml_slot *old = r->slots;
        const size_t old_count = r->slot_count;
        r->slot_count = 2 * old_count;
        r->slots = mem_zero(r->slot_count, sizeof *r->slots);
        for (size_t i = 0; i < old_count; i++) {
            const struct toml_value *moved = old[i].value;
            if (moved) *find_slot(r, old[i].table, moved->key, moved->key_len) = old[i];
        }
        free(old);
    }
    *find_slot(r, table, v->key, v->key_len) = (struct toml_slot){table, v};
    r->used_slots++;
}

// A new value at the end of a table or array, standing at byte `at`.
static struct toml_value *append(struct toml_reader *r, struct toml_value *parent, size_t at) {
    if (parent->depth >= TOML_MAX_DEPTH) {
        toml_refuse(r, at, "nested deeper than %d", TOML_MAX_DEPTH);
        return NULL;
    }
    struct toml_value *v = toml_new(r, sizeof *v);
    if (!v) return NULL;
    locate(r, at);
    v->line = v->key_line = r->mark_line;
    v->column = v->key_column = r->mark_column;
    v->begin = v->end = at;
    v->depth = parent->depth + 1;
    if (parent->items.last)
        parent->items.last->next = v;
    else
        parent->items.first = v;
    parent->items.last = v;
    parent->items.count++;
    return v;
}

// Keys. A part is one name of a dotted key.

struct part {
    const char *name;
    size_t len, at;
};

static struct toml_value *append_key(struct toml_reader *r, struct toml_value *table,
                                     const struct part *key) {
    struct toml_value *v = append(r, table, key->at);
    if (!v) return NULL;
    v->key = key->name;
    v->key_len = key->len;
    index_key(r, table, v);
    return v;
}

static struct toml_value *append_table(struct toml_reader *r, struct toml_value *table,
                                       const struct part *key, enum toml_origin origin) {
    struct toml_value *v = append_key(r, table, key);
    if (!v) return NULL;
    v->type = TOML_TABLE;
    v->origin = origin;
    return v;
}

static void skip_space(struct toml_reader *r) {
    while (r->at < r->len && (r->text[r->at] == ' ' || r->text[r->at] == '\t')) r->at++;
}

static bool take(struct toml_reader *r, char c) {
    if (r->at >= r->len || r->text[r->at] != c) return false;
    r->at++;
    return true;
}

static bool is_key_byte(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

static int read_part(struct toml_reader *r, struct part *part) {
    const size_t begin = part->at = r->at;
    if (begin < r->len && (r->text[begin] == '"' || r->text[begin] == '\''))
        return toml_read_string(r, true, &part->name, &part->len);
    while (r->at < r->len && is_key_byte(r->text[r->at])) r->at++;
    part->len = r->at - begin;
    if (!part->len) return toml_refuse_word(r, begin, "wanted a key");
    char *name = toml_new(r, part->len + 1);
    if (!name) return -1;
    part->name = memcpy(name, r->text + begin, part->len);
    return 0;
}

// "a . b.'c'": fills `parts` and `count`, and skips the space behind.
static int read_key(struct toml_reader *r, struct part parts[TOML_MAX_DEPTH], size_t *count) {
    *count = 0;
    do {
        skip_space(r);
        if (*count == TOML_MAX_DEPTH)
            return toml_refuse(r, r->at, "a key of more than %d parts", TOML_MAX_DEPTH);
        if (read_part(r, &parts[(*count)++])) return -1;
        skip_space(r);
    } while (take(r, '.'));
    return 0;
}

static int refuse_key(struct toml_reader *r, const struct part *part, const struct toml_value *old,
                      const char *why) {
    return toml_refuse(r, part->at, "%.*s %s; it is %s since line %d",
                       (int)(part->len < 100 ? part->len : 100), part->name, why,
                       toml_type_name(old->type), old->key_line);
}

static int read_value(struct toml_reader *r, struct toml_value *v);

// "a.b = value" into a table. The tables on the way are defined by it: a header cannot open them
// any more, and what a header or braces defined cannot be added to from here.
static int read_pair(struct toml_reader *r, struct toml_value *table) {
    struct part parts[TOML_MAX_DEPTH];
    size_t count = 0;
    if (read_key(r, parts, &count)) return -1;
    for (size_t i = 0; i + 1 < count; i++) {
        struct toml_value *old = find(r, table, parts[i].name, parts[i].len);
        if (old && (old->type != TOML_TABLE || old->origin == TOML_ORIGIN_HEADER ||
                    old->origin == TOML_ORIGIN_VALUE))
            return refuse_key(r, &parts[i], old, "cannot be added to by a dotted key");
        if (!old) old = append_table(r, table, &parts[i], TOML_ORIGIN_DOTTED);
        if (!old) return -1;
        old->origin = TOML_ORIGIN_DOTTED;
        table = old;
    }
    const struct part *last = &parts[count - 1];
    const struct toml_value *twin = find(r, table, last->name, last->len);
    if (twin) return refuse_key(r, last, twin, "is defined twice");
    if (!take(r, '=')) return toml_refuse_word(r, r->at, "wanted = after the key");
    skip_space(r);
    struct toml_value *v = append_key(r, table, last);
    if (!v) return -1;
    locate(r, r->at);
    v->line = r->mark_line;
    v->column = r->mark_column;
    return read_value(r, v);
}

// Values

static void skip_comment(struct toml_reader *r) {
    if (r->at >= r->len || r->text[r->at] != '#') return;
    while (r->at < r->len && r->text[r->at] != '\r' && r->text[r->at] != '\n') r->at++;
}

static void skip_blank(struct toml_reader *r) {
    for (;;) {
        while (r->at < r->len && strchr(" \t\r\n", r->text[r->at])) r->at++;
        if (r->at >= r->len || r->text[r->at] != '#') return;
        skip_comment(r);
    }
}

static int read_array(struct toml_reader *r, struct toml_value *array) {
    array->type = TOML_ARRAY;
    for (;;) {
        skip_blank(r);
        if (take(r, ']')) return 0;
        struct toml_value *item = append(r, array, r->at);
        if (!item || read_value(r, item)) return -1;
        skip_blank(r);
        if (take(r, ']')) return 0;
        if (!take(r, ',')) return toml_refuse_word(r, r->at, "wanted , or ] in the array");
    }
}

static int read_inline_table(struct toml_reader *r, struct toml_value *table) {
    table->type = TOML_TABLE;
    skip_space(r);
    if (take(r, '}')) return 0;
    for (;;) {
        if (read_pair(r, table)) return -1;
        skip_space(r);
        if (take(r, '}')) return 0;
        if (!take(r, ','))
            return toml_refuse_word(r, r->at, "wanted , or } in the table, on the same line");
    }
}

static int read_value(struct toml_reader *r, struct toml_value *v) {
    v->begin = r->at;
    const char c = r->at < r->len ? r->text[r->at] : 0;
    int rc;
    if (c == '"' || c == '\'') {
        v->type = TOML_STRING;
        rc = toml_read_string(r, false, &v->string.data, &v->string.len);
    } else if (c == '[') {
        r->at++;
        rc = read_array(r, v);
    } else if (c == '{') {
        r->at++;
        rc = read_inline_table(r, v);
    } else {
        rc = toml_read_bare(r, v);
    }
    v->end = r->at;
    // The braces are closed: nothing inside is open to anyone any more.
    v->origin = TOML_ORIGIN_VALUE;
    return rc;
}

// Headers

// Walks to the table that holds the header's last name. Arrays of tables stand for their last one.
static struct toml_value *walk_header(struct toml_reader *r, const struct part *parts,
                                      size_t count) {
    struct toml_value *table = &r->doc->root;
    for (size_t i = 0; i + 1 < count; i++) {
        struct toml_value *old = find(r, table, parts[i].name, parts[i].len);
        if (!old) old = append_table(r, table, &parts[i], TOML_ORIGIN_PARENT);
        if (!old) return NULL;
        const bool container = old->type == TOML_TABLE || old->type == TOML_ARRAY;
        if (!container || old->origin == TOML_ORIGIN_VALUE) {
            refuse_key(r, &parts[i], old, "cannot hold a table by header");
            return NULL;
        }
        table = old->type == TOML_ARRAY ? old->items.last : old;
    }
    return table;
}

static struct toml_value *open_table(struct toml_reader *r, struct toml_value *parent,
                                     const struct part *key) {
    struct toml_value *old = find(r, parent, key->name, key->len);
    if (!old) return append_table(r, parent, key, TOML_ORIGIN_HEADER);
    if (old->type != TOML_TABLE || old->origin != TOML_ORIGIN_PARENT) {
        refuse_key(r, key, old, "is defined twice");
        return NULL;
    }
    old->origin = TOML_ORIGIN_HEADER;
    return old;
}

static struct toml_value *open_array_table(struct toml_reader *r, struct toml_value *parent,
                                           const struct part *key) {
    struct toml_value *array = find(r, parent, key->name, key->len);
    if (!array) {
        array = append_table(r, parent, key, TOML_ORIGIN_HEADER);
        if (!array) return NULL;
        array->type = TOML_ARRAY;
    }
    if (array->type != TOML_ARRAY || array->origin != TOML_ORIGIN_HEADER) {
        refuse_key(r, key, array, "cannot take another [[table]]");
        return NULL;
    }
    struct toml_value *table = append(r, array, key->at);
    if (!table) return NULL;
    table->type = TOML_TABLE;
    table->origin = TOML_ORIGIN_HEADER;
    return table;
}

// "[a.b]" or "[[a.b]]": the table that the lines below it go to, or NULL.
static struct toml_value *read_header(struct toml_reader *r) {
    const size_t begin = r->at++;
    const bool is_array = take(r, '[');
    locate(r, begin);
    const int line = r->mark_line, column = r->mark_column;
    struct part parts[TOML_MAX_DEPTH];
    size_t count = 0;
    if (read_key(r, parts, &count)) return NULL;
    if (!take(r, ']') || (is_array && !take(r, ']'))) {
        toml_refuse_word(r, r->at, is_array ? "wanted ]] after the name" : "wanted ]");
        return NULL;
    }
    struct toml_value *parent = walk_header(r, parts, count);
    if (!parent) return NULL;
    const struct part *last = &parts[count - 1];
    struct toml_value *table =
        is_array ? open_array_table(r, parent, last) : open_table(r, parent, last);
    if (!table) return NULL;
    table->line = table->key_line = line;
    table->column = table->key_column = column;
    table->begin = begin;
    table->end = r->at;
    return table;
}

// The document

static int read_lines(struct toml_reader *r) {
    struct toml_value *table = &r->doc->root;
    for (;;) {
        skip_blank(r);
        if (r->at >= r->len) return 0;
        if (r->text[r->at] == '[') {
            table = read_header(r);
            if (!table) return -1;
        } else if (read_pair(r, table)) {
            return -1;
        }
        skip_space(r);
        skip_comment(r);
        if (table != &r->doc->root) table->end = r->at;
        take(r, '\r'); // the check of the text saw a line feed behind it
        if (r->at < r->len && !take(r, '\n'))
            return toml_refuse_word(r, r->at, "wanted the end of the line");
    }
}

// UTF-8 throughout, and no control characters but tab and line ends.
static int check_text(struct toml_reader *r) {
    for (size_t at = 0; at < r->len;) {
        const size_t n = unicode_decode(r->text + at, r->len - at, NULL);
        if (!n) return toml_refuse(r, at, "the bytes are not UTF-8");
        const unsigned char c = (unsigned char)r->text[at];
        const bool crlf = c == '\r' && at + 1 < r->len && r->text[at + 1] == '\n';
        if ((c < 0x20 || c == 0x7f) && c != '\t' && c != '\n' && !crlf)
            return toml_refuse(r, at, "a control character, 0x%02x; in strings write \\u%04x", c,
                               c);
        at += n;
    }
    return 0;
}

int toml_parse(struct toml *doc, const char *text, size_t len, const char *name,
               struct error *err) {
    *doc = (struct toml){.arena.max_bytes = TOML_MAX_TREE, .name = name};
    if (len > TOML_MAX_BYTES)
        return fail(err, E_LIMIT, "%s: %zu bytes, at most %d are read", name, len, TOML_MAX_BYTES);
    doc->name = arena_copy(&doc->arena, name, strlen(name));
    doc->root = (struct toml_value){
        .type = TOML_TABLE, .origin = TOML_ORIGIN_HEADER, .line = 1, .column = 1, .end = len};
    doc->root.key_line = doc->root.key_column = 1;
    struct toml_reader r = {.text = text, .len = len, .doc = doc, .err = err, .slot_count = 64};
    r.slots = mem_zero(r.slot_count, sizeof *r.slots);
    if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) r.at = 3; // a byte order mark
    int rc = check_text(&r);
    r.mark = 0;
    if (!rc) rc = read_lines(&r);
    free(r.slots);
    if (rc) toml_free(doc);
    return rc;
}

void toml_free(struct toml *doc) {
    arena_free(&doc->arena);
    doc->root = (struct toml_value){.type = TOML_TABLE};
}

const struct toml_value *toml_get(const struct toml_value *table, const char *key) {
    const size_t len = strlen(key);
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        if (v->key && v->key_len == len && !memcmp(v->key, key, len)) return v;
    }
    return NULL;
}
