// The checkpoints of a run directory: step-NNNNNNNNNN.ckpt.
#pragma once
#include <stdint.h>

#define CHECKPOINT_MAGIC "RWKVCKPT" // of base/sections.h

// The steps there are, newest first, at most max of them; returns how many.
int checkpoint_list(int64_t *steps, int max, const char *dir);
char *checkpoint_path(const char *dir, int64_t step); // freed by the caller
