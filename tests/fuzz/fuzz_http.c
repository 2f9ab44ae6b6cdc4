// Any bytes in any pieces: the same request or the same refusal, within the ceilings.
#include "serve/http.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { MAX_BODY = 2000 };

static size_t feed(struct http *h, const char *data, size_t len, size_t piece) {
    size_t at = 0;
    http_init(h, MAX_BODY);
    while (at < len && h->stage < HTTP_COMPLETE) {
        const size_t n = len - at < piece ? len - at : piece;
        const size_t taken = http_feed(h, data + at, n);
        if (taken > n || (!taken && h->stage < HTTP_COMPLETE)) abort();
        at += taken;
    }
    return at;
}

static void check(const struct http_request *r) {
    if (r->num_headers > HTTP_MAX_HEADERS || r->body.len > MAX_BODY ||
        strlen(r->path) > HTTP_MAX_URL)
        abort();
    if (*r->path != '/' && strcmp(r->path, "*")) abort();
    for (int i = 0; i < r->num_headers; i++)
        if (!*r->headers[i].name || strpbrk(r->headers[i].name, " \t\r\n:") ||
            strpbrk(r->headers[i].value, "\r\n"))
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct http whole, pieces;
    char *copy = malloc(len + 1);
    if (len) memcpy(copy, data, len);
    const size_t a = feed(&whole, copy, len, len ? len : 1);
    const size_t b = feed(&pieces, copy, len, len ? 1 + data[0] % 7 : 1);
    if (whole.stage != pieces.stage) abort();
    if (whole.stage == HTTP_COMPLETE) {
        const struct http_request *p = whole.request, *q = pieces.request;
        check(p);
        if (a != b || strcmp(p->path, q->path) || p->num_headers != q->num_headers ||
            p->body.len != q->body.len || memcmp(p->body.data, q->body.data, p->body.len))
            abort();
    }
    http_free(&whole);
    http_free(&pieces);
    free(copy);
    return 0;
}
