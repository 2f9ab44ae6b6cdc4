#include "bench_result.h"

#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON = 1 << 30, MAX_REQUESTS = 10000000 };

const char *const bench_latency_keys[NUM_LATENCIES] = {"ttft_ms", "itl_ms", "tpot_ms", "e2el_ms",
                                                       "start_lag_ms"};

// ---- figures -----------------------------------------------------------------------------------

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t count, double percent) {
    const double rank = percent / 100 * (double)(count - 1);
    const size_t below = (size_t)rank;
    if (below + 1 >= count) return sorted[count - 1];
    return sorted[below] + (rank - (double)below) * (sorted[below + 1] - sorted[below]);
}

struct bench_spread bench_spread_of(double *values, size_t count) {
    double sum = 0;
    if (!count) return (struct bench_spread){0};
    qsort(values, count, sizeof *values, ascending);
    for (size_t i = 0; i < count; i++) sum += values[i];
    return (struct bench_spread){
        .mean = sum / (double)count,
        .p50 = percentile(values, count, 50),
        .p90 = percentile(values, count, 90),
        .p95 = percentile(values, count, 95),
        .p99 = percentile(values, count, 99),
        .max = values[count - 1],
        .count = count,
    };
}

double *bench_collect(size_t *count, const struct bench_result *r, enum bench_latency what) {
    size_t most = 1, n = 0;
    for (size_t i = 0; i < r->count; i++) most += what == ITL ? r->requests[i].num_itl : 1;
    double *const all = mem_alloc(most * sizeof *all);
    for (size_t i = 0; i < r->count; i++) {
        const struct load_request *q = &r->requests[i];
        if (q->fault != LOAD_OK) continue;
        switch (what) {
        case TTFT: all[n++] = 1e3 * q->ttft_s; break;
        case ITL:
            for (size_t k = 0; k < q->num_itl; k++) all[n++] = 1e3 * (double)q->itl_s[k];
            break;
        case TPOT: // of one token there is none
            if (q->tpot_s > 0) all[n++] = 1e3 * q->tpot_s;
            break;
        case E2EL: all[n++] = 1e3 * q->e2el_s; break;
        case LAG: all[n++] = 1e3 * q->lag_s; break;
        case NUM_LATENCIES: break;
        }
    }
    *count = n;
    return all;
}

static bool is_good(const struct bench_config *c, const struct load_request *q) {
    return q->fault == LOAD_OK && (c->slo_ttft_ms <= 0 || 1e3 * q->ttft_s <= c->slo_ttft_ms) &&
           (c->slo_tpot_ms <= 0 || 1e3 * q->tpot_s <= c->slo_tpot_ms);
}

void bench_summarise(struct bench_result *r) {
    struct bench_summary *s = &r->summary;
    const double wall = r->cost.duration_s > 1e-9 ? r->cost.duration_s : 1e-9;
    *s = (struct bench_summary){0};
    for (size_t i = 0; i < r->count; i++) {
        const struct load_request *q = &r->requests[i];
        s->faults[q->fault]++;
        s->good += is_good(&r->config, q);
        if (q->fault != LOAD_OK) continue;
        if (q->prompt_tokens > 0) s->prompt_tokens += q->prompt_tokens;
        if (q->output_tokens > 0) s->output_tokens += q->output_tokens;
        s->chunks += q->chunks;
        s->counted += q->counted;
        s->unknown += q->output_tokens < 0;
    }
    s->completed = s->faults[LOAD_OK];
    s->unsent = s->faults[LOAD_UNSENT];
    s->failed = r->count - s->completed - s->unsent;
    s->request_throughput = (double)s->completed / wall;
    s->output_token_throughput = (double)s->output_tokens / wall;
    s->total_token_throughput = (double)(s->output_tokens + s->prompt_tokens) / wall;
    s->chunk_throughput = (double)s->chunks / wall;
    for (int i = 0; i < NUM_LATENCIES; i++) {
        size_t count;
        double *values = bench_collect(&count, r, (enum bench_latency)i);
        s->ms[i] = bench_spread_of(values, count);
        free(values);
    }
}

