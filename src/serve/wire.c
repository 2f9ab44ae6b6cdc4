#include "serve/wire.h"

#include "base/json.h"
#include "base/version.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void choice_strings(struct choice *c, struct str *out[CHOICE_STRINGS]) {
    struct str *const all[CHOICE_STRINGS] = {&c->text,      &c->thoughts,  &c->content,
                                             &c->lp_tokens, &c->lp_values, &c->lp_tops,
                                             &c->lp_offsets};
    memcpy(out, all, sizeof all);
}

// ---- JSON --------------------------------------------------------------------------------------

static void put(struct json_writer *w, const char *key, const char *text) {
    json_put_key(w, key);
    json_put_text(w, text, strlen(text));
}

static const char *reason_of(enum engine_finish finish) {
    return finish == ENGINE_LENGTH ? "length" : "stop";
}

// id, object, created, model, system_fingerprint; the object stays open. The same in every chunk of
// an answer, so it is made once.
static void put_beginning(struct json_writer *w, struct answer *a, const char *object) {
    if (!a->beginning.len) {
        struct json_writer once = {.out = &a->beginning};
        char fingerprint[64];
        snprintf(fingerprint, sizeof fingerprint, "rwkv-%s-%08x", RWKV_VERSION,
                 (unsigned)engine_model_hash(a->version->engines[0]));
        json_open(&once, '{');
        put(&once, "id", a->id);
        put(&once, "object", object);
        json_put_key(&once, "created");
        json_put_int(&once, a->created_s);
        put(&once, "model", a->request.model);
        put(&once, "system_fingerprint", fingerprint);
    }
    str_append(w->out, a->beginning.data, a->beginning.len);
    w->after_value = true;
}

static void put_usage(struct json_writer *w, const struct answer *a) {
    int prompt = 0, generated = 0, thoughts = 0;
    for (int i = 0; i < a->num_choices; i++) {
        prompt += a->choices[i].prompt_tokens;
        generated += a->choices[i].generated;
        thoughts += a->choices[i].thought_tokens;
    }
    const struct {
        const char *key;
        int value;
    } all[] = {{"prompt_tokens", prompt},
               {"completion_tokens", generated},
               {"total_tokens", prompt + generated}};
    json_put_key(w, "usage");
    json_open(w, '{');
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        json_put_key(w, all[i].key);
        json_put_int(w, all[i].value);
    }
    json_put_key(w, "prompt_tokens_details");
    json_open(w, '{');
    json_put_key(w, "cached_tokens");
    json_put_int(w, 0);
    json_close(w, '}');
    json_put_key(w, "completion_tokens_details");
    json_open(w, '{');
    json_put_key(w, "reasoning_tokens");
    json_put_int(w, thoughts);
    json_close(w, '}');
    json_close(w, '}');
}

// ---- logprobs ----------------------------------------------------------------------------------

// A token as text: its own, or, where that is no whole UTF-8, "bytes:\xNN…" as OpenAI writes it.
static void put_token(struct json_writer *w, const struct tok *tok, int32_t id) {
    size_t len;
    const char *bytes = tok_bytes(tok, id, &len);
    if (utf8_valid(bytes, len)) {
        json_put_text(w, bytes, len);
        return;
    }
    struct str text;
    str_init(&text, 8 + 4 * TOK_MAX_BYTES);
    str_puts(&text, "bytes:");
    for (size_t i = 0; i < len; i++) str_printf(&text, "\\x%02x", (unsigned char)bytes[i]);
    json_put_text(w, text.data, text.len);
    str_free(&text);
}

static void put_logprob(struct json_writer *w, float logprob) {
    json_put_float32(w, isfinite(logprob) ? logprob : -9999.0f); // JSON has no infinity
}

static void put_chat_entry(struct json_writer *w, const struct tok *tok,
                           const struct engine_logprob *e) {
    size_t len;
    const char *bytes = tok_bytes(tok, e->token, &len);
    json_put_key(w, "token");
    put_token(w, tok, e->token);
    json_put_key(w, "logprob");
    put_logprob(w, e->logprob);
    json_put_key(w, "bytes");
    json_open(w, '[');
    for (size_t i = 0; i < len; i++) json_put_int(w, (unsigned char)bytes[i]);
    json_close(w, ']');
}

