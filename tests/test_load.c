// The load generator without a network: what it sends and when, what it reads, what it makes of it.
#include "../cmd/bench_result.h"

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

// ---- events ------------------------------------------------------------------------------------

static void note(void *ctx, const char *data, size_t len) {
    struct str *all = ctx;
    str_putc(all, '<');
    str_append(all, data, len);
    str_putc(all, '>');
}

static int events_of(struct str *all, const char *text, size_t len, size_t piece) {
    struct sse s;
    int rc = 0;
    sse_init(&s);
    str_clear(all);
    for (size_t at = 0; at < len && rc == 0; at += piece)
        rc = sse_feed(&s, text + at, len - at < piece ? len - at : piece, note, all);
    sse_free(&s);
    return rc;
}

static void events_are_the_same_in_any_pieces(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"data: a\n\n", "<a>"},
        {"data:a\r\n\r\ndata:  b\r\r", "<a>< b>"},
        {"data: a\ndata: b\n\n", "<a\nb>"},
        {": comment\n\nevent: x\ndata: a\nid: 7\n\n", "<a>"},
        {"data\n\ndata:\n\n", "<><>"},
        {"\xef\xbb\xbf"
         "data: a\n\n",
         "<a>"},
        {"data: a\n\n\xef\xbb\xbf"
         "data: b\n\n",
         "<a>"},
        {"database: a\n\ndata : b\n\n", ""},
        {"data: a\n\ndata: never sent off\n", "<a>"},
        {"data: a\r\n\ndata: b\n\r\n", "<a><b>"},
        {"\n\n\ndata: [DONE]\n\n", "<[DONE]>"},
    };
    struct str all;
    str_init(&all, 1000);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t piece = 1; piece < 50; piece++) {
            assert_int_equal(events_of(&all, cases[i][0], strlen(cases[i][0]), piece), 0);
            assert_string_equal(all.data, cases[i][1]);
        }
    str_free(&all);
}

static void an_event_has_a_ceiling(void **state) {
    (void)state;
    struct sse s;
    struct str all;
    char block[1000];
    size_t fed = 0;
    memset(block, 'x', sizeof block);
    str_init(&all, 1 << 20);
    for (int lines = 0; lines < 2; lines++) { // one endless line; endless lines
        if (lines) memcpy(block, "\ndata:", 6);
        sse_init(&s);
        for (fed = 0; fed < 3 * (size_t)SSE_MAX_EVENT; fed += sizeof block)
            if (sse_feed(&s, block, sizeof block, note, &all)) break;
        assert_in_range(fed, SSE_MAX_EVENT - 100000, SSE_MAX_EVENT + 100000);
        assert_true(s.line.cap <= 2 * (size_t)SSE_MAX_EVENT);
        sse_free(&s);
    }
    str_free(&all);
}

