#include "load_answer.h"

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_ANSWER = 64 << 20, MAX_GAPS = 1 << 22 };

const char *const load_fault_names[LOAD_NUM_FAULTS] = {
    "ok",      "unsent", "bad_request", "rejected",   "backend_error",
    "timeout", "cancel", "connection",  "bad_stream", "other",
};

void load_request_free(struct load_request *r) {
    free(r->itl_s);
    free(r->error);
    r->itl_s = NULL;
    r->error = NULL;
}

void load_request_fail(struct load_request *r, enum load_fault fault, const char *fmt, ...) {
    char text[500];
    va_list args;
    if (r->fault > LOAD_UNSENT) return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    r->fault = fault;
    r->error = mem_strdup(text);
}

// ---- figures -----------------------------------------------------------------------------------

static double since(const struct load_answer *a, uint64_t ns) {
    return ns > a->start_ns ? (double)(ns - a->start_ns) * 1e-9 : 0;
}

static void note_text(struct load_answer *a) {
    struct load_request *r = a->into;
    if (r->chunks++ == 0) {
        r->ttft_s = since(a, a->now_ns);
    } else if (r->num_itl < MAX_GAPS) {
        if (r->num_itl == r->cap_itl) {
            r->cap_itl = r->cap_itl ? 2 * r->cap_itl : 64;
            r->itl_s = mem_grow(r->itl_s, r->cap_itl, sizeof *r->itl_s);
        }
        r->itl_s[r->num_itl++] = (float)((double)(a->now_ns - a->text_ns) * 1e-9);
    }
    a->text_ns = a->now_ns;
}

// What the server says went wrong: error.message, else the beginning of the text.
static void quote_error(char *out, size_t size, const char *text, size_t len) {
    struct json *root = NULL;
    const char *message = text;
    size_t message_len = len;
    if (len && json_parse(&root, text, len, MAX_ANSWER, "answer", NULL) == 0 &&
        json_kind(root) == JSON_KIND_OBJECT) {
        const struct json *e = json_member(root, "error");
        if (e && json_kind(e) == JSON_KIND_OBJECT) e = json_member(e, "message");
        if (e) json_read_text(&message, &message_len, e, "message", NULL);
    }
    snprintf(out, size, "%.*s", (int)(message_len < 300 ? message_len : 300), message);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < ' ') *c = ' ';
    json_free(root);
}

static void take_usage(struct load_request *r, const struct sse_chunk *chunk) {
    if (chunk->prompt_tokens >= 0) r->prompt_tokens = chunk->prompt_tokens;
    if (chunk->completion_tokens >= 0) r->output_tokens = chunk->completion_tokens;
}

static void on_event(void *ctx, const char *data, size_t len) {
    struct load_answer *a = ctx;
    struct sse_chunk chunk;
    char why[400];
    if (a->done) return;
    if (len == 6 && !memcmp(data, "[DONE]", 6)) {
        a->done = true;
        a->done_ns = a->now_ns;
    } else if (sse_scan(&chunk, data, len)) {
        quote_error(why, sizeof why, data, len);
        load_request_fail(a->into, LOAD_STREAM, "an event is no JSON object: \"%.100s\"", why);
    } else if (chunk.error) {
        quote_error(why, sizeof why, data, len);
        load_request_fail(a->into, LOAD_BACKEND, "an error in the stream: %s", why);
    } else {
        if (chunk.text) note_text(a);
        take_usage(a->into, &chunk);
    }
}

static enum load_fault fault_of(int status) {
    if (status == 429 || status == 503) return LOAD_REJECTED;
    if (status == 408 || status == 504) return LOAD_TIMEOUT;
    return status / 100 == 4 ? LOAD_BAD_REQUEST : status / 100 == 5 ? LOAD_BACKEND : LOAD_OTHER;
}

static void judge(struct load_answer *a) {
    struct load_request *r = a->into;
    struct sse_chunk chunk = {0};
    const bool whole = !a->wants_stream && r->status == 200 && !a->too_large;
    const bool unreadable = whole && sse_scan(&chunk, a->body.data, a->body.len);
    char why[400] = "";
    if (unreadable || chunk.error || r->status != 200)
        quote_error(why, sizeof why, a->body.data, a->body.len);
    if (r->status != 200)
        load_request_fail(r, fault_of(r->status), "HTTP %d: %s", r->status, why);
    else if (a->too_large)
        load_request_fail(r, LOAD_STREAM, "an answer of more than %d bytes, or an event of %d",
                          MAX_ANSWER, SSE_MAX_EVENT);
    else if (a->wants_stream && !a->events)
        load_request_fail(r, LOAD_STREAM, "asked for a stream, got Content-Type \"%s\"", a->type);
    else if (a->wants_stream && !a->done)
        load_request_fail(r, LOAD_STREAM, "the stream ended without [DONE]");
    else if (unreadable)
        load_request_fail(r, LOAD_STREAM, "the answer is no JSON object: \"%.100s\"", why);
    else if (chunk.error)
        load_request_fail(r, LOAD_BACKEND, "an error in the answer: %s", why);
    else if (whole)
        take_usage(r, &chunk);
}

