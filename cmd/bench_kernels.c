// The kernels that know time, and the sampler, alone: the eight names that rwkv-rs gave them.
// Inputs are such that states stay finite; what comes out is compared with the reference in the
// same run.
#include "cli.h"
#include "common.h"

#include "backend/ops.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 64 }; // channels of a head

struct shape {
    int B, T, H; // wkv7: sequences, tokens of each, heads
    int V, k;    // sample: B rows over a vocabulary, top-k
};

struct kernel {
    const char *name;
    bool backward, state_in, state_out, infer, sample;
};

static const struct kernel kernels[] = {
    {"wkv7_pretrain_forward", .backward = false},
    {"wkv7_pretrain_backward", .backward = true},
    {"wkv7_statepass_forward", .state_in = true, .state_out = true},
    {"wkv7_statepass_backward", .backward = true, .state_in = true, .state_out = true},
    {"wkv7_statetune_forward", .state_in = true},
    {"wkv7_statetune_backward", .backward = true, .state_in = true},
    {"wkv7_infer_forward", .state_in = true, .state_out = true, .infer = true},
    {"rapid_sample_forward", .sample = true},
};

// The reference system's cases, then what a step of 0.1b and a prompt of 7.2b take.
static const struct shape wkv_cases[] = {{1, 128, 8, 0, 0},
                                         {2, 256, 8, 0, 0},
                                         {4, 512, 16, 0, 0},
                                         {16, 512, 12, 0, 0},
                                         {1, 512, 64, 0, 0}};
static const struct shape sample_cases[] = {{4, 0, 0, 4096, 50},
                                            {8, 0, 0, 8192, 100},
                                            {16, 0, 0, 16384, 200},
                                            {64, 0, 0, 65536, 50}};

// ---- one call ----------------------------------------------------------------------------------

// Tensors of one case on one backend.
struct bench {
    struct backend *be;
    const struct kernel *k;
    struct shape s;
    bool narrow; // wkv7: all but states is bf16, or in the reference has values that bf16 has
    struct buffer *memory;
    struct tensor r, u, y, S0, ST, saved, dy, dST, dr, du, dS0; // wkv7
    struct tensor logits, rows, token;                          // sample
    struct batch batch;
};

static void lay_out(struct bench *b, struct carver *c) {
    const enum dtype real = b->be->real, t = b->narrow && can_narrow(b->be) ? DT_BF16 : real;
    const size_t R = (size_t)b->s.B * (size_t)(b->s.T ? b->s.T : 1), C = (size_t)b->s.H * HEAD;
    const size_t B = (size_t)b->s.B, V = (size_t)b->s.V;
    if (b->k->sample) {
        b->logits = carve(c, real, 2, (size_t[]){B, V});
        b->rows = carve(c, DT_U8, 2, (size_t[]){B, sizeof(struct sample_row)});
        b->token = carve(c, DT_I32, 1, &B);
        return;
    }
    const size_t state[] = {B, (size_t)b->s.H, HEAD, HEAD};
    const size_t saved = b->be->class->wkv7_saved_bytes(b->be, (int)R, b->s.B, b->s.H, HEAD);
    struct tensor *const rows[] = {&b->r, &b->y, &b->dy, &b->dr};
    struct tensor *const states[] = {&b->S0, &b->ST, &b->dST, &b->dS0};
    for (int i = 0; i < 4; i++) *rows[i] = carve(c, t, 2, (size_t[]){R, C});
    for (int i = 0; i < 4; i++) *states[i] = carve(c, real, 4, state);
    b->u = carve(c, t, 3, (size_t[]){U_COUNT, R, C});
    b->du = carve(c, t, 3, (size_t[]){U_COUNT, R, C});
    b->saved = carve(c, DT_U8, 1, &saved);
    b->batch = (struct batch){.rows = (int)R, .spans = b->s.B};
    b->batch.span = carve(c, DT_I32, 2, (size_t[]){B, 4});
    b->batch.prev = carve(c, DT_I32, 1, &R);
    b->batch.last = carve(c, DT_I32, 1, &R);
}

