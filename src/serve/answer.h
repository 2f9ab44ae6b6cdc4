// The answer to one request of /v1/chat/completions or /v1/completions, from its submission to its
// last byte, whole or as server-sent events. Everything on the loop's thread.
#pragma once
#include "serve/conn.h"
#include "serve/models.h"
#include "serve/request.h"

struct fault;
struct hist;

// What all answers of a server share.
struct answers {
    struct models *models;
    int64_t keep_alive_ms; // a stream is not silent for longer
    struct answer *dirty;  // got events and must speak
    int open;              // answers with jobs in flight
    double now_s;          // when the events came that are being taken; 0: none are
    struct hist *first_token_us, *token_us, *request_us;
};

// Takes the request over (and frees it in every case). On a fault nothing was submitted and the
// caller replies.
int answer_begin(struct answers *all, struct conn *c, struct request *r, struct fault *fault);
void answer_event(void *owner, const struct engine_event *event); // a models_event_fn
void answers_settle(struct answers *all);                         // says what there is to say
