// Learning rate by step, as the official trainer's callback computes it (SPEC-rwkv7 §5.3).
#pragma once
#include <stdint.h>

struct schedule {
    double lr_init, lr_final;
    int64_t warmup_steps;
    int64_t exit_tokens;     // where the cosine ends
    int64_t tokens_per_step; // over all devices and micro-batches
};

// Of step s ≥ 0: cosine from lr_init to lr_final between the end of warm-up and exit_tokens, times
// a ramp from 1 % during warm-up. Steps count from the start of training, so that a resumed run
// goes on as if it had never stopped (the official trainer warms up again).
double schedule_lr(const struct schedule *s, int64_t step);

// How far the cosine is, 0 to 1; at 1 the run is over.
double schedule_progress(const struct schedule *s, int64_t step);
