// Speed of whole passes with random weights: decoding, prefill, training. What load tests do is in
// bench_serve.c and bench_report.c.
#include "cli.h"
#include "common.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/forward.h"
#include "train/optimizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

// The released sizes, with the ranks they were released with, and two small ones.
static const struct {
    const char *name;
    struct dims dims; // L C H V, w a v g
} sizes[] = {
    {"demo", {4, 128, 2, 257, 32, 32, 32, 64}},
    {"28m", {8, 512, 8, 512, 64, 64, 32, 128}},
    {"0.1b", {12, 768, 12, 65536, 64, 64, 32, 128}},
    {"0.4b", {24, 1024, 16, 65536, 64, 64, 32, 128}},
    {"1.5b", {24, 2048, 32, 65536, 96, 96, 64, 256}},
    {"2.9b", {32, 2560, 40, 65536, 96, 96, 64, 320}},
    {"7.2b", {32, 4096, 64, 65536, 128, 128, 96, 480}},
    {"13.3b", {61, 4096, 64, 65536, 192, 192, 128, 384}},
};

struct bench {
    const struct cli_args *args;
    struct dims dims;
    struct backend *be;
    struct model *model;
    int batch, tokens, repeat;
    int writers;     // sequences that write a token beside the batch
    double *seconds; // of each repetition
    double work;     // tokens of one repetition
    double flops;    // of one repetition, matrices only
    double bytes;    // of one repetition: what has to come from memory at least
    bool in_turn;    // bytes and flops do not overlap
    // The machine's limits, measured after each repetition.
    double *read, *peak; // bytes/s, flop/s
};

// ---- what is measured --------------------------------------------------------------------------

static int32_t *random_tokens(size_t n, int V) {
    int32_t *t = mem_zero(n, sizeof *t);
    for (size_t i = 0; i < n; i++) t[i] = (int32_t)((i * 2654435761u + 12345) % (unsigned)V);
    return t;
}

static double matrix_params(const struct dims *d, bool head) {
    const double C = d->C, R = d->Dw + d->Da + d->Dv + d->Dg;
    return d->L * (12 * C * C + 2 * C * R) + (head ? (double)d->V * C : 0);
}

// Bytes of the matrices as they are stored.
static double weight_bytes(const struct bench *b, bool head) {
    double bytes = 0;
    for (int i = 0; i < b->model->num_params; i++) {
        const struct param *p = &b->model->params[i];
        if (p->matrix && !p->unused && (head || p->id != P_HEAD))
            bytes +=
                (double)b->be->class->weight_bytes(b->be, p->dim[0], p->dim[1],
                                                   model_precision(b->model->options, p), false);
    }
    return bytes;
}

// Repetition r is over. Limits are measured in between, for they change with the neighbours.
static void note(struct bench *b, int r, double seconds) {
    const struct precision p = b->model->options.precision;
    const enum limit limit = p.stored == DT_INT8 || p.stored == DT_INT4 ? LIMIT_INT8
                             : p.inputs == DT_BF16                      ? LIMIT_BF16
                                                                        : LIMIT_F32;
    if (r < 0) return; // it warmed up
    b->seconds[r] = seconds;
    b->read[r] = 1e9 * b->be->class->measure(b->be, LIMIT_READ);
    b->peak[r] = 1e9 * b->be->class->measure(b->be, limit);
}

// B sequences, a token each a step: `tokens` steps a repetition.
static int bench_decode(struct bench *b, struct error *err) {
    const int B = b->batch;
    struct run *run = NULL;
    struct feed *feed = NULL;
    struct state *state = NULL;
    struct span *spans = mem_zero((size_t)B, sizeof *spans);
    int32_t *tokens = random_tokens((size_t)B, b->dims.V),
            *rows = mem_zero((size_t)B, sizeof *rows);
    int rc = -1;
    if (run_create(&run, b->model, (struct run_limits){B, B, B, 0, RUN_INFER}, err) ||
        feed_create(&feed, b->be, (struct feed_limits){B, B, B}, err) ||
        state_create(&state, b->model, B, err))
        goto out;
    for (int i = 0; i < B; i++) rows[i] = i;
    for (int r = -1; r < b->repeat; r++) { // the first one warms up
        const double start = clock_s();
        for (int t = 0; t < b->tokens; t++) {
            for (int i = 0; i < B; i++)
                spans[i] = (struct span){.first = i, .len = 1, .slot = i, .pos = t};
            feed_set(feed, spans, B, tokens, rows, B, NULL);
            model_forward(b->model, run, feed, state);
        }
        if (b->be->class->sync(b->be, err)) goto out;
        note(b, r, clock_s() - start);
    }
    b->work = (double)B * b->tokens;
    b->flops = 2 * matrix_params(&b->dims, true) * b->work;
    // All weights, and every sequence's state to and fro.
    b->bytes = b->tokens * (weight_bytes(b, true) + 2.0 * (double)state_bytes(b->model, B));
    rc = 0;
out:
    run_destroy(run);
    feed_destroy(feed);
    state_destroy(state);
    free(spans);
    free(tokens);
    free(rows);
    return rc;
}

