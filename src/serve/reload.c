// POST /admin/models/reload and SIGHUP: the models that are served become those of the changed
// configuration, without a stream noticing. New versions are opened beside the old ones, on another
// thread; only when all of them are there, and the file is written, do names lead to them. Whatever
// fails before leaves everything as it was.
#include "serve/internal.h"

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum change_kind { CHANGE_NONE, CHANGE_LIMITS, CHANGE_BUILD };

struct change {
    const struct model_entry *entry; // of the plan
    enum change_kind kind;
    struct version *old;    // pinned; NULL: the name is new
    struct version *opened; // CHANGE_BUILD
};

enum reload_stage { RELOAD_PLAN, RELOAD_UNLOAD, RELOAD_OPEN };

struct reload {
    uv_work_t work;
    struct server *server;
    struct conn *conn; // NULL: SIGHUP, or the client is gone
    struct str body;   // the request; empty: the file as it is
    struct json *request;
    enum reload_stage stage;
    bool dry_run, force, planned;
    struct version **current; // pinned: what was served when this began
    size_t num_current;
    struct server_plan plan;
    struct change *changes; // plan.num_entries
    uint64_t bytes_wanted;  // by what is to be opened
    struct fault fault;
    struct reload *next;
};

static void start(struct server *s);

// Memory that the system can give without swapping; UINT64_MAX where it doesn't say.
static uint64_t memory_available(void) {
    char line[128];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1) break;
    if (f) fclose(f);
    return kb ? (uint64_t)kb * 1024 : UINT64_MAX;
}

// ---- on another thread -------------------------------------------------------------------------

static int read_request(struct reload *r) {
    struct error err;
    const char *const flags[] = {"dry_run", "force"};
    bool *const at[] = {&r->dry_run, &r->force};
    if (!r->body.len) return 0;
    if (json_parse(&r->request, r->body.data, r->body.len, SIZE_MAX, "request body", &err))
        return fault_set(&r->fault, 400, NULL, NULL, "%s", err.msg);
    if (json_kind(r->request) != JSON_KIND_OBJECT)
        return fault_set(&r->fault, 400, NULL, NULL, "the body is not a JSON object");
    for (int i = 0; i < 2; i++) {
        const struct json *v = json_member(r->request, flags[i]);
        if (v && json_kind(v) != JSON_KIND_NULL && json_read_bool(at[i], v, flags[i], &err))
            return fault_set(&r->fault, 400, NULL, flags[i], "%s", err.msg);
    }
    return 0;
}

static bool same_limits(const struct engine_limits *a, const struct engine_limits *b) {
    return a->max_batch_size == b->max_batch_size && a->paragraph_len == b->paragraph_len &&
           a->max_context_len == b->max_context_len && a->max_queue == b->max_queue &&
           a->decode_first == b->decode_first;
}

static int plan_change(struct reload *r, struct change *c, struct error *err) {
    uint64_t contents, bytes;
    for (size_t i = 0; i < r->num_current; i++)
        if (!strcmp(r->current[i]->entry.name, c->entry->name)) c->old = r->current[i];
    if (entry_contents(&contents, c->entry, err)) return -1;
    if (c->old && entry_same(&c->old->entry, c->entry) && c->old->contents == contents) {
        const bool same = same_limits(&c->old->entry.limits, &c->entry->limits);
        c->kind = same ? CHANGE_NONE : CHANGE_LIMITS;
        return 0;
    }
    c->kind = CHANGE_BUILD;
    if (entry_plan(&bytes, c->entry, err)) return -1;
    r->bytes_wanted += bytes;
    return 0;
}

static void plan(struct reload *r) {
    const struct server_source *source = &r->server->options.source;
    struct error err;
    if (read_request(r)) return;
    if (source->propose(source->ctx, &r->plan, r->request, &err)) {
        fault_set(&r->fault, 400, "invalid_config", NULL, "%s", err.msg);
        return;
    }
    r->planned = true;
    r->changes = mem_zero(r->plan.num_entries + 1, sizeof *r->changes);
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        r->changes[i].entry = &r->plan.entries[i];
        if (!plan_change(r, &r->changes[i], &err)) continue;
        fault_set(&r->fault, 400, "invalid_model", NULL, "%s", err.msg);
        return;
    }
}

