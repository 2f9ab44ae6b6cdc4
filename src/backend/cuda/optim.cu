// The optimizer: one pass over what it reads and writes, 28 bytes an element.
#include "vector.cuh"

#include "kernels.h"

enum { THREADS = 256, WARPS = THREADS / 32 };
constexpr size_t MOST = 4096; // blocks

// Σ x² of each of the stretches, cut by the count alone.
template <int N>
static __global__ void sumsq_parts(double *part, const float *x, size_t n, size_t each) {
    begin_kernel();
    __shared__ double scratch[WARPS];
    const size_t first = blockIdx.x * each, end = first + each < n ? first + each : n;
    double sum = 0;
#pragma unroll 4
    for (size_t i = first + threadIdx.x; i < end; i += THREADS) {
        const several<N> v = load<N>(x + i * N);
#pragma unroll
        for (int e = 0; e < N; e++) sum += (double)v[e] * (double)v[e];
    }
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
    const bool fours = in_fours(n, x);
    const size_t count = fours ? n / 4 : n, each = (count + parts - 1) / parts;
    if (fours)
        LAUNCH(sumsq_parts<4>, (unsigned)parts, THREADS, s, part, x, count, each);
    else
        LAUNCH(sumsq_parts<1>, (unsigned)parts, THREADS, s, part, x, count, each);
    LAUNCH(sumsq_total, 1, THREADS, s, sum, part, (int)parts);
}

// N neighbours a thread, n of them.
template <int N> static __global__ void adamw(adamw_args a) {
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
        several<N> p = load<N>(a.p + i * N), m = load<N>(a.m + i * N), v = load<N>(a.v + i * N);
        const several<N> gradient = load<N>(a.g + i * N);
#pragma unroll
        for (int e = 0; e < N; e++) {
            const float g = gradient[e] * factor;
            m[e] = a.b1 * m[e] + a.b1_rest * g;
            v[e] = a.b2 * v[e] + a.b2_rest * g * g;
            p[e] -= a.step * (m[e] / (sqrtf(v[e] * a.root) + a.eps)) + a.decay * p[e];
        }
        store<N>(a.m + i * N, m);
        store<N>(a.v + i * N, v);
        store<N>(a.p + i * N, p);
    }
}

void k_adamw(struct queue *s, const struct adamw_args *args) {
    adamw_args a = *args;
    const bool fours = in_fours(a.n, a.p, a.m, a.v, a.g);
    if (!a.n) return;
    if (fours) a.n /= 4;
    const size_t b = (a.n + THREADS - 1) / THREADS;
    const unsigned grid = (unsigned)(b < MOST ? b : MOST);
    if (fours)
        LAUNCH(adamw<4>, grid, THREADS, s, a);
    else
        LAUNCH(adamw<1>, grid, THREADS, s, a);
}