// B prompts of `tokens` each at once, and as many sequences as write a token meanwhile; logits of
// each one's last token.
static int bench_prefill(struct bench *b, struct error *err) {
    const int B = b->batch, T = b->tokens;
    b->writers = (int)cli_int(b->args, "writers");
    const int all = b->writers + B, R = b->writers + B * T; // sequences, rows
    struct run *run = NULL;
    struct feed *feed = NULL;
    struct state *state = NULL;
    struct span *spans = mem_zero((size_t)all, sizeof *spans);
    int32_t *tokens = random_tokens((size_t)R, b->dims.V),
            *rows = mem_zero((size_t)all, sizeof *rows);
    int rc = -1;
    if (run_create(&run, b->model, (struct run_limits){R, all, all, 0, RUN_INFER}, err) ||
        feed_create(&feed, b->be, (struct feed_limits){R, all, all}, err) ||
        state_create(&state, b->model, all, err))
        goto out;
    for (int i = 0, row = 0; i < all; i++) {
        spans[i] = (struct span){.first = row, .len = i < B ? T : 1, .slot = i};
        row += spans[i].len;
        rows[i] = row - 1;
    }
    for (int r = -1; r < b->repeat; r++) {
        const double start = clock_s();
        feed_set(feed, spans, all, tokens, rows, all, NULL);
        model_forward(b->model, run, feed, state);
        if (b->be->class->sync(b->be, err)) goto out;
        note(b, r, clock_s() - start);
    }
    b->work = R;
    b->flops = 2 * matrix_params(&b->dims, false) * b->work + 2.0 * b->dims.V * b->dims.C * all;
    b->bytes = weight_bytes(b, true) + 2.0 * (double)state_bytes(b->model, b->writers);
    rc = 0;
out:
    run_destroy(run);
    feed_destroy(feed);
    state_destroy(state);
    free(spans);
    free(tokens);
    free(rows);
    return rc;
}

// Writes a step down: forward, backward, norm, AdamW.
static void begin_step(struct bench *b, struct run *run, struct feed *feed, struct optimizer *opt,
                       const int32_t *tokens, int step) {
    optimizer_begin(opt, 1e-5, step);
    feed_set_grid(feed, b->batch, b->tokens, tokens, tokens + 1);
    model_pass(b->model, run, feed, GRADIENT_NEW, 1.0 / ((double)b->batch * b->tokens), true);
    optimizer_losses(opt, run_losses(run), false);
    optimizer_step(opt);
}