static int by_probability(const void *a, const void *b) {
    const struct engine_logprob *x = a, *y = b;
    return x->logprob != y->logprob ? (x->logprob < y->logprob ? 1 : -1)
                                    : (x->token > y->token) - (x->token < y->token);
}

// The alternatives of a token: the most probable ones and the candidates, each once, in order.
// `with_own` adds the token itself (completions).
static int alternatives(struct engine_logprob *out, const struct choice *c,
                        const struct engine_logprob *e, bool with_own) {
    const int n = (c->job.top > 0 ? c->job.top : 0) + c->job.num_candidates;
    int count = 0;
    for (int i = with_own ? 0 : 1; i <= n; i++) {
        bool seen = e[i].token < 0;
        for (int k = 0; k < count; k++) seen |= out[k].token == e[i].token;
        if (!seen) out[count++] = e[i];
    }
    qsort(out, (size_t)count, sizeof *out, by_probability);
    return count;
}

static void separate(struct str *list) {
    if (list->len) str_putc(list, ',');
}

static size_t code_points(const char *text, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

void wire_add_logprobs(struct choice *c, int32_t token, const struct engine_logprob *e) {
    const struct tok *tok = engine_tok(c->answer->version->engines[c->engine]);
    struct engine_logprob others[1 + ENGINE_MAX_TOP + ENGINE_MAX_CANDIDATES];
    const bool chat = c->answer->request.kind == REQUEST_CHAT;
    const int n = e ? alternatives(others, c, e, !chat) : 0;
    size_t len;
    const char *bytes = tok_bytes(tok, token, &len);
    if (chat) {
        separate(&c->content);
        struct json_writer w = {.out = &c->content};
        json_open(&w, '{');
        put_chat_entry(&w, tok, e);
        json_put_key(&w, "top_logprobs");
        json_open(&w, '[');
        for (int i = 0; i < n; i++) {
            json_open(&w, '{');
            put_chat_entry(&w, tok, &others[i]);
            json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        return;
    }
    struct str *lists[] = {&c->lp_tokens, &c->lp_values, &c->lp_tops, &c->lp_offsets};
    for (int i = 0; i < 4; i++) separate(lists[i]);
    put_token(&(struct json_writer){.out = &c->lp_tokens}, tok, token);
    struct json_writer value = {.out = &c->lp_values}, top = {.out = &c->lp_tops};
    str_printf(&c->lp_offsets, "%zu", c->offset);
    c->offset += code_points(bytes, len);
    if (!e) {
        json_put_null(&value);
        json_put_null(&top);
        return;
    }
    put_logprob(&value, e->logprob);
    json_open(&top, '{');
    for (int i = 0; i < n; i++) {
        put_token(&top, tok, others[i].token);
        str_putc(&c->lp_tops, ':');
        top.after_value = false;
        put_logprob(&top, others[i].logprob);
    }
    json_close(&top, '}');
}

static void put_logprobs(struct json_writer *w, struct choice *c) {
    const struct {
        const char *key;
        struct str *list;
    } all[] = {{"content", &c->content},
               {"tokens", &c->lp_tokens},
               {"token_logprobs", &c->lp_values},
               {"top_logprobs", &c->lp_tops},
               {"text_offset", &c->lp_offsets}};
    const bool chat = c->answer->request.kind == REQUEST_CHAT;
    json_put_key(w, "logprobs");
    if (c->job.top < 0) {
        json_put_null(w);
        return;
    }
    json_open(w, '{');
    for (int i = chat ? 0 : 1; i < (chat ? 1 : 5); i++) {
        json_put_key(w, all[i].key);
        json_open(w, '[');
        str_append(w->out, all[i].list->data, all[i].list->len);
        json_close(w, ']');
        str_clear(all[i].list);
    }
    json_close(w, '}');
}

// ---- saying it ---------------------------------------------------------------------------------

static void put_finish(struct json_writer *w, enum engine_finish finish) {
    json_put_key(w, "finish_reason");
    if (finish)
        json_put_text(w, reason_of(finish), strlen(reason_of(finish)));
    else
        json_put_null(w);
}

static void put_whole_choice(struct json_writer *w, struct choice *c) {
    json_open(w, '{');
    json_put_key(w, "index");
    json_put_int(w, c - c->answer->choices);
    if (c->answer->request.kind == REQUEST_CHAT) {
        json_put_key(w, "message");
        json_open(w, '{');
        put(w, "role", "assistant");
        json_put_key(w, "content");
        json_put_text(w, c->text.data, c->text.len);
        if (c->thoughts.len) {
            json_put_key(w, "reasoning_content");
            json_put_text(w, c->thoughts.data, c->thoughts.len);
        }
        json_put_key(w, "refusal");
        json_put_null(w);
        json_close(w, '}');
    } else {
        json_put_key(w, "text");
        json_put_text(w, c->text.data, c->text.len);
    }
    put_logprobs(w, c);
    put_finish(w, c->finish);
    json_close(w, '}');
}

void wire_put_whole(struct str *out, struct answer *a) {
    const bool chat = a->request.kind == REQUEST_CHAT;
    struct json_writer w = {.out = out};
    put_beginning(&w, a, chat ? "chat.completion" : "text_completion");
    json_put_key(&w, "choices");
    json_open(&w, '[');
    for (int i = 0; i < a->num_choices; i++) put_whole_choice(&w, &a->choices[i]);
    json_close(&w, ']');
    put_usage(&w, a);
    json_close(&w, '}');
}

void wire_put_chunk(struct str *out, struct choice *c, enum wire_chunk kind) {
    struct answer *a = c->answer;
    const bool chat = a->request.kind == REQUEST_CHAT;
    struct json_writer w = {.out = out};
    str_puts(out, "data: ");
    put_beginning(&w, a, chat ? "chat.completion.chunk" : "text_completion");
    json_put_key(&w, "choices");
    json_open(&w, '[');
    json_open(&w, '{');
    json_put_key(&w, "index");
    json_put_int(&w, c - a->choices);
    if (chat) {
        json_put_key(&w, "delta");
        json_open(&w, '{');
        if (kind == WIRE_ROLE) put(&w, "role", "assistant");
        if (kind == WIRE_TEXT && c->thoughts.len) {
            json_put_key(&w, "reasoning_content");
            json_put_text(&w, c->thoughts.data, c->thoughts.len);
        }
        if (kind == WIRE_ROLE || (kind == WIRE_TEXT && (c->text.len || !c->thoughts.len))) {
            json_put_key(&w, "content");
            json_put_text(&w, c->text.data, kind == WIRE_ROLE ? 0 : c->text.len);
        }
        json_close(&w, '}');
    } else {
        json_put_key(&w, "text");
        json_put_text(&w, c->text.data, kind == WIRE_TEXT ? c->text.len : 0);
    }
    if (kind == WIRE_TEXT) {
        put_logprobs(&w, c);
        str_clear(&c->text);
        str_clear(&c->thoughts);
    } else {
        json_put_key(&w, "logprobs");
        json_put_null(&w);
    }
    put_finish(&w, kind == WIRE_FINISH ? c->finish : ENGINE_NOT_YET);
    json_close(&w, '}');
    json_close(&w, ']');
    if (a->request.include_usage) {
        json_put_key(&w, "usage");
        json_put_null(&w);
    }
    json_close(&w, '}');
    str_puts(out, "\n\n");
}

void wire_put_last(struct str *out, struct answer *a) {
    const bool chat = a->request.kind == REQUEST_CHAT;
    if (a->request.include_usage) {
        struct json_writer w = {.out = out};
        str_puts(out, "data: ");
        put_beginning(&w, a, chat ? "chat.completion.chunk" : "text_completion");
        json_put_key(&w, "choices");
        json_open(&w, '[');
        json_close(&w, ']');
        put_usage(&w, a);
        json_close(&w, '}');
        str_puts(out, "\n\n");
    }
    str_puts(out, "data: [DONE]\n\n");
}
