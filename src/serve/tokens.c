// POST /tokenize and /detokenize, GET /tokenizer_info: the vocabulary, in vLLM's shapes.
#include "serve/internal.h"

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

// Both routes: a body is parsed on whatever thread, and answered on the loop.
struct asked {
    struct json *root;
    struct fault fault;
};

static void parse(struct later *l) {
    struct asked *a = l->ctx;
    struct error err;
    if (json_parse(&a->root, l->body.data, l->body.len, SIZE_MAX, "request body", &err))
        fault_set(&a->fault, 400, NULL, NULL, "%s", err.msg);
    else if (json_kind(a->root) != JSON_KIND_OBJECT)
        fault_set(&a->fault, 400, NULL, NULL, "the body is not a JSON object");
}

static const struct json *member(const struct asked *a, const char *key) {
    const struct json *v = json_member(a->root, key);
    return v && json_kind(v) != JSON_KIND_NULL ? v : NULL;
}

// The model that is named, or the only one.
static struct version *model_of(struct server *s, struct asked *a) {
    const struct json *name = member(a, "model");
    const char *text;
    size_t len;
    struct error err;
    struct version *v = models_next(&s->models, NULL);
    if (name && json_read_text(&text, &len, name, "model", &err)) {
        fault_set(&a->fault, 400, NULL, "model", "%s", err.msg);
        return NULL;
    }
    if (name)
        v = models_find(&s->models, text);
    else if (v && models_next(&s->models, v))
        v = NULL;
    if (!v)
        fault_set(&a->fault, 404, "model_not_found", "model", "%s",
                  name ? "the model does not exist" : "name one of the models: \"model\"");
    return v;
}

static int read_flag(struct asked *a, const char *key, bool *out) {
    const struct json *v = member(a, key);
    struct error err;
    if (v && json_read_bool(out, v, key, &err))
        return fault_set(&a->fault, 400, NULL, key, "%s", err.msg);
    return 0;
}

static void tokenize(struct later *l) {
    struct asked *a = l->ctx;
    const struct version *v = a->fault.status ? NULL : model_of(l->server, a);
    const char *text = NULL;
    size_t len = 0;
    bool special = true;
    struct error err;
    if (v && json_read_text(&text, &len, json_member(a->root, "prompt"), "prompt", &err))
        fault_set(&a->fault, 400, NULL, "prompt", "%s", err.msg);
    if (v && !a->fault.status) read_flag(a, "add_special_tokens", &special);
    if (l->conn && a->fault.status) {
        fault_reply(l->conn, &a->fault);
    } else if (l->conn) {
        int32_t *tokens = mem_zero(len + 1, sizeof *tokens); // [0] is the document's beginning
        const size_t n = 1 + tok_encode(engine_tok(v->engines[0]), text, len, tokens + 1);
        const size_t first = special ? 0 : 1;
        struct str body;
        str_init(&body, SIZE_MAX / 2);
        struct json_writer w = {.out = &body};
        json_open(&w, '{');
        json_put_key(&w, "count");
        json_put_int(&w, (int64_t)(n - first));
        json_put_key(&w, "max_model_len");
        json_put_int(&w, v->entry.limits.max_context_len);
        json_put_key(&w, "tokens");
        json_open(&w, '[');
        for (size_t i = first; i < n; i++) json_put_int(&w, tokens[i]);
        json_close(&w, ']');
        json_close(&w, '}');
        reply_json(l->conn, 200, &body);
        str_free(&body);
        free(tokens);
    }
    json_free(a->root);
    free(a);
}

static int read_ids(struct asked *a, const struct tok *tok, struct str *out) {
    const struct json *list = member(a, "tokens");
    struct utf8 utf8 = {0};
    struct error err;
    if (!list || json_kind(list) != JSON_KIND_ARRAY)
        return fault_set(&a->fault, 400, NULL, "tokens", "tokens is not an array of token ids");
    for (size_t i = 0; i < json_length(list); i++) {
        int64_t id;
        size_t len;
        if (json_read_int(&id, json_item(list, i), 0, TOK_MAX_ID, "a token id of tokens", &err))
            return fault_set(&a->fault, 400, NULL, "tokens", "%s", err.msg);
        const char *bytes = tok_bytes(tok, (int32_t)id, &len);
        utf8_feed(&utf8, bytes, len, out);
    }
    utf8_flush(&utf8, out);
    return 0;
}

static void detokenize(struct later *l) {
    struct asked *a = l->ctx;
    const struct version *v = a->fault.status ? NULL : model_of(l->server, a);
    struct str text, body;
    str_init(&text, SIZE_MAX / 2);
    str_init(&body, SIZE_MAX / 2);
    if (v) read_ids(a, engine_tok(v->engines[0]), &text);
    if (l->conn && a->fault.status) {
        fault_reply(l->conn, &a->fault);
    } else if (l->conn) {
        struct json_writer w = {.out = &body};
        json_open(&w, '{');
        json_put_key(&w, "prompt");
        json_put_text(&w, text.data, text.len);
        json_close(&w, '}');
        reply_json(l->conn, 200, &body);
    }
    str_free(&text);
    str_free(&body);
    json_free(a->root);
    free(a);
}

void handle_tokenize(struct server *s, struct conn *c, const struct http_request *r) {
    (void)r;
    later_run(s, c, mem_zero(1, sizeof(struct asked)), parse, tokenize);
}

void handle_detokenize(struct server *s, struct conn *c, const struct http_request *r) {
    (void)r;
    later_run(s, c, mem_zero(1, sizeof(struct asked)), parse, detokenize);
}

void handle_tokenizer_info(struct server *s, struct conn *c, const struct http_request *r) {
    const struct version *v = models_next(&s->models, NULL);
    struct str body;
    (void)r;
    str_init(&body, 4096);
    str_printf(&body,
               "{\"tokenizer_class\":\"RwkvWorldTokenizer\",\"vocab_size\":%d,"
               "\"bos_token\":\"<|endoftext|>\",\"eos_token\":\"<|endoftext|>\","
               "\"pad_token\":\"<|endoftext|>\",\"bos_token_id\":0,\"eos_token_id\":0,"
               "\"pad_token_id\":0,\"add_bos_token\":true,\"chat_template\":null,"
               "\"model_max_length\":%d}",
               v ? tok_size(engine_tok(v->engines[0])) : 0,
               v ? v->entry.limits.max_context_len : 0);
    reply_json(c, 200, &body);
    str_free(&body);
}
