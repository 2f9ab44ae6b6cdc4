#include "backend/cpu/kernels/kernels.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

#define DECLARE(level)                                                                             \
    extern const struct gemm_kernels gemm_kernels_##level;                                         \
    extern const struct integer_kernels integer_kernels_##level;                                   \
    extern const struct pack_kernels pack_kernels_##level;                                         \
    extern const struct row_kernels row_kernels_##level;                                           \
    extern const struct wkv7_kernels wkv7_kernels_##level;
// The products of a level, and the level that the other kernels are the same as.
#define TABLE(level, rest, text)                                                                   \
    {                                                                                              \
        text, &gemm_kernels_##level, &integer_kernels_##level, &pack_kernels_##rest,               \
            &row_kernels_##rest, &wkv7_kernels_##rest                                              \
    }

// Best first.
#if defined(__x86_64__)
DECLARE(bf16)
DECLARE(v4)
DECLARE(v3)
DECLARE(v1)
static const struct kernels levels[] = {TABLE(bf16, v4, "x86-64-v4-bf16"),
                                        TABLE(v4, v4, "x86-64-v4"), TABLE(v3, v3, "x86-64-v3"),
                                        TABLE(v1, v1, "x86-64")};

static bool runs_here(int i) {
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    const bool bf16 =
        v4 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    return i == 0 ? bf16 : i == 1 ? v4 : i == 2 ? v3 : true;
}
#else
DECLARE(v1)
static const struct kernels levels[] = {TABLE(v1, v1, "baseline")};

static bool runs_here(int i) {
    (void)i;
    return true;
}
#endif

enum { LEVELS = sizeof levels / sizeof levels[0] };

size_t wkv7_scratch(size_t N) {
    return N * N * (WKV_CHUNK + 2) + N * (WKV_CHUNK + 8);
}

const struct kernels *kernels_level(int i) {
    int seen = 0;
    for (int l = 0; l < LEVELS; l++)
        if (runs_here(l) && seen++ == i) return &levels[l];
    return NULL;
}

const struct kernels *kernels_pick(void) {
    const char *want = getenv("RWKV_ISA");
    for (int i = 0; want && kernels_level(i); i++) {
        const char *isa = kernels_level(i)->isa, *dash = strrchr(isa, '-');
        if (strcmp(isa, want) == 0 || (dash && strcmp(dash + 1, want) == 0) ||
            (strcmp(want, "v1") == 0 && !kernels_level(i + 1)))
            return kernels_level(i);
    }
    if (want) log_warn("RWKV_ISA=%s is not available here; using %s", want, kernels_level(0)->isa);
    return kernels_level(0);
}
