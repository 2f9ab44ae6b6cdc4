// What comes back for one request: the response is read as it arrives, and becomes figures.
#pragma once
#include "sse.h"
#include <llhttp.h>

enum load_fault {
    LOAD_OK,
    LOAD_UNSENT,      // the run ended before its turn
    LOAD_BAD_REQUEST, // 4xx
    LOAD_REJECTED,    // 429 and 503: the server had no room
    LOAD_BACKEND,     // 5xx, or an error within the stream
    LOAD_TIMEOUT,
    LOAD_CANCEL,     // the run was interrupted
    LOAD_CONNECTION, // refused, reset, or closed in the middle
    LOAD_STREAM,     // not what was asked for: no [DONE], no events, no JSON
    LOAD_OTHER,      // another status
    LOAD_NUM_FAULTS,
};

extern const char *const load_fault_names[LOAD_NUM_FAULTS];

// Times are in seconds: start_s since the run began, the others since start_s, so that what a
// request waits for its turn to be sent counts.
struct load_request {
    double start_s;
    double lag_s; // from start_s to when it was sent
    double ttft_s, tpot_s, e2el_s;
    float *itl_s; // between pieces of text
    size_t num_itl, cap_itl;
    int64_t prompt_tokens; // by the server's usage; -1: it doesn't say
    int64_t output_tokens; // by usage, else the chunks; -1: neither
    int64_t chunks;        // that brought text
    bool counted;          // output_tokens is the number of chunks
    int status;            // of HTTP; 0: no answer
    enum load_fault fault;
    char *error; // what failed; NULL: nothing
};

void load_request_free(struct load_request *r);

// The first fault stays.
void load_request_fail(struct load_request *r, enum load_fault fault, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

struct load_answer {
    llhttp_t parser;
    struct sse sse;
    struct str body;           // of an answer that doesn't stream
    struct load_request *into; // what it fills
    uint64_t start_ns, now_ns, text_ns, done_ns;
    char field[16], type[64]; // of the header being read; the Content-Type
    size_t field_len, type_len;
    bool wants_stream, events; // asked for; and got
    bool begun, complete, done;
    bool too_large, reusable;
};

enum load_progress { LOAD_MORE, LOAD_COMPLETE, LOAD_BROKEN };

void load_answer_init(struct load_answer *a);
void load_answer_free(struct load_answer *a);
void load_answer_begin(struct load_answer *a, struct load_request *into, bool wants_stream,
                       uint64_t start_ns);

// Bytes came, or (len 0) the server closed the connection. Once this is not LOAD_MORE, `into` is
// filled, and a->reusable says whether the connection may carry another request.
enum load_progress load_answer_feed(struct load_answer *a, const char *bytes, size_t len,
                                    uint64_t now_ns);
