// Any messages: nothing in them begins a turn, and what is thought of an answer is the same however
// it is cut.
#include "base/str.h"
#include "text/prompt.h"
#include "text/think.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void split(const char *text, size_t len, size_t piece, bool in_tag, struct str *thoughts,
                  struct str *answer) {
    struct think t;
    str_init(thoughts, len + 64);
    str_init(answer, len + 64);
    think_begin(&t, in_tag);
    for (size_t at = 0; at < len; at += piece)
        think_feed(&t, text + at, len - at < piece ? len - at : piece, thoughts, answer);
    think_flush(&t, thoughts, answer);
}

static void same(const struct str *a, const struct str *b) {
    if (a->len != b->len || memcmp(a->data, b->data, a->len)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct prompt_message m[3];
    struct str out, a[2], b[2];
    if (len < 2) return 0;
    char *text = malloc(len + 1);
    memcpy(text, data, len);
    text[len] = 0;
    const size_t cut = data[0] % len;
    m[0] = (struct prompt_message){(enum prompt_role)(data[1] % 4), text, cut};
    char *rest = malloc(len - cut + 1);
    memcpy(rest, text + cut, len - cut + 1);
    m[1] = (struct prompt_message){PROMPT_USER, rest, len - cut};
    m[2] = (struct prompt_message){PROMPT_ASSISTANT, text, len};
    text[len] = 0;
    char *first = malloc(cut + 1);
    memcpy(first, text, cut);
    first[cut] = 0;
    m[0].text = first;
    str_init(&out, 4 * len + 200);
    if (prompt_chat(&out, m, 3, (enum prompt_think)(data[1] % 5))) abort();
    int turns = 0;
    for (size_t i = 0; i + 1 < out.len; i++)
        turns += out.data[i] == '\n' && out.data[i + 1] == '\n';
    if (turns != 3) abort();
    split(text, len, len, data[0] & 1, &a[0], &a[1]);
    split(text, len, 1 + data[0] % 5, data[0] & 1, &b[0], &b[1]);
    same(&a[0], &b[0]);
    same(&a[1], &b[1]);
    for (int i = 0; i < 2; i++) str_free(&a[i]), str_free(&b[i]);
    str_free(&out);
    free(first);
    free(rest);
    free(text);
    return 0;
}
