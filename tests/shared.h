// The test vectors that lie beside a checkout, in ../shared (RWKV_SHARED names another place). They
// are no part of the project: a test that wants them is skipped, loudly, where they are absent.
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// The backend that model tests run on, "cpu" unless RWKV_TEST_BACKEND names another one.
static inline const char *test_backend(void) {
    const char *name = getenv("RWKV_TEST_BACKEND");
    return name ? name : "cpu";
}

static inline const char *shared_dir(void) {
    const char *dir = getenv("RWKV_SHARED");
    return dir ? dir : "../shared";
}

// Puts "<shared>/<name>" at out and says whether it is there; if not, prints a SKIP line.
static inline bool shared_path(char *out, size_t cap, const char *name) {
    snprintf(out, cap, "%s/%s", shared_dir(), name);
    if (access(out, R_OK) == 0) return true;
    printf("SKIP %s: %s is absent\n", name, out);
    return false;
}
