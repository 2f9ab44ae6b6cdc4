// Log probabilities of a row of logits: of one token and of the most probable ones.
#pragma once
#include "infer/engine.h"

// out[0] is `token`, out[1..top] the most probable tokens in order (the lower id first among
// equals). logits (V).
void logprob_row(struct engine_logprob *out, const float *logits, int V, int32_t token, int top);
