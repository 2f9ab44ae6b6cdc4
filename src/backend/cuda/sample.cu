// Sampling: a block takes one row of logits, in passes over it from the second-level cache.
//
//   pass 1     penalties are paid, and the largest logit is found: all that temperature 0 needs
//   pass 2     probabilities relative to it; without top_k and top_p their sums
//   4 passes   for each of top_k and top_p: where it cuts, 6 bits of a probability after 6
//   1 pass     sums of what is left
//
// Sums that a draw hangs on are doubles over segments of neighbouring ids, in an order that depends
// on V alone; the drawn mark falls into one segment, and only that one is walked id by id. On an
// H100 a multiprocessor reads a row of 65,536 in about 4 µs; the floor of 256 rows in one pass is
// 22 µs of memory.
#include "best.cuh"

#include "kernels.h"

// Blocks have THREADS threads, or FEW for a small vocabulary.
enum { THREADS = 1024, WARPS = THREADS / 32, FEW = 128, FEW_V = 8192 };
enum { FOUR = 4, PIECE = 32 * FOUR, UNROLL = 4 };

__device__ static int warps() {
    return (int)blockDim.x / 32;
}

// struct sample_row of ops.h; cuda.c asserts its size.
struct sample_row {
    float temperature, top_p, min_p;
    float presence, repetition, frequency, penalty_decay;
    int32_t top_k, slot, num_bias, bias_slot, reserved;
    uint64_t seed, position;
};

struct sample_bias {
    int32_t token;
    float value;
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

// Inclusive, over the lanes of a warp.
template <class T> __device__ static T warp_scan(T x) {
    const int lane = threadIdx.x & 31;
    for (int d = 1; d < 32; d <<= 1) {
        const T y = __shfl_up_sync(0xffffffffu, x, d);
        if (lane >= d) x += y;
    }
    return x;
}

// Exclusive sum over the threads of a block, in order; *total: of all.
template <class T> __device__ static T sum_before(T x, T *scratch, T *total) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const T sum = warp_scan(x), up = __shfl_up_sync(0xffffffffu, sum, 1);
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    T before = 0, all = 0;
    for (int w = 0; w < warps(); w++) {
        if (w < warp) before += scratch[w];
        all += scratch[w];
    }
    __syncthreads();
    *total = all;
    return before + (lane ? up : 0);
}

// ---- a row -------------------------------------------------------------------------------------

// At most as many segments as threads, of whole pieces; a piece is 128 ids, four a lane. Of n warps
// warp w takes the segments w, w + n and so on.
struct row_of {
    float *x; // logits, then perhaps probabilities
    int V, pieces;
    bool fours; // x has whole fours, each at a multiple of 16 bytes
};

struct four {
    float e[FOUR];
};

__device__ static four load_four(const float *x, int n, bool whole) {
    four y = {{0, 0, 0, 0}};
    if (whole && n > 0) {
        const float4 v = *(const float4 *)x;
        return {{v.x, v.y, v.z, v.w}};
    }
#pragma unroll
    for (int i = 0; i < FOUR; i++)
        if (i < n) y.e[i] = x[i];
    return y;
}

