#include "infer/engine.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "infer/events.h"
#include "infer/room.h"
#include "infer/slots.h"
#include "infer/turn.h"
#include "model/model.h"
#include "text/tok.h"
#include "weights/weights.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { WISH_CANCEL = 1, WISH_PARK = 2, WISH_UNPARK = 4 };

// Steps stop while so many events wait to be polled, per sequence: an owner that is busy must not
// be buried.
enum { EVENTS_PER_SEQ = 64 };

struct job_list {
    struct engine_job *first, *last;
    int count;
};

// Under `lock` what both threads touch; the rest belongs to the engine's thread.
struct engine {
    char *name;
    struct tok *tok;
    struct backend *be;
    struct model *model;
    bool takes_turns;
    struct slots *slots;
    struct job_list waiting; // admitted as slots become free
    struct events fresh;     // of the step in progress
    pthread_t thread;
    void (*wake)(void *);
    void *wake_ctx;

    pthread_mutex_t lock;
    pthread_cond_t news;       // for the engine: a message, room for events, or the end
    struct engine_job *inbox;  // jobs with wishes, newest first
    struct job_list submitted; // since the engine last looked
    struct events ready;       // for the owner
    bool woken, stop, new_limits, failed;
    char failure[1000];
    struct engine_limits limits;
    struct engine_stats stats;

    struct events polled; // the owner's
};

// ---- lists of jobs -----------------------------------------------------------------------------

static void list_add(struct job_list *l, struct engine_job *job) {
    job->queue_next = NULL;
    *(l->first ? &l->last->queue_next : &l->first) = job;
    l->last = job;
    l->count++;
}

static struct engine_job *list_take(struct job_list *l) {
    struct engine_job *job = l->first;
    l->first = job->queue_next;
    l->count--;
    return job;
}

static void list_remove(struct job_list *l, struct engine_job *job) {
    struct engine_job *before = NULL, **at = &l->first;
    while (*at != job) at = &(before = *at)->queue_next;
    *at = job->queue_next;
    if (l->last == job) l->last = before;
    l->count--;
}

// ---- the engine's thread -----------------------------------------------------------------------

// A job that never had a slot.
static void end_waiting(struct engine *e, struct engine_job *job, enum engine_finish finish) {
    struct engine_event *event = events_add(&e->fresh, job);
    event->finish = finish;
    event->error = e->failed ? e->failure : NULL;
    events_end_text(&e->fresh);
}

static void heed(struct engine *e, struct engine_job *job, uint32_t wishes) {
    if (wishes & WISH_CANCEL) {
        if (job->seq) {
            slots_finish(e->slots, job->seq, ENGINE_CANCELED, NULL, &e->fresh);
        } else {
            list_remove(&e->waiting, job);
            end_waiting(e, job, ENGINE_CANCELED);
        }
    } else if (job->seq) { // who waits has written nothing that a reader could be slow with
        slots_park(job->seq, wishes & WISH_PARK);
    }
}

// Whether a message about this job can still be heeded: its last event was not made yet.
static bool is_ours(const struct engine *e, const struct engine_job *job) {
    if (job->seq) return true;
    for (const struct engine_job *j = e->waiting.first; j; j = j->queue_next)
        if (j == job) return true;
    return false;
}

// With the lock: takes what came in.
static void read_messages(struct engine *e) {
    while (e->submitted.count) list_add(&e->waiting, list_take(&e->submitted));
    struct engine_job *job = e->inbox;
    e->inbox = NULL;
    while (job) {
        struct engine_job *next = job->next;
        job->posted = false;
        const uint32_t wishes = atomic_exchange(&job->wishes, 0);
        if (is_ours(e, job)) heed(e, job, wishes);
        job = next;
    }
}

// With the lock: hands over the events, and tells whether the owner must be woken.
static bool publish(struct engine *e) {
    if (!e->fresh.count) return false;
    events_move(&e->ready, &e->fresh);
    const bool wake = !e->woken;
    e->woken = true;
    return wake;
}

static void update_stats(struct engine *e) {
    e->stats.waiting = e->waiting.count + e->submitted.count;
    e->stats.running = slots_used(e->slots);
    e->stats.parked = slots_parked(e->slots);
}

static void count_events(struct engine *e) {
    for (size_t i = 0; i < e->fresh.count; i++) {
        e->stats.prompt_tokens += (uint64_t)e->fresh.at[i].prompt_tokens;
        e->stats.generated_tokens += (uint64_t)e->fresh.at[i].generated_tokens;
    }
}

static void end_all(struct engine *e, enum engine_finish finish) {
    struct engine_seq *seq;
    while ((seq = slots_any(e->slots)))
        slots_finish(e->slots, seq, finish, finish == ENGINE_FAILED ? e->failure : NULL, &e->fresh);
    while (e->waiting.count) end_waiting(e, list_take(&e->waiting), finish);
}

