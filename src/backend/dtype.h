// What numbers are stored as. Storage is data: code switches on it, it is never a build option.
#pragma once
#include <stddef.h>

enum dtype {
    DT_NONE,
    DT_F64,
    DT_F32,
    DT_BF16,
    DT_F16,
    DT_I64,
    DT_I32,
    DT_U16,
    DT_U8,
    DT_INT8, // weights only: blocks of integers with a scale, see backend/quant.h
    DT_INT4,
    DT_COUNT,
};

size_t dtype_size(enum dtype t);          // bytes; 0 for blocks
const char *dtype_name(enum dtype t);     // "f32", "bf16", …
enum dtype dtype_parse(const char *name); // DT_NONE: no such name

// `count` numbers from one storage to another, rounding to nearest even. Both f64, f32, bf16 or
// f16; src and dst may have any alignment and must not overlap unless they are the same and equal
// in size.
void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t count);
