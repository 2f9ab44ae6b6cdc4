// Cross entropy and sampling: a block takes one row of logits.
#include "vector.cuh"

#include "kernels.h"

enum { THREADS = 1024, WARPS = THREADS / 32 };

struct best {
    float value;
    int index;
};

// The first of the largest; NaN is never it, unless there is nothing else.
__device__ static bool better(best a, best b) {
    if (isnan(a.value) || isnan(b.value))
        return isnan(a.value) && isnan(b.value) ? a.index < b.index : isnan(b.value);
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

__device__ static best warp_best(best x) {
    for (int d = 16; d; d >>= 1) {
        const best y = {__shfl_xor_sync(0xffffffffu, x.value, d),
                        __shfl_xor_sync(0xffffffffu, x.index, d)};
        if (better(y, x)) x = y;
    }
    return x;
}

__device__ static best block_best(best mine, best *scratch) {
    mine = warp_best(mine);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = mine;
    __syncthreads();
    best all = scratch[0];
    for (int w = 1; w < WARPS; w++)
        if (better(scratch[w], all)) all = scratch[w];
    __syncthreads();
    return all;
}

__device__ static best row_best(const float *x, int V, best *scratch) {
    best mine = {NAN, V};
    for (int i = threadIdx.x; i < V; i += THREADS) {
        const best y = {x[i], i};
        if (better(y, mine)) mine = y;
    }
    return block_best(mine, scratch);
}

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
    int bytes = 0;
#ifdef CUDA_EMU
    bytes = 20000; // so that the rest of a row is tried too
#else
    static int device_bytes = -1;
    if (device_bytes < 0) {
        int device = 0;
        device_bytes = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&device_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    bytes = device_bytes;
#endif
    const size_t room = bytes > 2048 ? (size_t)(bytes - 2048) / 4 : 0;
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

// ---- sampling ----------------------------------------------------------------------------------

// struct sample_row of ops.h; cuda.c asserts its size.
struct sample_row {
    float temperature, top_p, min_p;
    float presence, repetition, frequency, penalty_decay;
    int32_t top_k, slot, reserved;
    uint64_t seed, position;
};

// rng_uniform of base/rng.h, stream 0: Philox 4x32-10.
__device__ static double uniform(uint64_t seed, uint64_t index) {
    uint32_t x[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * x[0], p1 = (uint64_t)0xCD9E8D57 * x[2];
        const uint32_t y1 = x[1], y3 = x[3];
        x[0] = (uint32_t)(p1 >> 32) ^ y1 ^ k0;
        x[1] = (uint32_t)p1;
        x[2] = (uint32_t)(p0 >> 32) ^ y3 ^ k1;
        x[3] = (uint32_t)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    const uint64_t bits = (uint64_t)x[1] << 32 | x[0];
    return (double)(bits >> 11) * 1.1102230246251565e-16; // 2^-53
}

// Exclusive sum over the threads of a block, in order; *total: of all.
template <class T> __device__ static T sum_before(T x, T *scratch, T *total) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    T sum = x;
    for (int d = 1; d < 32; d <<= 1) {
        const T y = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += y;
    }
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    T before = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += scratch[w];
        all += scratch[w];
    }
    __syncthreads();
    *total = all;
    const T up = __shfl_up_sync(0xffffffffu, sum, 1);
    return before + (lane ? up : 0);
}

// Masses that decide a cut are counted in whole units: their sums do not depend on the order in
// which threads come to a bin. The largest probability is 1, so V of them stay below 2^62.
enum { BINS = 1024 }; // one a thread; the bits of numbers up to 1 are 10 + 10 + 10

__device__ static uint64_t units(float p) {
    return (uint64_t)((double)p * 274877906944.0 + 0.5); // 2^38
}

struct sampler {
    const float *p;    // probabilities relative to the largest: their bits sort as they do
    int V, first, end; // this thread's tokens
    double *masses;    // WARPS, as the next two
    unsigned long long *units;
    int *counts;
    unsigned long long *bin_units; // BINS
    int *bin_counts;
};

struct tail {
    uint32_t bits;
    int above; // tokens with larger bits
    uint64_t units_above;
};

// The largest bits for which those tokens that have at least them are `count` or have `goal`; 0 if
// there are none: one digit of ten bits after the other.
__device__ static tail tail_of(const sampler &s, int count, uint64_t goal) {
    __shared__ tail found;
    const int bin = BINS - 1 - (int)threadIdx.x; // larger ones come first
    tail t = {0, 0, 0};
    for (int shift = 20; shift >= 0; shift -= 10) {
        s.bin_units[bin] = 0;
        s.bin_counts[bin] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < s.V; i += THREADS) {
            const uint32_t bits = __float_as_uint(s.p[i]);
            if (shift < 20 && bits >> (shift + 10) != t.bits) continue;
            atomicAdd(&s.bin_units[bits >> shift & (BINS - 1)], (unsigned long long)units(s.p[i]));
            atomicAdd(&s.bin_counts[bits >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        const unsigned long long mine = s.bin_units[bin];
        const int here = s.bin_counts[bin];
        unsigned long long all_units;
        int all;
        const uint64_t mass = t.units_above + sum_before(mine, s.units, &all_units);
        const int before = t.above + sum_before(here, s.counts, &all);
        const bool enough = before >= count || mass >= goal;
        const bool with_mine = before + here >= count || mass + mine >= goal;
        if ((!enough && with_mine) || (bin == 0 && !with_mine))
            found = {t.bits << 10 | (uint32_t)bin, before, mass};
        __syncthreads();
        t = found;
        __syncthreads();
    }
    return t;
}

// What stays: all whose bits are above `bits`, and of those equal to it the first `equals` by id.
struct cut {
    uint32_t bits;
    int equals;
};

__device__ static cut truncate(const sampler &s, const sample_row &row) {
    const uint64_t never = ~(uint64_t)0;
    cut keep = {0, s.V};
    uint64_t all = 0;
    if (row.top_k > 0 && row.top_k < s.V) {
        const tail t = tail_of(s, row.top_k, never);
        keep = {t.bits, row.top_k - t.above};
        all = t.units_above + (uint64_t)keep.equals * units(__uint_as_float(t.bits));
    } else if (row.top_p < 1) {
        unsigned long long mine = 0, total;
        for (int i = threadIdx.x; i < s.V; i += THREADS) mine += units(s.p[i]);
        sum_before(mine, s.units, &total);
        all = total;
    }
    if (row.top_p >= 1) return keep;
    // At least one token stays; the one that reaches the mass stays whole.
    const double wanted = ceil((double)row.top_p * (double)all);
    const uint64_t goal = wanted > 1 ? (uint64_t)wanted : 1;
    const tail t = tail_of(s, s.V + 1, goal);
    const uint64_t each = units(__uint_as_float(t.bits));
    const uint64_t most = t.bits == keep.bits ? (uint64_t)keep.equals : (uint64_t)s.V;
    const uint64_t lacking = goal > t.units_above ? goal - t.units_above : 0;
    const uint64_t equals = each ? (lacking + each - 1) / each : most;
    return {t.bits, equals < 1 ? 1 : (int)(equals < most ? equals : most)};
}

// Walks the tokens that stay in order of ids until the drawn share of their mass is passed.
__device__ static int draw(const sampler &s, const sample_row &row, cut keep, int fallback) {
    __shared__ int chosen, last;
    int equal = 0, unused;
    for (int i = s.first; i < s.end; i++) equal += __float_as_uint(s.p[i]) == keep.bits;
    equal = sum_before(equal, s.counts, &unused);
    const float least = row.min_p < 1 ? row.min_p : 1;
    double mass = 0, all;
    for (int pass = 0;; pass++) {
        double passed = 0, mark = 0;
        if (pass) {
            if (threadIdx.x == 0) chosen = s.V, last = -1;
            passed = sum_before(mass, s.masses, &all);
            mark = uniform(row.seed, row.position) * all;
        }
        int seen = equal;
        for (int i = s.first; i < s.end; i++) {
            const uint32_t bits = __float_as_uint(s.p[i]);
            const bool stays = bits > keep.bits || (bits == keep.bits && seen++ < keep.equals);
            if (!stays || !(s.p[i] >= least)) continue;
            if (!pass) {
                mass += (double)s.p[i];
                continue;
            }
            passed += (double)s.p[i];
            if (s.p[i] > 0) atomicMax(&last, i);
            if (passed > mark) {
                atomicMin(&chosen, i);
                break;
            }
        }
        __syncthreads();
        if (pass) return chosen < s.V ? chosen : last >= 0 ? last : fallback;
    }
}

static __global__ void __launch_bounds__(THREADS)
    sample(int32_t *token, float *logits, const sample_row *rows, char *penalties,
           size_t penalty_bytes, int V) {
    begin_kernel();
    __shared__ best bests[WARPS];
    __shared__ double masses[WARPS];
    __shared__ unsigned long long warp_units[WARPS], bin_units[BINS];
    __shared__ int counts[WARPS], bin_counts[BINS];
    const sample_row row = rows[blockIdx.x];
    float *x = logits + blockIdx.x * (size_t)V;
    float *pen = penalties ? (float *)(penalties + row.slot * penalty_bytes) : nullptr;
    if (pen)
        for (int i = threadIdx.x; i < V; i += THREADS) x[i] = __fadd_rn(x[i], -pen[i]);
    __syncthreads();
    const best max = row_best(x, V, bests);
    int chosen = max.index;
    if (row.temperature > 0 && row.top_k != 1) {
        for (int i = threadIdx.x; i < V; i += THREADS) {
            const float p = expf((x[i] - max.value) / row.temperature);
            x[i] = p > 0 ? p : 0; // NaN is nothing
        }
        __syncthreads();
        const int each = (V + THREADS - 1) / THREADS, first = threadIdx.x * each;
        const int end = first + each;
        const sampler s = {x,
                           V,
                           first < V ? first : V,
                           end < V ? end : V,
                           masses,
                           warp_units,
                           counts,
                           bin_units,
                           bin_counts};
        chosen = draw(s, row, truncate(s, row), max.index);
    }
    if (threadIdx.x == 0) token[blockIdx.x] = chosen;
    if (!pen) return;
    for (int i = threadIdx.x; i < V; i += THREADS) {
        float p = __fmul_rn(pen[i], row.penalty_decay);
        if (i == chosen) {
            uint32_t *seen = (uint32_t *)(pen + V) + i / 32;
            const uint32_t bit = 1u << (i & 31);
            p = __fadd_rn(p, __fadd_rn(*seen & bit ? row.repetition : row.presence, row.frequency));
            *seen |= bit;
        }
        pen[i] = p;
    }
}

void k_sample(struct queue *s, int32_t *token, float *logits, const void *rows, void *penalties,
              size_t penalty_bytes, size_t O, size_t V) {
    static_assert(sizeof(sample_row) == 56, "struct sample_row of ops.h");
    if (O)
        LAUNCH(sample, (unsigned)O, THREADS, s, token, logits, (const sample_row *)rows,
               (char *)penalties, penalty_bytes, (int)V);
}
