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
    struct tensor m, v;  // like model->master
    struct tensor norm2; // (1) f64
    // Runs of parameters that are neighbours in memory and have their constants in common: a call
    // each. Padding between them has no gradient and stays zero.
    struct run_of_params {
        size_t first, count; // in the layout
        double lr_scale, weight_decay;
    } * runs;
    int num_runs;
};

int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     struct error *err);
void optimizer_destroy(struct optimizer *o); // NULL is fine
size_t optimizer_bytes(const struct backend *be, size_t parameters);

// The global norm of the gradients as they are.
double optimizer_grad_norm(struct optimizer *o);
// One update from the gradients, whose norm was just taken; step counts from 1. Refreshes weights.
void optimizer_step(struct optimizer *o, double lr, int64_t step);