// Whole steps, as many in a row as a repetition has: the next one is written down while the device
// is at work, as in training.
static int bench_train(struct bench *b, struct error *err) {
    const int B = b->batch, T = b->tokens, steps = (int)cli_int(b->args, "steps");
    const bool checkpointing = cli_flag(b->args, "grad-checkpoint");
    const struct backend_class *class = b->be->class;
    const struct optimizer_options o = {
        .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-18, .clip = 1, .w0_lr_scale = 2};
    struct run *run = NULL;
    struct feed *feed = NULL;
    struct optimizer *opt = NULL;
    int32_t *tokens = random_tokens((size_t)B * (size_t)T + 1, b->dims.V);
    const struct run_limits limits = {B * T, B, 0, 0, checkpointing ? RUN_CHECKPOINT : RUN_TRAIN};
    double sums[2];
    int rc = -1, step = 0, begun = 0;
    if (run_create(&run, b->model, limits, err) ||
        feed_create(&feed, b->be, (struct feed_limits){B * T, B, 0}, err) ||
        optimizer_create(&opt, b->model, o, NULL, err))
        goto out;
    for (int r = -1; r < b->repeat; r++) {
        const double start = clock_s();
        for (int i = 0; i < steps; i++) {
            begin_step(b, run, feed, opt, tokens, ++step);
            class->fetch(b->be, sums, opt->sums);
            begun++;
            for (; begun > (i + 1 < steps ? b->be->depth - 1 : 0); begun--)
                if (class->fetched(b->be, err)) goto out;
        }
        note(b, r, (clock_s() - start) / steps);
    }
    b->work = (double)B * T;
    b->flops = (checkpointing ? 8 : 6) * matrix_params(&b->dims, true) * b->work;
    b->bytes = 28.0 * (double)dims_param_count(&b->dims); // AdamW: four numbers read, three written
    b->in_turn = true;
    rc = 0;
out:
    run_destroy(run);
    feed_destroy(feed);
    optimizer_destroy(opt);
    free(tokens);
    return rc;
}

// ---- around it ---------------------------------------------------------------------------------

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, ascending);
    return x[n / 2];
}

static void report(struct bench *b, const char *what) {
    struct rusage usage;
    struct str line;
    getrusage(RUSAGE_SELF, &usage);
    const double median = median_of(b->seconds, b->repeat), least = b->seconds[0];
    const double read = median_of(b->read, b->repeat), peak = median_of(b->peak, b->repeat);
    const double by_bytes = read > 0 ? b->bytes / read : 0,
                 by_flops = peak > 0 ? b->flops / peak : 0;
    const double floor = b->in_turn            ? by_bytes + by_flops
                         : by_bytes > by_flops ? by_bytes
                                               : by_flops;
    const char *file = cli_string(b->args, "weights");
    const char *size = file ? file : cli_string(b->args, "size"),
               *dtype = cli_string(b->args, "dtype"),
               *states = b->model->options.half_states ? " (f16 states)" : "";
    char writers[32] = "";
    if (b->writers) snprintf(writers, sizeof writers, ", writers %d", b->writers);
    if (!cli_flag(b->args, "json")) {
        printf(
            "%s %s %s%s, batch %d, tokens %d%s: %.1f tok/s (median of %d; %.3f ms, least %.3f ms), "
            "%.1f GB/s, %.1f GFLOP/s",
            what, size, dtype, states, b->batch, b->tokens, writers, b->work / median, b->repeat,
            median * 1e3, least * 1e3, b->bytes / median * 1e-9, b->flops / median * 1e-9);
        if (floor > 0)
            printf("; %.0f %% of the limit (%.1f GB/s, %.0f GFLOP/s)", 100 * floor / median,
                   read * 1e-9, peak * 1e-9);
        printf(", peak memory %.0f MB\n", (double)usage.ru_maxrss / 1024);
        return;
    }
    const struct {
        const char *key;
        double value;
    } numbers[] = {{"batch", b->batch},
                   {"tokens", b->tokens},
                   {"writers", b->writers},
                   {"repeat", b->repeat},
                   {"tok_s", b->work / median},
                   {"median_s", median},
                   {"min_s", least},
                   {"bytes", b->bytes},
                   {"flops", b->flops},
                   {"gflop_s", b->flops / median * 1e-9},
                   {"read_gb_s", read * 1e-9},
                   {"peak_gflops", peak * 1e-9},
                   {"floor_s", floor},
                   {"share", floor / median},
                   {"peak_memory_bytes", (double)usage.ru_maxrss * 1024}};
    const char *texts[][2] = {{"bench", what},
                              {"size", size},
                              {"dtype", dtype},
                              {"backend", b->be->name}};
    struct json_writer w = {.out = &line};
    str_init(&line, 4096);
    json_open(&w, '{');
    for (int i = 0; i < 4; i++) {
        json_put_key(&w, texts[i][0]);
        json_put_text(&w, texts[i][1], strlen(texts[i][1]));
    }
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        json_put_key(&w, numbers[i].key);
        json_put_float(&w, numbers[i].value);
    }
    json_close(&w, '}');
    puts(line.data);
    str_free(&line);
}