// ---- JSON: the configuration -------------------------------------------------------------------

enum kind { TEXT, INT, FLOAT, BOOL };

// In this order, the keys of the reference first. An api key is no row: it doesn't go to disk.
static const struct {
    const char *key;
    enum kind kind;
    size_t at;
} config_rows[] = {
#define ROW(name, kind)                                                                            \
    { #name, kind, offsetof(struct bench_config, name) }
    ROW(base_url, TEXT),     ROW(model, TEXT),         ROW(endpoint, TEXT),
    ROW(num_requests, INT),  ROW(concurrency, INT),    ROW(request_rate, FLOAT),
    ROW(input_tokens, INT),  ROW(output_tokens, INT),  ROW(stream, BOOL),
    ROW(temperature, FLOAT), ROW(timeout_secs, FLOAT), ROW(arrivals, TEXT),
    ROW(warmup, INT),        ROW(seed, INT),           ROW(connections_idle, INT),
    ROW(slo_ttft_ms, FLOAT), ROW(slo_tpot_ms, FLOAT),  ROW(extra_body, TEXT),
#undef ROW
};

enum { NUM_CONFIG_ROWS = sizeof config_rows / sizeof config_rows[0] };

static void put_text(struct json_writer *w, const char *key, const char *text) {
    json_put_key(w, key);
    if (text)
        json_put_text(w, text, strlen(text));
    else
        json_put_null(w);
}

static void put_int(struct json_writer *w, const char *key, int64_t value) {
    json_put_key(w, key);
    json_put_int(w, value);
}

static void put_float(struct json_writer *w, const char *key, double value) {
    json_put_key(w, key);
    json_put_float(w, value);
}

// Whole microseconds: what is beyond them is noise, and three digits more of each number.
static double micro(double s) {
    return round(s * 1e6) / 1e6;
}

static void put_config(struct json_writer *w, const struct bench_config *c) {
    json_put_key(w, "config");
    json_open(w, '{');
    for (int i = 0; i < NUM_CONFIG_ROWS; i++) {
        const void *at = (const char *)c + config_rows[i].at;
        switch (config_rows[i].kind) {
        case TEXT: put_text(w, config_rows[i].key, *(const char *const *)at); break;
        case INT: put_int(w, config_rows[i].key, *(const int64_t *)at); break;
        case FLOAT: put_float(w, config_rows[i].key, *(const double *)at); break;
        case BOOL:
            json_put_key(w, config_rows[i].key);
            json_put_bool(w, *(const bool *)at);
            break;
        }
    }
    json_put_key(w, "metadata");
    json_open(w, '{');
    for (size_t i = 0; i < c->num_metadata; i++) {
        const char *const equals = strchr(c->metadata[i], '=');
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)(equals - c->metadata[i]), c->metadata[i]);
        put_text(w, key, equals + 1);
    }
    json_close(w, '}');
    json_close(w, '}');
}

// ---- JSON: the figures -------------------------------------------------------------------------

static void put_spread(struct json_writer *w, const char *key, const struct bench_spread *s) {
    json_put_key(w, key);
    json_open(w, '{');
    put_float(w, "p50", micro(s->p50));
    put_float(w, "p90", micro(s->p90));
    put_float(w, "p95", micro(s->p95));
    put_float(w, "p99", micro(s->p99));
    put_float(w, "max", micro(s->max));
    put_int(w, "count", (int64_t)s->count);
    json_close(w, '}');
}

static void put_goodput(struct json_writer *w, const struct bench_result *r) {
    const struct bench_summary *s = &r->summary;
    json_put_key(w, "goodput");
    if (r->config.slo_ttft_ms <= 0 && r->config.slo_tpot_ms <= 0) {
        json_put_null(w);
        return;
    }
    const size_t tried = s->completed + s->failed;
    json_open(w, '{');
    put_int(w, "good_requests", (int64_t)s->good);
    put_float(w, "good_share", tried ? (double)s->good / (double)tried : 0);
    put_float(w, "request_goodput",
              r->cost.duration_s > 0 ? (double)s->good / r->cost.duration_s : 0);
    json_close(w, '}');
}