static void a_chunk_tells_what_counts(void **state) {
    (void)state;
    static const struct {
        const char *json;
        struct sse_chunk chunk;
    } cases[] = {
        {"{}", {0, 0, 0, -1, -1}},
        {"{\"choices\":[{\"text\":\"a\"}]}", {1, 0, 0, -1, -1}},
        {"{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}", {0, 0, 1, -1, -1}},
        {"{\"choices\":[{\"delta\":{\"content\":\"\\\"\"},\"finish_reason\":null}]}",
         {1, 0, 0, -1, -1}},
        {"{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}",
         {0, 0, 0, -1, -1}},
        {"{\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"hm\"}}]}",
         {1, 0, 0, -1, -1}},
        {"{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}", {1, 0, 0, -1, -1}},
        {"{\"choices\":[{\"message\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":3,"
         "\"completion_tokens\":12}}",
         {1, 0, 0, 3, 12}},
        {"{\"usage\":null,\"error\":null}", {0, 0, 0, -1, -1}},
        {"{\"error\":{\"message\":\"x\"}}", {0, 1, 0, -1, -1}},
        {"{\"error\":\"x\"}", {0, 1, 0, -1, -1}},
        {"{\"x\":{\"error\":{},\"text\":\"a\",\"usage\":{\"prompt_tokens\":1}}}",
         {0, 0, 0, -1, -1}},
        {"{\"usage\":{\"details\":{\"prompt_tokens\":1},\"prompt_tokens\":2.5}}",
         {0, 0, 0, -1, -1}},
        {"{\"text\":\"a\",\"choices\":[[{\"text\":\"a\"}],\"text\"]}", {0, 0, 0, -1, -1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sse_chunk c;
        const struct sse_chunk *w = &cases[i].chunk;
        assert_int_equal(sse_scan(&c, cases[i].json, strlen(cases[i].json)), 0);
        if (c.text != w->text || c.error != w->error || c.finished != w->finished ||
            c.prompt_tokens != w->prompt_tokens || c.completion_tokens != w->completion_tokens)
            fail_msg("%s", cases[i].json);
    }
    static const char *const wrong[] = {"",           "[]",        "{",         "{\"a\"}",
                                        "{\"a\":}",   "{]",        "{\"a\":[}", "{\"a\":1,}",
                                        "{\"a\":1}}", "{} x",      "null",      "\"a\"",
                                        "{\"a\":\"x", "{\"a\" 1}", "{a:1}",     "{\"a\":[1 2]}",
                                        "{\"a\":\"\\"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct sse_chunk c;
        if (sse_scan(&c, wrong[i], strlen(wrong[i])) == 0) fail_msg("taken: %s", wrong[i]);
    }
}

// ---- answers -----------------------------------------------------------------------------------

#define STREAM "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
#define TEXT_A "data: {\"choices\":[{\"text\":\"a\"}]}\n\n"
#define USAGE  "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4}}\n\n"
#define DONE   "data: [DONE]\n\n"

// Reads the answer in pieces, one a millisecond, and closes the connection behind it.
static struct load_request read_answer(const char *text, size_t piece, bool streams,
                                       bool *reusable) {
    struct load_answer a;
    struct load_request r = {.fault = LOAD_UNSENT};
    enum load_progress p = LOAD_MORE;
    uint64_t now = 1000000000;
    const size_t len = strlen(text);
    load_answer_init(&a);
    load_answer_begin(&a, &r, streams, now);
    for (size_t at = 0; at < len && p == LOAD_MORE; at += piece)
        p = load_answer_feed(&a, text + at, len - at < piece ? len - at : piece, now += 1000000);
    if (p == LOAD_MORE) p = load_answer_feed(&a, NULL, 0, now += 1000000);
    assert_int_not_equal(p, LOAD_MORE);
    *reusable = a.reusable;
    load_answer_free(&a);
    return r;
}

static void answers_become_figures_or_faults(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool streams;
        enum load_fault fault;
        int64_t output_tokens, chunks;
        bool counted, reusable;
        const char *error;
    } cases[] = {
        {STREAM "Content-Length: 154\r\n\r\n" TEXT_A TEXT_A USAGE DONE, true, LOAD_OK, 4, 2, false,
         true, NULL},
        {STREAM "\r\n" TEXT_A TEXT_A USAGE DONE, true, LOAD_OK, 4, 2, false, false, NULL},
        {STREAM "\r\n" TEXT_A TEXT_A TEXT_A DONE, true, LOAD_OK, 3, 3, true, false, NULL},
        {STREAM "\r\n" TEXT_A USAGE, true, LOAD_STREAM, 4, 1, false, false, "without [DONE]"},
        {STREAM "Content-Length: 999\r\n\r\n" TEXT_A DONE, true, LOAD_CONNECTION, -1, 1, false,
         false, "within the answer"},
        {STREAM "\r\n" TEXT_A "data: {\"error\":{\"message\":\"too hot\"}}\n\n" DONE, true,
         LOAD_BACKEND, -1, 1, false, false, "in the stream: too hot"},
        {STREAM "\r\ndata: {,}\n\n" DONE, true, LOAD_STREAM, -1, 0, false, false, "no JSON"},
        {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\nx", true,
         LOAD_STREAM, -1, 0, false, true, "got Content-Type \"text/html\""},
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"
         "{\"choices\":[{\"text\":\"abc\"}],\"usage\":{\"completion_tokens\":9}}",
         false, LOAD_OK, 9, 0, false, true, NULL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false, LOAD_OK, -1, 0, false, true,
         NULL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", false, LOAD_STREAM, -1, 0, false, true,
         "no JSON"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", false, LOAD_OK, -1,
         0, false, false, NULL},
        {"HTTP/1.1 400 Bad\r\nContent-Length: 33\r\n\r\n{\"error\":{\"message\":\"bad model\"}}",
         true, LOAD_BAD_REQUEST, -1, 0, false, true, "HTTP 400: bad model"},
        {"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", true, LOAD_REJECTED, -1, 0, false, true,
         "HTTP 429"},
        {"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nboom", true, LOAD_BACKEND, -1, 0, false, true,
         "HTTP 500: boom"},
        {"HTTP/1.1 302 There\r\nContent-Length: 0\r\n\r\n", true, LOAD_OTHER, -1, 0, false, true,
         "HTTP 302"},
        {"ceci n'est pas HTTP", true, LOAD_CONNECTION, -1, 0, false, false, "no HTTP"},
        {"", true, LOAD_CONNECTION, -1, 0, false, false, "before it answered"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t piece = 1; piece < 400; piece = piece < 9 ? piece + 1 : piece * 3) {
            bool reusable;
            struct load_request r = read_answer(cases[i].text, piece, cases[i].streams, &reusable);
            if (r.fault != cases[i].fault || r.output_tokens != cases[i].output_tokens ||
                r.chunks != cases[i].chunks || r.counted != cases[i].counted ||
                (cases[i].text[0] && piece > 1 && reusable != cases[i].reusable) ||
                !r.error != !cases[i].error || (r.error && !strstr(r.error, cases[i].error)))
                fail_msg("case %zu, pieces of %zu: fault %s (%s), %lld tokens, %lld chunks%s%s", i,
                         piece, load_fault_names[r.fault], r.error ? r.error : "none",
                         (long long)r.output_tokens, (long long)r.chunks,
                         r.counted ? ", counted" : "", reusable ? ", reusable" : "");
            load_request_free(&r);
        }
}

static void times_count_from_the_start(void **state) {
    (void)state;
    static const char *const pieces[] = {STREAM "\r\n", TEXT_A, TEXT_A TEXT_A, USAGE DONE};
    static const uint64_t at_ms[] = {10, 30, 40, 70};
    struct load_answer a;
    struct load_request r = {.fault = LOAD_UNSENT};
    load_answer_init(&a);
    load_answer_begin(&a, &r, true, 5000000000);
    for (int i = 0; i < 4; i++)
        load_answer_feed(&a, pieces[i], strlen(pieces[i]), 5000000000 + at_ms[i] * 1000000);
    load_answer_feed(&a, NULL, 0, 5900000000);
    assert_int_equal(r.fault, LOAD_OK);
    assert_float_equal(r.ttft_s, 0.030, 1e-9);
    assert_float_equal(r.e2el_s, 0.070, 1e-9); // [DONE], not the connection's end
    assert_float_equal(r.tpot_s, 0.040 / 3, 1e-9);
    assert_int_equal(r.num_itl, 2);
    assert_float_equal(r.itl_s[0], 0.010, 1e-7);
    assert_float_equal(r.itl_s[1], 0, 1e-7);
    load_request_free(&r);
    load_answer_free(&a);
}

// ---- what is sent, and when --------------------------------------------------------------------

static void base_urls_are_read_or_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *url, *host, *port, *authority, *path; // host NULL: refused
    } cases[] = {
        {"http://127.0.0.1:8080", "127.0.0.1", "8080", "127.0.0.1:8080", "/v1/completions"},
        {"http://a.b", "a.b", "80", "a.b", "/v1/completions"},
        {"HTTP://a/", "a", "80", "a", "/v1/completions"},
        {"http://a:1/v1", "a", "1", "a:1", "/v1/completions"},
        {"http://a/x/v1/", "a", "80", "a", "/x/v1/completions"},
        {"http://[::1]:99/x", "::1", "99", "[::1]:99", "/x/v1/completions"},
        {"http://[::1]", "::1", "80", "[::1]", "/v1/completions"},
        {"https://a", NULL, NULL, NULL, "https is not offered"},
        {"a:80", NULL, NULL, NULL, "wanted http://"},
        {"http://", NULL, NULL, NULL, "wanted http://"},
        {"http://:80", NULL, NULL, NULL, "wanted http://"},
        {"http://a:", NULL, NULL, NULL, "wanted http://"},
        {"http://a:0", NULL, NULL, NULL, "wanted http://"},
        {"http://a:65536", NULL, NULL, NULL, "wanted http://"},
        {"http://a:8x", NULL, NULL, NULL, "wanted http://"},
        {"http://[::1", NULL, NULL, NULL, "wanted http://"},
        {"http://[::1]8", NULL, NULL, NULL, "wanted http://"},
        {"http://u@a", NULL, NULL, NULL, "wanted http://"},
        {"http://a/?x", NULL, NULL, NULL, "wanted http://"},
        {"http://a\r\nX: y", NULL, NULL, NULL, "wanted http://"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct load_target t;
        struct error err = {0};
        const int rc = load_target_parse(&t, cases[i].url, false, &err);
        if (!cases[i].host) {
            if (rc == 0 || !strstr(err.msg, cases[i].path))
                fail_msg("%s: %s", cases[i].url, rc ? err.msg : "taken");
            continue;
        }
        if (rc) fail_msg("%s: %s", cases[i].url, err.msg);
        assert_string_equal(t.host, cases[i].host);
        assert_string_equal(t.port, cases[i].port);
        assert_string_equal(t.authority, cases[i].authority);
        assert_string_equal(t.path, cases[i].path);
    }
}

