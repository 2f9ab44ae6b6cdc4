#include "fake_engine.h"

#include "infer/engine.h"

#include "base/error.h"
#include "base/mem.h"
#include "text/tok.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Atomic int fake_running, fake_step_us = 100;
_Atomic int fake_open;
_Atomic bool fake_fails;
_Atomic unsigned long long fake_bytes = 1000;
const char *fake_open_error;

enum { MOST = 2048, TEXT = 1 << 16 };

struct engine {
    pthread_mutex_t lock;
    pthread_t thread;
    void (*wake)(void *);
    void *ctx;
    bool stop, woken;
    struct tok *tok;
    struct engine_limits limits;
    struct engine_job *jobs[MOST];
    int written[MOST], num_jobs;
    struct engine_event ready[2][4 * MOST]; // the one that fills, the one that was polled
    int num_ready, filling;
};

static void emit(struct engine *e, int i, const char *text, size_t len, enum engine_finish finish) {
    e->ready[e->filling][e->num_ready++] =
        (struct engine_event){.job = e->jobs[i],
                              .text = text,
                              .text_len = len,
                              .generated_tokens = len > 0,
                              .prompt_tokens = e->written[i] ? 0 : e->jobs[i]->num_prompt,
                              .finish = finish};
    if (!finish) return;
    e->num_jobs--;
    e->jobs[i] = e->jobs[e->num_jobs];
    e->written[i] = e->written[e->num_jobs];
    fake_running--;
}

static void step(struct engine *e) {
    for (int i = e->num_jobs; i-- > 0 && e->num_ready < 3 * MOST;) {
        struct engine_job *j = e->jobs[i];
        const uint32_t wishes = atomic_load(&j->wishes);
        if (wishes & 1 || e->stop) {
            emit(e, i, "", 0, ENGINE_CANCELED);
            continue;
        }
        if (fake_fails && e->written[i] > 3) {
            emit(e, i, "", 0, ENGINE_FAILED);
            e->ready[e->filling][e->num_ready - 1].error = "the device is gone";
            continue;
        }
        if (wishes & 2) continue; // parked
        size_t len;
        const int at = j->num_prompt - 1 - e->written[i] % j->num_prompt;
        const char *text = tok_bytes(e->tok, j->prompt[at], &len);
        if (j->prompt[at] >= 128) text = "?", len = 1;
        const bool last = e->written[i] + 1 >= j->max_tokens;
        emit(e, i, text, len, last ? ENGINE_LENGTH : ENGINE_NOT_YET);
        if (!last) e->written[i]++;
    }
}

static void *run(void *arg) {
    struct engine *e = arg;
    for (bool stop = false; !stop;) {
        pthread_mutex_lock(&e->lock);
        stop = e->stop;
        step(e);
        const bool wake = e->num_ready && !e->woken;
        e->woken |= wake;
        if (wake) e->wake(e->ctx);
        pthread_mutex_unlock(&e->lock);
        usleep((unsigned)fake_step_us);
    }
    return NULL;
}

int engine_open(struct engine **out, const struct engine_spec *spec, struct engine_limits limits,
                void (*wake)(void *), void *ctx, struct error *err) {
    if (fake_open_error) return fail(err, E_FORMAT, "%s: %s", spec->name, fake_open_error);
    struct engine *e = mem_zero(1, sizeof *e);
    *e = (struct engine){.wake = wake, .ctx = ctx, .limits = limits};
    tok_open_bytes(&e->tok);
    pthread_mutex_init(&e->lock, NULL);
    pthread_create(&e->thread, NULL, run, e);
    *out = e;
    fake_open++;
    return 0;
}

void engine_close(struct engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    tok_close(e->tok);
    free(e);
    fake_open--;
}

int engine_plan(uint64_t *bytes, const struct engine_spec *spec, struct engine_limits limits,
                struct error *err) {
    (void)spec, (void)limits, (void)err;
    *bytes = fake_bytes;
    return 0;
}

int engine_submit(struct engine *e, struct engine_job *job, struct error *err) {
    int rc = 0;
    pthread_mutex_lock(&e->lock);
    if (e->num_jobs >= MOST || e->num_jobs >= e->limits.max_queue) {
        rc = fail(err, E_LIMIT, "the queue is full");
    } else {
        e->written[e->num_jobs] = 0;
        e->jobs[e->num_jobs++] = job;
        fake_running++;
    }
    pthread_mutex_unlock(&e->lock);
    return rc;
}

void engine_cancel(struct engine *e, struct engine_job *job) {
    (void)e;
    atomic_fetch_or(&job->wishes, 1);
}

void engine_park(struct engine *e, struct engine_job *job, bool parked) {
    (void)e;
    if (parked)
        atomic_fetch_or(&job->wishes, 2);
    else
        atomic_fetch_and(&job->wishes, ~2u);
}

const struct engine_event *engine_poll(struct engine *e, size_t *count) {
    pthread_mutex_lock(&e->lock);
    const struct engine_event *events = e->ready[e->filling];
    *count = (size_t)e->num_ready;
    e->filling = !e->filling;
    e->num_ready = 0;
    e->woken = false;
    pthread_mutex_unlock(&e->lock);
    return events;
}

void engine_set_limits(struct engine *e, struct engine_limits limits) {
    e->limits = limits;
}

struct engine_limits engine_limits(struct engine *e) {
    return e->limits;
}

void engine_stats(struct engine *e, struct engine_stats *out) {
    *out = (struct engine_stats){.running = e->num_jobs};
}

const struct tok *engine_tok(const struct engine *e) {
    return e->tok;
}

int engine_vocab_size(const struct engine *e) {
    (void)e;
    return 257;
}

uint64_t engine_model_hash(const struct engine *e) {
    (void)e;
    return 0xfa4e;
}
