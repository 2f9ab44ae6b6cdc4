// A connection: requests one after the other, each answered whole or as a stream, under deadlines
// and ceilings. Everything on the loop's thread.
#pragma once
#include "serve/http.h"
#include "serve/transport.h"

struct conn;

struct conn_limits {
    size_t max_body;
    int64_t idle_ms;  // between requests
    int64_t head_ms;  // from the first byte of a request to the end of its head
    int64_t body_ms;  // from there to the end of its body
    int64_t stall_ms; // a reader that takes nothing for so long is gone
};

// What the server does with connections.
struct conn_server {
    void *ctx;
    struct conn_limits limits;
    // The head is there. May answer at once (the body is then not wanted); else it is read.
    void (*on_head)(void *ctx, struct conn *c);
    // The body too. To be answered now or later.
    void (*on_request)(void *ctx, struct conn *c);
    void (*on_closed)(void *ctx, struct conn *c); // the last word; the memory goes
    // Appends headers that every response has ("Name: value\r\n").
    void (*put_headers)(void *ctx, struct conn *c, struct str *out);
    // A response's status line was written.
    void (*on_response)(void *ctx, struct conn *c, int status);
};

// Who answers later learns what happens meanwhile. `gone`: the client is, nothing may be written
// any more, and this is the last call. `drained`: everything written is with the kernel. `tick`:
// about 4 times a second.
struct conn_listener {
    void *ctx;
    void (*gone)(void *ctx);
    void (*drained)(void *ctx);
    void (*tick)(void *ctx, int64_t now_ms);
};

// Takes a waiting client from the listening socket. NULL: that failed.
struct conn *conn_accept(uv_stream_t *listening, const struct conn_server *server);
void conn_close(struct conn *c);  // at once
void conn_finish(struct conn *c); // idle ones at once, others after their answer
void conn_tick(struct conn *c, int64_t now_ms);

const struct http_request *conn_request(const struct conn *c);
void conn_take_body(struct conn *c, struct str *out); // the request's body is the caller's now
void conn_listen(struct conn *c, struct conn_listener listener);
bool conn_answered(const struct conn *c); // the response has begun
void *conn_data(const struct conn *c);    // the server's, NULL at first; kept over requests
void conn_set_data(struct conn *c, void *data);

// The whole response. `headers`: further ones, each ending in "\r\n", or NULL.
void conn_reply(struct conn *c, int status, const char *content_type, const char *headers,
                const char *body, size_t len);
// A response in pieces, as they come.
void conn_stream_begin(struct conn *c, const char *content_type);
void conn_stream_write(struct conn *c, const char *data, size_t len);
void conn_stream_end(struct conn *c);
size_t conn_queued(const struct conn *c); // bytes that the kernel has not taken yet

const char *http_status_text(int status);