static void a_request_is_what_was_asked(void **state) {
    (void)state;
    struct load_plan plan = {.model = "a\"b",
                             .api_key = "k-1",
                             .extra = "\"top_p\":0.5",
                             .temperature = 0.25,
                             .seed = 7};
    struct error err;
    assert_int_equal(load_target_parse(&plan.target, "http://h:1", true, &err), 0);
    for (int i = 0; i < 4; i++) {
        struct str text;
        struct json *root;
        plan.chat = i & 1;
        plan.stream = i & 2;
        str_init(&text, 1 << 20);
        load_request_write(&text, &plan, 3, 10, 17);
        const char *const body = strstr(text.data, "\r\n\r\n") + 4;
        char length[40];
        snprintf(length, sizeof length, "Content-Length: %zu\r\n", strlen(body));
        assert_non_null(strstr(text.data, length));
        assert_non_null(strstr(text.data, "\r\nHost: h:1\r\n"));
        assert_non_null(strstr(text.data, "\r\nAuthorization: Bearer k-1\r\n"));
        assert_int_equal(json_parse(&root, body, strlen(body), 1 << 20, "body", &err), 0);
        assert_true(!json_member(root, "messages") == !plan.chat);
        assert_true(!json_member(root, "prompt") == plan.chat);
        assert_true(!json_member(root, "stream_options") == !plan.stream);
        assert_non_null(json_member(root, "top_p"));
        int64_t most = 0;
        json_read_int(&most, json_member(root, "max_tokens"), 0, 99, "max_tokens", NULL);
        assert_int_equal(most, 17);
        json_free(root);
        str_free(&text);
    }
}

