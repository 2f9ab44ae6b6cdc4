#include "cli.h"
#include "common.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "data/binidx.h"
#include "data/loader.h"
#include "data/ngram.h"
#include "model/model.h"
#include "model/scorer.h"
#include "text/tok.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE = 1 << 20 };

static void show_progress(double done, double all) {
    static double shown;
    if (!isatty(2) || clock_s() - shown < 0.2) return;
    shown = clock_s();
    fprintf(stderr, "\r%5.1f %%\x1b[K", 100 * done / all);
}

static void end_progress(void) {
    if (isatty(2)) fprintf(stderr, "\r\x1b[K");
}

// ---- a tokenised text --------------------------------------------------------------------------

// Mean loss over consecutive windows from zero state, as validation during training does.
static int eval_data(struct scorer *s, const struct model *m, const struct tok *tok,
                     const struct binidx *data, const struct cli_args *args, struct error *err) {
    const int ctx = (int)cli_int(args, "context");
    uint64_t windows = window_count(data, ctx);
    const uint64_t most = (uint64_t)cli_int(args, "max-tokens") / (uint64_t)ctx;
    if (most && most < windows) windows = most;
    if (!windows)
        return fail(err, E_ARG, "%s: %llu tokens hold no window of %d; lower --context",
                    data->prefix, (unsigned long long)data->num_tokens, ctx);
    int32_t *tokens = mem_zero(2 * (size_t)ctx + 1, sizeof *tokens), *targets = tokens + ctx;
    double *losses = mem_zero((size_t)ctx, sizeof *losses), nats = 0, bytes = 0;
    int rc = 0;
    for (uint64_t w = 0; rc == 0 && w < windows; w++) {
        rc = window_read(data, w, ctx, m->dims.V, tokens, targets, err);
        if (rc) break;
        for (int i = 0; i < ctx; i++) {
            size_t len = 0;
            if (tok) tok_bytes(tok, targets[i], &len);
            bytes += (double)len;
        }
        const int32_t last = targets[ctx - 1];
        tokens[ctx] = last; // the window and the token after it, in a row
        scorer_run(s, tokens, (size_t)ctx + 1, losses, NULL);
        for (int i = 0; i < ctx; i++) nats += losses[i];
        show_progress((double)w + 1, (double)windows);
    }
    end_progress();
    const double n = (double)windows * ctx;
    if (rc == 0) {
        printf("tokens %.0f, loss %.6f nats per token, perplexity %.4f", n, nats / n,
               exp(nats / n));
        if (bytes > 0) printf(", %.6f bits per byte", nats / log(2) / bytes);
        putchar('\n');
    }
    free(tokens);
    free(losses);
    return rc;
}

// ---- LAMBADA -----------------------------------------------------------------------------------

struct lambada {
    double log_p;
    int64_t passages, correct;
};

// SPEC-rwkv7 §10: token 0 and all but the last word go in; every token of " word" must be the
// argmax.
static int lambada_passage(struct lambada *sum, struct scorer *s, const struct tok *tok,
                           const char *text, size_t len, struct error *err) {
    size_t cut = len;
    while (cut > 0 && text[cut - 1] != ' ') cut--;
    if (cut < 2) return fail(err, E_FORMAT, "a passage without a space");
    cut--; // the space belongs to the word
    int32_t *tokens = mem_zero(len + 1, sizeof *tokens);
    double *losses = mem_zero(len + 1, sizeof *losses);
    bool *hits = mem_zero(len + 1, sizeof *hits);
    const size_t prefix = 1 + tok_encode(tok, text, cut, tokens + 1);
    const size_t n = prefix + tok_encode(tok, text + cut, len - cut, tokens + prefix);
    bool all = true;
    scorer_run(s, tokens, n, losses, hits);
    for (size_t i = prefix; i < n; i++) {
        sum->log_p -= losses[i - 1];
        all = all && hits[i - 1];
    }
    sum->passages++;
    sum->correct += all;
    free(tokens);
    free(losses);
    free(hits);
    return 0;
}

