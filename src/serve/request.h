// What a client asks a model for: the JSON of /v1/chat/completions and /v1/completions, checked
// field by field. Pure: no model, no connection, so any thread may parse and a fuzzer can.
#pragma once
#include "base/arena.h"
#include "infer/engine.h"
#include "text/prompt.h"

struct fault;

enum request_kind { REQUEST_CHAT, REQUEST_COMPLETION };

enum {
    REQUEST_MAX_PROMPTS = 1024,
    REQUEST_MAX_MESSAGES = 4096,
    REQUEST_MAX_STOPS = 16,
    REQUEST_MAX_NAME = 256,
};

struct request_prompt {
    const char *text; // NULL: it came as tokens
    size_t len;
    int32_t *tokens; // each ≥ 0; whether the model has them is for later
    int num_tokens;
};

// Owns everything below through its arena. Absent fields have their defaults.
struct request {
    struct arena arena;
    enum request_kind kind;
    const char *model;
    struct request_prompt *prompts;
    size_t num_prompts;
    bool stream, include_usage, echo, has_seed;
    enum prompt_think think;
    bool thinks;        // the prompt ends inside "<think"
    int64_t max_tokens; // -1: not said
    int64_t top_k;
    int64_t seed;
    double temperature, top_p, min_p;
    double presence, frequency, repetition, penalty_decay;
    const char *stops[ENGINE_MAX_STOPS];
    int num_stops;
    struct engine_bias *bias;
    int num_bias;
    int top;                 // logprobs: how many alternatives; -1: none wanted
    const char **candidates; // texts whose logprobs are wanted too
    int num_candidates;
};

// `request_free` is needed in every case.
int request_parse(struct request *out, enum request_kind kind, const char *body, size_t len,
                  struct fault *fault);
void request_free(struct request *r);