// Normal numbers times `scale`, or, for `unit`, vectors of that length a head; rounded to bf16 if
// `narrow`.
static void fill(struct backend *be, struct tensor t, uint64_t stream, double scale, bool unit,
                 bool narrow) {
    const size_t n = tensor_count(t);
    double *x = mem_alloc(n * sizeof *x);
    void *raw = mem_alloc(tensor_bytes(t));
    for (size_t i = 0; i < n; i += 2) {
        uint32_t block[4];
        rng_block(block, 1, stream, i);
        const double radius = sqrt(-2 * log(((double)block[0] + 1) * 0x1p-32));
        const double angle = 6.283185307179586 * (double)block[1] * 0x1p-32;
        x[i] = scale * radius * cos(angle);
        if (i + 1 < n) x[i + 1] = scale * radius * sin(angle);
    }
    for (size_t i = 0; unit && i < n; i += HEAD) {
        double sum = 0;
        for (size_t c = 0; c < HEAD; c++) sum += x[i + c] * x[i + c];
        for (size_t c = 0; c < HEAD; c++) x[i + c] *= scale / sqrt(sum);
    }
    if (narrow) {
        dtype_convert(raw, DT_BF16, x, DT_F64, n);
        dtype_convert(x, DT_F64, raw, DT_BF16, n);
    }
    dtype_convert(raw, t.dtype, x, DT_F64, n);
    be->class->upload(be, t, raw);
    free(raw);
    free(x);
}

static void fill_wkv(struct bench *b) {
    struct backend *be = b->be;
    struct span *spans = mem_zero((size_t)b->s.B, sizeof *spans);
    int32_t *ints = mem_zero((size_t)b->batch.rows, sizeof *ints);
    for (int i = 0; i < b->s.B; i++)
        spans[i] = (struct span){.first = i * b->s.T, .len = b->s.T, .slot = i};
    batch_count(&b->batch, spans, b->s.B);
    be->class->upload(be, b->batch.span, spans);
    for (int i = 0; i < b->batch.rows; i++) ints[i] = i % b->s.T ? i - 1 : -1 - i / b->s.T;
    be->class->upload(be, b->batch.prev, ints);
    for (int i = 0; i < b->batch.rows; i++) {
        const int left = b->s.T - 1 - i % b->s.T;
        ints[i] = left ? -left : i / b->s.T;
    }
    be->class->upload(be, b->batch.last, ints);
    free(ints);
    free(spans);
    fill(be, b->r, 1, 1, false, b->narrow);
    fill(be, b->dy, 2, 1, false, b->narrow);
    fill(be, b->S0, 3, 1, false, false);
    fill(be, b->dST, 4, 1, false, false);
    fill(be, tensor_at(b->u, U_W), 5, 1, false, b->narrow);
    fill(be, tensor_at(b->u, U_K), 6, 0.3, false, b->narrow);
    fill(be, tensor_at(b->u, U_V), 7, 1, false, b->narrow);
    fill(be, tensor_at(b->u, U_A), 8, -1, true, b->narrow); // -κ and κ a: the transition shrinks
    fill(be, tensor_at(b->u, U_B), 8, 0.5, true, b->narrow);
}

enum { SPREAD = 4 }; // of logits: some 200 of 65,536 tokens have nine tenths, as in a trained model

static void fill_sample(struct bench *b) {
    struct sample_row *rows = mem_zero((size_t)b->s.B, sizeof *rows);
    for (int i = 0; i < b->s.B; i++)
        rows[i] = (struct sample_row){.temperature = 1,
                                      .top_p = b->s.k == 50 ? 0.95f : 0.9f,
                                      .top_k = b->s.k,
                                      .penalty_decay = 1,
                                      .seed = (uint64_t)i};
    b->be->class->upload(b->be, b->rows, rows);
    fill(b->be, b->logits, 9, SPREAD, false, false);
    free(rows);
}

static int bench_open(struct bench *b, struct backend *be, const struct kernel *k, struct shape s,
                      bool narrow, struct error *err) {
    *b = (struct bench){.be = be, .k = k, .s = s, .narrow = narrow && !k->sample};
    struct carver c = {0};
    lay_out(b, &c);
    if (!(b->memory = buffer_create(be, c.used, err))) return -1;
    c = (struct carver){.buf = b->memory};
    lay_out(b, &c);
    if (k->sample)
        fill_sample(b);
    else
        fill_wkv(b);
    return 0;
}

static void run_forward(struct bench *b) {
    const struct tensor none = tensor_none();
    op_wkv7(b->be, b->y, b->k->state_out ? b->ST : none, b->k->infer ? none : b->saved, b->r, b->u,
            b->k->state_in ? b->S0 : none, &b->batch, b->s.H);
}

