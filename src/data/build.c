#include "data/build.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "data/binidx.h"
#include "text/tok.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Tokens of all documents, held in memory as u16 until it is known which go where: 2 bytes a token.
struct builder {
    const struct tok *tok;
    const struct build_options *o;
    struct build_result *result;
    struct error *err;
    uint16_t *tokens;
    uint64_t num_tokens, cap_tokens;
    struct document {
        uint64_t start, len, bytes;
    } * documents;
    uint64_t num_documents, cap_documents;
    int32_t *work; // one document
    size_t cap_work;
    struct str decoded;
    uint64_t bytes;
    double shown_s;
};

static void show_progress(struct builder *b, bool end) {
    const double now = clock_s();
    if (!isatty(2) || (!end && now - b->shown_s < 0.2)) return;
    b->shown_s = now;
    fprintf(stderr, "\r%llu documents, %.1f MB, %.1f M tokens\x1b[K%s",
            (unsigned long long)b->num_documents, (double)b->bytes * 1e-6,
            (double)b->num_tokens * 1e-6, end ? "\n" : "");
}

static int add_document(struct builder *b, const char *text, size_t len, const char *where) {
    if (len + 1 > b->cap_work) {
        b->cap_work = len + len / 2 + 4096;
        b->work = mem_grow(b->work, b->cap_work, sizeof *b->work);
    }
    const size_t n = tok_encode(b->tok, text, len, b->work);
    str_clear(&b->decoded);
    if (tok_decode(b->tok, b->work, n, &b->decoded) || b->decoded.len != len ||
        memcmp(b->decoded.data, text, len))
        return fail(b->err, E_FORMAT, "%s: the document does not decode to itself", where);
    if (b->num_tokens + n > b->cap_tokens) {
        b->cap_tokens = (b->num_tokens + n) * 3 / 2 + 65536;
        b->tokens = mem_grow(b->tokens, b->cap_tokens, sizeof *b->tokens);
    }
    if (b->num_documents == b->cap_documents) {
        b->cap_documents = b->cap_documents ? 2 * b->cap_documents : 1024;
        b->documents = mem_grow(b->documents, b->cap_documents, sizeof *b->documents);
    }
    b->documents[b->num_documents++] = (struct document){b->num_tokens, n, len};
    for (size_t i = 0; i < n; i++) b->tokens[b->num_tokens++] = (uint16_t)b->work[i];
    b->bytes += len;
    show_progress(b, false);
    return 0;
}

// ---- inputs ------------------------------------------------------------------------------------

static int add_line(struct builder *b, const char *line, size_t len, const char *where) {
    struct json *doc;
    const char *text;
    size_t text_len;
    while (len && strchr("\r\n \t", line[len - 1])) len--;
    if (!len) return 0;
    if (json_parse(&doc, line, len, BUILD_MAX_LINE, where, b->err)) return -1;
    int rc = json_read_text(&text, &text_len, json_member(doc, "text"), "\"text\"", b->err);
    if (rc)
        fail_in(b->err, "%s", where);
    else
        rc = add_document(b, text, text_len, where);
    json_free(doc);
    return rc;
}

