#include "serve/secret.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

void secret_random(void *out, size_t len) {
    if (getrandom(out, len, 0) != (ssize_t)len) die("the system gives no random numbers");
}

void secret_id(char *out, size_t cap, const char *prefix) {
    unsigned char bytes[16];
    secret_random(bytes, sizeof bytes);
    int at = snprintf(out, cap, "%s", prefix);
    for (size_t i = 0; i < sizeof bytes; i++)
        at += snprintf(out + at, cap - (size_t)at, "%02x", bytes[i]);
}

bool secret_equal(const char *given, const char *secret) {
    const size_t given_len = strlen(given), len = strlen(secret);
    volatile unsigned char differs = given_len != len;
    for (size_t i = 0; i < given_len; i++)
        differs |= (unsigned char)(given[i] ^ secret[len ? i % len : 0]);
    return !differs && len;
}