// The device is gone, and with it every job, now and from now on.
static void fail_all(struct engine *e, const struct error *err) {
    log_error("%s: %s", e->name, err->msg);
    pthread_mutex_lock(&e->lock);
    e->failed = true;
    memcpy(e->failure, err->msg, sizeof e->failure);
    pthread_mutex_unlock(&e->lock);
    end_all(e, ENGINE_FAILED);
}

static void apply_limits(struct engine *e, struct engine_limits limits) {
    struct error err;
    if (slots_settle(e->slots, &e->fresh, &err))
        fail_all(e, &err);
    else if (slots_resize(e->slots, limits, &err))
        log_error("%s: the new limits need memory that is not there, the old ones stay: %s",
                  e->name, err.msg);
}

// A step comes to its end, without the lock. False: there is none, and nobody can go on.
static bool step(struct engine *e, double *seconds) {
    struct error err;
    if (e->takes_turns) turn_take();
    const double start = clock_s();
    const int rows = slots_step(e->slots, &e->fresh, &err);
    *seconds = clock_s() - start;
    if (e->takes_turns) turn_leave();
    if (rows < 0) fail_all(e, &err);
    return rows != 0;
}

static void *engine_main(void *arg) {
    struct engine *e = arg;
    bool went = true;
    pthread_setname_np(pthread_self(), "engine");
    pthread_mutex_lock(&e->lock);
    for (;;) {
        const size_t most = EVENTS_PER_SEQ * (size_t)e->limits.max_batch_size;
        while (!e->stop && !e->inbox && !e->submitted.count && !e->new_limits &&
               (!went || e->ready.count > most))
            pthread_cond_wait(&e->news, &e->lock);
        if (e->stop) break;
        read_messages(e);
        if (e->failed) end_all(e, ENGINE_FAILED);
        const bool resize = e->new_limits;
        const struct engine_limits limits = e->limits;
        e->new_limits = false;
        pthread_mutex_unlock(&e->lock);

        if (resize) apply_limits(e, limits);
        while (e->waiting.count && !slots_full(e->slots))
            slots_admit(e->slots, list_take(&e->waiting));
        double seconds = 0;
        went = step(e, &seconds);

        pthread_mutex_lock(&e->lock);
        count_events(e);
        e->stats.steps += went;
        e->stats.step_seconds += seconds;
        update_stats(e);
        if (publish(e)) e->wake(e->wake_ctx);
    }
    read_messages(e);
    end_all(e, ENGINE_CANCELED);
    update_stats(e);
    if (publish(e)) e->wake(e->wake_ctx);
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

// ---- opening and closing -----------------------------------------------------------------------

static int check_shape(const struct engine_spec *spec, const struct dims *d, struct error *err) {
    const struct {
        const char *key;
        int promised, found;
    } all[] = {{"num_cells", spec->L, d->L},
               {"embedded_dim", spec->C, d->C},
               {"num_heads", spec->H, d->H},
               {"vocab_size", spec->V, d->V}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i].promised && all[i].promised != all[i].found)
            return fail(err, E_CONFIG, "model %s: %s has %s %d, %s says %d", spec->name,
                        spec->weights_path, all[i].key, all[i].found, spec->shape_path,
                        all[i].promised);
    }
    return 0;
}

static int open_vocab(struct tok **out, const struct engine_spec *spec, int V, struct error *err) {
    if (!strcmp(spec->vocab_path, "bytes"))
        tok_open_bytes(out);
    else if (tok_open(out, spec->vocab_path, err))
        return -1;
    if (tok_size(*out) <= V) return 0;
    fail(err, E_CONFIG, "model %s: the vocabulary %s has ids up to %d, the model only %d tokens",
         spec->name, spec->vocab_path, tok_size(*out) - 1, V);
    tok_close(*out);
    *out = NULL;
    return -1;
}

static int open_checked(struct weights **out, struct dims *d, const struct engine_spec *spec,
                        struct error *err) {
    if (weights_open(out, spec->weights_path, err)) return -1;
    if (!model_dims_of(d, *out, err) && !check_shape(spec, d, err)) return 0;
    weights_close(*out);
    *out = NULL;
    return -1;
}

static struct model_options options_of(const struct engine_spec *spec) {
    return (struct model_options){.precision = precision_parse(spec->dtype),
                                  .half_states = spec->half_states};
}

int engine_plan(uint64_t *bytes, const struct engine_spec *spec, struct engine_limits limits,
                struct error *err) {
    struct weights *w = NULL;
    struct backend *be = NULL;
    struct tok *tok = NULL;
    struct model m = {0};
    int rc = -1;
    if (open_checked(&w, &m.dims, spec, err) || open_vocab(&tok, spec, m.dims.V, err) ||
        backend_open_device(&be, spec->backend, spec->device_id, 1, err))
        goto out;
    m.be = be;
    m.options = options_of(spec);
    *bytes = model_bytes(be, &m.dims, options_of(spec)) + room_bytes(&m, limits) + tok_memory(tok);
    rc = 0;
out:
    weights_close(w);
    backend_destroy(be);
    tok_close(tok);
    return rc;
}

