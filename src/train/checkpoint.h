// A run's state on disk: one file of checksummed sections, written beside and renamed. Numbers are
// in the machine's own byte order, which the header states.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct error;

enum { SECTION_NAME = 16, MAX_SECTIONS = 16 };

struct section {
    char name[SECTION_NAME]; // NUL-padded
    const void *data;
    uint64_t bytes;
};

// Writes all sections; on failure nothing is replaced.
int checkpoint_write(const char *path, const struct section *sections, int count,
                     struct error *err);

// A mapped checkpoint. checkpoint_open verifies the header; checkpoint_verify every section's
// checksum. Sections stay valid until closed.
struct checkpoint;
int checkpoint_open(struct checkpoint **out, const char *path, struct error *err);
int checkpoint_verify(const struct checkpoint *c, struct error *err);
const struct section *checkpoint_find(const struct checkpoint *c, const char *name); // or NULL
int checkpoint_count(const struct checkpoint *c);
const struct section *checkpoint_at(const struct checkpoint *c, int i);
void checkpoint_close(struct checkpoint *c); // NULL is fine

// Checkpoints of a run directory are named step-NNNNNNNNNN.ckpt. The steps there are, newest first,
// at most max of them; returns how many.
int checkpoint_list(int64_t *steps, int max, const char *dir);
char *checkpoint_path(const char *dir, int64_t step); // freed by the caller
