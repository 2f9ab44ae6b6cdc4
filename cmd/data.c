#include "cli.h"
#include "common.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/str.h"
#include "data/binidx.h"
#include "data/build.h"
#include "data/order.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

// ---- build -------------------------------------------------------------------------------------

static int build(const struct cli_args *args, struct error *err) {
    struct tok *tok;
    struct build_result r;
    const char **inputs = cli_strings(args, "input");
    const struct build_options o = {.inputs = inputs,
                                    .num_inputs = cli_count(args, "input"),
                                    .output = cli_string(args, "output"),
                                    .shuffle = cli_given(args, "shuffle"),
                                    .seed = (uint64_t)cli_int(args, "shuffle"),
                                    .held_out = cli_float(args, "held-out"),
                                    .split_blank = cli_flag(args, "split-blank")};
    char *dir = path_dir(o.output);
    int rc = vocab_open(&tok, cli_string(args, "vocab"), err);
    if (rc == 0) {
        const double start = clock_s();
        rc = file_mkdirs(dir, err);
        if (rc == 0) rc = build_run(&r, tok, &o, err);
        const double s = clock_s() - start;
        if (rc == 0)
            printf("%s: %llu documents, %llu tokens from %.1f MB in %.1f s (%.1f MB/s)\n", o.output,
                   (ull)r.documents, (ull)r.tokens, (double)r.bytes * 1e-6, s,
                   (double)(r.bytes + r.held_bytes) * 1e-6 / s);
        if (rc == 0 && o.held_out > 0)
            printf("%s-val: %llu documents, %llu tokens held out\n", o.output,
                   (ull)r.held_documents, (ull)r.held_tokens);
        tok_close(tok);
    }
    free(dir);
    free(inputs);
    return rc;
}

static const struct cli_option build_options[] = {
    {"input", "FILE", .repeat = true, .required = true,
     .help =
         "a .jsonl file with one {\"text\": …} a line, \"-\" for the same on standard input, or "
         "a plain text"},
    {"output", "PREFIX", .required = true, .help = "PREFIX.bin and PREFIX.idx are written"},
    OPTION_VOCAB,
    {"shuffle", "SEED", .type = CLI_INT, .min = 0, .max = 9e15,
     .help = "shuffle the documents; the same seed gives the same order"},
    {"held-out", "N", .fallback = "0", .type = CLI_FLOAT, .min = 0, .max = 1e12,
     .help = "documents for validation, to PREFIX-val: a share below 1, or how many"},
    {"split-blank", .type = CLI_FLAG,
     .help = "plain text: two blank lines or more separate documents"},
    {0},
};

static const struct cli_command cmd_build = {
    .name = "build",
    .summary = "tokenise text into PREFIX.bin and PREFIX.idx",
    .help = "  rwkv data build --input corpus.jsonl --output data/corpus --vocab bytes \\\n"
            "      --shuffle 42 --held-out 0.01\n"
            "\n"
            "Each document is followed by token 0. The files are RWKV-LM's binidx: other trainers\n"
            "read them, and theirs are read here.\n",
    .options = build_options,
    .run = build,
};

// ---- info --------------------------------------------------------------------------------------

int data_page(struct str *out, const char *prefix, struct error *err) {
    struct binidx *b;
    if (binidx_open(&b, prefix, err)) return -1;
    str_printf(out,
               "documents    %llu\ntokens       %llu (u16, %.1f MB)\nlargest id   %u\n"
               "xxh3         %016llx\ncontext      magic prime (windows that training visits)\n",
               (ull)b->num_documents, (ull)b->num_tokens, (double)b->bin.len * 1e-6,
               (unsigned)binidx_max_token(b), (ull)binidx_hash(b));
    for (uint64_t ctx = 128; ctx <= 8192; ctx *= 2) {
        const uint64_t p = order_magic_prime(b->num_tokens, ctx);
        if (p)
            str_printf(out, "%7llu      %llu\n", (ull)ctx, (ull)p);
        else
            str_printf(out, "%7llu      too few tokens\n", (ull)ctx);
    }
    binidx_close(b);
    return 0;
}

static int info(const struct cli_args *args, struct error *err) {
    struct str page;
    str_init(&page, 4096);
    const int rc = data_page(&page, cli_string(args, "PREFIX"), err);
    fputs(page.data, stdout);
    str_free(&page);
    return rc;
}

static const struct cli_option info_options[] = {
    {"PREFIX", .operand = true, .required = true, .help = "of PREFIX.bin and PREFIX.idx"},
    {0},
};

static const struct cli_command cmd_info = {
    .name = "info",
    .summary = "what a tokenised text holds",
    .options = info_options,
    .help = "  rwkv data info data/corpus\n",
    .run = info,
};

// ---- check -------------------------------------------------------------------------------------

static int check_document(const struct binidx *b, uint64_t i, const struct tok *tok,
                          struct error *err) {
    const uint64_t start = binidx_document_start(b, i), end = binidx_document_start(b, i + 1);
    if (end == start || b->tokens[end - 1] != 0)
        return fail(err, E_FORMAT, "%s: document %llu does not end with token 0", b->prefix,
                    (ull)i);
    for (uint64_t t = start; t + 1 < end; t++) {
        size_t len;
        tok_bytes(tok, b->tokens[t], &len);
        if (!len)
            return fail(err, E_FORMAT,
                        "%s: document %llu holds token %u, which is not in the vocabulary",
                        b->prefix, (ull)i, (unsigned)b->tokens[t]);
    }
    return 0;
}

static int check(const struct cli_args *args, struct error *err) {
    struct binidx *b = NULL;
    struct tok *tok;
    if (vocab_open(&tok, cli_string(args, "vocab"), err)) return -1;
    int rc = binidx_open(&b, cli_string(args, "PREFIX"), err);
    for (uint64_t i = 0; rc == 0 && i < b->num_documents; i++) rc = check_document(b, i, tok, err);
    if (rc == 0)
        printf("%s: %llu documents, %llu tokens, all in the vocabulary\n", b->prefix,
               (ull)b->num_documents, (ull)b->num_tokens);
    binidx_close(b);
    tok_close(tok);
    return rc;
}

static const struct cli_option check_options[] = {
    {"PREFIX", .operand = true, .required = true, .help = "of PREFIX.bin and PREFIX.idx"},
    OPTION_VOCAB,
    {0},
};

static const struct cli_command cmd_check = {
    .name = "check",
    .summary = "check a tokenised text against a vocabulary",
    .help = "  rwkv data check data/corpus --vocab bytes\n",
    .options = check_options,
    .run = check,
};

static const struct cli_command *const below[] = {&cmd_build, &cmd_info, &cmd_check, NULL};

const struct cli_command cmd_data = {
    .name = "data",
    .summary = "tokenise text for training, look at it, check it",
    .help =
        "Training reads .bin/.idx files: all documents as 16-bit tokens, and where they begin.\n",
    .commands = below,
};