// By name, or as layers, channels and vocabulary: "6x256x512", heads of 64 and the usual ranks.
static int find_size(struct dims *out, const char *text, struct error *err) {
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (strcmp(sizes[i].name, text) == 0) {
            *out = sizes[i].dims;
            return 0;
        }
    struct dims d = {0};
    int end = 0;
    if (sscanf(text, "%7dx%7dx%7d%n", &d.L, &d.C, &d.V, &end) != 3 || text[end])
        return fail(err, E_ARG,
                    "--size is \"%s\", expected demo, 28m, 0.1b, 0.4b, 1.5b, 2.9b, 7.2b, 13.3b or "
                    "LAYERSxCHANNELSxVOCABULARY, such as 6x256x512",
                    text);
    d.H = d.C / 64;
    dims_default_ranks(&d);
    if (dims_check(&d, err)) return fail_in(err, "--size %s", text);
    *out = d;
    return 0;
}

static int make_model(struct bench *b, const struct cli_args *args, struct model_options options,
                      struct error *err) {
    if (find_size(&b->dims, cli_string(args, "size"), err) ||
        model_create(&b->model, b->be, &b->dims, options, err))
        return -1;
    return model_randomise(b->model, 1, cli_flag(args, "sparse"), err);
}

// The weights of a file, or random ones.
static int open_model(struct bench *b, const struct cli_args *args, struct model_options options,
                      struct error *err) {
    const char *file = cli_string(args, "weights");
    if (!file) return make_model(b, args, options, err);
    if (model_open(&b->model, b->be, file, options, err)) return -1;
    b->dims = b->model->dims;
    return 0;
}

static int measure(const struct cli_args *args, const char *what, bool trained,
                   int (*run)(struct bench *, struct error *), struct error *err) {
    struct bench b = {.args = args,
                      .tokens = (int)cli_int(args, "tokens"),
                      .repeat = (int)cli_int(args, "repeat")};
    const struct model_options options = {.precision = precision_parse(cli_string(args, "dtype")),
                                          .trained = trained,
                                          .half_states =
                                              !trained &&
                                              strcmp(cli_string(args, "state-dtype"), "f16") == 0};
    b.seconds = mem_zero(3 * (size_t)b.repeat, sizeof *b.seconds);
    b.read = b.seconds + b.repeat;
    b.peak = b.read + b.repeat;
    const size_t given = cli_count(args, "batch");
    const char **batches = cli_strings(args, "batch");
    int rc = backend_open(&b.be, cli_string(args, "backend"), (int)cli_int(args, "threads"), err);
    if (rc == 0) rc = open_model(&b, args, options, err);
    for (size_t i = 0; i == 0 || i < given; i++) {
        b.batch = given ? atoi(batches[i]) : 1;
        if (rc == 0) rc = run(&b, err);
        if (rc == 0) report(&b, what);
    }
    model_destroy(b.model);
    backend_destroy(b.be);
    free(batches);
    free(b.seconds);
    return rc;
}

static int run_decode(const struct cli_args *args, struct error *err) {
    return measure(args, "decode", false, bench_decode, err);
}

static int run_prefill(const struct cli_args *args, struct error *err) {
    return measure(args, "prefill", false, bench_prefill, err);
}

static int run_train(const struct cli_args *args, struct error *err) {
    return measure(args, "train", true, bench_train, err);
}

// The random weights themselves: something to serve where only speed counts.
static int run_weights(const struct cli_args *args, struct error *err) {
    struct bench b = {.args = args};
    // What is trained can be saved.
    const struct model_options options = {.precision = {DT_F32, DT_F32}, .trained = true};
    int rc = backend_open(&b.be, "cpu", 0, err);
    if (!rc) rc = make_model(&b, args, options, err);
    if (!rc) rc = model_save(b.model, cli_string(args, "OUT"), DT_BF16, err);
    model_destroy(b.model);
    backend_destroy(b.be);
    return rc;
}

#define OPTION_SIZE                                                                                \
    {                                                                                              \
        "size", "NAME", .fallback = "0.1b",                                                        \
                        .help = "which model: demo, 28m, 0.1b, 0.4b, 1.5b, 2.9b, 7.2b, 13.3b, or " \
                                "LAYERSxCHANNELSxVOCABULARY"                                       \
    }
