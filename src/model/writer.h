// One sequence at a time: a prompt goes in, tokens come out. For the command line and for samples
// during training; many sequences at once are src/infer's.
#pragma once
#include "backend/ops.h"
#include "model/forward.h"

struct writer_options {
    float temperature, top_p, min_p;
    float presence, repetition, frequency, penalty_decay;
    int top_k;
    uint64_t seed;
};

// Owns its run, state and buffers; borrows the model. One owner thread.
struct writer;
int writer_create(struct writer **out, struct model *m, struct error *err);
void writer_destroy(struct writer *w); // NULL is fine

// Forgets everything: an empty sequence with no penalties.
void writer_reset(struct writer *w);
// Appends tokens; afterwards the next one can be drawn. len ≥ 1.
void writer_feed(struct writer *w, const int32_t *tokens, size_t len);
// Draws the next token after the last one fed, and feeds it when the following is asked for.
int32_t writer_next(struct writer *w, const struct writer_options *o);

// Logits (V, f32) after the last token fed; copied to `out`.
void writer_logits(struct writer *w, float *out);

// The whole sequence to and from a file (model/state_file.h): what is written after loading is what
// would have been written without. vocab_hash 0: not known.
int writer_save(struct writer *w, const char *path, uint64_t vocab_hash, struct error *err);
int writer_load(struct writer *w, const char *path, uint64_t vocab_hash, struct error *err);
