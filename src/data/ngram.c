#include "data/ngram.h"

#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

// A context and the token after it are one key, 9 bits a token, the latest lowest. Sorted keys need
// no table: how often a key or a context occurs is the length of a range.
enum { TOKEN_BITS = 9, ORDERS = 3 };

struct ngram {
    uint32_t *keys[ORDERS]; // of order k: the last k + 1 tokens, ascending
    size_t num_keys;
    int vocab;
};

static int check_tokens(const uint16_t *tokens, size_t num_tokens, int vocab, struct error *err) {
    for (size_t i = 0; i < num_tokens; i++)
        if (tokens[i] >= vocab)
            return fail(err, E_FORMAT, "token %d at position %zu is outside the vocabulary of %d",
                        tokens[i], i, vocab);
    return 0;
}

// Counting sort by one token of the keys, stable: after all tokens of a key it is sorted.
static void sort_by_digit(uint32_t *out, const uint32_t *in, size_t n, int digit) {
    size_t start[1 << TOKEN_BITS] = {0};
    const uint32_t mask = (1 << TOKEN_BITS) - 1;
    const int shift = digit * TOKEN_BITS;
    for (size_t i = 0; i < n; i++) start[in[i] >> shift & mask]++;
    size_t sum = 0;
    for (size_t d = 0; d <= mask; d++) {
        const size_t count = start[d];
        start[d] = sum;
        sum += count;
    }
    for (size_t i = 0; i < n; i++) out[start[in[i] >> shift & mask]++] = in[i];
}

static uint32_t *sorted_keys(const uint16_t *tokens, size_t n, int order) {
    uint32_t *keys = mem_zero(n, sizeof *keys), *other = mem_zero(n, sizeof *other);
    const uint32_t mask = (uint32_t)(((uint64_t)1 << (order + 1) * TOKEN_BITS) - 1);
    uint32_t key = 0; // begins as the tokens 0 before the first
    for (size_t i = 0; i < n; i++) keys[i] = key = (key << TOKEN_BITS | tokens[i]) & mask;
    for (int digit = 0; digit <= order; digit++) {
        sort_by_digit(other, keys, n, digit);
        uint32_t *const swap = keys;
        keys = other;
        other = swap;
    }
    free(other);
    return keys;
}

int ngram_create(struct ngram **out, const uint16_t *tokens, size_t num_tokens, int vocab,
                 struct error *err) {
    if (vocab < 1 || vocab > NGRAM_MAX_VOCAB)
        return fail(err, E_LIMIT, "a count table is for vocabularies of 1 to %d tokens, not %d",
                    NGRAM_MAX_VOCAB, vocab);
    if (num_tokens > NGRAM_MAX_TOKENS)
        return fail(err, E_LIMIT, "a count table takes at most %d tokens, not %zu",
                    NGRAM_MAX_TOKENS, num_tokens);
    if (check_tokens(tokens, num_tokens, vocab, err)) return -1;
    struct ngram *g = mem_zero(1, sizeof *g);
    g->num_keys = num_tokens;
    g->vocab = vocab;
    for (int k = 0; k < ORDERS; k++) g->keys[k] = sorted_keys(tokens, num_tokens, k);
    *out = g;
    return 0;
}

void ngram_destroy(struct ngram *g) {
    if (!g) return;
    for (int k = 0; k < ORDERS; k++) free(g->keys[k]);
    free(g);
}

static size_t count_below(const uint32_t *keys, size_t n, uint32_t bound) {
    size_t first = 0;
    while (n) {
        const size_t half = n / 2;
        if (keys[first + half] < bound) {
            first += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return first;
}

// How many keys lie in [low, high).
static double count_range(const struct ngram *g, int order, uint32_t low, uint32_t high) {
    const uint32_t *keys = g->keys[order];
    return (double)(count_below(keys, g->num_keys, high) - count_below(keys, g->num_keys, low));
}

double ngram_prob(const struct ngram *g, int before2, int before1, int next) {
    assert(before2 >= 0 && before2 < g->vocab && before1 >= 0 && before1 < g->vocab);
    assert(next >= 0 && next < g->vocab);
    const uint32_t context[ORDERS] = {0, (uint32_t)before1,
                                      (uint32_t)before2 << TOKEN_BITS | (uint32_t)before1};
    double p = 1.0 / g->vocab;
    for (int k = 0; k < ORDERS; k++) {
        const double delta = NGRAM_DELTA;
        const uint32_t first = context[k] << TOKEN_BITS, key = first | (uint32_t)next;
        const double seen = count_range(g, k, key, key + 1);
        const double all = count_range(g, k, first, first + (1 << TOKEN_BITS));
        p = (seen + delta * p) / (all + delta);
    }
    return p;
}

int ngram_loss(double *nats, const struct ngram *g, const uint16_t *tokens, size_t num_tokens,
               struct error *err) {
    if (!num_tokens) return fail(err, E_FORMAT, "a text without tokens has no loss");
    if (check_tokens(tokens, num_tokens, g->vocab, err)) return -1;
    double sum = 0;
    int before2 = 0, before1 = 0;
    for (size_t i = 0; i < num_tokens; i++) {
        sum -= log(ngram_prob(g, before2, before1, tokens[i]));
        before2 = before1;
        before1 = tokens[i];
    }
    *nats = sum / (double)num_tokens;
    return 0;
}
