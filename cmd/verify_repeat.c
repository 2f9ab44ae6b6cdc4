// The same gradients again and again: what differs from one time to the next is a race in a kernel,
// or a machine that makes mistakes.
#include "cli.h"
#include "common.h"

#include "backend/ops.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHOWN = 8 }; // gradients that are named when a pass differs

struct repeat {
    struct model *m;
    struct run *run;
    struct feed *feed;
    struct buffer *memory;
    struct tensor sums; // (params) Σ g² of each
    int params;
    double *first, *now; // the sums of the first pass and of this one, then the loss
};

static int repeat_open(struct repeat *r, struct model *m, int B, int T, struct error *err) {
    const int rows = B * T;
    const struct run_limits limits = {.rows = rows, .spans = B, .mode = RUN_TRAIN};
    r->m = m;
    r->params = params_count(&m->dims);
    r->first = mem_zero(2 * ((size_t)r->params + 1), sizeof *r->first);
    r->now = r->first + r->params + 1;
    if (run_create(&r->run, m, limits, err) ||
        feed_create(&r->feed, m->be, (struct feed_limits){rows, B, 0}, err))
        return -1;
    r->memory = buffer_create(m->be, (size_t)r->params * sizeof(double), err);
    if (!r->memory) return fail_in(err, "memory for sums");
    r->sums =
        (struct tensor){.buf = r->memory, .dtype = DT_F64, .ndim = 1, .dim = {(size_t)r->params}};
    int32_t *tokens = mem_zero((size_t)rows + 1, sizeof *tokens);
    for (int i = 0; i <= rows; i++)
        tokens[i] = (int32_t)(rng_u64(1, 0, (uint64_t)i) % (uint64_t)m->dims.V);
    feed_set_grid(r->feed, B, T, tokens, tokens + 1);
    free(tokens);
    return 0;
}

static void repeat_close(struct repeat *r) {
    run_destroy(r->run);
    feed_destroy(r->feed);
    buffer_destroy(r->memory);
    free(r->first);
}

static int one_pass(struct repeat *r, double *to, struct error *err) {
    struct model *m = r->m;
    const double n = r->feed->num_targets;
    to[r->params] = model_loss(m, r->run, r->feed, GRADIENT_NEW, 1 / n, true) / n;
    for (int i = 0; i < r->params; i++) {
        const struct param *p = &m->params[i];
        op_sumsq(m->be, tensor_slice(r->sums, (size_t)i, 1),
                 tensor_slice(m->grad, p->offset, p->count), false);
    }
    m->be->class->download(m->be, to, r->sums);
    return m->be->class->sync(m->be, err);
}

static bool differs(const struct repeat *r, int i) {
    return memcmp(&r->first[i], &r->now[i], sizeof r->now[i]) != 0;
}

// The way back goes from the last layer to the first: the first one it has spoiled is named first.
static void report_difference(const struct repeat *r, long pass) {
    int count = 0, layer = r->m->dims.L;
    for (int i = 0; i < r->params; i++) count += differs(r, i);
    printf("pass %ld: loss %.9g, was %.9g; %d of %d gradients differ:\n", pass, r->now[r->params],
           r->first[r->params], count, r->params);
    for (count = 0; layer >= 0 && count < SHOWN; layer--)
        for (int i = 0; i < r->params && count < SHOWN; i++) {
            const struct param *p = &r->m->params[i];
            // The head and its norm come before all layers, the embedding behind them.
            const bool is_head = p->id == P_HEAD || p->id == P_OUT_W || p->id == P_OUT_B;
            const int at = is_head ? r->m->dims.L : p->layer;
            if (at != layer || !differs(r, i)) continue;
            printf("  %s: root of the sum of squares %.9g, was %.9g\n", p->name, sqrt(r->now[i]),
                   sqrt(r->first[i]));
            count++;
        }
    fflush(stdout);
}

static int repeat_passes(struct repeat *r, long times, struct error *err) {
    const bool tty = isatty(STDERR_FILENO);
    const double start = clock_s();
    double shown = start, norm = 0;
    long other = 0;
    if (one_pass(r, r->first, err)) return -1;
    for (int i = 0; i < r->params; i++) norm += r->first[i];
    if (!isfinite(norm) || !isfinite(r->first[r->params]))
        return fail(err, E_DEVICE, "the first pass has a loss of %g and gradients of %g",
                    r->first[r->params], sqrt(norm));
    for (long pass = 2; pass <= times; pass++) {
        if (one_pass(r, r->now, err)) return -1;
        bool same = true;
        for (int i = 0; i <= r->params; i++) same &= !differs(r, i);
        if (!same && other++ < SHOWN) report_difference(r, pass);
        if (clock_s() - shown < (tty ? 0.2 : 10)) continue;
        shown = clock_s();
        fprintf(stderr, "%s%ld of %ld passes, %ld differ, %.1f a second%s", tty ? "\r" : "", pass,
                times, other, (double)pass / (shown - start), tty ? " " : "\n");
    }
    if (tty) fputc('\n', stderr);
    if (other) return fail(err, E_DEVICE, "%ld of %ld passes differ from the first", other, times);
    printf("%ld passes are alike: loss %.9g, gradients %.9g\n", times, r->first[r->params],
           sqrt(norm));
    return 0;
}

static int run_repeat(const struct cli_args *args, struct error *err) {
    const struct model_options options = {.precision = precision_parse(cli_string(args, "dtype")),
                                          .trained = true};
    struct backend *be = NULL;
    struct model *m = NULL;
    struct repeat r = {0};
    int rc = -1;
    if (backend_open(&be, cli_string(args, "backend"), (int)cli_int(args, "threads"), err))
        return -1;
    if (model_open(&m, be, cli_string(args, "weights"), options, err) == 0 &&
        repeat_open(&r, m, (int)cli_int(args, "batch"), (int)cli_int(args, "tokens"), err) == 0)
        rc = repeat_passes(&r, (long)cli_int(args, "times"), err);
    repeat_close(&r);
    model_destroy(m);
    backend_destroy(be);
    return rc;
}

static const struct cli_option options[] = {
    OPTION_WEIGHTS,
    {"times", "N", .fallback = "100", .type = CLI_INT, .min = 2, .max = 100000000,
     .help = "how many passes"},
    {"batch", "B", .fallback = "1", .type = CLI_INT, .min = 1, .max = 4096,
     .help = "sequences of a pass"},
    {"tokens", "T", .fallback = "64", .type = CLI_INT, .min = 1, .max = 65536,
     .help = "tokens of a sequence; they are drawn"},
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_THREADS,
    {0},
};

const struct cli_command cmd_verify_repeat = {
    .name = "repeat",
    .summary = "compute the same gradients many times and compare them",
    .help =
        "  rwkv bench weights --size 0.1b w.safetensors\n"
        "  rwkv verify repeat --weights w.safetensors --backend cuda --dtype bf16 \\\n"
        "      --batch 16 --tokens 512 --times 10000\n"
        "\n"
        "The same pass has the same bits on the same machine. The loss and the sum of the squares\n"
        "of each parameter's gradient are compared with the first pass; where one differs, the\n"
        "gradients are named, those of the last layer first, and the exit status is 1: a kernel\n"
        "has a race, or the machine makes mistakes.\n",
    .options = options,
    .run = run_repeat,
};
