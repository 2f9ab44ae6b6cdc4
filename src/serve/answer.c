#include "serve/answer.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/hist.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/version.h"
#include "serve/fault.h"
#include "serve/secret.h"
#include "text/think.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PARK_ABOVE = 256 << 10, // bytes that a reader may be behind
    MAX_TEXT = 1 << 30,     // of one answer
    DEFAULT_MAX_TOKENS = 256,
};

// One prompt and what came of it.
struct choice {
    struct engine_job job;
    struct answer *answer;
    int engine; // of the version
    int32_t *tokens, *candidates;
    bool begins_document; // token 0 stands before the prompt's text
    bool done, told;      // finished; and its finish_reason said
    enum engine_finish finish;
    struct think think;
    struct str text, thoughts; // to be said: all of it, or since the last chunk
    int prompt_tokens, generated, thought_tokens;
    // Logprobs to be said, as fragments of JSON: chat uses `content`, completions the other four.
    struct str content, lp_tokens, lp_values, lp_tops, lp_offsets;
    size_t offset; // code points of text before the next token
};

struct answer {
    struct answers *all;
    struct conn *conn; // NULL: the client is gone
    struct version *version;
    struct request request;
    struct choice *choices;
    int num_choices, num_open; // jobs in flight
    char id[48];
    int64_t created_s;
    double begin_s, first_s, last_s; // of the request, and of its first and last token
    int64_t written_ms;              // when something was last written to the stream
    bool streaming, parked, is_dirty;
    char error[200]; // a stream that breaks says why
    struct answer *next_dirty;
};

// ---- JSON --------------------------------------------------------------------------------------

static void put(struct json_writer *w, const char *key, const char *text) {
    json_put_key(w, key);
    json_put_text(w, text, strlen(text));
}

static const char *reason_of(enum engine_finish finish) {
    return finish == ENGINE_LENGTH ? "length" : "stop";
}

