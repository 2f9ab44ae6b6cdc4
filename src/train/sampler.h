// A continuation written now and then during training, so that progress can be read.
#pragma once
#include <stdint.h>

struct error;
struct model;
struct tok;

// Continues `prompt` (an empty one: from the start of a document) by num_tokens at temperature 0.8,
// prints it and appends it to DIR/samples.txt.
int sample_write(struct model *m, const struct tok *tok, const char *dir, int64_t step,
                 const char *prompt, int num_tokens, uint64_t seed, struct error *err);
