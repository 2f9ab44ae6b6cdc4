// AdamW over a model's parameters in the official groups: att.w0 at twice the rate, weight decay on
// the *.weight matrices and the embedding only.
#pragma once
#include "backend/backend.h"

struct model;

struct optimizer_options {
    double beta1, beta2, eps, weight_decay, clip; // clip: global gradient norm, 0: none
    double w0_lr_scale;                           // of att.w0; official: 2
};

// Moments in the model's layout and storage. One owner thread.
struct optimizer {
    struct model *model;
    struct optimizer_options options;
    struct buffer *memory;
    struct tensor m, v;     // like model->master
    struct tensor sums;     // (2) f64: of the last step begun, Σ g² and Σ loss
    struct tensor all_sums; // (MAX_DEPTH,2): so many steps may be under way at a time
    struct tensor now;      // (3) f64: of this step, see ops.h
    struct tensor groups; // (k, sizeof (struct adamw_group)): neighbours in memory that have their
                          // constants in common. Padding has no gradient and stays zero.
};

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     struct error *err);
void optimizer_destroy(struct optimizer *o); // NULL is fine
size_t optimizer_bytes(const struct model *m);

// A step: begun before its first pass, told the losses of each pass (`more`: of all but the first),
// taken at its end. Nothing is waited for: whether the step was one to take, all sums finite, is
// decided where they are, and `sums` says it later. step counts from 1.
void optimizer_begin(struct optimizer *o, double lr, int64_t step);
void optimizer_losses(struct optimizer *o, struct tensor losses, bool more);
void optimizer_step(struct optimizer *o);