static void open_all(struct reload *r) {
    const struct server_source *source = &r->server->options.source;
    struct error err;
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        struct change *c = &r->changes[i];
        if (c->kind != CHANGE_BUILD ||
            !version_open(&c->opened, &r->server->models, c->entry, &err))
            continue;
        fault_set(&r->fault, 400, "invalid_model", NULL, "%s", err.msg);
        break;
    }
    if (!r->fault.status && source->commit(source->ctx, &r->plan, &err))
        fault_set(&r->fault, 500, NULL, NULL, "%s", err.msg);
    if (!r->fault.status) return;
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        version_close(r->changes[i].opened);
        r->changes[i].opened = NULL;
    }
}

static void work(uv_work_t *w) {
    struct reload *r = w->data;
    if (r->stage == RELOAD_PLAN)
        plan(r);
    else
        open_all(r);
}

// ---- on the loop -------------------------------------------------------------------------------

static bool is_removed(const struct reload *r, const struct version *v) {
    for (size_t i = 0; i < r->plan.num_entries; i++)
        if (!strcmp(r->plan.entries[i].name, v->entry.name)) return false;
    return true;
}

static void put_list(struct json_writer *w, const char *key, const char **names, size_t n) {
    json_put_key(w, key);
    json_open(w, '[');
    for (size_t i = 0; i < n; i++) json_put_text(w, names[i], strlen(names[i]));
    json_close(w, ']');
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// `active`: the names that are served when this is said.
static void reply_done(struct reload *r, const char **active, size_t num_active) {
    const size_t most = r->plan.num_entries + r->num_current;
    const char **changed = mem_zero(most + 1, sizeof *changed),
               **rebuilt = mem_zero(most + 1, sizeof *rebuilt),
               **removed = mem_zero(most + 1, sizeof *removed);
    size_t num_changed = 0, num_rebuilt = 0, num_removed = 0;
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        const struct change *c = &r->changes[i];
        if (c->kind != CHANGE_NONE) changed[num_changed++] = c->entry->name;
        if (c->kind == CHANGE_BUILD) rebuilt[num_rebuilt++] = c->entry->name;
    }
    for (size_t i = 0; i < r->num_current; i++) {
        if (!is_removed(r, r->current[i])) continue;
        removed[num_removed++] = changed[num_changed++] = r->current[i]->entry.name;
    }
    qsort(changed, num_changed, sizeof *changed, by_text);
    qsort(rebuilt, num_rebuilt, sizeof *rebuilt, by_text);
    qsort(removed, num_removed, sizeof *removed, by_text);
    qsort(active, num_active, sizeof *active, by_text);
    char message[400];
    const char *name = r->server->options.source.name;
    if (r->dry_run)
        snprintf(message, sizeof message,
                 "dry run passed for infer cfg %s. no runtime state changed", name);
    else
        snprintf(message, sizeof message, "reloaded infer cfg %s and rebuilt %zu model group(s)",
                 name, num_rebuilt);
    log_info("%s", message);
    if (r->conn) {
        struct str body;
        str_init(&body, 16 << 20);
        struct json_writer w = {.out = &body};
        json_open(&w, '{');
        put_list(&w, "changed_model_names", changed, num_changed);
        put_list(&w, "rebuilt_model_names", rebuilt, num_rebuilt);
        put_list(&w, "removed_model_names", removed, num_removed);
        put_list(&w, "active_model_names", active, num_active);
        json_put_key(&w, "dry_run");
        json_put_bool(&w, r->dry_run);
        json_put_key(&w, "planned_bytes");
        json_put_int(&w, (int64_t)r->bytes_wanted);
        json_put_key(&w, "message");
        json_put_text(&w, message, strlen(message));
        json_close(&w, '}');
        reply_json(r->conn, 200, &body);
        str_free(&body);
    }
    free(changed);
    free(rebuilt);
    free(removed);
}

static void reply_names(struct reload *r) {
    const char *names[1024];
    size_t n = 0;
    for (struct version *v = NULL; n < 1024 && (v = models_next(&r->server->models, v));)
        names[n++] = v->entry.name;
    reply_done(r, names, n);
}

static void finish(struct reload *r) {
    struct server *s = r->server;
    if (r->fault.status) {
        log_error("reload: %s", r->fault.message);
        if (r->conn) fault_reply(r->conn, &r->fault);
    }
    s->reloads = r->next;
    for (size_t i = 0; i < r->num_current; i++) version_unpin(r->current[i]);
    if (r->planned) s->options.source.drop(s->options.source.ctx, &r->plan);
    free(r->current);
    free(r->changes);
    json_free(r->request);
    str_free(&r->body);
    free(r);
    if (s->reloads) start(s);
}

