// The meaning of every op: plain loops, as the formula reads, in float and in double. Sums are
// kept in double. Slow on purpose; other backends are judged by it.
#pragma once
#include "backend/backend.h"

int ref_f32_open(struct backend **out, int num_threads, struct error *err);
int ref_f64_open(struct backend **out, int num_threads, struct error *err);
