// The models that are being served: a name leads to the newest version, older ones finish what they
// began and go. Everything on the loop's thread, but for what says otherwise.
#pragma once
#include "base/arena.h"
#include "infer/engine.h"
#include <uv.h>

// One model as the configuration describes it. Strings belong to whoever made it.
struct model_entry {
    const char *name;
    const char *weights_path, *vocab_path, *shape_path, *backend, *dtype;
    bool half_states;
    const int64_t *device_ids;
    size_t num_devices;
    int num_threads;
    int L, C, H, V;
    struct engine_limits limits;
};

// Counters of a name, over all its versions.
struct model_counters {
    uint64_t requests, canceled, prompt_tokens, generated_tokens, reloads;
};

enum { VERSION_MAX_DEVICES = 256 };

// One version of a model: an engine for each device.
struct version {
    struct arena arena;       // owns entry's strings
    struct model_entry entry; // limits change, the rest never
    uint64_t contents;        // of the files, as they were when it was opened
    int64_t created_s;
    struct engine **engines; // num_devices
    int *jobs;               // each engine's, in flight
    int num_jobs;            // in all
    int pins;                // others that hold on to it
    bool retired;            // no new jobs; closed after the last one
    struct model_counters *counters;
    struct models *models;
    struct version *next;
};

// Told of every event; the event's job's `owner` is the submitter's.
typedef void (*models_event_fn)(void *owner, const struct engine_event *event);

struct models {
    uv_loop_t *loop;
    uv_async_t wake;
    models_event_fn on_event;
    void (*on_settled)(void *ctx); // after the events of one look at all engines
    void (*on_closed)(void *ctx);  // a version is gone
    void *ctx;
    struct version *versions; // newest first; retired ones too
    struct {
        char *name;
        struct model_counters c;
    } * counters[256];
    int num_counters;
    int closing; // versions whose engines are being closed
};

int models_init(struct models *m, uv_loop_t *loop, models_event_fn on_event,
                void (*on_settled)(void *), void (*on_closed)(void *), void *ctx);
void models_stop(struct models *m); // all versions are gone: closes the handle

// Any thread: opens every engine of an entry. The version belongs to nobody until it is adopted.
int version_open(struct version **out, struct models *m, const struct model_entry *entry,
                 struct error *err);
void version_close(struct version *v); // any thread; one that is not adopted
// Any thread: what the entry's files hold now, as far as their sizes, times and places tell.
int entry_contents(uint64_t *out, const struct model_entry *entry, struct error *err);
// Any thread: checks the headers of its files, and says how many bytes opening it would take.
int entry_plan(uint64_t *bytes, const struct model_entry *entry, struct error *err);
// Whether two entries want the same engines: all but the limits.
bool entry_same(const struct model_entry *a, const struct model_entry *b);

void models_adopt(struct models *m, struct version *v); // from now on its name leads to it
void models_retire(struct models *m, struct version *v);
void version_pin(struct version *v);
void version_unpin(struct version *v);
void version_set_limits(struct version *v, struct engine_limits limits);

struct version *models_find(struct models *m, const char *name);        // NULL: no such model
struct version *models_next(const struct models *m, struct version *v); // current ones; NULL first

// To the engine with the fewest jobs, whose number it returns; -1: its queue is full.
int version_submit(struct version *v, struct engine_job *job, struct error *err);
void version_job_done(struct version *v, int engine);
