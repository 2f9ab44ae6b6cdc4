// Counter-based random numbers: a value is a pure function of (seed, stream, index), so any thread
// can draw any element, in any order, and get the same. Philox 4x32-10 (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include <stdint.h>

// Four independent 32-bit words.
void rng_block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index);

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); // [0, 1), 53 bits
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);  // mean 0, variance 1
