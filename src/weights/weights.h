// Named tensors in files: .safetensors, torch's .pth and llama.cpp's .gguf, read without running
// anything and written so that others read them. Knows nothing of models, but for GGUF's own names
// and shapes of RWKV-7's tensors: behind this door they are the official ones.
#pragma once
#include "backend/dtype.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum { WEIGHTS_MAX_DIMS = 8, WEIGHTS_MAX_TENSORS = 65536, WEIGHTS_MAX_NAME = 256 };

// A tensor in a mapped file. Elements are little-endian and may be strided (pth).
// How a GGUF file may hold numbers besides: blocks of 32 with a scale.
enum weights_blocks { BLOCKS_NONE, BLOCKS_Q8_0, BLOCKS_Q4_0 };

struct weights_tensor {
    const char *name;
    enum dtype dtype;                                       // DT_F64, DT_F32, DT_BF16 or DT_F16
    int ndim;                                               // 0: a scalar
    size_t dim[WEIGHTS_MAX_DIMS], stride[WEIGHTS_MAX_DIMS]; // in elements
    size_t count;
    const uint8_t *data;        // of element (0,0,…); every element lies inside the file
    enum weights_blocks blocks; // if any: what they stand for, DT_F32 holds exactly
};

// A read-only open file; tensors live until weights_close. Reading is thread-safe.
struct weights;

// By content, not by name. A "_forward_module." prefix (DeepSpeed) is stripped. Everything else
// that people try (mpk, git-lfs pointers, web pages, …) is refused with what to do about it.
// Names are unique, printable UTF-8 and at most WEIGHTS_MAX_NAME bytes.
int weights_open(struct weights **out, const char *path, struct error *err);
void weights_close(struct weights *w); // NULL is fine

const char *weights_path(const struct weights *w);
const char *weights_format(const struct weights *w); // "safetensors", "pth" or "gguf"
size_t weights_count(const struct weights *w);
const struct weights_tensor *weights_at(const struct weights *w, size_t i); // in the file's order
const struct weights_tensor *weights_find(const struct weights *w, const char *name); // or NULL

// What a safetensors or GGUF file says about itself, in the file's order; none in a pth.
struct weights_note {
    const char *key, *value;
};
const struct weights_note *weights_notes(const struct weights *w, size_t *count);

// Whether the file was cut short since it was opened: what was read of it may be zeros.
bool weights_shrank(const struct weights *w);

// All elements, row-major, converted: `count` of type `to`, a float type.
void weights_read(const struct weights_tensor *t, enum dtype to, void *out);

// The elements themselves, where they lie in the file row-major, aligned and as `dtype`; else NULL.
const void *weights_in_place(const struct weights_tensor *t);

// Before and after all of a tensor is read: its pages are wanted at once, or no longer. They stay
// in the system's cache either way; only the program's memory is smaller for it.
void weights_want(const struct weights_tensor *t);
void weights_drop(const struct weights_tensor *t);

// How a tensor is stored: "bf16", "q8_0", "q4_0".
const char *weights_storage(const struct weights_tensor *t);

// "(65536,768)"; the text is cut to fit.
void weights_shape_text(char *out, size_t cap, int ndim, const size_t *dim);

// ---- writing -----------------------------------------------------------------------------------

struct weights_source {
    const char *name;
    enum dtype dtype; // stored as; float types only
    int ndim;
    size_t dim[WEIGHTS_MAX_DIMS];
    // Puts all elements, row-major, in `dtype`, at `out`.
    void (*read)(const struct weights_source *s, void *out);
    const void *context; // for read
};

// .safetensors, .pth or .gguf by extension; beside and renamed. The .pth loads with torch.load, the
// .gguf (without a vocabulary) with llama.cpp.
int weights_write(const char *path, const struct weights_source *sources, size_t count,
                  struct error *err);

// What a GGUF file carries beside the numbers.
struct weights_gguf {
    // Token `id`'s bytes, *len 0 where it has none; ids below `tokens`. NULL: no vocabulary.
    const char *(*token)(const void *context, int32_t id, size_t *len);
    const void *context;
    int tokens;
    enum weights_blocks blocks; // for the large matrices; what cannot be or should not be stays as
                                // in the sources
};

// The tensors of an RWKV-7 model under official names. Vectors and the decay's LoRA become f32.
int weights_write_gguf(const char *path, const struct weights_source *sources, size_t count,
                       const struct weights_gguf *extra, struct error *err);
