#include "train/sampler.h"

#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/writer.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20 };

static void continue_text(struct writer *w, const struct tok *tok, const char *prompt, int n,
                          uint64_t seed, struct str *text) {
    const struct writer_options o = {.temperature = 0.8f,
                                     .top_p = 0.95f,
                                     .penalty_decay = 1,
                                     .seed = seed};
    int32_t *tokens = mem_zero(strlen(prompt) + 1, sizeof *tokens); // token 0 starts a document
    const size_t len = tok_encode(tok, prompt, strlen(prompt), tokens + 1);
    struct utf8 utf8 = {0};
    writer_feed(w, tokens, len + 1);
    for (int i = 0; i < n; i++) {
        const int32_t token = writer_next(w, &o);
        size_t bytes;
        const char *data = tok_bytes(tok, token, &bytes);
        if (token == 0 || utf8_feed(&utf8, data, bytes, text)) break;
    }
    utf8_flush(&utf8, text);
    free(tokens);
}

int sample_write(struct model *m, const struct tok *tok, const char *dir, int64_t step,
                 const char *prompt, int num_tokens, uint64_t seed, struct error *err) {
    struct writer *w;
    struct str text;
    int rc = 0;
    if (writer_create(&w, m, err)) return -1;
    str_init(&text, MAX_TEXT);
    continue_text(w, tok, prompt, num_tokens, seed, &text);
    fprintf(stderr, "--- sample after step %lld ---\n%s%s\n---\n", (long long)step, prompt,
            text.data);
    char *path = path_join(dir, "samples.txt");
    FILE *f = fopen(path, "a");
    if (!f)
        rc = fail(err, E_IO, "%s: cannot open: %s", path, strerror(errno));
    else
        fprintf(f, "--- step %lld ---\n%s%s\n\n", (long long)step, prompt, text.data);
    if (f && fclose(f)) rc = fail(err, E_IO, "%s: cannot write: %s", path, strerror(errno));
    free(path);
    str_free(&text);
    writer_destroy(w);
    return rc;
}
