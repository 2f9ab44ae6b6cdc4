// Which path leads to which handler, who may pass, and what every response carries.
#include "serve/internal.h"

#include "base/mem.h"
#include "serve/secret.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

const struct route routes[] = {
    {"GET", "/", ACCESS_OPEN, handle_page},
    {"POST", "/v1/chat/completions", ACCESS_KEY, handle_chat},
    {"POST", "/v1/completions", ACCESS_KEY, handle_completions},
    {"GET", "/v1/models", ACCESS_KEY, handle_models},
    {"GET", "/v1/models/", ACCESS_KEY, handle_model},
    {"POST", "/tokenize", ACCESS_KEY, handle_tokenize},
    {"POST", "/detokenize", ACCESS_KEY, handle_detokenize},
    {"GET", "/tokenizer_info", ACCESS_KEY, handle_tokenizer_info},
    {"GET", "/health", ACCESS_OPEN, handle_health},
    {"GET", "/health/ready", ACCESS_OPEN, handle_ready},
    {"GET", "/version", ACCESS_OPEN, handle_version},
    {"GET", "/metrics", ACCESS_KEY, handle_metrics},
    {"POST", "/admin/models/reload", ACCESS_ADMIN, handle_reload},
    {0},
};

static struct client *client_of(const struct conn *c) {
    return conn_data(c);
}

static bool path_matches(const struct route *r, const char *path) {
    const size_t len = strlen(r->path);
    if (len > 1 && r->path[len - 1] == '/') return !strncmp(path, r->path, len) && path[len];
    return !strcmp(path, r->path);
}

// The route; *found: whether the path exists with another method.
static const struct route *find(const char *method, const char *path, const struct route **other) {
    if (!strcmp(method, "HEAD")) method = "GET";
    for (const struct route *r = routes; r->method; r++) {
        if (!path_matches(r, path)) continue;
        if (!strcmp(r->method, method)) return r;
        *other = r;
    }
    return NULL;
}

// ---- who may pass ------------------------------------------------------------------------------

// "Bearer KEY", or the key alone as rwkv-rs takes it.
static const char *key_of(const char *authorization) {
    if (strncasecmp(authorization, "Bearer", 6) || !strchr(" \t", authorization[6]))
        return authorization;
    return authorization + 6 + strspn(authorization + 6, " \t");
}

// A page elsewhere may have its name point here (DNS rebinding): a server of this machine does
// admin work under names of this machine only.
static bool host_is_local(const char *host) {
    static const char *const names[] = {"localhost", "127.", "[::1]"};
    for (size_t i = 0; host && i < sizeof names / sizeof names[0]; i++) {
        const size_t len = strlen(names[i]);
        if (strncasecmp(host, names[i], len)) continue;
        if (names[i][len - 1] == '.') return !host[strspn(host, "0123456789.:")];
        return !host[len] || host[len] == ':';
    }
    return false;
}

static int check_access(const struct server *s, const struct route *route,
                        const struct http_request *r, struct fault *f) {
    const char *key = route->access == ACCESS_OPEN ? NULL : s->options.api_key;
    int count;
    const char *given = http_header(r, "authorization", &count);
    if (route->access == ACCESS_ADMIN) {
        if (s->options.admin_api_key) key = s->options.admin_api_key;
        if (s->is_local && !host_is_local(http_header(r, "host", NULL)))
            return fault_set(f, 403, "host_not_allowed", NULL,
                             "admin requests to this server name it localhost or 127.0.0.1");
    }
    if (!key) return 0;
    if (!count)
        return fault_set(f, 401, "invalid_api_key", NULL,
                         "missing Authorization header: \"Authorization: Bearer KEY\" is wanted");
    if (count > 1)
        return fault_set(f, 400, "invalid_api_key", NULL, "more than one Authorization header");
    if (!secret_equal(key_of(given), key))
        return fault_set(f, 401, "invalid_api_key", NULL, "invalid api key");
    return 0;
}

static int check_type(const struct http_request *r, struct fault *f) {
    const char *type = http_header(r, "content-type", NULL);
    const size_t len = type ? strcspn(type, "; \t") : 0;
    if (len == 16 && !strncasecmp(type, "application/json", 16)) return 0;
    if (len > 5 && !strncasecmp(type + len - 5, "+json", 5)) return 0;
    return fault_set(f, 415, NULL, NULL,
                     "expected a request with \"Content-Type: application/json\"");
}