static void engine_free(struct engine *e) {
    slots_destroy(e->slots);
    model_destroy(e->model);
    backend_destroy(e->be);
    tok_close(e->tok);
    events_free(&e->fresh);
    events_free(&e->ready);
    events_free(&e->polled);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->news);
    free(e->name);
    free(e);
}

int engine_open(struct engine **out, const struct engine_spec *spec, struct engine_limits limits,
                void (*wake)(void *), void *ctx, struct error *err) {
    struct engine *e = mem_zero(1, sizeof *e);
    struct weights *w = NULL;
    struct dims dims;
    int rc = -1;
    e->name = mem_strdup(spec->name);
    e->limits = limits;
    e->wake = wake;
    e->wake_ctx = ctx;
    e->takes_turns = str_among("cpu|ref|ref64", spec->backend);
    events_init(&e->fresh);
    events_init(&e->ready);
    events_init(&e->polled);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->news, NULL);
    if (open_checked(&w, &dims, spec, err) || open_vocab(&e->tok, spec, dims.V, err) ||
        backend_open_device(&e->be, spec->backend, spec->device_id, spec->num_threads, err) ||
        model_create(&e->model, e->be, &dims, options_of(spec), err) ||
        model_load(e->model, w, err) ||
        slots_create(&e->slots, e->model, e->tok, limits, spec->depth, err) ||
        (spec->warm && slots_warm(e->slots, err)))
        goto out;
    e->stats.model_bytes = model_bytes(e->be, &dims, options_of(spec));
    e->stats.state_bytes = room_bytes(e->model, limits);
    if (pthread_create(&e->thread, NULL, engine_main, e)) {
        fail(err, E_IO, "model %s: cannot start a thread", spec->name);
        goto out;
    }
    *out = e;
    rc = 0;
out:
    weights_close(w);
    if (rc) engine_free(e);
    return rc;
}

void engine_close(struct engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    engine_free(e);
}

// ---- the owner's side --------------------------------------------------------------------------

int engine_submit(struct engine *e, struct engine_job *job, struct error *err) {
    assert(job->num_prompt > 0 && job->num_bias <= ENGINE_MAX_BIAS && job->top <= ENGINE_MAX_TOP);
    int rc = 0;
    pthread_mutex_lock(&e->lock);
    const int waiting = e->stats.waiting, most = e->limits.max_queue;
    if (waiting >= most) {
        rc = fail(err, E_LIMIT, "%d requests wait already for model %s", waiting, e->name);
    } else {
        list_add(&e->submitted, job);
        e->stats.waiting++;
        pthread_cond_signal(&e->news);
    }
    pthread_mutex_unlock(&e->lock);
    return rc;
}

static void post(struct engine *e, struct engine_job *job, uint32_t set, uint32_t clear) {
    pthread_mutex_lock(&e->lock);
    atomic_fetch_and(&job->wishes, ~clear);
    atomic_fetch_or(&job->wishes, set);
    if (!job->posted) {
        job->posted = true;
        job->next = e->inbox;
        e->inbox = job;
    }
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

void engine_cancel(struct engine *e, struct engine_job *job) {
    post(e, job, WISH_CANCEL, 0);
}

void engine_park(struct engine *e, struct engine_job *job, bool parked) {
    post(e, job, parked ? WISH_PARK : WISH_UNPARK, parked ? WISH_UNPARK : WISH_PARK);
}

// A job whose last event is polled must not stay in the inbox: it is the owner's from now on.
static void forget(struct engine *e, struct engine_job *job) {
    struct engine_job **at = &e->inbox;
    if (!job->posted) return;
    while (*at != job) at = &(*at)->next;
    *at = job->next;
    job->posted = false;
}

const struct engine_event *engine_poll(struct engine *e, size_t *count) {
    pthread_mutex_lock(&e->lock);
    const struct events ready = e->ready;
    e->ready = e->polled;
    e->polled = ready;
    events_clear(&e->ready);
    e->woken = false;
    for (size_t i = 0; i < e->polled.count; i++)
        if (e->polled.at[i].finish) forget(e, e->polled.at[i].job);
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
    events_settle(&e->polled);
    *count = e->polled.count;
    return e->polled.at;
}

void engine_set_limits(struct engine *e, struct engine_limits limits) {
    pthread_mutex_lock(&e->lock);
    e->limits = limits;
    e->new_limits = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

struct engine_limits engine_limits(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    const struct engine_limits limits = e->limits;
    pthread_mutex_unlock(&e->lock);
    return limits;
}

void engine_stats(struct engine *e, struct engine_stats *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    out->max_batch_size = e->limits.max_batch_size;
    out->failed = e->failed;
    pthread_mutex_unlock(&e->lock);
}

const struct tok *engine_tok(const struct engine *e) {
    return e->tok;
}

int engine_vocab_size(const struct engine *e) {
    return e->model->dims.V;
}

uint64_t engine_model_hash(const struct engine *e) {
    return e->model->hash;
}