static void prompts_differ_by_id_and_repeat_by_seed(void **state) {
    (void)state;
    struct str p[4];
    for (int i = 0; i < 4; i++) str_init(&p[i], 10000);
    load_prompt_write(&p[0], 1, 0, 100);
    load_prompt_write(&p[1], 1, 0, 100);
    load_prompt_write(&p[2], 1, 1, 100);
    load_prompt_write(&p[3], 2, 0, 100);
    assert_string_equal(p[0].data, p[1].data);
    assert_string_not_equal(p[0].data, p[2].data);
    assert_string_not_equal(p[0].data, p[3].data);
    int spaces = 0;
    for (const char *c = p[0].data; *c; c++) spaces += *c == ' ';
    assert_int_equal(spaces, 99);
    for (int i = 0; i < 4; i++) str_free(&p[i]);
}

static void arrivals_keep_their_rate(void **state) {
    (void)state;
    enum { N = 20000 };
    static double a[N], b[N];
    load_schedule(a, N, 50, false, 1);
    for (int i = 0; i < N; i++) assert_float_equal(a[i], i / 50.0, 1e-9);
    load_schedule(a, N, 50, true, 1);
    load_schedule(b, N, 50, true, 1);
    assert_memory_equal(a, b, sizeof a);
    assert_true(a[0] == 0);
    double squares = 0;
    for (int i = 1; i < N; i++) {
        assert_true(a[i] >= a[i - 1]);
        squares += (a[i] - a[i - 1]) * (a[i] - a[i - 1]);
    }
    const double mean = a[N - 1] / (N - 1);
    assert_float_equal(mean, 0.02, 0.0006);                         // 4 σ
    assert_float_equal(squares / (N - 1) / (mean * mean), 2, 0.15); // exponential gaps
    load_schedule(b, N, 50, true, 2);
    assert_true(memcmp(a, b, sizeof a) != 0);
}

