#include "config.h"

#include "config_table.h"

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"
#include "base/str.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MINI_EPOCH_SAMPLES = 40320 };

// Files

static char *arena_join(struct arena *arena, const char *dir, const char *name, const char *ext) {
    char *joined = path_join(dir, name);
    path_tidy(joined);
    const size_t len = strlen(joined) + strlen(ext);
    char *out = arena_alloc(arena, len + 1);
    snprintf(out, len + 1, "%s%s", joined, ext);
    free(joined);
    return out;
}

// Stays the same file wherever the text that names it is read again.
static char *arena_absolute(struct arena *arena, const char *path) {
    char *absolute = path_absolute(path);
    char *out = arena_copy(arena, absolute, strlen(absolute));
    free(absolute);
    return out;
}

// <dir>/<kind>/<name>.toml; a missing one gets the nearest name that is there.
static int find_file(const char **path, struct arena *arena, const char *dir, const char *kind,
                     const char *name, struct error *err) {
    const char *folder = arena_join(arena, dir, kind, "");
    *path = arena_join(arena, folder, name, ".toml");
    if (file_exists(*path)) return 0;
    struct nearest near = {.typed = name};
    DIR *d = opendir(folder);
    if (!d)
        return fail(err, E_CONFIG, "%s: there is no such folder; --config-dir names its parent",
                    folder);
    for (const struct dirent *entry; (entry = readdir(d));) {
        const size_t len = strlen(entry->d_name);
        if (!path_has_ext(entry->d_name, "toml")) continue;
        nearest_offer(&near, arena_copy(arena, entry->d_name, len - strlen(".toml")));
    }
    closedir(d);
    if (path_has_ext(name, "toml"))
        return fail(err, E_CONFIG, "%s: there is no such file; names are given without .toml",
                    *path);
    return fail(err, E_CONFIG, "%s: there is no such file%s%s%s", *path,
                near.best ? "; did you mean " : "", near.best ? near.best : "",
                near.best ? "?" : "");
}

// A model_cfg: a path of its own when it has a slash, else a name.
static int find_model(const char **path, struct config_reader *r, const char *config_dir,
                      const char *model_cfg, struct error *err) {
    if (!strpbrk(model_cfg, "/\\"))
        return find_file(path, r->arena, config_dir, "model", model_cfg, err);
    *path = arena_join(r->arena, r->dir, model_cfg, "");
    return 0;
}

// model

// The overrides meant for one file.
struct overrides {
    const char **keys; // "key=value"
    size_t count;
    const char *prefix; // stood before each key
};

static int check_model(const struct config_reader *r, const struct model_config *m,
                       struct error *err) {
    if (m->embedded_dim % m->num_heads == 0) return 0;
    return config_refuse(r, &config_model, &r->doc.root, "num_heads", err,
                         "num_heads is %lld, which doesn't divide embedded_dim %lld; official "
                         "models have heads of 64, which would make num_heads %lld",
                         (long long)m->num_heads, (long long)m->embedded_dim,
                         (long long)(m->embedded_dim + 63) / 64);
}

static int read_model(struct model_config *out, struct arena *arena, const char *path,
                      const struct overrides *sets, struct error *err) {
    struct config_reader r = {.arena = arena,
                              .sets = sets->keys,
                              .num_sets = sets->count,
                              .set_prefix = sets->prefix};
    if (config_open(&r, path, err)) return -1;
    int rc = config_read(&r, &config_model, &r.doc.root, out, err);
    if (!rc) rc = check_model(&r, out, err);
    out->path = path;
    config_close(&r);
    return rc;
}

int model_config_load(struct model_config *out, struct arena *arena, const char *path,
                      const char *const sets[], size_t num_sets, struct error *err) {
    const struct overrides all = {(const char **)sets, num_sets, ""};
    return read_model(out, arena, arena_copy(arena, path, strlen(path)), &all, err);
}

// train

static int refuse_train(const struct config_reader *r, const char *key, struct error *err,
                        const char *what) {
    return config_refuse(r, &config_train, &r->doc.root, key, err, "%s", what);
}

static bool is_file_name(const char *s) {
    return !strpbrk(s, "/\\") && strcmp(s, ".") && strcmp(s, "..");
}

