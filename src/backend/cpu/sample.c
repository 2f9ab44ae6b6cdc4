// Sampling without sorting the vocabulary: candidates come out of a heap one by one, most probable
// first, only as far as top_k, top_p and min_p reach.
#include "backend/cpu/internal.h"

#include "backend/ops.h"
#include "base/rng.h"

#include <float.h>

struct sample_job {
    const struct row_kernels *k;
    int32_t *token;
    float *logits, *scratch;
    char *penalties;
    const struct sample_row *rows;
    size_t V;
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

static double mass_of(const float *p, size_t V) {
    double mass = 0;
    for (size_t i = 0; i < V; i++) mass += (double)p[i];
    return mass;
}

// The id of the last kept candidate in order of probability: what is not above it goes.
static int32_t cut(const float *p, int32_t *heap, size_t V, const struct sample_row *row,
                   int32_t best) {
    const size_t k = row->top_k > 0 && (size_t)row->top_k < V ? (size_t)row->top_k : V;
    for (size_t i = 0; i < V; i++) heap[i] = (int32_t)i;
    for (size_t i = V / 2; i-- > 0;) sift_down(p, heap, V, i);
    // top_p counts within what top_k leaves, so that mass is needed first.
    double mass = 0, kept = 0;
    size_t left = V, popped = 0;
    int32_t *order = heap + V; // popped ids, grows as the heap shrinks
    if (k == V) mass = mass_of(p, V);
    for (; k < V && popped < k; popped++) {
        order[popped] = heap[0];
        mass += (double)p[heap[0]];
        heap[0] = heap[--left];
        sift_down(p, heap, left, 0);
    }
    int32_t last = best;
    for (size_t n = 0; n < k; n++) {
        if (n == popped) {
            order[popped++] = heap[0];
            heap[0] = heap[--left];
            sift_down(p, heap, left, 0);
        }
        const int32_t id = order[n];
        if (n > 0 && row->top_p < 1 && kept >= (double)row->top_p * mass) break;
        if (n > 0 && (double)p[id] < (double)row->min_p * (double)p[best]) break;
        kept += (double)p[id];
        last = id;
    }
    return last;
}

static int32_t draw(const float *p, size_t V, const struct sample_row *row, int32_t last) {
    double kept = 0, passed = 0;
    for (int32_t i = 0; i < (int32_t)V; i++)
        if (last < 0 || !above(p, last, i)) kept += (double)p[i];
    const double mark = rng_uniform(row->seed, 0, row->position) * kept;
    int32_t chosen = 0;
    for (int32_t i = 0; i < (int32_t)V; i++) {
        if (last >= 0 && above(p, last, i)) continue;
        if (p[i] > 0) chosen = i;
        passed += (double)p[i];
        if (passed > mark) break;
    }
    return chosen;
}

static void sample_task(void *ctx, int task) {
    const struct sample_job *j = ctx;
    const struct sample_row *row = &j->rows[task];
    const size_t V = j->V;
    float *x = j->logits + (size_t)task * V;
    float *pen = j->penalties
                     ? (float *)(void *)(j->penalties + (size_t)row->slot * sample_penalty_bytes(V))
                     : NULL;
    if (pen)
        for (size_t i = 0; i < V; i++) x[i] -= pen[i];
    const int32_t best = (int32_t)j->k->argmax(x, V);
    int32_t chosen = best;
    if (row->temperature > 0 && row->top_k != 1) {
        float *p = j->scratch + (size_t)pool_thread() * 3 * V;
        const bool plain = row->top_k <= 0 && row->top_p >= 1 && row->min_p <= 0;
        // Near 0 the temperature has no reciprocal: 0 · inf would be NaN where the maximum is.
        const float inverse = 1.0f / row->temperature;
        j->k->exp_shifted(p, x, V, x[best], inverse < FLT_MAX ? inverse : FLT_MAX);
        chosen = draw(p, V, row, plain ? -1 : cut(p, (int32_t *)(p + V), V, row, best));
    }
    j->token[task] = chosen;
    if (!pen) return;
    uint32_t *seen = (uint32_t *)(pen + V), bit = (uint32_t)1 << (chosen & 31);
    if (row->penalty_decay != 1) j->k->scale(pen, V, row->penalty_decay);
    pen[chosen] += (seen[chosen / 32] & bit ? row->repetition : row->presence) + row->frequency;
    seen[chosen / 32] |= bit;
}

void cpu_sample(struct backend *be, struct tensor token, struct tensor logits, struct tensor rows,
                struct tensor penalties) {
    struct cpu *cpu = cpu_of(be);
    const size_t V = logits.dim[1];
    struct sample_job j = {.k = cpu->k->rows,
                           .token = tensor_host(token),
                           .logits = f32(logits),
                           .scratch = cpu_scratch_each(cpu, 3 * V),
                           .penalties = tensor_host(penalties),
                           .rows = tensor_host(rows),
                           .V = V};
    pool_run(cpu->pool, (int)logits.dim[0], sample_task, &j);
}
