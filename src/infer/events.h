// Events on their way from an engine to its owner: three growing arrays, reused for ever.
#pragma once
#include "base/str.h"
#include "infer/engine.h"

// Zero-initialise with events_init. While in the list, an event's `text` and `logprobs` are offsets
// into the list's arrays; events_settle makes them pointers, which hold until the next append.
struct events {
    struct engine_event *at;
    size_t count, cap;
    struct str text;
    struct engine_logprob *probs;
    size_t num_probs, cap_probs;
};

void events_init(struct events *e);
void events_free(struct events *e);
void events_clear(struct events *e); // keeps the memory

// A new event about `job` whose text begins at the end of `text`; append to `text` and `probs` and
// count it in the event before the next one is added. Valid until then.
struct engine_event *events_add(struct events *e, struct engine_job *job);
// Room for n more logprobs of the last event.
struct engine_logprob *events_add_probs(struct events *e, size_t n);
// What was appended to `text` since the last event was added becomes its text.
void events_end_text(struct events *e);

void events_move(struct events *to, struct events *from); // appends all, and clears `from`
void events_settle(struct events *e);
