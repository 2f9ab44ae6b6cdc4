// Cross entropy: a block takes rows of logits in turn. Memory's affair, if nothing waits: a row
// comes once and stays in shared memory between the two times it is wanted (65,536 of bf16 fit on
// an H100, 57,344 of f32; the rest is read again from the second-level cache). A thread has the
// same columns of every row, so where a row's gradient has been written, the next row's logits are
// asked for at once, and no barrier stands between.
#include "best.cuh"
#include "vector.cuh"

#include "kernels.h"

enum { N = 4, MOST_THREADS = 1024, FEW_THREADS = 128, FEW_NUMBERS = 4096, QUARTERS = 4 };

// What a thread knows of its part of a row: the first of the largest, and the sum of e^(x - top).
// NaN is never the largest, and makes the sum NaN.
struct so_far {
    best max;
    float top, sum; // top: the largest as a finite number
};

template <class T, int V> __device__ static void take(so_far &t, const several<V> &x, int i) {
    float top = t.top;
#pragma unroll
    for (int e = 0; e < V; e++) top = fmaxf(top, x[e]);
    if (top > t.top || isnan(t.max.value)) {
#pragma unroll
        for (int e = 0; e < V; e++)
            if (x[e] > t.max.value || isnan(t.max.value)) t.max = {x[e], i + e};
        t.sum *= exponential<T>(t.top - top);
        t.top = top;
    }
#pragma unroll
    for (int e = 0; e < V; e++) t.sum += exponential<T>(x[e] - top);
}

struct xent_args {
    float *loss;
    void *dlogits;
    const void *logits;
    const int32_t *target;
    size_t O;
    int V, kept; // kept: of each row in shared memory
    float scale;
    bool l2wrap;
};

// What the gradient of a row is made of.
struct row_gradient {
    best max;
    float share, factor;
    int target;
    bool l2wrap;
};

template <class T, int V>
__device__ static void give_gradient(T *d, several<V> g, int i, const row_gradient &r) {
#pragma unroll
    for (int e = 0; e < V; e++) g[e] = exponential<T>(g[e] - r.max.value) * r.share;
    if ((unsigned)(r.target - i) < V || (unsigned)(r.max.index - i) < V)
#pragma unroll
        for (int e = 0; e < V; e++) {
            if (i + e == r.target) g[e] -= r.factor;
            if (r.l2wrap && i + e == r.max.index) g[e] += 1e-4f * r.max.value * r.factor;
        }
    store<V>(d + i, g);
}

// Rows of V numbers at a time, THREADS of them a step.
template <class T, int V, int THREADS> struct rows {
    const xent_args &a;
    T *kept;
    int steps; // in shared memory

    __device__ int first(int quarter) const {
        return (quarter * steps / QUARTERS * THREADS + (int)threadIdx.x) * V;
    }
    // Of one quarter of what is kept: f(column).
    template <class F> __device__ void each(int quarter, const F &f) const {
        const int end = first(quarter + 1) < a.kept ? first(quarter + 1) : a.kept;
        for (int i = first(quarter); i < end; i += THREADS * V) f(i);
    }
    template <class F> __device__ void each_of_rest(const F &f) const {
#pragma unroll 2
        for (int i = a.kept + (int)threadIdx.x * V; i < a.V; i += THREADS * V) f(i);
    }
    __device__ void ask_for(size_t row, int quarter) const {
        const T *x = (const T *)a.logits + row * a.V;
        if (row < a.O)
            each(quarter, [&](int i) {
                if constexpr (V * sizeof(T) >= 4)
                    ask<V>(kept + i, x + i);
                else
                    kept[i] = x[i];
            });
        asked();
    }
    template <int Q> __device__ void take_quarter(so_far &t) const {
        wait_for_asked<QUARTERS - 1 - Q>();
        each(Q, [&](int i) { take<T>(t, load<V>((const T *)kept + i), i); });
    }
};

template <class T, int V, int THREADS>
static __global__ void __launch_bounds__(THREADS) xent(xent_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    __shared__ best bests[THREADS / 32];
    __shared__ float sums[THREADS / 32];
    const rows<T, V, THREADS> all = {a, (T *)bytes, (a.kept + THREADS * V - 1) / (THREADS * V)};
    for (int q = 0; q < QUARTERS; q++) all.ask_for(blockIdx.x, q);
    for (size_t row = blockIdx.x; row < a.O; row += gridDim.x) {
        const int t = a.target[row];
        const T *x = (const T *)a.logits + row * a.V;
        if (t >= a.V) __trap();
        const float wanted = t < 0 ? 0 : load<1>(x + t)[0]; // the gradient may lie on it soon
        so_far mine = {{NAN, a.V}, -3.4028235e38f, 0};
        all.template take_quarter<0>(mine);
        all.template take_quarter<1>(mine);
        all.template take_quarter<2>(mine);
        all.template take_quarter<3>(mine);
        all.each_of_rest([&](int i) { take<T>(mine, load<V>(x + i), i); });
        const best max = block_best(mine.max, bests);
        float sum = mine.sum * exponential<T>(mine.top - max.value);
        sum = block_sum<float, THREADS / 32>(sum, sums);
        if (threadIdx.x == 0) a.loss[row] = t < 0 ? 0 : max.value - wanted + logf(sum);
        const float factor = t < 0 ? 0 : a.scale;
        const row_gradient r = {max, factor / sum, factor, t, a.l2wrap};
        T *d = a.dlogits ? (T *)a.dlogits + row * a.V : nullptr;
        if (d) all.each_of_rest([&](int i) { give_gradient(d, load<V>(x + i), i, r); });
        for (int q = 0; q < QUARTERS; q++) {
            if (d)
                all.each(q,
                         [&](int i) { give_gradient(d, load<V>((const T *)all.kept + i), i, r); });
            all.ask_for(row + gridDim.x, q);
        }
    }
}

template <class T, int V, int THREADS> static void start(struct queue *s, xent_args a) {
#ifdef CUDA_EMU
    const size_t bytes = 20000; // so that the rest of a row is tried too
#else
    const size_t bytes = most_shared();
#endif
    const size_t room = bytes > 2048 ? (bytes - 2048) / sizeof(T) : 0, step = THREADS * V;
    a.kept = room < (size_t)a.V ? (int)(room / step * step) : a.V;
    const size_t most = (size_t)processors() * (MOST_THREADS / THREADS);
    launch_with(s, xent<T, V, THREADS>, (unsigned)(a.O < most ? a.O : most), THREADS,
                (size_t)a.kept * sizeof(T), a);
}

template <class T> static void start_as(struct queue *s, const xent_args &a) {
    if (!in_fours((size_t)a.V, a.dlogits, a.logits))
        start<T, 1, MOST_THREADS>(s, a);
    else if (a.V <= FEW_NUMBERS)
        start<T, N, FEW_THREADS>(s, a);
    else
        start<T, N, MOST_THREADS>(s, a);
}

void k_xent(struct queue *s, float *loss, void *dlogits, const void *logits, bool narrow,
            const int32_t *target, size_t O, size_t V, float scale, bool l2wrap) {
    if (!O) return;
    const xent_args a = {loss, dlogits, logits, target, O, (int)V, 0, scale, l2wrap};
    if (narrow)
        start_as<uint16_t>(s, a);
    else
        start_as<float>(s, a);
}