__device__ static void store_four(float *x, const four &y, int n, bool whole) {
    if (whole && n > 0) {
        *(float4 *)x = make_float4(y.e[0], y.e[1], y.e[2], y.e[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < FOUR; i++)
        if (i < n) x[i] = y.e[i];
}

// f(id, numbers, how many of them there are, segment, whether it is the segment's last piece), by
// whole warps, each warp's pieces upwards. UNROLL pieces are on their way at a time.
template <class F> __device__ static void for_each_four(const row_of &r, const float *x, F f) {
    const int lane = threadIdx.x & 31;
    int segment = threadIdx.x >> 5, piece = 0;
    while ((segment * r.pieces + piece) * PIECE < r.V) {
        four v[UNROLL];
        int id[UNROLL], seg[UNROLL];
        bool last[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            seg[u] = segment;
            id[u] = (segment * r.pieces + piece) * PIECE + lane * FOUR;
            v[u] = load_four(x + id[u], r.V - id[u], r.fours);
            last[u] = ++piece == r.pieces;
            if (last[u]) piece = 0, segment += warps();
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (id[u] - lane * FOUR < r.V) f(id[u], v[u], r.V - id[u], seg[u], last[u]);
    }
}

// ---- the largest -------------------------------------------------------------------------------

// A token stands there once, so no two threads meet.
__device__ static void add_biases(const row_of &r, const sample_bias *bias, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        if ((unsigned)bias[i].token >= (unsigned)r.V) __trap();
        r.x[bias[i].token] = __fadd_rn(r.x[bias[i].token], bias[i].value);
    }
    __syncthreads();
}

// Pass 1. A penalty is paid, and then decays for the next token.
__device__ static best pay_and_find_best(const row_of &r, float *pen, float decay, best *scratch) {
    best mine = {NAN, r.V};
    const bool pen_fours = r.fours && (uintptr_t)pen % 16 == 0;
    for_each_four(r, r.x, [&](int id, four v, int n, int, bool) {
        if (pen) {
            four paid = load_four(pen + id, n, pen_fours);
#pragma unroll
            for (int i = 0; i < FOUR; i++) v.e[i] = __fadd_rn(v.e[i], -paid.e[i]);
            store_four(r.x + id, v, n, r.fours);
            if (decay != 1) {
#pragma unroll
                for (int i = 0; i < FOUR; i++) paid.e[i] = __fmul_rn(paid.e[i], decay);
                store_four(pen + id, paid, n, pen_fours);
            }
        }
        const float most = fmaxf(fmaxf(v.e[0], v.e[1]), fmaxf(v.e[2], v.e[3]));
        if (n >= FOUR && most <= mine.value) return;
#pragma unroll
        for (int i = 0; i < FOUR; i++)
            if (i < n && better({v.e[i], id + i}, mine)) mine = {v.e[i], id + i};
    });
    return block_best(mine, scratch);
}

// ---- where top_k and top_p cut -----------------------------------------------------------------

// Probabilities lie in [0, 1], and their bits, 30 of them, sort as they do: five digits of six
// bits. Masses that decide a cut are whole units of 1/scale: their sums do not depend on the order
// in which they come. A lane counts in a column of its own, so that no two meet in a bank; units
// are split into two counters so that the columns cannot overflow.
enum { BINS = 64, DIGIT = 6, DIGITS = 30 };

struct bins {
    uint32_t count[BINS][32], low[BINS][32], high[BINS][32];
};

struct histogram {
    unsigned long long mass[BINS];
    int count[BINS];
};

struct scale {
    int half; // bits of each of the two counters
    float units;
};

__device__ static scale scale_of(int V) {
    int half = 19;
    while ((uint64_t)(V / 32 + 2 * PIECE) << half >> 32) half--;
    return {half, __uint_as_float((uint32_t)(127 + 2 * half) << 23)};
}

__device__ static uint64_t units(float p, scale s) {
    return __float2ull_rn(p * s.units);
}

__device__ static void clear(bins &b) {
    for (int i = threadIdx.x; i < BINS * 32; i += blockDim.x) {
        const int bin = i / 32, lane = i % 32;
        b.count[bin][lane] = b.low[bin][lane] = b.high[bin][lane] = 0;
    }
    __syncthreads();
}

__device__ static void add(bins &b, uint32_t digit, float p, scale s) {
    const int lane = threadIdx.x & 31;
    const uint64_t u = units(p, s);
    atomicAdd(&b.count[digit][lane], 1u);
    atomicAdd(&b.low[digit][lane], (uint32_t)u & ((1u << s.half) - 1));
    atomicAdd(&b.high[digit][lane], (uint32_t)(u >> s.half));
}

__device__ static void gather(histogram &h, const bins &b, scale s) {
    __syncthreads();
    if (threadIdx.x < BINS) {
        const int bin = threadIdx.x;
        int count = 0;
        unsigned long long low = 0, high = 0;
        for (int i = 0; i < 32; i++) {
            const int column = (bin + i) & 31; // a bank each
            count += (int)b.count[bin][column];
            low += b.low[bin][column];
            high += b.high[bin][column];
        }
        h.count[bin] = count;
        h.mass[bin] = low + (high << s.half);
    }
    __syncthreads();
}

struct edge {
    uint32_t bits;
    int above, equal; // tokens with larger bits, and with these
    unsigned long long mass_above;
};

// Narrows t by one digit: the largest for which those tokens that have at least it are `count` or
// have `goal`; 0 if there is none.
__device__ static edge next_digit(edge t, const histogram &h, int count, uint64_t goal) {
    __shared__ edge found;
    const int lane = threadIdx.x & 31;
    if (threadIdx.x < 32) { // two a lane, larger ones first
        const int first = BINS - 1 - 2 * lane, second = first - 1;
        const int here = h.count[first] + h.count[second];
        const unsigned long long mass = h.mass[first] + h.mass[second];
        const int before = t.above + warp_scan(here) - here;
        const unsigned long long mass_before = t.mass_above + warp_scan(mass) - mass;
        const bool enough = before >= count || mass_before >= goal;
        const bool with_first =
            before + h.count[first] >= count || mass_before + h.mass[first] >= goal;
        const bool with_both = before + here >= count || mass_before + mass >= goal;
        const bool lacking = lane == 31 && !with_both;
        if (!enough && (with_both || lacking)) {
            const bool one = with_first;
            found = {t.bits << DIGIT | (uint32_t)(one ? first : second),
                     one ? before : before + h.count[first], h.count[one ? first : second],
                     one ? mass_before : mass_before + h.mass[first]};
        }
    }
    __syncthreads();
    t = found;
    __syncthreads();
    return t;
}

struct finder {
    row_of r; // of probabilities
    scale s;
    bins *b;
    histogram *top, *rest; // of the first digit; of the one that is looked at
};

__device__ static edge find_edge(const finder &f, int count, uint64_t goal) {
    edge t = next_digit({0, 0, 0, 0}, *f.top, count, goal);
    for (int shift = DIGITS - 2 * DIGIT; shift >= 0; shift -= DIGIT) {
        clear(*f.b);
        for_each_four(f.r, f.r.x, [&](int, const four &v, int n, int, bool) {
#pragma unroll
            for (int i = 0; i < FOUR; i++) {
                const uint32_t bits = __float_as_uint(v.e[i]);
                if (i < n && bits >> (shift + DIGIT) == t.bits)
                    add(*f.b, bits >> shift & (BINS - 1), v.e[i], f.s);
            }
        });
        gather(*f.rest, *f.b, f.s);
        t = next_digit(t, *f.rest, count, goal);
    }
    return t;
}

// What stays: all whose bits are above `bits`, and of those equal to it the first `equals` of
// `equal`, by id.
struct cut {
    uint32_t bits;
    int equals, equal;
};

__device__ static cut truncate(const finder &f, const sample_row &row) {
    const uint64_t never = ~(uint64_t)0;
    cut keep = {0, f.r.V, f.r.V};
    uint64_t all = 0;
    if (row.top_k > 0 && row.top_k < f.r.V) {
        const edge t = find_edge(f, row.top_k, never);
        keep = {t.bits, row.top_k - t.above, t.equal};
        all = t.mass_above + (uint64_t)keep.equals * units(__uint_as_float(t.bits), f.s);
    } else {
        for (int bin = 0; bin < BINS; bin++) all += f.top->mass[bin];
    }
    if (row.top_p >= 1) return keep;
    // At least one token stays; the one that reaches the mass stays whole.
    const double wanted = ceil((double)row.top_p * (double)all);
    const uint64_t goal = wanted > 1 ? (uint64_t)wanted : 1;
    const edge t = find_edge(f, f.r.V + 1, goal);
    const uint64_t each = units(__uint_as_float(t.bits), f.s);
    const uint64_t most = (uint64_t)(t.bits == keep.bits ? keep.equals : t.equal);
    const uint64_t lacking = goal > t.mass_above ? goal - t.mass_above : 0;
    const uint64_t equals = each ? (lacking + each - 1) / each : most;
    return {t.bits, equals < 1 ? 1 : (int)(equals < most ? equals : most), t.equal};
}

// ---- the draw ----------------------------------------------------------------------------------

struct drawing {
    row_of r;
    bool ready; // r.x holds probabilities
    float max, inverse, least;
    uint32_t bits; // tokens with these stay if their id is below limit
    int limit;

    __device__ float probability(float x) const {
        if (ready) return x;
        const float p = expf((x - max) * inverse);
        return p > 0 ? p : 0; // NaN is nothing
    }
    // The probability of a token that stays; 0 of others.
    __device__ double share(float x, int id) const {
        const float p = probability(x);
        const uint32_t b = __float_as_uint(p);
        const bool stays = b > bits || (b == bits && id < limit);
        return stays && p >= least ? (double)p : 0;
    }
};

// Behind the `equals`th token, by id, that has these bits. The block's warps count them, the first
// one walks the segment it lies in.
__device__ static int limit_of(const row_of &r, uint32_t bits, int equals, int *counts,
                               int *scratch) {
    __shared__ int segment, before, limit;
    const int lane = threadIdx.x & 31;
    int all, seen = 0;
    counts[threadIdx.x] = 0;
    __syncthreads();
    auto equal_in = [&](const four &v, int n) {
        int count = 0;
#pragma unroll
        for (int i = 0; i < FOUR; i++) count += i < n && __float_as_uint(v.e[i]) == bits;
        return count;
    };
    for_each_four(r, r.x, [&](int, const four &v, int n, int s, bool last) {
        seen += equal_in(v, n);
        if (!last && (s * r.pieces + r.pieces) * PIECE <= r.V) return;
        const int sum = warp_sum(seen);
        if (lane == 0) counts[s] = sum;
        if (last) seen = 0;
    });
    __syncthreads();
    const int mine = counts[threadIdx.x], passed = sum_before(mine, scratch, &all);
    if (passed < equals && passed + mine >= equals) segment = threadIdx.x, before = passed;
    __syncthreads();
    if (threadIdx.x < 32) {
        int done = before;
        for (int piece = 0; piece < r.pieces; piece++) {
            const int id = (segment * r.pieces + piece) * PIECE + lane * FOUR, n = r.V - id;
            const four v = load_four(r.x + id, n, r.fours);
            const int here = equal_in(v, n), upto = done + warp_scan(here);
            int count = upto - here;
#pragma unroll
            for (int i = 0; i < FOUR; i++)
                if (i < n && __float_as_uint(v.e[i]) == bits && ++count == equals)
                    limit = id + i + 1;
            done = __shfl_sync(0xffffffffu, upto, 31);
        }
    }
    __syncthreads();
    return limit;
}

__device__ static double sum_of(const drawing &d, const four &v, int id, int n) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < FOUR; i++)
        if (i < n) sum += d.share(v.e[i], id + i);
    return sum;
}

