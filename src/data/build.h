// From text to tokens: JSONL documents or plain text files into .bin/.idx.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct tok;

enum { BUILD_MAX_LINE = 64 << 20, BUILD_MAX_TEXT = 1 << 30 };

struct build_options {
    const char *const *inputs; // .jsonl: one {"text": …} a line; anything else: plain text
    size_t num_inputs;
    const char *output; // prefix
    bool shuffle;       // documents, by seed
    uint64_t seed;
    double held_out;  // below 1: that share of the documents; else so many; 0: none.
                      // They go to "<output>-val", picked evenly by seed.
    bool split_blank; // plain text: documents are separated by two blank lines or more
};

struct build_result {
    uint64_t documents, tokens, bytes;                // in output
    uint64_t held_documents, held_tokens, held_bytes; // in output-val
};

// Every document is checked to decode to itself. Progress goes to stderr. On failure neither output
// is touched.
int build_run(struct build_result *out, const struct tok *tok, const struct build_options *o,
              struct error *err);
