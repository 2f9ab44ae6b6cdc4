// The most probable thousand tokens of a row, where all that top_k and top_p keep is among them: the
// cut and the draw are made of those.
#pragma once
#include "sample.cuh"

// Entries are a token's probability's bits and its id, or the other way round, as halves of a word
// that sorts: ids are kept as ~id, so that the lower one is the larger one.
enum { LISTED = 4096, FIRST = 1024 };
constexpr float LIST_SCALE = 274877906944.0f; // 2^38

typedef unsigned long long word;


// The least of the largest of groups of threads, of two, four and eight. Of 65,536 numbers without
// order some 1,500, 600 and 300 are not less. -inf, and NaN, which is what a thread with nothing has,
// are no group's.
enum { BOUNDS = 3 };
struct bounds {
    float of[BOUNDS];
};

__device__ static bounds find_bounds(float largest, bounds *scratch) {
    const int lane = threadIdx.x & 31;
    bounds b;
    float x = largest > -INFINITY ? largest : NAN;
#pragma unroll
    for (int i = 0; i < BOUNDS; i++) b.of[i] = x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1 << i));
    for (int round = 0; round < 2; round++) {
#pragma unroll
        for (int i = 0; i < BOUNDS; i++)
            for (int d = 16; d; d >>= 1)
                b.of[i] = fminf(b.of[i], __shfl_xor_sync(0xffffffffu, b.of[i], d));
        if (round) break;
        if (lane == 0) scratch[threadIdx.x >> 5] = b;
        __syncthreads();
        b = scratch[lane & (warps() - 1)];
    }
    __syncthreads();
    return b;
}

struct lists { // of a block, in shared memory
    uint64_t entry[LISTED], first[FIRST];
    struct bounds bounds[WARPS];
};

// Lists all tokens from a probability on that is more than 0, in any order. Returns how many there
// are, LISTED of which at most are listed. *mass: the thread's share of all probabilities, in an
// order that depends on V alone.
template <class R>
__device__ static int list(uint64_t *entry, const R &r, softmax p, float least, double *mass) {
    __shared__ int count;
    const int lane = threadIdx.x & 31;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    r.for_each_four([&](int id, const four &v, int, bool) {
        const four q = {{p(v.e[0]), p(v.e[1]), p(v.e[2]), p(v.e[3])}};
        *mass += (double)((q.e[0] + q.e[1]) + (q.e[2] + q.e[3]));
        const uint32_t below = (1u << lane) - 1;
        int before = 0, all = 0;
#pragma unroll
        for (int i = 0; i < FOUR; i++) {
            const uint32_t them = __ballot_sync(0xffffffffu, q.e[i] >= least);
            before += __popc(them & below);
            all += __popc(them);
        }
        if (!all) return;
        int at = 0;
        if (lane == 0) at = atomicAdd(&count, all);
        at = __shfl_sync(0xffffffffu, at, 0) + before;
#pragma unroll
        for (int i = 0; i < FOUR; i++)
            if (q.e[i] >= least && at < LISTED)
                entry[at++] = (uint64_t)__float_as_uint(q.e[i]) << 32 | ~(uint32_t)(id + i);
    });
    __syncthreads();
    return count;
}

// Largest first. Bitonic; there is room up to the next power of two.
__device__ static __noinline__ void sort(uint64_t *entry, int n) {
    int whole = 1;
    while (whole < n) whole <<= 1;
    for (int i = n + threadIdx.x; i < whole; i += blockDim.x) entry[i] = 0;
    __syncthreads();
    for (int size = 2; size <= whole; size <<= 1)
        for (int step = size >> 1; step; step >>= 1) {
            for (int first = threadIdx.x; first < whole / 2; first += WORDS * blockDim.x) {
                uint64_t a[WORDS], b[WORDS];
                int at[WORDS];
#pragma unroll
                for (int u = 0; u < WORDS; u++) {
                    const int i = first + u * (int)blockDim.x;
                    at[u] = i < whole / 2 ? 2 * i - (i & (step - 1)) : -1;
                    if (at[u] >= 0) a[u] = entry[at[u]], b[u] = entry[at[u] + step];
                }
#pragma unroll
                for (int u = 0; u < WORDS; u++)
                    if (at[u] >= 0 && (a[u] < b[u]) == !(at[u] & size))
                        entry[at[u]] = b[u], entry[at[u] + step] = a[u];
            }
            // What a warp exchanges at distances of up to 32 is its own.
            if (step > 32 || (step == 1 && size > 32))
                __syncthreads();
            else
                __syncwarp();
        }
    __syncthreads();
}