// id, object, created, model, system_fingerprint; the object stays open.
static void put_beginning(struct json_writer *w, const struct answer *a, const char *object) {
    char fingerprint[64];
    snprintf(fingerprint, sizeof fingerprint, "rwkv-%s-%08x", RWKV_VERSION,
             (unsigned)engine_model_hash(a->version->engines[0]));
    json_open(w, '{');
    put(w, "id", a->id);
    put(w, "object", object);
    json_put_key(w, "created");
    json_put_int(w, a->created_s);
    put(w, "model", a->request.model);
    put(w, "system_fingerprint", fingerprint);
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

// Adds one token to what is to be said. e NULL: the prompt's first token, which has no probability.
static void add_logprobs(struct choice *c, int32_t token, const struct engine_logprob *e) {
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

static void say_whole(struct answer *a) {
    const bool chat = a->request.kind == REQUEST_CHAT;
    struct str body;
    str_init(&body, SIZE_MAX / 2);
    struct json_writer w = {.out = &body};
    put_beginning(&w, a, chat ? "chat.completion" : "text_completion");
    json_put_key(&w, "choices");
    json_open(&w, '[');
    for (int i = 0; i < a->num_choices; i++) put_whole_choice(&w, &a->choices[i]);
    json_close(&w, ']');
    put_usage(&w, a);
    json_close(&w, '}');
    struct conn *c = a->conn;
    a->conn = NULL;
    conn_reply(c, 200, "application/json", NULL, body.data, body.len);
    str_free(&body);
}

enum chunk_kind { CHUNK_ROLE, CHUNK_TEXT, CHUNK_FINISH };

static void put_chunk(struct str *out, struct choice *c, enum chunk_kind kind) {
    const struct answer *a = c->answer;
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
        if (kind == CHUNK_ROLE) put(&w, "role", "assistant");
        if (kind == CHUNK_TEXT && c->thoughts.len) {
            json_put_key(&w, "reasoning_content");
            json_put_text(&w, c->thoughts.data, c->thoughts.len);
        }
        if (kind == CHUNK_ROLE || (kind == CHUNK_TEXT && (c->text.len || !c->thoughts.len))) {
            json_put_key(&w, "content");
            json_put_text(&w, c->text.data, kind == CHUNK_ROLE ? 0 : c->text.len);
        }
        json_close(&w, '}');
    } else {
        json_put_key(&w, "text");
        json_put_text(&w, c->text.data, kind == CHUNK_TEXT ? c->text.len : 0);
    }
    if (kind == CHUNK_TEXT) {
        put_logprobs(&w, c);
        str_clear(&c->text);
        str_clear(&c->thoughts);
    } else {
        json_put_key(&w, "logprobs");
        json_put_null(&w);
    }
    put_finish(&w, kind == CHUNK_FINISH ? c->finish : ENGINE_NOT_YET);
    json_close(&w, '}');
    json_close(&w, ']');
    if (a->request.include_usage) {
        json_put_key(&w, "usage");
        json_put_null(&w);
    }
    json_close(&w, '}');
    str_puts(out, "\n\n");
}

static void put_last(struct str *out, struct answer *a) {
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

static struct str scratch; // what is being said; reused

static void park_all(struct answer *a, bool parked) {
    a->parked = parked;
    for (int i = 0; i < a->num_choices; i++)
        if (!a->choices[i].done)
            engine_park(a->version->engines[a->choices[i].engine], &a->choices[i].job, parked);
}

static void say_chunks(struct answer *a) {
    str_clear(&scratch);
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        if (c->text.len || c->thoughts.len || c->content.len || c->lp_tokens.len)
            put_chunk(&scratch, c, CHUNK_TEXT);
        if (c->done && !c->told && !*a->error) put_chunk(&scratch, c, CHUNK_FINISH);
        c->told |= c->done;
    }
    struct conn *c = a->conn;
    if (!a->num_open && *a->error) {
        struct fault f = {0};
        fault_set(&f, 500, "engine_failed", NULL, "%s", a->error);
        str_puts(&scratch, "data: ");
        fault_write(&scratch, &f);
        str_puts(&scratch, "\n\n");
    } else if (!a->num_open) {
        put_last(&scratch, a);
    }
    if (!scratch.len) return;
    a->written_ms = clock_ns() / 1000000;
    if (!a->num_open) a->conn = NULL;
    conn_stream_write(c, scratch.data, scratch.len);
    if (!a->num_open)
        conn_stream_end(c);
    else if (!a->parked && conn_queued(c) > PARK_ABOVE)
        park_all(a, true);
}

// ---- the client --------------------------------------------------------------------------------

static void on_gone(void *ctx) {
    struct answer *a = ctx;
    a->conn = NULL;
    for (int i = 0; i < a->num_choices; i++)
        if (!a->choices[i].done)
            engine_cancel(a->version->engines[a->choices[i].engine], &a->choices[i].job);
}

static void on_drained(void *ctx) {
    struct answer *a = ctx;
    if (a->parked) park_all(a, false);
}

static void on_tick(void *ctx, int64_t now_ms) {
    struct answer *a = ctx;
    (void)now_ms;
    const int64_t now = clock_ns() / 1000000;
    if (!a->streaming || a->parked || now - a->written_ms < a->all->keep_alive_ms) return;
    a->written_ms = now;
    conn_stream_write(a->conn, ": keep-alive\n\n", 14);
}

// ---- events ------------------------------------------------------------------------------------

static void answer_free(struct answer *a) {
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        struct str *all[] = {&c->text,      &c->thoughts, &c->content,   &c->lp_tokens,
                             &c->lp_values, &c->lp_tops,  &c->lp_offsets};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) str_free(all[k]);
        free(c->tokens);
        free(c->candidates);
    }
    free(a->choices);
    request_free(&a->request);
    free(a);
}

static void add_text(struct choice *c, const struct engine_event *e) {
    if (c->answer->request.kind != REQUEST_CHAT) {
        str_append(&c->text, e->text, e->text_len);
        return;
    }
    think_feed(&c->think, e->text, e->text_len, &c->thoughts, &c->text);
    if (e->finish) think_flush(&c->think, &c->thoughts, &c->text);
    if (e->generated_tokens && (c->think.stage == THINK_IN_TAG || c->think.stage == THINK_THOUGHTS))
        c->thought_tokens++;
}

static void note_times(struct answer *a, const struct engine_event *e) {
    if (!e->generated_tokens) return;
    const double now = clock_s();
    if (a->first_s == 0)
        hist_add(a->all->first_token_us, (uint64_t)((now - a->begin_s) * 1e6));
    else
        hist_add(a->all->token_us, (uint64_t)((now - a->last_s) * 1e6));
    if (a->first_s == 0) a->first_s = now;
    a->last_s = now;
}

static void finish_choice(struct choice *c, const struct engine_event *e) {
    struct answer *a = c->answer;
    c->done = true;
    c->finish = e->finish;
    a->num_open--;
    if (e->finish == ENGINE_FAILED || (e->finish == ENGINE_CANCELED && a->conn))
        snprintf(a->error, sizeof a->error, "%s", e->error ? e->error : "the server is going down");
    version_job_done(a->version, c->engine);
}

