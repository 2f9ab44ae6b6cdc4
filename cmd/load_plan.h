// What the load generator sends, to whom, and when: all of it follows from the options and a seed.
#pragma once
#include "base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

struct load_target {
    char host[256], port[8];
    char authority[280]; // for the Host header
    char path[512];      // of the endpoint
};

// base_url: http://host[:port][/prefix], with or without a /v1 at its end.
int load_target_parse(struct load_target *t, const char *base_url, bool chat, struct error *err);

struct load_plan {
    struct load_target target;
    const char *model;
    const char *api_key; // NULL: none
    const char *extra;   // members of every request, `"a":1,"b":2`; NULL: none
    bool chat, stream;
    int max_tokens;
    double temperature;
    uint64_t seed;
};

// `words` English words in sentences, other ones for each id.
void load_prompt_write(struct str *out, uint64_t seed, uint64_t id, int words);

// The whole HTTP request.
void load_request_write(struct str *out, const struct load_plan *plan, uint64_t id, int words,
                        int max_tokens);

// When n requests start, in seconds: even gaps, or those of a Poisson process of that rate.
void load_schedule(double *start_s, size_t n, double rate, bool poisson, uint64_t seed);
