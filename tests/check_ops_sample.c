// The sampler against docs/sampling.md, written down a third time, as plainly as it goes: which
// tokens may come, how often each does, what penalties add up to. On ref and on cpu, which must
// also agree token by token.
#include "check_ops.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef CUDA_EMU
enum { ROUNDS = 1 }; // an emulated device draws slowly
#else
enum { ROUNDS = 40 };
#endif
enum { V = 61, ROWS = 500 };               // 20000 draws a setting
enum { LARGE_V = 20096, LARGE_ROWS = 16 }; // or less, by some that are no multiple of anything

// Tensors for one batch of rows; penalties are one slot's, or absent.
struct table {
    struct backend *be;
    size_t V;
    struct buffer *buf;
    struct tensor token, logits, rows, penalties;
};

static struct table table_open(struct backend *be, size_t rows, size_t words, bool penalised) {
    struct table t = {.be = be, .V = words};
    struct carver plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        struct error err;
        if (pass) t.buf = buffer_create(be, plan.used, &err);
        if (pass && !t.buf) die("%s", err.msg);
        plan = (struct carver){.buf = t.buf};
        t.token = carve(&plan, DT_I32, 1, (size_t[]){rows});
        t.logits = carve(&plan, be->real, 2, (size_t[]){rows, words});
        t.rows = carve(&plan, DT_U8, 2, (size_t[]){rows, sizeof(struct sample_row)});
        t.penalties = carve(&plan, DT_U8, 2, (size_t[]){1, sample_penalty_bytes(words)});
    }
    if (!penalised) t.penalties = tensor_none();
    return t;
}

// Row r draws for position first + r.
static void table_draw(struct table *t, int32_t *token, const float *logits, struct sample_row row,
                       size_t rows, uint64_t first) {
    struct sample_row *all = mem_alloc(rows * sizeof *all);
    const size_t line = t->V * dtype_size(t->be->real);
    char *x = mem_alloc(rows * line);
    for (size_t r = 0; r < rows; r++) {
        all[r] = row;
        all[r].position = first + r;
        dtype_convert(x + r * line, t->be->real, logits, DT_F32, t->V);
    }
    t->be->class->upload(t->be, t->rows, all);
    t->be->class->upload(t->be, t->logits, x);
    op_sample(t->be, t->token, t->logits, t->rows, t->penalties, tensor_none());
    t->be->class->download(t->be, token, t->token);
    free(all);
    free(x);
}

// ---- what must come out ------------------------------------------------------------------------

// Probability of every token: temperature, softmax, top_k, top_p over what it left, min_p.
static void expected(double p[V], const float *logits, const struct sample_row *row) {
    int order[V];
    double mass = 0, kept = 0;
    for (int i = 0; i < V; i++) {
        p[i] = exp((double)logits[i] / (double)row->temperature);
        order[i] = i;
    }
    for (int i = 0; i < V; i++) // selection: most probable first, the lower id of equals
        for (int j = i + 1; j < V; j++)
            if (p[order[j]] > p[order[i]] || (p[order[j]] == p[order[i]] && order[j] < order[i])) {
                const int swap = order[i];
                order[i] = order[j];
                order[j] = swap;
            }
    int n = row->top_k > 0 && row->top_k < V ? row->top_k : V;
    for (int i = 0; i < n; i++) mass += p[order[i]];
    int left = 0;
    for (; left < n; left++) {
        if (row->top_p < 1 && left > 0 && kept / mass >= (double)row->top_p) break;
        if (left > 0 && p[order[left]] < (double)row->min_p * p[order[0]]) break;
        kept += p[order[left]];
    }
    for (int i = left; i < V; i++) p[order[i]] = 0;
    for (int i = 0; i < V; i++) p[i] /= kept;
}

