// What counting alone can predict: a table of how often a token followed its two predecessors. A
// model that is worth its training time beats it. Meant for byte vocabularies.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct error;

enum { NGRAM_MAX_VOCAB = 512, NGRAM_MAX_TOKENS = 1 << 30 };

// The weight δ of the shorter context, in tokens. On five held-out books of the King James Bible,
// counted on the other 61, nats per byte for δ = 1, 16, 64, 256,
// 1024: 1.977 1.940 1.923 1.911 1.920.
enum { NGRAM_DELTA = 256 };

// Read-only once made, so any thread may ask. 12 bytes for each training token.
struct ngram;

// Counts `tokens`, which are copied. -1 when one of them is not below `vocab`, when vocab is not in
// [1, 512] or when there are more than 2^30 tokens.
int ngram_create(struct ngram **out, const uint16_t *tokens, size_t num_tokens, int vocab,
                 struct error *err);
void ngram_destroy(struct ngram *g);

// p(next | before2 before1), with all three below vocab; positive, and the sum over `next` is 1. Of
// order k, with c(·) the counts and p₋₁ = 1/vocab:
//   p_k(x | context) = (c(context x) + δ p_{k-1}(x | shorter context)) / (c(context) + δ)
double ngram_prob(const struct ngram *g, int before2, int before1, int next);

// Mean of -ln p over a text, in nats per token. Before the first token there were two tokens 0,
// the end of a document. -1 when a token is not below the vocabulary, or there is no token.
int ngram_loss(double *nats, const struct ngram *g, const uint16_t *tokens, size_t num_tokens,
               struct error *err);
