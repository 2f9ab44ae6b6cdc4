// What a checkpoint of a run holds, and going on from one.
#pragma once
#include <stdint.h>

struct error;
struct optimizer;

// Besides parameters and moments. Everything that must agree for a run to go on as if it had never
// stopped is compared on loading.
struct progress {
    int64_t step;       // steps taken
    int64_t tokens;     // seen
    int64_t skipped;    // steps skipped by the guard
    uint64_t log_bytes; // of log.jsonl
    uint64_t seed, data_hash, vocab_hash;
    int64_t ctx, samples_per_step;
};

// Called by all processes, written by the first; the file does not tell how many they were.
int progress_save(const char *path, struct optimizer *o, const struct progress *p,
                  struct error *err);

// Verifies checksums and sizes first; on failure nothing was changed. `p` holds on entry what must
// agree (seed, hashes, ctx, samples_per_step).
int progress_load(const char *path, struct optimizer *o, struct progress *p, struct error *err);

// Removes all but the newest `keep` checkpoints and those at multiples of keep_every (0: none).
void progress_prune(const char *dir, int keep, int64_t keep_every);