static int check_batch(const struct config_reader *r, struct train_config *c, struct error *err) {
    // Each factor is at most 40320, so the product of four fits easily.
    c->samples_per_step = c->num_nodes * c->num_devices_per_node * c->batch_size_per_device *
                          c->num_accumulation_steps_per_device;
    if (MINI_EPOCH_SAMPLES % c->samples_per_step == 0) return 0;
    int64_t below = c->samples_per_step, above = c->samples_per_step;
    if (below > MINI_EPOCH_SAMPLES) below = above = MINI_EPOCH_SAMPLES;
    while (MINI_EPOCH_SAMPLES % below) below--;
    while (MINI_EPOCH_SAMPLES % above) above++;
    return config_refuse(r, &config_train, &r->doc.root, "batch_size_per_device", err,
                         "a step takes %lld samples (nodes x devices x batch x accumulation), "
                         "which doesn't divide the %d of a mini-epoch; %lld and %lld do",
                         (long long)c->samples_per_step, MINI_EPOCH_SAMPLES, (long long)below,
                         (long long)above);
}

// Either of num_devices_per_node and device_ids says the other; both have to agree.
static int resolve_devices(const struct config_reader *r, struct train_config *c,
                           struct error *err) {
    const struct toml_value *root = &r->doc.root;
    struct config_ints *ids = &c->device_ids;
    const size_t most = 64; // as num_devices_per_node
    if (!config_given(r, &config_train, root, "device_ids")) {
        ids->count = (size_t)c->num_devices_per_node;
        ids->at = arena_alloc(r->arena, ids->count * sizeof *ids->at);
        for (size_t i = 0; i < ids->count; i++) ids->at[i] = (int64_t)i;
    } else if (!config_given(r, &config_train, root, "num_devices_per_node")) {
        c->num_devices_per_node = (int64_t)ids->count;
    }
    if ((int64_t)ids->count != c->num_devices_per_node)
        return refuse_train(r, "device_ids", err,
                            "device_ids names other than num_devices_per_node devices");
    if (ids->count > most)
        return config_refuse(r, &config_train, root, "device_ids", err,
                             "device_ids names %zu devices, wanted 1 to %zu", ids->count, most);
    for (size_t a = 0; a < ids->count; a++)
        for (size_t b = 0; b < a; b++)
            if (ids->at[a] == ids->at[b])
                return config_refuse(r, &config_train, root, "device_ids", err,
                                     "device_ids names %lld twice", (long long)ids->at[a]);
    return 0;
}

static int check_train(const struct config_reader *r, struct train_config *c, struct error *err) {
    if (!is_file_name(c->experiment_name))
        return refuse_train(
            r, "experiment_name", err,
            "experiment_name names one folder; experiment_log_base_path says where");
    if (!is_file_name(c->filename_without_extensions))
        return refuse_train(
            r, "filename_without_extensions", err,
            "filename_without_extensions names a file; dataset_base_path its folder");
    if (!c->validation_base && c->val_every_steps)
        return refuse_train(r, "val_every_steps", err,
                            "val_every_steps wants held-out data: set validation_base");
    if (!c->validation_base && c->validation_tokens)
        return refuse_train(r, "validation_tokens", err,
                            "validation_tokens wants held-out data: set validation_base");
    if (!c->tokenizer_vocab_path && c->sample_every_steps)
        return refuse_train(r, "sample_every_steps", err,
                            "sample texts want a vocabulary: set tokenizer_vocab_path");
    if (resolve_devices(r, c, err)) return -1;
    return check_batch(r, c, err);
}

// Those that begin with "model.", without it, and the others.
static void split_sets(struct arena *arena, const char *const sets[], size_t num_sets,
                       struct overrides *model, struct overrides *train) {
    const size_t prefix_len = strlen("model.");
    *model = (struct overrides){arena_alloc(arena, num_sets * sizeof *sets), 0, "model."};
    *train = (struct overrides){arena_alloc(arena, num_sets * sizeof *sets), 0, ""};
    for (size_t i = 0; i < num_sets; i++) {
        const bool below = !strncmp(sets[i], "model.", prefix_len);
        struct overrides *to = below ? model : train;
        to->keys[to->count++] = sets[i] + (below ? prefix_len : 0);
    }
}