static void apply(struct reload *r) {
    struct server *s = r->server;
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        struct change *c = &r->changes[i];
        if (c->kind == CHANGE_LIMITS) version_set_limits(c->old, c->entry->limits);
        if (c->kind == CHANGE_BUILD) models_adopt(&s->models, c->opened);
    }
    for (size_t i = 0; i < r->num_current; i++)
        if (is_removed(r, r->current[i])) models_retire(&s->models, r->current[i]);
    reply_names(r);
}

static void stage_done(uv_work_t *w, int status);

static void go(struct reload *r, enum reload_stage stage) {
    r->stage = stage;
    r->work.data = r;
    uv_queue_work(&r->server->loop, &r->work, work, stage_done);
}

// Forced: what will be replaced drains and goes before the new versions come.
static void unload(struct reload *r) {
    r->stage = RELOAD_UNLOAD;
    for (size_t i = 0; i < r->plan.num_entries; i++) {
        struct change *c = &r->changes[i];
        if (c->kind == CHANGE_BUILD && c->old) models_retire(&r->server->models, c->old);
    }
    for (size_t i = 0; i < r->num_current; i++) version_unpin(r->current[i]);
    r->num_current = 0;
    for (size_t i = 0; i < r->plan.num_entries; i++) r->changes[i].old = NULL;
    reload_version_closed(r->server);
}

static void judge_plan(struct reload *r) {
    const uint64_t available = memory_available();
    if (r->fault.status) {
        finish(r);
    } else if (r->dry_run) {
        reply_names(r);
        finish(r);
    } else if (r->bytes_wanted <= available) {
        go(r, RELOAD_OPEN);
    } else if (r->force) {
        log_warn("reload: %" PRIu64 " MB are wanted and %" PRIu64
                 " MB free; forced, so the old versions go first",
                 r->bytes_wanted >> 20, available >> 20);
        unload(r);
    } else {
        fault_set(&r->fault, 409, "insufficient_memory", NULL,
                  "opening the changed models beside the present ones wants %" PRIu64
                  " MB, %" PRIu64 " MB are free; \"force\": true unloads the present ones first",
                  r->bytes_wanted >> 20, available >> 20);
        finish(r);
    }
}

static void stage_done(uv_work_t *w, int status) {
    struct reload *r = w->data;
    (void)status;
    if (r->stage == RELOAD_PLAN) {
        judge_plan(r);
        return;
    }
    if (!r->fault.status) apply(r);
    finish(r);
}

void reload_version_closed(struct server *s) {
    struct reload *r = s->reloads;
    if (!r || r->stage != RELOAD_UNLOAD || s->models.closing) return;
    for (const struct version *v = s->models.versions; v; v = v->next)
        if (v->retired) return;
    go(r, RELOAD_OPEN);
}

// The first one in the list begins.
static void start(struct server *s) {
    struct reload *r = s->reloads;
    size_t n = 0;
    for (struct version *v = NULL; (v = models_next(&s->models, v));) n++;
    r->current = mem_zero(n + 1, sizeof *r->current);
    for (struct version *v = NULL; (v = models_next(&s->models, v));) {
        version_pin(v);
        r->current[r->num_current++] = v;
    }
    go(r, RELOAD_PLAN);
}

static void add(struct server *s, struct reload *r) {
    struct reload **at = &s->reloads;
    while (*at) at = &(*at)->next;
    *at = r;
    if (s->reloads == r) start(s);
}

static void on_gone(void *ctx) {
    ((struct reload *)ctx)->conn = NULL; // the work goes on: it may be half done
}

void handle_reload(struct server *s, struct conn *c, const struct http_request *r) {
    struct reload *new = mem_zero(1, sizeof *new);
    (void)r;
    new->server = s;
    new->conn = c;
    conn_take_body(c, &new->body);
    conn_listen(c, (struct conn_listener){.ctx = new, .gone = on_gone});
    add(s, new);
}

void reload_signal(struct server *s) {
    struct reload *new = mem_zero(1, sizeof *new);
    new->server = s;
    str_init(&new->body, 0);
    add(s, new);
}
