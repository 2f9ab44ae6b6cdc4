#include "base/pool.h"

#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// A job's tasks are cut into one stretch for each thread, which takes its own first and then helps
// the others: the same rows meet the same core from job to job, and its caches (chiplets share
// little), yet nobody waits for a neighbour that was called away. A stretch is one 64-bit word:
// generation (16 bits), end (24), next task (24). A thread takes a task by adding 1 and reads all
// three from the same word. So a thread that wakes late can never mix one job's index with another
// job's end; and while it holds a valid index the job cannot end, hence fn and ctx stay what they
// are.
enum { INDEX_BITS = 24 };
static const uint64_t index_mask = ((uint64_t)1 << INDEX_BITS) - 1;

// Measured on shared cores: pure spinning collapses with a busy neighbour, pure sleeping costs 5 µs
// a job. Spin for about 20 µs, then sleep.
enum { SPINS = 4000 };

struct stretch {
    _Alignas(64) _Atomic uint64_t word;
};

struct pool {
    pthread_mutex_t turn; // whose job it is
    void (*fn)(void *, int);
    void *ctx;
    uint32_t count; // tasks of the job
    uint64_t generation;
    struct stretch *stretches;               // one a thread
    _Alignas(64) _Atomic uint32_t done;      // tasks finished of the current job
    _Alignas(64) _Atomic uint32_t announced; // counts jobs; workers wait for it to change
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic uint32_t caller_sleeps;
    _Atomic bool stop;
    int num_threads;
    struct worker {
        struct pool *pool;
        int index;
        pthread_t thread;
    } * workers;
};

static _Thread_local int thread_index;

int pool_thread(void) {
    return thread_index;
}

static void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void work_at(struct pool *p, struct stretch *s) {
    for (;;) {
        const uint64_t t = atomic_fetch_add_explicit(&s->word, 1, memory_order_acq_rel);
        const uint32_t index = t & index_mask, end = t >> INDEX_BITS & index_mask;
        if (index >= end) return;
        p->fn(p->ctx, (int)index);
        const uint32_t count = p->count; // the job cannot end before this task is counted
        if (atomic_fetch_add(&p->done, 1) + 1 == count && atomic_load(&p->caller_sleeps))
            futex_wake(&p->done, 1);
    }
}

static void work(struct pool *p) {
    for (int i = 0; i < p->num_threads; i++)
        work_at(p, &p->stretches[(thread_index + i) % p->num_threads]);
}

static void *worker(void *arg) {
    struct pool *p = ((struct worker *)arg)->pool;
    thread_index = ((struct worker *)arg)->index;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = atomic_load_explicit(&p->announced, memory_order_acquire);
        for (int i = 0; now == seen && i < SPINS; i++) {
            cpu_relax();
            now = atomic_load_explicit(&p->announced, memory_order_acquire);
        }
        if (now == seen) {
            atomic_fetch_add(&p->sleepers, 1);
            futex_wait(&p->announced, seen);
            atomic_fetch_sub(&p->sleepers, 1);
            continue;
        }
        seen = now;
        if (atomic_load(&p->stop)) return NULL;
        work(p);
    }
}

static void announce(struct pool *p) {
    atomic_fetch_add(&p->announced, 1);
    if (atomic_load(&p->sleepers)) futex_wake(&p->announced, INT_MAX);
}

int pool_processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

struct pool *pool_create(int num_threads) {
    if (num_threads <= 0) num_threads = pool_processors();
    struct pool *p = NULL;
    if (posix_memalign((void **)&p, 64, sizeof *p)) die("out of memory: thread pool");
    *p = (struct pool){.num_threads = num_threads};
    pthread_mutex_init(&p->turn, NULL);
    if (posix_memalign((void **)&p->stretches, 64, (size_t)num_threads * sizeof *p->stretches))
        die("out of memory: thread pool");
    memset(p->stretches, 0, (size_t)num_threads * sizeof *p->stretches);
    p->workers = mem_zero((size_t)num_threads, sizeof *p->workers);
    for (int i = 1; i < num_threads; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->index = i;
        if (pthread_create(&w->thread, NULL, worker, w)) die("cannot start thread %d", i);
    }
    return p;
}

void pool_destroy(struct pool *p) {
    if (!p) return;
    atomic_store(&p->stop, true);
    announce(p);
    for (int i = 1; i < p->num_threads; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_mutex_destroy(&p->turn);
    free(p->workers);
    free(p->stretches);
    free(p);
}

int pool_threads(const struct pool *p) {
    return p->num_threads;
}

void pool_run(struct pool *p, int num_tasks, void (*fn)(void *, int), void *ctx) {
    assert(num_tasks >= 0 && (uint64_t)num_tasks < index_mask / 2);
    if (p->num_threads == 1 || num_tasks <= 1) {
        for (int i = 0; i < num_tasks; i++) fn(ctx, i);
        return;
    }
    pthread_mutex_lock(&p->turn);
    p->fn = fn;
    p->ctx = ctx;
    atomic_store(&p->done, 0);
    p->count = (uint32_t)num_tasks;
    p->generation = (p->generation + 1) & 0xffff;
    for (int i = 0; i < p->num_threads; i++) {
        const uint64_t first = (uint64_t)num_tasks * (uint64_t)i / (uint64_t)p->num_threads;
        const uint64_t end = (uint64_t)num_tasks * (uint64_t)(i + 1) / (uint64_t)p->num_threads;
        atomic_store_explicit(&p->stretches[i].word,
                              p->generation << 2 * INDEX_BITS | end << INDEX_BITS | first,
                              memory_order_release);
    }
    announce(p);
    work(p);
    uint32_t done = atomic_load_explicit(&p->done, memory_order_acquire);
    for (int i = 0; done != (uint32_t)num_tasks && i < SPINS; i++) {
        cpu_relax();
        done = atomic_load_explicit(&p->done, memory_order_acquire);
    }
    while (done != (uint32_t)num_tasks) {
        atomic_store(&p->caller_sleeps, 1);
        done = atomic_load_explicit(&p->done, memory_order_acquire);
        if (done != (uint32_t)num_tasks) futex_wait(&p->done, done);
        done = atomic_load_explicit(&p->done, memory_order_acquire);
    }
    atomic_store(&p->caller_sleeps, 0);
    pthread_mutex_unlock(&p->turn);
}