static int eval_lambada(struct scorer *s, const struct tok *tok, const char *path, int64_t most,
                        struct error *err) {
    FILE *f = fopen(path, "r");
    if (!f) return fail(err, E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct lambada sum = {0};
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0;
    while (rc == 0 && sum.passages < most && (n = getline(&line, &cap, f)) > 0) {
        struct json *doc;
        const char *text;
        size_t len;
        char name[300];
        snprintf(name, sizeof name, "%.200s:%lld", path, (long long)sum.passages + 1);
        rc = json_parse(&doc, line, (size_t)n, MAX_LINE, name, err);
        if (rc) break;
        rc = json_read_text(&text, &len, json_member(doc, "text"), "text", err);
        if (rc == 0) rc = lambada_passage(&sum, s, tok, text, len, err);
        if (rc) fail_in(err, "%s", name);
        json_free(doc);
        show_progress((double)sum.passages, (double)(most < 5153 ? most : 5153));
    }
    end_progress();
    if (rc == 0 && !sum.passages) rc = fail(err, E_FORMAT, "%s: holds no passage", path);
    if (rc == 0)
        printf("passages %lld, perplexity %.4f, accuracy %.2f %%\n", (long long)sum.passages,
               exp(-sum.log_p / (double)sum.passages),
               100 * (double)sum.correct / (double)sum.passages);
    free(line);
    fclose(f);
    return rc;
}

// ---- counting ----------------------------------------------------------------------------------

static int eval_order2(const char *train_prefix, const struct binidx *data, struct error *err) {
    struct binidx *train;
    struct ngram *table;
    double nats;
    if (binidx_open(&train, train_prefix, err)) return -1;
    const int vocab =
        1 + (binidx_max_token(train) > binidx_max_token(data) ? binidx_max_token(train)
                                                              : binidx_max_token(data));
    int rc = ngram_create(&table, train->tokens, train->num_tokens, vocab, err);
    if (rc == 0) {
        rc = ngram_loss(&nats, table, data->tokens, data->num_tokens, err);
        if (rc == 0) printf("order-2 count table: loss %.6f nats per token\n", nats);
        ngram_destroy(table);
    }
    binidx_close(train);
    return rc;
}

// ------------------------------------------------------------------------------------------------

static int eval_model(const struct cli_args *args, const struct binidx *data, struct error *err) {
    struct backend *be = NULL;
    struct model *model = NULL;
    struct tok *tok = NULL;
    struct scorer *scorer = NULL;
    int rc = -1;
    if (!cli_given(args, "weights")) return fail(err, E_ARG, "--weights FILE is wanted");
    if (cli_given(args, "lambada") && !cli_given(args, "vocab"))
        return fail(err, E_ARG, "--lambada wants --vocab FILE");
    if (cli_given(args, "vocab") && vocab_open(&tok, cli_string(args, "vocab"), err)) goto out;
    if (model_open_args(&be, &model, args, err)) goto out;
    if (tok && vocab_check(tok, model, err)) goto out;
    if (scorer_create(&scorer, model, err)) goto out;
    rc = data ? eval_data(scorer, model, tok, data, args, err)
              : eval_lambada(scorer, tok, cli_string(args, "lambada"),
                             cli_int(args, "max-passages"), err);
out:
    scorer_destroy(scorer);
    model_destroy(model);
    backend_destroy(be);
    tok_close(tok);
    return rc;
}

static int run(const struct cli_args *args, struct error *err) {
    struct binidx *data = NULL;
    if (cli_given(args, "data") == cli_given(args, "lambada"))
        return fail(err, E_ARG, "wanted one of --data PREFIX and --lambada FILE");
    if (cli_given(args, "order2") && !cli_given(args, "data"))
        return fail(err, E_ARG, "--order2 wants --data PREFIX to be judged on");
    if (cli_given(args, "data") && binidx_open(&data, cli_string(args, "data"), err)) return -1;
    const int rc = cli_given(args, "order2") ? eval_order2(cli_string(args, "order2"), data, err)
                                             : eval_model(args, data, err);
    binidx_close(data);
    return rc;
}

static const struct cli_option options[] = {
    {"weights", "FILE", .help = "the model: a .pth, .safetensors or .gguf file"},
    {"vocab", "FILE", .help = "the vocabulary, for bits per byte and for --lambada"},
    {"data", "PREFIX", .help = "loss on a tokenised text, PREFIX.bin and PREFIX.idx"},
    {"context", "N", .fallback = "512", .type = CLI_INT, .min = 1, .max = 1e6,
     .help = "tokens of a window; each starts from an empty state"},
    {"max-tokens", "N", .fallback = "0", .type = CLI_INT, .min = 0, .max = 9e15,
     .help = "look at no more than so many tokens; 0 takes all"},
    {"lambada", "FILE", .help = "LAMBADA's passages, one {\"text\": …} a line"},
    {"max-passages", "N", .fallback = "1000000", .type = CLI_INT, .min = 1, .max = 1e9,
     .help = "look at no more than so many passages"},
    {"order2", "PREFIX",
     .help = "instead of a model: a table of counts of order 2 over this text, as a yardstick"},
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_STATE_DTYPE,
    OPTION_THREADS,
    {0},
};

const struct cli_command cmd_eval = {
    .name = "eval",
    .summary = "measure a model: loss, perplexity, bits per byte, LAMBADA",
    .help = "  rwkv eval --weights runs/demo/weights.pth --vocab bytes --data data/demo/val\n"
            "  rwkv eval --weights model.pth --vocab assets/rwkv_vocab_v20230424.txt \\\n"
            "      --lambada lambada_test.jsonl\n"
            "  rwkv eval --order2 data/demo/train --data data/demo/val\n",
    .options = options,
    .run = run,
};
