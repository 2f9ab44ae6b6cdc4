// How fast every op is, in µs and as a share of what the machine can do: the larger of the time its
// bytes need at the read bandwidth of a working set of that size, and the time its operations need
// at the FMA peak, both measured in the same run on the same threads. Shapes are those of the 0.1B
// model (R 1, 32, 512; on devices 8192 as well, where training has it) and of the demo.
#include "check_ops.h"

#include "backend/cpu/cpu.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/str.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// ---- the machine -------------------------------------------------------------------------------

static volatile float sink;

// 12 independent chains hide the latency of an FMA on every machine there is.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_512(int loops) {
    __m512 acc[12], x = _mm512_set1_ps(0.999f);
    for (int i = 0; i < 12; i++) acc[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < loops; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) acc[i] = _mm512_fmadd_ps(acc[i], x, x);
    for (int i = 1; i < 12; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    sink = _mm512_cvtss_f32(acc[0]);
    return 2.0 * 16 * 12 * loops;
}

__attribute__((target("avx2,fma"))) static double fma_256(int loops) {
    __m256 acc[12], x = _mm256_set1_ps(0.999f);
    for (int i = 0; i < 12; i++) acc[i] = _mm256_set1_ps((float)i);
    for (int n = 0; n < loops; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) acc[i] = _mm256_fmadd_ps(acc[i], x, x);
    for (int i = 1; i < 12; i++) acc[0] = _mm256_add_ps(acc[0], acc[i]);
    sink = _mm256_cvtss_f32(acc[0]);
    return 2.0 * 8 * 12 * loops;
}
#endif

static double fma_plain(int loops) {
    float acc[48], x = 0.999f;
    for (int i = 0; i < 48; i++) acc[i] = (float)i;
    for (int n = 0; n < loops; n++)
#pragma GCC unroll 48
        for (int i = 0; i < 48; i++) acc[i] = acc[i] * x + x;
    for (int i = 0; i < 48; i++) sink = acc[i];
    return 2.0 * 48 * loops;
}

static double fma_some(const char *isa, int loops) {
#if defined(__x86_64__)
    if (strcmp(isa, "x86-64-v4") == 0) return fma_512(loops);
    if (strcmp(isa, "x86-64-v3") == 0) return fma_256(loops);
#endif
    (void)isa;
    return fma_plain(loops);
}

enum { SWEEPS = 6 };

struct machine {
    const char *isa;
    struct pool *pool;
    int threads;
    double gflops;
    size_t bytes[SWEEPS]; // working set a thread
    double gbs[SWEEPS];   // of all threads
    // of the measurement that is going on
    const char *memory;
    size_t sweep;
    int loops;
};

static void fma_task(void *ctx, int task) {
    const struct machine *m = ctx;
    (void)task;
    fma_some(m->isa, m->loops);
}

