// Raw numbers for comparison with other implementations.
#include "cli.h"
#include "common.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/forward.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCH_FILE = 64 << 20, MAX_TOKENS = 1 << 20, ROWS = 64 };

// ---- logits ------------------------------------------------------------------------------------

static int check_token(int64_t token, const struct model *m, struct error *err) {
    if (token >= 0 && token < m->dims.V) return 0;
    return fail(err, E_ARG, "token %lld is outside the model's vocabulary of %d", (long long)token,
                m->dims.V);
}

static int parse_tokens(int32_t **out, int *count, const char *text, const struct model *m,
                        struct error *err) {
    int32_t *tokens = mem_zero(strlen(text) / 2 + 1, sizeof *tokens);
    int n = 0;
    for (const char *p = text; *p;) {
        char *end;
        errno = 0;
        const long long token = strtoll(p, &end, 10);
        if (end == p || errno || (*end && !strchr(" ,\t\n", *end))) {
            free(tokens);
            return fail(err, E_ARG, "--tokens: \"%.20s\" is not a token id", p);
        }
        if (check_token(token, m, err)) {
            free(tokens);
            return -1;
        }
        tokens[n++] = (int32_t)token;
        for (p = end; *p && strchr(" ,\t\n", *p);) p++;
    }
    *out = tokens;
    *count = n;
    return n ? 0 : fail(err, E_ARG, "--tokens names no token");
}

static void print_rows(struct model *m, struct tensor logits) {
    const size_t V = (size_t)m->dims.V;
    const bool exact = m->be->real == DT_F64;
    char *raw = mem_alloc(tensor_bytes(logits));
    struct str line;
    str_init(&line, 32 * V + 64);
    m->be->class->download(m->be, raw, logits);
    for (size_t r = 0; r < logits.dim[0]; r++) {
        struct json_writer w = {.out = &line};
        str_clear(&line);
        json_open(&w, '[');
        for (size_t v = 0; v < V; v++) {
            if (exact)
                json_put_float(&w, ((const double *)(const void *)raw)[r * V + v]);
            else
                json_put_float32(&w, ((const float *)(const void *)raw)[r * V + v]);
        }
        json_close(&w, ']');
        puts(line.data);
    }
    str_free(&line);
    free(raw);
}

static int print_logits(struct model *m, const int32_t *tokens, int count, struct error *err) {
    struct run *run = NULL;
    struct feed *feed = NULL;
    struct state *state = NULL;
    int32_t rows[ROWS];
    int rc = -1;
    for (int i = 0; i < ROWS; i++) rows[i] = i;
    const struct run_limits limits = {.rows = ROWS, .spans = 1, .outs = ROWS, .mode = RUN_INFER};
    if (run_create(&run, m, limits, err) ||
        feed_create(&feed, m->be, (struct feed_limits){ROWS, 1, ROWS}, err) ||
        state_create(&state, m, 1, err))
        goto out;
    state_zero(state, 0);
    for (int at = 0; at < count; at += ROWS) {
        const struct span span = {.len = count - at < ROWS ? count - at : ROWS, .pos = at};
        feed_set(feed, &span, 1, tokens + at, rows, span.len, NULL);
        print_rows(m, model_forward(m, run, feed, state));
    }
    rc = 0;
out:
    run_destroy(run);
    feed_destroy(feed);
    state_destroy(state);
    return rc;
}

static int run_logits(const struct cli_args *args, struct error *err) {
    struct backend *be = NULL;
    struct model *m = NULL;
    int32_t *tokens = NULL;
    int count, rc = -1;
    if (model_open_args(&be, &m, args, err)) return -1;
    if (parse_tokens(&tokens, &count, cli_string(args, "tokens"), m, err) == 0)
        rc = print_logits(m, tokens, count, err);
    free(tokens);
    model_destroy(m);
    backend_destroy(be);
    return rc;
}

// ---- gradients ---------------------------------------------------------------------------------

// {"idx": [[…]], "targets": [[…]]}, B rows of T.
struct batch_file {
    int B, T;
    int32_t *idx, *targets;
};

static int read_grid(int32_t **out, int *B, int *T, const struct json *doc, const char *key,
                     const struct model *m, int64_t lowest, struct error *err) {
    const struct json *rows = json_member(doc, key);
    if (json_check_kind(rows, JSON_KIND_ARRAY, key, err)) return -1;
    const size_t b = json_length(rows);
    const size_t t = b ? json_length(json_item(rows, 0)) : 0;
    if (!b || !t || b > MAX_TOKENS || t > MAX_TOKENS || b * t > MAX_TOKENS)
        return fail(err, E_FORMAT, "%s: %zu rows of %zu tokens, expected 1 to %d tokens in all",
                    key, b, t, MAX_TOKENS);
    *out = mem_zero(b * t, sizeof **out);
    for (size_t i = 0; i < b; i++) {
        const struct json *row = json_item(rows, i);
        if (json_check_kind(row, JSON_KIND_ARRAY, key, err)) return -1;
        if (json_length(row) != t)
            return fail(err, E_FORMAT, "%s[%zu] has %zu tokens, the first row has %zu", key, i,
                        json_length(row), t);
        for (size_t k = 0; k < t; k++) {
            int64_t token;
            if (json_read_int(&token, json_item(row, k), lowest, m->dims.V - 1, key, err))
                return -1;
            (*out)[i * t + k] = (int32_t)token;
        }
    }
    *B = (int)b;
    *T = (int)t;
    return 0;
}

