#include "infer/events.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

void events_init(struct events *e) {
    *e = (struct events){0};
    str_init(&e->text, (size_t)1 << 40); // bounded by the events, which the engine bounds
}

void events_free(struct events *e) {
    free(e->at);
    free(e->probs);
    str_free(&e->text);
}

void events_clear(struct events *e) {
    e->count = e->num_probs = 0;
    str_clear(&e->text);
}

struct engine_event *events_add(struct events *e, struct engine_job *job) {
    if (e->count == e->cap) e->at = mem_grow(e->at, e->cap = e->cap * 2 + 64, sizeof *e->at);
    struct engine_event *event = &e->at[e->count++];
    *event = (struct engine_event){.job = job,
                                   .text = (const char *)(uintptr_t)e->text.len,
                                   .logprobs = (const void *)(uintptr_t)e->num_probs};
    return event;
}

struct engine_logprob *events_add_probs(struct events *e, size_t n) {
    if (e->num_probs + n > e->cap_probs) {
        e->cap_probs = (e->num_probs + n) * 2;
        e->probs = mem_grow(e->probs, e->cap_probs, sizeof *e->probs);
    }
    struct engine_logprob *probs = e->probs + e->num_probs;
    e->num_probs += n;
    return probs;
}

void events_end_text(struct events *e) {
    struct engine_event *event = &e->at[e->count - 1];
    event->text_len = e->text.len - (uintptr_t)event->text;
}

void events_move(struct events *to, struct events *from) {
    const size_t text = to->text.len, probs = to->num_probs, n = from->count;
    if (to->count + n > to->cap)
        to->at = mem_grow(to->at, to->cap = (to->count + n) * 2, sizeof *to->at);
    for (size_t i = 0; i < n; i++) {
        struct engine_event event = from->at[i];
        event.text = (const char *)((uintptr_t)event.text + text);
        event.logprobs = (const void *)((uintptr_t)event.logprobs + probs);
        to->at[to->count++] = event;
    }
    str_append(&to->text, from->text.data, from->text.len);
    if (from->num_probs)
        memcpy(events_add_probs(to, from->num_probs), from->probs,
               from->num_probs * sizeof *from->probs);
    events_clear(from);
}

void events_settle(struct events *e) {
    for (size_t i = 0; i < e->count; i++) {
        struct engine_event *event = &e->at[i];
        event->text = e->text.data + (uintptr_t)event->text;
        event->logprobs = e->probs + (uintptr_t)event->logprobs;
    }
}
