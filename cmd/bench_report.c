// What a load test found, for people: report.md and three pictures, of one run or of two.
#include "bench_chart.h"
#include "bench_result.h"
#include "cli.h"

#include "base/error.h"
#include "base/file.h"
#include "base/str.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PAGE = 4 << 20, ERRORS_SHOWN = 5 };

static const struct {
    const char *file, *caption;
    int (*draw)(const char *path, const struct bench_result *a, const struct bench_result *b,
                struct error *err);
} charts[] = {
    {"latency_cdf.svg", "Latency CDF", bench_chart_cdf},
    {"throughput.svg", "Throughput", bench_chart_throughput},
    {"e2el_histogram.svg", "Histogram of whole requests", bench_chart_histogram},
};

enum { NUM_CHARTS = sizeof charts / sizeof charts[0] };

static const char *const latency_names[NUM_LATENCIES] = {
    "TTFT", "ITL", "TPOT", "E2EL", "start lag",
};

// ---- tables ------------------------------------------------------------------------------------

static double mean_of(const struct bench_spread *s) {
    return s->mean;
}
static double p50_of(const struct bench_spread *s) {
    return s->p50;
}
static double p90_of(const struct bench_spread *s) {
    return s->p90;
}
static double p95_of(const struct bench_spread *s) {
    return s->p95;
}
static double p99_of(const struct bench_spread *s) {
    return s->p99;
}
static double max_of(const struct bench_spread *s) {
    return s->max;
}

static const struct {
    const char *name;
    double (*of)(const struct bench_spread *s);
} columns[] = {{"mean", mean_of}, {"p50", p50_of}, {"p90", p90_of},
               {"p95", p95_of},   {"p99", p99_of}, {"max", max_of}};

enum { NUM_COLUMNS = sizeof columns / sizeof columns[0] };

static double request_rate_of(const struct bench_result *r) {
    return r->summary.request_throughput;
}
static double output_rate_of(const struct bench_result *r) {
    return r->summary.output_token_throughput;
}
static double total_rate_of(const struct bench_result *r) {
    return r->summary.total_token_throughput;
}
static double chunk_rate_of(const struct bench_result *r) {
    return r->summary.chunk_throughput;
}
static double goodput_of(const struct bench_result *r) {
    return r->cost.duration_s > 0 ? (double)r->summary.good / r->cost.duration_s : 0;
}

static const struct {
    const char *name;
    double (*of)(const struct bench_result *r);
} rates[] = {
    {"Requests / s", request_rate_of},   {"Output tokens / s", output_rate_of},
    {"Total tokens / s", total_rate_of}, {"Chunks / s", chunk_rate_of},
    {"Good requests / s", goodput_of}, // the last one: only under an SLO
};

enum { NUM_RATES = sizeof rates / sizeof rates[0] };

static bool has_slo(const struct bench_result *r) {
    return r->config.slo_ttft_ms > 0 || r->config.slo_tpot_ms > 0;
}

// Four digits, whatever the size.
static void put_number(struct str *s, double v) {
    str_printf(s, "%.*f", v >= 1000 ? 0 : v >= 100 ? 1 : v >= 10 ? 2 : v >= 1 ? 3 : 4, v);
}

static void put_change(struct str *s, double a, double b, bool more_is_better) {
    const double change = a > 0 ? 100 * (b / a - 1) : 0;
    str_printf(s, "%+.1f %%", change);
    if (fabs(change) >= 1) str_puts(s, (change > 0) == more_is_better ? " better" : " worse");
}

static void put_rates(struct str *s, const struct bench_result *a, const struct bench_result *b) {
    str_puts(s, b ? "\n## Throughput\n\n| | A | B | B against A |\n|---|---:|---:|---:|\n"
                  : "\n## Throughput\n\n| | |\n|---|---:|\n");
    const int count = has_slo(a) && (!b || has_slo(b)) ? NUM_RATES : NUM_RATES - 1;
    for (int i = 0; i < count; i++) {
        str_printf(s, "| %s | ", rates[i].name);
        put_number(s, rates[i].of(a));
        if (b) {
            str_puts(s, " | ");
            put_number(s, rates[i].of(b));
            str_puts(s, " | ");
            put_change(s, rates[i].of(a), rates[i].of(b), true);
        }
        str_puts(s, " |\n");
    }
}

static void put_latencies(struct str *s, const struct bench_result *r) {
    str_puts(s, "\n## Latency (ms)\n\n| |");
    for (int i = 0; i < NUM_COLUMNS; i++) str_printf(s, " %s |", columns[i].name);
    str_puts(s, "\n|---|");
    for (int i = 0; i < NUM_COLUMNS; i++) str_puts(s, "---:|");
    for (int i = TTFT; i <= E2EL; i++) {
        if (!r->summary.ms[i].count) continue;
        str_printf(s, "\n| %s |", latency_names[i]);
        for (int k = 0; k < NUM_COLUMNS; k++) {
            str_putc(s, ' ');
            put_number(s, columns[k].of(&r->summary.ms[i]));
            str_puts(s, " |");
        }
    }
    str_puts(s, "\n\nOf completed requests. TTFT: to the first text. ITL: between pieces of text. "
                "TPOT: from the first text to the end, by each further token. E2EL: to the end. "
                "All count from when a request was to start, not from when it could be sent.\n");
}