int train_config_load(struct train_config *out, const char *config_dir, const char *name,
                      const char *const sets[], size_t num_sets, struct error *err) {
    struct arena arena = {0};
    struct overrides for_model, for_train;
    split_sets(&arena, sets, num_sets, &for_model, &for_train);
    struct config_reader r = {.arena = &arena,
                              .sets = for_train.keys,
                              .num_sets = for_train.count,
                              .set_prefix = ""};
    struct train_config c = {0};
    const char *path = NULL, *model_path = NULL;
    int rc = find_file(&path, &arena, config_dir, "train", name, err);
    if (!rc) rc = config_open(&r, path, err);
    if (!rc) rc = config_read(&r, &config_train, &r.doc.root, &c, err);
    if (!rc) rc = check_train(&r, &c, err);
    if (!rc) rc = find_model(&model_path, &r, config_dir, c.model_cfg, err);
    if (!rc) rc = read_model(&c.model, &arena, model_path, &for_model, err);
    if (!rc) {
        c.path = path;
        c.model_cfg = arena_absolute(&arena, model_path);
        c.run_dir = arena_join(&arena, c.experiment_log_base_path, c.experiment_name, "");
        c.dataset_prefix =
            arena_join(&arena, c.dataset_base_path, c.filename_without_extensions, "");
    }
    config_close(&r);
    *out = c;
    out->arena = arena;
    if (rc) train_config_free(out);
    return rc;
}

void train_config_free(struct train_config *c) {
    arena_free(&c->arena);
    *c = (struct train_config){0};
}

int train_config_plan(struct train_plan *out, const struct train_config *c, int64_t dataset_tokens,
                      struct error *err) {
    const int64_t per_step = c->samples_per_step * c->context_length;
    const int64_t factor = c->num_steps ? c->num_steps : c->num_dataset_repeats;
    const int64_t tokens = c->num_steps ? per_step : dataset_tokens;
    if (tokens > INT64_MAX / 2 / factor)
        return fail(err, E_CONFIG, "%s: %lld times %lld tokens are more than anyone trains on",
                    c->path, (long long)factor, (long long)tokens);
    *out = (struct train_plan){
        .tokens_per_step = per_step,
        .exit_tokens = factor * tokens,
        .num_steps = (factor * tokens + per_step - 1) / per_step,
        .steps_per_mini_epoch = MINI_EPOCH_SAMPLES / c->samples_per_step,
    };
    if (out->exit_tokens > c->warmup_steps * per_step) return 0;
    return fail(err, E_CONFIG,
                "%s: the training ends after %lld steps of %lld tokens, within the warmup_steps "
                "%lld; raise num_dataset_repeats or num_steps, or lower warmup_steps",
                c->path, (long long)out->num_steps, (long long)per_step,
                (long long)c->warmup_steps);
}

// infer

static int check_address(const struct config_reader *r, const struct infer_config *c,
                         struct error *err) {
    const char *colon = strrchr(c->http_bind_addr, ':');
    const size_t digits = colon ? strspn(colon + 1, "0123456789") : 0;
    const bool is_port =
        digits >= 1 && digits <= 5 && !colon[1 + digits] && strtol(colon + 1, NULL, 10) <= 65535;
    if (is_port && colon > c->http_bind_addr) return 0;
    return config_refuse(r, &config_infer, &r->doc.root, "http_bind_addr", err,
                         "http_bind_addr is \"%s\", wanted ADDRESS:PORT such as 127.0.0.1:8080",
                         c->http_bind_addr);
}

// An empty key is one that anybody can bring.
static int check_keys(const struct config_reader *r, const struct infer_config *c,
                      struct error *err) {
    const struct {
        const char *name, *value;
    } keys[] = {{"api_key", c->api_key}, {"admin_api_key", c->admin_api_key}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (keys[i].value && !keys[i].value[strspn(keys[i].value, " \t\r\n")])
            return config_refuse(r, &config_infer, &r->doc.root, keys[i].name, err,
                                 "%s cannot be empty; remove it where no key is wanted",
                                 keys[i].name);
    }
    return 0;
}

static int check_served(const struct config_reader *r, const struct infer_config *c, size_t i,
                        const struct toml_value *table, struct error *err) {
    const struct infer_model *m = &c->models[i];
    for (size_t j = 0; j < i; j++) {
        if (!strcmp(c->models[j].model_name, m->model_name))
            return config_refuse(r, &config_infer_model, table, "model_name", err,
                                 "duplicated model_name: %s", m->model_name);
    }
    for (size_t a = 0; a < m->device_ids.count; a++) {
        for (size_t b = 0; b < a; b++) {
            if (m->device_ids.at[a] == m->device_ids.at[b])
                return config_refuse(r, &config_infer_model, table, "device_ids", err,
                                     "device_ids names %lld twice for model %s",
                                     (long long)m->device_ids.at[a], m->model_name);
        }
    }
    return 0;
}

