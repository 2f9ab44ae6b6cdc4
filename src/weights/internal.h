// What the readers and writers of the formats share.
#pragma once
#include "weights/weights.h"

#include "base/arena.h"
#include "base/file.h"

struct weights {
    char *path;
    const char *format;
    struct file file;
    struct arena arena; // names and metadata
    struct weights_tensor *tensors;
    size_t count, cap;
    size_t *index; // open-addressed table of names: position + 1, 0 empty
    size_t index_size;
    struct weights_note *notes; // in the arena
    size_t num_notes;
};

// Adds a tensor whose dtype, dims and data are set, under a copy of `name` without its prefix;
// refuses names that are taken, too long or not printable, and too many tensors.
int weights_add(struct weights *w, const struct weights_tensor *t, const char *name,
                size_t name_len, struct error *err);

int safetensors_read(struct weights *w, struct error *err);
int pth_read(struct weights *w, struct error *err);
int gguf_read(struct weights *w, struct error *err);
int safetensors_write(const char *path, const struct weights_source *sources, size_t count,
                      struct error *err);
int pth_write(const char *path, const struct weights_source *sources, size_t count,
              struct error *err);

// Product of dims, or -1 if it overflows or ndim is too large.
int shape_count(size_t *out, int ndim, const size_t *dim);

// Sizes and offsets from here on go into zip64 fields, 0xffffffff; tests lower it.
extern uint64_t pth_zip64_from;

// A stored member of a zip archive.
struct zip_member {
    const char *name; // not NUL-terminated
    size_t name_len;
    const uint8_t *data;
    size_t len;
};

// Lists the members of an archive in memory, sorted by zip_order; `members` is freed by the caller.
// Compressed, encrypted and multi-disk archives are refused, two members of one name, names that
// climb out of a folder, and any member whose two headers disagree.
int zip_read(struct zip_member **members, size_t *count, const uint8_t *data, size_t len,
             struct error *err);
int zip_order(const void *a, const void *b); // by name, for bsearch

// What unpickling torch's checkpoint says of one tensor.
struct pickled_tensor {
    const char *name; // not NUL-terminated
    size_t name_len;
    const char *storage; // the key of the record "<top>/data/<key>"
    size_t storage_len;
    enum dtype dtype;
    size_t storage_count; // elements
    size_t offset;        // elements
    int ndim;
    size_t dim[WEIGHTS_MAX_DIMS], stride[WEIGHTS_MAX_DIMS];
};

// Runs the subset of pickle that torch.save of a flat state dict needs and refuses everything else
// by name. `tensors` is freed by the caller; texts point into `data`.
int pickle_read(struct pickled_tensor **tensors, size_t *count, const uint8_t *data, size_t len,
                struct error *err);
