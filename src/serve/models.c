#include "serve/models.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// ---- entries -----------------------------------------------------------------------------------

static const char *keep(struct arena *a, const char *s) {
    return s ? arena_copy(a, s, strlen(s)) : NULL;
}

static bool same_text(const char *a, const char *b) {
    return a == b || (a && b && !strcmp(a, b));
}

bool entry_same(const struct model_entry *a, const struct model_entry *b) {
    return same_text(a->name, b->name) && same_text(a->weights_path, b->weights_path) &&
           same_text(a->vocab_path, b->vocab_path) && same_text(a->shape_path, b->shape_path) &&
           same_text(a->backend, b->backend) && same_text(a->dtype, b->dtype) &&
           a->half_states == b->half_states && a->num_devices == b->num_devices &&
           !memcmp(a->device_ids, b->device_ids, a->num_devices * sizeof *a->device_ids) &&
           a->num_threads == b->num_threads && a->L == b->L && a->C == b->C && a->H == b->H &&
           a->V == b->V;
}

static int add_file(struct hasher *h, const char *path, struct error *err) {
    struct stat s;
    if (stat(path, &s))
        return fail(err, E_IO, "%s: there is no such file, or it cannot be read", path);
    // The change time cannot be set back, so a file that was replaced shows even where its size and
    // modification time are the old one's.
    const int64_t all[] = {(int64_t)s.st_dev,          (int64_t)s.st_ino,
                           (int64_t)s.st_size,         (int64_t)s.st_mtim.tv_sec,
                           (int64_t)s.st_mtim.tv_nsec, (int64_t)s.st_ctim.tv_sec,
                           (int64_t)s.st_ctim.tv_nsec};
    hasher_add(h, all, sizeof all);
    return 0;
}

int entry_contents(uint64_t *out, const struct model_entry *entry, struct error *err) {
    struct hasher *h = hasher_create();
    int rc = add_file(h, entry->weights_path, err);
    if (!rc && strcmp(entry->vocab_path, "bytes")) rc = add_file(h, entry->vocab_path, err);
    *out = hasher_digest(h);
    hasher_destroy(h);
    return rc;
}

static struct engine_spec spec_of(const struct model_entry *e, size_t device) {
    return (struct engine_spec){.name = e->name,
                                .weights_path = e->weights_path,
                                .vocab_path = e->vocab_path,
                                .backend = e->backend,
                                .dtype = e->dtype,
                                .half_states = e->half_states,
                                .device_id = (int)e->device_ids[device],
                                .num_threads = e->num_threads,
                                .warm = true,
                                .L = e->L,
                                .C = e->C,
                                .H = e->H,
                                .V = e->V,
                                .shape_path = e->shape_path};
}

int entry_plan(uint64_t *bytes, const struct model_entry *e, struct error *err) {
    *bytes = 0;
    for (size_t i = 0; i < e->num_devices; i++) {
        const struct engine_spec spec = spec_of(e, i);
        uint64_t one;
        if (engine_plan(&one, &spec, e->limits, err)) return -1;
        *bytes += one;
    }
    return 0;
}

// ---- versions ----------------------------------------------------------------------------------

static void wake(void *ctx) {
    uv_async_send(ctx);
}

void version_close(struct version *v) {
    if (!v) return;
    for (size_t i = 0; i < v->entry.num_devices; i++) engine_close(v->engines[i]);
    free(v->engines);
    free(v->jobs);
    arena_free(&v->arena);
    free(v);
}

int version_open(struct version **out, struct models *m, const struct model_entry *entry,
                 struct error *err) {
    struct version *v = mem_zero(1, sizeof *v);
    struct model_entry *e = &v->entry;
    const double start = clock_s();
    *e = *entry;
    e->name = keep(&v->arena, entry->name);
    e->weights_path = keep(&v->arena, entry->weights_path);
    e->vocab_path = keep(&v->arena, entry->vocab_path);
    e->shape_path = keep(&v->arena, entry->shape_path);
    e->backend = keep(&v->arena, entry->backend);
    e->dtype = keep(&v->arena, entry->dtype);
    int64_t *ids = arena_alloc(&v->arena, entry->num_devices * sizeof *ids);
    memcpy(ids, entry->device_ids, entry->num_devices * sizeof *ids);
    e->device_ids = ids;
    v->models = m;
    v->created_s = clock_unix_ms() / 1000;
    v->engines = mem_zero(e->num_devices, sizeof(struct engine *));
    v->jobs = mem_zero(e->num_devices, sizeof *v->jobs);
    // Looked at before it is read: a file that changes meanwhile counts as changed the next time.
    int rc = entry_contents(&v->contents, e, err);
    for (size_t i = 0; !rc && i < e->num_devices; i++) {
        const struct engine_spec spec = spec_of(e, i);
        rc = engine_open(&v->engines[i], &spec, e->limits, wake, &m->wake, err);
    }
    if (rc) {
        version_close(v);
        return -1;
    }
    log_info("model %s: %s is loaded, %.2f s", e->name, e->weights_path, clock_s() - start);
    *out = v;
    return 0;
}

