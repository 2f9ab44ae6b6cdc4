#include "sse.h"

#include <string.h>

// ---- events ------------------------------------------------------------------------------------

void sse_init(struct sse *s) {
    *s = (struct sse){0};
    str_init(&s->line, SSE_MAX_EVENT);
    str_init(&s->data, SSE_MAX_EVENT);
}

void sse_clear(struct sse *s) {
    str_clear(&s->line);
    str_clear(&s->data);
    s->has_data = s->after_cr = s->any = false;
}

void sse_free(struct sse *s) {
    str_free(&s->line);
    str_free(&s->data);
}

static int take_line(struct sse *s, const char *line, size_t len, sse_event *event, void *ctx) {
    if (!s->any && len >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) {
        line += 3;
        len -= 3;
    }
    s->any = true;
    if (len == 0) { // the blank line sends the event off
        if (s->has_data) event(ctx, s->data.data, s->data.len);
        str_clear(&s->data);
        s->has_data = false;
        return 0;
    }
    if (len < 4 || memcmp(line, "data", 4) || (len > 4 && line[4] != ':')) return 0;
    const size_t skip = len == 4 ? 4 : len > 5 && line[5] == ' ' ? 6 : 5;
    if (s->has_data && str_putc(&s->data, '\n')) return -1;
    s->has_data = true;
    return str_append(&s->data, line + skip, len - skip);
}

// The end of the line that begins at `at`: at a '\n', a '\r', or NULL if the piece ends first.
static const char *line_end(const char *at, size_t len) {
    const char *lf = memchr(at, '\n', len);
    const char *cr = memchr(at, '\r', lf ? (size_t)(lf - at) : len);
    return cr ? cr : lf;
}

int sse_feed(struct sse *s, const char *piece, size_t len, sse_event *event, void *ctx) {
    const char *const end = piece + len;
    while (piece < end) {
        if (s->after_cr && *piece == '\n') {
            s->after_cr = false;
            piece++;
            continue;
        }
        s->after_cr = false;
        const char *stop = line_end(piece, (size_t)(end - piece));
        if (!stop) return str_append(&s->line, piece, (size_t)(end - piece));
        int rc;
        if (s->line.len) {
            rc = str_append(&s->line, piece, (size_t)(stop - piece));
            if (rc == 0) rc = take_line(s, s->line.data, s->line.len, event, ctx);
            str_clear(&s->line);
        } else {
            rc = take_line(s, piece, (size_t)(stop - piece), event, ctx);
        }
        if (rc) return -1;
        s->after_cr = *stop == '\r';
        piece = stop + 1;
    }
    return 0;
}

// ---- what a chunk says -------------------------------------------------------------------------

enum { MAX_DEPTH = 128 };

enum place { ELSEWHERE, ROOT, CHOICES, CHOICE, DELTA, CALLS, USAGE };

enum fact { NOTHING, TEXT, FAILED, FINISHED, PROMPT_TOKENS, COMPLETION_TOKENS };

// A value of this kind under this key at this place: what it tells, and where its members are.
// Kinds: the first byte of the value, '0' for numbers, '*' for anything that is not null.
static const struct row {
    enum place at;
    const char *key;
    char kind;
    enum fact fact;
    enum place inside;
} rows[] = {
    {ROOT, "choices", '[', NOTHING, CHOICES},
    {ROOT, "usage", '{', NOTHING, USAGE},
    {ROOT, "error", '*', FAILED, ELSEWHERE},
    {CHOICE, "text", '"', TEXT, ELSEWHERE},
    {CHOICE, "delta", '{', NOTHING, DELTA},
    {CHOICE, "message", '{', NOTHING, DELTA},
    {CHOICE, "finish_reason", '"', FINISHED, ELSEWHERE},
    {DELTA, "content", '"', TEXT, ELSEWHERE},
    {DELTA, "reasoning_content", '"', TEXT, ELSEWHERE},
    {DELTA, "reasoning", '"', TEXT, ELSEWHERE},
    {DELTA, "refusal", '"', TEXT, ELSEWHERE},
    {DELTA, "tool_calls", '[', NOTHING, CALLS},
    {USAGE, "prompt_tokens", '0', PROMPT_TOKENS, ELSEWHERE},
    {USAGE, "completion_tokens", '0', COMPLETION_TOKENS, ELSEWHERE},
};

enum wanted { VALUE, VALUE_OR_END, KEY, KEY_OR_END, COLON, COMMA_OR_END, NO_MORE };

struct scan {
    struct sse_chunk *out;
    const char *at, *end;
    enum wanted wanted;
    int depth;
    bool object[MAX_DEPTH];
    enum place place[MAX_DEPTH];
    const char *key; // the last one, in quotes
    size_t key_len;
};

