#include "backend/quant.h"

#include "base/half.h"

#include <math.h>
#include <stdbool.h>

size_t quant_group(enum dtype t) {
    return t == DT_INT4 ? 32 : 64;
}

int quant_zero(enum dtype t) {
    return t == DT_INT4 ? 8 : 128;
}

// To the nearest, ties away from zero. Twice the number is cut off and halved as an integer: there
// is no sum of floats that a compiler could join with the product in front of it.
static inline int nearest_half(float twice) {
    const int t = (int)twice;
    return (t + (t < 0 ? -1 : 1)) / 2;
}

static inline float limit(float x, float least, float most) {
    const float y = x >= least ? x : least; // NaN too: no integer stands for it, the scale does
    return y > most ? most : y;
}

static float largest(const float *x, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

// 0, or NaN if there is a NaN or an infinity among them: scales carry it on.
static float blemish(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * 0.0f;
    return sum;
}

float quant_inputs(int8_t *q, const float *x, size_t n) {
    const float most = largest(x, n);
    const float twice = most > 0 ? 254.0f / most : 0;
    for (size_t i = 0; i < n; i++) q[i] = (int8_t)nearest_half(limit(x[i] * twice, -254, 254));
    return most / 127.0f + blemish(x, n);
}

// x ≈ scale · c with c whole in [least, most]; the squared error.
static float error_with(float scale, const float *x, size_t n, float least, float most) {
    const float inverse = scale != 0 ? 1.0f / scale : 0;
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        const int c = nearest_half(2 * limit(x[i] * inverse, least, most));
        const float d = x[i] - scale * (float)c;
        sum += d * d;
    }
    return sum;
}

// The end with the largest number may be -8 or, with the sign turned, +8: there the range is wider.
static float best_int4_scale(const float *x, size_t n) {
    float most = 0, best = 0, least_error = INFINITY;
    for (size_t i = 0; i < n; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    if (most == 0) return 0;
    for (int i = 0; i < 16; i++) { // from |max|/8.8 to |max|/5.8
        const float steps = -(8.8f - 0.2f * (float)i);
        const float scale = bf16_to_f32(f32_to_bf16(most / steps));
        const float error = error_with(scale, x, n, -8, 7);
        if (error < least_error) least_error = error, best = scale;
    }
    return best;
}

float quant_weights(uint8_t *q, const float *x, size_t n, enum dtype t) {
    const int zero = quant_zero(t);
    const float least = t == DT_INT4 ? -8 : -127, most = t == DT_INT4 ? 7 : 127;
    const float scale =
        t == DT_INT4 ? best_int4_scale(x, n) : bf16_to_f32(f32_to_bf16(largest(x, n) / 127.0f));
    const float inverse = scale != 0 ? 1.0f / scale : 0;
    for (size_t i = 0; i < n; i++)
        q[i] = (uint8_t)(nearest_half(2 * limit(x[i] * inverse, least, most)) + zero);
    return scale + blemish(x, n);
}
