#include "train/buckets.h"

#include "base/mem.h"
#include "model/model.h"
#include "train/dist.h"

#include <stdlib.h>

// Shares are multiples of it, so that each begins where a vector of any backend may.
enum { GRAIN = 16 };

// The layer that model_loss has reached when a parameter's gradient is complete (run_watch).
static int ready_at(const struct model *m, const struct param *p) {
    switch (p->id) {
    case P_EMB:
    case P_LN0_W:
    case P_LN0_B: return -1;
    case P_OUT_W:
    case P_OUT_B:
    case P_HEAD: return m->dims.L;
    default: return p->layer;
    }
}

static void add(struct buckets *b, const struct model *m, const struct dist *d, size_t first,
                size_t count, bool split) {
    struct bucket *k = &b->at[b->n++];
    *k = (struct bucket){.first = first, .count = count, .ready = m->dims.L, .split = split};
    for (int i = 0; i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        const int ready = ready_at(m, p);
        if (p->offset < first + count && p->offset + p->count > first && ready < k->ready)
            k->ready = ready;
    }
    k->own = (struct share){first, count, b->held};
    if (split) {
        k->own.count = count / (size_t)dist_size(d);
        k->own.first = first + (size_t)dist_rank(d) * k->own.count;
    }
    b->held += k->own.count;
}

static int soonest_first(const void *a, const void *b) {
    const struct bucket *p = a, *q = b;
    if (p->ready != q->ready) return p->ready > q->ready ? -1 : 1;
    return p->first > q->first ? -1 : p->first < q->first;
}

void buckets_cut(struct buckets *b, const struct model *m, const struct dist *d, bool split,
                 size_t bytes) {
    const size_t all = tensor_count(m->master), unit = (size_t)dist_size(d) * GRAIN;
    size_t each = bytes / dtype_size(m->master.dtype) / unit * unit, at = 0;
    if (!each) each = unit;
    *b = (struct buckets){.at = mem_zero(all / each + 2, sizeof *b->at)};
    for (const size_t even = all / unit * unit; d && at < even; at += b->at[b->n - 1].count)
        add(b, m, d, at, even - at < each ? even - at : each, split);
    if (at < all) add(b, m, d, at, all - at, false);
    qsort(b->at, (size_t)b->n, sizeof *b->at, soonest_first);
}

void buckets_free(struct buckets *b) {
    free(b->at);
}

void buckets_reduce(const struct buckets *b, const struct dist *d, struct tensor grad, int layer) {
    for (int i = 0; i < b->n; i++) {
        const struct bucket *k = &b->at[i];
        if (k->ready == layer)
            dist_start(d, k->split ? REDUCE_SCATTER : ALL_REDUCE,
                       tensor_slice(grad, k->first, k->count));
    }
}

void bucket_gather(const struct bucket *b, const struct dist *d, struct tensor t) {
    if (b->split) dist_start(d, ALL_GATHER, tensor_slice(t, b->first, b->count));
}
