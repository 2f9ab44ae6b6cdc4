#include "data/order.h"

#include <math.h>
#include <stdbool.h>

static bool is_prime(uint64_t n) {
    if (n < 4) return n > 1;
    if (n % 2 == 0) return false;
    for (uint64_t d = 3; d <= n / d; d += 2)
        if (n % d == 0) return false;
    return true;
}

uint64_t order_magic_prime(uint64_t tokens, uint64_t ctx) {
    const uint64_t windows = tokens / ctx;
    for (uint64_t p = windows ? windows - 1 : 0; p > 1; p--)
        if (p % 3 == 2 && is_prime(p)) return (double)p > 0.9 * (double)windows ? p : 0;
    return 0;
}

static uint64_t times_mod(uint64_t a, uint64_t b, uint64_t p) {
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b % p);
}

uint64_t order_offset(uint64_t magic_prime, uint64_t ctx, uint64_t ii) {
    const uint64_t p = magic_prime, f = (uint64_t)((double)p * (sqrt(5) - 1) / 2);
    const uint64_t i = ii % p, cube = times_mod(times_mod(i, i, p), i, p);
    return times_mod(f, cube, p) * ctx;
}
