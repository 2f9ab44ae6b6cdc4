// The machine's limits, measured with the kernels themselves.
#include "backend/cpu/internal.h"

#include "base/clock.h"
#include "base/mem.h"

#include <string.h>

struct measure_job {
    const struct kernels *k;
    enum limit what;
    char *memory;
    size_t bytes;
    _Atomic float sink; // what was read has to go somewhere
};

enum { PIECE_BYTES = 1 << 20, PRODUCT_K = 256, PRODUCTS = 400 };

static void measure_task(void *ctx, int task) {
    struct measure_job *j = ctx;
    const size_t at = (size_t)task * PIECE_BYTES;
    char *own = j->memory + at;
    const struct fetch next = {own, 0};
    float *acc = (float *)(void *)own, *x = acc + 12 * PANEL;
    const void *panel = x + 12 * PRODUCT_K;
    const struct quantised ints = {(int8_t *)x, x, (int32_t *)(void *)x, 4 * PRODUCT_K, INT8_GROUP};
    if (j->what == LIMIT_READ) {
        const size_t n = j->bytes - at < PIECE_BYTES ? j->bytes - at : PIECE_BYTES;
        j->sink = j->k->rows->read((const float *)(void *)own, n / sizeof(float));
        return;
    }
    for (int i = 0; i < PRODUCTS; i++)
        if (j->what == LIMIT_F32)
            j->k->gemm->f32(acc, x, PRODUCT_K, 1, panel, 12, PRODUCT_K, next, true);
        else if (j->what == LIMIT_BF16)
            j->k->gemm->dot(acc, (const uint32_t *)(void *)x, PRODUCT_K / 2, 1, panel, 12,
                            PRODUCT_K, next, true);
        else
            j->k->integer->int8(acc, &ints, 0, panel, 12, 0, PRODUCT_K / INT8_GROUP, next);
}

double cpu_measure(struct backend *be, enum limit what, size_t bytes) {
    struct cpu *cpu = cpu_of(be);
    const int threads = pool_threads(cpu->pool);
    if (what != LIMIT_READ) bytes = (size_t)threads * 8 * PIECE_BYTES;
    struct measure_job j = {.k = cpu->k, .what = what, .bytes = bytes};
    const int tasks = (int)((bytes + PIECE_BYTES - 1) / PIECE_BYTES);
    j.memory = mem_pages((size_t)(tasks + 1) * PIECE_BYTES);
    // Pages have to be there, and each its own: a page nobody wrote to is not read from memory.
    for (size_t i = 0; i < (size_t)tasks * PIECE_BYTES; i += 4096) j.memory[i] = 0;
    double best = 0;
    for (int i = 0; i < 4; i++) {
        const double start = clock_s();
        pool_run(cpu->pool, tasks, measure_task, &j);
        const double s = clock_s() - start;
        const double work =
            what == LIMIT_READ ? (double)bytes : 2.0 * 12 * PANEL * PRODUCT_K * PRODUCTS * tasks;
        if (i && work / s > best) best = work / s;
    }
    mem_pages_free(j.memory, (size_t)(tasks + 1) * PIECE_BYTES);
    return best * 1e-9;
}
