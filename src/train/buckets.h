// The flat parameters cut into buckets: what is summed over devices at once, in the order in which
// the way back completes the gradients, so that the sums of one bucket travel while the next are
// computed.
#pragma once
#include "backend/backend.h"

struct dist;
struct model;

struct bucket {
    size_t first, count; // elements of the model's layout
    int ready;           // model_loss has reached this layer when its gradients are complete
    bool split;          // into equal shares, one a process; else everybody has all of it
    struct share {
        size_t first, count; // this process's
        size_t at;           // where moments of a process's shares lie, one after the other
    } own;
};

struct buckets {
    struct bucket *at; // the first to be complete first
    int n;
    size_t held; // elements of all own shares
};

// Of about so many bytes each. Alone: one bucket. split: each process keeps and updates a share of
// the optimizer's moments (ZeRO-1); what is left when all are cut evenly stays with everybody.
void buckets_cut(struct buckets *b, const struct model *m, const struct dist *d, bool split,
                 size_t bytes);
void buckets_free(struct buckets *b);

// Starts the sums of the gradients that are complete when model_loss has reached a layer.
void buckets_reduce(const struct buckets *b, const struct dist *d, struct tensor grad, int layer);
// Starts bringing the shares of a bucket together: t in the model's layout.
void bucket_gather(const struct bucket *b, const struct dist *d, struct tensor t);
