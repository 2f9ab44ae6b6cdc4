// Random matrices with orthonormal rows or columns, uniformly distributed: the Q of the QR
// decomposition of a normal matrix, with R's diagonal made positive.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct pool;

// out (rows, cols) row-major: W Wᵀ = gain² I if rows ≤ cols, else Wᵀ W = gain² I. A pure function
// of (seed, stream); the threads of the pool only make it faster.
void orthogonal_fill(float *out, size_t rows, size_t cols, double gain, uint64_t seed,
                     uint64_t stream, struct pool *pool);