typedef uint64_t lanes __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) void read_some(const char *memory, size_t bytes,
                                                            int loops) {
    lanes sum[4] = {0};
    for (int n = 0; n < loops; n++) {
        const lanes *p = (const lanes *)(const void *)memory;
        for (size_t i = 0; i + 4 <= bytes / sizeof *p; i += 4)
#pragma GCC unroll 4
            for (int l = 0; l < 4; l++) sum[l] ^= p[i + (size_t)l];
    }
    sink = (float)(sum[0][0] ^ sum[1][1] ^ sum[2][2] ^ sum[3][3]);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void read_512(const char *p, size_t bytes, int loops) {
    read_some(p, bytes, loops);
}
__attribute__((target("avx2"))) static void read_256(const char *p, size_t bytes, int loops) {
    read_some(p, bytes, loops);
}
#endif

static void read_task(void *ctx, int task) {
    const struct machine *m = ctx;
    const char *p = m->memory + (size_t)task * m->sweep;
#if defined(__x86_64__)
    if (strcmp(m->isa, "x86-64-v4") == 0)
        read_512(p, m->sweep, m->loops);
    else if (strcmp(m->isa, "x86-64-v3") == 0)
        read_256(p, m->sweep, m->loops);
    else
#endif
        read_some(p, m->sweep, m->loops);
}

// The best of five: a neighbour can only slow us down.
static double best_time(struct machine *m, void (*task)(void *, int)) {
    double best = INFINITY;
    for (int i = 0; i < 5; i++) {
        const double start = clock_s();
        pool_run(m->pool, m->threads, task, m);
        best = fmin(best, clock_s() - start);
    }
    return best;
}

static void measure(struct machine *m, struct backend *be) {
    for (int i = 0; i < SWEEPS; i++)
        m->bytes[i] = i == SWEEPS - 1 ? (size_t)64 << 20 : (size_t)16384 << 2 * i;
    if (strcmp(be->name, "cpu") != 0) { // it knows best itself; 0: it cannot say
        m->gflops = be->class->measure(be, LIMIT_F32);
        const double gbs = be->class->measure(be, LIMIT_READ);
        for (int i = 0; i < SWEEPS; i++) m->gbs[i] = gbs;
        return;
    }
    m->loops = 100000;
    const double work = fma_some(m->isa, 1) * m->loops * m->threads;
    m->gflops = work / best_time(m, fma_task) * 1e-9;
    const size_t most = (size_t)64 << 20;
    char *memory = mem_pages(most * (size_t)m->threads);
    memset(memory, 1, most * (size_t)m->threads);
    m->memory = memory;
    for (int i = 0; i < SWEEPS; i++) {
        m->sweep = m->bytes[i];
        m->loops = (int)((most << 1) / m->sweep);
        m->gbs[i] = (double)m->sweep * m->loops * m->threads / best_time(m, read_task) * 1e-9;
    }
    mem_pages_free(memory, most * (size_t)m->threads);
}

// Of the smallest sweep that holds the working set.
static double bandwidth(const struct machine *m, double bytes) {
    int i = 0;
    while (i < SWEEPS - 1 && (double)m->bytes[i] * m->threads < bytes) i++;
    return m->gbs[i];
}

// ---- the ops -----------------------------------------------------------------------------------

struct result {
    double median_us, min_us, bytes, flops, share;
    bool by_flops;
};

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_call(struct result *out, struct run *r) {
    enum { MOST = 400 };
    const struct op_case *op = r->c->op;
    double us[MOST];
    int n = 0;
    const double begin = clock_s();
    run_go(r); // warms up
    // A device is given several before it is waited for.
    const int at_once = strcmp(r->be->name, "cpu") == 0 ? 1 : 16;
    while (n < 5 || (n < MOST && clock_s() - begin < 0.15)) {
        const double start = clock_s();
        for (int i = 0; i < at_once; i++) op->call(r->be, r->t, r->w, &r->batch, r->c);
        struct error err;
        if (r->be->class->sync(r->be, &err)) die("%s", err.msg);
        us[n++] = (clock_s() - start) * 1e6 / at_once;
    }
    qsort(us, (size_t)n, sizeof *us, by_size);
    out->min_us = us[0];
    out->median_us = us[n / 2];
}

// What lies between the parts of an op and need not be moved.
static bool is_work(const struct arg *a) {
    return a->mode[0] == '~' && strcmp(a->name, "saved") != 0 && strcmp(a->name, "logits") != 0;
}

static struct result bench_call(struct backend *be, const struct machine *m, const struct call *c) {
    struct result out = {0};
    struct run r;
    run_open(&r, c, be);
    time_call(&out, &r);
    for (int i = 0; i < c->args; i++)
        if (strcmp(c->arg[i].name, "weight") == 0)
            out.bytes += (double)be->class->weight_bytes(be, c->arg[i].dim[0], c->arg[i].dim[1],
                                                         c->precision, false);
        else if (strcmp(c->arg[i].name, "table") == 0 || strcmp(c->arg[i].name, "dtable") == 0)
            out.bytes += (double)c->size.R * c->size.C * 4; // the rows that are touched
        else if (c->arg[i].slot_axis)                       // clear: one slot of them
            out.bytes += (double)run_size(&r, i) / (double)c->arg[i].dim[c->arg[i].slot_axis];
        else if (c->arg[i].ndim && !c->arg[i].shares && !is_work(&c->arg[i]))
            out.bytes += (double)run_size(&r, i);
    run_close(&r);
    if (c->op->flops) out.flops = c->op->flops(c);
    const double gbs = bandwidth(m, out.bytes);
    const double by_bytes = gbs > 0 ? out.bytes / gbs * 1e-3 : 0;
    const double by_flops = m->gflops > 0 ? out.flops / m->gflops * 1e-3 : 0;
    out.by_flops = by_flops > by_bytes;
    out.share = fmax(by_bytes, by_flops) / out.median_us;
    return out;
}

static void print_result(const struct call *c, const struct result *x) {
    char shape[64];
    snprintf(shape, sizeof shape, "R %d C %d N %d V %d /%d", c->size.R, c->size.C, c->size.N,
             c->size.V, c->variant);
    printf("%-14s %-34s %10.1f %10.1f %8.1f %8.1f %5.0f %% of %s\n", c->op->name, shape,
           x->median_us, x->min_us, x->bytes / x->median_us * 1e-3, x->flops / x->median_us * 1e-3,
           100 * x->share, x->by_flops ? "FMA" : "memory");
}

static void put_number(struct json_writer *w, const char *key, double x) {
    json_put_key(w, key);
    json_put_float32(w, (float)x);
}

static void put_result(struct json_writer *w, const struct call *c, const struct result *x) {
    json_open(w, '{');
    json_put_key(w, "op");
    json_put_text(w, c->op->name, strlen(c->op->name));
    put_number(w, "rows", c->size.R);
    put_number(w, "channels", c->size.C);
    put_number(w, "head", c->size.N);
    put_number(w, "vocab", c->size.V);
    put_number(w, "variant", c->variant);
    put_number(w, "median_us", x->median_us);
    put_number(w, "min_us", x->min_us);
    put_number(w, "gb_per_s", x->bytes / x->median_us * 1e-3);
    put_number(w, "gflop_per_s", x->flops / x->median_us * 1e-3);
    put_number(w, "share_of_peak", x->share);
    json_close(w, '}');
}

static void open_report(struct json_writer *w, const struct machine *m, bool json) {
    if (!json) {
        printf("%s, %d threads; FMA peak %.0f GFLOP/s; reads", m->isa, m->threads, m->gflops);
        for (int i = 0; i < SWEEPS; i++) printf(" %zuK:%.0f", m->bytes[i] >> 10, m->gbs[i]);
        printf(" GB/s\n%-14s %-34s %10s %10s %8s %8s  share\n", "op", "shape /variant", "median µs",
               "min µs", "GB/s", "GFLOP/s");
        return;
    }
    json_open(w, '{');
    json_put_key(w, "isa");
    json_put_text(w, m->isa, strlen(m->isa));
    put_number(w, "threads", m->threads);
    put_number(w, "peak_gflop_per_s", m->gflops);
    put_number(w, "dram_gb_per_s", m->gbs[SWEEPS - 1]);
    json_put_key(w, "results");
    json_open(w, '[');
}

enum { MOST_ON_CPU = 1024 }; // rows

int bench_ops(const char *only, const char *backend, int threads, bool json) {
    struct backend *be = open_backend(backend, NULL, threads);
    const bool cpu = strcmp(be->name, "cpu") == 0;
    struct pool *pool = pool_create(threads);
    struct machine m = {.isa = cpu ? cpu_isa(be) : be->name,
                        .pool = pool,
                        .threads = cpu ? pool_threads(pool) : 1};
    struct call *c = mem_alloc(sizeof *c);
    struct str text;
    str_init(&text, (size_t)1 << 20);
    struct json_writer w = {.out = &text};
    measure(&m, be);
    open_report(&w, &m, json);
    for (int i = 0; i < op_case_count; i++) {
        const struct op_case *op = &op_cases[i];
        if (only && strcmp(only, op->name) != 0) continue;
        for (const struct size *s = op->bench; s->R >= 0 && (s->R <= MOST_ON_CPU || !cpu); s++)
            for (int variant = 0; variant < op->variants; variant++) {
                if (!((op->bench_variants ? op->bench_variants : 1u) >> variant & 1)) continue;
                call_init(c, op, *s, variant, FILL_RANDOM, false, false);
                c->tidy = true;
                const struct result x = bench_call(be, &m, c);
                json ? put_result(&w, c, &x) : print_result(c, &x);
                fflush(stdout);
            }
    }
    if (json) {
        json_close(&w, ']');
        json_close(&w, '}');
        puts(text.data);
    }
    str_free(&text);
    free(c);
    pool_destroy(pool);
    backend_destroy(be);
    return 0;
}
