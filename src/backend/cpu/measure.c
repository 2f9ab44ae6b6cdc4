// The machine's limits, measured with the kernels themselves.
#include "backend/cpu/internal.h"

#include "base/clock.h"
#include "base/mem.h"

struct measure_job {
    const struct kernels *k;
    enum limit what;
    const struct slab *slabs; // to be read; or
    char *memory;             // a piece a task
    _Atomic float sink;       // what was read has to go somewhere
};

enum { PIECE_BYTES = 1 << 20, PLAIN_PIECES = 256, PRODUCT_K = 256, PRODUCTS = 400 };

static size_t pieces(const struct slab *s) {
    return (s->used + PIECE_BYTES - 1) / PIECE_BYTES;
}

static void read_task(void *ctx, int task) {
    struct measure_job *j = ctx;
    const struct slab *s = j->slabs;
    size_t i = (size_t)task, bytes = PIECE_BYTES;
    const char *from = j->memory + i * PIECE_BYTES;
    if (s) {
        for (; i >= pieces(s); s = s->next) i -= pieces(s);
        from = s->data + i * PIECE_BYTES;
        if (s->used - i * PIECE_BYTES < bytes) bytes = s->used - i * PIECE_BYTES;
    }
    j->sink = j->k->rows->read((const float *)(const void *)from, bytes / sizeof(float));
}

static void product_task(void *ctx, int task) {
    struct measure_job *j = ctx;
    char *own = j->memory + (size_t)task * PIECE_BYTES;
    const struct fetch next = {own, 0};
    float *acc = (float *)(void *)own, *x = acc + 12 * PANEL;
    const void *panel = x + 12 * PRODUCT_K;
    const struct quantised ints = {(int8_t *)x, x, (int32_t *)(void *)x, 4 * PRODUCT_K, INT8_GROUP};
    for (int i = 0; i < PRODUCTS; i++)
        if (j->what == LIMIT_F32)
            j->k->gemm->f32(acc, x, PRODUCT_K, 1, panel, 12, PRODUCT_K, next, true);
        else if (j->what == LIMIT_BF16)
            j->k->gemm->dot(acc, (const uint32_t *)(void *)x, PRODUCT_K / 2, 1, panel, 12,
                            PRODUCT_K, next, true);
        else
            j->k->integer->int8(acc, &ints, 0, panel, 12, 0, PRODUCT_K / INT8_GROUP, next);
}

// Work a second of the best of three passes over the tasks; one more before them warms up.
static double best_rate(struct cpu *cpu, struct measure_job *j, int tasks, void (*fn)(void *, int),
                        double work) {
    double best = 0;
    for (int i = 0; i < 4; i++) {
        const double start = clock_s();
        pool_run(cpu->pool, tasks, fn, j);
        const double rate = work / (clock_s() - start);
        if (i && rate > best) best = rate;
    }
    return best;
}

static double measure_read(struct cpu *cpu) {
    struct measure_job j = {.k = cpu->k, .slabs = cpu->slabs};
    size_t tasks = PLAIN_PIECES, bytes = (size_t)PLAIN_PIECES * PIECE_BYTES;
    if (j.slabs) {
        tasks = bytes = 0;
        for (const struct slab *s = j.slabs; s; s = s->next) tasks += pieces(s), bytes += s->used;
    } else {
        j.memory = mem_pages(bytes);
        for (size_t i = 0; i < bytes; i += 4096) j.memory[i] = 1; // each page is one of its own
    }
    const double rate = best_rate(cpu, &j, (int)tasks, read_task, (double)bytes);
    mem_pages_free(j.memory, bytes);
    return rate;
}

double cpu_measure(struct backend *be, enum limit what) {
    struct cpu *cpu = cpu_of(be);
    if (what == LIMIT_READ) return 1e-9 * measure_read(cpu);
    const int tasks = 8 * pool_threads(cpu->pool);
    struct measure_job j = {.k = cpu->k, .what = what};
    j.memory = mem_pages((size_t)tasks * PIECE_BYTES);
    const double work = 2.0 * 12 * PANEL * PRODUCT_K * PRODUCTS * tasks;
    const double rate = best_rate(cpu, &j, tasks, product_task, work);
    mem_pages_free(j.memory, (size_t)tasks * PIECE_BYTES);
    return 1e-9 * rate;
}
