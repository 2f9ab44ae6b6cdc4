// One HTTP/1.x request out of bytes, strictly: whatever two programs could read differently is
// refused (RFC 9112; framing by llhttp). Knows no sockets, so it can be fuzzed.
#pragma once
#include "base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HTTP_MAX_URL = 8192,
    HTTP_MAX_HEAD = 16384, // bytes of all headers; the request line comes on top
    HTTP_MAX_HEADERS = 100,
};

enum http_stage {
    HTTP_AT_START, // not a byte of the request yet
    HTTP_IN_HEAD,  // the head is incomplete
    HTTP_IN_BODY,  // the head is there; the body is incomplete
    HTTP_COMPLETE,
    HTTP_BAD, // `status` and `problem` say why; nothing more can be read from this connection
};

struct http_header {
    const char *name, *value; // NUL-terminated; the value without white space around it
};

// Valid from HTTP_IN_BODY on, until http_reset. One owner thread.
struct http_request {
    char *method; // "GET"
    char *path;   // "/v1/models": begins with "/", percent-decoded, no control bytes, no ".."
    char *query;  // behind "?", not decoded; "" when none
    struct http_header headers[HTTP_MAX_HEADERS];
    int num_headers;
    struct str body;
    int64_t content_length; // -1: not told
    bool keep_alive, expects_continue;
    bool is_http_1_0;
};

struct http {
    enum http_stage stage;
    int status;                 // HTTP_BAD: 400, 408, 413, 414, 431, 417, 505, 501
    const char *problem;        // HTTP_BAD
    struct http_parser *parser; // llhttp and the head's bytes; NULL between requests
    size_t max_body;
    struct http_request *request; // NULL between requests
};

void http_init(struct http *h, size_t max_body);
void http_free(struct http *h);
// Ready for the next request on the same connection; memory goes back.
void http_reset(struct http *h);

// Takes bytes until a stage ends: once when the head is complete (HTTP_IN_BODY; also when there is
// no body, so that the caller can judge the head first) and once when the body is. Returns how many
// were taken; call again with the rest. Takes none when complete or bad.
size_t http_feed(struct http *h, const char *data, size_t len);

// The value of a header, by lower-case name; NULL: none. *count, if wanted: how often it is there.
const char *http_header(const struct http_request *r, const char *name, int *count);
