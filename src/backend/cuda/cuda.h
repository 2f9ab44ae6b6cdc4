// NVIDIA GPUs. Ops are written down in a queue (queue.h) and go to one stream; only download and
// sync wait for it. Activations are f32.
#pragma once
#include "backend/backend.h"

// The device of this id, 0 the first of those that CUDA_VISIBLE_DEVICES shows. Without a driver or
// this device it is an error, and the program starts all the same. Large bf16 products
// go through cuBLASLt, which is loaded here. For measurements and for doubts:
//   RWKV_CUDA_GEMM=own     our own kernels do all products: a row has the same bits in any batch
//   RWKV_CUDA_GRAPHS=off   kernels are launched one by one
//   RWKV_CUDA_OVERLAP=off  a kernel comes to the device when the one before it has ended (9.0 on)
int cuda_open(struct backend **out, int device, struct error *err);
