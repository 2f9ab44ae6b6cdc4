// The optimizer: one pass over what it reads and writes, 28 bytes an element, or 30 with the copy
// that products read.
#include "vector.cuh"

#include "kernels.h"

enum { THREADS = 256, WARPS = THREADS / 32 };
constexpr size_t MOST = 4096; // blocks

// ---- sums --------------------------------------------------------------------------------------

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

static __global__ void sumsq_total(double *sum, const double *part, int parts, bool more) {
    begin_kernel();
    __shared__ double scratch[WARPS];
    double x = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) x += part[i];
    x = block_sum<double, WARPS>(x, scratch);
    if (threadIdx.x == 0) *sum = more ? *sum + x : x;
}

void k_sumsq(struct queue *s, double *sum, const float *x, size_t n, bool more, double *part) {
    const size_t wanted = n / 4096 + 1, parts = wanted < SUM_PARTS ? wanted : (size_t)SUM_PARTS;
    const bool fours = in_fours(n, x);
    const size_t count = fours ? n / 4 : n, each = (count + parts - 1) / parts;
    if (fours)
        LAUNCH(sumsq_parts<4>, (unsigned)parts, THREADS, s, part, x, count, each);
    else
        LAUNCH(sumsq_parts<1>, (unsigned)parts, THREADS, s, part, x, count, each);
    LAUNCH(sumsq_total, 1, THREADS, s, sum, part, (int)parts, more);
}

// A block takes few numbers: the losses of some rows.
static __global__ void __launch_bounds__(1024)
    sum_all(double *sum, const float *x, size_t n, bool more) {
    begin_kernel();
    __shared__ double scratch[32];
    double s = 0;
#pragma unroll 8
    for (size_t i = threadIdx.x; i < n; i += 1024) s += (double)x[i];
    s = block_sum<double, 32>(s, scratch);
    if (threadIdx.x == 0) *sum = more ? *sum + s : s;
}

void k_sum(struct queue *s, double *sum, const float *x, size_t n, bool more) {
    LAUNCH(sum_all, 1, 1024, s, sum, x, n, more);
}

// ---- AdamW -------------------------------------------------------------------------------------

struct group { // struct adamw_group of ops.h
    int64_t first, count;
    double lr_scale, weight_decay;
};

// A group's constants: p -= step · m / (√(v · root) + ε) + decay · p.
struct constants {
    size_t first, end;
    float step, root, decay;
};

struct groups {
    const group *all;
    int count;
    constants now;

    // The first one that ends after i; past the last nothing is in one.
    __device__ void find(const adamw_args &a, size_t i) {
        int least = 0, most = count;
        while (least < most) {
            const int middle = (least + most) / 2;
            if ((size_t)(all[middle].first + all[middle].count) > i)
                most = middle;
            else
                least = middle + 1;
        }
        now.first = now.end = ~(size_t)0;
        if (least == count) return;
        const group g = all[least];
        const double lr = a.now[0] * g.lr_scale;
        now.first = (size_t)g.first;
        now.end = (size_t)(g.first + g.count);
        now.step = (float)(lr / a.now[1]);
        now.root = (float)(1 / a.now[2]);
        now.decay = (float)(lr * g.weight_decay);
    }
};

__device__ static inline void update(const adamw_args &a, const constants &c, float g, float &p,
                                     float &m, float &v) {
    m = a.b1 * m + a.b1_rest * g;
    v = a.b2 * v + a.b2_rest * g * g;
    p -= c.step * (m / (sqrtf(v * c.root) + a.eps)) + c.decay * p;
}

// A thread has N neighbours at a time.
template <int N> static __global__ void adamw(adamw_args a) {
    begin_kernel();
    __shared__ float shared_factor;
    __shared__ bool finite;
    if (threadIdx.x == 0) {
        const double want = a.clip / (sqrt(a.sums[0]) + 1e-6);
        shared_factor = a.clip > 0 && want < 1 ? (float)want : 1.0f;
        finite = isfinite(a.sums[0]) && isfinite(a.sums[1]);
    }
    __syncthreads();
    if (!finite) return;
    const float factor = shared_factor;
    groups in = {(const group *)a.groups, a.num_groups, {}};
    for (size_t i = (blockIdx.x * (size_t)THREADS + threadIdx.x) * N; i < a.n;
         i += gridDim.x * (size_t)THREADS * N) {
        if (i >= in.now.end) in.find(a, i);
        if (i + N <= in.now.first) continue;
        several<N> p = load<N>(a.p + i), m = load<N>(a.m + i), v = load<N>(a.v + i);
        const several<N> g = load<N>(a.g + i);
        if (i >= in.now.first && i + N <= in.now.end) {
#pragma unroll
            for (int e = 0; e < N; e++) update(a, in.now, g[e] * factor, p[e], m[e], v[e]);
        } else {
#pragma unroll
            for (int e = 0; e < N; e++) {
                if (i + e >= in.now.end) in.find(a, i + e);
                if (i + e >= in.now.first) update(a, in.now, g[e] * factor, p[e], m[e], v[e]);
            }
        }
        store<N>(a.m + i, m);
        store<N>(a.v + i, v);
        store<N>(a.p + i, p);
        if (a.rounded && i >= a.from) store<N>(a.rounded + (i - a.from), p);
    }
}

void k_adamw(struct queue *s, const struct adamw_args *a) {
    const bool fours = in_fours(a->n, a->p, a->m, a->v, a->g, a->rounded) && a->from % 4 == 0;
    const size_t b = (a->n + THREADS * (fours ? 4 : 1) - 1) / (THREADS * (fours ? 4 : 1));
    const unsigned grid = (unsigned)(b < MOST ? b : MOST);
    if (!a->n) return;
    if (fours)
        LAUNCH(adamw<4>, grid, THREADS, s, *a);
    else
        LAUNCH(adamw<1>, grid, THREADS, s, *a);
}
