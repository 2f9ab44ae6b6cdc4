// Weights on their way in: parameters become rows of outputs, (K, padded O), of the type that
// products read.
#include "device.cuh"

#include "kernels.h"

enum { PACK = 32, PACK_ROWS = 8 };

static __global__ void pack(void *y, int to, size_t ld, const void *x, int from, size_t K, size_t O,
                            bool oi) {
    begin_kernel();
    __shared__ double tile[PACK][PACK + 1];
    const size_t k0 = blockIdx.y * (size_t)PACK, o0 = blockIdx.x * (size_t)PACK;
    const int tx = threadIdx.x % PACK, ty = threadIdx.x / PACK;
    for (int i = ty; i < PACK; i += PACK_ROWS) {
        const size_t k = oi ? k0 + tx : k0 + i, o = oi ? o0 + i : o0 + tx;
        const bool in = k < K && o < O;
        tile[oi ? tx : i][oi ? i : tx] = in ? load_number(x, from, oi ? o * K + k : k * O + o) : 0;
    }
    __syncthreads();
    for (int i = ty; i < PACK; i += PACK_ROWS)
        if (k0 + i < K && o0 + tx < ld) store_number(y, to, (k0 + i) * ld + o0 + tx, tile[i][tx]);
}

void k_pack(struct queue *s, void *y, int to, size_t ld, const void *x, int from, size_t K,
            size_t O, bool oi) {
    LAUNCH(pack, dim3(blocks(ld, PACK), blocks(K, PACK)), PACK * PACK_ROWS, s, y, to, ld, x, from,
           K, O, oi);
}

// ---- integers ----------------------------------------------------------------------------------

// quant_weights of backend/quant.h, operation by operation: a compiler that joined a product and a
// sum would make other integers.

__device__ static int nearest_half(float twice) {
    const int t = (int)twice;
    return (t + (t < 0 ? -1 : 1)) / 2;
}
template <int TYPE> __device__ static int nearest(float x, float inverse) {
    const float least = TYPE == T_INT4 ? -8 : -127, most = TYPE == T_INT4 ? 7 : 127;
    const float t = __fmul_rn(x, inverse), low = t >= least ? t : least;
    return nearest_half(2 * (low > most ? most : low));
}
__device__ static float inverse_of(float scale) {
    return scale != 0 ? 1.0f / scale : 0;
}

// The number of largest magnitude, the first of several.
template <int GROUP> __device__ static float largest(const float (&x)[GROUP]) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < GROUP; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    return most;
}

template <int GROUP> __device__ static float int4_scale(const float (&x)[GROUP]) {
    const float most = largest(x);
    float best = 0, least_error = INFINITY;
    if (most == 0) return 0;
#pragma unroll 1
    for (int t = 0; t < 16; t++) {
        const float steps = -__fadd_rn(8.8f, -__fmul_rn(0.2f, (float)t));
        const float scale = bf16_round(most / steps), inverse = inverse_of(scale);
        float error = 0;
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float c = (float)nearest<T_INT4>(x[i], inverse),
                        d = __fadd_rn(x[i], -__fmul_rn(scale, c));
            error = __fadd_rn(error, __fmul_rn(d, d));
        }
        if (error < least_error) least_error = error, best = scale;
    }
    return best;
}

// A thread has an output's group; neighbours have neighbours. What pads a row is zero, with a
// scale of zero.
template <int TYPE>
static __global__ void quantise(uint8_t *y, float *scales, size_t ld, const void *x, int from,
                                size_t K, size_t O, bool oi) {
    enum { GROUP = TYPE == T_INT4 ? 32 : 64, ZERO = TYPE == T_INT4 ? 8 : 128 };
    begin_kernel();
    const size_t o = blockIdx.x * (size_t)blockDim.x + threadIdx.x, k0 = blockIdx.y * (size_t)GROUP;
    if (o >= ld) return;
    float v[GROUP], blemish = 0;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const size_t k = k0 + i;
        v[i] = k < K && o < O ? (float)load_number(x, from, oi ? o * K + k : k * O + o) : 0;
        blemish += v[i] * 0.0f;
    }
    const float scale = TYPE == T_INT4 ? int4_scale(v) : bf16_round(fabsf(largest(v)) / 127.0f);
    const float inverse = inverse_of(scale);
    scales[blockIdx.y * ld + o] = __fadd_rn(scale, blemish);
#pragma unroll
    for (int i = 0; i < GROUP; i += TYPE == T_INT4 ? 2 : 1) {
        const int q = nearest<TYPE>(v[i], inverse) + ZERO;
        if constexpr (TYPE == T_INT4) {
            const int next = nearest<TYPE>(v[i + 1], inverse) + ZERO;
            y[(k0 + i) / 2 * ld + o] = (uint8_t)(q | next << 4);
        } else {
            y[(k0 + i) * ld + o] = (uint8_t)q;
        }
    }
}

void k_quantise(struct queue *s, void *y, float *scales, int to, size_t ld, const void *x, int from,
                size_t K, size_t O, bool oi) {
    enum { THREADS = 64 };
    uint8_t *const bytes = (uint8_t *)y;
    if (to == T_INT4)
        LAUNCH(quantise<T_INT4>, dim3(blocks(ld, THREADS), blocks(K, 32)), THREADS, s, bytes,
               scales, ld, x, from, K, O, oi);
    else
        LAUNCH(quantise<T_INT8>, dim3(blocks(ld, THREADS), blocks(K, 64)), THREADS, s, bytes,
               scales, ld, x, from, K, O, oi);
}
