// A histogram of positive values with fixed memory and a relative error under 1 %: for latencies.
#pragma once
#include <stdint.h>

enum { HIST_BUCKETS = 64 * 128 };

// Zero-initialise. One writer.
struct hist {
    uint64_t count, bucket[HIST_BUCKETS];
    double sum, min, max;
};

void hist_add(struct hist *h, uint64_t value);
void hist_merge(struct hist *into, const struct hist *from);
double hist_quantile(const struct hist *h, double q); // q in [0, 1]; 0 when empty