void answer_event(void *owner, const struct engine_event *e) {
    struct choice *c = owner;
    struct answer *a = c->answer;
    c->prompt_tokens += e->prompt_tokens;
    c->generated += e->generated_tokens;
    note_times(a, e);
    if (a->conn) {
        const size_t step =
            1 + (size_t)(c->job.top > 0 ? c->job.top : 0) + (size_t)c->job.num_candidates;
        for (int i = 0; i < e->num_logprobs; i++)
            add_logprobs(c, e->logprobs[(size_t)i * step].token, e->logprobs + (size_t)i * step);
        add_text(c, e);
    }
    if (e->finish) finish_choice(c, e);
    if (a->is_dirty) return;
    a->is_dirty = true;
    a->next_dirty = a->all->dirty;
    a->all->dirty = a;
}

static void say_failure(struct answer *a) {
    struct fault f = {0};
    struct conn *c = a->conn;
    fault_set(&f, 503, "engine_failed", NULL, "%s", a->error);
    a->conn = NULL;
    fault_reply(c, &f);
}

void answers_settle(struct answers *all) {
    while (all->dirty) {
        struct answer *a = all->dirty;
        all->dirty = a->next_dirty;
        a->is_dirty = false;
        if (a->conn && a->streaming)
            say_chunks(a);
        else if (a->conn && !a->num_open && *a->error)
            say_failure(a);
        else if (a->conn && !a->num_open)
            say_whole(a);
        if (a->num_open) continue;
        hist_add(all->request_us, (uint64_t)((clock_s() - a->begin_s) * 1e6));
        all->open--;
        version_unpin(a->version);
        answer_free(a);
    }
}

// ---- beginning ---------------------------------------------------------------------------------

static int too_long(struct fault *f, const struct version *v) {
    return fault_set(f, 400, "context_length_exceeded", "prompt",
                     "the prompt is longer than max_context_len %d of model %s allows",
                     v->entry.limits.max_context_len, v->entry.name);
}

// The prompt's tokens: a text's own after token 0, which begins a document.
static int tokenise(struct choice *c, const struct request_prompt *p, struct fault *f) {
    const struct version *v = c->answer->version;
    const struct tok *tok = engine_tok(v->engines[0]);
    const size_t most = (size_t)v->entry.limits.max_context_len;
    size_t used = 0, n = 0;
    if (p->text) {
        const size_t cap = p->len < most ? p->len : most;
        c->tokens = mem_zero(cap + 1, sizeof *c->tokens);
        c->begins_document = true;
        n = 1 + tok_encode_some(tok, p->text, p->len, c->tokens + 1, cap, &used);
        if (used < p->len) return too_long(f, v);
    } else {
        n = (size_t)p->num_tokens;
        if (n > most) return too_long(f, v);
        c->tokens = mem_zero(n, sizeof *c->tokens);
        memcpy(c->tokens, p->tokens, n * sizeof *c->tokens);
        for (size_t i = 0; i < n; i++)
            if (c->tokens[i] >= engine_vocab_size(v->engines[0]))
                return fault_set(f, 400, NULL, "prompt", "token id %d: the model has 0 to %d",
                                 c->tokens[i], engine_vocab_size(v->engines[0]) - 1);
    }
    const bool writes = c->answer->request.max_tokens != 0;
    if (n + writes > most) return too_long(f, v);
    c->job.prompt = c->tokens;
    c->job.num_prompt = (int)n;
    return 0;
}

static int find_candidates(struct choice *c, struct fault *f) {
    const struct request *r = &c->answer->request;
    const struct tok *tok = engine_tok(c->answer->version->engines[0]);
    c->candidates = mem_zero((size_t)r->num_candidates + 1, sizeof *c->candidates);
    for (int i = 0; i < r->num_candidates; i++) {
        const size_t len = strlen(r->candidates[i]);
        size_t used;
        if (tok_encode_some(tok, r->candidates[i], len, &c->candidates[i], 1, &used) != 1 ||
            used != len)
            return fault_set(f, 400, NULL, "candidate_token_texts",
                             "\"%.60s\" is not exactly one token", r->candidates[i]);
    }
    c->job.candidates = c->candidates;
    c->job.num_candidates = r->num_candidates;
    return 0;
}

static int check_bias(const struct answer *a, struct fault *f) {
    const int V = engine_vocab_size(a->version->engines[0]);
    for (int i = 0; i < a->request.num_bias; i++)
        if (a->request.bias[i].token >= V)
            return fault_set(f, 400, NULL, "logit_bias", "token id %d: the model has 0 to %d",
                             a->request.bias[i].token, V - 1);
    return 0;
}

