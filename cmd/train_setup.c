#include "train_setup.h"

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/str.h"
#include "cli.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/dist.h"
#include "train/trainer.h"
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int train_setup_config(struct train_config *out, const struct cli_args *args, struct error *err) {
    const size_t given = cli_count(args, "set");
    const char **sets = cli_strings(args, "set");
    char backend[64];
    sets = mem_grow(sets, given + 1, sizeof *sets);
    size_t n = given;
    if (cli_given(args, "backend")) {
        snprintf(backend, sizeof backend, "backend=%s", cli_string(args, "backend"));
        sets[n++] = backend;
    }
    const int rc = train_config_load(out, cli_string(args, "config-dir"),
                                     cli_string(args, "train-cfg"), sets, n, err);
    free(sets);
    if (rc) return -1;
    enum log_level level;
    if (out->level && log_level_parse(&level, out->level) == 0) log_set_level(level);
    return 0;
}

void train_setup_options(struct train_options *out, const struct train_config *c,
                         const struct train_plan *plan, const struct cli_args *args) {
    const int64_t save =
        c->save_every_steps ? c->save_every_steps : c->save_freq * plan->steps_per_mini_epoch;
    *out = (struct train_options){
        .run_dir = c->run_dir,
        .name = c->experiment_name,
        .resume = strcmp(cli_string(args, "resume"), "never") ? RESUME_AUTO : RESUME_NEVER,
        .seed = (uint64_t)c->random_seed,
        .ctx = (int)c->context_length,
        .batch = (int)c->batch_size_per_device,
        .accumulation = (int)c->num_accumulation_steps_per_device,
        .num_steps = plan->num_steps,
        .schedule = {.lr_init = c->learning_rate_start,
                     .lr_final = c->learning_rate_end,
                     .warmup_steps = c->warmup_steps,
                     .exit_tokens = plan->exit_tokens,
                     .tokens_per_step = plan->tokens_per_step},
        .optimizer = {.beta1 = c->adam_beta1,
                      .beta2 = c->adam_beta2,
                      .eps = c->adam_eps,
                      .weight_decay = c->weight_decay,
                      .clip = c->gradient_clip_val,
                      .w0_lr_scale = c->high_lr_scale,
                      .whole = !c->shard_optimizer,
                      .bucket_bytes = (size_t)c->bucket_bytes},
        .l2wrap = c->enable_l2wrap,
        .checkpointing = c->grad_checkpoint,
        .head_rows = (int)c->head_chunk_rows,
        .log_every = c->log_every_steps,
        .save_every = save,
        .val_every = c->val_every_steps,
        .keep = (int)c->keep_checkpoints,
        .keep_every = c->keep_every,
        .val_tokens = c->validation_tokens,
        .sample_every = c->sample_every_steps,
        .sample_tokens = (int)c->sample_tokens,
        .sample_prompt = c->sample_prompt ? c->sample_prompt : "",
        .plain_progress = !c->use_tui,
    };
}

int train_setup_threads(const struct train_config *c) {
    if (c->num_threads || c->num_devices_per_node == 1) return (int)c->num_threads;
    const int each = pool_processors() / (int)c->num_devices_per_node;
    return each ? each : 1;
}

static struct dims dims_from(const struct model_config *c) {
    struct dims d = {.L = (int)c->num_cells,
                     .C = (int)c->embedded_dim,
                     .H = (int)c->num_heads,
                     .V = (int)c->vocab_size,
                     .Dw = (int)c->lora_rank_w,
                     .Da = (int)c->lora_rank_a,
                     .Dv = (int)c->lora_rank_v,
                     .Dg = (int)c->lora_rank_g};
    dims_default_ranks(&d);
    return d;
}

