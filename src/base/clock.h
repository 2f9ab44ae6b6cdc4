// Time. Intervals come from the monotonic clock, so a jump of the wall clock disturbs nothing.
#pragma once
#include <stdint.h>

int64_t clock_ns(void); // monotonic
double clock_s(void);   // monotonic, seconds
int64_t clock_unix_ms(void);