static const struct row *row_of(const struct scan *s, char kind) {
    if (!s->depth || s->place[s->depth - 1] == ELSEWHERE || !s->object[s->depth - 1]) return NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].at == s->place[s->depth - 1] && (rows[i].kind == kind || rows[i].kind == '*') &&
            strlen(rows[i].key) == s->key_len && !memcmp(rows[i].key, s->key, s->key_len))
            return &rows[i];
    return NULL;
}

// A count that is written as one, else -1.
static int64_t count_of(const char *text, size_t len) {
    int64_t n = 0;
    if (!len || len > 15) return -1;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        n = 10 * n + (text[i] - '0');
    }
    return n;
}

// A value begins, of `len` bytes if it has no members (a string: between its quotes).
static enum place learn(struct scan *s, char kind, const char *text, size_t len) {
    const struct row *row = row_of(s, kind);
    if (!row) return ELSEWHERE;
    switch (row->fact) {
    case NOTHING: break;
    case TEXT: s->out->text |= len > 0; break;
    case FAILED: s->out->error |= kind != 'n'; break;
    case FINISHED: s->out->finished = true; break;
    case PROMPT_TOKENS: s->out->prompt_tokens = count_of(text, len); break;
    case COMPLETION_TOKENS: s->out->completion_tokens = count_of(text, len); break;
    }
    return row->inside;
}

static int open_members(struct scan *s, char bracket) {
    enum place inside = learn(s, bracket, NULL, 0);
    if (s->depth == MAX_DEPTH) return -1;
    if (s->depth == 0) {
        inside = ROOT;
    } else if (!s->object[s->depth - 1] && bracket == '{') {
        if (s->place[s->depth - 1] == CHOICES) inside = CHOICE;
        if (s->place[s->depth - 1] == CALLS) s->out->text = true;
    }
    s->object[s->depth] = bracket == '{';
    s->place[s->depth++] = inside;
    s->wanted = bracket == '{' ? KEY_OR_END : VALUE_OR_END;
    s->at++;
    return 0;
}

static int close_members(struct scan *s, char bracket) {
    if (!s->depth || bracket != (s->object[s->depth - 1] ? '}' : ']')) return -1;
    s->depth--;
    s->wanted = s->depth ? COMMA_OR_END : NO_MORE;
    s->at++;
    return 0;
}

static int take_string(struct scan *s, bool is_key) {
    const char *const text = ++s->at;
    while (s->at < s->end && *s->at != '"') s->at += *s->at == '\\' && s->end - s->at > 1 ? 2 : 1;
    if (s->at >= s->end) return -1;
    const size_t len = (size_t)(s->at++ - text);
    if (is_key) {
        s->key = text;
        s->key_len = len;
        s->wanted = COLON;
    } else {
        learn(s, '"', text, len);
        s->wanted = COMMA_OR_END;
    }
    return 0;
}

// Numbers and true, false, null.
static int take_word(struct scan *s) {
    const char *const text = s->at;
    while (s->at < s->end &&
           (*s->at == '-' || *s->at == '+' || *s->at == '.' || (*s->at >= '0' && *s->at <= '9') ||
            ((*s->at | 32) >= 'a' && (*s->at | 32) <= 'z')))
        s->at++;
    if (s->at == text) return -1;
    const bool number = *text == '-' || (*text >= '0' && *text <= '9');
    learn(s, number ? '0' : *text, text, (size_t)(s->at - text));
    s->wanted = COMMA_OR_END;
    return 0;
}

static int step(struct scan *s) {
    const char c = *s->at;
    switch (s->wanted) {
    case VALUE_OR_END:
        if (c == ']') return close_members(s, c);
        // fall through
    case VALUE:
        if (c == '{' || c == '[') return open_members(s, c);
        return c == '"' ? take_string(s, false) : take_word(s);
    case KEY_OR_END:
        if (c == '}') return close_members(s, c);
        // fall through
    case KEY: return c == '"' ? take_string(s, true) : -1;
    case COLON:
        s->wanted = VALUE;
        s->at++;
        return c == ':' ? 0 : -1;
    case COMMA_OR_END:
        if (c != ',') return close_members(s, c);
        s->wanted = s->object[s->depth - 1] ? KEY : VALUE;
        s->at++;
        return 0;
    case NO_MORE: return -1;
    }
    return -1;
}

int sse_scan(struct sse_chunk *out, const char *json, size_t len) {
    struct scan s;
    *out = (struct sse_chunk){.prompt_tokens = -1, .completion_tokens = -1};
    s.out = out;
    s.at = json;
    s.end = json + len;
    s.wanted = VALUE;
    s.depth = 0;
    bool object = false;
    for (;;) {
        while (s.at < s.end && (*s.at == ' ' || *s.at == '\n' || *s.at == '\r' || *s.at == '\t'))
            s.at++;
        if (s.at == s.end) return object && s.wanted == NO_MORE ? 0 : -1;
        if (!object && *s.at != '{') return -1;
        object = true;
        if (step(&s)) return -1;
    }
}
