#include "serve/answer.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/hist.h"
#include "base/mem.h"
#include "serve/fault.h"
#include "serve/secret.h"
#include "serve/wire.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum {
    PARK_ABOVE = 256 << 10, // bytes that a reader may be behind
    MAX_TEXT = 1 << 30,     // of one answer
    DEFAULT_MAX_TOKENS = 256,
};

static struct str scratch; // what is being said; reused

static void park_all(struct answer *a, bool parked) {
    a->parked = parked;
    for (int i = 0; i < a->num_choices; i++)
        if (!a->choices[i].done)
            engine_park(a->version->engines[a->choices[i].engine], &a->choices[i].job, parked);
}

static void say_whole(struct answer *a) {
    struct conn *c = a->conn;
    str_clear(&scratch);
    wire_put_whole(&scratch, a);
    a->conn = NULL;
    conn_reply(c, 200, "application/json", NULL, scratch.data, scratch.len);
}

static void say_chunks(struct answer *a) {
    str_clear(&scratch);
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        if (c->text.len || c->thoughts.len || c->content.len || c->lp_tokens.len)
            wire_put_chunk(&scratch, c, WIRE_TEXT);
        if (c->done && !c->told && !*a->error) wire_put_chunk(&scratch, c, WIRE_FINISH);
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
        wire_put_last(&scratch, a);
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
        struct str *all[CHOICE_STRINGS];
        choice_strings(c, all);
        for (int k = 0; k < CHOICE_STRINGS; k++) str_free(all[k]);
        free(c->tokens);
        free(c->candidates);
    }
    free(a->choices);
    str_free(&a->beginning);
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
    if (a->all->now_s == 0) a->all->now_s = clock_s();
    const double now = a->all->now_s;
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
            wire_add_logprobs(c, e->logprobs[(size_t)i * step].token,
                              e->logprobs + (size_t)i * step);
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
    all->now_s = 0;
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
    c->job.num_held = utf8.num_held; // the text may complete it
    memcpy(c->job.held, utf8.held, sizeof c->job.held);
    if (r->top >= 0 && !c->begins_document) wire_add_logprobs(c, c->tokens[0], NULL);
}

static int prepare(struct answer *a, struct fault *f) {
    if (check_bias(a, f)) return -1;
    for (int i = 0; i < a->num_choices; i++) {
        struct choice *c = &a->choices[i];
        struct str *all[CHOICE_STRINGS];
        choice_strings(c, all);
        for (int k = 0; k < CHOICE_STRINGS; k++) str_init(all[k], MAX_TEXT);
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
    str_init(&a->beginning, 4096);
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
        if (a->request.kind == REQUEST_CHAT) wire_put_chunk(&scratch, &a->choices[i], WIRE_ROLE);
        if (a->choices[i].text.len) wire_put_chunk(&scratch, &a->choices[i], WIRE_TEXT);
    }
    conn_stream_write(conn, scratch.data, scratch.len);
    return 0;
}
