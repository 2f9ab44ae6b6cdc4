#include "train/trainer.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "data/binidx.h"
#include "data/loader.h"
#include "model/forward.h"
#include "text/tok.h"
#include "train/checkpoint.h"
#include "train/dist.h"
#include "train/progress.h"
#include "train/runlog.h"
#include "train/sampler.h"
#include "train/save.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

// So many bad steps in a row are no accident: the run ends instead of going on for nothing.
enum { MOST_SKIPPED = 10, MOST_CHECKPOINTS = 65536 };

// A step that was begun. What came of it the backend may tell later.
struct begun {
    double lr, sums[2]; // sums: the optimizer's
};

struct trainer {
    struct train_options o;
    const struct dist *dist;
    struct model *model;
    const struct binidx *data, *validation;
    const struct tok *tok;
    struct optimizer *optimizer;
    struct run *run;
    struct feed *feed;
    struct loader *loader;
    struct runlog *log; // NULL: another process writes it
    struct progress_line line;
    struct progress done;
    struct begun begun[MAX_DEPTH]; // of step s at s % MAX_DEPTH, done.step and what follows
    int num_begun;
    int32_t *inputs, *targets; // (B,T)
    int lock;
    int bad_steps;      // in a row
    double val_loss;    // the last one, NaN: none yet
    int64_t saved_step; // of the last checkpoint, -1: none
};

static volatile sig_atomic_t stop_wanted;

void trainer_stop(void) {
    stop_wanted = 1;
}

int64_t trainer_step(const struct trainer *t) {
    return t->done.step;
}

// The process that writes, samples and talks for all.
static bool leads(const struct trainer *t) {
    return dist_rank(t->dist) == 0;
}

// ---- setting up --------------------------------------------------------------------------------

static struct run_limits limits_of(const struct train_options *o) {
    return (struct run_limits){.rows = o->batch * o->ctx,
                               .spans = o->batch,
                               .head_rows = o->head_rows,
                               .mode = o->checkpointing ? RUN_CHECKPOINT : RUN_TRAIN};
}

struct train_memory trainer_plan(const struct model *m, const struct train_options *o,
                                 const struct dist *dist) {
    struct train_memory p = {
        .model = model_bytes(m->be, &m->dims, m->options),
        .optimizer = optimizer_bytes(m, o->optimizer, dist),
        .activations = run_bytes(m, limits_of(o)),
    };
    p.total = p.model + p.optimizer + p.activations;
    return p;
}

// One of those that train together holds it for all.
static int lock_dir(struct trainer *t, struct error *err) {
    if (!leads(t)) return 0;
    if (file_mkdirs(t->o.run_dir, err)) return -1;
    char *path = path_join(t->o.run_dir, "lock");
    t->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    int rc = 0;
    if (t->lock < 0)
        rc = fail(err, E_IO, "%s: cannot open: %s", path, strerror(errno));
    else if (flock(t->lock, LOCK_EX | LOCK_NB))
        rc = fail(err, E_IO, "%s: another rwkv is training in this directory", t->o.run_dir);
    free(path);
    return rc;
}

// The newest checkpoint that is whole. A damaged one is reported and the one before it is tried.
static int resume(struct trainer *t, struct error *err) {
    int64_t *steps = mem_zero(MOST_CHECKPOINTS, sizeof *steps);
    const int n = checkpoint_list(steps, MOST_CHECKPOINTS, t->o.run_dir);
    int rc = 0;
    if (n && t->o.resume == RESUME_NEVER)
        rc = fail(err, E_CONFIG,
                  "%s: holds checkpoints of an earlier run; remove them, choose another "
                  "experiment_name, or go on with --resume auto",
                  t->o.run_dir);
    for (int i = 0; rc == 0 && i < n; i++) {
        char *path = checkpoint_path(t->o.run_dir, steps[i]);
        struct progress p = t->done;
        struct error bad;
        const int failed = progress_load(path, t->optimizer, &p, &bad);
        if (!failed) {
            t->done = p;
            t->saved_step = p.step;
            log_info("going on from %s", path);
        } else if (bad.code == E_FORMAT || bad.code == E_IO) {
            log_warn("%s; trying the one before", bad.msg);
        } else {
            rc = fail(err, bad.code, "%s", bad.msg); // whole, but of another run
        }
        free(path);
        if (!failed) break;
    }
    if (rc == 0 && n && t->saved_step < 0)
        rc = fail(err, E_FORMAT, "%s: none of its %d checkpoints is whole", t->o.run_dir, n);
    free(steps);
    return rc;
}

