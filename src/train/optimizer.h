// AdamW over a model's parameters in the official groups: att.w0 at twice the rate, weight decay on
// the *.weight matrices and the embedding only.
#pragma once
#include "backend/backend.h"
#include "train/buckets.h"

struct dist;
struct model;

struct optimizer_options {
    double beta1, beta2, eps, weight_decay, clip; // clip: global gradient norm, 0: none
    double w0_lr_scale;                           // of att.w0; official: 2
    bool whole;          // every process keeps all moments; else its shares of them (ZeRO-1)
    size_t bucket_bytes; // of gradients that travel together
};

// Moments of this process's shares of the parameters (alone: of all), in the model's storage. One
// owner thread.
struct optimizer {
    struct model *model;
    const struct dist *dist; // NULL: alone
    struct optimizer_options options;
    struct buckets buckets;
    struct buffer *memory;
    struct tensor m, v;     // (buckets.held)
    struct tensor sums;     // (2) f64: of the last step begun, Σ g² and Σ loss, of all processes
    struct tensor all_sums; // (MAX_DEPTH,2): so many steps may be under way at a time
    struct tensor now;      // (3) f64: of this step, see ops.h
    struct tensor groups; // (k, sizeof (struct adamw_group)): neighbours in memory that have their
                          // constants in common. Padding has no gradient and stays zero.
    int *first_group;     // of each bucket, whose own share they count from; and their number
};

// Borrows dist. What is said of processes here is done by all of them.
int optimizer_create(struct optimizer **out, struct model *m, struct optimizer_options options,
                     const struct dist *dist, struct error *err);
void optimizer_destroy(struct optimizer *o); // NULL is fine
size_t optimizer_bytes(const struct model *m, struct optimizer_options options,
                       const struct dist *dist);

// A step: begun before its first pass, told the losses of each pass (`more`: of all but the first),
// taken at its end. Nothing is waited for: whether the step was one to take, all sums finite, is
// decided where they are, and `sums` says it later. step counts from 1.
void optimizer_begin(struct optimizer *o, double lr, int64_t step);
void optimizer_losses(struct optimizer *o, struct tensor losses, bool more);
void optimizer_step(struct optimizer *o);

// For run_watch in a step's last pass, o as ctx: starts the sums of gradients over processes.
void optimizer_reached(void *o, int layer);

// One of the moments, o->m or o->v, in the layout of the parameters, between steps. Where it is in
// shares, they come together in the memory of the gradients, until these are wanted again.
struct tensor optimizer_gather(struct optimizer *o, struct tensor moment);
// The other way: `all` is in the layout of the parameters, in the host.
void optimizer_scatter(struct optimizer *o, struct tensor moment, const void *all);
