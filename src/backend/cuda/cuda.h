// NVIDIA GPUs. Everything is queued on one stream; only download and sync wait. Activations are
// f32.
#pragma once
#include "backend/backend.h"

// The first device there is (CUDA_VISIBLE_DEVICES chooses); num_threads says nothing here. Without
// a driver or a device this is an error, and the program starts all the same. Large bf16 products
// go through cuBLASLt, which is loaded here; RWKV_CUDA_GEMM=own keeps to our own kernels, whose
// rows have the same bits in any batch, however large. RWKV_CUDA_GRAPHS=off launches kernels one by
// one.
int cuda_open(struct backend **out, int num_threads, struct error *err);