static void put_latency_changes(struct str *s, const struct bench_result *a,
                                const struct bench_result *b) {
    str_puts(s, "\n## Latency (ms)\n\n| | | A | B | B against A |\n|---|---|---:|---:|---:|\n");
    for (int i = TTFT; i <= E2EL; i++) {
        const struct bench_spread *x = &a->summary.ms[i], *y = &b->summary.ms[i];
        for (int k = 0; x->count && y->count && k < NUM_COLUMNS; k++) {
            str_printf(s, "| %s | %s | ", k ? "" : latency_names[i], columns[k].name);
            put_number(s, columns[k].of(x));
            str_puts(s, " | ");
            put_number(s, columns[k].of(y));
            str_puts(s, " | ");
            put_change(s, columns[k].of(x), columns[k].of(y), false);
            str_puts(s, " |\n");
        }
    }
}

// ---- what a reader must know -------------------------------------------------------------------

// Text of the server must not become Markdown or HTML of ours.
static void put_quoted(struct str *s, const char *text) {
    for (size_t i = 0; text[i] && i < 300; i++) {
        if (strchr("`|<>*_[]\\", text[i]))
            str_putc(s, ' ');
        else
            str_putc(s, text[i]);
    }
}

static void put_errors(struct str *s, const struct bench_result *r, const char *of) {
    const char *shown[ERRORS_SHOWN];
    int count = 0;
    if (!r->summary.failed) return;
    str_printf(s, "\n## Errors%s\n\n%zu of %zu requests failed:", of, r->summary.failed,
               r->summary.failed + r->summary.completed);
    for (int i = LOAD_UNSENT + 1, n = 0; i < LOAD_NUM_FAULTS; i++)
        if (r->summary.faults[i])
            str_printf(s, "%s %zu %s", n++ ? "," : "", r->summary.faults[i], load_fault_names[i]);
    str_puts(s, ".\n\n");
    for (size_t i = 0; i < r->count && count < ERRORS_SHOWN; i++) {
        const char *const e = r->requests[i].error;
        bool known = !e;
        for (int k = 0; !known && k < count; k++) known = !strcmp(shown[k], e);
        if (known) continue;
        shown[count++] = e;
        str_printf(s, "- request %zu: ", i);
        put_quoted(s, e);
        str_putc(s, '\n');
    }
}

static void put_note(struct str *s, int *count, const char *of, const char *text) {
    str_printf(s, "%s- %s%s\n", (*count)++ ? "" : "\n## Read with care\n\n", of, text);
}

static void put_notes(struct str *s, const struct bench_result *r, const char *of, int *count) {
    const struct bench_summary *sum = &r->summary;
    const struct bench_config *c = &r->config;
    const double share = r->cost.duration_s > 0 ? r->cost.cpu_s / r->cost.duration_s : 0;
    const double each = sum->completed ? (double)sum->prompt_tokens / (double)sum->completed : 0;
    char text[300];
    if (sum->counted)
        put_note(s, count, of,
                 "the server gave no usage: output tokens are the chunks that brought text");
    if (sum->unknown)
        put_note(s, count, of,
                 "answers without usage and without a stream: their tokens are "
                 "unknown and count as none");
    if (share > 0.8) {
        snprintf(text, sizeof text,
                 "the client took %.0f %% of a processor: it may be what was measured",
                 100 * share);
        put_note(s, count, of, text);
    }
    if (c->request_rate > 0 && sum->ms[LAG].p99 > 5) {
        snprintf(text, sizeof text,
                 "requests were sent up to %.1f ms (p99) after they were due, for want of a free "
                 "place or of time; the latencies include it",
                 sum->ms[LAG].p99);
        put_note(s, count, of, text);
    }
    if (each > 0 && fabs(each / (double)c->input_tokens - 1) > 0.2) {
        snprintf(text, sizeof text, "prompts had %.0f tokens on average, %lld were asked for", each,
                 (long long)c->input_tokens);
        put_note(s, count, of, text);
    }
    if (r->cost.interrupted || sum->unsent)
        put_note(s, count, of, "the run was interrupted before its end");
    if (r->cost.idle_closed)
        put_note(s, count, of, "the server closed idle connections during the run");
}

// ---- how it was measured -----------------------------------------------------------------------

