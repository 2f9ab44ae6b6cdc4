#include "cli.h"
#include "common.h"
#include "sampling.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/model.h"
#include "model/writer.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE = 1 << 20 };

// The official template (SPEC-rwkv7 §8): turns are separated by an empty line, so what a person
// writes must not contain one.
static void clean(char *text) {
    char *to = text;
    for (const char *p = text; *p; p++) {
        if (*p == '\r') continue;
        if (*p == '\n' && (to == text || to[-1] == '\n')) continue;
        *to++ = *p;
    }
    while (to > text && strchr(" \n\t", to[-1])) to--;
    *to = 0;
}

static void feed_text(struct writer *w, const struct tok *tok, const char *text) {
    int32_t *tokens = mem_zero(strlen(text) + 1, sizeof *tokens);
    const size_t n = tok_encode(tok, text, strlen(text), tokens);
    if (n) writer_feed(w, tokens, n);
    free(tokens);
}

// Until the turn ends ("\n\n" or token 0). Newlines are held back until it is known what follows.
static void answer(struct writer *w, const struct tok *tok, const struct writer_options *o,
                   int64_t most) {
    struct utf8 utf8 = {0};
    struct str text;
    size_t shown = 0;
    str_init(&text, 64 << 20);
    for (int64_t i = 0; i < most; i++) {
        const int32_t token = writer_next(w, o);
        size_t len;
        const char *bytes = tok_bytes(tok, token, &len);
        if (token == 0 || utf8_feed(&utf8, bytes, len, &text)) break;
        const char *end = strstr(text.data, "\n\n");
        size_t upto = end ? (size_t)(end - text.data) : text.len;
        if (!end && upto && text.data[upto - 1] == '\n') upto--;
        if (upto > shown) fwrite(text.data + shown, 1, upto - shown, stdout);
        if (upto > shown) shown = upto;
        fflush(stdout);
        if (end) break;
    }
    putchar('\n');
    str_free(&text);
}

static int run(const struct cli_args *args, struct error *err) {
    struct backend *be = NULL;
    struct model *model = NULL;
    struct tok *tok = NULL;
    struct writer *w = NULL;
    struct writer_options o = sampling_from(args);
    char *line = NULL;
    size_t cap = 0;
    int rc = -1;
    if (vocab_open(&tok, cli_string(args, "vocab"), err)) goto out;
    if (model_open_args(&be, &model, args, err)) goto out;
    if (vocab_check(tok, model, err)) goto out;
    if (writer_create(&w, model, err)) goto out;
    const bool tty = isatty(0) == 1;
    if (tty) printf("Write, and end with Enter. /new forgets the conversation, /quit leaves.\n");
    writer_feed(w, (const int32_t[]){0}, 1);
    if (cli_given(args, "system")) {
        feed_text(w, tok, "System: ");
        feed_text(w, tok, cli_string(args, "system"));
        feed_text(w, tok, "\n\n");
    }
    for (;;) {
        if (tty) printf("\n> ");
        fflush(stdout);
        if (getline(&line, &cap, stdin) < 0) break;
        clean(line);
        if (strcmp(line, "/quit") == 0) break;
        if (strcmp(line, "/new") == 0) {
            writer_reset(w);
            writer_feed(w, (const int32_t[]){0}, 1);
            continue;
        }
        if (!*line || strlen(line) > MAX_LINE) continue;
        feed_text(w, tok, "User: ");
        feed_text(w, tok, line);
        feed_text(w, tok, "\n\nAssistant:");
        answer(w, tok, &o, cli_int(args, "max-tokens"));
        feed_text(w, tok, "\n\n");
        o.seed++; // another turn, another draw
    }
    rc = 0;
out:
    free(line);
    writer_destroy(w);
    model_destroy(model);
    backend_destroy(be);
    tok_close(tok);
    return rc;
}

static const struct cli_option options[] = {
    OPTION_WEIGHTS,
    OPTION_VOCAB,
    {"system", "TEXT", .help = "what the model is told before the conversation"},
    {"max-tokens", "N", .fallback = "1000", .type = CLI_INT, .min = 1, .max = 1e9,
     .help = "the longest answer"},
    SAMPLING_OPTIONS,
    OPTION_BACKEND,
    OPTION_DTYPE,
    OPTION_STATE_DTYPE,
    OPTION_THREADS,
    {0},
};

const struct cli_command cmd_chat = {
    .name = "chat",
    .summary = "talk with a chat model in the terminal",
    .help = "Wants a model that was trained on conversations (RWKV-7 World or G1); a base model\n"
            "only goes on writing the dialogue.\n"
            "\n"
            "  rwkv chat --weights model.pth --vocab assets/rwkv_vocab_v20230424.txt \\\n"
            "      --top-p 0.3 --presence-penalty 0.5 --repetition-penalty 0.5\n",
    .options = options,
    .run = run,
};
