// Products of int8 and int4 weights with inputs that become integers (backend/quant.h), on the
// tensor cores' integer path: 8 bits by 8, sums of a group exact in 32. A sum becomes f32 times
// both scales where its group ends, and groups are added up in the order of k: what few rows
// (integers.cu) and many (integers_many.cu) share.
//
// Weights lie as outputs side by side, four of them a word; the tensor cores want four k a word.
// Half an instruction a weight turns them. What a weight is more than it stands for, 128 or 8, is
// taken off the sum at once: so many times the sum of the inputs.
#pragma once
#include "few.cuh"

namespace {

// k that share a scale, and so a sum of their own.
__host__ __device__ constexpr int group_of(int type) {
    return type == T_INT8 ? 64 : 32;
}

// What an integer weight is more than it stands for.
__host__ __device__ constexpr int zero_of(int type) {
    return type == T_INT8 ? 128 : 8;
}
// Words of a lane's four k.
__host__ __device__ constexpr int pieces_of(int type) {
    return type == T_INT8 ? 4 : 2;
}

enum { DEPTH = 64 };
// Of a row's group of inputs: their scale, and what sums begin with.
struct group_inputs {
    float step;
    int from;
};

// Groups in DEPTH of k.
template <int TYPE> constexpr int groups_of = DEPTH / group_of(TYPE);

// Inputs as integers: (R, depths, 64) of them, in each 64 the words that lane 4g + t wants side by
// side, those of its four steps; then (depths · groups, R) of group_inputs.
struct integer_rows {
    int8_t *q;
    group_inputs *groups;
    int depths;

    __device__ __host__ integer_rows(const product_args &p)
        : q((int8_t *)p.scratch), depths((int)((p.K + DEPTH - 1) / DEPTH)) {
        groups = (group_inputs *)(q + p.R * (size_t)depths * DEPTH);
    }
};

// A sum of integers that began with this is one's last bits, as f32: up to 2^22.
enum { AS_FLOAT = 0x4b400000 };
__device__ inline float float_of(int sum) {
    return __uint_as_float((uint32_t)sum) - 12582912.0f;
}

// Four outputs side by side of four k, as words lie in memory (int4: two k a word), become a word
// of four k for each output.
template <int TYPE, int PIECES>
__device__ void turn(uint32_t (&out)[4], const uint32_t (&w)[PIECES]) {
    uint32_t k[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        k[i] = TYPE == T_INT8 ? w[i % PIECES] : w[i / 2 % PIECES] >> 4 * (i & 1) & 0x0f0f0f0fu;
    const uint32_t low[] = {__byte_perm(k[0], k[1], 0x5140), __byte_perm(k[2], k[3], 0x5140)},
                   high[] = {__byte_perm(k[0], k[1], 0x7362), __byte_perm(k[2], k[3], 0x7362)};
    out[0] = __byte_perm(low[0], low[1], 0x5410);
    out[1] = __byte_perm(low[0], low[1], 0x7632);
    out[2] = __byte_perm(high[0], high[1], 0x5410);
    out[3] = __byte_perm(high[0], high[1], 0x7632);
}

// The largest magnitude's bits, which are those of something larger where one is not a number.
__device__ inline uint32_t magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}

// 127 of the largest magnitude, or nothing.
__device__ inline float steps_of(uint32_t most) {
    return most && most < 0x7f800000u ? 254.0f / __uint_as_float(most) * 0.5f : 0;
}
// What gives inputs back. Not a number where one is not.
__device__ inline float step_of(uint32_t most) {
    return most < 0x7f800000u ? __uint_as_float(most) / 127.0f : NAN;
}

// |x| · by to the nearest integer, halves up, in the lowest seven bits.
__device__ inline uint32_t integer_of(float x, float by) {
#ifdef CUDA_EMU
    return (uint32_t)((double)(fabsf(x) * by) + 0.5);
#else
    return __float_as_uint(__fadd_rz(__fmul_rn(fabsf(x), by), 4194304.5f)) >> 1; // steps of a half
#endif
}
// All ones in the lowest byte if x is negative, in the next one if y is. (Of prmt's own way to
// copy signs nvcc 13.0 once forgot x.)
__device__ inline uint32_t signs(float x, float y) {
    const auto all = [](float x) { return (uint32_t)((int32_t)__float_as_uint(x) >> 31); };
    return __byte_perm(all(x), all(y), 0x40);
}
// sum and the four bytes, which have signs.
__device__ inline int sum_of_bytes(uint32_t bytes, int sum) {
#ifdef CUDA_EMU
    for (int i = 0; i < 32; i += 8) sum += (int8_t)(bytes >> i);
    return sum;
#else
    return __dp4a((int)bytes, 0x01010101, sum);
#endif
}
// Bytes of magnitudes m, negative where the same byte of `minus` is all ones. No byte borrows.
__device__ inline uint32_t with_signs(uint32_t m, uint32_t minus) {
    return (m & ~minus) | (((0x80808080u - m) ^ 0x80808080u) & minus);
}
__device__ inline uint32_t four_integers(float4 x, float by) {
    const uint32_t low = __byte_perm(integer_of(x.x, by), integer_of(x.y, by), 0x40),
                   high = __byte_perm(integer_of(x.z, by), integer_of(x.w, by), 0x40),
                   minus = __byte_perm(signs(x.x, x.y), signs(x.z, x.w), 0x5410);
    return with_signs(__byte_perm(low, high, 0x5410) & 0x7f7f7f7fu, minus);
}

} // namespace