// Whether all have found the same checkpoint.
static int agree(const struct trainer *t, struct error *err) {
    double sum = (double)t->done.step;
    dist_sum(t->dist, &sum, 1);
    if (sum == (double)t->done.step * dist_size(t->dist)) return 0;
    return fail(
        err, E_IO,
        "%s: step %lld here, another one elsewhere: a checkpoint is not whole for everybody",
        t->o.run_dir, (long long)t->done.step);
}

int trainer_create(struct trainer **out, struct model *m, const struct binidx *data,
                   const struct binidx *validation, const struct tok *tok,
                   const struct train_options *o, const struct dist *dist, struct error *err) {
    struct trainer *t = mem_zero(1, sizeof *t);
    const size_t n = (size_t)o->batch * (size_t)o->ctx;
    const int stride = o->batch * dist_size(dist);
    const int64_t samples = (int64_t)stride * o->accumulation;
    t->o = *o;
    t->dist = dist;
    t->model = m;
    t->data = data;
    t->validation = validation;
    t->tok = tok;
    t->lock = -1;
    t->saved_step = -1;
    t->val_loss = NAN;
    t->done = (struct progress){.seed = o->seed,
                                .data_hash = binidx_hash(data),
                                .vocab_hash = tok ? tok_hash(tok) : 0,
                                .ctx = o->ctx,
                                .samples_per_step = samples};
    t->inputs = mem_zero(n, sizeof *t->inputs);
    t->targets = mem_zero(n, sizeof *t->targets);
    if (lock_dir(t, err) || optimizer_create(&t->optimizer, m, o->optimizer, dist, err) ||
        resume(t, err) || agree(t, err) || run_create(&t->run, m, limits_of(o), err) ||
        feed_create(&t->feed, m->be, (struct feed_limits){(int)n, o->batch, 0}, err))
        goto bad;
    // Of each pass the first process takes the first samples, the next one the next.
    const struct loader_options lo = {.ctx = o->ctx,
                                      .batch = o->batch,
                                      .vocab_size = m->dims.V,
                                      .first_sample = 1 + (uint64_t)(t->done.step * samples +
                                                                     dist_rank(dist) * o->batch),
                                      .stride = stride};
    if (loader_create(&t->loader, data, lo, err)) goto bad;
    if (leads(t) && runlog_open(&t->log, o->run_dir, t->done.log_bytes, err)) goto bad;
    *out = t;
    return 0;
bad:
    trainer_destroy(t);
    return -1;
}

void trainer_destroy(struct trainer *t) {
    if (!t) return;
    for (; t->num_begun > 0; t->num_begun--) t->model->be->class->fetched(t->model->be, NULL);
    loader_destroy(t->loader);
    runlog_close(t->log);
    feed_destroy(t->feed);
    run_destroy(t->run);
    optimizer_destroy(t->optimizer);
    if (t->lock >= 0) close(t->lock);
    free(t->inputs);
    free(t->targets);
    free(t);
}

// ---- one step ----------------------------------------------------------------------------------

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static struct begun *begun_at(struct trainer *t, int64_t step) {
    return &t->begun[step % MAX_DEPTH];
}

// Writes the next step down: gradients of the mean loss over its tokens, summed over processes on
// the way back of the last pass, and the update.
static int begin_step(struct trainer *t, struct error *err) {
    const struct train_options *o = &t->o;
    struct backend *be = t->model->be;
    const double tokens = (double)t->done.samples_per_step * o->ctx;
    const int64_t step = t->done.step + t->num_begun;
    struct begun *b = begun_at(t, step);
    b->lr = schedule_lr(&o->schedule, step);
    optimizer_begin(t->optimizer, b->lr, step + 1);
    for (int i = 0; i < o->accumulation; i++) {
        if (loader_next(t->loader, t->inputs, t->targets, err)) return -1;
        feed_set_grid(t->feed, o->batch, o->ctx, t->inputs, t->targets);
        run_watch(t->run, i + 1 == o->accumulation ? optimizer_reached : NULL, t->optimizer);
        model_pass(t->model, t->run, t->feed, i ? GRADIENT_MORE : GRADIENT_NEW, 1 / tokens,
                   o->l2wrap);
        optimizer_losses(t->optimizer, run_losses(t->run), i > 0);
    }
    optimizer_step(t->optimizer);
    be->class->fetch(be, b->sums, t->optimizer->sums);
    t->num_begun++;
    return 0;
}