// The first token of a segment at which the sum, `passed` before it, is more than `mark`; else the
// last one that may come. By one warp; -1: none.
__device__ static int walk(const drawing &d, int segment, double passed, double mark) {
    const int lane = threadIdx.x & 31;
    int chosen = -1, last = -1;
    for (int piece = 0; piece < d.r.pieces && chosen < 0; piece++) {
        const int id = (segment * d.r.pieces + piece) * PIECE + lane * FOUR, n = d.r.V - id;
        const four v = load_four(d.r.x + id, n, d.r.fours);
        const double here = sum_of(d, v, id, n), upto = passed + warp_scan(here);
        double sum = upto - here;
        int first = d.r.V, latest = -1;
#pragma unroll
        for (int i = 0; i < FOUR; i++) {
            const double p = i < n ? d.share(v.e[i], id + i) : 0;
            sum += p;
            if (p > 0) latest = id + i;
            if (p > 0 && sum > mark && first == d.r.V) first = id + i;
        }
        for (int k = 16; k; k >>= 1) {
            const int a = __shfl_xor_sync(0xffffffffu, first, k);
            const int b = __shfl_xor_sync(0xffffffffu, latest, k);
            first = a < first ? a : first;
            latest = b > latest ? b : latest;
        }
        if (first < d.r.V) chosen = first;
        if (latest >= 0) last = latest;
        passed = __shfl_sync(0xffffffffu, upto, 31);
    }
    return chosen >= 0 ? chosen : last;
}

