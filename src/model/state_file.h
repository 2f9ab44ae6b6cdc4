// A sequence on disk: everything that its next token depends on, so that saving and loading is as
// if nothing had happened. Sessions, caches, hot swap and tuned states all use this one format.
#pragma once
#include "backend/ops.h"
#include "model/model.h"
#include "model/state.h"

enum { STATE_MAX_PENDING = 4096 };

// What belongs to a sequence besides its slot. Owned by the caller.
struct state_extra {
    uint64_t vocab_hash; // 0: none
    uint64_t tokens;     // consumed so far; also the sampler's position
    int32_t last_token;  // -1: none
    struct sample_row sampler;
    const float *logits;    // (V) after the last token, or NULL
    const void *penalties;  // sample_penalty_bytes(V), or NULL
    uint32_t pending_bytes; // of text held back: unfinished UTF-8, the beginning of a stop string
    char pending[STATE_MAX_PENDING];
};

int state_save(const char *path, const struct model *m, struct state *s, int slot,
               const struct state_extra *extra, struct error *err);

// Refuses a state of another model, vocabulary (unless either hash is 0) or version, and damage.
// On success the slot is set and *extra filled; logits and penalties are copied to the buffers
// given (each may be NULL) and the pointers in *extra tell whether the file had them.
int state_load(const char *path, const struct model *m, struct state *s, int slot,
               struct state_extra *extra, uint64_t vocab_hash, float *logits, void *penalties,
               struct error *err);
