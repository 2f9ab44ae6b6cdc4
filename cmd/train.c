// rwkv train: configuration → data → model → trainer.
#include "cli.h"
#include "common.h"
#include "config.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "data/binidx.h"
#include "model/model.h"
#include "text/tok.h"
#include "train/dist.h"
#include "train/team.h"
#include "train/trainer.h"
#include "train_setup.h"

#include <signal.h>
#include <stdlib.h>

// The first one asks the loop to end after its step. A second one ends the program at once, unless
// it is the same one again: `timeout` and some supervisors signal a process and then its group.
static void on_signal(int number) {
    static volatile sig_atomic_t asked;
    static volatile int64_t asked_ns;
    if (asked && clock_ns() - asked_ns > 500000000) {
        signal(number, SIG_DFL);
        raise(number);
    }
    if (!asked) asked_ns = clock_ns();
    asked = 1;
    trainer_stop();
}

struct job {
    const struct cli_args *args;
    const struct train_config *config;
};

// One device's part, in a process of its own where there are several (team NULL: there are not).
static int train(void *ctx, struct team *team, struct error *err) {
    const struct job *job = ctx;
    const struct train_config *c = job->config;
    const int rank = team_rank(team);
    struct train_plan plan;
    struct train_options options;
    struct binidx *data = NULL, *validation = NULL;
    struct backend *be = NULL;
    struct dist *dist = NULL;
    struct model *model = NULL;
    struct tok *tok = NULL;
    struct trainer *trainer = NULL;
    int rc = -1;

    if (rank) log_set_level(LOG_ERROR); // the first one talks
    if (binidx_open(&data, c->dataset_prefix, err)) goto out;
    if (c->validation_base && binidx_open(&validation, c->validation_base, err)) goto out;
    if (c->tokenizer_vocab_path && vocab_open(&tok, c->tokenizer_vocab_path, err)) goto out;
    if (train_config_plan(&plan, c, (int64_t)data->num_tokens, err)) goto out;
    train_setup_options(&options, c, &plan, job->args);

    const int threads = train_setup_threads(c);
    if (backend_open_device(&be, c->backend, (int)c->device_ids.at[rank], threads, err)) goto out;
    if (dist_open(&dist, team, be, err)) goto out;
    if (train_setup_model(&model, be, c, &options, dist, err)) goto out;
    if (trainer_create(&trainer, model, data, validation, tok, &options, dist, err)) goto out;
    if (rank == 0 && train_setup_record(c, err)) goto out;

    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    rc = trainer_run(trainer, err);
out:
    if (rc) team_leave(team, err);
    trainer_destroy(trainer);
    model_destroy(model);
    dist_close(dist);
    backend_destroy(be);
    tok_close(tok);
    binidx_close(validation);
    binidx_close(data);
    return rc;
}

static int run(const struct cli_args *args, struct error *err) {
    struct train_config config;
    if (train_setup_config(&config, args, err)) return -1;
    struct job job = {args, &config};
    const int rc = team_run((int)config.num_devices_per_node, train, &job, err);
    train_config_free(&config);
    return rc;
}

static const struct cli_option options[] = {
    {"config-dir", "DIR", .fallback = "config", .help = "folder with model, train and infer in it"},
    {"train-cfg", "NAME", .fallback = "rwkv-lm-0.1b", .help = "the file train/NAME.toml"},
    {"backend", "NAME", .help = "what computes; overrides the configuration"},
    {"resume", "auto|never", .fallback = "auto", .choices = "auto|never",
     .help = "go on from the newest whole checkpoint of the run directory, or insist on a new run"},
    {"set", "KEY=VALUE", .repeat = true, .help = "override a key of the configuration"},
    {0},
};

const struct cli_command cmd_train = {
    .name = "train",
    .summary = "pretrain a model on a tokenised text",
    .help =
        "Everything about a run stands in a TOML file; `rwkv config keys` explains the keys.\n"
        "\n"
        "  rwkv data build --input text.jsonl --output data/text --vocab bytes\n"
        "  rwkv train --config-dir config --train-cfg demo --set num_steps=1000\n"
        "\n"
        "The run directory (<experiment_log_base_path>/<experiment_name>) receives weights.pth, "
        "the\n"
        "newest model; step-N.ckpt, to go on from; log.jsonl, speed.jsonl, loss.svg, samples.txt.\n"
        "Ctrl-C or SIGTERM writes a checkpoint and ends; the same command goes on, bit by bit as "
        "if\n"
        "it had never stopped.\n",
    .options = options,
    .run = run,
};
