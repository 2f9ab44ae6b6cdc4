// The load generator: many requests at once from one thread, as clients would send them.
#pragma once
#include "load_answer.h"
#include "load_plan.h"

struct load;

struct load_options {
    struct load_plan plan;
    size_t idle_connections; // open beside the requests, and silent
    size_t concurrency;      // requests in flight at most; 0: no ceiling
    double timeout_s;        // of a request, from when it is sent; 0: none
    double progress_s;       // how often a line says how far a run is; 0: never
};

// What a run cost on this side: a generator that is busy measures itself.
struct load_cost {
    double duration_s; // from the run's start to the last answer
    double cpu_s;
    size_t peak_in_flight;
    size_t connects; // connections opened
    size_t retries;  // requests sent again, because a kept connection was closed as they went out
    size_t idle_open, idle_closed; // by the server
    bool interrupted;
};

// Connections outlive a run: what warms up leaves them to what is measured.
int load_open(struct load **out, const struct load_options *options, struct error *err);
void load_close(struct load *l);

struct load_run {
    struct load_request *requests;
    size_t count;
    uint64_t first_id; // of the prompts
    const int *words;  // of each prompt; NULL: `word_count` for all
    int word_count, max_tokens;
    bool scheduled; // start_s says when each is due; else each starts as soon as another has ended
    bool whole;     // no streams, whatever the plan says
};

// Every request ends as LOAD_OK or with a fault; -1: nothing could be run at all. SIGINT ends a run
// early: requests in flight are LOAD_CANCEL, later ones LOAD_UNSENT.
int load_run(struct load *l, const struct load_run *run, struct load_cost *cost, struct error *err);