// Numbers that are none would poison the weights for good: such a step was not taken.
static int skip_step(struct trainer *t, double loss, double norm, struct error *err) {
    const uint64_t first = 1 + (uint64_t)(t->done.step * t->done.samples_per_step);
    t->done.skipped++;
    runlog_skipped(t->log, t->done.step + 1, first, loss, norm);
    progress_line_clear(&t->line);
    log_warn("step %lld skipped: loss %g, gradient norm %g (samples from %llu on)",
             (long long)t->done.step + 1, loss, norm, (unsigned long long)first);
    if (++t->bad_steps < MOST_SKIPPED) return 0;
    return fail(err, E_FORMAT,
                "%d steps in a row gave no finite loss or gradient; the last checkpoint is from "
                "step %lld: go on from there with a lower learning rate",
                t->bad_steps, (long long)t->saved_step);
}

// Waits for the oldest step.
static int finish_step(struct trainer *t, struct error *err) {
    const struct train_options *o = &t->o;
    const struct begun *b = begun_at(t, t->done.step);
    const int64_t tokens = t->done.samples_per_step * o->ctx;
    t->num_begun--;
    if (t->model->be->class->fetched(t->model->be, err)) return -1;
    const double loss = b->sums[1] / (double)tokens, norm = sqrt(b->sums[0]);
    if (isfinite(loss) && isfinite(norm)) {
        runlog_step(t->log, t->done.step + 1, t->done.tokens + tokens, loss, b->lr, norm);
        t->bad_steps = 0;
    } else if (skip_step(t, loss, norm, err)) {
        return -1;
    }
    t->done.step++;
    t->done.tokens += tokens;
    progress_line_step(&t->line, t->done.step, tokens, loss, b->lr, t->val_loss);
    if (due(t->done.step, o->log_every) || t->done.step == o->num_steps)
        runlog_speed(t->log, t->done.step, t->line.tokens_per_s, progress_line_elapsed(&t->line));
    return 0;
}

// ---- between steps -----------------------------------------------------------------------------

static int validate(struct trainer *t, struct error *err) {
    const struct train_options *o = &t->o;
    const size_t T = (size_t)o->ctx;
    const uint64_t stride = (uint64_t)o->batch * (uint64_t)dist_size(t->dist);
    uint64_t windows = window_count(t->validation, o->ctx);
    if (o->val_tokens > 0 && (uint64_t)o->val_tokens / T < windows)
        windows = (uint64_t)o->val_tokens / T;
    double nats = 0, tokens = 0, bytes = 0;
    for (uint64_t at = (uint64_t)(dist_rank(t->dist) * o->batch); at < windows; at += stride) {
        int n = 0;
        for (uint64_t w = at; n < o->batch && w < windows; n++, w++)
            if (window_read(t->validation, w, o->ctx, t->model->dims.V, t->inputs + (size_t)n * T,
                            t->targets + (size_t)n * T, err))
                return -1;
        feed_set_grid(t->feed, n, o->ctx, t->inputs, t->targets);
        nats += model_loss(t->model, t->run, t->feed, GRADIENT_NONE, 1, false);
        tokens += (double)n * (double)T;
        for (size_t i = 0; t->tok && i < (size_t)n * T; i++) {
            size_t len;
            tok_bytes(t->tok, t->targets[i], &len);
            bytes += (double)len;
        }
    }
    dist_sum(t->dist, &nats, 1);
    dist_sum(t->dist, &tokens, 1);
    dist_sum(t->dist, &bytes, 1);
    if (tokens == 0) return 0;
    t->val_loss = nats / tokens;
    const double bpb = bytes > 0 ? nats / log(2) / bytes : NAN;
    runlog_validation(t->log, t->done.step, t->val_loss, bpb);
    progress_line_clear(&t->line);
    if (bytes > 0)
        log_info("step %lld: validation loss %.4f, %.4f bits per byte", (long long)t->done.step,
                 t->val_loss, bpb);
    else
        log_info("step %lld: validation loss %.4f", (long long)t->done.step, t->val_loss);
    return 0;
}

