// What a sequence carries from token to token: per layer the last ln1 and ln2 outputs and S. Its
// size does not grow with the sequence, so a sequence is a slot number.
#pragma once
#include "backend/backend.h"
#include "model/params.h"

struct model;

// Slots of many sequences, stored as the model's options say. One owner thread.
struct state {
    struct backend *be;
    struct dims dims;
    int slots;
    struct buffer *memory;
    struct tensor shift; // (L, 2, S, C): ln1 output, ln2 output of the last token
    struct tensor wkv;   // (L, S, H, N, N): [key][value]
};

int state_create(struct state **out, const struct model *m, int slots, struct error *err);
void state_destroy(struct state *s); // NULL is fine
size_t state_bytes(const struct model *m, int slots);

void state_zero(struct state *s, int slot);
void state_zero_all(struct state *s, const int32_t *slots, int count);
// Between states of one model, or inside one.
void state_copy(struct state *to, int to_slot, const struct state *from, int from_slot);

// One slot as numbers, in this order: shift (L,2,C), then wkv (L,H,N,N), [value][key] as files
// have it.
size_t state_count(const struct dims *d); // numbers in a slot
void state_get(struct state *s, int slot, float *out);
void state_set(struct state *s, int slot, const float *in);
