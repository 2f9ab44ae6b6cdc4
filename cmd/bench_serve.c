// A load test of any server that speaks OpenAI's API: what is sent, and what came of it.
#include "bench_result.h"
#include "cli.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PROGRESS_S = 5, NUM_PROBES = 2, MAX_INPUT = 1 << 20 };

// Prompts of what is measured begin at 0; nothing that came before may share them with it.
static const uint64_t warmup_id = UINT64_C(1) << 40, probe_id = UINT64_C(1) << 41;

// ---- options -----------------------------------------------------------------------------------

static const struct cli_option options[] = {
    {"base-url", "URL", .fallback = "http://127.0.0.1:8080", .help = "the server; http only"},
    {"model", "NAME", .required = true, .help = "which of its models"},
    {"endpoint", "NAME", .fallback = "completions", .choices = "completions|chat-completions",
     .help = "completions or chat-completions"},
    {"num-requests", "N", .fallback = "1000", .type = CLI_INT, .min = 1, .max = 1e7,
     .help = "how many are measured"},
    {"concurrency", "N", .fallback = "64", .type = CLI_INT, .min = 1, .max = 1e6,
     .help = "requests in flight at most; with a rate: no ceiling unless given"},
    {"request-rate", "R", .fallback = "0", .type = CLI_FLOAT, .min = -1e9, .max = 1e6,
     .help = "requests a second, however slow the answers; 0: each as soon as another ends"},
    {"poisson", .type = CLI_FLAG, .help = "a rate of random arrivals instead of even gaps"},
    {"input-tokens", "N", .fallback = "256", .type = CLI_INT, .min = 1, .max = MAX_INPUT,
     .help = "length of the prompts, by what the server counts"},
    {"output-tokens", "N", .fallback = "256", .type = CLI_INT, .min = 1, .max = 1e6,
     .help = "max_tokens of the answers"},
    {"stream", .type = CLI_FLAG, .help = "stream the answers: the default"},
    {"no-stream", .type = CLI_FLAG, .help = "take them whole"},
    {"temperature", "F", .fallback = "0", .type = CLI_FLOAT, .min = 0, .max = 2,
     .help = "0: greedy"},
    {"timeout-secs", "N", .fallback = "120", .type = CLI_FLOAT, .min = 0, .max = 86400,
     .help = "of a whole request; 0: none"},
    {"api-key", "K", .help = "sent as a Bearer token; never written down"},
    {"extra-body", "JSON", .help = "an object whose members every request gets"},
    {"warmup", "N", .fallback = "8", .type = CLI_INT, .min = 0, .max = 1e6,
     .help = "requests before those that are measured"},
    {"seed", "N", .fallback = "1", .type = CLI_INT, .min = 0, .max = 9007199254740991.0,
     .help = "of the prompts and of random arrivals"},
    {"no-calibration", .type = CLI_FLAG,
     .help = "take a word of the prompts for a token, without asking the server first"},
    {"slo-ttft-ms", "F", .fallback = "0", .type = CLI_FLOAT, .min = 0, .max = 1e9,
     .help = "a request is good if its first text comes within this; 0: any"},
    {"slo-tpot-ms", "F", .fallback = "0", .type = CLI_FLOAT, .min = 0, .max = 1e9,
     .help = "and if each further token takes no longer than this; 0: any"},
    {"connections-idle", "N", .fallback = "0", .type = CLI_INT, .min = 0, .max = 1e6,
     .help = "silent connections beside the requests"},
    {"metadata", "KEY=VALUE", .repeat = true, .help = "goes into the JSON, for later readers"},
    {"output-json", "FILE", .fallback = "logs/bench/serve.json", .help = "where the figures go"},
    {"report-dir", "DIR", .fallback = "logs/bench/serve-report", .help = "where the report goes"},
    {0},
};

struct test {
    const struct cli_args *args;
    struct load_options load;
    struct bench_result result;
    char *extra; // the members of --extra-body, without the braces
    int words;   // of a prompt
};