static void run_kernel(struct bench *b) {
    const struct tensor none = tensor_none();
    if (b->k->sample)
        op_sample(b->be, b->token, b->logits, b->rows, none, none);
    else if (b->k->backward)
        op_wkv7_bwd(b->be, b->dr, b->du, b->k->state_in ? b->dS0 : none, b->dy, b->r, b->u,
                    b->saved, b->k->state_out ? b->dST : none, &b->batch, b->s.H);
    else
        run_forward(b);
}

// What has to come from memory and go there at least, once each; the backward pass forms six
// gradients. Multiply-adds count two: 9 N² a token and head forward, 24 N² back.
static double work(const struct bench *b, bool bytes) {
    const double RC = (double)b->batch.rows * b->s.H * HEAD,
                 state = (double)b->s.B * b->s.H * HEAD * HEAD;
    if (b->k->sample) return bytes ? 4.0 * b->s.B * b->s.V : 0;
    if (!bytes) return RC * HEAD * (b->k->backward ? 24 : 9);
    return (double)dtype_size(b->r.dtype) * RC * (b->k->backward ? 13 : 7) +
           4 * state * (b->k->state_in + b->k->state_out);
}

// ---- against the reference ---------------------------------------------------------------------

static double *numbers(struct backend *be, struct tensor t) {
    void *raw = mem_alloc(tensor_bytes(t));
    double *x = mem_alloc(tensor_count(t) * sizeof *x);
    be->class->download(be, raw, t);
    if (t.dtype == DT_I32)
        for (size_t i = 0; i < tensor_count(t); i++) x[i] = ((const int32_t *)raw)[i];
    else
        dtype_convert(x, DT_F64, raw, t.dtype, tensor_count(t));
    free(raw);
    return x;
}

// The largest difference relative to the largest number; of tokens the share that differs.
static double difference(const struct bench *a, struct tensor x, const struct bench *b,
                         struct tensor y) {
    double *p = numbers(a->be, x), *q = numbers(b->be, y), worst = 0, scale = 0, differ = 0;
    const size_t n = tensor_count(x);
    for (size_t i = 0; i < n; i++) {
        scale = fmax(scale, fabs(q[i]));
        if (!(fabs(p[i] - q[i]) <= worst)) worst = fabs(p[i] - q[i]);
        differ += p[i] != q[i];
    }
    free(p);
    free(q);
    return x.dtype == DT_I32 ? differ / (double)n : scale > 0 ? worst / scale : worst;
}

// Of the gradients, each relative to its own largest number.
static double gradients_difference(const struct bench *a, const struct bench *b) {
    double worst = difference(a, a->dr, b, b->dr);
    for (int i = 0; i < U_COUNT; i++)
        worst =
            fmax(worst, difference(a, tensor_at(a->du, (size_t)i), b, tensor_at(b->du, (size_t)i)));
    return worst;
}

// The same kernel at a size the reference can do in a moment.
static int compare(double *worst, struct backend *be, struct backend *ref, const struct kernel *k,
                   struct shape s, bool narrow, struct error *err) {
    struct bench a = {0}, b = {0};
    s.B = s.B < 2 ? s.B : 2;
    s.T = s.T < 96 ? s.T : 96;
    s.H = s.H < 3 ? s.H : 3;
    int rc = bench_open(&a, be, k, s, narrow, err);
    if (rc == 0) rc = bench_open(&b, ref, k, s, narrow, err);
    if (rc == 0) {
        struct bench *both[] = {&a, &b};
        for (int i = 0; i < 2; i++) {
            if (k->backward) run_forward(both[i]);
            run_kernel(both[i]);
        }
        rc = be->class->sync(be, err);
    }
    *worst = 0;
    if (rc == 0 && k->sample) *worst = difference(&a, a.token, &b, b.token);
    if (rc == 0 && !k->sample && !k->backward) *worst = difference(&a, a.y, &b, b.y);
    if (rc == 0 && k->backward) *worst = gradients_difference(&a, &b);
    if (rc == 0 && k->infer) *worst = fmax(*worst, difference(&a, a.ST, &b, b.ST));
    buffer_destroy(a.memory);
    buffer_destroy(b.memory);
    return rc;
}

