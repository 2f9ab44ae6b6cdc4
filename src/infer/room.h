// The backend's memory that an engine's steps need, for so many sequences. One owner thread.
#pragma once
#include "backend/backend.h"
#include "infer/engine.h"

struct model; // model/model.h

// Replaced as a whole when the limits change.
struct room {
    struct backend *be;
    int slots;
    struct run *run;
    struct feed *feed;
    struct state *state; // slots, and where batches are padded one more for that
    struct buffer *memory;
    struct tensor rows;              // (outs, sizeof(struct sample_row)) u8
    struct tensor tokens;            // (MAX_DEPTH, outs) i32: what steps draw, in turn
    struct tensor penalties, biases; // (slots, …) u8, as op_sample has them
    // Slots that room_begin has to clear: their states, and of `marked` ones the penalties.
    struct slot_list {
        int32_t *slot; // (slots)
        int count;
    } fresh, marked;
};

int room_paragraph(const struct backend *be, struct engine_limits l); // tokens of prompts in a step

// The largest step, padding and all.
struct room_limits {
    int rows, spans, outs;
};
struct room_limits room_limits(const struct backend *be, struct engine_limits l, int slots);

int room_create(struct room *r, struct model *m, struct engine_limits l, int slots,
                struct error *err);
void room_free(struct room *r);
uint64_t room_bytes(const struct model *m, struct engine_limits l);

// Whether a job has a use for its slot's penalties.
bool room_penalises(const struct engine_job *job);
// Makes a slot ready for a job's first token, together with room_begin.
void room_settle(struct room *r, int slot, const struct engine_job *job);
// Before a step, or before anything moves: clears what jobs that settled begin with. In the queue's
// order: whatever was written down for a slot's last owner is done before.
void room_begin(struct room *r);
// A job's sequence goes on in another room.
void room_move(struct room *to, int to_slot, const struct room *from, int from_slot,
               const struct engine_job *job);