static const char *token_source(const struct bench_summary *s) {
    if (s->unknown) return s->unknown == s->completed ? "unknown" : "mixed";
    return !s->counted ? "usage" : s->counted == s->completed ? "chunks" : "mixed";
}

static void put_client(struct json_writer *w, const struct bench_result *r) {
    const struct load_cost *c = &r->cost;
    json_put_key(w, "client");
    json_open(w, '{');
    put_float(w, "cpu_s", micro(c->cpu_s));
    put_float(w, "cpu_share", c->duration_s > 0 ? micro(c->cpu_s / c->duration_s) : 0);
    put_int(w, "peak_in_flight", (int64_t)c->peak_in_flight);
    put_int(w, "connects", (int64_t)c->connects);
    put_int(w, "retries", (int64_t)c->retries);
    put_int(w, "idle_connections_open", (int64_t)c->idle_open);
    put_int(w, "idle_connections_closed", (int64_t)c->idle_closed);
    put_float(w, "words_per_token", r->words_per_token);
    json_put_key(w, "interrupted");
    json_put_bool(w, c->interrupted);
    json_close(w, '}');
}

static void put_summary(struct json_writer *w, const struct bench_result *r) {
    static const char *const means[] = {"mean_ttft_ms", "mean_itl_ms", "mean_tpot_ms",
                                        "mean_e2el_ms"};
    const struct bench_summary *s = &r->summary;
    const size_t tried = s->completed + s->failed;
    json_put_key(w, "summary");
    json_open(w, '{');
    put_int(w, "completed", (int64_t)s->completed);
    put_int(w, "failed", (int64_t)s->failed);
    put_float(w, "duration_s", micro(r->cost.duration_s));
    put_float(w, "request_throughput", s->request_throughput);
    put_float(w, "output_token_throughput", s->output_token_throughput);
    put_float(w, "total_token_throughput", s->total_token_throughput);
    for (int i = TTFT; i <= E2EL; i++) put_float(w, means[i], micro(s->ms[i].mean));
    for (int i = 0; i < NUM_LATENCIES; i++) put_spread(w, bench_latency_keys[i], &s->ms[i]);
    put_float(w, "error_rate", tried ? (double)s->failed / (double)tried : 0);
    json_put_key(w, "error_buckets");
    json_open(w, '{');
    for (int i = LOAD_UNSENT + 1; i < LOAD_NUM_FAULTS; i++)
        put_int(w, load_fault_names[i], (int64_t)s->faults[i]);
    json_close(w, '}');
    put_int(w, "unsent", (int64_t)s->unsent);
    put_int(w, "prompt_tokens", s->prompt_tokens);
    put_int(w, "output_tokens", s->output_tokens);
    put_text(w, "token_source", token_source(s));
    put_int(w, "chunks", s->chunks);
    put_float(w, "chunk_throughput", s->chunk_throughput);
    put_goodput(w, r);
    put_client(w, r);
    json_close(w, '}');
}

static void put_request(struct json_writer *w, size_t id, const struct load_request *q) {
    json_open(w, '{');
    put_int(w, "request_id", (int64_t)id);
    json_put_key(w, "success");
    json_put_bool(w, q->fault == LOAD_OK);
    put_text(w, "error", q->error);
    put_int(w, "prompt_tokens", q->prompt_tokens > 0 ? q->prompt_tokens : 0);
    put_int(w, "output_tokens", q->output_tokens > 0 ? q->output_tokens : 0);
    put_float(w, "ttft_s", micro(q->ttft_s));
    json_put_key(w, "itl_s");
    json_open(w, '[');
    for (size_t i = 0; i < q->num_itl; i++) json_put_float(w, micro((double)q->itl_s[i]));
    json_close(w, ']');
    put_float(w, "tpot_s", micro(q->tpot_s));
    put_float(w, "e2el_s", micro(q->e2el_s));
    put_float(w, "start_s", micro(q->start_s));
    put_float(w, "start_lag_s", micro(q->lag_s));
    put_int(w, "status", q->status);
    put_int(w, "chunks", q->chunks);
    put_text(w, "fault", q->fault == LOAD_OK ? NULL : load_fault_names[q->fault]);
    put_text(w, "token_source", q->output_tokens < 0 ? "unknown" : q->counted ? "chunks" : "usage");
    json_close(w, '}');
}

