// GET /v1/models: which models there are.
#include "serve/internal.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static void put(struct json_writer *w, const char *key, const char *text) {
    json_put_key(w, key);
    json_put_text(w, text, strlen(text));
}

static void put_model(struct json_writer *w, const struct version *v) {
    json_open(w, '{');
    put(w, "id", v->entry.name);
    put(w, "object", "model");
    json_put_key(w, "created");
    json_put_int(w, v->created_s);
    put(w, "owned_by", "rwkv");
    json_put_key(w, "max_model_len");
    json_put_int(w, v->entry.limits.max_context_len);
    json_close(w, '}');
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(struct version *const *)a)->entry.name,
                  (*(struct version *const *)b)->entry.name);
}

void handle_models(struct server *s, struct conn *c, const struct http_request *r) {
    struct version *all[1024];
    size_t n = 0;
    struct str body;
    (void)r;
    for (struct version *v = NULL; n < 1024 && (v = models_next(&s->models, v));) all[n++] = v;
    qsort(all, n, sizeof all[0], by_name);
    str_init(&body, 16 << 20);
    struct json_writer w = {.out = &body};
    json_open(&w, '{');
    put(&w, "object", "list");
    json_put_key(&w, "data");
    json_open(&w, '[');
    for (size_t i = 0; i < n; i++) put_model(&w, all[i]);
    json_close(&w, ']');
    json_close(&w, '}');
    reply_json(c, 200, &body);
    str_free(&body);
}

void handle_model(struct server *s, struct conn *c, const struct http_request *r) {
    const char *name = r->path + strlen("/v1/models/");
    const struct version *v = models_find(&s->models, name);
    if (!v) {
        struct fault f = {0};
        fault_set(&f, 404, "model_not_found", "model", "the model \"%.200s\" does not exist", name);
        fault_reply(c, &f);
        return;
    }
    struct str body;
    str_init(&body, 1 << 20);
    struct json_writer w = {.out = &body};
    put_model(&w, v);
    reply_json(c, 200, &body);
    str_free(&body);
}
