// Keys and identifiers that nobody can guess.
#pragma once
#include <stdbool.h>
#include <stddef.h>

void secret_random(void *out, size_t len);                 // from the system
void secret_id(char *out, size_t cap, const char *prefix); // prefix and 32 hex digits
// Whether two texts are equal, in a time that tells nothing but the length of `given`.
bool secret_equal(const char *given, const char *secret);
