// Copies between host and device that nobody waits for. A few words are a kernel's arguments. More
// is put into pinned memory first, piece after piece of a ring, so that the copy can wait for its
// turn while the caller goes on; a piece is used again when the copies out of it are done. What is
// fetched goes its own way beside the kernels that come next, and lands in pinned memory too.
#include "backend/cuda/internal.h"

#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// A piece lasts for many steps, if they upload more than a few words.
enum { PIECES = 4, PIECE_BYTES = 1 << 20 };

struct transfer {
    cudaStream_t stream; // of fetches
    cudaEvent_t reached; // what the next fetch waits for
    char *ring;          // pinned: pieces
    cudaEvent_t left[PIECES];
    int piece;
    size_t used; // bytes of the piece
    struct fetch {
        char *pinned;
        size_t room, bytes;
        void *dst;
        cudaEvent_t arrived;
    } fetch[MAX_FETCHES];
    unsigned begun, ended; // fetches
};

static cudaError_t event_create(cudaEvent_t *e) {
    return cudaEventCreateWithFlags(e, cudaEventDisableTiming);
}

int transfer_open(struct transfer **out, struct error *err) {
    struct transfer *t = *out = mem_zero(1, sizeof *t);
    cudaError_t e = cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = event_create(&t->reached);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&t->ring, (size_t)PIECES * PIECE_BYTES);
    for (int i = 0; e == cudaSuccess && i < PIECES; i++) e = event_create(&t->left[i]);
    for (int i = 0; e == cudaSuccess && i < MAX_FETCHES; i++)
        e = event_create(&t->fetch[i].arrived);
    if (e == cudaSuccess) return 0;
    return fail(err, E_DEVICE, "pinned memory for uploads: %s", cudaGetErrorString(e));
}

void transfer_close(struct transfer *t) {
    if (!t) return;
    if (t->stream) cudaStreamSynchronize(t->stream);
    for (int i = 0; i < MAX_FETCHES; i++) {
        if (t->fetch[i].pinned) cudaFreeHost(t->fetch[i].pinned);
        if (t->fetch[i].arrived) cudaEventDestroy(t->fetch[i].arrived);
    }
    for (int i = 0; i < PIECES; i++)
        if (t->left[i]) cudaEventDestroy(t->left[i]);
    if (t->ring) cudaFreeHost(t->ring);
    if (t->reached) cudaEventDestroy(t->reached);
    if (t->stream) cudaStreamDestroy(t->stream);
    free(t);
}

// ---- uploads -----------------------------------------------------------------------------------

// Room for so many bytes, at most a piece.
static char *ring_take(struct cuda *c, size_t bytes) {
    struct transfer *t = c->transfer;
    if (t->used + bytes > PIECE_BYTES) {
        cuda_failed(c, cudaEventRecord(t->left[t->piece], c->stream), "copying to the device");
        t->piece = (t->piece + 1) % PIECES;
        t->used = 0;
        cuda_failed(c, cudaEventSynchronize(t->left[t->piece]), "copying to the device");
    }
    char *at = t->ring + (size_t)t->piece * PIECE_BYTES + t->used;
    t->used += (bytes + 63) / 64 * 64;
    return at;
}

void cuda_upload(struct backend *be, struct tensor dst, const void *src) {
    struct cuda *c = cuda_of(be);
    const size_t bytes = tensor_bytes(dst);
    cuda_enter(c);
    cuda_flush(c);
    if (!bytes) return;
    // From kernel to kernel there is no other engine on the way. Kernels read what the host has
    // written before they wait for the one ahead of them, as after a copy they may.
    if (k_put(c->queue, dev(dst), src, bytes)) {
        queue_settle(c->queue);
        cuda_flush(c);
        return;
    }
    // More than a piece stays where it is: the runtime has copied it when it returns.
    if (bytes <= PIECE_BYTES) src = memcpy(ring_take(c, bytes), src, bytes);
    cuda_failed(c, cudaMemcpyAsync(dev(dst), src, bytes, cudaMemcpyHostToDevice, c->stream),
                "copying to the device");
}

// ---- fetches -----------------------------------------------------------------------------------

static int fetch_room(struct cuda *c, struct fetch *f, size_t bytes) {
    if (bytes <= f->room) return 0;
    if (f->pinned) cudaFreeHost(f->pinned);
    f->pinned = NULL;
    f->room = 0;
    if (cuda_failed(c, cudaMallocHost((void **)&f->pinned, 2 * bytes), "pinned memory")) return -1;
    f->room = 2 * bytes;
    return 0;
}

void cuda_fetch(struct backend *be, void *dst, struct tensor src) {
    struct cuda *c = cuda_of(be);
    struct transfer *t = c->transfer;
    struct fetch *f = &t->fetch[t->begun++ % MAX_FETCHES];
    assert(t->begun - t->ended <= MAX_FETCHES);
    f->dst = dst;
    f->bytes = tensor_bytes(src);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaGetLastError(), "starting a kernel");
    if (fetch_room(c, f, f->bytes)) return;
    static const char doing[] = "copying from the device";
    cuda_failed(c, cudaEventRecord(t->reached, c->stream), doing);
    cuda_failed(c, cudaStreamWaitEvent(t->stream, t->reached, 0), doing);
    cuda_failed(c,
                cudaMemcpyAsync(f->pinned, dev(src), f->bytes, cudaMemcpyDeviceToHost, t->stream),
                doing);
    cuda_failed(c, cudaEventRecord(f->arrived, t->stream), doing);
}

int cuda_fetched(struct backend *be, struct error *err) {
    struct cuda *c = cuda_of(be);
    struct transfer *t = c->transfer;
    assert(t->begun != t->ended);
    struct fetch *f = &t->fetch[t->ended++ % MAX_FETCHES];
    cuda_enter(c);
    cuda_failed(c, cudaEventSynchronize(f->arrived), "running kernels");
    if (cuda_trouble(c, err)) {
        memset(f->dst, 0xff, f->bytes); // token -1: nobody takes it for a result
        return -1;
    }
    memcpy(f->dst, f->pinned, f->bytes);
    return 0;
}