static int read_served(struct config_reader *r, struct infer_config *c, const char *config_dir,
                       struct error *err) {
    const struct toml_value *list = toml_get(&r->doc.root, "models");
    if (!list || !list->items.count)
        return toml_fail(&r->doc, list ? list : &r->doc.root, err,
                         "infer config requires at least one model: a table [[models]]");
    c->models = arena_alloc(r->arena, list->items.count * sizeof *c->models);
    for (const struct toml_value *table = list->items.first; table; table = table->next) {
        struct infer_model *m = &c->models[c->num_models];
        const char *path = NULL;
        if (table->type != TOML_TABLE)
            return toml_fail(&r->doc, table, err, "a model is %s, wanted a table",
                             toml_type_name(table->type));
        if (config_read(r, &config_infer_model, table, m, err) ||
            check_served(r, c, c->num_models, table, err) ||
            find_model(&path, r, config_dir, m->model_cfg, err))
            return -1;
        m->model.path = path;
        m->model_cfg = arena_absolute(r->arena, path);
        c->num_models++;
    }
    return 0;
}

int infer_config_outline(struct infer_config *out, const char *config_dir, const char *path,
                         const char *text, size_t len, const char *const sets[], size_t num_sets,
                         struct error *err) {
    struct arena arena = {0};
    struct config_reader r = {.arena = &arena,
                              .sets = sets,
                              .num_sets = num_sets,
                              .set_prefix = ""};
    struct infer_config c = {0};
    int rc = config_open_text(&r, path, text, len, err);
    if (!rc) rc = config_read(&r, &config_infer, &r.doc.root, &c, err);
    if (!rc) rc = check_address(&r, &c, err);
    if (!rc) rc = check_keys(&r, &c, err);
    if (!rc) rc = read_served(&r, &c, config_dir, err);
    config_close(&r);
    c.path = arena_copy(&arena, path, strlen(path));
    *out = c;
    out->arena = arena;
    if (rc) infer_config_free(out);
    return rc;
}

int infer_config_shapes(struct infer_config *c, struct error *err) {
    const struct overrides none = {NULL, 0, ""};
    for (size_t i = 0; i < c->num_models; i++) {
        struct model_config *m = &c->models[i].model;
        if (read_model(m, &c->arena, m->path, &none, err)) return -1;
    }
    return 0;
}

int infer_config_parse(struct infer_config *out, const char *config_dir, const char *path,
                       const char *text, size_t len, const char *const sets[], size_t num_sets,
                       struct error *err) {
    if (infer_config_outline(out, config_dir, path, text, len, sets, num_sets, err)) return -1;
    const int rc = infer_config_shapes(out, err);
    if (rc) infer_config_free(out);
    return rc;
}

int infer_config_load(struct infer_config *out, const char *config_dir, const char *name,
                      const char *const sets[], size_t num_sets, struct error *err) {
    struct arena arena = {0};
    struct str text;
    const char *path = NULL;
    *out = (struct infer_config){0};
    str_init(&text, TOML_MAX_BYTES);
    int rc = find_file(&path, &arena, config_dir, "infer", name, err);
    if (!rc) {
        rc = file_read(&text, path, err);
        if (rc && err) err->code = E_CONFIG;
    }
    if (!rc)
        rc = infer_config_parse(out, config_dir, path, text.data, text.len, sets, num_sets, err);
    str_free(&text);
    arena_free(&arena);
    return rc;
}

void infer_config_free(struct infer_config *c) {
    arena_free(&c->arena);
    *c = (struct infer_config){0};
}

// Printing

void model_config_write(struct str *out, const struct model_config *c) {
    config_write(out, &config_model, c);
}

void train_config_write(struct str *out, const struct train_config *c) {
    config_write(out, &config_train, c);
}

void infer_config_write(struct str *out, const struct infer_config *c) {
    config_write(out, &config_infer, c);
    for (size_t i = 0; i < c->num_models; i++) {
        str_puts(out, "\n[[models]]\n");
        config_write(out, &config_infer_model, &c->models[i]);
    }
}

void config_write_docs(struct str *out) {
    str_puts(out,
             "# Configuration\n\n"
             "`rwkv config keys` prints this page from the table that reads the files "
             "(cmd/config_keys.c).\n\n"
             "Files are TOML 1.0. An unknown key, a value of the wrong type or out of its bounds "
             "is an error that names file, line and column. A key that rwkv cannot honour yet may "
             "be set to its default only, so nothing is ignored in silence. `--set KEY=VALUE` "
             "overrides a key for one run: the value is TOML, or a bare word; `--set "
             "model.KEY=VALUE` reaches into the model's file; a relative path there is relative "
             "to the current folder.\n");
    config_write_section_docs(out, &config_model);
    config_write_section_docs(out, &config_train);
    config_write_section_docs(out, &config_infer);
    config_write_section_docs(out, &config_infer_model);
}
