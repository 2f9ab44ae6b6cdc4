// GET /health, /health/ready, /version, /metrics: how the server is.
#include "serve/internal.h"

#include "base/clock.h"
#include "base/version.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

const int statuses[] = {200, 204, 400, 401, 403, 404, 405, 408, 409, 413,
                        414, 415, 417, 429, 431, 500, 503, 505, 0};

int status_index(int status) {
    int i = 0;
    while (statuses[i] && statuses[i] != status) i++;
    return i;
}

void handle_health(struct server *s, struct conn *c, const struct http_request *r) {
    struct str body;
    (void)r;
    bool failed = false;
    for (struct version *v = NULL; (v = models_next(&s->models, v));)
        for (size_t i = 0; i < v->entry.num_devices; i++) {
            struct engine_stats stats;
            engine_stats(v->engines[i], &stats);
            failed |= stats.failed;
        }
    str_init(&body, 256);
    str_printf(&body, "{\"status\":\"%s\"}", failed ? "failed" : "ok");
    reply_json(c, failed ? 503 : 200, &body);
    str_free(&body);
}

void handle_ready(struct server *s, struct conn *c, const struct http_request *r) {
    const bool ready = !s->draining && models_next(&s->models, NULL);
    const char *body = ready ? "{\"status\":\"ready\"}" : "{\"status\":\"not ready\"}";
    (void)r;
    conn_reply(c, ready ? 200 : 503, "application/json", NULL, body, strlen(body));
}

void handle_version(struct server *s, struct conn *c, const struct http_request *r) {
    static const char body[] = "{\"version\":\"" RWKV_VERSION "\",\"name\":\"rwkv\"}";
    (void)s, (void)r;
    conn_reply(c, 200, "application/json", NULL, body, strlen(body));
}

// ---- metrics: Prometheus' text format ----------------------------------------------------------

static void begin(struct str *out, const char *name, const char *type, const char *help) {
    str_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

// A label's value: names come from the configuration.
static void put_label(struct str *out, const char *text) {
    for (; *text; text++) {
        if (*text == '\\' || *text == '"') str_putc(out, '\\');
        if (*text == '\n')
            str_puts(out, "\\n");
        else
            str_putc(out, *text);
    }
}

static void put_models(struct server *s, struct str *out) {
    struct row {
        const char *name, *type, *help;
    };
    static const struct row rows[] = {
        {"rwkv_requests_running", "gauge", "Sequences that have a slot."},
        {"rwkv_requests_waiting", "gauge", "Sequences that wait for a slot."},
        {"rwkv_requests_parked", "gauge", "Sequences whose reader is slow."},
        {"rwkv_slots_used", "gauge", "Slots in use."},
        {"rwkv_slots", "gauge", "Slots there are."},
        {"rwkv_model_bytes", "gauge", "Memory of parameters and states."},
        {"rwkv_steps_total", "counter", "Steps of the engine."},
        {"rwkv_step_seconds_total", "counter", "Time spent in steps."},
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        begin(out, rows[k].name, rows[k].type, rows[k].help);
        for (struct version *v = NULL; (v = models_next(&s->models, v));) {
            for (size_t i = 0; i < v->entry.num_devices; i++) {
                struct engine_stats t;
                engine_stats(v->engines[i], &t);
                const double values[] = {t.running,        t.waiting,
                                         t.parked,         t.running,
                                         t.max_batch_size, (double)(t.model_bytes + t.state_bytes),
                                         (double)t.steps,  t.step_seconds};
                str_printf(out, "%s{model=\"", rows[k].name);
                put_label(out, v->entry.name);
                str_printf(out, "\",device=\"%lld\"} %.15g\n", (long long)v->entry.device_ids[i],
                           values[k]);
            }
        }
    }
}

static void put_counters(struct server *s, struct str *out) {
    static const struct {
        const char *name, *help;
    } rows[] = {{"rwkv_model_requests_total", "Requests that a model took."},
                {"rwkv_requests_canceled_total", "Sequences ended because the client was gone."},
                {"rwkv_prompt_tokens_total", "Tokens of prompts that were read."},
                {"rwkv_generated_tokens_total", "Tokens that were generated."},
                {"rwkv_model_reloads_total", "Times a new version took over."}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        begin(out, rows[k].name, "counter", rows[k].help);
        for (int i = 0; i < s->models.num_counters; i++) {
            const struct model_counters *c = &s->models.counters[i]->c;
            const uint64_t values[] = {c->requests, c->canceled, c->prompt_tokens,
                                       c->generated_tokens, c->reloads};
            str_printf(out, "%s{model=\"", rows[k].name);
            put_label(out, s->models.counters[i]->name);
            str_printf(out, "\"} %llu\n", (unsigned long long)values[k]);
        }
    }
}

static void put_responses(struct server *s, struct str *out) {
    begin(out, "rwkv_requests_total", "counter", "Responses by route and status.");
    for (size_t i = 0; i < SERVER_MAX_ROUTES; i++) {
        for (size_t k = 0; k < SERVER_STATUSES; k++) {
            if (!s->responses[i][k]) continue;
            str_printf(out, "rwkv_requests_total{route=\"%s\",code=\"%d\"} %llu\n",
                       routes[i].method ? routes[i].path : "other", statuses[k],
                       (unsigned long long)s->responses[i][k]);
        }
        if (!routes[i].method) break;
    }
}

static void put_summary(struct str *out, const char *name, const char *help, const struct hist *h) {
    static const double quantiles[] = {0.5, 0.9, 0.99};
    begin(out, name, "summary", help);
    for (size_t i = 0; i < sizeof quantiles / sizeof quantiles[0]; i++)
        str_printf(out, "%s{quantile=\"%g\"} %.9g\n", name, quantiles[i],
                   hist_quantile(h, quantiles[i]) * 1e-6);
    str_printf(out, "%s_sum %.9g\n%s_count %llu\n", name, h->sum * 1e-6, name,
               (unsigned long long)h->count);
}

static void put_process(struct server *s, struct str *out) {
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &resident) != 2) resident = 0;
    if (f) fclose(f);
    begin(out, "rwkv_connections", "gauge", "Open connections.");
    str_printf(out, "rwkv_connections %zu\n", s->num_clients);
    begin(out, "rwkv_connections_refused_total", "counter", "Connections over the limit.");
    str_printf(out, "rwkv_connections_refused_total %llu\n",
               (unsigned long long)s->refused_connections);
    begin(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
    str_printf(out, "process_resident_memory_bytes %lld\n",
               (long long)resident * sysconf(_SC_PAGESIZE));
    begin(out, "process_start_time_seconds", "gauge", "When the process began, in Unix time.");
    str_printf(out, "process_start_time_seconds %.3f\n", (double)s->started_ms * 1e-3);
}

void handle_metrics(struct server *s, struct conn *c, const struct http_request *r) {
    struct str out;
    (void)r;
    str_init(&out, 64 << 20);
    put_models(s, &out);
    put_counters(s, &out);
    put_responses(s, &out);
    put_summary(&out, "rwkv_time_to_first_token_seconds", "From a request to its first token.",
                &s->first_token_us);
    put_summary(&out, "rwkv_inter_token_seconds", "Between tokens of an answer.", &s->token_us);
    put_summary(&out, "rwkv_request_seconds", "From a request to its last token.", &s->request_us);
    put_process(s, &out);
    conn_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", NULL, out.data, out.len);
    str_free(&out);
}
