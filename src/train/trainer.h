// The training loop: batches in, losses out, checkpoints between. A run lives in a directory of its
// own and can be stopped at any moment: `step-N.ckpt` (everything, to go on bit by bit),
// weights.pth (the newest model, to use), log.jsonl, speed.jsonl, loss.svg, samples.txt.
#pragma once
#include "train/optimizer.h"
#include "train/schedule.h"
#include <stdbool.h>
#include <stdint.h>

struct binidx;
struct dist;
struct error;
struct model;
struct tok;

enum resume { RESUME_AUTO, RESUME_NEVER };

struct train_options {
    const char *run_dir, *name;
    enum resume resume;
    uint64_t seed;
    int ctx, batch, accumulation; // T; B sequences a pass; passes a step; of each process
    int64_t num_steps;
    struct schedule schedule;
    struct optimizer_options optimizer;
    bool l2wrap, checkpointing; // gradient checkpointing: recompute instead of remembering
    int head_rows;              // rows of logits at a time; 0: what the backend likes
    int64_t log_every, save_every,
        val_every;        // steps; 0: never (a checkpoint is written at the end)
    int keep;             // newest checkpoints to keep, ≥ 1
    int64_t keep_every;   // and every one of a multiple of this step; 0: none
    int64_t val_tokens;   // at most; 0: all
    int64_t sample_every; // 0: never
    int sample_tokens;
    const char *sample_prompt;
    bool plain_progress; // lines instead of one line redrawn
};

// Bytes that a process will take, by what for.
struct train_memory {
    size_t model, optimizer, activations, total;
};

struct trainer;

// Borrows model, data and tokenizer (validation and tok may be NULL: no validation, no bits per
// byte, no samples) and dist (NULL: alone). Locks the run directory. With RESUME_AUTO goes on from
// the newest whole checkpoint. Of several processes the first writes, samples and talks.
int trainer_create(struct trainer **out, struct model *m, const struct binidx *data,
                   const struct binidx *validation, const struct tok *tok,
                   const struct train_options *o, const struct dist *dist, struct error *err);
void trainer_destroy(struct trainer *t); // NULL is fine

int64_t trainer_step(const struct trainer *t); // steps already taken

// Runs to the end, or until trainer_stop; leaves a checkpoint either way.
int trainer_run(struct trainer *t, struct error *err);

// From a signal handler, of any of the processes: all loops end after the step they are in.
void trainer_stop(void);

struct train_memory trainer_plan(const struct model *m, const struct train_options *o,
                                 const struct dist *dist);