void version_set_limits(struct version *v, struct engine_limits limits) {
    v->entry.limits = limits;
    for (size_t i = 0; i < v->entry.num_devices; i++) engine_set_limits(v->engines[i], limits);
}

// Closing waits for a thread and frees much memory: on another thread.
struct closing {
    uv_work_t work;
    struct models *models;
    struct version *version;
};

static void close_work(uv_work_t *work) {
    version_close(((struct closing *)work->data)->version);
}

static void close_done(uv_work_t *work, int status) {
    struct closing *c = work->data;
    struct models *m = c->models;
    (void)status;
    free(c);
    m->closing--;
    m->on_closed(m->ctx);
}

// Once nobody needs a retired version any more.
static void close_if_done(struct version *v) {
    struct models *m = v->models;
    if (!v->retired || v->num_jobs || v->pins) return;
    struct version **at = &m->versions;
    while (*at != v) at = &(*at)->next;
    *at = v->next;
    struct closing *c = mem_zero(1, sizeof *c);
    *c = (struct closing){.models = m, .version = v};
    c->work.data = c;
    m->closing++;
    uv_queue_work(m->loop, &c->work, close_work, close_done);
}

void version_pin(struct version *v) {
    v->pins++;
}

void version_unpin(struct version *v) {
    v->pins--;
    close_if_done(v);
}

int version_submit(struct version *v, struct engine_job *job, struct error *err) {
    int best = 0;
    for (int i = 1; i < (int)v->entry.num_devices; i++)
        if (v->jobs[i] < v->jobs[best]) best = i;
    if (engine_submit(v->engines[best], job, err)) return -1;
    v->jobs[best]++;
    v->num_jobs++;
    return best;
}

void version_job_done(struct version *v, int engine) {
    v->jobs[engine]--;
    v->num_jobs--;
    close_if_done(v);
}

// ---- the catalogue -----------------------------------------------------------------------------

static void on_wake(uv_async_t *handle) {
    struct models *m = handle->data;
    struct version *next;
    // A version with a job in flight stays in the list; finishing the last one may take it out.
    for (struct version *v = m->versions; v; v = next) {
        version_pin(v);
        for (size_t i = 0; i < v->entry.num_devices; i++) {
            size_t count;
            const struct engine_event *events = engine_poll(v->engines[i], &count);
            for (size_t k = 0; k < count; k++) {
                v->counters->prompt_tokens += (uint64_t)events[k].prompt_tokens;
                v->counters->generated_tokens += (uint64_t)events[k].generated_tokens;
                v->counters->canceled += events[k].finish == ENGINE_CANCELED;
                m->on_event(events[k].job->owner, &events[k]);
            }
        }
        next = v->next;
        version_unpin(v);
    }
    m->on_settled(m->ctx);
}

int models_init(struct models *m, uv_loop_t *loop, models_event_fn on_event,
                void (*on_settled)(void *), void (*on_closed)(void *), void *ctx) {
    *m = (struct models){.loop = loop,
                         .on_event = on_event,
                         .on_settled = on_settled,
                         .on_closed = on_closed,
                         .ctx = ctx};
    m->wake.data = m;
    return uv_async_init(loop, &m->wake, on_wake);
}

void models_stop(struct models *m) {
    uv_close((uv_handle_t *)&m->wake, NULL);
    for (int i = 0; i < m->num_counters; i++) {
        free(m->counters[i]->name);
        free(m->counters[i]);
    }
}

// Names come from the configuration; past the table's end they share a row.
static struct model_counters *counters_of(struct models *m, const char *name) {
    const int most = (int)(sizeof m->counters / sizeof m->counters[0]);
    for (int i = 0; i < m->num_counters; i++)
        if (!strcmp(m->counters[i]->name, name)) return &m->counters[i]->c;
    if (m->num_counters == most) return &m->counters[most - 1]->c;
    m->counters[m->num_counters] = mem_zero(1, sizeof *m->counters[0]);
    m->counters[m->num_counters]->name = mem_strdup(name);
    return &m->counters[m->num_counters++]->c;
}

struct version *models_find(struct models *m, const char *name) {
    for (struct version *v = m->versions; v; v = v->next)
        if (!v->retired && !strcmp(v->entry.name, name)) return v;
    return NULL;
}

struct version *models_next(const struct models *m, struct version *v) {
    for (v = v ? v->next : m->versions; v && v->retired;) v = v->next;
    return v;
}

void models_adopt(struct models *m, struct version *v) {
    struct version *old = models_find(m, v->entry.name);
    v->counters = counters_of(m, v->entry.name);
    v->next = m->versions;
    m->versions = v;
    if (old) {
        v->counters->reloads++;
        models_retire(m, old);
    }
}

void models_retire(struct models *m, struct version *v) {
    (void)m;
    v->retired = true;
    close_if_done(v);
}
