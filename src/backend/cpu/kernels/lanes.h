// Vectors of this level's width through the compilers' vector extension, and the names of its
// tables.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b)  JOIN_(a, b)
#define LEVEL(name) JOIN(name, KERNEL_LEVEL) // gemm_kernels_v4 …

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4))); // a comparison gives 0 or -1

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) {
    memcpy(p, &v, sizeof v);
}

INLINE vf splat(float x) {
    return x - (vf){0};
}

// In each lane the sum of the two products of 16-bit halves, signed.
#if defined(__AVX512BW__)
INLINE vi multiply_add_16(vu a, vu b) {
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__)
INLINE vi multiply_add_16(vu a, vu b) {
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#elif defined(__x86_64__)
INLINE vi multiply_add_16(vu a, vu b) {
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
}
#else
INLINE vi multiply_add_16(vu a, vu b) {
    return ((vi)(a << 16) >> 16) * ((vi)(b << 16) >> 16) + ((vi)a >> 16) * ((vi)b >> 16);
}
#endif

// a and b alternately: of their lower halves, of their upper halves.
#if defined(__AVX512F__)
INLINE vf zip_low(vf a, vf b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
INLINE vf zip_high(vf a, vf b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}
#elif defined(__AVX2__)
INLINE vf zip_low(vf a, vf b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
INLINE vf zip_high(vf a, vf b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
INLINE vf zip_low(vf a, vf b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
INLINE vf zip_high(vf a, vf b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// Transposes a square of LANES rows: each round of zips turns the bits of (row, column) by one.
INLINE void transpose_square(vf row[LANES]) {
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        vf next[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = zip_low(row[i], row[i + LANES / 2]);
            next[2 * i + 1] = zip_high(row[i], row[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) row[i] = next[i];
    }
}

// Lane i of the result is the sum of row[i]'s lanes, in a fixed tree; row is used up.
INLINE vf sum_rows(vf row[LANES]) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < half; i++)
            row[i] = zip_low(row[i], row[i + half]) + zip_high(row[i], row[i + half]);
    return row[0];
}

// Lanes in a fixed tree.
INLINE float sum_lanes(vf v) {
    float x[LANES];
    memcpy(x, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

// n ≤ LANES numbers; lanes that there are no numbers for are 0. With n a constant LANES this is
// load and store: bodies of loops are written once, for n, and called with both.
INLINE vf load_some(const float *p, size_t n) {
    vf v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}

INLINE void store_some(float *p, vf v, size_t n) {
    memcpy(p, &v, n * sizeof *p);
}

INLINE vf choose(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

INLINE vf magnitude(vf x) {
    return (vf)((vi)x & 0x7fffffff);
}

// e^x to 1 ulp or so: 2^n e^f, |f| ≤ ln 2 / 2, minimax polynomial (coefficients of Cephes' expf).
// inf above 88.37 (half a power of two early), 0 below -87.3 (no denormals); NaN stays NaN.
INLINE vf exp_v(vf x) {
    const float magic = 12582912.0f; // 1.5 · 2^23: adding it rounds to an integer
    const vf shifted = x * 1.44269504f + magic, n = shifted - magic;
    const vf f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.0f;
    const vf scale = (vf)(((vu)shifted - 0x4b400000u + 127u) << 23); // n from the bits
    const vf y = choose(x > 88.37f, splat(INFINITY), p * scale);
    return (vf)(~(x < -87.3f) & (vi)y);
}

INLINE vf sigmoid_v(vf x) {
    return 1.0f / (1.0f + exp_v(-x));
}

// σ and its slope σ(1-σ), which 1 - σ would lose where σ is near 1.
struct gate {
    vf value, slope;
};

INLINE struct gate gate_v(vf x) {
    const vf e = exp_v(-magnitude(x)), q = 1.0f / (1.0f + e);
    return (struct gate){.value = choose(x < 0.0f, e * q, q), .slope = e * q * q};
}

// Odd polynomial near 0, where 1 - 2/(e^{2x}+1) would cancel (coefficients of Cephes' tanhf).
INLINE vf tanh_v(vf x) {
    const vf z = x * x, size = magnitude(x);
    vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const vf near = p * z * x + x, far = 1.0f - 2.0f / (exp_v(2.0f * size) + 1.0f);
    const vf signed_far = (vf)((vi)far | ((vi)x & INT32_MIN));
    return choose(size < 0.625f, near, signed_far);
}