// Pearson's χ²; tokens expected fewer than 5 times share one bin. Five standard deviations of the
// statistic above its mean: with fixed seeds this passes or fails once and for all.
static int judge(const int count[V], const double p[V], double draws, char *what, size_t cap) {
    double chi2 = 0, rest = 0, rest_seen = 0;
    int bins = 0;
    for (int i = 0; i < V; i++) {
        if (p[i] == 0 && count[i])
            return snprintf(what, cap, "token %d came %d times and must not come", i, count[i]), -1;
        if (p[i] * draws < 5) {
            rest += p[i] * draws;
            rest_seen += count[i];
            continue;
        }
        chi2 += (count[i] - p[i] * draws) * (count[i] - p[i] * draws) / (p[i] * draws);
        bins++;
    }
    if (rest > 0) chi2 += (rest_seen - rest) * (rest_seen - rest) / rest, bins++;
    const double freedom = bins > 1 ? bins - 1 : 1, most = freedom + 5 * sqrt(2 * freedom);
    if (chi2 <= most) return 0;
    return snprintf(what, cap, "chi² is %.1f with %d bins, expected at most %.1f", chi2, bins,
                    most),
           -1;
}

static const struct {
    const char *name;
    struct sample_row row;
} settings[] = {
    {"plain", {.temperature = 1, .top_p = 1}},
    {"cold", {.temperature = 0.5f, .top_p = 1}},
    {"hot, top_k", {.temperature = 2, .top_p = 1, .top_k = 10}},
    {"top_p", {.temperature = 1, .top_p = 0.8f}},
    {"top_p at first", {.temperature = 1, .top_p = 0.01f}},
    {"min_p", {.temperature = 1, .top_p = 1, .min_p = 0.1f}},
    {"top_k, top_p", {.temperature = 1, .top_p = 0.6f, .top_k = 7}},
    {"everything", {.temperature = 1.3f, .top_p = 0.9f, .top_k = 30, .min_p = 0.05f}},
    {"top_k beyond V", {.temperature = 1, .top_p = 1, .top_k = 1000}},
};

static void some_logits(float x[V], uint64_t seed) {
    for (int i = 0; i < V; i++) x[i] = (float)(2 * rng_normal(seed, 1, (uint64_t)i));
    x[17] = -INFINITY; // masked by a guide
}

static void check_distribution(struct tally *t, struct backend *be, struct backend *ref,
                               const char *name) {
    struct table here = table_open(be, ROWS, V, false), there = table_open(ref, ROWS, V, false);
    for (size_t s = 0; s < sizeof settings / sizeof settings[0]; s++) {
        struct sample_row row = settings[s].row;
        float x[V];
        double p[V];
        int count[V] = {0}, rc = 0;
        int32_t token[ROWS], wanted[ROWS];
        char what[200] = "";
        row.seed = 1000 + s;
        some_logits(x, s);
        expected(p, x, &row);
        for (uint64_t round = 0; round < ROUNDS && !rc; round++) {
            table_draw(&here, token, x, row, ROWS, round * ROWS);
            table_draw(&there, wanted, x, row, ROWS, round * ROWS);
            for (int r = 0; r < ROWS && !rc; r++) {
                count[token[r]]++;
                if (token[r] == wanted[r]) continue;
                snprintf(what, sizeof what, "position %d: token %d, ref draws %d",
                         (int)round * ROWS + r, token[r], wanted[r]);
                rc = -1;
            }
        }
        if (!rc) rc = judge(count, p, ROWS * ROUNDS, what, sizeof what);
        tally_one(t, !rc, "sample %s: %s: %s", name, settings[s].name,
                  rc ? what : "as probable as it says");
    }
    buffer_destroy(here.buf);
    buffer_destroy(there.buf);
}

// ---- corners -----------------------------------------------------------------------------------

static void check_corners(struct tally *t, struct backend *be, const char *name) {
    struct table table = table_open(be, 1, V, false);
    const struct {
        const char *law;
        float x[4]; // the others are -5
        struct sample_row row;
        int32_t token;
    } cases[] = {
        {"temperature 0 is the first argmax", {1, 3, 3, 2}, {.temperature = 0, .top_p = 1}, 1},
        {"top_k 1 is the first argmax",
         {1, 3, 3, 2},
         {.temperature = 9, .top_p = 1, .top_k = 1},
         1},
        {"top_p 0 keeps one token", {1, 2, 3, 3}, {.temperature = 9, .top_p = 0}, 2},
        {"min_p 1 keeps the largest",
         {9, 2, 9.5f, 3},
         {.temperature = 9, .top_p = 1, .min_p = 1},
         2},
        // 0.4 0.3 0.2 0.1: of the first two the first has 0.57.
        {"top_p counts within top_k",
         {1.3863f, 1.0986f, 0.6931f, 0},
         {.temperature = 1, .top_p = 0.5f, .top_k = 2},
         0},
        {"no temperature is too small", {-8, 1, 1.5f, 0}, {.temperature = 1e-42f, .top_p = 1}, 2},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int32_t token = -1;
        bool ok = true;
        for (uint64_t at = 0; at < 200 && ok; at++) {
            float x[V];
            for (int i = 0; i < V; i++) x[i] = i < 4 ? cases[c].x[i] : -5;
            table_draw(&table, &token, x, cases[c].row, 1, at);
            ok = token == cases[c].token;
        }
        tally_one(t, ok, "sample %s: %s: token %d, expected %d", name, cases[c].law, token,
                  cases[c].token);
    }
    buffer_destroy(table.buf);
}

