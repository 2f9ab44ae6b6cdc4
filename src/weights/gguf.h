// What GGUF's reader and writer share: the format's numbers, and how the tensors of its "rwkv7"
// architecture correspond to the official ones. Facts: the GGUF specification and llama.cpp's
// converter and loader.
#pragma once
#include "weights/internal.h"

enum { GGUF_ALIGNMENT = 32, GGUF_BLOCK = 32 };

// Types of the values of metadata.
enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS,
};

// Types of tensors that are read; gguf_type_name knows the others too.
enum gguf_type {
    GGUF_TYPE_F32 = 0,
    GGUF_TYPE_F16 = 1,
    GGUF_TYPE_Q4_0 = 2,
    GGUF_TYPE_Q8_0 = 8,
    GGUF_TYPE_F64 = 28,
    GGUF_TYPE_BF16 = 30,
};

const char *gguf_type_name(uint32_t type); // NULL: no such type

// How a tensor's shape here differs from the official one.
enum gguf_form {
    GGUF_SAME,   // vectors and matrices
    GGUF_ROW,    // (C) is (1,1,C)
    GGUF_HEADS,  // (C) is (H,N)
    GGUF_TURNED, // a LoRA matrix, transposed
    GGUF_FUSED,  // (6,1,1,C) is x_r, x_w, x_k, x_v, x_a and x_g, (1,1,C) each
};

struct gguf_name {
    const char *gguf, *official; // those of a layer without "blk.%d." and "blocks.%d."
    enum gguf_form form;
    bool wide; // always f32, as other programs have it: vectors and the decay's LoRA
};

// Ended by a row without names. The official name of GGUF_FUSED is that of its first part.
extern const struct gguf_name gguf_once[], gguf_layer[];
enum { GGUF_MIXES = 6 };
extern const char *const gguf_mixes[GGUF_MIXES];

// Layer 0 has no use for a value LoRA; files carry one all the same, a copy of the rate's.
bool gguf_is_dummy(const char *official, int layer);

// GGUF_BLOCK numbers with an f16 scale in front: 32 signed bytes, or 16 bytes with number k in the
// low half of byte k and number 16 + k in the high half, 8 more than it is. By enum weights_blocks.
struct gguf_blocks {
    uint32_t type, file_type; // of a tensor; of a file that has them (LLAMA_FTYPE)
    const char *name;
    size_t bytes;
    void (*read)(float *x, const uint8_t *block);
    // -1: a number is not finite, or too large for an f16 scale.
    int (*write)(uint8_t *block, const float *x);
};
extern const struct gguf_blocks gguf_blocks[];
enum weights_blocks gguf_blocks_of(uint32_t type);

// Numbers `first` to `first + count`.
void blocks_read(enum weights_blocks kind, void *out, enum dtype to, const uint8_t *data,
                 size_t first, size_t count);
// `count` is a multiple of GGUF_BLOCK. -1: see write.
int blocks_write(enum weights_blocks kind, uint8_t *data, const float *x, size_t count);
