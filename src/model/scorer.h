// How probable a model finds given tokens: losses and whether each was its first choice.
#pragma once
#include "model/forward.h"

struct scorer;
int scorer_create(struct scorer **out, struct model *m, struct error *err);
void scorer_destroy(struct scorer *s); // NULL is fine

// Reads tokens (n ≥ 2) from a zero state. For i ≥ 1: losses[i-1] = -log p(tokens[i] | those
// before), hits[i-1] = tokens[i] was the argmax. hits may be NULL.
void scorer_run(struct scorer *s, const int32_t *tokens, size_t n, double *losses, bool *hits);
