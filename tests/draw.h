// Random choices of a test, the same ones for a seed: cases begin with begin_draws.
#pragma once
#include "base/rng.h"

#include <stdint.h>

static uint64_t draw_seed, draw_count;

static inline int draw(int n) { // in [0, n)
    return (int)(rng_u64(draw_seed, 7, draw_count++) % (uint64_t)n);
}

static inline void begin_draws(uint64_t seed) {
    draw_seed = seed;
    draw_count = 0;
}