// ---- the report --------------------------------------------------------------------------------

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Seconds of `calls` one after the other, with one wait.
static int time_calls(double *seconds, struct bench *b, int calls, struct error *err) {
    if (b->k->sample) fill(b->be, b->logits, 9, SPREAD, false, false);
    if (b->be->class->sync(b->be, err)) return -1;
    const double start = clock_s();
    for (int i = 0; i < calls; i++) run_kernel(b);
    if (b->be->class->sync(b->be, err)) return -1;
    *seconds = clock_s() - start;
    return 0;
}

// So many calls in a row that a device's launch and wait are a hundredth of it; the sampler, which
// works in place, is called once.
static int time_case(double *median, struct bench *b, int repeat, struct error *err) {
    const double long_enough = 2e-3;
    enum { MOST_CALLS = 64 };
    double *seconds = mem_zero((size_t)repeat, sizeof *seconds), once = 0;
    if (b->k->backward) run_forward(b);
    int rc = time_calls(&once, b, 1, err); // the first one warms up
    if (rc == 0) rc = time_calls(&once, b, 1, err);
    const int calls = b->k->sample                      ? 1
                      : once * MOST_CALLS > long_enough ? 1 + (int)(long_enough / once)
                                                        : MOST_CALLS;
    for (int r = 0; r < repeat && rc == 0; r++) {
        rc = time_calls(&seconds[r], b, calls, err);
        seconds[r] /= calls;
    }
    qsort(seconds, (size_t)repeat, sizeof *seconds, ascending);
    *median = seconds[repeat / 2];
    free(seconds);
    return rc;
}

static void shape_text(char *out, size_t cap, struct shape s) {
    if (s.V)
        snprintf(out, cap, "b%d_v%d_k%d", s.B, s.V, s.k);
    else
        snprintf(out, cap, "b%d_t%d_h%d", s.B, s.T, s.H);
}

static void print_json(const struct bench *b, const char *shape, double us, double share,
                       double error) {
    struct str line;
    struct json_writer w = {.out = &line};
    const struct {
        const char *key;
        double value;
    } values[] = {{"us", us},
                  {"gb_s", work(b, true) / us * 1e-3},
                  {"gflop_s", work(b, false) / us * 1e-3},
                  {"share", share},
                  {"error", error}};
    const char *texts[][2] = {{"kernel", b->k->name}, {"case", shape}, {"backend", b->be->name}};
    str_init(&line, 4096);
    json_open(&w, '{');
    for (int i = 0; i < 3; i++) {
        json_put_key(&w, texts[i][0]);
        json_put_text(&w, texts[i][1], strlen(texts[i][1]));
    }
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        json_put_key(&w, values[i].key);
        json_put_float(&w, values[i].value);
    }
    json_close(&w, '}');
    puts(line.data);
    str_free(&line);
}

struct session {
    const struct cli_args *args;
    struct backend *be, *ref;
    bool narrow;
};

static int run_case(const struct session *s, const struct kernel *k, struct shape shape,
                    struct error *err) {
    struct bench b = {0};
    char text[48];
    double seconds = 0, error = 0;
    shape_text(text, sizeof text, shape);
    int rc = compare(&error, s->be, s->ref, k, shape, s->narrow, err);
    if (rc == 0) rc = bench_open(&b, s->be, k, shape, s->narrow, err);
    if (rc == 0) rc = time_case(&seconds, &b, (int)cli_int(s->args, "repeat"), err);
    buffer_destroy(b.memory);
    if (rc) return fail_in(err, "%s %s", k->name, text);
    // Measured now: neighbours come and go. 0: unknown.
    const double read = 1e9 * s->be->class->measure(s->be, LIMIT_READ);
    const double peak = 1e9 * s->be->class->measure(s->be, LIMIT_F32);
    const double by_bytes = read > 0 ? work(&b, true) / read : 0;
    const double by_flops = peak > 0 ? work(&b, false) / peak : 0;
    const double share = fmax(by_bytes, by_flops) / seconds, us = seconds * 1e6;
    if (cli_flag(s->args, "json"))
        print_json(&b, text, us, share, error);
    else
        printf(
            "%-24s %-16s %10.1f us %8.1f GB/s %9.1f GFLOP/s  %3.0f %% of the limit  off by %.1e\n",
            k->name, text, us, work(&b, true) / us * 1e-3, work(&b, false) / us * 1e-3, 100 * share,
            error);
    const double bound = k->sample ? 0 : 1e-4 + (b.narrow ? 1.0 / 256 : 0); // what rounding costs
    if (error <= bound) return 0;
    return fail(err, E_DEVICE, "%s %s is off by %.1e from the reference, at most %.1e expected",
                k->name, text, error, bound);
}

