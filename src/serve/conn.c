#include "serve/conn.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_AHEAD = 64 << 10,        // bytes of further requests that a client may send ahead
    LINGER_MS = 2000,            // for a refused request's sender to read why
    LINGER_MAX_BYTES = 64 << 20, // of what it still sends
};

enum conn_stage {
    CONN_READING,   // a request
    CONN_HANDLING,  // somebody answers
    CONN_STREAMING, // somebody is in the middle of it
    CONN_LINGERING, // said everything; what still comes is thrown away
    CONN_CLOSING,
};

struct conn {
    const struct conn_server *server;
    struct transport transport;
    struct http http;
    enum conn_stage stage;
    bool chunked, last; // the response's framing; close after it
    bool judged;        // on_head was called
    int64_t deadline_ms;
    size_t lingered;
    struct conn_listener listener;
    struct str ahead; // requests that came before their turn
    void *data;
};

static void read_on(struct conn *c);

static int64_t now_of(const struct conn *c) {
    return (int64_t)uv_now(c->transport.tcp.loop);
}

static void set_deadline(struct conn *c, int64_t in_ms) {
    c->deadline_ms = now_of(c) + in_ms;
}

void conn_close(struct conn *c) {
    if (c->stage == CONN_CLOSING) return;
    c->stage = CONN_CLOSING;
    const struct conn_listener l = c->listener;
    c->listener = (struct conn_listener){0};
    if (l.gone) l.gone(l.ctx);
    transport_close(&c->transport);
}

// ---- reading -----------------------------------------------------------------------------------

static void refuse(struct conn *c) {
    char body[300];
    const int n = snprintf(body, sizeof body,
                           "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\","
                           "\"param\":null,\"code\":null}}",
                           c->http.problem);
    c->last = true;
    c->stage = CONN_HANDLING;
    conn_reply(c, c->http.status, "application/json", NULL, body, (size_t)n);
}

static void begin_request(struct conn *c) {
    c->stage = CONN_READING;
    c->judged = false;
    set_deadline(c, c->server->limits.idle_ms);
}

// The head came: the server may answer at once.
static void judge(struct conn *c) {
    c->judged = true;
    set_deadline(c, c->server->limits.body_ms);
    c->server->on_head(c->server->ctx, c);
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    const bool wanted = c->judged && c->stage == CONN_READING; // no answer ended the request
    if (wanted && c->http.request->expects_continue && c->http.stage == HTTP_IN_BODY &&
        c->http.request->content_length != 0)
        transport_write(&c->transport, go_on, strlen(go_on));
}

// Feeds bytes to the parser until a request is complete. Returns how many were taken.
static size_t take(struct conn *c, const char *data, size_t len) {
    size_t at = 0;
    while (c->stage == CONN_READING) {
        const enum http_stage before = c->http.stage;
        if (at < len || c->http.stage == HTTP_IN_BODY)
            at += http_feed(&c->http, data + at, len - at);
        if (before == HTTP_AT_START && c->http.stage != HTTP_AT_START && !c->judged)
            set_deadline(c, c->server->limits.head_ms);
        if (c->http.stage == HTTP_BAD) {
            refuse(c);
        } else if (c->http.stage >= HTTP_IN_BODY && !c->judged) {
            judge(c);
        } else if (c->http.stage == HTTP_COMPLETE) {
            c->stage = CONN_HANDLING;
            c->server->on_request(c->server->ctx, c);
        } else if (at == len) {
            break;
        }
    }
    return at;
}

static void on_input(void *owner, const char *data, size_t len) {
    struct conn *c = owner;
    if (c->stage == CONN_LINGERING) {
        c->lingered += len;
        if (c->lingered > LINGER_MAX_BYTES) conn_close(c);
        return;
    }
    // What came before its turn goes first.
    if (c->stage == CONN_READING && !c->ahead.len) {
        const size_t taken = take(c, data, len);
        data += taken;
        len -= taken;
    }
    if (!len || c->stage == CONN_CLOSING || c->stage == CONN_LINGERING) return;
    if (str_append(&c->ahead, data, len)) conn_close(c); // far more ahead than anyone sends
}