// Memory is only promised by the system and taken page by page: better a word now than death at
// step 1.
static int announce(const struct model *m, const struct train_options *o, const struct dist *dist,
                    struct error *err) {
    const struct train_memory p = trainer_plan(m, o, dist);
    const double mb = 1.0 / (1 << 20);
    const int size = dist_size(dist);
    const size_t here = m->master.buf->host ? p.total * (size_t)size : p.total;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const struct dims *d = &m->dims;
    log_info("model: %d layers of %d channels, %d heads, vocabulary %d, %.2f M parameters", d->L,
             d->C, d->H, d->V, (double)dims_param_count(d) * 1e-6);
    log_info("memory%s: %.0f MB model and gradients, %.0f MB optimizer, %.0f MB activations "
             "(%d x %d tokens%s): %.0f MB in all",
             dist ? " of each device" : "", (double)p.model * mb, (double)p.optimizer * mb,
             (double)p.activations * mb, o->batch, o->ctx, o->checkpointing ? ", recomputed" : "",
             (double)p.total * mb);
    if (dist)
        log_info("devices: %d, %s", size,
                 o->optimizer.whole ? "each with the whole optimizer"
                                    : "each with its share of the optimizer");
    log_info("run: %lld steps of %lld tokens in %s", (long long)o->num_steps,
             (long long)o->batch * o->ctx * o->accumulation * size, o->run_dir);
    if (pages > 0 && page > 0 && here > (size_t)pages * (size_t)page)
        return fail(err, E_LIMIT,
                    "the run wants %.0f MB, this machine has %.0f MB; lower batch_size_per_device "
                    "or context_length, or set grad_checkpoint = true",
                    (double)here * mb, (double)pages * (double)page * mb);
    return 0;
}

static int load_initial(struct model *m, const struct train_config *c, struct error *err) {
    struct weights *w;
    if (weights_open(&w, c->init_weights_path, err)) return -1;
    const int rc = model_load(m, w, err);
    weights_close(w);
    if (rc == 0) log_info("starting from %s", c->init_weights_path);
    return rc;
}

// One process makes the weights, the others have them from it.
static int begin(struct model *m, const struct train_config *c, const struct dist *dist,
                 struct error *err) {
    const bool first = dist_rank(dist) == 0;
    if (first && !c->init_weights_path) model_init(m, (uint64_t)c->random_seed);
    if (first && c->init_weights_path && load_initial(m, c, err)) return -1;
    dist_start(dist, BROADCAST, m->master);
    dist_wait(dist);
    if (!first) model_refresh(m);
    return 0;
}

int train_setup_model(struct model **out, struct backend *be, const struct train_config *c,
                      const struct train_options *options, const struct dist *dist,
                      struct error *err) {
    const struct dims d = dims_from(&c->model);
    const struct model_options mo = {.precision = precision_parse(c->dtype), .trained = true};
    int64_t step;
    struct model *m;
    if (model_create(&m, be, &d, mo, err)) return fail_in(err, "%s", c->model.path);
    int rc = announce(m, options, dist, err);
    // A run that will go on from a checkpoint needs no beginning.
    const bool resuming =
        options->resume == RESUME_AUTO && checkpoint_list(&step, 1, options->run_dir) > 0;
    if (rc == 0 && !resuming) rc = begin(m, c, dist, err);
    if (rc)
        model_destroy(m);
    else
        *out = m;
    return rc;
}

int train_setup_record(const struct train_config *c, struct error *err) {
    struct str text;
    char *path = path_join(c->run_dir, "config.toml");
    str_init(&text, 1 << 20);
    train_config_write(&text, c);
    str_puts(&text, "\n# The model:\n");
    struct str model;
    str_init(&model, 1 << 20);
    model_config_write(&model, &c->model);
    // As comments: the file itself stays a train configuration that can be read back.
    for (const char *p = model.data; *p;) {
        const char *nl = strchr(p, '\n');
        const size_t len = nl ? (size_t)(nl - p) : strlen(p);
        str_puts(&text, "# ");
        str_append(&text, p, len);
        str_putc(&text, '\n');
        p += len + (nl != NULL);
    }
    const int rc = file_replace(path, text.data, text.len, err);
    str_free(&model);
    str_free(&text);
    free(path);
    return rc;
}