// Those of n entries with at least so much of a probability, of which FIRST at most are copied.
__device__ static int copy_first(uint64_t *first, const uint64_t *entry, int n, float least) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const uint64_t e = entry[i];
        if (e >> 32 < __float_as_uint(least)) continue;
        const int at = atomicAdd(&count, 1);
        if (at < FIRST) first[at] = e;
    }
    __syncthreads();
    return count;
}

__device__ static uint64_t mass_of(uint32_t bits) {
    return units(__uint_as_float(bits), LIST_SCALE);
}

// The sum of n entries' mass, whose bits are in the upper half of a word or in the lower one.
__device__ static scanned<word> weigh(const uint64_t *entry, int n, int shift, word *scratch) {
    const int each = (n + (int)blockDim.x - 1) / (int)blockDim.x, from = threadIdx.x * each;
    word sum = 0;
#pragma unroll 1
    for (int i = from; i < from + each && i < n; i++) sum += mass_of((uint32_t)(entry[i] >> shift));
    return sum_before(sum, scratch);
}

// The first of n entries up to which their mass is `goal`; n: none. passed: before the thread's.
__device__ static int reach(const uint64_t *entry, int n, int shift, word passed, word goal) {
    __shared__ int found;
    const int each = (n + (int)blockDim.x - 1) / (int)blockDim.x, from = threadIdx.x * each;
    if (threadIdx.x == 0) found = n;
    __syncthreads();
    bool before = passed < goal;
#pragma unroll 1
    for (int i = from; i < from + each && i < n && before; i++) {
        passed += mass_of((uint32_t)(entry[i] >> shift));
        before = passed < goal;
        if (!before) found = i;
    }
    __syncthreads();
    const int at = found;
    __syncthreads();
    return at;
}

// Draws from what top_k, top_p and min_p leave, if that is among n entries, the most probable ones,
// or all that have a probability; -1: it is not. goal: what top_p wants, without top_k.
__device__ static int draw_from(uint64_t *entry, int n, bool all, const sample_row &row, int V,
                                word goal, word *scratch, int fallback) {
    const bool has_k = cuts_to_k(row, V);
    if (n == 0 || (has_k && n < row.top_k && !all)) return -1;
    if (!has_k && weigh(entry, n, 32, scratch).all < goal) return -1;
    sort(entry, n);
    int keep = has_k && row.top_k < n ? row.top_k : n;
    if (row.top_p < 1) {
        const scanned<word> s = weigh(entry, keep, 32, scratch);
        if (has_k) goal = goal_of(row.top_p, (double)s.all);
        const int at = reach(entry, keep, 32, s.before, goal);
        if (at < keep) keep = at + 1;
    }
    for (int i = threadIdx.x; i < keep; i += blockDim.x) {
        const uint64_t e = entry[i];
        const bool stays = __uint_as_float((uint32_t)(e >> 32)) >= fminf(row.min_p, 1);
        entry[i] = stays ? e << 32 | e >> 32 : 0;
    }
    __syncthreads();
    sort(entry, keep);
    const scanned<word> left = weigh(entry, keep, 0, scratch);
    // May be rounded up to all of it.
    const word mark = (word)(uniform(row.seed, row.position) * (double)left.all);
    const int at = reach(entry, keep, 0, left.before, mark < left.all ? mark + 1 : mark);
    return at < keep && left.all ? (int)~(uint32_t)(entry[at] >> 32) : fallback;
}

// Of a whole row: from the most probable FIRST or less, and if those are not enough from more of them.
template <class R>
__device__ static int draw_listed(lists &l, const R &r, softmax p, float largest,
                                  const sample_row &row, double *scratch, int fallback) {
    const float least_of_all = __uint_as_float(1);
    const bounds b = find_bounds(largest, l.bounds);
    const auto least_of = [&](int i) {
        return fmaxf(p(i == 2 ? b.of[2] : i == 1 ? b.of[1] : b.of[0]), least_of_all);
    };
    double share = 0;
    const int n = list(l.entry, r, p, least_of(0), &share);
    if (n > LISTED) return -1;
    const word goal = goal_of(row.top_p, sum_before(share, scratch).all * LIST_SCALE);
    int token = -1;
#pragma unroll 1
    for (int i = BOUNDS; i-- && token < 0;) {
        const float least = least_of(i);
        const int here = i ? copy_first(l.first, l.entry, n, least) : n;
        if (i == 0 || here <= FIRST)
            token = draw_from(i ? l.first : l.entry, here, least == least_of_all, row, r.V, goal,
                              (word *)scratch, fallback);
    }
    return token;
}