static void finish(struct load_answer *a) {
    struct load_request *r = a->into;
    r->e2el_s = since(a, a->done ? a->done_ns : a->now_ns);
    judge(a);
    if (r->fault > LOAD_UNSENT) return;
    r->fault = LOAD_OK;
    if (a->wants_stream && r->output_tokens < 0) {
        r->output_tokens = r->chunks;
        r->counted = true;
    }
    if (!r->chunks) r->ttft_s = r->e2el_s;
    if (r->chunks && r->output_tokens > 1)
        r->tpot_s = (r->e2el_s - r->ttft_s) / (double)(r->output_tokens - 1);
}

// ---- HTTP --------------------------------------------------------------------------------------

static int on_field(llhttp_t *p, const char *at, size_t len) {
    struct load_answer *a = p->data;
    for (size_t i = 0; i < len; i++) // what doesn't fit is another field's name
        if (a->field_len++ < sizeof a->field - 1) a->field[a->field_len - 1] = at[i];
    return 0;
}

static int on_value(llhttp_t *p, const char *at, size_t len) {
    struct load_answer *a = p->data;
    if (a->field_len != 12 || strncasecmp(a->field, "content-type", 12)) return 0;
    for (size_t i = 0; i < len && a->type_len < sizeof a->type - 1; i++)
        a->type[a->type_len++] = (unsigned char)at[i] < ' ' ? ' ' : at[i];
    return 0;
}

static int on_value_complete(llhttp_t *p) {
    struct load_answer *a = p->data;
    a->field_len = 0;
    return 0;
}

static int on_headers_complete(llhttp_t *p) {
    struct load_answer *a = p->data;
    a->type[a->type_len] = '\0';
    a->into->status = p->status_code;
    a->events =
        a->wants_stream && p->status_code == 200 && !strncasecmp(a->type, "text/event-stream", 17);
    return 0;
}

static int on_body(llhttp_t *p, const char *at, size_t len) {
    struct load_answer *a = p->data;
    if (!a->too_large)
        a->too_large = a->events ? sse_feed(&a->sse, at, len, on_event, a) != 0
                                 : str_append(&a->body, at, len) != 0;
    return a->too_large ? -1 : 0;
}

static int on_message_complete(llhttp_t *p) {
    struct load_answer *a = p->data;
    if (p->status_code / 100 == 1) { // an interim answer; the real one follows
        a->type_len = a->field_len = 0;
        return 0;
    }
    a->complete = true;
    a->reusable = llhttp_should_keep_alive(p) != 0;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

void load_answer_init(struct load_answer *a) {
    *a = (struct load_answer){0};
    sse_init(&a->sse);
    str_init(&a->body, MAX_ANSWER);
}

void load_answer_free(struct load_answer *a) {
    sse_free(&a->sse);
    str_free(&a->body);
}

void load_answer_begin(struct load_answer *a, struct load_request *into, bool wants_stream,
                       uint64_t start_ns) {
    llhttp_init(&a->parser, HTTP_RESPONSE, &settings);
    a->parser.data = a;
    sse_clear(&a->sse);
    str_clear(&a->body);
    a->into = into;
    a->start_ns = start_ns;
    a->field_len = a->type_len = 0;
    a->wants_stream = wants_stream;
    a->events = a->begun = a->complete = a->done = a->too_large = a->reusable = false;
    into->prompt_tokens = into->output_tokens = -1;
}

enum load_progress load_answer_feed(struct load_answer *a, const char *bytes, size_t len,
                                    uint64_t now_ns) {
    a->now_ns = now_ns;
    a->begun |= len > 0;
    const llhttp_errno_t rc =
        len ? llhttp_execute(&a->parser, bytes, len) : llhttp_finish(&a->parser);
    if (a->complete) {
        // Bytes behind the answer belong to no request of ours.
        if (!len || llhttp_get_error_pos(&a->parser) != bytes + len) a->reusable = false;
        finish(a);
        return LOAD_COMPLETE;
    }
    if (len && rc == HPE_OK) return LOAD_MORE;
    a->reusable = false;
    if (a->too_large)
        finish(a);
    else if (len)
        load_request_fail(a->into, LOAD_CONNECTION, "the answer is no HTTP: %s",
                          llhttp_get_error_reason(&a->parser));
    else
        load_request_fail(a->into, LOAD_CONNECTION, "the server closed the connection %s",
                          a->begun ? "within the answer" : "before it answered");
    a->into->e2el_s = since(a, now_ns);
    return LOAD_BROKEN;
}
