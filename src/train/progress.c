#include "train/progress.h"

#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

void progress_line_start(struct progress_line *p, int64_t first, int64_t last, int64_t every,
                         enum progress_look look) {
    const double now = clock_s();
    *p = (struct progress_line){.first = first,
                                .last = last,
                                .every = every > 0 ? every : 1,
                                .start_s = now,
                                .tty = look == PROGRESS_REDRAWN && isatty(2) == 1,
                                .silent = look == PROGRESS_SILENT};
}

double progress_line_elapsed(const struct progress_line *p) {
    return clock_s() - p->start_s;
}

void progress_line_begin(struct progress_line *p) {
    p->step_s = clock_s();
}

static void duration(char *out, size_t cap, double seconds) {
    const long s = lround(seconds);
    if (s >= 86400)
        snprintf(out, cap, "%ldd %02ldh", s / 86400, s % 86400 / 3600);
    else if (s >= 3600)
        snprintf(out, cap, "%ldh %02ldm", s / 3600, s % 3600 / 60);
    else
        snprintf(out, cap, "%ld:%02ld", s / 60, s % 60);
}

void progress_line_step(struct progress_line *p, int64_t step, int64_t tokens, double loss,
                        double lr, double val_loss) {
    const double now = clock_s(), speed = (double)tokens / (now - p->step_s + 1e-9);
    p->tokens_per_s = p->tokens_per_s > 0 ? 0.9 * p->tokens_per_s + 0.1 * speed : speed;
    p->step_s = now;
    if (p->silent) return;
    if (p->tty ? now - p->shown_s < 0.1 && step != p->last : step % p->every && step != p->last)
        return;
    char eta[32], val[32] = "";
    duration(eta, sizeof eta, (double)((p->last - step) * tokens) / p->tokens_per_s);
    if (!isnan(val_loss)) snprintf(val, sizeof val, "  val %.4f", val_loss);
    fprintf(stderr, "%sstep %lld/%lld  loss %.4f%s  lr %.3g  %.0f tok/s  ETA %s%s",
            p->tty ? "\r" : "", (long long)step, (long long)p->last, loss, val, lr, p->tokens_per_s,
            eta, p->tty ? "\x1b[K" : "\n");
    fflush(stderr);
    p->shown = p->tty;
    p->shown_s = now;
}

void progress_line_clear(struct progress_line *p) {
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    p->shown = false;
}
