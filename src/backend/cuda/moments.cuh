// What a norm and a token shift make of a number: shared by norm.cu, norm_mix.cu and decode.cu, so
// that all give the same bits.
#pragma once
#include "vector.cuh"

// A row of up to so many numbers is a warp's.
enum { WARP_ROW = 1024 };

// Mean and 1/√(var+ε) of a row of which a thread has some numbers, counted from the row's first
// number on. each(f, none) calls f with all that the thread has, and as often as it likes with
// none, which changes nothing; total() adds up over the row's threads.
template <class Each, class Total>
__device__ static float2 moments_of(Each each, float first, float C, float eps, Total total) {
    float sum = 0, square = 0;
    each([&](float x) { sum += x - first; }, first);
    const float mean = first + total(sum) / C;
    each([&](float x) { square += (x - mean) * (x - mean); }, mean);
    const float var = total(square) / C;
    return make_float2(mean, 1.0f / sqrtf(var + eps));
}

__device__ static inline float normed(float x, float2 moments, float scale, float shift) {
    return (x - moments.x) * moments.y * scale + shift;
}

// A token-shift mix; change: what z was a token before, less z.
__device__ static inline float mixed(float z, float change, float mix) {
    return z + change * mix;
}