// ---- figures -----------------------------------------------------------------------------------

static void percentiles_are_interpolated(void **state) {
    (void)state;
    double values[] = {4, 1, 3, 2, 5};
    struct bench_spread s = bench_spread_of(values, 5);
    assert_float_equal(s.mean, 3, 1e-12);
    assert_float_equal(s.p50, 3, 1e-12);
    assert_float_equal(s.p90, 4.6, 1e-12);
    assert_float_equal(s.p95, 4.8, 1e-12);
    assert_float_equal(s.p99, 4.96, 1e-12);
    assert_float_equal(s.max, 5, 1e-12);
    s = bench_spread_of(values, 1);
    assert_float_equal(s.p99, 1, 0);
    s = bench_spread_of(values, 0);
    assert_true(s.p50 == 0 && s.count == 0 && s.max == 0);
}

static struct load_request done(double start_s, double ttft_s, double gap_s, int tokens) {
    struct load_request r = {.start_s = start_s,
                             .ttft_s = ttft_s,
                             .tpot_s = gap_s,
                             .e2el_s = ttft_s + gap_s * (tokens - 1),
                             .prompt_tokens = 10,
                             .output_tokens = tokens,
                             .chunks = tokens,
                             .status = 200,
                             .num_itl = (size_t)tokens - 1};
    r.itl_s = mem_zero(r.num_itl + 1, sizeof *r.itl_s);
    for (size_t i = 0; i < r.num_itl; i++) r.itl_s[i] = (float)gap_s;
    return r;
}