#define OPTION_SPARSE                                                                              \
    {                                                                                              \
        "sparse", .type = CLI_FLAG,                                                                \
                  .help = "weights that leave most of relu² zero, as trained ones do"             \
    }
#define BENCH_OPTIONS(default_tokens)                                                              \
    OPTION_SIZE,                                                                                   \
        {"batch",                                                                                  \
         "B",                                                                                      \
         .repeat = true,                                                                           \
         .type = CLI_INT,                                                                          \
         .min = 1,                                                                                 \
         .max = 65536,                                                                             \
         .help = "sequences at once (default 1); given more than once, one after the other with "  \
                 "the same weights"},                                                              \
        {"tokens",                                                                                 \
         "N",                                                                                      \
         .fallback = default_tokens,                                                               \
         .type = CLI_INT,                                                                          \
         .min = 1,                                                                                 \
         .max = 1 << 20,                                                                           \
         .help = "tokens of a sequence in one repetition"},                                        \
        {"repeat",                                                                                 \
         "N",                                                                                      \
         .fallback = "5",                                                                          \
         .type = CLI_INT,                                                                          \
         .min = 1,                                                                                 \
         .max = 10000,                                                                             \
         .help = "repetitions after one to warm up; the median counts"},                           \
        {"weights", "FILE", .help = "a model's weights instead of random ones"}, OPTION_SPARSE,    \
        {"json", .type = CLI_FLAG, .help = "print a JSON object a line"}, OPTION_BACKEND,          \
        OPTION_DTYPE, OPTION_THREADS

static const struct cli_option decode_options[] = {BENCH_OPTIONS("32"), OPTION_STATE_DTYPE, {0}};
static const struct cli_option prefill_options[] = {
    BENCH_OPTIONS("512"),
    OPTION_STATE_DTYPE,
    {"writers", "N", .fallback = "0", .type = CLI_INT, .min = 0, .max = 32768,
     .help = "sequences that write a token in the same step, as a server has them; their tokens "
             "count too"},
    {0},
};
static const struct cli_option train_options[] = {
    BENCH_OPTIONS("512"),
    {"grad-checkpoint", .type = CLI_FLAG, .help = "compute layers again on the way back"},
    {"steps", "N", .fallback = "1", .type = CLI_INT, .min = 1, .max = 10000,
     .help = "steps in a row in one repetition; their mean counts"},
    {0},
};

static const struct cli_option weights_options[] = {
    OPTION_SIZE,
    OPTION_SPARSE,
    {"OUT", .operand = true, .required = true, .help = "the file, .safetensors or .pth"},
    {0},
};

static const struct cli_command decode = {
    .name = "decode",
    .summary = "one token a sequence and step",
    .help = "  rwkv bench decode --size 0.1b --dtype bf16 --batch 8\n",
    .options = decode_options,
    .run = run_decode,
};
static const struct cli_command prefill = {
    .name = "prefill",
    .summary = "whole prompts, logits of their last tokens",
    .help = "  rwkv bench prefill --size 0.1b --tokens 512\n",
    .options = prefill_options,
    .run = run_prefill,
};
static const struct cli_command train = {
    .name = "train",
    .summary = "whole training steps",
    .help = "  rwkv bench train --size 28m --batch 2 --tokens 512\n",
    .options = train_options,
    .run = run_train,
};

static const struct cli_command weights = {
    .name = "weights",
    .summary = "the random weights that are measured, in a file",
    .help = "  rwkv bench weights --size 0.1b random.safetensors\n",
    .options = weights_options,
    .run = run_weights,
};

extern const struct cli_command cmd_bench_kernels, cmd_bench_serve, cmd_bench_report;

static const struct cli_command *const below[] = {
    &decode,          &prefill,          &train, &weights, &cmd_bench_kernels,
    &cmd_bench_serve, &cmd_bench_report, NULL,
};

const struct cli_command cmd_bench = {
    .name = "bench",
    .summary = "measure the speed of models and of servers",
    .help = "decode, prefill and train take random weights; their timings are medians of\n"
            "repetitions after a warm-up, and nothing is written anywhere. serve sends requests\n"
            "to a server that runs, and report draws what came of it.\n",
    .commands = below,
};
