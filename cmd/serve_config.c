#include "serve_config.h"

#include "config_patch.h"

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/toml.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROOTS = 256 };

struct serve_config {
    struct infer_config first; // as it was at the start
    char *config_dir, *name;
    const char *const *sets;
    size_t num_sets;
    char *roots[MAX_ROOTS]; // real paths of the folders that the first models' files are in
    size_t num_roots;
};

// A configuration that is being proposed.
struct proposal {
    struct infer_config config;
    struct str before, after; // the file's text
    struct model_entry *entries;
};

// ---- where a reload may read -------------------------------------------------------------------

static void add_root(struct serve_config *c, const char *path) {
    char *dir = path_dir(path), *real = realpath(dir, NULL);
    bool known = !real || c->num_roots == MAX_ROOTS;
    for (size_t i = 0; !known && i < c->num_roots; i++) known = !strcmp(c->roots[i], real);
    if (known)
        free(real);
    else
        c->roots[c->num_roots++] = real;
    free(dir);
}

// The file itself, wherever links lead, lies in or below one of the folders.
static int check_root(const struct serve_config *c, const char *path, struct error *err) {
    char real[PATH_MAX];
    if (!realpath(path, real)) return fail(err, E_CONFIG, "%s: there is no such file", path);
    for (size_t i = 0; i < c->num_roots; i++) {
        const size_t len = strlen(c->roots[i]);
        if (!strncmp(real, c->roots[i], len) && (real[len] == '/' || c->roots[i][len - 1] == '/'))
            return 0;
    }
    return fail(err, E_CONFIG,
                "%s is outside the folders that the server's models came from at its start; a "
                "reload takes files from those only",
                path);
}

static int check_roots(const struct serve_config *c, const struct infer_config *config,
                       struct error *err) {
    for (size_t i = 0; i < config->num_models; i++) {
        const struct infer_model *m = &config->models[i];
        if (check_root(c, m->weights_path, err) || check_root(c, m->model_cfg, err) ||
            (strcmp(m->tokenizer_vocab_path, "bytes") &&
             check_root(c, m->tokenizer_vocab_path, err)))
            return fail_in(err, "model %s", m->model_name);
    }
    return 0;
}

// ---- the source --------------------------------------------------------------------------------

static struct model_entry entry_of(const struct infer_config *c, const struct infer_model *m) {
    return (struct model_entry){
        .name = m->model_name,
        .weights_path = m->weights_path,
        .vocab_path = m->tokenizer_vocab_path,
        .shape_path = m->model_cfg,
        .backend = c->backend,
        .dtype = m->dtype,
        .half_states = strcmp(m->state_dtype, "f16") == 0,
        .device_ids = m->device_ids.at,
        .num_devices = m->device_ids.count,
        .num_threads = (int)c->num_threads,
        .L = (int)m->model.num_cells,
        .C = (int)m->model.embedded_dim,
        .H = (int)m->model.num_heads,
        .V = (int)m->model.vocab_size,
        .limits = {.max_batch_size = (int)m->max_batch_size,
                   .paragraph_len = (int)m->paragraph_len,
                   .max_context_len = (int)m->max_context_len,
                   .max_queue = (int)c->max_queue,
                   .decode_first = m->decode_first},
    };
}

static void drop(void *ctx, struct server_plan *plan) {
    struct proposal *p = plan->owner;
    (void)ctx;
    if (!p) return;
    infer_config_free(&p->config);
    str_free(&p->before);
    str_free(&p->after);
    free(p->entries);
    free(p);
    *plan = (struct server_plan){0};
}

// Keys beside the models are read at the start only.
static void warn_of_others(const struct serve_config *c, const struct infer_config *now) {
    struct infer_config was = c->first, is = *now;
    struct str a, b;
    was.num_models = is.num_models = 0;
    str_init(&a, TOML_MAX_BYTES);
    str_init(&b, TOML_MAX_BYTES);
    infer_config_write(&a, &was);
    infer_config_write(&b, &is);
    if (strcmp(a.data, b.data))
        log_warn("%s: keys outside of [[models]] have changed; they take effect at the next start",
                 now->path);
    str_free(&a);
    str_free(&b);
}

static int propose(void *ctx, struct server_plan *plan, const struct json *request,
                   struct error *err) {
    struct serve_config *c = ctx;
    struct proposal *p = mem_zero(1, sizeof *p);
    *plan = (struct server_plan){.owner = p};
    str_init(&p->before, TOML_MAX_BYTES);
    str_init(&p->after, TOML_MAX_BYTES);
    if (file_read(&p->before, c->first.path, err) ||
        str_append(&p->after, p->before.data, p->before.len) ||
        (request && config_patch(&p->after, c->first.path, request, err)) ||
        infer_config_outline(&p->config, c->config_dir, c->first.path, p->after.data, p->after.len,
                             c->sets, c->num_sets, err) ||
        // Before any file that the request names is opened: an error would quote it.
        (request && check_roots(c, &p->config, err)) || infer_config_shapes(&p->config, err)) {
        drop(c, plan);
        return -1;
    }
    warn_of_others(c, &p->config);
    p->entries = mem_zero(p->config.num_models, sizeof *p->entries);
    for (size_t i = 0; i < p->config.num_models; i++)
        p->entries[i] = entry_of(&p->config, &p->config.models[i]);
    plan->entries = p->entries;
    plan->num_entries = p->config.num_models;
    return 0;
}

static int commit(void *ctx, struct server_plan *plan, struct error *err) {
    const struct serve_config *c = ctx;
    const struct proposal *p = plan->owner;
    if (p->before.len == p->after.len && !memcmp(p->before.data, p->after.data, p->after.len))
        return 0;
    struct str now;
    str_init(&now, TOML_MAX_BYTES);
    int rc = file_read(&now, c->first.path, err);
    if (!rc && (now.len != p->before.len || memcmp(now.data, p->before.data, now.len)))
        rc = fail(err, E_CONFIG, "%s has been changed meanwhile; ask again", c->first.path);
    str_free(&now);
    return rc ? -1 : config_save(c->first.path, p->after.data, p->after.len, err);
}

int serve_config_open(struct serve_config **out, const struct infer_config **config,
                      const char *config_dir, const char *name, const char *const sets[],
                      size_t num_sets, struct error *err) {
    struct serve_config *c = mem_zero(1, sizeof *c);
    if (infer_config_load(&c->first, config_dir, name, sets, num_sets, err)) {
        free(c);
        return -1;
    }
    c->config_dir = mem_strdup(config_dir);
    c->name = mem_strdup(name);
    c->sets = sets;
    c->num_sets = num_sets;
    for (size_t i = 0; i < c->first.num_models; i++) {
        const struct infer_model *m = &c->first.models[i];
        add_root(c, m->weights_path);
        add_root(c, m->model_cfg);
        if (strcmp(m->tokenizer_vocab_path, "bytes")) add_root(c, m->tokenizer_vocab_path);
    }
    *config = &c->first;
    *out = c;
    return 0;
}

void serve_config_close(struct serve_config *c) {
    if (!c) return;
    for (size_t i = 0; i < c->num_roots; i++) free(c->roots[i]);
    infer_config_free(&c->first);
    free(c->config_dir);
    free(c->name);
    free(c);
}

struct server_source serve_config_source(struct serve_config *c) {
    return (struct server_source){
        .ctx = c, .name = c->name, .propose = propose, .commit = commit, .drop = drop};
}
