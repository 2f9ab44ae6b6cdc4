// Sums over rows. A gradient of vectors leaves a sum of every so many rows; to add those up takes a
// launch that is short beside its way there and back, so those of a layer go together.
#include "backend/cuda/internal.h"

void sums_settle(struct cuda *c) {
    struct sums *s = &c->sums;
    if (s->list.n) k_add_parts(c->queue, &s->list);
    s->list = (struct part_list){.n = 0}; // all of it is compared with an earlier step's
    s->used = 0;
}

float *sums_take(struct cuda *c, size_t floats) {
    struct sums *s = &c->sums;
    const size_t bytes = (floats * sizeof(float) + 255) / 256 * 256;
    if (s->list.n == MOST_SUMS) sums_settle(c);
    if (s->used + bytes > s->bytes) { // from now on there is room for all of these
        const size_t wanted = s->used + bytes;
        void *more;
        cuda_flush(c);
        cuda_failed(c, cudaStreamSynchronize(c->stream), "waiting for kernels");
        cudaFree(s->memory);
        s->memory = NULL;
        s->bytes = 0;
        if (cuda_failed(c, cudaMalloc(&more, wanted), "memory for sums over rows")) return NULL;
        s->memory = more;
        s->bytes = wanted;
    }
    char *part = s->memory + s->used;
    s->used += bytes;
    return (float *)(void *)part;
}

static bool has_out(const struct part_list *list, const float *out) {
    bool has = false;
    for (int i = 0; i < list->n; i++)
        for (int k = 0; k < SUM_OUTS; k++) has |= out && list->of[i].out[k] == out;
    return has;
}

void sums_add(struct cuda *c, struct part_sums sum) {
    struct part_list *list = &c->sums.list;
    bool again = false;
    for (int k = 0; k < SUM_OUTS; k++) again |= has_out(list, sum.out[k]);
    if (again) { // what was taken for these parts stays taken
        const size_t used = c->sums.used;
        sums_settle(c);
        c->sums.used = used;
    }
    if (sum.parts) list->of[list->n++] = sum;
}