static void fill_job(struct choice *c) {
    const struct request *r = &c->answer->request;
    struct engine_job *j = &c->job;
    const int room = c->answer->version->entry.limits.max_context_len - j->num_prompt;
    const int64_t wanted = r->max_tokens >= 0              ? r->max_tokens
                           : r->kind == REQUEST_COMPLETION ? DEFAULT_MAX_TOKENS
                                                           : room;
    j->max_tokens = (int)(wanted < room ? wanted : room);
    j->temperature = (float)r->temperature;
    j->top_p = (float)r->top_p;
    j->min_p = (float)r->min_p;
    j->top_k = (int32_t)r->top_k;
    j->presence = (float)r->presence;
    j->frequency = (float)r->frequency;
    j->repetition = (float)r->repetition;
    j->penalty_decay = (float)r->penalty_decay;
    j->seed = (uint64_t)r->seed;
    if (!r->has_seed) secret_random(&j->seed, sizeof j->seed);
    j->bias = r->bias;
    j->num_bias = r->num_bias;
    j->num_stops = r->num_stops;
    memcpy(j->stops, r->stops, sizeof r->stops);
    j->top = r->top;
    j->prompt_logprobs = r->echo && r->top >= 0;
    j->owner = c;
    think_begin(&c->think, r->thinks);
}

// The prompt itself comes first when asked for.
static void echo(struct choice *c) {
    const struct request *r = &c->answer->request;
    const struct tok *tok = engine_tok(c->answer->version->engines[0]);
    struct utf8 utf8 = {0};
    if (!r->echo) return;
    for (int i = 0; i < c->job.num_prompt; i++) {
        size_t len;
        const char *bytes = tok_bytes(tok, c->tokens[i], &len);
        utf8_feed(&utf8, bytes, len, &c->text);
    }
    utf8_flush(&utf8, &c->text);
    if (r->top >= 0 && !c->begins_document) add_logprobs(c, c->tokens[0], NULL);
}

static int prepare(struct answer *a, struct fault *f) {
    if (check_bias(a, f)) return -1;
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        struct str *all[] = {&c->text,      &c->thoughts, &c->content,   &c->lp_tokens,
                             &c->lp_values, &c->lp_tops,  &c->lp_offsets};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) str_init(all[k], MAX_TEXT);
        c->answer = a;
    }
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        if (tokenise(c, &a->request.prompts[i], f) || find_candidates(c, f)) return -1;
        fill_job(c);
        echo(c);
    }
    return 0;
}

// All jobs or none: those that were queued before the queue was full are taken back.
static int submit(struct answer *a, struct fault *f) {
    struct error err;
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        c->engine = version_submit(a->version, &c->job, &err);
        if (c->engine >= 0) {
            a->num_open++;
            continue;
        }
        for (int k = i; k < a->num_choices; k++) a->choices[k].done = true;
        return fault_set(f, 429, "rate_limit_exceeded", NULL, "%s; try again", err.msg);
    }
    return 0;
}

int answer_begin(struct answers *all, struct conn *conn, struct request *r, struct fault *f) {
    struct version *v = models_find(all->models, r->model);
    if (!v) {
        fault_set(f, 404, "model_not_found", "model",
                  "the model \"%s\" does not exist; GET /v1/models lists those that do", r->model);
        request_free(r);
        return -1;
    }
    struct answer *a = mem_zero(1, sizeof *a);
    *a = (struct answer){.all = all,
                         .version = v,
                         .request = *r,
                         .num_choices = (int)r->num_prompts,
                         .created_s = clock_unix_ms() / 1000,
                         .begin_s = clock_s()};
    secret_id(a->id, sizeof a->id, r->kind == REQUEST_CHAT ? "chatcmpl-" : "cmpl-");
    a->choices = mem_zero((size_t)a->num_choices, sizeof *a->choices);
    if (!scratch.max) str_init(&scratch, SIZE_MAX / 2);
    if (prepare(a, f)) {
        answer_free(a);
        return -1;
    }
    version_pin(v);
    all->open++;
    v->counters->requests++;
    if (submit(a, f)) {
        on_gone(a); // nobody listens: the jobs that were submitted end, and with them the answer
        if (a->num_open) return -1;
        all->open--;
        version_unpin(v);
        answer_free(a);
        return -1;
    }
    a->conn = conn;
    a->streaming = a->request.stream;
    conn_listen(conn, (struct conn_listener){a, on_gone, on_drained, on_tick});
    if (!a->streaming) return 0;
    conn_stream_begin(conn, "text/event-stream");
    a->written_ms = clock_ns() / 1000000;
    str_clear(&scratch);
    for (int i = 0; i < a->num_choices; i++) {
        if (a->request.kind == REQUEST_CHAT) put_chunk(&scratch, &a->choices[i], CHUNK_ROLE);
        if (a->choices[i].text.len) put_chunk(&scratch, &a->choices[i], CHUNK_TEXT);
    }
    conn_stream_write(conn, scratch.data, scratch.len);
    return 0;
}
