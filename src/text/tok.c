#include "text/tok.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/str.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 64 << 20 };

// The trie lies in breadth-first order: the children of a node are neighbours, sorted by their
// byte. 9 bytes a node; the World vocabulary takes 1.7 MB in all.
struct node {
    uint32_t first; // child
    uint16_t token; // 0: none ends here
    uint16_t count; // children
};

struct tok {
    int size;
    uint64_t hash;
    char *text;      // all tokens' bytes, one after the other
    uint32_t *start; // by id, size + 1 entries
    struct node *nodes;
    uint8_t *labels; // the byte that leads to a node
    size_t num_nodes;
};

// ---- reading the file --------------------------------------------------------------------------

struct entry {
    uint32_t start, line;
    uint16_t id, len;
};

struct reader {
    const char *name;
    struct str text;
    struct entry *entries;
    size_t count, cap;
    struct error *err;
};

static int hex(const char *p, const char *end, int digits, uint32_t *out) {
    *out = 0;
    if (end - p < digits) return -1;
    for (int i = 0; i < digits; i++) {
        const char c = p[i];
        const int v = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
        if (v < 0) return -1;
        *out = *out << 4 | (uint32_t)v;
    }
    return 0;
}

static void put_code_point(struct str *s, uint32_t c) {
    if (c < 0x80) {
        str_putc(s, (char)c);
    } else if (c < 0x800) {
        str_putc(s, (char)(0xc0 | c >> 6));
        str_putc(s, (char)(0x80 | (c & 63)));
    } else {
        str_putc(s, (char)(0xe0 | c >> 12));
        str_putc(s, (char)(0x80 | (c >> 6 & 63)));
        str_putc(s, (char)(0x80 | (c & 63)));
    }
}

// One escape after the backslash at p; returns past it, or NULL. In a bytes literal \xHH is the
// byte, in a text literal the code point U+00HH.
static const char *read_escape(struct str *s, const char *p, const char *end, bool bytes) {
    static const char from[] = "ntr\\'\"", to[] = "\n\t\r\\'\"";
    uint32_t c;
    if (p == end) return NULL;
    const char *simple = memchr(from, *p, sizeof from - 1);
    if (simple) {
        str_putc(s, to[simple - from]);
        return p + 1;
    }
    if (*p == 'x' && hex(p + 1, end, 2, &c) == 0) {
        if (bytes)
            str_putc(s, (char)c);
        else
            put_code_point(s, c);
        return p + 3;
    }
    if (*p == 'u' && !bytes && hex(p + 1, end, 4, &c) == 0) {
        put_code_point(s, c);
        return p + 5;
    }
    return NULL;
}

// 'text', "text" or b'bytes' between p and end, appended to s.
static int read_literal(struct str *s, const char *p, const char *end) {
    const bool bytes = p < end && *p == 'b';
    p += bytes;
    if (end - p < 2 || (*p != '\'' && *p != '"') || end[-1] != *p) return -1;
    const char quote = *p++;
    end--;
    while (p < end) {
        if (*p == quote) return -1;
        if (*p != '\\') {
            if (str_putc(s, *p++)) return -1;
            continue;
        }
        p = read_escape(s, p + 1, end, bytes);
        if (!p) return -1;
    }
    return 0;
}

static int read_number(const char *p, const char *end, uint32_t max, uint32_t *out) {
    *out = 0;
    if (p == end || end - p > 7) return -1;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9') return -1;
        *out = *out * 10 + (uint32_t)(*p - '0');
    }
    return *out > max ? -1 : 0;
}

// "<id> <literal> <length>": the id ends at the first space, the length starts after the last.
static int read_line(struct reader *r, const char *p, const char *end, uint32_t line) {
    const char *first = memchr(p, ' ', (size_t)(end - p)), *last = end;
    while (first && last > first && last[-1] != ' ') last--;
    uint32_t id, len;
    if (!first || last - 1 <= first)
        return fail(r->err, E_FORMAT, "%s:%u: expected \"<id> <literal> <length>\"", r->name, line);
    if (read_number(p, first, TOK_MAX_ID, &id) || id == 0)
        return fail(r->err, E_FORMAT, "%s:%u: the id is \"%.*s\", expected 1 to %d", r->name, line,
                    first - p > 20 ? 20 : (int)(first - p), p, TOK_MAX_ID);
    if (read_number(last, end, TOK_MAX_BYTES, &len) || len == 0)
        return fail(r->err, E_FORMAT, "%s:%u: the length is \"%.*s\", expected 1 to %d", r->name,
                    line, end - last > 20 ? 20 : (int)(end - last), last, TOK_MAX_BYTES);
    const size_t start = r->text.len;
    if (read_literal(&r->text, first + 1, last - 1))
        return fail(r->err, E_FORMAT, "%s:%u: token %u is not a Python literal that can be read",
                    r->name, line, id);
    if (r->text.len - start != len)
        return fail(r->err, E_FORMAT, "%s:%u: token %u has %zu bytes, the line says %u", r->name,
                    line, id, r->text.len - start, len);
    if (r->count == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 4096;
        r->entries = mem_grow(r->entries, r->cap, sizeof *r->entries);
    }
    r->entries[r->count++] = (struct entry){(uint32_t)start, line, (uint16_t)id, (uint16_t)len};
    return 0;
}

