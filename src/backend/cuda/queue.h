// What is to be done in the device, in order. Calls are written down and go out together when
// somebody waits, uploads, or the list is long. A list that has come before, byte by byte, is a
// CUDA graph: one launch for a whole step of decoding or of training, whoever wrote it down.
#pragma once
#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct queue;

// graphs false: calls always go out one by one. overlap: a kernel may be brought to the device
// while the one before it runs (compute capability 9.0 on).
struct queue *queue_create(cudaStream_t stream, int graphs, int overlap);
// Whether the kernel that is written down now may; asked once for each.
int queue_overlaps(struct queue *q);
// The next one begins when all before it have ended: something was written that kernels take to
// have been there long before.
void queue_settle(struct queue *q);
// Whether kernels may overlap from here on: with few rows, or a token of each sequence, they are
// short, and most of their time is on the way; else the next one's blocks settle where there
// happens to be room first.
void queue_few(struct queue *q, int few);
void queue_destroy(struct queue *q); // NULL is fine; what was written down is dropped
// play(payload, stream) is called later, perhaps more than once, perhaps never again for the same
// bytes: all that it needs is in them. They are copied; 8-byte aligned where play sees them.
void queue_add(struct queue *q, void (*play)(const void *payload, cudaStream_t stream),
               const void *payload, size_t bytes);
// A second stream, for what other devices have a part in and graphs must not. queue_aside: what is
// put on it comes after all that was written down, which goes out; what is written down from here
// on does not wait for it until queue_join, which sends out what there is, too.
cudaError_t queue_open_side(struct queue *q);
cudaStream_t queue_aside(struct queue *q);
void queue_join(struct queue *q);
void queue_flush(struct queue *q); // failures show in cudaGetLastError

#ifdef __cplusplus
}
#endif
