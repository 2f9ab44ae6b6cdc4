#include "cli.h"
#include "common.h"
#include "sampling.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/model.h"
#include "model/writer.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPT = 64 << 20 };

static int read_prompt(struct str *out, const struct cli_args *args, struct error *err) {
    str_init(out, MAX_PROMPT);
    const bool continued = cli_given(args, "state-in") && !cli_given(args, "prompt-file");
    if (!cli_given(args, "prompt") && continued) return 0; // the state knows what came before
    if (cli_given(args, "prompt") == cli_given(args, "prompt-file"))
        return fail(err, E_ARG, "wanted one of --prompt TEXT and --prompt-file FILE");
    if (cli_given(args, "prompt-file")) return file_read(out, cli_string(args, "prompt-file"), err);
    return str_puts(out, cli_string(args, "prompt"))
               ? fail(err, E_LIMIT, "the prompt is longer than %d bytes", MAX_PROMPT)
               : 0;
}

// Prints the text as it comes, whole code points only.
static void write_text(struct writer *w, const struct tok *tok, const struct str *prompt,
                       const struct cli_args *args) {
    const struct writer_options o = sampling_from(args);
    int32_t *tokens = mem_zero(prompt->len + 1, sizeof *tokens);
    // Token 0 starts a document; a state that was loaded is already inside one.
    const size_t begin = cli_given(args, "state-in") ? 0 : 1;
    const size_t len = begin + tok_encode(tok, prompt->data, prompt->len, tokens + begin);
    const double start = clock_s();
    if (len) writer_feed(w, tokens, len);
    const double fed = clock_s();
    struct utf8 utf8 = {0};
    struct str text;
    int64_t n = 0;
    str_init(&text, 1 << 16);
    if (!cli_flag(args, "only-new")) fwrite(prompt->data, 1, prompt->len, stdout);
    for (; n < cli_int(args, "max-tokens"); n++) {
        const int32_t token = writer_next(w, &o);
        size_t bytes;
        const char *data = tok_bytes(tok, token, &bytes);
        if (token == 0 && !cli_flag(args, "ignore-end")) break;
        str_clear(&text);
        utf8_feed(&utf8, data, bytes, &text);
        fwrite(text.data, 1, text.len, stdout);
        fflush(stdout);
    }
    str_clear(&text);
    utf8_flush(&utf8, &text);
    fwrite(text.data, 1, text.len, stdout);
    putchar('\n');
    if (cli_flag(args, "stats"))
        fprintf(stderr, "prompt: %zu tokens, %.1f tok/s; generated: %lld tokens, %.1f tok/s\n", len,
                (double)len / (fed - start + 1e-9), (long long)n,
                (double)n / (clock_s() - fed + 1e-9));
    str_free(&text);
    free(tokens);
}

static int run(const struct cli_args *args, struct error *err) {
    struct backend *be = NULL;
    struct model *model = NULL;
    struct tok *tok = NULL;
    struct writer *writer = NULL;
    struct str prompt;
    int rc = -1;
    if (read_prompt(&prompt, args, err)) goto out;
    if (vocab_open(&tok, cli_string(args, "vocab"), err)) goto out;
    if (model_open_args(&be, &model, args, err)) goto out;
    if (vocab_check(tok, model, err)) goto out;
    if (writer_create(&writer, model, err)) goto out;
    const char *in = cli_string(args, "state-in"), *keep = cli_string(args, "state-out");
    if (in && writer_load(writer, in, tok_hash(tok), err)) goto out;
    write_text(writer, tok, &prompt, args);
    rc = keep ? writer_save(writer, keep, tok_hash(tok), err) : 0;
out:
    writer_destroy(writer);
    model_destroy(model);
    backend_destroy(be);
    tok_close(tok);
    str_free(&prompt);
    return rc;
}

static const struct cli_option options[] = {
    OPTION_WEIGHTS,
    OPTION_VOCAB,
    {"prompt", "TEXT", .help = "the text to continue; \"\" starts a new document"},
    {"prompt-file", "FILE", .help = "the text to continue, from a file"},
    {"max-tokens", "N", .fallback = "200", .type = CLI_INT, .min = 1, .max = 1e9,
     .help = "stop after so many tokens, if the model does not end the document before"},
    {"state-in", "FILE", .help = "go on from a state that --state-out wrote"},
    {"state-out", "FILE", .help = "write the state after the text, to go on from later"},
    {"only-new", .type = CLI_FLAG, .help = "don't print the prompt"},
    {"ignore-end", .type = CLI_FLAG, .help = "go on past the end of a document"},
    {"stats", .type = CLI_FLAG, .help = "print the speed on stderr"},
    SAMPLING_OPTIONS,
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_STATE_DTYPE,
    OPTION_THREADS,
    {0},
};

const struct cli_command cmd_generate = {
    .name = "generate",
    .summary = "continue a text",
    .help = "A base model continues what it is given; it does not answer questions.\n"
            "\n"
            "  rwkv generate --weights runs/demo/weights.pth --vocab bytes \\\n"
            "      --prompt \"And it came to pass\" --temperature 0.8 --seed 7\n"
            "\n"
            "The same seed and options give the same text. --temperature 0 always takes the most\n"
            "probable token.\n",
    .options = options,
    .run = run,
};