static int read_lines(struct reader *r, const char *text, size_t len) {
    const char *p = text, *end = text + len;
    for (uint32_t line = 1; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        const char *stop = nl ? nl : end, *next = nl ? nl + 1 : end;
        if (stop > p && stop[-1] == '\r') stop--;
        if (stop > p && read_line(r, p, stop, line)) return -1;
        p = next;
    }
    return 0;
}

// ---- the trie ----------------------------------------------------------------------------------

// qsort has no context argument; the text goes through the entries' owner.
static _Thread_local const char *sort_text;

static int by_bytes(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    const int c =
        memcmp(sort_text + x->start, sort_text + y->start, x->len < y->len ? x->len : y->len);
    return c ? c : (int)x->len - (int)y->len;
}

// A node still to be built: the sorted entries [lo, hi) share its `depth` first bytes.
struct range {
    uint32_t lo, hi, depth;
};

static void build_trie(struct tok *t, const struct entry *e, size_t count, const char *text) {
    size_t cap = 4096, n = 1;
    struct range *ranges = mem_grow(NULL, cap, sizeof *ranges);
    t->nodes = mem_grow(NULL, cap, sizeof *t->nodes);
    t->labels = mem_grow(NULL, cap, 1);
    ranges[0] = (struct range){0, (uint32_t)count, 0};
    t->labels[0] = 0;
    for (size_t i = 0; i < n; i++) {
        struct range r = ranges[i];
        struct node node = {.first = (uint32_t)n};
        if (r.lo < r.hi && e[r.lo].len == r.depth) node.token = e[r.lo++].id;
        while (r.lo < r.hi) {
            const uint8_t byte = (uint8_t)text[e[r.lo].start + r.depth];
            uint32_t hi = r.lo + 1;
            while (hi < r.hi && (uint8_t)text[e[hi].start + r.depth] == byte) hi++;
            if (n == cap) {
                cap *= 2;
                ranges = mem_grow(ranges, cap, sizeof *ranges);
                t->nodes = mem_grow(t->nodes, cap, sizeof *t->nodes);
                t->labels = mem_grow(t->labels, cap, 1);
            }
            ranges[n] = (struct range){r.lo, hi, r.depth + 1};
            t->labels[n++] = byte;
            node.count++;
            r.lo = hi;
        }
        t->nodes[i] = node;
    }
    free(ranges);
    t->nodes = mem_grow(t->nodes, n, sizeof *t->nodes);
    t->labels = mem_grow(t->labels, n, 1);
    t->num_nodes = n;
}

