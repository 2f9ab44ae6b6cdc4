// A file of named, checksummed sections, written beside and renamed: checkpoints and states.
// Numbers are in the machine's own byte order, which the header states.
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

// `magic` is the kind of file, 8 bytes. On failure nothing is replaced.
int sections_write(const char *path, const char magic[8], const struct section *sections, int count,
                   struct error *err);

// A mapped file of that kind. sections_open verifies the header; sections_verify every section's
// checksum. Sections stay valid until closed.
struct sections;
int sections_open(struct sections **out, const char *path, const char magic[8], struct error *err);
int sections_verify(const struct sections *c, struct error *err);
const struct section *sections_find(const struct sections *c, const char *name); // or NULL
int sections_count(const struct sections *c);
const struct section *sections_at(const struct sections *c, int i);
void sections_close(struct sections *c); // NULL is fine
