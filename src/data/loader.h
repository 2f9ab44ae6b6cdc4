// Training batches, prepared ahead by a thread of its own.
#pragma once
#include <stdint.h>

struct binidx;
struct error;
struct loader;

struct loader_options {
    int ctx, batch;        // T tokens in B sequences
    int vocab_size;        // a token at or above it is an error
    uint64_t first_sample; // global sample number ii ≥ 1 of the first batch's first sequence
    int stride;            // samples from a batch to the next: B, or more where others take some
};

// The data must outlive the loader, and be large enough for a magic prime at this ctx.
int loader_create(struct loader **out, const struct binidx *data, struct loader_options options,
                  struct error *err);
void loader_destroy(struct loader *l); // NULL is fine

// Waits for the next batch: inputs and targets, (B,T) each.
int loader_next(struct loader *l, int32_t *inputs, int32_t *targets, struct error *err);

uint64_t loader_magic_prime(const struct loader *l);

// Window i of consecutive windows for validation: inputs are tokens [i·ctx, i·ctx + ctx), targets
// one further on. -1: past the end of the data, or a token outside the vocabulary.
int window_read(const struct binidx *data, uint64_t i, int ctx, int vocab_size, int32_t *inputs,
                int32_t *targets, struct error *err);
uint64_t window_count(const struct binidx *data, int ctx);