static uint32_t child(const struct tok *t, uint32_t at, uint8_t byte) {
    const struct node *n = &t->nodes[at];
    uint32_t lo = n->first, hi = n->first + n->count;
    if (n->count == 256) return lo + byte;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (t->labels[mid] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n->first + n->count && t->labels[lo] == byte ? lo : 0;
}

// ---- opening -----------------------------------------------------------------------------------

// Duplicates and holes; `seen` tells the line of each id.
static int check(struct reader *r) {
    uint32_t *seen = mem_zero(TOK_MAX_ID + 1, sizeof *seen);
    int rc = -1;
    for (size_t i = 0; i < r->count; i++) {
        const struct entry *e = &r->entries[i];
        if (seen[e->id]) {
            fail(r->err, E_FORMAT, "%s:%u: token %u is already on line %u", r->name, e->line, e->id,
                 seen[e->id]);
            goto out;
        }
        seen[e->id] = e->line;
    }
    sort_text = r->text.data;
    if (r->count) qsort(r->entries, r->count, sizeof *r->entries, by_bytes);
    for (size_t i = 1; i < r->count; i++)
        if (by_bytes(&r->entries[i - 1], &r->entries[i]) == 0) {
            fail(r->err, E_FORMAT, "%s:%u: token %u has the same bytes as token %u", r->name,
                 r->entries[i].line, r->entries[i].id, r->entries[i - 1].id);
            goto out;
        }
    bool have[256] = {0};
    for (size_t i = 0; i < r->count; i++)
        if (r->entries[i].len == 1) have[(uint8_t)r->text.data[r->entries[i].start]] = true;
    for (int b = 0; b < 256; b++)
        if (!have[b]) {
            fail(r->err, E_FORMAT,
                 "%s: no token is the single byte 0x%02x, so not every text could "
                 "be encoded",
                 r->name, b);
            goto out;
        }
    rc = 0;
out:
    free(seen);
    return rc;
}

static struct tok *assemble(const struct reader *r) {
    struct tok *t = mem_zero(1, sizeof *t);
    build_trie(t, r->entries, r->count, r->text.data);
    for (size_t i = 0; i < r->count; i++)
        if (r->entries[i].id >= t->size) t->size = r->entries[i].id + 1;
    t->start = mem_zero((size_t)t->size + 1, sizeof *t->start);
    for (size_t i = 0; i < r->count; i++) t->start[r->entries[i].id + 1] = r->entries[i].len;
    for (int id = 0; id < t->size; id++) t->start[id + 1] += t->start[id];
    t->text = mem_alloc(t->start[t->size]);
    for (size_t i = 0; i < r->count; i++)
        memcpy(t->text + t->start[r->entries[i].id], r->text.data + r->entries[i].start,
               r->entries[i].len);
    struct hasher *h = hasher_create();
    hasher_add(h, t->start, ((size_t)t->size + 1) * sizeof *t->start);
    hasher_add(h, t->text, t->start[t->size]);
    t->hash = hasher_digest(h);
    hasher_destroy(h);
    return t;
}

int tok_parse(struct tok **out, const char *text, size_t len, const char *name, struct error *err) {
    struct reader r = {.name = name, .err = err};
    int rc = -1;
    str_init(&r.text, MAX_FILE);
    if (read_lines(&r, text, len) == 0 && check(&r) == 0) {
        *out = assemble(&r);
        rc = 0;
    }
    str_free(&r.text);
    free(r.entries);
    return rc;
}

int tok_open(struct tok **out, const char *path, struct error *err) {
    struct str text;
    str_init(&text, MAX_FILE);
    int rc = file_read(&text, path, err);
    if (rc == 0) rc = tok_parse(out, text.data, text.len, path, err);
    str_free(&text);
    return rc;
}

void tok_open_bytes(struct tok **out) {
    struct str text;
    struct error err;
    str_init(&text, MAX_FILE);
    for (int b = 0; b < 256; b++) str_printf(&text, "%d b'\\x%02x' 1\n", b + 1, (unsigned)b);
    if (tok_parse(out, text.data, text.len, "bytes", &err)) die("bug: %s", err.msg);
    str_free(&text);
}

void tok_close(struct tok *t) {
    if (!t) return;
    free(t->text);
    free(t->start);
    free(t->nodes);
    free(t->labels);
    free(t);
}

// ---- use ---------------------------------------------------------------------------------------

int tok_size(const struct tok *t) {
    return t->size;
}

uint64_t tok_hash(const struct tok *t) {
    return t->hash;
}

size_t tok_memory(const struct tok *t) {
    return sizeof *t + t->num_nodes * (sizeof *t->nodes + 1) +
           ((size_t)t->size + 1) * sizeof *t->start + t->start[t->size];
}

size_t tok_encode(const struct tok *t, const void *text, size_t len, int32_t *out) {
    size_t used;
    return tok_encode_some(t, text, len, out, len, &used);
}

size_t tok_encode_some(const struct tok *t, const void *text, size_t len, int32_t *out, size_t max,
                       size_t *used) {
    const uint8_t *p = text;
    size_t n = 0, i = 0;
    while (i < len && n < max) {
        uint32_t at = t->nodes[0].first + p[i];
        int32_t best = t->nodes[at].token; // every single byte is a token
        size_t end = i + 1;
        for (size_t k = i + 1; k < len && (at = child(t, at, p[k])); k++)
            if (t->nodes[at].token) {
                best = t->nodes[at].token;
                end = k + 1;
            }
        out[n++] = best;
        i = end;
    }
    *used = i;
    return n;
}

const char *tok_bytes(const struct tok *t, int32_t id, size_t *len) {
    if (id < 0 || id >= t->size) {
        *len = 0;
        return "";
    }
    *len = t->start[id + 1] - t->start[id];
    return t->text + t->start[id];
}

int tok_decode(const struct tok *t, const int32_t *tokens, size_t count, struct str *out) {
    for (size_t i = 0; i < count; i++) {
        size_t len;
        const char *bytes = tok_bytes(t, tokens[i], &len);
        if (str_append(out, bytes, len)) return -1;
    }
    return 0;
}
