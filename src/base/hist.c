#include "base/hist.h"

// Values below 128 have a bucket each; above, every power of two is cut into 128.
static int bucket_of(uint64_t v) {
    if (v < 128) return (int)v;
    const int shift = 63 - __builtin_clzll(v) - 7;
    return (shift + 1) * 128 + (int)(v >> shift & 127);
}

static double bucket_mid(int i) {
    if (i < 128) return i;
    const int shift = i / 128 - 1;
    return ((double)(128 + i % 128) + 0.5) * (double)((uint64_t)1 << shift);
}

void hist_add(struct hist *h, uint64_t value) {
    const double v = (double)value;
    if (!h->count || v < h->min) h->min = v;
    if (!h->count || v > h->max) h->max = v;
    h->count++;
    h->sum += v;
    h->bucket[bucket_of(value)]++;
}

void hist_merge(struct hist *into, const struct hist *from) {
    if (!from->count) return;
    if (!into->count || from->min < into->min) into->min = from->min;
    if (!into->count || from->max > into->max) into->max = from->max;
    into->count += from->count;
    into->sum += from->sum;
    for (int i = 0; i < HIST_BUCKETS; i++) into->bucket[i] += from->bucket[i];
}

double hist_quantile(const struct hist *h, double q) {
    if (!h->count) return 0;
    const double rank = q * (double)(h->count - 1);
    uint64_t seen = 0;
    for (int i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if ((double)seen <= rank) continue;
        const double v = bucket_mid(i);
        return v < h->min ? h->min : v > h->max ? h->max : v;
    }
    return h->max;
}