// ---- what conn.c asks --------------------------------------------------------------------------

static void reply_other_method(struct conn *c, const struct http_request *r,
                               const struct route *other) {
    char headers[300];
    const char *allow = !strcmp(other->method, "GET") ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    if (!strcmp(r->method, "OPTIONS")) {
        snprintf(headers, sizeof headers, "Allow: %s\r\n%s%s%s", allow,
                 other->access == ACCESS_ADMIN ? "" : "Access-Control-Allow-Methods: ",
                 other->access == ACCESS_ADMIN ? "" : "GET, POST, OPTIONS\r\n",
                 other->access == ACCESS_ADMIN
                     ? ""
                     : "Access-Control-Allow-Headers: content-type, authorization\r\n"
                       "Access-Control-Max-Age: 600\r\n");
        conn_reply(c, 204, NULL, headers, "", 0);
        return;
    }
    struct fault f = {0};
    struct str body;
    fault_set(&f, 405, "method_not_allowed", NULL, "this path is for %s", allow);
    snprintf(headers, sizeof headers, "Allow: %s\r\n", allow);
    str_init(&body, 8192);
    fault_write(&body, &f);
    conn_reply(c, 405, "application/json", headers, body.data, body.len);
    str_free(&body);
}

void route_head(void *ctx, struct conn *c) {
    struct server *s = ctx;
    const struct http_request *r = conn_request(c);
    const struct route *other = NULL, *route = find(r->method, r->path, &other);
    struct fault f = {0};
    client_of(c)->route = route ? route : other;
    if (s->draining) {
        fault_set(&f, 503, "shutting_down", NULL, "the server is going down");
    } else if (!route && other) {
        reply_other_method(c, r, other);
        return;
    } else if (!route) {
        fault_set(&f, 404, "not_found", NULL, "there is nothing at this path");
    } else if (!check_access(s, route, r, &f) && !strcmp(route->method, "POST")) {
        check_type(r, &f);
    }
    if (f.status) fault_reply(c, &f);
}

void route_request(void *ctx, struct conn *c) {
    struct server *s = ctx;
    client_of(c)->route->handle(s, c, conn_request(c));
}

void route_put_headers(void *ctx, struct conn *c, struct str *out) {
    struct server *s = ctx;
    const struct route *route = client_of(c)->route;
    const struct http_request *r = conn_request(c);
    str_puts(out, "X-Content-Type-Options: nosniff\r\n");
    if (!route || route->access == ACCESS_ADMIN) return;
    if (!s->options.num_origins) {
        str_puts(out, "Access-Control-Allow-Origin: *\r\n");
        return;
    }
    const char *origin = r ? http_header(r, "origin", NULL) : NULL;
    str_puts(out, "Vary: Origin\r\n");
    for (size_t i = 0; origin && i < s->options.num_origins; i++)
        if (!strcmp(origin, s->options.origins[i])) // the configured text, not the client's
            str_printf(out, "Access-Control-Allow-Origin: %s\r\n", s->options.origins[i]);
}

void route_response(void *ctx, struct conn *c, int status) {
    struct server *s = ctx;
    const struct route *route = client_of(c)->route;
    size_t row = 0;
    while (routes[row].method && &routes[row] != route) row++;
    s->responses[row][status_index(status)]++;
    client_of(c)->route = NULL;
}

void reply_json(struct conn *c, int status, const struct str *body) {
    conn_reply(c, status, "application/json", NULL, body->data, body->len);
}

// ---- work on other threads ---------------------------------------------------------------------

enum { SMALL_BODY = 64 << 10 };

static void later_work(uv_work_t *work) {
    struct later *l = work->data;
    l->run(l);
}

static void later_done(uv_work_t *work, int status) {
    struct later *l = work->data;
    (void)status;
    if (l->conn) client_of(l->conn)->later = NULL;
    l->done(l);
    str_free(&l->body);
    free(l);
}

void later_run(struct server *s, struct conn *c, void *ctx, void (*run)(struct later *),
               void (*done)(struct later *)) {
    struct later *l = mem_zero(1, sizeof *l);
    *l = (struct later){.server = s, .conn = c, .ctx = ctx, .run = run, .done = done};
    l->work.data = l;
    conn_take_body(c, &l->body);
    if (l->body.len <= SMALL_BODY) {
        l->run(l);
        later_done(&l->work, 0);
        return;
    }
    client_of(c)->later = l;
    uv_queue_work(&s->loop, &l->work, later_work, later_done);
}
