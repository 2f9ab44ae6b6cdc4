// Log probabilities of a row of logits: of one token and of the most probable ones.
#pragma once
#include "infer/engine.h"

// How many entries a token is reported with.
int logprob_count(const struct engine_job *job);
// out[0] is `token`, then come the job's `top` most probable tokens in order (the lower id first
// among equals; -1 where there are no more) and its candidates. logits (V).
void logprob_row(struct engine_logprob *out, const float *logits, int V, int32_t token,
                 const struct engine_job *job);
