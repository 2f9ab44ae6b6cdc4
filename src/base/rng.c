#include "base/rng.h"

#include <math.h>

void rng_block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t x[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream,
                     (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * x[0], p1 = (uint64_t)0xCD9E8D57 * x[2];
        const uint32_t y1 = x[1], y3 = x[3];
        x[0] = (uint32_t)(p1 >> 32) ^ y1 ^ k0;
        x[1] = (uint32_t)p1;
        x[2] = (uint32_t)(p0 >> 32) ^ y3 ^ k1;
        x[3] = (uint32_t)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    for (int i = 0; i < 4; i++) out[i] = x[i];
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t b[4];
    rng_block(b, seed, stream, index);
    return (uint64_t)b[1] << 32 | b[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

// Box–Muller; 1 - u keeps the logarithm away from 0.
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t b[4];
    rng_block(b, seed, stream, index);
    const double u = (double)(((uint64_t)b[1] << 32 | b[0]) >> 11) * 0x1p-53;
    const double v = (double)(((uint64_t)b[3] << 32 | b[2]) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v);
}
