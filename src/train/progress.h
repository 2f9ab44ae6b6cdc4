// The line that tells how far training is: rewritten in place on a terminal, one line every so
// often elsewhere.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum progress_look {
    PROGRESS_REDRAWN, // in place on a terminal
    PROGRESS_LINES,   // even there
    PROGRESS_SILENT,
};

struct progress_line {
    int64_t first, last, every; // steps
    double start_s, shown_s, step_s;
    double tokens_per_s; // smoothed over the last steps
    bool tty, shown, silent;
};

void progress_line_start(struct progress_line *p, int64_t first, int64_t last, int64_t every,
                         enum progress_look look);
// Before the first step, and after what happens between steps (validation, saving): that is not
// their speed.
void progress_line_begin(struct progress_line *p);
// When a step of so many tokens is over; val_loss NaN: none yet.
void progress_line_step(struct progress_line *p, int64_t step, int64_t tokens, double loss,
                        double lr, double val_loss);
// Before anything else is printed.
void progress_line_clear(struct progress_line *p);
double progress_line_elapsed(const struct progress_line *p);
