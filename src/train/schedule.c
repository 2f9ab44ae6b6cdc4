#include "train/schedule.h"

#include <math.h>

double schedule_progress(const struct schedule *s, int64_t step) {
    const double warm = (double)s->warmup_steps * (double)s->tokens_per_step;
    const double span = (double)s->exit_tokens - warm;
    if (span <= 0) return step >= s->warmup_steps ? 1 : 0;
    const double p = ((double)step * (double)s->tokens_per_step - warm) / span;
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

double schedule_lr(const struct schedule *s, int64_t step) {
    const double f = s->lr_final / s->lr_init, p = schedule_progress(s, step);
    double lr = s->lr_init * ((0.5 + f / 2) + (0.5 - f / 2) * cos(3.14159265358979323846 * p));
    if (step < s->warmup_steps) lr *= 0.01 + 0.99 * (double)step / (double)s->warmup_steps;
    return lr;
}