static void put_setup(struct str *s, const struct bench_result *r) {
    const struct bench_config *c = &r->config;
    str_puts(s, "- Model: ");
    put_quoted(s, c->model ? c->model : "?");
    str_puts(s, ", ");
    put_quoted(s, c->endpoint ? c->endpoint : "?");
    str_puts(s, " at ");
    put_quoted(s, c->base_url ? c->base_url : "?");
    str_printf(s, ", %s\n- Load: %lld requests, ", c->stream ? "streamed" : "not streamed",
               (long long)c->num_requests);
    if (c->request_rate > 0)
        str_printf(s, "%g a second (%s)", c->request_rate,
                   c->arrivals && !strcmp(c->arrivals, "poisson") ? "Poisson" : "even gaps");
    else
        str_puts(s, "each as soon as another ends");
    if (c->concurrency > 0) str_printf(s, ", at most %lld in flight", (long long)c->concurrency);
    str_printf(s, "; prompts of %lld tokens, answers of up to %lld, temperature %g\n",
               (long long)c->input_tokens, (long long)c->output_tokens, c->temperature);
    if (has_slo(r)) {
        str_puts(s, "- SLO:");
        if (c->slo_ttft_ms > 0) str_printf(s, " TTFT up to %g ms", c->slo_ttft_ms);
        if (c->slo_tpot_ms > 0)
            str_printf(s, "%s TPOT up to %g ms", c->slo_ttft_ms > 0 ? "," : "", c->slo_tpot_ms);
        str_printf(s, ": met by %zu requests\n", r->summary.good);
    }
    str_printf(s,
               "- Started: %s\n- Finished: %s\n- Duration: %.3f s\n- Completed: %zu\n"
               "- Failed: %zu\n",
               r->started_at, r->finished_at, r->cost.duration_s, r->summary.completed,
               r->summary.failed);
    if (r->cost.cpu_s > 0)
        str_printf(s,
                   "- Client: %.0f %% of a processor, %zu connections opened, up to %zu "
                   "requests in flight, %zu idle connections\n",
                   100 * r->cost.cpu_s / fmax(r->cost.duration_s, 1e-9), r->cost.connects,
                   r->cost.peak_in_flight, r->cost.idle_open);
}

static void put_page(struct str *s, const struct bench_result *a, const struct bench_result *b) {
    int notes = 0;
    if (b) {
        str_puts(s, "# RWKV Serve Benchmark Comparison\n\n## A\n\n");
        put_setup(s, a);
        str_puts(s, "\n## B\n\n");
        put_setup(s, b);
    } else {
        str_puts(s, "# RWKV Serve Benchmark Report\n\n");
        put_setup(s, a);
    }
    put_rates(s, a, b);
    if (b)
        put_latency_changes(s, a, b);
    else
        put_latencies(s, a);
    put_errors(s, a, b ? " of A" : "");
    if (b) put_errors(s, b, " of B");
    put_notes(s, a, b ? "A: " : "", &notes);
    if (b) put_notes(s, b, "B: ", &notes);
    str_puts(s, "\n## Artifacts\n\n");
    for (int i = 0; i < NUM_CHARTS; i++)
        str_printf(s, "![%s](%s)\n\n", charts[i].caption, charts[i].file);
}

int bench_report_write(const char *dir, const struct bench_result *a, const struct bench_result *b,
                       struct error *err) {
    struct str page;
    int rc = file_mkdirs(dir, err);
    str_init(&page, MAX_PAGE);
    put_page(&page, a, b);
    for (int i = -1; i < NUM_CHARTS && rc == 0; i++) {
        char *const path = path_join(dir, i < 0 ? "report.md" : charts[i].file);
        rc = i < 0 ? file_replace(path, page.data, page.len, err) : charts[i].draw(path, a, b, err);
        free(path);
    }
    str_free(&page);
    return rc;
}

// ---- the command -------------------------------------------------------------------------------

static int run(const struct cli_args *args, struct error *err) {
    const char *const dir = cli_string(args, "output-dir");
    const char *const second = cli_string(args, "compare");
    struct bench_result a = {0}, b = {0};
    int rc = bench_result_read(&a, cli_string(args, "input-json"), err);
    if (rc == 0 && second) rc = bench_result_read(&b, second, err);
    if (rc == 0) rc = bench_report_write(dir, &a, second ? &b : NULL, err);
    if (rc == 0) {
        printf("report markdown: %s/report.md\n", dir);
        for (int i = 0; i < NUM_CHARTS; i++) printf("chart: %s/%s\n", dir, charts[i].file);
    }
    bench_result_free(&a);
    bench_result_free(&b);
    return rc;
}

static const struct cli_option options[] = {
    {"input-json", "FILE", .required = true, .help = "what `rwkv bench serve` wrote"},
    {"compare", "FILE", .help = "another one: its changes against the first"},
    {"output-dir", "DIR", .fallback = "logs/bench/report", .help = "where the report goes"},
    {0},
};

const struct cli_command cmd_bench_report = {
    .name = "report",
    .summary = "Markdown and pictures of a load test, or of two",
    .help = "  rwkv bench report --input-json logs/bench/serve.json\n"
            "  rwkv bench report --input-json before.json --compare after.json\n"
            "\n"
            "Writes report.md, latency_cdf.svg, throughput.svg and e2el_histogram.svg.\n",
    .options = options,
    .run = run,
};