static int read_batch(struct batch_file *b, const char *path, const struct model *m,
                      struct error *err) {
    struct str text;
    struct json *doc = NULL;
    int B, T, rc = -1;
    str_init(&text, MAX_BATCH_FILE);
    if (file_read(&text, path, err) ||
        json_parse(&doc, text.data, text.len, MAX_BATCH_FILE, path, err))
        goto out;
    // A target of -1 counts for nothing.
    if (read_grid(&b->idx, &b->B, &b->T, doc, "idx", m, 0, err) ||
        read_grid(&b->targets, &B, &T, doc, "targets", m, -1, err)) {
        fail_in(err, "%s", path);
        goto out;
    }
    if (B != b->B || T != b->T) {
        fail(err, E_FORMAT, "%s: idx is (%d,%d), targets is (%d,%d)", path, b->B, b->T, B, T);
        goto out;
    }
    rc = 0;
out:
    json_free(doc);
    str_free(&text);
    return rc;
}

static int write_grads(struct model *m, const struct batch_file *b, const struct cli_args *args,
                       struct error *err) {
    struct run *run = NULL;
    struct feed *feed = NULL;
    int rc = -1;
    const int rows = b->B * b->T;
    const struct run_limits limits = {.rows = rows,
                                      .spans = b->B,
                                      .mode = cli_flag(args, "grad-checkpoint") ? RUN_CHECKPOINT
                                                                                : RUN_TRAIN};
    if (run_create(&run, m, limits, err) ||
        feed_create(&feed, m->be, (struct feed_limits){rows, b->B, 0}, err))
        goto out;
    feed_set_grid(feed, b->B, b->T, b->idx, b->targets);
    const double n = feed->num_targets ? feed->num_targets : 1;
    const bool l2wrap = strcmp(cli_string(args, "l2wrap"), "on") == 0;
    const double loss = model_loss(m, run, feed, GRADIENT_NEW, 1 / n, l2wrap) / n;
    if (m->be->class->sync(m->be, err) || model_save_grads(m, cli_string(args, "out"), err))
        goto out;
    struct str line;
    struct json_writer w = {.out = &line};
    str_init(&line, 256);
    json_open(&w, '{');
    json_put_key(&w, "loss");
    json_put_float(&w, loss);
    json_close(&w, '}');
    puts(line.data);
    str_free(&line);
    rc = 0;
out:
    run_destroy(run);
    feed_destroy(feed);
    return rc;
}

static int run_grads(const struct cli_args *args, struct error *err) {
    const struct model_options options = {.precision = precision_parse(cli_string(args, "dtype")),
                                          .trained = true};
    struct backend *be = NULL;
    struct model *m = NULL;
    struct batch_file b = {0};
    int rc = -1;
    if (backend_open(&be, cli_string(args, "backend"), (int)cli_int(args, "threads"), err))
        return -1;
    if (model_open(&m, be, cli_string(args, "weights"), options, err)) goto out;
    if (read_batch(&b, cli_string(args, "batch"), m, err)) goto out;
    rc = write_grads(m, &b, args, err);
out:
    free(b.idx);
    free(b.targets);
    model_destroy(m);
    backend_destroy(be);
    return rc;
}

// ------------------------------------------------------------------------------------------------

static const struct cli_option logits_options[] = {
    OPTION_WEIGHTS,
    {"tokens", "IDS", .required = true, .help = "token ids, separated by spaces or commas"},
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_STATE_DTYPE,
    OPTION_THREADS,
    {0},
};

static const struct cli_command logits = {
    .name = "logits",
    .summary = "print the logits after each token, one JSON array a line",
    .help = "  rwkv verify logits --weights model.pth --tokens \"1 2 3\"\n",
    .options = logits_options,
    .run = run_logits,
};

static const struct cli_option grads_options[] = {
    OPTION_WEIGHTS,
    {"batch", "FILE", .required = true,
     .help = "JSON: {\"idx\": [[…]], \"targets\": [[…]]}, a target of -1 counting for nothing"},
    {"out", "FILE", .required = true, .help = "where the gradients go: .safetensors or .pth"},
    {"l2wrap", "on|off", .fallback = "on", .choices = "on|off",
     .help = "with L2Wrap's share, as in training, or of the cross entropy alone"},
    {"grad-checkpoint", .type = CLI_FLAG, .help = "compute layers again on the way back"},
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_THREADS,
    {0},
};

static const struct cli_command grads = {
    .name = "grads",
    .summary = "write the gradient of every parameter and print the loss",
    .help = "  rwkv verify grads --weights model.pth --batch batch.json --out grads.safetensors\n"
            "\n"
            "The loss is the mean over all targets; gradients are of that mean, not clipped.\n",
    .options = grads_options,
    .run = run_grads,
};

extern const struct cli_command cmd_verify_repeat;

static const struct cli_command *const below[] = {&logits, &grads, &cmd_verify_repeat, NULL};

const struct cli_command cmd_verify = {
    .name = "verify",
    .summary =
        "raw logits and gradients, to compare with other implementations and with themselves",
    .help = "Numbers of logits and grads are printed so that they read back exactly.\n",
    .commands = below,
};
