// The official order of training samples: a permutation of the data's windows by cubes modulo a
// prime, the same on every machine and seekable (SPEC-rwkv7 §5.4).
#pragma once
#include <stdint.h>

// The largest prime p ≡ 2 (mod 3) with p ≤ tokens/ctx - 1; 0 if there is none above 0.9·tokens/ctx.
uint64_t order_magic_prime(uint64_t tokens, uint64_t ctx);

// First token of sample ii ≥ 1: (⌊p(√5-1)/2⌋ · ii³ mod p) · ctx. Reads ctx+1 tokens from there.
uint64_t order_offset(uint64_t magic_prime, uint64_t ctx, uint64_t ii);
