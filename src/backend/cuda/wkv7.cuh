// The two ways through the recurrence: token by token (wkv7.cu), and for heads of 64 in chunks on
// tensor cores (wkv7_chunk.cu, wkv7_chunk_bwd.cu). What is left of a span behind its whole chunks
// goes token by token, so that a span gives the same bits in pieces that end where chunks do.
#pragma once
#include "device.cuh"

#include "kernels.h"

enum { WKV7_CHUNK = 16 };

__host__ __device__ static inline bool chunked(int N) {
    return N == 64;
}

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a);
void wkv7_chunk_backward(struct queue *q, const wkv7_args &a);