// Tokens in order of ids until the drawn share of their mass is passed.
__device__ static int draw(const drawing &d, const sample_row &row, double *sums, double *scratch,
                           int fallback) {
    __shared__ int first, last, chosen;
    __shared__ double before;
    const int lane = threadIdx.x & 31, segment = threadIdx.x;
    double all, sum = 0;
    sums[threadIdx.x] = 0;
    if (threadIdx.x == 0) first = THREADS, last = -1;
    __syncthreads();
    for_each_four(d.r, d.r.x, [&](int id, const four &v, int n, int s, bool end) {
        sum += sum_of(d, v, id, n);
        if (!end && (s * d.r.pieces + d.r.pieces) * PIECE <= d.r.V) return;
        const double whole = warp_sum(sum);
        if (lane == 0) sums[s] = whole;
        if (end) sum = 0;
    });
    __syncthreads();
    const double mine = sums[segment], passed = sum_before(mine, scratch, &all);
    const double mark = uniform(row.seed, row.position) * all;
    if (mine > 0) {
        atomicMax(&last, segment);
        if (passed + mine > mark) atomicMin(&first, segment);
    }
    __syncthreads();
    const int target = first < THREADS ? first : last;
    if (target < 0) return fallback;
    if (segment == target) before = passed;
    __syncthreads();
    if (threadIdx.x < 32) {
        const int token = walk(d, target, before, mark);
        if (threadIdx.x == 0) chosen = token < 0 ? fallback : token;
    }
    __syncthreads();
    return chosen;
}

