// Sampling without sorting the vocabulary: tokens are counted into buckets of similar probability,
// and only the one bucket that the cut of top_k or top_p goes through is put in order.
#include "backend/cpu/internal.h"

#include "backend/ops.h"
#include "base/rng.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

struct sample_job {
    const struct row_kernels *k;
    int32_t *token;
    float *logits, *scratch;
    char *penalties;
    const char *biases;
    const struct sample_row *rows;
    size_t V, bias_bytes; // of a slot
};

// Ties go to the lower id.
static bool above(const float *p, int32_t a, int32_t b) {
    return p[a] > p[b] || (p[a] == p[b] && a < b);
}

static void sift_down(const float *p, int32_t *heap, size_t n, size_t i) {
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && above(p, heap[child + 1], heap[child])) child++;
        if (!above(p, heap[child], heap[i])) return;
        const int32_t t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
        i = child;
    }
}

// Probabilities relative to the largest are in [0, 1]: the upper bits of such a float, 8 buckets
// for every power of two.
enum { BUCKETS = 1024, BUCKET_SHIFT = 20 };

struct bucket {
    double mass;
    size_t count;
};

static size_t bucket_of(float p) {
    uint32_t bits;
    memcpy(&bits, &p, 4);
    bits >>= BUCKET_SHIFT;
    return bits < BUCKETS ? bits : BUCKETS - 1; // NaN
}

// The last token, in order of probability, of the first `count` or of those that reach `mass`,
// whichever comes first; *kept: what they have together.
static int32_t cut(const float *p, size_t V, const struct bucket *bucket, int32_t *ids,
                   size_t count, double mass, double *kept) {
    size_t taken = 0;
    int32_t last = 0;
    *kept = 0;
    for (size_t b = BUCKETS; b-- > 0 && taken < count && *kept < mass;) {
        if (taken + bucket[b].count < count && *kept + bucket[b].mass < mass) {
            taken += bucket[b].count;
            *kept += bucket[b].mass;
            continue;
        }
        size_t n = 0;
        for (size_t i = 0; i < V && n < bucket[b].count; i++)
            if (bucket_of(p[i]) == b) ids[n++] = (int32_t)i;
        for (size_t i = n / 2; i-- > 0;) sift_down(p, ids, n, i);
        while (n && taken < count && *kept < mass) {
            last = ids[0];
            *kept += (double)p[last];
            taken++;
            ids[0] = ids[--n];
            sift_down(p, ids, n, 0);
        }
    }
    return last;
}

// What top_k, top_p and min_p leave: tokens not behind `last` (-1: all) and not under `least`.
struct kept {
    int32_t last;
    float least;
};

static struct kept truncate(const float *p, size_t V, const struct sample_row *row, int32_t *ids,
                            struct bucket *bucket) {
    struct kept keep = {.last = -1, .least = row->min_p < 1 ? row->min_p : 1};
    const size_t k = row->top_k > 0 && (size_t)row->top_k < V ? (size_t)row->top_k : V;
    if (k == V && row->top_p >= 1) return keep;
    double all = 0, part;
    memset(bucket, 0, BUCKETS * sizeof *bucket);
    for (size_t i = 0; i < V; i++) {
        struct bucket *b = &bucket[bucket_of(p[i])];
        b->mass += (double)p[i];
        b->count++;
    }
    for (size_t b = 0; b < BUCKETS; b++) all += bucket[b].mass;
    if (k < V) keep.last = cut(p, V, bucket, ids, k, INFINITY, &all);
    // top_p counts within what top_k leaves; at least one token stays.
    if (row->top_p < 1)
        keep.last = cut(p, V, bucket, ids, k, fmax((double)row->top_p * all, DBL_MIN), &part);
    return keep;
}

static bool stays(const float *p, int32_t i, struct kept keep) {
    return p[i] >= keep.least && (keep.last < 0 || !above(p, keep.last, i));
}

static int32_t draw(const float *p, size_t V, const struct sample_row *row, struct kept keep) {
    double kept = 0, passed = 0;
    for (int32_t i = 0; i < (int32_t)V; i++)
        if (stays(p, i, keep)) kept += (double)p[i];
    const double mark = rng_uniform(row->seed, 0, row->position) * kept;
    int32_t chosen = 0;
    for (int32_t i = 0; i < (int32_t)V; i++) {
        if (!stays(p, i, keep)) continue;
        if (p[i] > 0) chosen = i;
        passed += (double)p[i];
        if (passed > mark) break;
    }
    return chosen;
}

// Of one thread: probabilities, ids and buckets.
static size_t scratch_floats(size_t V) {
    return BUCKETS * sizeof(struct bucket) / sizeof(float) + 2 * ((V + 15) & ~(size_t)15);
}

static void add_biases(const struct sample_job *j, float *x, const struct sample_row *row) {
    const struct sample_bias *b =
        (const void *)(j->biases + (size_t)row->bias_slot * j->bias_bytes);
    for (int i = 0; i < row->num_bias; i++) {
        assert(b[i].token >= 0 && (size_t)b[i].token < j->V);
        x[b[i].token] += b[i].value;
    }
}

static void sample_task(void *ctx, int task) {
    const struct sample_job *j = ctx;
    const struct sample_row *row = &j->rows[task];
    const size_t V = j->V;
    float *x = j->logits + (size_t)task * V;
    float *pen = j->penalties && row->slot >= 0
                     ? (float *)(void *)(j->penalties + (size_t)row->slot * sample_penalty_bytes(V))
                     : NULL;
    if (row->num_bias) add_biases(j, x, row);
    if (pen)
        for (size_t i = 0; i < V; i++) x[i] -= pen[i];
    const int32_t best = (int32_t)j->k->argmax(x, V);
    int32_t chosen = best;
    if (row->temperature > 0 && row->top_k != 1) {
        struct bucket *bucket =
            (struct bucket *)(void *)(j->scratch + (size_t)pool_thread() * scratch_floats(V));
        float *p = (float *)(void *)(bucket + BUCKETS);
        int32_t *ids = (int32_t *)(void *)(p + V);
        // Near 0 the temperature has no reciprocal: 0 · inf would be NaN where the maximum is.
        const float inverse = 1.0f / row->temperature;
        j->k->exp_shifted(p, x, V, x[best], inverse < FLT_MAX ? inverse : FLT_MAX);
        chosen = draw(p, V, row, truncate(p, V, row, ids, bucket));
    }
    j->token[task] = chosen;
    if (!pen) return;
    uint32_t *seen = (uint32_t *)(pen + V), bit = (uint32_t)1 << (chosen & 31);
    if (row->penalty_decay != 1) j->k->scale(pen, V, row->penalty_decay);
    pen[chosen] += (seen[chosen / 32] & bit ? row->repetition : row->presence) + row->frequency;
    seen[chosen / 32] |= bit;
}

void cpu_sample(struct backend *be, struct tensor token, struct tensor logits, struct tensor rows,
                struct tensor penalties, struct tensor biases) {
    struct cpu *cpu = cpu_of(be);
    const size_t V = logits.dim[1];
    struct sample_job j = {.k = cpu->k->rows,
                           .token = tensor_host(token),
                           .logits = f32(logits),
                           .scratch = cpu_scratch_each(cpu, scratch_floats(V)),
                           .penalties = tensor_host(penalties),
                           .biases = tensor_host(biases),
                           .rows = tensor_host(rows),
                           .V = V,
                           .bias_bytes = biases.dim[1]};
    pool_run(cpu->pool, (int)logits.dim[0], sample_task, &j);
}
