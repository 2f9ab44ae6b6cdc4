#include "backend/host.h"

#include "base/error.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

// Memory is only promised here and comes when it is touched, so the whole is asked for first: a
// plan too large is an error now and not a death in the middle of a step.
struct buffer *host_buffer_create(struct backend *be, size_t bytes, struct error *err) {
    struct buffer *b = mem_alloc(sizeof *b);
    *b = (struct buffer){.be = be, .bytes = bytes, .host = mem_pages(bytes)};
    (void)err;
    return b;
}

void host_buffer_destroy(struct buffer *b) {
    mem_pages_free(b->host, b->bytes);
    free(b);
}

void host_upload(struct backend *be, struct tensor dst, const void *src) {
    (void)be;
    if (tensor_bytes(dst)) memcpy(tensor_host(dst), src, tensor_bytes(dst));
}

void host_download(struct backend *be, void *dst, struct tensor src) {
    (void)be;
    if (tensor_bytes(src)) memcpy(dst, tensor_host(src), tensor_bytes(src));
}

// The ops are done, and so is host_download, which is the first half.
int host_fetched(struct backend *be, struct error *err) {
    (void)be;
    (void)err;
    return 0;
}

int host_sync(struct backend *be, struct error *err) {
    (void)be;
    (void)err;
    return 0;
}

int host_wkv7_grain(const struct backend *be, int N) {
    (void)be;
    (void)N;
    return 1;
}
