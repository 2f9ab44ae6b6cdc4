// The pool runs every task exactly once, whoever calls, however many threads there are.
#include "base/pool.h"

#include "base/mem.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void count_task(void *ctx, int task) {
    ((unsigned char *)ctx)[task]++; // plain: two threads with the same task are a race
}

static void expect_each_once(struct pool *p, int num_tasks) {
    unsigned char *count = mem_zero((size_t)num_tasks + 1, 1);
    pool_run(p, num_tasks, count_task, count);
    for (int i = 0; i < num_tasks; i++)
        if (count[i] != 1)
            fail_msg("%d threads, %d tasks: task %d ran %d times", pool_threads(p), num_tasks, i,
                     count[i]);
    assert_int_equal(count[num_tasks], 0);
    free(count);
}

static void every_task_runs_exactly_once(void **state) {
    (void)state;
    const int sizes[] = {0, 1, 2, 3, 7, 64, 1000, 100003};
    for (int threads = 1; threads <= 9; threads++) {
        struct pool *p = pool_create(threads);
        assert_int_equal(pool_threads(p), threads);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) expect_each_once(p, sizes[i]);
        pool_destroy(p);
    }
    struct pool *all = pool_create(0);
    assert_true(pool_threads(all) >= 1);
    expect_each_once(all, 100);
    pool_destroy(all);
    pool_destroy(NULL);
}

// What the caller wrote before the job is seen by the tasks, what they write is seen after it.
struct chain {
    int input, num_tasks;
    int64_t output[64];
};

static void square_input(void *ctx, int task) {
    struct chain *c = ctx;
    c->output[task] = (int64_t)c->input * c->input + task;
}

static void run_chains(struct pool *p, uint64_t seed, int num_jobs) {
    struct chain c = {0};
    for (int job = 0; job < num_jobs; job++) {
        c.input = job;
        c.num_tasks = (int)(rng_u64(seed, 0, (uint64_t)job) % 64);
        pool_run(p, c.num_tasks, square_input, &c);
        for (int i = 0; i < c.num_tasks; i++)
            if (c.output[i] != (int64_t)job * job + i) {
                fprintf(stderr, "seed %d, job %d, task %d\n", (int)seed, job, i);
                abort();
            }
    }
}

static void twenty_thousand_jobs_in_a_row(void **state) {
    (void)state;
    struct pool *p = pool_create(4);
    run_chains(p, 1, 20000);
    pool_destroy(p);
}

struct caller {
    pthread_t thread;
    struct pool *pool;
    uint64_t seed;
};

static void *call(void *arg) {
    struct caller *c = arg;
    run_chains(c->pool, c->seed, 3000);
    return NULL;
}

static void callers_take_turns(void **state) {
    (void)state;
    struct pool *p = pool_create(3);
    struct caller callers[3];
    for (int i = 0; i < 3; i++) {
        callers[i] = (struct caller){.pool = p, .seed = (uint64_t)i + 2};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    for (int i = 0; i < 3; i++) pthread_join(callers[i].thread, NULL);
    pool_destroy(p);
}

static void doze(void *ctx, int task) {
    usleep(task == 0 ? 2000 : 50);
    atomic_fetch_add((atomic_int *)ctx, 1);
}

// Pauses longer than the spin make workers and the caller sleep, and they must wake again.
static void sleepers_wake(void **state) {
    (void)state;
    struct pool *p = pool_create(3);
    for (int job = 0; job < 20; job++) {
        atomic_int count = 0;
        usleep(job % 2 ? 3000 : 0);
        pool_run(p, 8, doze, &count);
        assert_int_equal(count, 8);
    }
    pool_destroy(p);
}

static void pools_come_and_go(void **state) {
    (void)state;
    for (int i = 0; i < 200; i++) {
        struct pool *p = pool_create(1 + i % 5);
        if (i % 3) expect_each_once(p, i);
        pool_destroy(p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_exactly_once),
        cmocka_unit_test(callers_take_turns),
        cmocka_unit_test(twenty_thousand_jobs_in_a_row),
        cmocka_unit_test(sleepers_wake),
        cmocka_unit_test(pools_come_and_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