static int read_extra(struct test *t, struct error *err) {
    static const char *const ours[] = {"model",       "prompt", "messages",      "max_tokens",
                                       "temperature", "stream", "stream_options"};
    const char *const text = cli_string(t->args, "extra-body");
    struct json *root;
    int rc = 0;
    if (!text) return 0;
    if (json_parse(&root, text, strlen(text), 1 << 20, "--extra-body", err)) return -1;
    if (json_kind(root) != JSON_KIND_OBJECT)
        rc = fail(err, E_ARG, "--extra-body is %.100s, wanted an object: '{\"top_p\": 0.5}'", text);
    for (size_t i = 0; rc == 0 && i < sizeof ours / sizeof ours[0]; i++)
        if (json_member(root, ours[i]))
            rc = fail(err, E_ARG, "--extra-body has \"%s\", which has an option of its own",
                      ours[i]);
    if (rc == 0 && json_length(root)) {
        t->extra = mem_strdup(strchr(text, '{') + 1);
        *strrchr(t->extra, '}') = '\0';
    }
    json_free(root);
    return rc;
}

static int read_metadata(struct test *t, struct error *err) {
    struct bench_config *c = &t->result.config;
    c->num_metadata = cli_count(t->args, "metadata");
    c->metadata = cli_strings(t->args, "metadata");
    for (size_t i = 0; i < c->num_metadata; i++) {
        const char *const equals = strchr(c->metadata[i], '=');
        if (!equals || equals == c->metadata[i] || equals - c->metadata[i] > 100)
            return fail(err, E_ARG, "--metadata is \"%s\", wanted KEY=VALUE", c->metadata[i]);
        const size_t key_len = (size_t)(equals - c->metadata[i]) + 1;
        for (size_t k = 0; k < i; k++)
            if (!strncmp(c->metadata[i], c->metadata[k], key_len))
                return fail(err, E_ARG, "--metadata has %.*s twice", (int)key_len - 1,
                            c->metadata[i]);
    }
    return 0;
}

static int read_options(struct test *t, struct error *err) {
    const struct cli_args *args = t->args;
    struct bench_config *c = &t->result.config;
    const bool chat = !strcmp(cli_string(args, "endpoint"), "chat-completions");
    const double rate = cli_float(args, "request-rate");
    const char *const key = cli_string(args, "api-key");
    if (cli_flag(args, "stream") && cli_flag(args, "no-stream"))
        return fail(err, E_ARG, "--stream and --no-stream exclude each other");
    if (cli_flag(args, "poisson") && rate <= 0)
        return fail(err, E_ARG, "--poisson wants a --request-rate");
    for (const char *k = key; k && *k; k++)
        if (*k <= ' ' || *k > '~')
            return fail(err, E_ARG, "--api-key has a space or a byte that no header carries");
    *c = (struct bench_config){
        .base_url = cli_string(args, "base-url"),
        .model = cli_string(args, "model"),
        .endpoint = chat ? "chat_completions" : "completions",
        .arrivals = rate <= 0                   ? "closed"
                    : cli_flag(args, "poisson") ? "poisson"
                                                : "fixed",
        .extra_body = cli_string(args, "extra-body"),
        .num_requests = cli_int(args, "num-requests"),
        .concurrency =
            rate > 0 && !cli_given(args, "concurrency") ? 0 : cli_int(args, "concurrency"),
        .input_tokens = cli_int(args, "input-tokens"),
        .output_tokens = cli_int(args, "output-tokens"),
        .warmup = cli_int(args, "warmup"),
        .seed = cli_int(args, "seed"),
        .connections_idle = cli_int(args, "connections-idle"),
        .request_rate = rate > 0 ? rate : 0,
        .temperature = cli_float(args, "temperature"),
        .timeout_secs = cli_float(args, "timeout-secs"),
        .slo_ttft_ms = cli_float(args, "slo-ttft-ms"),
        .slo_tpot_ms = cli_float(args, "slo-tpot-ms"),
        .stream = !cli_flag(args, "no-stream"),
    };
    if (read_extra(t, err) || read_metadata(t, err)) return -1;
    t->load = (struct load_options){
        .plan = {.model = c->model,
                 .api_key = key,
                 .extra = t->extra,
                 .chat = chat,
                 .stream = c->stream,
                 .max_tokens = (int)c->output_tokens,
                 .temperature = c->temperature,
                 .seed = (uint64_t)c->seed},
        .idle_connections = (size_t)c->connections_idle,
        .concurrency = (size_t)c->concurrency,
        .timeout_s = c->timeout_secs,
        .progress_s = PROGRESS_S,
    };
    return load_target_parse(&t->load.plan.target, c->base_url, chat, err);
}

