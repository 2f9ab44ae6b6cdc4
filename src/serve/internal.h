// What the files of the server share.
#pragma once
#include "base/hist.h"
#include "serve/answer.h"
#include "serve/conn.h"
#include "serve/fault.h"
#include "serve/server.h"

struct server;

enum access {
    ACCESS_OPEN,  // anybody
    ACCESS_KEY,   // api_key, if there is one
    ACCESS_ADMIN, // admin_api_key, else api_key; and no browser from elsewhere
};

struct route {
    const char *method; // "GET" serves HEAD too
    const char *path;   // one that ends in "/" takes what is behind it as well, except "/" itself
    enum access access;
    void (*handle)(struct server *s, struct conn *c, const struct http_request *r);
};

extern const struct route routes[]; // ended by a row without a method

enum { SERVER_MAX_ROUTES = 32, SERVER_STATUSES = 32 };
extern const int statuses[]; // those that are counted, ended by 0, which counts the others
int status_index(int status);

// A connection's place in the server.
struct client {
    struct conn *conn;
    struct client *prev, *next;
    const struct route *route; // of the request in progress; NULL: none found
    struct later *later;       // work for it on another thread; NULL: none
};

struct server {
    struct server_options options;
    uv_loop_t loop;
    uv_tcp_t listener;
    uv_timer_t timer;
    uv_signal_t signals[3];
    struct conn_server conns;
    struct client *clients;
    size_t num_clients;
    struct models models;
    struct answers answers;
    bool is_local; // bound to this machine
    bool draining, stopped;
    int64_t drain_until_ms;
    struct reload *reloads; // the first one runs, the others wait
    // For /metrics.
    uint64_t responses[SERVER_MAX_ROUTES][SERVER_STATUSES]; // by route (the last: none) and status
    uint64_t refused_connections;
    struct hist first_token_us, token_us, request_us;
    int64_t started_ms;
};

// routes.c: what conn.c asks of the server.
void route_head(void *ctx, struct conn *c);
void route_request(void *ctx, struct conn *c);
void route_put_headers(void *ctx, struct conn *c, struct str *out);
void route_response(void *ctx, struct conn *c, int status);

// The handlers, by file.
void handle_chat(struct server *s, struct conn *c, const struct http_request *r);
void handle_completions(struct server *s, struct conn *c, const struct http_request *r);
void handle_models(struct server *s, struct conn *c, const struct http_request *r);
void handle_model(struct server *s, struct conn *c, const struct http_request *r);
void handle_tokenize(struct server *s, struct conn *c, const struct http_request *r);
void handle_detokenize(struct server *s, struct conn *c, const struct http_request *r);
void handle_tokenizer_info(struct server *s, struct conn *c, const struct http_request *r);
void handle_health(struct server *s, struct conn *c, const struct http_request *r);
void handle_ready(struct server *s, struct conn *c, const struct http_request *r);
void handle_version(struct server *s, struct conn *c, const struct http_request *r);
void handle_metrics(struct server *s, struct conn *c, const struct http_request *r);
void handle_page(struct server *s, struct conn *c, const struct http_request *r);
void handle_reload(struct server *s, struct conn *c, const struct http_request *r);

// The reload that SIGHUP asks for.
void reload_signal(struct server *s);
void reload_version_closed(struct server *s); // one more version is gone

// A request's body on another thread, where large ones are parsed. `work` runs there, `done` on the
// loop, with conn NULL if the client is gone by then; both get `ctx`.
struct later {
    uv_work_t work;
    struct server *server;
    struct conn *conn;
    struct str body;
    void *ctx;
    void (*run)(struct later *l);
    void (*done)(struct later *l);
};
// Runs at once when the body is small.
void later_run(struct server *s, struct conn *c, void *ctx, void (*run)(struct later *),
               void (*done)(struct later *));

// A page of memory that handlers write their answer to, and its sending.
void reply_json(struct conn *c, int status, const struct str *body);