static int add_jsonl(struct builder *b, const char *path) {
    FILE *f = strcmp(path, "-") ? fopen(path, "r") : stdin;
    if (!f) return fail(b->err, E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct str line;
    char block[65536], where[320];
    uint64_t number = 1;
    size_t n;
    int rc = 0;
    str_init(&line, BUILD_MAX_LINE);
    snprintf(where, sizeof where, "%.280s:1", path);
    while (rc == 0 && (n = fread(block, 1, sizeof block, f)) > 0) {
        for (const char *p = block, *end = block + n; rc == 0 && p < end;) {
            const char *nl = memchr(p, '\n', (size_t)(end - p));
            const size_t len = (size_t)((nl ? nl : end) - p);
            if (str_append(&line, p, len))
                rc = fail(b->err, E_LIMIT, "%s: a line of more than %d bytes", where,
                          BUILD_MAX_LINE);
            p += len + (nl != NULL);
            if (rc || !nl) continue;
            rc = add_line(b, line.data, line.len, where);
            str_clear(&line);
            snprintf(where, sizeof where, "%.280s:%llu", path, (unsigned long long)++number);
        }
    }
    if (rc == 0 && ferror(f)) rc = fail(b->err, E_IO, "%s: cannot read: %s", path, strerror(errno));
    if (rc == 0 && line.len) rc = add_line(b, line.data, line.len, where);
    str_free(&line);
    if (f != stdin) fclose(f);
    return rc;
}

// Two blank lines or more separate documents; they belong to neither.
static int add_parts(struct builder *b, const char *text, size_t len, const char *path) {
    for (size_t at = 0; at < len;) {
        const char *gap = memmem(text + at, len - at, "\n\n\n", 3);
        const size_t end =
            gap ? (size_t)(gap - text) + 1 : len; // a document keeps its last newline
        if (add_document(b, text + at, end - at, path)) return -1;
        for (at = end; at < len && text[at] == '\n';) at++;
    }
    return 0;
}

static int add_plain(struct builder *b, const char *path) {
    struct str text;
    str_init(&text, BUILD_MAX_TEXT);
    int rc = file_read(&text, path, b->err);
    if (rc == 0 && b->o->split_blank) {
        rc = add_parts(b, text.data, text.len, path);
    } else if (rc == 0) {
        rc = add_document(b, text.data, text.len, path);
    }
    str_free(&text);
    return rc;
}

// ---- outputs -----------------------------------------------------------------------------------

// Fisher–Yates, each swap a pure function of (seed, index).
static void shuffle(uint64_t *order, uint64_t n, uint64_t seed, uint64_t stream) {
    for (uint64_t i = n; i > 1; i--) {
        const uint64_t j = rng_u64(seed, stream, i) % i, t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
}

// Which documents are held out: the first of a shuffled list.
static bool *pick_held_out(const struct builder *b) {
    const uint64_t n = b->num_documents;
    bool *held = mem_zero(n, sizeof *held);
    const double wanted = b->o->held_out < 1 ? b->o->held_out * (double)n : b->o->held_out;
    uint64_t count = (uint64_t)(wanted + 0.5);
    if (b->o->held_out > 0 && !count && n > 1) count = 1;
    uint64_t *order = mem_zero(n, sizeof *order);
    for (uint64_t i = 0; i < n; i++) order[i] = i;
    shuffle(order, n, b->o->seed, 1);
    for (uint64_t i = 0; i < count && i < n; i++) held[order[i]] = true;
    free(order);
    return held;
}

static int add_to(struct binidx_writer *w, struct builder *b, const struct document *d) {
    for (uint64_t i = 0; i < d->len; i++) b->work[i] = b->tokens[d->start + i];
    return binidx_add(w, b->work, d->len);
}

static int write_outputs(struct builder *b) {
    struct binidx_writer out, held_out;
    struct build_result *r = b->result;
    const uint64_t n = b->num_documents;
    const size_t len = strlen(b->o->output) + 5;
    char *val = mem_alloc(len);
    snprintf(val, len, "%s-val", b->o->output);
    bool *held = pick_held_out(b);
    uint64_t *order = mem_zero(n, sizeof *order);
    int rc = binidx_create(&out, b->o->output, b->err);
    if (rc == 0 && b->o->held_out > 0 && (rc = binidx_create(&held_out, val, b->err)))
        binidx_abort(&out);
    if (rc) goto end;
    for (uint64_t i = 0; i < n; i++) order[i] = i;
    if (b->o->shuffle) shuffle(order, n, b->o->seed, 0);
    for (uint64_t i = 0; rc == 0 && i < n; i++) {
        const struct document *d = &b->documents[order[i]];
        const bool away = held[order[i]];
        rc = add_to(away ? &held_out : &out, b, d);
        *(away ? &r->held_documents : &r->documents) += 1;
        *(away ? &r->held_tokens : &r->tokens) += d->len + 1;
        *(away ? &r->held_bytes : &r->bytes) += d->bytes;
    }
    if (b->o->held_out > 0) {
        if (rc == 0) rc = binidx_commit(&held_out);
        binidx_abort(&held_out);
    }
    if (rc == 0) rc = binidx_commit(&out);
    binidx_abort(&out);
end:
    free(order);
    free(held);
    free(val);
    return rc;
}

int build_run(struct build_result *out, const struct tok *tok, const struct build_options *o,
              struct error *err) {
    struct builder b = {.tok = tok, .o = o, .result = out, .err = err};
    int rc = 0;
    *out = (struct build_result){0};
    str_init(&b.decoded, BUILD_MAX_TEXT);
    for (size_t i = 0; rc == 0 && i < o->num_inputs; i++) {
        const char *path = o->inputs[i];
        rc = strcmp(path, "-") == 0 || path_has_ext(path, "jsonl") ? add_jsonl(&b, path)
                                                                   : add_plain(&b, path);
    }
    if (b.num_documents) show_progress(&b, true);
    if (rc == 0 && !b.num_documents)
        rc = fail(err, E_FORMAT, "%s: holds no document", o->inputs[0]);
    if (rc == 0) rc = write_outputs(&b);
    str_free(&b.decoded);
    free(b.tokens);
    free(b.documents);
    free(b.work);
    return rc;
}