static struct bench_result some_result(void) {
    struct bench_result r = {.config = {.base_url = "http://x",
                                        .model = "m",
                                        .endpoint = "completions",
                                        .arrivals = "closed",
                                        .num_requests = 4,
                                        .input_tokens = 10,
                                        .output_tokens = 11,
                                        .slo_ttft_ms = 150,
                                        .slo_tpot_ms = 20,
                                        .stream = true},
                             .started_at = "2026-01-01T00:00:00.000Z",
                             .finished_at = "2026-01-01T00:00:02.000Z",
                             .cost = {.duration_s = 2, .cpu_s = 0.5, .peak_in_flight = 3},
                             .count = 4,
                             .timed = true};
    r.requests = mem_zero(r.count, sizeof *r.requests);
    r.requests[0] = done(0, 0.1, 0.01, 11);
    r.requests[1] = done(0.5, 0.2, 0.01, 11); // its first text comes late
    r.requests[2] = done(1, 0.1, 0.03, 11);   // and its others
    r.requests[3] = (struct load_request){.e2el_s = 60, .output_tokens = -1};
    load_request_fail(&r.requests[3], LOAD_TIMEOUT, "no end within 60 s");
    bench_summarise(&r);
    return r;
}

static void failures_are_no_latencies(void **state) {
    (void)state;
    struct bench_result r = some_result();
    const struct bench_summary *s = &r.summary;
    assert_int_equal(s->completed, 3);
    assert_int_equal(s->failed, 1);
    assert_int_equal(s->faults[LOAD_TIMEOUT], 1);
    assert_int_equal(s->good, 1);
    assert_int_equal(s->output_tokens, 33);
    assert_int_equal(s->ms[ITL].count, 30);
    assert_true(s->ms[E2EL].max < 1000);
    assert_float_equal(s->request_throughput, 1.5, 1e-12);
    assert_float_equal(s->output_token_throughput, 16.5, 1e-12);
    assert_float_equal(s->total_token_throughput, 31.5, 1e-12);
    bench_result_free(&r);
}

static void a_result_survives_its_file(void **state) {
    (void)state;
    char path[] = "/tmp/rwkv-load-XXXXXX";
    struct bench_result a = some_result(), b;
    struct error err = {0};
    close(mkstemp(path));
    if (bench_result_write(&a, path, &err) || bench_result_read(&b, path, &err))
        fail_msg("%s", err.msg);
    unlink(path);
    assert_int_equal(a.count, b.count);
    assert_string_equal(b.config.model, "m");
    assert_string_equal(b.config.arrivals, "closed");
    assert_int_equal(b.config.output_tokens, 11);
    assert_true(b.config.stream && b.timed);
    assert_string_equal(b.started_at, a.started_at);
    assert_int_equal(a.summary.good, b.summary.good);
    for (int i = 0; i < LOAD_NUM_FAULTS; i++)
        assert_int_equal(a.summary.faults[i], b.summary.faults[i]);
    for (int i = 0; i < NUM_LATENCIES; i++) {
        assert_int_equal(a.summary.ms[i].count, b.summary.ms[i].count);
        assert_float_equal(a.summary.ms[i].p99, b.summary.ms[i].p99, 0.002);
    }
    assert_string_equal(b.requests[3].error, "no end within 60 s");
    assert_float_equal(a.summary.total_token_throughput, b.summary.total_token_throughput, 1e-6);
    bench_result_free(&a);
    bench_result_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_are_the_same_in_any_pieces),
        cmocka_unit_test(an_event_has_a_ceiling),
        cmocka_unit_test(a_chunk_tells_what_counts),
        cmocka_unit_test(answers_become_figures_or_faults),
        cmocka_unit_test(times_count_from_the_start),
        cmocka_unit_test(base_urls_are_read_or_refused_by_name),
        cmocka_unit_test(a_request_is_what_was_asked),
        cmocka_unit_test(prompts_differ_by_id_and_repeat_by_seed),
        cmocka_unit_test(arrivals_keep_their_rate),
        cmocka_unit_test(percentiles_are_interpolated),
        cmocka_unit_test(failures_are_no_latencies),
        cmocka_unit_test(a_result_survives_its_file),
    };
    json_init();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