// Accumulators over 300 tokens beside the rule, with decay and without.
static void check_penalties(struct tally *t, struct backend *be, const char *name, float decay) {
    struct table table = table_open(be, 1, V, true);
    struct sample_row row = {.temperature = 1,
                             .top_p = 1,
                             .presence = 0.5f,
                             .repetition = 0.125f,
                             .frequency = 0.25f,
                             .penalty_decay = decay,
                             .seed = 77};
    double rule[V] = {0};
    int seen[V] = {0}, rc = 0;
    char what[200] = "";
    char *state = mem_alloc(sample_penalty_bytes(V));
    for (uint64_t at = 0; at < 300 && !rc; at++) {
        float x[V], p;
        int32_t token;
        some_logits(x, 5);
        table_draw(&table, &token, x, row, 1, at);
        for (int i = 0; i < V; i++) rule[i] *= (double)decay;
        rule[token] += (double)((seen[token]++ ? row.repetition : row.presence) + row.frequency);
        be->class->download(be, state, table.penalties);
        for (int i = 0; i < V && !rc; i++) {
            memcpy(&p, state + (size_t)i * sizeof p, sizeof p);
            if (fabs((double)p - rule[i]) <= 1e-5 * (1 + rule[i])) continue;
            snprintf(what, sizeof what, "after %d tokens token %d pays %g, expected %g",
                     (int)at + 1, i, (double)p, rule[i]);
            rc = -1;
        }
    }
    tally_one(t, !rc, "sample %s: penalties with decay %g: %s", name, (double)decay,
              rc ? what : "as the rule says");
    // What is paid is subtracted: greedy goes on to the next best once the best has paid enough.
    float x[V] = {0};
    x[3] = 1, x[9] = 0.8f;
    row.temperature = 0;
    int32_t first, second;
    memset(state, 0, sample_penalty_bytes(V));
    be->class->upload(be, table.penalties, state);
    table_draw(&table, &first, x, row, 1, 0);
    table_draw(&table, &second, x, row, 1, 1);
    tally_one(t, first == 3 && second == 9, "sample %s: logits pay the penalties: %d then %d", name,
              first, second);
    free(state);
    buffer_destroy(table.buf);
}