static void on_end(void *owner) {
    struct conn *c = owner;
    // A client that closes its half is treated as gone: nothing else tells of a closed one. Only
    // the end of what was said already may still reach it.
    if (c->stage != CONN_LINGERING || !transport_queued(&c->transport)) conn_close(c);
}

static void on_drained(void *owner) {
    struct conn *c = owner;
    if (c->listener.drained) c->listener.drained(c->listener.ctx);
}

static void on_closed(void *owner) {
    struct conn *c = owner;
    c->server->on_closed(c->server->ctx, c);
    http_free(&c->http);
    str_free(&c->ahead);
    free(c);
}

static const struct transport_events events = {on_input, on_end, on_drained, on_closed};

struct conn *conn_accept(uv_stream_t *listening, const struct conn_server *server) {
    struct conn *c = mem_zero(1, sizeof *c);
    c->server = server;
    http_init(&c->http, server->limits.max_body);
    str_init(&c->ahead, MAX_AHEAD + (64 << 10)); // and the read that went past it
    if (transport_accept(&c->transport, listening, &events, c)) {
        c->stage = CONN_CLOSING;
        transport_close(&c->transport);
        return NULL;
    }
    begin_request(c);
    return c;
}

void conn_finish(struct conn *c) {
    c->last = true;
    if (c->stage == CONN_READING && c->http.stage == HTTP_AT_START) conn_close(c);
}

void conn_tick(struct conn *c, int64_t now_ms) {
    if (c->stage == CONN_CLOSING) return;
    if (transport_stalled_ms(&c->transport) > c->server->limits.stall_ms) {
        conn_close(c);
        return;
    }
    if (c->listener.tick) c->listener.tick(c->listener.ctx, now_ms);
    // Who reads what was said is not kept waiting for what it might still send.
    if (c->stage == CONN_LINGERING && transport_queued(&c->transport)) set_deadline(c, LINGER_MS);
    if ((c->stage != CONN_READING && c->stage != CONN_LINGERING) || now_ms < c->deadline_ms) return;
    if (c->stage == CONN_READING && c->http.stage != HTTP_AT_START) {
        c->http.status = 408;
        c->http.problem = "the request did not arrive in time";
        refuse(c);
    } else {
        conn_close(c);
    }
}

// ---- answering ---------------------------------------------------------------------------------

const struct http_request *conn_request(const struct conn *c) {
    return c->http.request;
}

void conn_take_body(struct conn *c, struct str *out) {
    *out = c->http.request->body;
    str_init(&c->http.request->body, 0);
}

void conn_listen(struct conn *c, struct conn_listener listener) {
    c->listener = listener;
}

bool conn_answered(const struct conn *c) {
    return c->stage != CONN_READING && c->stage != CONN_HANDLING;
}

void *conn_data(const struct conn *c) {
    return c->data;
}

void conn_set_data(struct conn *c, void *data) {
    c->data = data;
}

size_t conn_queued(const struct conn *c) {
    return transport_queued(&c->transport);
}

const char *http_status_text(int status) {
    static const struct {
        int status;
        const char *text;
    } all[] = {{200, "OK"},
               {204, "No Content"},
               {400, "Bad Request"},
               {401, "Unauthorized"},
               {403, "Forbidden"},
               {404, "Not Found"},
               {405, "Method Not Allowed"},
               {408, "Request Timeout"},
               {409, "Conflict"},
               {413, "Content Too Large"},
               {414, "URI Too Long"},
               {415, "Unsupported Media Type"},
               {417, "Expectation Failed"},
               {429, "Too Many Requests"},
               {431, "Request Header Fields Too Large"},
               {500, "Internal Server Error"},
               {503, "Service Unavailable"},
               {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i].status == status) return all[i].text;
    return "Unknown";
}

// The answer is complete: the next request, or the end.
static void end_response(struct conn *c) {
    c->listener = (struct conn_listener){0};
    if (c->last) {
        c->stage = CONN_LINGERING;
        set_deadline(c, LINGER_MS);
        http_reset(&c->http);
        str_free(&c->ahead);
        transport_shutdown(&c->transport);
        return;
    }
    http_reset(&c->http);
    begin_request(c);
    read_on(c);
}

