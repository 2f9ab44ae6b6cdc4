// To and from the device.
#include "backend/cuda/internal.h"

#include <assert.h>
#include <string.h>

// Ordinary memory of more than 64 KB goes to the device when all before it is done, and the host
// waits meanwhile; more than the most is not worth a copy.
enum { LEAST_STAGED = 64 << 10, MOST_STAGED = 8 << 20 };

// Memory of a stage that the device has done with, or NULL.
static struct stage *stage_take(struct cuda *c, size_t bytes) {
    struct stage *s = &c->stage[c->next_stage];
    if (bytes <= LEAST_STAGED || bytes > MOST_STAGED) return NULL;
    if (!s->free && cudaEventCreateWithFlags(&s->free, cudaEventDisableTiming) != cudaSuccess) {
        s->free = NULL;
        return NULL;
    }
    cuda_failed(c, cudaEventSynchronize(s->free), "copying to the device");
    if (s->bytes < bytes) {
        if (s->data) cudaFreeHost(s->data);
        s->bytes = 0;
        if (cudaHostAlloc(&s->data, bytes, cudaHostAllocDefault) != cudaSuccess) {
            cudaGetLastError(); // then it goes as it is
            s->data = NULL;
            return NULL;
        }
        s->bytes = bytes;
    }
    c->next_stage = (c->next_stage + 1) % STAGES;
    return s;
}

// src has been copied when this returns.
void cuda_upload(struct backend *be, struct tensor dst, const void *src) {
    struct cuda *c = cuda_of(be);
    const size_t bytes = tensor_bytes(dst);
    cuda_enter(c);
    cuda_flush(c);
    if (!bytes) return;
    struct stage *s = stage_take(c, bytes);
    if (s) src = memcpy(s->data, src, bytes);
    cuda_failed(c, cudaMemcpyAsync(dev(dst), src, bytes, cudaMemcpyHostToDevice, c->stream),
                "copying to the device");
    if (s) cuda_failed(c, cudaEventRecord(s->free, c->stream), "copying to the device");
}

void cuda_download(struct backend *be, void *dst, struct tensor src) {
    struct cuda *c = cuda_of(be);
    const size_t bytes = tensor_bytes(src);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaGetLastError(), "starting a kernel");
    if (bytes)
        cuda_failed(c, cudaMemcpyAsync(dst, dev(src), bytes, cudaMemcpyDeviceToHost, c->stream),
                    "copying from the device");
    cuda_failed(c, cudaStreamSynchronize(c->stream), "running kernels");
    if (cuda_troubled(c, NULL)) memset(dst, 0xff, bytes); // NaN, or token -1: no result
}

void cuda_download_later(struct backend *be, void *dst, struct tensor src) {
    struct cuda *c = cuda_of(be);
    const int i = (c->first_reply + c->num_replies) % REPLIES;
    struct reply *r = &c->reply[i];
    assert(c->num_replies < REPLIES && tensor_bytes(src) <= REPLY_BYTES);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaGetLastError(), "starting a kernel");
    if (!c->replies)
        cuda_failed(c, cudaHostAlloc((void **)&c->replies, REPLIES * REPLY_BYTES, 0),
                    "memory for what the device tells");
    if (!r->here)
        cuda_failed(c, cudaEventCreateWithFlags(&r->here, cudaEventDisableTiming), "an event");
    r->dst = dst;
    r->bytes = tensor_bytes(src);
    c->num_replies++;
    if (c->trouble[0]) return;
    cuda_failed(c,
                cudaMemcpyAsync(c->replies + i * REPLY_BYTES, dev(src), r->bytes,
                                cudaMemcpyDeviceToHost, c->stream),
                "copying from the device");
    cuda_failed(c, cudaEventRecord(r->here, c->stream), "copying from the device");
}

int cuda_download_wait(struct backend *be, struct error *err) {
    struct cuda *c = cuda_of(be);
    const int i = c->first_reply;
    struct reply *r = &c->reply[i];
    assert(c->num_replies > 0);
    cuda_enter(c);
    c->first_reply = (i + 1) % REPLIES;
    c->num_replies--;
    if (!c->trouble[0]) cuda_failed(c, cudaEventSynchronize(r->here), "running kernels");
    if (cuda_troubled(c, err)) return -1;
    memcpy(r->dst, c->replies + i * REPLY_BYTES, r->bytes);
    return 0;
}

void transfer_close(struct cuda *c) {
    for (int i = 0; i < STAGES; i++) {
        if (c->stage[i].free) cudaEventDestroy(c->stage[i].free);
        if (c->stage[i].data) cudaFreeHost(c->stage[i].data);
    }
    for (int i = 0; i < REPLIES; i++)
        if (c->reply[i].here) cudaEventDestroy(c->reply[i].here);
    if (c->replies) cudaFreeHost(c->replies);
}
