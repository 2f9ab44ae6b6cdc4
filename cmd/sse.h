// What a server streams: events out of pieces of any size, and what one of them (or a whole answer)
// says, without building a document. The load generator reads tens of thousands a second, and the
// processor it takes is taken from the server beside it.
#pragma once
#include "base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SSE_MAX_EVENT = 4 << 20 }; // bytes of one event's data, and of one line

// Zero-initialise by sse_init. One owner thread.
struct sse {
    struct str line; // begun in an earlier piece
    struct str data; // of the event so far, lines joined by '\n'
    bool has_data;
    bool after_cr; // a '\n' that comes now belongs to the '\r' before it
    bool any;      // there was a byte: a byte order mark can only come first
};

void sse_init(struct sse *s);
void sse_clear(struct sse *s); // for another stream; keeps the memory
void sse_free(struct sse *s);

// Calls `event` with the data of every event that the piece completes; other fields and comments
// are skipped. -1: a line or an event is longer than SSE_MAX_EVENT.
typedef void sse_event(void *ctx, const char *data, size_t len);
int sse_feed(struct sse *s, const char *piece, size_t len, sse_event *event, void *ctx);

// A chunk of a stream or an answer as a whole, of /v1/completions or /v1/chat/completions.
struct sse_chunk {
    bool text;             // a choice brings text, thought, or a call of a tool
    bool error;            // the server says that it failed
    bool finished;         // a choice has its finish_reason
    int64_t prompt_tokens; // of its usage; -1: it has none
    int64_t completion_tokens;
};

// -1: the text is no JSON object. Checks the structure, not every escape and digit.
int sse_scan(struct sse_chunk *out, const char *json, size_t len);
