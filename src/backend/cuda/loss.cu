// Cross entropy: a block takes one row of logits.
#include "best.cuh"
#include "vector.cuh"

#include "kernels.h"

enum { THREADS = 1024, WARPS = THREADS / 32 };

// ---- cross entropy -----------------------------------------------------------------------------

// What a thread knows of its part of a row: the first of the largest, and the sum of e^(x - top).
// NaN is never the largest, and makes the sum NaN.
struct so_far {
    best max;
    float top, sum; // top: the largest as a finite number
};

template <int N> __device__ static void take(so_far &t, const several<N> &x, int i) {
    float top = t.top;
#pragma unroll
    for (int e = 0; e < N; e++) {
        if (x[e] > t.max.value || isnan(t.max.value)) t.max = {x[e], i + e};
        top = fmaxf(top, x[e]);
    }
    if (top != t.top) t.sum *= expf(t.top - top);
    t.top = top;
#pragma unroll
    for (int e = 0; e < N; e++) t.sum += expf(x[e] - top);
}

struct xent_args {
    float *loss;
    void *dlogits;
    const float *logits;
    const int32_t *target;
    int V, kept; // of each row in shared memory, between the two times it is wanted
    float scale;
    bool l2wrap, narrow;
};

// What the gradient of a row is made of.
struct row_gradient {
    best max;
    float share, factor;
    int target;
    bool l2wrap;
};

template <int N, class T>
__device__ static void give_gradient(T *d, several<N> g, int i, const row_gradient &r) {
#pragma unroll
    for (int e = 0; e < N; e++) {
        g[e] = expf(g[e] - r.max.value) * r.share;
        if (i + e == r.target) g[e] -= r.factor;
        if (r.l2wrap && i + e == r.max.index) g[e] += 1e-4f * r.max.value * r.factor;
    }
    store<N>(d + i, g);
}

template <int N, class T>
__device__ static void give_row(T *d, const float *x, const float *kept, const xent_args &a,
                                const row_gradient &r) {
#pragma unroll 2
    for (int i = threadIdx.x * N; i < a.kept; i += THREADS * N) {
        several<N> v;
#pragma unroll
        for (int e = 0; e < N; e++) v[e] = kept[i + e];
        give_gradient(d, v, i, r);
    }
#pragma unroll 2
    for (int i = a.kept + threadIdx.x * N; i < a.V; i += THREADS * N)
        give_gradient(d, load<N>(x + i), i, r);
}

// A row is read once, for its largest and its sum together; the gradient takes it from shared
// memory as far as that reaches (57,344 of 65,536 on an H100), and from the second-level cache.
template <int N> static __global__ void __launch_bounds__(THREADS) xent(xent_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    __shared__ best bests[WARPS];
    __shared__ float sums[WARPS];
    float *kept = (float *)bytes;
    const int t = a.target[blockIdx.x];
    const size_t at = blockIdx.x * (size_t)a.V;
    const float *x = a.logits + at;
    if (t >= a.V) __trap();
    so_far mine = {{NAN, a.V}, -3.4028235e38f, 0};
#pragma unroll 4
    for (int i = threadIdx.x * N; i < a.kept; i += THREADS * N) {
        const several<N> v = load<N>(x + i);
#pragma unroll
        for (int e = 0; e < N; e++) kept[i + e] = v[e]; // nobody else reads it
        take<N>(mine, v, i);
    }
#pragma unroll 2
    for (int i = a.kept + threadIdx.x * N; i < a.V; i += THREADS * N)
        take<N>(mine, load<N>(x + i), i);
    const best max = block_best(mine.max, bests);
    float sum = mine.sum * expf(mine.top - max.value);
    sum = block_sum<float, WARPS>(sum, sums);
    if (threadIdx.x == 0) a.loss[blockIdx.x] = t < 0 ? 0 : max.value - x[t] + logf(sum);
    if (!a.dlogits) return;
    __syncthreads(); // the gradient may lie on the logits
    const float factor = t < 0 ? 0 : a.scale;
    const row_gradient r = {max, factor / sum, factor, t, a.l2wrap};
    if (a.narrow)
        give_row<N>((uint16_t *)a.dlogits + at, x, kept, a, r);
    else
        give_row<N>((float *)a.dlogits + at, x, kept, a, r);
}

// Numbers that fit into a block's shared memory beside the little that is there by name.
static size_t most_kept() {
#ifdef CUDA_EMU
    const size_t bytes = 20000; // so that the rest of a row is tried too
#else
    const size_t bytes = most_shared();
#endif
    const size_t room = bytes > 2048 ? (bytes - 2048) / 4 : 0;
    return room / (4 * THREADS) * (4 * THREADS);
}

void k_xent(struct queue *s, float *loss, void *dlogits, bool narrow, const float *logits,
            const int32_t *target, size_t O, size_t V, float scale, bool l2wrap) {
    if (!O) return;
    const size_t kept = dlogits ? most_kept() : 0;
    const xent_args a = {loss,  dlogits, logits, target, (int)V, (int)(kept < V ? kept : V),
                         scale, l2wrap,  narrow};
    if (in_fours(V, dlogits, logits))
        launch_with(s, xent<4>, (unsigned)O, THREADS, (size_t)a.kept * 4, a);
    else
        launch_with(s, xent<1>, (unsigned)O, THREADS, (size_t)a.kept * 4, a);
}