// "b8_t4096_h32" or "b4_v4096_k50".
static int parse_case(struct shape *out, const char *text, struct error *err) {
    struct shape s = {0};
    int end = 0;
    if (sscanf(text, "b%7d_t%7d_h%7d%n", &s.B, &s.T, &s.H, &end) == 3 && !text[end] && s.B > 0 &&
        s.T > 0 && s.H > 0 && (int64_t)s.B * s.T <= 1 << 20 && s.H <= 1024) {
        *out = s;
        return 0;
    }
    s = (struct shape){0};
    if (sscanf(text, "b%7d_v%7d_k%7d%n", &s.B, &s.V, &s.k, &end) == 3 && !text[end] && s.B > 0 &&
        s.V > 0 && s.k >= 0 && (int64_t)s.B * s.V <= 1 << 28) {
        *out = s;
        return 0;
    }
    return fail(err, E_ARG,
                "--case is \"%s\", expected a shape such as b8_t4096_h32 or b4_v4096_k50", text);
}

static int run_kernels(const struct session *s, struct error *err) {
    const char *name = cli_string(s->args, "kernel"), *only = cli_string(s->args, "case");
    struct shape one;
    int rc = only ? parse_case(&one, only, err) : 0, ran = 0;
    for (size_t i = 0; rc == 0 && i < sizeof kernels / sizeof kernels[0]; i++) {
        const struct kernel *k = &kernels[i];
        if ((name && strcmp(name, k->name)) || (only && (one.V > 0) != k->sample)) continue;
        const struct shape *cases = only ? &one : k->sample ? sample_cases : wkv_cases;
        const size_t count = only        ? 1
                             : k->sample ? sizeof sample_cases / sizeof sample_cases[0]
                                         : sizeof wkv_cases / sizeof wkv_cases[0];
        for (size_t c = 0; rc == 0 && c < count; c++, ran++) rc = run_case(s, k, cases[c], err);
    }
    if (rc == 0 && !ran)
        return fail(err, E_ARG, "--kernel %s does not take the case %s", name, only);
    return rc;
}

static int run(const struct cli_args *args, struct error *err) {
    struct session s = {.args = args};
    int rc = backend_open(&s.be, cli_string(args, "backend"), (int)cli_int(args, "threads"), err);
    if (rc == 0) rc = backend_open(&s.ref, "ref", 1, err);
    s.narrow = !strcmp(cli_string(args, "dtype"), "bf16");
    if (rc == 0 && s.narrow && !can_narrow(s.be))
        rc = fail(err, E_ARG, "--dtype bf16: the backend %s has f32 between products", s.be->name);
    if (rc == 0) rc = run_kernels(&s, err);
    backend_destroy(s.ref);
    backend_destroy(s.be);
    return rc;
}

static const struct cli_option options[] = {
    {"kernel", "NAME",
     .choices = "wkv7_pretrain_forward|wkv7_pretrain_backward|wkv7_statepass_forward|"
                "wkv7_statepass_backward|wkv7_statetune_forward|wkv7_statetune_backward|"
                "wkv7_infer_forward|rapid_sample_forward",
     .help = "only this one"},
    {"case", "SHAPE", .help = "only this shape: bB_tT_hH, or bB_vV_kK for the sampler"},
    {"dtype", "TYPE", .fallback = "f32", .choices = "f32|bf16",
     .help = "what the recurrence's inputs, outputs and gradients are; states stay f32"},
    {"repeat", "N", .fallback = "9", .type = CLI_INT, .min = 1, .max = 10000,
     .help = "repetitions after one to warm up; the median counts"},
    {"json", .type = CLI_FLAG, .help = "print one JSON object a line"},
    OPTION_BACKEND,
    OPTION_THREADS,
    {0},
};

const struct cli_command cmd_bench_kernels = {
    .name = "kernels",
    .summary = "the recurrence, its gradient and the sampler alone, checked against the reference",
    .help =
        "Shapes are sequences, tokens of each and heads of 64 channels. The limit is the larger\n"
        "of the time to read and write each tensor once and that of the multiplications.\n\n"
        "  rwkv bench kernels --kernel wkv7_pretrain_backward --case b16_t512_h12\n"
        "  rwkv bench kernels --backend cuda --dtype bf16 --case b8_t4096_h32\n",
    .options = options,
    .run = run,
};