int bench_result_write(const struct bench_result *r, const char *path, struct error *err) {
    struct str text;
    struct json_writer w = {.out = &text};
    char *const dir = path_dir(path);
    int rc = -1;
    str_init(&text, MAX_JSON);
    json_open(&w, '{');
    put_text(&w, "started_at_utc", r->started_at);
    put_text(&w, "finished_at_utc", r->finished_at);
    put_config(&w, &r->config);
    put_float(&w, "duration_s", micro(r->cost.duration_s));
    put_summary(&w, r);
    json_put_key(&w, "requests");
    json_open(&w, '[');
    for (size_t i = 0; i < r->count; i++) {
        if (r->requests[i].fault == LOAD_UNSENT) continue;
        str_putc(&text, '\n'); // a request a line, for people and for line tools
        put_request(&w, i, &r->requests[i]);
    }
    json_close(&w, ']');
    json_close(&w, '}');
    str_putc(&text, '\n');
    if (json_done(&w))
        fail(err, E_LIMIT, "%s: more than %d bytes of JSON; take fewer requests", path, MAX_JSON);
    else if (file_mkdirs(dir, err) == 0)
        rc = file_replace(path, text.data, text.len, err);
    free(dir);
    str_free(&text);
    return rc;
}

// ---- reading it again --------------------------------------------------------------------------

static double number_of(const struct json *object, const char *key, double otherwise) {
    double value;
    const struct json *v = json_member(object, key);
    if (!v || json_read_float(&value, v, -1e18, 1e18, key, NULL)) return otherwise;
    return value;
}

static int64_t count_of(const struct json *object, const char *key, int64_t otherwise) {
    int64_t value;
    const struct json *v = json_member(object, key);
    if (!v || json_read_int(&value, v, 0, INT64_C(1) << 53, key, NULL)) return otherwise;
    return value;
}

static const char *text_of(const struct json *object, const char *key) {
    const char *text;
    size_t len;
    const struct json *v = json_member(object, key);
    return v && json_read_text(&text, &len, v, key, NULL) == 0 ? text : NULL;
}

static bool bool_of(const struct json *object, const char *key) {
    bool value = false;
    const struct json *v = json_member(object, key);
    return v && json_read_bool(&value, v, key, NULL) == 0 && value;
}

static void read_config(struct bench_config *c, const struct json *from) {
    for (int i = 0; i < NUM_CONFIG_ROWS; i++) {
        void *at = (char *)c + config_rows[i].at;
        const char *const key = config_rows[i].key;
        switch (config_rows[i].kind) {
        case TEXT: *(const char **)at = text_of(from, key); break;
        case INT: *(int64_t *)at = count_of(from, key, 0); break;
        case FLOAT: *(double *)at = number_of(from, key, 0); break;
        case BOOL: *(bool *)at = bool_of(from, key); break;
        }
    }
}

static enum load_fault fault_named(const char *name) {
    for (int i = LOAD_UNSENT + 1; name && i < LOAD_NUM_FAULTS; i++)
        if (!strcmp(load_fault_names[i], name)) return (enum load_fault)i;
    return LOAD_OTHER;
}

