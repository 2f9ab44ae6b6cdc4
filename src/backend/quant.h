// Numbers as small integers with a scale for each group of neighbours in k: the meaning that every
// backend shares. All arithmetic is in float and in a fixed order, so that all agree on every bit.
#pragma once
#include "backend/dtype.h"
#include <stddef.h>
#include <stdint.h>

// A weight is scale · (q - zero), zero 128 or 8; its inputs are scale · q, |q| ≤ 127, in groups of
// the same length.
enum { QUANT_MAX_GROUP = 64 };

size_t quant_group(enum dtype t); // 64 for DT_INT8, 32 for DT_INT4
int quant_zero(enum dtype t);

// Up to a group of weights; n past the matrix's edge is for the caller to fill with zeros. Returns
// the scale, which bf16 holds exactly. int8: the largest magnitude becomes 127. int4: of several
// scales around max/7 and -max/8 the one with the least squared error.
float quant_weights(uint8_t *q, const float *x, size_t n, enum dtype t);

// Up to a group of inputs: the largest magnitude becomes 127.
float quant_inputs(int8_t *q, const float *x, size_t n);
