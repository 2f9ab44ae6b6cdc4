// The optimizer: one pass over what it reads and writes, 28 bytes an element.
#include "device.cuh"

#include "kernels.h"

enum { THREADS = 256, WARPS = THREADS / 32 };
constexpr size_t MOST = 4096; // blocks

// Σ x² of each of the stretches, cut by the count alone.
static __global__ void sumsq_parts(double *part, const float *x, size_t n, size_t each) {
    begin_kernel();
    __shared__ double scratch[WARPS];
    const size_t first = blockIdx.x * each, end = first + each < n ? first + each : n;
    double sum = 0;
    for (size_t i = first + threadIdx.x; i < end; i += THREADS) sum += (double)x[i] * (double)x[i];
    sum = block_sum<double, WARPS>(sum, scratch);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

static __global__ void sumsq_total(double *sum, const double *part, int parts) {
    begin_kernel();
    __shared__ double scratch[WARPS];
    double x = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) x += part[i];
    x = block_sum<double, WARPS>(x, scratch);
    if (threadIdx.x == 0) *sum = x;
}

void k_sumsq(struct queue *s, double *sum, const float *x, size_t n, double *part) {
    const size_t wanted = n / 4096 + 1, parts = wanted < SUM_PARTS ? wanted : (size_t)SUM_PARTS;
    LAUNCH(sumsq_parts, (unsigned)parts, THREADS, s, part, x, n, (n + parts - 1) / parts);
    LAUNCH(sumsq_total, 1, THREADS, s, sum, part, (int)parts);
}

static __global__ void adamw(adamw_args a) {
    begin_kernel();
    __shared__ float shared_factor;
    if (threadIdx.x == 0) {
        const double want = a.clip / (sqrt(*a.norm2) + 1e-6);
        shared_factor = a.clip > 0 && want < 1 ? (float)want : 1.0f;
    }
    __syncthreads();
    const float factor = shared_factor;
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < a.n;
         i += gridDim.x * (size_t)THREADS) {
        const float g = a.g[i] * factor, p = a.p[i];
        const float m = a.b1 * a.m[i] + a.b1_rest * g;
        const float v = a.b2 * a.v[i] + a.b2_rest * g * g;
        a.m[i] = m;
        a.v[i] = v;
        a.p[i] = p - (a.step * (m / (sqrtf(v * a.root) + a.eps)) + a.decay * p);
    }
}

void k_adamw(struct queue *s, const struct adamw_args *a) {
    if (!a->n) return;
    const size_t b = (a->n + THREADS - 1) / THREADS;
    LAUNCH(adamw, (unsigned)(b < MOST ? b : MOST), THREADS, s, *a);
}
