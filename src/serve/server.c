#include "serve/server.h"

#include "serve/internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TICK_MS = 250, BACKLOG = 1024, SPARE_FILES = 64 };

// ---- addresses ---------------------------------------------------------------------------------

static int parse_address(struct sockaddr_storage *out, const char *address, struct error *err) {
    char host[128];
    const char *colon = strrchr(address, ':');
    const size_t len = colon ? (size_t)(colon - address) : 0;
    if (!colon || !len || len >= sizeof host)
        return fail(err, E_CONFIG, "http_bind_addr is \"%s\", wanted ADDRESS:PORT", address);
    const int port = atoi(colon + 1);
    memcpy(host, address, len);
    host[len] = 0;
    if (!strcmp(host, "localhost")) strcpy(host, "127.0.0.1");
    if (*host == '[' && host[len - 1] == ']') {
        host[len - 1] = 0;
        if (!uv_ip6_addr(host + 1, port, (struct sockaddr_in6 *)out)) return 0;
    } else if (!uv_ip4_addr(host, port, (struct sockaddr_in *)out)) {
        return 0;
    }
    return fail(err, E_CONFIG,
                "http_bind_addr is \"%s\": the address must be numbers, such as 127.0.0.1:8080, "
                "0.0.0.0:8080 or [::]:8080",
                address);
}

int server_address_is_local(const char *address, bool *local, struct error *err) {
    struct sockaddr_storage a = {0};
    static const unsigned char loopback6[16] = {[15] = 1};
    if (parse_address(&a, address, err)) return -1;
    if (a.ss_family == AF_INET)
        *local = (ntohl(((struct sockaddr_in *)&a)->sin_addr.s_addr) >> 24) == 127;
    else
        *local = !memcmp(&((struct sockaddr_in6 *)&a)->sin6_addr, loopback6, 16);
    return 0;
}

// ---- connections -------------------------------------------------------------------------------

static void on_connection(uv_stream_t *listening, int status) {
    struct server *s = listening->data;
    if (status) {
        log_warn("accepting a connection: %s", uv_strerror(status));
        return;
    }
    struct conn *c = conn_accept(listening, &s->conns);
    if (!c) return;
    struct client *client = mem_zero(1, sizeof *client);
    client->conn = c;
    client->next = s->clients;
    if (s->clients) s->clients->prev = client;
    s->clients = client;
    s->num_clients++;
    conn_set_data(c, client);
    if (s->num_clients > s->options.max_connections) {
        s->refused_connections++;
        conn_close(c);
    }
}

static void stop_if_done(struct server *s);

static void on_conn_closed(void *ctx, struct conn *c) {
    struct server *s = ctx;
    struct client *client = conn_data(c);
    if (!client) return; // it was never accepted
    if (client->later) client->later->conn = NULL;
    if (client->prev) client->prev->next = client->next;
    if (client->next) client->next->prev = client->prev;
    if (s->clients == client) s->clients = client->next;
    s->num_clients--;
    free(client);
    stop_if_done(s);
}

// ---- the end -----------------------------------------------------------------------------------

static void stop_if_done(struct server *s) {
    if (!s->draining || s->stopped || s->num_clients || s->answers.open || s->reloads ||
        s->models.closing)
        return;
    if (s->models.versions) { // the last ones: closed on another thread, and then we are back here
        for (struct version *v = s->models.versions, *next; v; v = next) {
            next = v->next;
            if (!v->retired) models_retire(&s->models, v);
        }
        return;
    }
    s->stopped = true;
    models_stop(&s->models);
    uv_close((uv_handle_t *)&s->timer, NULL);
    for (int i = 0; i < 3; i++) uv_close((uv_handle_t *)&s->signals[i], NULL);
}

static void begin_drain(struct server *s) {
    log_info("going down: %zu connections, %d answers in flight", s->num_clients, s->answers.open);
    s->draining = true;
    s->drain_until_ms = (int64_t)uv_now(&s->loop) + s->options.drain_timeout_ms;
    uv_close((uv_handle_t *)&s->listener, NULL);
    for (struct client *c = s->clients, *next; c; c = next) {
        next = c->next;
        conn_finish(c->conn);
    }
    stop_if_done(s);
}

static void on_signal(uv_signal_t *handle, int number) {
    struct server *s = handle->data;
    if (number == SIGHUP) {
        if (!s->draining) reload_signal(s);
    } else if (!s->draining) {
        begin_drain(s);
    } else {
        log_warn("a second signal: stopping at once");
        _exit(1);
    }
}

