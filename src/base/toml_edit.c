// Every change is a splice: bytes of the old text and what stands there instead. Removals and
// additions are whole lines, so that they can meet at a place without regard for each other; what
// depends on the lines around it (a blank line above, a line end at the end of the text) is settled
// when the new text is put together.
#include "base/toml_edit.h"

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct toml_splice {
    size_t begin, end; // of the old text
    const char *instead;
    size_t len;
    size_t order;                                    // as asked for
    enum form { IN_PLACE, LINES, LINES_APART } form; // apart: below a blank line
};

static void splice(struct toml_edit *e, size_t begin, size_t end, const char *instead, size_t len,
                   enum form form) {
    if (e->num_splices == e->max_splices) {
        e->max_splices = e->max_splices ? 2 * e->max_splices : 16;
        e->splices = mem_grow(e->splices, e->max_splices, sizeof *e->splices);
    }
    e->splices[e->num_splices] =
        (struct toml_splice){begin,          end, arena_copy(&e->arena, instead, len), len,
                             e->num_splices, form};
    e->num_splices++;
}

// Lines, counted from 0

static size_t line_at(const struct toml_edit *e, size_t at) {
    size_t low = 0, high = e->num_lines;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (e->lines[middle].begin <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static enum toml_line_kind kind_of(const struct toml_edit *e, size_t i) {
    size_t at = e->lines[i].begin;
    while (at < e->len && (e->text[at] == ' ' || e->text[at] == '\t')) at++;
    if (at >= e->len || e->text[at] == '\n' || e->text[at] == '\r') return TOML_LINE_BLANK;
    return e->text[at] == '#' ? TOML_LINE_COMMENT : TOML_LINE_OTHER;
}

static void find_lines(struct toml_edit *e) {
    size_t count = 1;
    for (size_t at = 0; at < e->len; at++) count += e->text[at] == '\n';
    e->lines = mem_zero(count + 1, sizeof *e->lines);
    if (e->len >= 3 && !memcmp(e->text, "\xef\xbb\xbf", 3)) e->lines[0].begin = 3;
    for (size_t at = 0, i = 0; at < e->len; at++) {
        if (e->text[at] == '\n') e->lines[++i].begin = (uint32_t)(at + 1);
    }
    // A text that ends with a line end has no line behind it.
    e->num_lines = e->lines[count - 1].begin == e->len ? count - 1 : count;
    e->lines[e->num_lines].begin = (uint32_t)e->len;
    for (size_t i = 0; i < e->num_lines; i++) e->lines[i].kind = kind_of(e, i);
    const char *feed = memchr(e->text, '\n', e->len);
    e->eol = feed && feed > e->text && feed[-1] == '\r' ? "\r\n" : "\n";
}

static bool has_header(const struct toml_value *v) {
    return v->type == TOML_TABLE && v->origin == TOML_ORIGIN_HEADER;
}

// Tables and arrays that are spread over lines of their own, whose items have lines themselves.
static bool is_open(const struct toml_value *v) {
    return (v->type == TOML_TABLE || v->type == TOML_ARRAY) && v->origin != TOML_ORIGIN_VALUE;
}

// A line inside a long string or array is no comment, whatever it looks like. By recursion, which
// the reader's depth bounds.
static void cover_lines(struct toml_edit *e, const struct toml_value *table) {
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        if (is_open(v)) {
            cover_lines(e, v);
            continue;
        }
        const size_t last = line_at(e, v->end);
        for (size_t i = (size_t)v->line - 1; i <= last; i++) e->lines[i].kind = TOML_LINE_OTHER;
    }
}

int toml_edit_open(struct toml_edit *e, const char *text, size_t len, const char *name,
                   struct error *err) {
    *e = (struct toml_edit){.text = text, .len = len};
    if (toml_parse(&e->doc, text, len, name, err)) return -1;
    if (!len) e->text = "";
    find_lines(e);
    cover_lines(e, &e->doc.root);
    return 0;
}

void toml_edit_close(struct toml_edit *e) {
    toml_free(&e->doc);
    arena_free(&e->arena);
    free(e->lines);
    free(e->splices);
    *e = (struct toml_edit){0};
}

// The line behind the last one that a value's own keys have, without the tables below it: 0 when it
// has none.
static size_t own_end(const struct toml_edit *e, const struct toml_value *v) {
    if ((has_header(v) && v != &e->doc.root) || !is_open(v)) return line_at(e, v->end) + 1;
    size_t end = 0;
    for (const struct toml_value *item = v->items.first; item; item = item->next) {
        const bool elsewhere = has_header(item) || (item->type == TOML_ARRAY && is_open(item));
        const size_t below = elsewhere ? 0 : own_end(e, item);
        if (below > end) end = below;
    }
    return end;
}

// Lines of a table with a header and the comments that touch it.
struct span {
    size_t first, end;
};

static struct span block_of(const struct toml_edit *e, const struct toml_value *table) {
    struct span s = {(size_t)table->key_line - 1, line_at(e, table->end) + 1};
    while (s.first > 0 && e->lines[s.first - 1].kind == TOML_LINE_COMMENT) s.first--;
    size_t below = s.end;
    while (below < e->num_lines && e->lines[below].kind == TOML_LINE_COMMENT) below++;
    // Comments that touch a header below them as well are that one's.
    if (below == e->num_lines || e->lines[below].kind == TOML_LINE_BLANK) s.end = below;
    return s;
}

// The line behind everything of a value, the tables below it included.
static size_t whole_end(const struct toml_edit *e, const struct toml_value *v) {
    size_t end = has_header(v) ? block_of(e, v).end : 0;
    for (const struct toml_value *item = v->items.first; item; item = item->next) {
        const size_t below = is_open(item) ? whole_end(e, item) : line_at(e, item->end) + 1;
        if (below > end) end = below;
    }
    return end;
}

// Changes

void toml_put_key(struct str *out, const char *key) {
    static const char bare[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    struct json_writer w = {.out = out};
    if (*key && !key[strspn(key, bare)])
        str_puts(out, key);
    else
        json_put_text(&w, key, strlen(key)); // whose escapes TOML has too
}

static void put_pair(struct str *out, const char *indent, size_t indent_len, const char *key,
                     const char *value, const char *eol) {
    str_append(out, indent, indent_len);
    toml_put_key(out, key);
    str_puts(out, " = ");
    str_puts(out, value);
    str_puts(out, eol);
}

static void add_key(struct toml_edit *e, const struct toml_value *table, const char *key,
                    const char *value) {
    // Indented like the last key, or like the header where there is none.
    size_t like = (size_t)table->key_line - 1;
    for (const struct toml_value *v = table->items.first; v; v = v->next) {
        if (!is_open(v)) like = (size_t)v->key_line - 1;
    }
    const bool any = e->num_lines && (table != &e->doc.root || own_end(e, table));
    const char *indent = any ? e->text + e->lines[like].begin : "";
    struct str line;
    str_init(&line, SIZE_MAX / 4);
    put_pair(&line, indent, strspn(indent, " \t"), key, value, e->eol);
    const size_t at = e->lines[own_end(e, table)].begin;
    splice(e, at, at, line.data, line.len, LINES);
    str_free(&line);
}

void toml_edit_set(struct toml_edit *e, const struct toml_value *table, const char *key,
                   const char *value) {
    assert(has_header(table));
    const struct toml_value *old = toml_get(table, key);
    if (old && !is_open(old)) {
        splice(e, old->begin, old->end, value, strlen(value), IN_PLACE);
        return;
    }
    if (old) toml_edit_remove(e, old);
    add_key(e, table, key, value);
}

void toml_edit_remove(struct toml_edit *e, const struct toml_value *v) {
    assert(v->depth > 0);
    struct span s = {(size_t)v->key_line - 1, 0};
    if (has_header(v)) {
        s = block_of(e, v);
        if (s.first > 0 && e->lines[s.first - 1].kind == TOML_LINE_BLANK)
            s.first--;
        else if (s.end < e->num_lines && e->lines[s.end].kind == TOML_LINE_BLANK)
            s.end++;
    } else if (!is_open(v)) {
        s.end = line_at(e, v->end) + 1;
    }
    if (s.end) splice(e, e->lines[s.first].begin, e->lines[s.end].begin, "", 0, LINES);
    // Keys right below a header are among its lines. The rest has lines of its own.
    for (const struct toml_value *item = is_open(v) ? v->items.first : NULL; item;
         item = item->next) {
        if (is_open(item) || !has_header(v)) toml_edit_remove(e, item);
    }
}

void toml_edit_append(struct toml_edit *e, const char *name, const struct toml_pair *pairs,
                      size_t num_pairs) {
    const struct toml_value *array = toml_get(&e->doc.root, name);
    assert(!array || (array->type == TOML_ARRAY && is_open(array)));
    // The tables below the last one must stay above: they'd go over to the new one.
    const size_t line = array ? whole_end(e, array->items.last) : e->num_lines;
    struct str lines;
    str_init(&lines, SIZE_MAX / 4);
    str_puts(&lines, "[[");
    toml_put_key(&lines, name);
    str_printf(&lines, "]]%s", e->eol);
    for (size_t i = 0; i < num_pairs; i++)
        put_pair(&lines, "", 0, pairs[i].key, pairs[i].value, e->eol);
    splice(e, e->lines[line].begin, e->lines[line].begin, lines.data, lines.len, LINES_APART);
    str_free(&lines);
}

// The new text

static int by_place(const void *a, const void *b) {
    const struct toml_splice *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    // Keys of a table before the next table.
    if ((x->form == LINES_APART) != (y->form == LINES_APART))
        return y->form == LINES_APART ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static int put_splice(const struct toml_edit *e, struct str *out, size_t begin,
                      const struct toml_splice *s) {
    if (s->form == IN_PLACE) return str_append(out, s->instead, s->len);
    if (!s->len) return 0;
    const bool first = out->len == begin + e->lines[0].begin;
    int rc = 0;
    if (!first && out->data[out->len - 1] != '\n') rc = str_puts(out, e->eol);
    if (!rc && !first && s->form == LINES_APART) rc = str_puts(out, e->eol);
    return rc ? rc : str_append(out, s->instead, s->len);
}

static int put_text(const struct toml_edit *e, struct str *out, const struct toml_splice *splices) {
    const size_t begin = out->len;
    size_t at = 0; // of the old text
    for (size_t i = 0; i < e->num_splices; i++) {
        const struct toml_splice *s = &splices[i];
        // Removals may overlap, and lines may be added inside one.
        if (s->begin > at) {
            if (str_append(out, e->text + at, s->begin - at)) return -1;
            at = s->begin;
        }
        if (put_splice(e, out, begin, s)) return -1;
        if (s->end > at) at = s->end;
    }
    if (str_append(out, e->text + at, e->len - at)) return -1;
    const bool ended = !e->len || e->text[e->len - 1] == '\n';
    if (!ended && out->len > begin && out->data[out->len - 1] == '\n') {
        out->len--;
        if (out->len > begin && out->data[out->len - 1] == '\r') out->len--;
        out->data[out->len] = 0;
    }
    return 0;
}

int toml_edit_finish(const struct toml_edit *e, struct str *out, struct error *err) {
    const size_t begin = out->len;
    struct toml_splice *splices = mem_zero(e->num_splices + 1, sizeof *splices);
    if (e->num_splices) memcpy(splices, e->splices, e->num_splices * sizeof *splices);
    qsort(splices, e->num_splices, sizeof *splices, by_place);
    int rc = put_text(e, out, splices);
    free(splices);
    if (rc)
        fail(err, E_LIMIT, "%s: the changed text would be longer than %zu bytes", e->doc.name,
             out->max);
    struct toml check;
    if (!rc) rc = toml_parse(&check, out->data + begin, out->len - begin, e->doc.name, err);
    if (!rc) toml_free(&check);
    if (rc) {
        out->len = begin;
        if (out->cap) out->data[begin] = 0;
    }
    return rc;
}