// ---- what is sent ------------------------------------------------------------------------------

static void requests_free(struct load_request *requests, size_t count) {
    for (size_t i = 0; i < count; i++) load_request_free(&requests[i]);
    free(requests);
}

// Asks the server how many tokens a short and a longer prompt have: words and tokens differ with
// the vocabulary, and a chat template adds its own. A server that doesn't say gets a word a token.
static int calibrate(struct test *t, struct load *l, struct error *err) {
    static const int words[NUM_PROBES] = {16, 80};
    const int64_t wanted = t->result.config.input_tokens;
    struct load_request *probes = mem_zero(NUM_PROBES, sizeof *probes);
    struct load_cost cost;
    const struct load_run run = {.requests = probes,
                                 .count = NUM_PROBES,
                                 .first_id = probe_id,
                                 .words = words,
                                 .max_tokens = 1,
                                 .whole = true};
    int rc = load_run(l, &run, &cost, err);
    const struct load_request *few = &probes[0], *many = &probes[1];
    t->words = (int)wanted;
    if (rc == 0 && cost.interrupted) {
        rc = fail(err, E_CANCELED, "interrupted");
    } else if (rc == 0 && (few->fault == LOAD_CONNECTION || few->status == 401 ||
                           few->status == 403 || few->status == 404)) {
        rc = fail(err, E_IO, "%s: %s", t->result.config.base_url, few->error);
    } else if (rc == 0 && few->fault == LOAD_OK && many->fault == LOAD_OK &&
               few->prompt_tokens > 0 && many->prompt_tokens > few->prompt_tokens) {
        const double each =
            (double)(many->prompt_tokens - few->prompt_tokens) / (words[1] - words[0]);
        const double extra = (double)few->prompt_tokens - words[0] * each;
        const double n = round(((double)wanted - extra) / each);
        t->words = n < 1 ? 1 : n > MAX_INPUT ? MAX_INPUT : (int)n;
        t->result.words_per_token = 1 / each;
    }
    requests_free(probes, NUM_PROBES);
    return rc;
}

static int warm_up(const struct test *t, struct load *l, struct error *err) {
    const size_t count = (size_t)t->result.config.warmup;
    struct load_request *requests = mem_zero(count, sizeof *requests);
    struct load_cost cost;
    // As many at once as will be measured, so that the connections are there; at a rate, in turn.
    const struct load_run run = {.requests = requests,
                                 .count = count,
                                 .first_id = warmup_id,
                                 .word_count = t->words,
                                 .max_tokens = (int)t->result.config.output_tokens};
    int rc = load_run(l, &run, &cost, err);
    if (rc == 0 && cost.interrupted) rc = fail(err, E_CANCELED, "interrupted");
    requests_free(requests, count);
    return rc;
}

static void say_now(char out[32]) {
    const int64_t ms = clock_unix_ms();
    const time_t s = (time_t)(ms / 1000);
    struct tm utc;
    gmtime_r(&s, &utc);
    const size_t len = strftime(out, 24, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out + len, 32 - len, ".%03dZ", (int)(ms % 1000));
}

static int measure(struct test *t, struct load *l, struct error *err) {
    struct bench_result *r = &t->result;
    const struct bench_config *c = &r->config;
    r->count = (size_t)c->num_requests;
    r->requests = mem_zero(r->count, sizeof *r->requests);
    r->timed = true;
    if (c->request_rate > 0) {
        double *due = mem_zero(r->count, sizeof *due);
        load_schedule(due, r->count, c->request_rate, !strcmp(c->arrivals, "poisson"),
                      (uint64_t)c->seed);
        for (size_t i = 0; i < r->count; i++) r->requests[i].start_s = due[i];
        free(due);
    }
    const struct load_run run = {.requests = r->requests,
                                 .count = r->count,
                                 .word_count = t->words,
                                 .max_tokens = (int)c->output_tokens,
                                 .scheduled = c->request_rate > 0};
    say_now(r->started_at);
    const int rc = load_run(l, &run, &r->cost, err);
    say_now(r->finished_at);
    if (rc == 0) bench_summarise(r);
    return rc;
}

