// A finished load test: what was asked, what each request took, and the figures that follow. Its
// JSON has the keys of rwkv-rs's `serve_bench`, and more.
#pragma once
#include "base/json.h"
#include "load.h"

struct error;

struct bench_config {
    const char *base_url, *model, *endpoint; // "completions", "chat_completions"
    const char *arrivals;                    // "closed", "fixed", "poisson"
    const char *extra_body;                  // NULL: none
    int64_t num_requests, concurrency, input_tokens, output_tokens, warmup, seed, connections_idle;
    double request_rate, temperature, timeout_secs, slo_ttft_ms, slo_tpot_ms;
    bool stream;
    const char **metadata; // "KEY=VALUE"
    size_t num_metadata;
};

// Percentiles by linear interpolation; all 0 of nothing.
struct bench_spread {
    double mean, p50, p90, p95, p99, max;
    size_t count;
};

enum bench_latency { TTFT, ITL, TPOT, E2EL, LAG, NUM_LATENCIES };

extern const char *const bench_latency_keys[NUM_LATENCIES]; // "ttft_ms", …

struct bench_summary {
    size_t completed, failed, unsent, faults[LOAD_NUM_FAULTS];
    int64_t prompt_tokens, output_tokens, chunks; // of completed requests
    size_t counted, unknown;                      // whose tokens are chunks; of which nobody knows
    double request_throughput, output_token_throughput, total_token_throughput, chunk_throughput;
    struct bench_spread ms[NUM_LATENCIES]; // of completed requests
    size_t good;                           // completed within the SLO
};

struct bench_result {
    struct bench_config config;
    char started_at[32], finished_at[32]; // UTC, RFC 3339
    struct load_cost cost;
    double words_per_token; // of the prompts; 0: taken for one
    struct load_request *requests;
    size_t count;
    bool timed; // start_s of the requests is known
    struct bench_summary summary;
    struct json *source; // what it was read from; the strings of `config` lie in it
};

// Sorts the values.
struct bench_spread bench_spread_of(double *values, size_t count);

// All values of one kind, of completed requests, in ms. The array is freed by the caller.
double *bench_collect(size_t *count, const struct bench_result *r, enum bench_latency what);

void bench_summarise(struct bench_result *r);
int bench_result_write(const struct bench_result *r, const char *path, struct error *err);
int bench_result_read(struct bench_result *r, const char *path, struct error *err);
void bench_result_free(struct bench_result *r);

// Writes report.md and the pictures into `dir`; `b` may be NULL, else a and b are compared.
int bench_report_write(const char *dir, const struct bench_result *a, const struct bench_result *b,
                       struct error *err);
