// The sequences that an engine is working on, and the memory of its steps. One owner thread: the
// engine's.
#pragma once
#include "infer/engine.h"

struct events; // infer/events.h
struct model;  // model/model.h
struct tok;    // text/tok.h

struct slots;

// Room for limits.max_batch_size sequences of at most limits.max_context_len tokens. Borrows model
// and vocabulary. depth: steps under way at a time, at most MAX_DEPTH; 0: as the backend likes.
int slots_create(struct slots **out, struct model *m, const struct tok *tok,
                 struct engine_limits limits, int depth, struct error *err);
void slots_destroy(struct slots *s); // NULL is fine

// New limits, with no step under way (slots_settle); sequences go on as if nothing had happened.
// On failure everything stays as it was.
int slots_resize(struct slots *s, struct engine_limits limits, struct error *err);

int slots_used(const struct slots *s);
int slots_parked(const struct slots *s);
bool slots_full(const struct slots *s);

void slots_admit(struct slots *s, struct engine_job *job); // not when full
void slots_park(struct engine_seq *seq, bool parked);
// Its last event: finish says why, error may be NULL. The text that was held back goes with it.
void slots_finish(struct slots *s, struct engine_seq *seq, enum engine_finish finish,
                  const char *error, struct events *out);
struct engine_seq *slots_any(const struct slots *s); // one that is there; NULL: none

// Writes steps down, each of every sequence whose turn it is, until `depth` are under way; then
// waits for the oldest of them, and its events. Returns how many rows that had; 0: there was none
// and nobody can go on. -1: the device failed, and nothing is under way.
int slots_step(struct slots *s, struct events *out, struct error *err);
// Where a device prepares itself for each number of rows (round_rows): does so for all of them,
// with rows of nobody, before the first sequence. -1: the device failed.
int slots_warm(struct slots *s, struct error *err);
// Waits for all that is under way, and its events. -1: the device failed.
int slots_settle(struct slots *s, struct events *out, struct error *err);