static void on_tick(uv_timer_t *timer) {
    struct server *s = timer->data;
    const int64_t now = (int64_t)uv_now(&s->loop);
    const bool late = s->draining && now > s->drain_until_ms;
    for (struct client *c = s->clients, *next; c; c = next) {
        next = c->next;
        conn_tick(c->conn, now);
        if (late) conn_close(c->conn);
    }
    if (s->draining) stop_if_done(s);
}

static void on_settled(void *ctx) {
    struct server *s = ctx;
    answers_settle(&s->answers);
    if (s->draining) stop_if_done(s);
}

static void on_version_closed(void *ctx) {
    struct server *s = ctx;
    reload_version_closed(s);
    stop_if_done(s);
}

// ---- the beginning -----------------------------------------------------------------------------

static int open_models(struct server *s, struct error *err) {
    const struct server_source *source = &s->options.source;
    struct server_plan plan;
    if (source->propose(source->ctx, &plan, NULL, err)) return -1;
    int rc = 0;
    for (size_t i = 0; !rc && i < plan.num_entries; i++) {
        struct version *v;
        rc = version_open(&v, &s->models, &plan.entries[i], err);
        if (!rc) models_adopt(&s->models, v);
    }
    source->drop(source->ctx, &plan);
    return rc;
}

static int listen_at(struct server *s, struct error *err) {
    const char *address = s->options.address;
    struct sockaddr_storage a = {0};
    char url[128], host[64];
    int len = sizeof a;
    if (parse_address(&a, address, err) || server_address_is_local(address, &s->is_local, err))
        return -1;
    uv_tcp_init(&s->loop, &s->listener);
    s->listener.data = s;
    int rc = uv_tcp_bind(&s->listener, (struct sockaddr *)&a, 0);
    if (!rc) rc = uv_listen((uv_stream_t *)&s->listener, BACKLOG, on_connection);
    if (rc)
        return fail(err, E_IO, "cannot listen at %s: %s%s", address, uv_strerror(rc),
                    rc == UV_EADDRINUSE ? "; http_bind_addr takes another one" : "");
    uv_tcp_getsockname(&s->listener, (struct sockaddr *)&a, &len);
    const int port = ntohs(((struct sockaddr_in *)&a)->sin_port); // at the same place in both
    uv_ip_name((struct sockaddr *)&a, host, sizeof host);
    snprintf(url, sizeof url, a.ss_family == AF_INET6 ? "http://[%s]:%d" : "http://%s:%d", host,
             port);
    log_info("serving at %s", url);
    if (s->options.ready) s->options.ready(s->options.ready_ctx, url);
    return 0;
}

// As many files as the system allows; connections leave some for models and the rest.
static void take_files(struct server *s) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const size_t most =
        files.rlim_cur > 2 * SPARE_FILES ? files.rlim_cur - SPARE_FILES : SPARE_FILES;
    if (s->options.max_connections > most) s->options.max_connections = most;
}

static void start_watching(struct server *s) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (int i = 0; i < 3; i++) {
        uv_signal_init(&s->loop, &s->signals[i]);
        s->signals[i].data = s;
        uv_signal_start(&s->signals[i], on_signal, numbers[i]);
    }
    uv_timer_init(&s->loop, &s->timer);
    s->timer.data = s;
    uv_timer_start(&s->timer, on_tick, TICK_MS, TICK_MS);
}

int server_run(const struct server_options *options, struct error *err) {
    struct server *s = mem_zero(1, sizeof *s);
    s->options = *options;
    s->started_ms = clock_unix_ms();
    s->conns = (struct conn_server){
        .ctx = s,
        .limits = {.max_body = options->max_body,
                   .idle_ms = options->idle_timeout_ms,
                   .head_ms = options->header_timeout_ms,
                   .body_ms = options->body_timeout_ms,
                   .stall_ms = options->stall_timeout_ms},
        .on_head = route_head,
        .on_request = route_request,
        .on_closed = on_conn_closed,
        .put_headers = route_put_headers,
        .on_response = route_response,
    };
    signal(SIGPIPE, SIG_IGN);
    take_files(s);
    uv_loop_init(&s->loop);
    models_init(&s->models, &s->loop, answer_event, on_settled, on_version_closed, s);
    s->answers = (struct answers){.models = &s->models,
                                  .keep_alive_ms = options->sse_keep_alive_ms,
                                  .first_token_us = &s->first_token_us,
                                  .token_us = &s->token_us,
                                  .request_us = &s->request_us};
    start_watching(s);
    int rc = open_models(s, err);
    if (!rc) rc = listen_at(s, err);
    if (rc) { // nothing came in yet: let go of what was opened
        s->draining = true;
        if (s->listener.loop) uv_close((uv_handle_t *)&s->listener, NULL);
        stop_if_done(s);
    }
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_loop_close(&s->loop);
    free(s);
    return rc;
}
