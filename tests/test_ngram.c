// The count table is a probability, learns what counting can learn, and refuses what it can't hold.
#include "data/ngram.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct ngram *make(const uint16_t *tokens, size_t n, int vocab) {
    struct ngram *g = NULL;
    struct error err = {0};
    if (ngram_create(&g, tokens, n, vocab, &err)) fail_msg("%s", err.msg);
    return g;
}

static double loss(const struct ngram *g, const uint16_t *tokens, size_t n) {
    double nats = NAN;
    struct error err = {0};
    if (ngram_loss(&nats, g, tokens, n, &err)) fail_msg("%s", err.msg);
    return nats;
}

// A second-order source: the next token is mostly a function of the two before.
static uint16_t *make_text(size_t n, int vocab, uint64_t seed, double noise) {
    uint16_t *t = mem_zero(n, sizeof *t);
    for (size_t i = 0; i < n; i++) {
        const int a = i > 1 ? t[i - 2] : 0, b = i > 0 ? t[i - 1] : 0;
        const bool free_choice = rng_uniform(seed, 0, i) < noise;
        t[i] = (uint16_t)(free_choice ? rng_u64(seed, 1, i) % (uint64_t)vocab
                                      : (uint64_t)(a * 7 + b * 3 + 1) % (uint64_t)vocab);
    }
    return t;
}

static void probabilities_sum_to_one(void **state) {
    (void)state;
    const int vocabs[] = {1, 2, 17, 257, 512};
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        const int vocab = vocabs[v];
        uint16_t *text = make_text(3000, vocab, v, 0.3);
        for (size_t n = 0; n <= 3000; n += 1500) {
            struct ngram *g = make(text, n, vocab);
            for (int i = 0; i < 40; i++) {
                const int a = (int)(rng_u64(9, 0, (uint64_t)i) % (uint64_t)vocab);
                const int b = (int)(rng_u64(9, 1, (uint64_t)i) % (uint64_t)vocab);
                double sum = 0;
                for (int x = 0; x < vocab; x++) {
                    const double p = ngram_prob(g, a, b, x);
                    if (!(p > 0)) fail_msg("vocab %d, after %d %d: p(%d) = %g", vocab, a, b, x, p);
                    sum += p;
                }
                if (fabs(sum - 1) > 1e-12) fail_msg("vocab %d, after %d %d: %g", vocab, a, b, sum);
            }
            ngram_destroy(g);
        }
        free(text);
    }
}

// The counts, recounted by a plain loop.
static void counts_are_those_of_a_plain_loop(void **state) {
    (void)state;
    enum { N = 500, V = 5 };
    const double delta = NGRAM_DELTA;
    uint16_t *t = make_text(N, V, 3, 0.5);
    struct ngram *g = make(t, N, V);
    for (int a = 0; a < V; a++)
        for (int b = 0; b < V; b++)
            for (int x = 0; x < V; x++) {
                double context[3] = {0}, next[3] = {0}, p = 1.0 / V;
                for (size_t i = 0; i < N; i++) {
                    const int before1 = i > 0 ? t[i - 1] : 0, before2 = i > 1 ? t[i - 2] : 0;
                    const bool match[3] = {true, before1 == b, before1 == b && before2 == a};
                    for (int k = 0; k < 3; k++) {
                        context[k] += match[k];
                        next[k] += match[k] && t[i] == x;
                    }
                }
                for (int k = 0; k < 3; k++) p = (next[k] + delta * p) / (context[k] + delta);
                const double got = ngram_prob(g, a, b, x);
                if (fabs(got - p) > 1e-14)
                    fail_msg("p(%d | %d %d): %g, expected %g", x, a, b, got, p);
            }
    ngram_destroy(g);
    free(t);
}

static void loss_is_the_entropy_of_the_source(void **state) {
    (void)state;
    enum { N = 200000, V = 4 };
    // Nothing seen: uniform. Pure noise: uniform. No noise: certain.
    uint16_t *noise = make_text(N, V, 4, 1), *fixed = make_text(N, V, 5, 0);
    uint16_t *mixed = make_text(N, V, 6, 0.25), *fresh = make_text(N, V, 7, 0.25);
    struct ngram *none = make(NULL, 0, V), *of_noise = make(noise, N, V);
    struct ngram *of_fixed = make(fixed, N, V), *of_mixed = make(mixed, N, V);
    assert_true(fabs(loss(none, mixed, N) - log(V)) < 1e-9);
    assert_true(fabs(loss(of_noise, mixed, N) - log(V)) < 0.1);
    assert_true(loss(of_fixed, fixed, N) < 0.02);
    // One token has 0.75 + 0.25/V, the others 0.25/V each.
    const double top = 0.75 + 0.25 / V, rest = 0.25 / V;
    const double entropy = -top * log(top) - (V - 1) * rest * log(rest);
    const double got = loss(of_mixed, fresh, N);
    if (fabs(got - entropy) > 0.02) fail_msg("%g nats, the source has %g", got, entropy);
    struct ngram *of_less = make(mixed, N / 100, V);
    assert_true(loss(of_less, fresh, N) > got);
    struct ngram *all[] = {none, of_noise, of_fixed, of_mixed, of_less};
    for (int i = 0; i < 5; i++) ngram_destroy(all[i]);
    uint16_t *texts[] = {noise, fixed, mixed, fresh};
    for (int i = 0; i < 4; i++) free(texts[i]);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    const uint16_t t[] = {1, 2, 300, 4};
    struct ngram *g = NULL;
    struct error err = {0};
    double nats;
    assert_int_equal(ngram_create(&g, t, 4, 300, &err), -1);
    assert_non_null(strstr(err.msg, "token 300 at position 2"));
    assert_int_equal(ngram_create(&g, t, 4, 513, &err), -1);
    assert_int_equal(ngram_create(&g, t, 4, 0, &err), -1);
    assert_int_equal(ngram_create(&g, t, (size_t)NGRAM_MAX_TOKENS + 1, 512, &err), -1);
    assert_null(g);
    g = make(t, 2, 3);
    assert_int_equal(ngram_loss(&nats, g, t, 3, &err), -1);
    assert_int_equal(ngram_loss(&nats, g, t, 0, &err), -1);
    ngram_destroy(g);
    ngram_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probabilities_sum_to_one),
        cmocka_unit_test(counts_are_those_of_a_plain_loop),
        cmocka_unit_test(loss_is_the_entropy_of_the_source),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
