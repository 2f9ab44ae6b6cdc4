// The default backend: threads, packed weights, and inner loops chosen for this processor.
#pragma once
#include "backend/backend.h"

// num_threads 0: all processors this process may use. RWKV_ISA=v1|v3|v4|bf16 forces a lower level.
int cpu_open(struct backend **out, int num_threads, struct error *err);

// The level in use, e.g. "x86-64-v4".
const char *cpu_isa(const struct backend *be);
