// POST /v1/chat/completions and /v1/completions: a request becomes an answer.
#include "serve/internal.h"

#include "base/mem.h"

#include <stdlib.h>

struct asked {
    enum request_kind kind;
    struct request request;
    struct fault fault;
};

static void parse(struct later *l) {
    struct asked *a = l->ctx;
    request_parse(&a->request, a->kind, l->body.data, l->body.len, &a->fault);
}

static void answer(struct later *l) {
    struct asked *a = l->ctx;
    if (a->fault.status || !l->conn)
        request_free(&a->request);
    else
        answer_begin(&l->server->answers, l->conn, &a->request, &a->fault);
    if (a->fault.status && l->conn) fault_reply(l->conn, &a->fault);
    free(a);
}

static void begin(struct server *s, struct conn *c, enum request_kind kind) {
    struct asked *a = mem_zero(1, sizeof *a);
    a->kind = kind;
    later_run(s, c, a, parse, answer);
}

void handle_chat(struct server *s, struct conn *c, const struct http_request *r) {
    (void)r;
    begin(s, c, REQUEST_CHAT);
}

void handle_completions(struct server *s, struct conn *c, const struct http_request *r) {
    (void)r;
    begin(s, c, REQUEST_COMPLETION);
}
