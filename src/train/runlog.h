// What a run leaves for people: log.jsonl (only what is reproducible: a resumed run writes the same
// bytes), speed.jsonl (what is not), loss.svg.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct error;

struct runlog; // NULL keeps nothing: of several processes one writes

// Opens the logs in a run directory. log_bytes: what of log.jsonl belongs to the run so far (0: a
// new run); what follows, left by steps that will be taken again, is cut off.
int runlog_open(struct runlog **out, const char *dir, uint64_t log_bytes, struct error *err);
void runlog_close(struct runlog *l); // NULL is fine

uint64_t runlog_bytes(const struct runlog *l); // of log.jsonl, for the checkpoint

// Steps are counted from 1: "after this step".
void runlog_step(struct runlog *l, int64_t step, int64_t tokens, double loss, double lr,
                 double grad_norm);
void runlog_skipped(struct runlog *l, int64_t step, uint64_t first_sample, double loss,
                    double grad_norm);
void runlog_validation(struct runlog *l, int64_t step, double loss, double bits_per_byte);
void runlog_speed(struct runlog *l, int64_t step, double tokens_per_s, double elapsed_s);

// Draws the losses logged so far. -1: could not be written.
int runlog_plot(const struct runlog *l, const char *title, struct error *err);