// A large vocabulary whose tokens are equally probable, or nearly so: the cut lies among more of
// them than have room, at any number of bits. As ref draws.
static void check_large(struct tally *t, struct backend *be, struct backend *ref, const char *name,
                        int words) {
    const struct {
        const char *name;
        float spread; // of the logits; 0: three of four tokens are 0.001 below the fourth
        struct sample_row row;
    } cases[] = {
        {"top_k among the best", 0, {.top_p = 1, .top_k = 2000}},
        {"top_k among the rest", 0, {.top_p = 1, .top_k = 9000}},
        {"top_p among the best", 0, {.top_p = 0.15f}},
        {"top_p among the rest", 0, {.top_p = 0.7f}},
        {"top_p of nearly all", 0.5f, {.top_p = 0.99f}},
        {"top_p within top_k", 0.5f, {.top_p = 0.9f, .top_k = 6000}},
        {"top_p of some", 2, {.top_p = 0.7f}},
        {"top_p of few", 3, {.top_p = 0.9f}},
        {"top_p of very few", 4, {.top_p = 0.5f}},
        {"top_k of hundreds", 3, {.top_p = 1, .top_k = 400}},
        {"top_k of few, top_p, min_p", 3, {.top_p = 0.95f, .top_k = 50, .min_p = 0.02f}},
        {"top_k of more than have a probability",
         3,
         {.temperature = 0.02f, .top_p = 0.9f, .top_k = 9000}},
        {"plain", 0.5f, {.top_p = 1}},
    };
    struct table here = table_open(be, LARGE_ROWS, (size_t)words, false),
                 there = table_open(ref, LARGE_ROWS, (size_t)words, false);
    float *x = mem_alloc(LARGE_V * sizeof *x);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct sample_row row = cases[c].row;
        int32_t token[LARGE_ROWS], wanted[LARGE_ROWS];
        int differ = 0;
        for (int i = 0; i < words; i++)
            x[i] = cases[c].spread != 0 ? cases[c].spread * (float)rng_normal(c, 1, (uint64_t)i)
                                        : (i % 4 ? -0.001f : 0);
        if (row.temperature == 0) row.temperature = 1;
        row.seed = 7 + c;
        table_draw(&here, token, x, row, LARGE_ROWS, 0);
        table_draw(&there, wanted, x, row, LARGE_ROWS, 0);
        for (int r = 0; r < LARGE_ROWS; r++) differ += token[r] != wanted[r];
        tally_one(t, !differ, "sample %s: of %d tokens, %s: %d of %d draws are others than ref's",
                  name, words, cases[c].name, differ, LARGE_ROWS);
    }
    free(x);
    buffer_destroy(here.buf);
    buffer_destroy(there.buf);
}

// What tokens here and there in a large vocabulary owe, as ref has it.
static void check_large_penalties(struct tally *t, struct backend *be, struct backend *ref,
                                  const char *name, int words) {
    enum { DRAWS = 50 };
    const struct sample_row row = {.temperature = 1,
                                   .top_p = 1,
                                   .presence = 2,
                                   .frequency = 1,
                                   .penalty_decay = 0.9f,
                                   .seed = 5};
    const size_t bytes = sample_penalty_bytes((size_t)words);
    struct table here = table_open(be, 1, (size_t)words, true),
                 there = table_open(ref, 1, (size_t)words, true);
    float *x = mem_zero(LARGE_V, sizeof *x), *owed = mem_zero(1, bytes),
          *other = mem_zero(1, bytes);
    int differ = 0;
    double worst = 0;
    be->class->upload(be, here.penalties, owed);
    ref->class->upload(ref, there.penalties, owed);
    for (uint64_t at = 0; at < DRAWS; at++) {
        int32_t token, wanted;
        table_draw(&here, &token, x, row, 1, at);
        table_draw(&there, &wanted, x, row, 1, at);
        differ += token != wanted;
    }
    be->class->download(be, owed, here.penalties);
    ref->class->download(ref, other, there.penalties);
    for (int i = 0; i < words; i++) worst = fmax(worst, fabs((double)owed[i] - (double)other[i]));
    tally_one(t, !differ && worst < 1e-5,
              "sample %s: of %d tokens, penalties: %d of %d draws are others than ref's, they owe "
              "%g more or less",
              name, words, differ, DRAWS, worst);
    free(x);
    free(owed);
    free(other);
    buffer_destroy(here.buf);
    buffer_destroy(there.buf);
}

static void check_backend(struct tally *t, struct backend *be, struct backend *ref,
                          const char *name) {
    check_distribution(t, be, ref, name);
    check_corners(t, be, name);
    check_penalties(t, be, name, 1);
    check_penalties(t, be, name, 0.9f);
    static const int words[] = {LARGE_V, LARGE_V - 85};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        check_large(t, be, ref, name, words[i]);
        check_large_penalties(t, be, ref, name, words[i]);
    }
}

void check_sample(struct tally *t) {
    if (t->only && strcmp(t->only, "sample") != 0) return;
    struct backend *ref = open_backend("ref64", NULL, 1);
    check_backend(t, ref, ref, "ref64");
    struct subject s[MAX_SUBJECTS];
    const int n = subjects_open(s, t->backend);
    for (int i = 0; i < n; i++)
        if (strcmp(s[i].backend, "ref") != 0) check_backend(t, s[i].be, ref, s[i].name);
    subjects_close(s, n);
    backend_destroy(ref);
}