// Requests that came ahead. Their answers may be immediate: the loop, not the stack, goes through
// them.
static void read_on(struct conn *c) {
    static struct conn *busy; // in whose loop we are
    if (busy == c) return;
    struct conn *const outer = busy;
    busy = c;
    while (c->stage == CONN_READING && c->ahead.len) {
        const size_t taken = take(c, c->ahead.data, c->ahead.len);
        if (c->stage == CONN_CLOSING || c->stage == CONN_LINGERING) break;
        memmove(c->ahead.data, c->ahead.data + taken, c->ahead.len - taken);
        c->ahead.len -= taken;
        if (!taken && c->stage == CONN_READING) break;
    }
    if (!c->ahead.len) str_free(&c->ahead);
    busy = outer;
}

static bool is_head(const struct conn *c) {
    return c->http.request && c->http.request->method && !strcmp(c->http.request->method, "HEAD");
}

static void put_status(struct conn *c, struct str *out, int status, const char *content_type) {
    const struct http_request *r = c->http.request;
    // A body that was not read, or a client that asks for it, ends the connection.
    if (!r || !r->keep_alive || c->http.stage != HTTP_COMPLETE) c->last = true;
    str_printf(out, "HTTP/1.1 %d %s\r\n", status, http_status_text(status));
    if (content_type) str_printf(out, "Content-Type: %s\r\n", content_type);
    str_printf(out, "Connection: %s\r\n", c->last ? "close" : "keep-alive");
    c->server->put_headers(c->server->ctx, c, out);
    c->server->on_response(c->server->ctx, c, status);
}

void conn_reply(struct conn *c, int status, const char *content_type, const char *headers,
                const char *body, size_t len) {
    assert(c->stage == CONN_READING || c->stage == CONN_HANDLING);
    struct str out;
    str_init(&out, (32 << 10) + len);
    put_status(c, &out, status, content_type);
    if (headers) str_puts(&out, headers);
    if (status == 204)
        str_puts(&out, "\r\n");
    else
        str_printf(&out, "Content-Length: %zu\r\n\r\n", len);
    if (!is_head(c) && status != 204) str_append(&out, body, len);
    c->stage = CONN_HANDLING;
    transport_write(&c->transport, out.data, out.len);
    str_free(&out);
    end_response(c);
}

void conn_stream_begin(struct conn *c, const char *content_type) {
    assert(c->stage == CONN_HANDLING);
    struct str out;
    str_init(&out, 32 << 10);
    c->chunked = !c->http.request->is_http_1_0;
    if (!c->chunked) c->last = true;
    put_status(c, &out, 200, content_type);
    str_puts(&out, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
    str_puts(&out, c->chunked ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
    c->stage = CONN_STREAMING;
    transport_write(&c->transport, out.data, out.len);
    str_free(&out);
}

static void put_hex(struct str *out, size_t n) {
    char digits[2 * sizeof n], *at = digits + sizeof digits;
    do *--at = "0123456789abcdef"[n & 15];
    while (n >>= 4);
    str_append(out, at, (size_t)(digits + sizeof digits - at));
}

void conn_stream_write(struct conn *c, const char *data, size_t len) {
    assert(c->stage == CONN_STREAMING);
    if (!len) return;
    if (!c->chunked) {
        transport_write(&c->transport, data, len);
        return;
    }
    static struct str chunk; // reused: one write, one system call
    if (!chunk.max) str_init(&chunk, SIZE_MAX / 2);
    str_clear(&chunk);
    put_hex(&chunk, len);
    str_append(&chunk, "\r\n", 2);
    str_append(&chunk, data, len);
    str_append(&chunk, "\r\n", 2);
    transport_write(&c->transport, chunk.data, chunk.len);
}

void conn_stream_end(struct conn *c) {
    assert(c->stage == CONN_STREAMING);
    if (c->chunked) transport_write(&c->transport, "0\r\n\r\n", 5);
    end_response(c);
}
