// An engine is a model that writes for many at once: one thread owns the model, the slots and the
// time. This page is all that `serve` knows of models; a fake of a hundred lines can stand in.
//
// Threads: engine_open, engine_plan and engine_close block and may be called from any thread;
// everything else never blocks for long and is called from one thread, the owner's ("the loop").
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct error;
struct tok; // text/tok.h

enum {
    ENGINE_MAX_TOP = 20,    // alternatives a token can be reported with
    ENGINE_MAX_BIAS = 1024, // entries of logit_bias
    ENGINE_MAX_STOPS = 24,  // strings that end a text
    ENGINE_MAX_CANDIDATES = 64,
    ENGINE_MAX_STOP_BYTES = 1024,
};

// What to run. Strings are copied.
struct engine_spec {
    const char *name; // of the model, for messages
    const char *weights_path;
    const char *vocab_path; // "bytes": the built-in vocabulary
    const char *backend;    // "cpu"
    const char *dtype;      // one of PRECISION_NAMES
    bool half_states;       // sequences' states are f16
    int device_id;
    int num_threads; // 0: all
    int depth;       // steps under way at a time, 1 or 2; 0: as the backend likes
    bool warm;       // a device prepares itself for every size of step now, not when one comes
    // The shape that the configuration promises; the weights must have it.
    int L, C, H, V;
    const char *shape_path; // where it is said, for messages
};

// What may change while it runs.
struct engine_limits {
    int max_batch_size;  // sequences at once
    int paragraph_len;   // tokens of prompts in one step; 0: as the backend likes
    int max_context_len; // tokens of prompt and text together
    int max_queue;       // sequences that wait
    bool decode_first;   // sequences that write don't wait for prompts
};

enum engine_finish {
    ENGINE_NOT_YET,
    ENGINE_STOP,     // the model ended the document, or a stop string came
    ENGINE_LENGTH,   // max_tokens or the context's end
    ENGINE_CANCELED, // engine_cancel, or the engine was closed
    ENGINE_FAILED,   // the device
};

struct engine_bias {
    int32_t token;
    float value; // added to the logit
};

// One sequence that is asked for. The caller makes it; from a successful engine_submit until its
// last event it belongs to the engine, then to the caller again. The caller's pointers stay valid
// for as long.
struct engine_job {
    const int32_t *prompt; // at least 1 token, each < V
    int num_prompt;
    int max_tokens; // 0: only read the prompt
    float temperature, top_p, min_p, presence, repetition, frequency, penalty_decay;
    int32_t top_k;
    uint64_t seed;
    const struct engine_bias *bias;
    int num_bias;
    const char *stops[ENGINE_MAX_STOPS]; // UTF-8, each 1..ENGINE_MAX_STOP_BYTES long
    int num_stops;
    int top; // report the logprob of each token and of so many others; -1: neither
    const int32_t *candidates; // and of these
    int num_candidates;
    char held[3]; // of a prompt that is shown before the text: the beginning of a code point that
    int num_held; // its last tokens left unfinished, to be completed by the text
    bool prompt_logprobs; // for the prompt's tokens too
    bool ignore_end;      // go on past the end of a document

    void *owner; // the caller's

    // The engine's own. Zero before engine_submit.
    struct engine_job *next;       // in a list of messages
    struct engine_job *queue_next; // among those that wait
    struct engine_seq *seq;
    _Atomic uint32_t wishes; // cancel, park, unpark
    bool posted;
};

// One candidate for a token's place. The logarithm of its probability under the model itself,
// before biases, penalties and temperature.
struct engine_logprob {
    int32_t token;
    float logprob;
};

// What happened to a job. Events come in order; the last one has finish != ENGINE_NOT_YET, and
// after it the job is the caller's. Everything lies in the engine and holds until the next
// engine_poll.
struct engine_event {
    struct engine_job *job;
    const char *text;     // valid UTF-8, whole code points; may be empty
    size_t text_len;      // bytes
    int prompt_tokens;    // read by this step
    int generated_tokens; // by this step: 0 or 1
    int32_t token;        // generated, if so
    // If the job asked: of the tokens that this event is about (of the prompt: each but the very
    // first, which has no probability), 1 + top + num_candidates entries each: the token itself,
    // the most probable ones in order, the candidates.
    bool of_prompt;
    int num_logprobs;
    const struct engine_logprob *logprobs; // num_logprobs * (1 + top + num_candidates)
    enum engine_finish finish;
    const char *error; // ENGINE_FAILED: why
};

// For metrics. Counters since the engine was opened.
struct engine_stats {
    int waiting, running, parked; // jobs
    int max_batch_size;
    uint64_t steps, prompt_tokens, generated_tokens;
    double step_seconds; // spent in steps
    uint64_t model_bytes, state_bytes;
    bool failed; // the device is gone: every job ends with ENGINE_FAILED
};

// Reads vocabulary and weights, starts the thread. `wake` is called from it, at most once between
// two calls of engine_poll, when there are events.
int engine_open(struct engine **out, const struct engine_spec *spec, struct engine_limits limits,
                void (*wake)(void *ctx), void *ctx, struct error *err);

// What engine_open would do, without reading the weights' numbers: checks the files' headers and
// says how many bytes of memory it would take.
int engine_plan(uint64_t *bytes, const struct engine_spec *spec, struct engine_limits limits,
                struct error *err);

// Cancels what is left, waits for the thread and frees everything. Jobs whose last event was not
// polled are the caller's again. NULL is fine.
void engine_close(struct engine *e);

// E_LIMIT: the queue is full.
int engine_submit(struct engine *e, struct engine_job *job, struct error *err);
// The last event comes as soon as the step in progress is done. Harmless when it is on its way.
void engine_cancel(struct engine *e, struct engine_job *job);
// A parked job keeps its slot and writes nothing but what is under way: its reader is slow.
void engine_park(struct engine *e, struct engine_job *job, bool parked);

// Events since the last call, valid until the next one.
const struct engine_event *engine_poll(struct engine *e, size_t *count);

void engine_set_limits(struct engine *e, struct engine_limits limits);
struct engine_limits engine_limits(struct engine *e);
void engine_stats(struct engine *e, struct engine_stats *out);
const struct tok *engine_tok(const struct engine *e); // immutable: any thread
int engine_vocab_size(const struct engine *e);        // tokens of a prompt are below it
uint64_t engine_model_hash(const struct engine *e);