// ---- the kernel --------------------------------------------------------------------------------

static __global__ void __launch_bounds__(THREADS)
    sample(int32_t *token, float *logits, const sample_row *rows, char *penalties,
           size_t penalty_bytes, const char *biases, size_t bias_bytes, int V) {
    begin_kernel();
    __shared__ bins counted;
    __shared__ histogram top, rest;
    __shared__ double sums[THREADS], scratch[WARPS];
    __shared__ best bests[WARPS];
    const sample_row row = rows[blockIdx.x];
    float *const x = logits + blockIdx.x * (size_t)V;
    float *const pen =
        penalties && row.slot >= 0 ? (float *)(penalties + row.slot * penalty_bytes) : nullptr;
    const row_of r = {x, V, (V + PIECE * THREADS - 1) / (PIECE * THREADS),
                      V % FOUR == 0 && (uintptr_t)x % 16 == 0};
    if (row.num_bias)
        add_biases(r, (const sample_bias *)(biases + row.bias_slot * bias_bytes), row.num_bias);
    const best max = pay_and_find_best(r, pen, row.penalty_decay, bests);
    int chosen = max.index;
    if (row.temperature > 0 && row.top_k != 1) {
        // Near 0 the temperature has no reciprocal: 0 · inf would be NaN where the maximum is.
        const float inverse = fminf(1.0f / row.temperature, 3.40282347e38f);
        drawing d = {r, false, max.value, inverse, row.min_p < 1 ? row.min_p : 1, 0, V};
        if ((row.top_k > 0 && row.top_k < V) || row.top_p < 1) {
            const finder f = {r, scale_of(V), &counted, &top, &rest};
            clear(counted);
            for_each_four(r, x, [&](int id, four v, int n, int, bool) {
#pragma unroll
                for (int i = 0; i < FOUR; i++) {
                    v.e[i] = d.probability(v.e[i]);
                    if (i < n)
                        add(counted, __float_as_uint(v.e[i]) >> (DIGITS - DIGIT), v.e[i], f.s);
                }
                store_four(x + id, v, n, r.fours);
            });
            gather(top, counted, f.s);
            const cut keep = truncate(f, row);
            d.ready = true;
            d.bits = keep.bits;
            if (keep.equals < keep.equal)
                d.limit = limit_of(r, keep.bits, keep.equals, (int *)sums, (int *)scratch);
        }
        chosen = draw(d, row, sums, scratch, max.index);
    }
    if (threadIdx.x) return;
    token[blockIdx.x] = chosen;
    if (!pen) return;
    uint32_t *seen = (uint32_t *)(pen + V) + chosen / 32;
    const uint32_t bit = 1u << (chosen & 31);
    pen[chosen] = __fadd_rn(pen[chosen],
                            __fadd_rn(*seen & bit ? row.repetition : row.presence, row.frequency));
    *seen |= bit;
}

void k_sample(struct queue *s, int32_t *token, float *logits, const void *rows, void *penalties,
              size_t penalty_bytes, const void *biases, size_t bias_bytes, size_t O, size_t V) {
    static_assert(sizeof(sample_row) == 64, "struct sample_row of ops.h");
    static_assert((int)FEW_V <= (int)FEW * PIECE, "a thread for every segment");
    if (O)
        LAUNCH(sample, (unsigned)O, V <= FEW_V ? FEW : THREADS, s, token, logits,
               (const sample_row *)rows, (char *)penalties, penalty_bytes, (const char *)biases,
               bias_bytes, (int)V);
}
