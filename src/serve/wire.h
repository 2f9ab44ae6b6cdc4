// How answers look on the wire: the JSON objects and stream chunks of OpenAI's API, from what an
// answer consists of.
#pragma once
#include "base/str.h"
#include "serve/answer.h"
#include "text/think.h"

// One prompt and what came of it.
struct choice {
    struct engine_job job;
    struct answer *answer;
    int engine; // of the version
    int32_t *tokens, *candidates;
    bool begins_document; // token 0 stands before the prompt's text
    bool done, told;      // finished; and its finish_reason said
    enum engine_finish finish;
    struct think think;
    struct str text, thoughts; // to be said: all of it, or since the last chunk
    int prompt_tokens, generated, thought_tokens;
    // Logprobs to be said, as fragments of JSON: chat uses `content`, completions the other four.
    struct str content, lp_tokens, lp_values, lp_tops, lp_offsets;
    size_t offset; // code points of text before the next token
};

struct answer {
    struct answers *all;
    struct conn *conn; // NULL: the client is gone
    struct version *version;
    struct request request;
    struct choice *choices;
    int num_choices, num_open; // jobs in flight
    char id[48];
    struct str beginning; // of every object that is sent
    int64_t created_s;
    double begin_s, first_s, last_s; // of the request, and of its first and last token
    int64_t written_ms;              // when something was last written to the stream
    bool streaming, parked, is_dirty;
    char error[200]; // a stream that breaks says why
    struct answer *next_dirty;
};

// All strings of a choice, to be set up and freed.
enum { CHOICE_STRINGS = 7 };
void choice_strings(struct choice *c, struct str *out[CHOICE_STRINGS]);

// Adds one token to the logprobs to be said. e: its entries; NULL: the prompt's first token, which
// has no probability.
void wire_add_logprobs(struct choice *c, int32_t token, const struct engine_logprob *e);

void wire_put_whole(struct str *out, struct answer *a);

enum wire_chunk { WIRE_ROLE, WIRE_TEXT, WIRE_FINISH };
// One server-sent event. WIRE_TEXT takes the choice's text and logprobs with it.
void wire_put_chunk(struct str *out, struct choice *c, enum wire_chunk kind);
// The usage, if it was asked for, and the end of the stream.
void wire_put_last(struct str *out, struct answer *a);