static void read_request(struct load_request *q, const struct json *from) {
    const struct json *gaps = json_member(from, "itl_s");
    const char *const error = text_of(from, "error"), *const source = text_of(from, "token_source");
    q->fault = bool_of(from, "success") ? LOAD_OK : fault_named(text_of(from, "fault"));
    q->error = error ? mem_strdup(error) : NULL;
    q->prompt_tokens = count_of(from, "prompt_tokens", -1);
    q->output_tokens = count_of(from, "output_tokens", -1);
    q->ttft_s = number_of(from, "ttft_s", 0);
    q->tpot_s = number_of(from, "tpot_s", 0);
    q->e2el_s = number_of(from, "e2el_s", 0);
    q->start_s = number_of(from, "start_s", 0);
    q->lag_s = number_of(from, "start_lag_s", 0);
    q->status = (int)count_of(from, "status", 0);
    q->counted = !source || !strcmp(source, "chunks");
    if (source && !strcmp(source, "unknown")) q->output_tokens = -1;
    if (gaps && json_kind(gaps) == JSON_KIND_ARRAY) {
        q->num_itl = json_length(gaps);
        q->itl_s = mem_zero(q->num_itl + 1, sizeof *q->itl_s);
        for (size_t i = 0; i < q->num_itl; i++) {
            double gap = 0;
            json_read_float(&gap, json_item(gaps, i), 0, 1e9, "itl_s", NULL);
            q->itl_s[i] = (float)gap;
        }
    }
    // The reference's files don't tell; there each gap is one behind the first.
    q->chunks = count_of(from, "chunks", q->num_itl ? (int64_t)q->num_itl + 1 : 0);
}

static void read_cost(struct bench_result *r, const struct json *root) {
    const struct json *summary = json_member(root, "summary");
    const struct json *client = summary ? json_member(summary, "client") : NULL;
    r->cost.duration_s = number_of(root, "duration_s", 0);
    if (!client || json_kind(client) != JSON_KIND_OBJECT) return;
    r->cost.cpu_s = number_of(client, "cpu_s", 0);
    r->cost.peak_in_flight = (size_t)count_of(client, "peak_in_flight", 0);
    r->cost.connects = (size_t)count_of(client, "connects", 0);
    r->cost.retries = (size_t)count_of(client, "retries", 0);
    r->cost.idle_open = (size_t)count_of(client, "idle_connections_open", 0);
    r->cost.idle_closed = (size_t)count_of(client, "idle_connections_closed", 0);
    r->cost.interrupted = bool_of(client, "interrupted");
    r->words_per_token = number_of(client, "words_per_token", 0);
}

int bench_result_read(struct bench_result *r, const char *path, struct error *err) {
    struct str text;
    *r = (struct bench_result){0};
    str_init(&text, MAX_JSON);
    int rc = file_read(&text, path, err);
    if (rc == 0) rc = json_parse(&r->source, text.data, text.len, MAX_JSON, path, err);
    str_free(&text);
    if (rc) return -1;
    const struct json *root = r->source, *config = NULL, *summary = NULL, *requests = NULL;
    if (json_kind(root) == JSON_KIND_OBJECT) {
        config = json_member(root, "config");
        summary = json_member(root, "summary");
        requests = json_member(root, "requests");
    }
    if (!config || json_kind(config) != JSON_KIND_OBJECT || !summary ||
        json_kind(summary) != JSON_KIND_OBJECT || !requests ||
        json_kind(requests) != JSON_KIND_ARRAY || json_length(requests) > MAX_REQUESTS) {
        bench_result_free(r);
        return fail(
            err, E_FORMAT,
            "%s: not what `rwkv bench serve` writes: config, summary or requests is missing", path);
    }
    const char *started = text_of(root, "started_at_utc"),
               *ended = text_of(root, "finished_at_utc");
    snprintf(r->started_at, sizeof r->started_at, "%s", started ? started : "?");
    snprintf(r->finished_at, sizeof r->finished_at, "%s", ended ? ended : "?");
    read_config(&r->config, config);
    read_cost(r, root);
    r->count = json_length(requests);
    r->requests = mem_zero(r->count + 1, sizeof *r->requests);
    for (size_t i = 0; i < r->count; i++) {
        const struct json *q = json_item(requests, i);
        if (json_kind(q) != JSON_KIND_OBJECT) {
            bench_result_free(r);
            return fail(err, E_FORMAT, "%s: requests[%zu] is no object", path, i);
        }
        read_request(&r->requests[i], q);
        r->timed |= json_member(q, "start_s") != NULL;
    }
    bench_summarise(r);
    return 0;
}

void bench_result_free(struct bench_result *r) {
    for (size_t i = 0; r->requests && i < r->count; i++) load_request_free(&r->requests[i]);
    free(r->requests);
    json_free(r->source);
    *r = (struct bench_result){0};
}
