// The one thread pool. Work is cut into tasks by the problem, never by the number of threads, so a
// result cannot depend on how many threads there are.
#pragma once

struct pool;

// num_threads counts the calling thread; 0 means all processors this process may run on.
struct pool *pool_create(int num_threads);
void pool_destroy(struct pool *p);
int pool_threads(const struct pool *p);
int pool_processors(void); // that this process may run on

// Calls fn(ctx, task) for every task in [0, num_tasks), on any thread, and returns when all are
// done. The caller works too. Calls from several threads take turns; fn must not call pool_run
// itself. num_tasks < 2^24.
void pool_run(struct pool *p, int num_tasks, void (*fn)(void *ctx, int task), void *ctx);

// Inside fn: which of the pool's threads this is, in [0, pool_threads); 0 is the caller of
// pool_run. For scratch memory only: a result must not depend on it.
int pool_thread(void);