// A checkpoint that cannot be written is reported; training goes on. Whether it was is known to
// all.
static void save_checkpoint(struct trainer *t) {
    struct error err;
    char *path = checkpoint_path(t->o.run_dir, t->done.step);
    t->done.log_bytes = runlog_bytes(t->log);
    double failed = progress_save(path, t->optimizer, &t->done, &err) != 0;
    if (failed) {
        log_error("no checkpoint at step %lld: %s; training goes on", (long long)t->done.step,
                  err.msg);
    } else if (leads(t)) {
        progress_prune(t->o.run_dir, t->o.keep, t->o.keep_every);
        log_info("checkpoint %s", path);
    }
    dist_sum(t->dist, &failed, 1);
    if (!failed) t->saved_step = t->done.step;
    free(path);
}

static void save(struct trainer *t) {
    struct error err;
    progress_line_clear(&t->line);
    save_checkpoint(t);
    if (!leads(t)) return;
    char *weights = path_join(t->o.run_dir, "weights.pth");
    if (model_save(t->model, weights, t->model->options.precision.stored, &err) ||
        runlog_plot(t->log, t->o.name, &err))
        log_error("%s; training goes on", err.msg);
    free(weights);
}

static void sample(struct trainer *t) {
    struct error err;
    progress_line_clear(&t->line);
    if (sample_write(t->model, t->tok, t->o.run_dir, t->done.step, t->o.sample_prompt,
                     t->o.sample_tokens, t->o.seed, &err))
        log_warn("no sample: %s", err.msg);
}

// What is to be done after a step, all steps up to it being finished.
enum { VALIDATE = 1, SAMPLE = 2, SAVE = 4 };
static int due_after(const struct trainer *t, int64_t step) {
    const struct train_options *o = &t->o;
    const bool last = step == o->num_steps;
    int what = 0;
    if (t->validation && o->val_every > 0 && (due(step, o->val_every) || last)) what |= VALIDATE;
    if (t->tok && (due(step, o->sample_every) || (last && o->sample_every > 0))) what |= SAMPLE;
    if (due(step, o->save_every) && !last) what |= SAVE;
    return what;
}

static int do_between(struct trainer *t, int what, struct error *err) {
    if (what & VALIDATE && validate(t, err)) return -1;
    if (what & SAMPLE && leads(t)) sample(t);
    if (what & SAVE) save(t);
    if (what) progress_line_begin(&t->line);
    return 0;
}

// A signal may have come to one of the processes only, or to one before the others.
static bool stops(const struct trainer *t) {
    double wanted = stop_wanted;
    dist_sum(t->dist, &wanted, 1);
    return wanted > 0;
}

int trainer_run(struct trainer *t, struct error *err) {
    const struct train_options *o = &t->o;
    const int depth = t->model->be->depth;
    bool stopped = false;
    assert(depth > 0 && depth <= MAX_DEPTH);
    progress_line_start(&t->line, t->done.step, o->num_steps, o->log_every,
                        !leads(t)           ? PROGRESS_SILENT
                        : o->plain_progress ? PROGRESS_LINES
                                            : PROGRESS_REDRAWN);
    if (t->validation && t->done.step == 0 && o->val_every > 0 && validate(t, err)) return -1;
    progress_line_begin(&t->line);
    while (t->done.step + t->num_begun < o->num_steps && !(stopped = stops(t))) {
        if (begin_step(t, err)) return -1;
        const int what = due_after(t, t->done.step + t->num_begun);
        while (t->num_begun > (what ? 0 : depth - 1))
            if (finish_step(t, err)) return -1;
        if (do_between(t, what, err)) return -1;
    }
    while (t->num_begun)
        if (finish_step(t, err)) return -1;
    if (t->saved_step != t->done.step) save(t);
    progress_line_clear(&t->line);
    if (stopped)
        log_info("stopped after step %lld of %lld; the same command goes on from here",
                 (long long)t->done.step, (long long)o->num_steps);
    return 0;
}