// ---- what came of it ---------------------------------------------------------------------------

static void say_result(const struct bench_result *r) {
    static const char *const names[] = {"TTFT", "ITL", "TPOT", "E2EL"};
    const struct bench_summary *s = &r->summary;
    printf("%zu of %zu requests completed in %.3f s, %zu failed\n"
           "%.2f requests/s, %.1f output tokens/s, %.1f total tokens/s, %.1f chunks/s\n",
           s->completed, r->count, r->cost.duration_s, s->failed, s->request_throughput,
           s->output_token_throughput, s->total_token_throughput, s->chunk_throughput);
    if (r->config.slo_ttft_ms > 0 || r->config.slo_tpot_ms > 0)
        printf("%zu requests within the SLO, %.2f a second\n", s->good,
               r->cost.duration_s > 0 ? (double)s->good / r->cost.duration_s : 0);
    printf("%-8s %10s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p95", "p99", "max");
    for (int i = TTFT; i <= E2EL; i++) {
        const struct bench_spread *m = &s->ms[i];
        if (m->count)
            printf("%-8s %10.3f %10.3f %10.3f %10.3f %10.3f %10.3f\n", names[i], m->mean, m->p50,
                   m->p90, m->p95, m->p99, m->max);
    }
}

static const char *first_error(const struct bench_result *r) {
    for (size_t i = 0; i < r->count; i++)
        if (r->requests[i].error) return r->requests[i].error;
    return "interrupted";
}

// The report is of what was written, digit by digit, so that drawing it again changes nothing.
static int report(const struct test *t, const char *json, const char *dir, struct error *err) {
    struct bench_result written = {0};
    int rc = bench_result_write(&t->result, json, err);
    if (!rc) rc = bench_result_read(&written, json, err);
    if (!rc) rc = bench_report_write(dir, &written, NULL, err);
    bench_result_free(&written);
    return rc;
}

static int run(const struct cli_args *args, struct error *err) {
    const char *const json = cli_string(args, "output-json"), *dir = cli_string(args, "report-dir");
    struct test t = {.args = args};
    struct load *l = NULL;
    int rc = -1;
    if (read_options(&t, err) || load_open(&l, &t.load, err)) goto out;
    t.words = (int)t.result.config.input_tokens;
    if ((!cli_flag(args, "no-calibration") && calibrate(&t, l, err)) ||
        (t.result.config.warmup && warm_up(&t, l, err)) || measure(&t, l, err) ||
        report(&t, json, dir, err))
        goto out;
    say_result(&t.result);
    printf("serve json: %s\nreport markdown: %s/report.md\n", json, dir);
    rc = 0;
    if (!t.result.summary.completed)
        rc = fail(err, E_IO, "no request completed: %s", first_error(&t.result));
out:
    load_close(l);
    free(t.result.config.metadata);
    free(t.extra);
    bench_result_free(&t.result);
    return rc;
}

const struct cli_command cmd_bench_serve = {
    .name = "serve",
    .summary = "load-test a server that speaks OpenAI's API",
    .help = "  rwkv bench serve --model rwkv-demo --num-requests 200 --concurrency 16\n"
            "  rwkv bench serve --model rwkv-demo --request-rate 20 --poisson \\\n"
            "      --slo-ttft-ms 200 --slo-tpot-ms 50\n"
            "\n"
            "Without a rate, a request starts as soon as another has ended. With one, requests\n"
            "start when they are due, and their latency counts from then: a server that stalls\n"
            "cannot make its load wait with it. Tokens are those of the server's `usage`.\n"
            "Ctrl-C ends a test early; what came until then is reported.\n",
    .options = options,
    .run = run,
};
