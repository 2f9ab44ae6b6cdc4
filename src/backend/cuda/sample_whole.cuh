// The draw from a whole row: of all tokens, or of what top_k and top_p keep, however many.
#pragma once
#include "sample.cuh"

// ---- where top_k and top_p cut -----------------------------------------------------------------

// Probabilities lie in [0, 1], and their bits, 30 of them, sort as they do: five digits of six
// bits. A lane counts in a column of its own, so that no two meet in a bank; units are split into
// two counters so that the columns cannot overflow.
enum { BINS = 64, DIGIT = 6, DIGITS = 30 };

struct bins {
    uint32_t count[BINS][32], low[BINS][32], high[BINS][32];
};

struct counters { // of a block, in shared memory
    bins counted;
    double sums[THREADS];
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

__device__ static void clear(bins &b) {
    for (int i = threadIdx.x; i < BINS * 32; i += blockDim.x) {
        const int bin = i / 32, lane = i % 32;
        b.count[bin][lane] = b.low[bin][lane] = b.high[bin][lane] = 0;
    }
    __syncthreads();
}

__device__ static void add(bins &b, uint32_t digit, float p, scale s) {
    const int lane = threadIdx.x & 31;
    const uint64_t u = units(p, s.units);
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

template <class R> struct finder {
    R r; // of probabilities
    scale s;
    bins *b;
    histogram *top, *rest; // of the first digit; of the one that is looked at
};

template <class R>
__device__ static edge find_edge(const finder<R> &f, int count, uint64_t goal) {
    edge t = next_digit({0, 0, 0, 0}, *f.top, count, goal);
    for (int shift = DIGITS - 2 * DIGIT; shift >= 0; shift -= DIGIT) {
        clear(*f.b);
        f.r.for_each_four([&](int id, const four &v, int, bool) {
#pragma unroll
            for (int i = 0; i < FOUR; i++) {
                const uint32_t bits = __float_as_uint(v.e[i]);
                if (id + i < f.r.V && bits >> (shift + DIGIT) == t.bits)
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

template <class R>
__device__ static cut truncate(const finder<R> &f, const sample_row &row) {
    const uint64_t never = ~(uint64_t)0;
    cut keep = {0, f.r.V, f.r.V};
    uint64_t all = 0;
    if (cuts_to_k(row, f.r.V)) {
        const edge t = find_edge(f, row.top_k, never);
        keep = {t.bits, row.top_k - t.above, t.equal};
        all = t.mass_above + (uint64_t)keep.equals * units(__uint_as_float(t.bits), f.s.units);
    } else {
        for (int bin = 0; bin < BINS; bin++) all += f.top->mass[bin];
    }
    if (row.top_p >= 1) return keep;
    // The token that reaches the mass stays whole.
    const uint64_t goal = goal_of(row.top_p, (double)all);
    const edge t = find_edge(f, f.r.V + 1, goal);
    const uint64_t each = units(__uint_as_float(t.bits), f.s.units);
    const uint64_t most = (uint64_t)(t.bits == keep.bits ? keep.equals : t.equal);
    const uint64_t lacking = goal > t.mass_above ? goal - t.mass_above : 0;
    const uint64_t equals = each ? (lacking + each - 1) / each : most;
    return {t.bits, equals < 1 ? 1 : (int)(equals < most ? equals : most), t.equal};
}

// ---- the draw ----------------------------------------------------------------------------------

template <class R> struct drawing {
    R r;
    bool ready; // r.x holds probabilities
    softmax p;
    float least;
    uint32_t bits; // tokens with these stay if their id is below limit
    int limit;

    // The probability of a token that stays; 0 of others.
    __device__ float share(float x, int id) const {
        const float mine = ready ? x : p(x);
        const uint32_t b = __float_as_uint(mine);
        const bool stays = b > bits || (b == bits && id < limit);
        return stays && mine >= least ? mine : 0;
    }
};

// Behind the `equals`th token, by id, that has these bits. The block's warps count them, the first
// one walks the segment it lies in.
template <class R>
__device__ static int limit_of(const R &r, uint32_t bits, int equals, int *counts,
                               int *scratch) {
    __shared__ int segment, before, limit;
    const int lane = threadIdx.x & 31;
    int seen = 0;
    counts[threadIdx.x] = 0;
    __syncthreads();
    auto equal_in = [&](const four &v) { // NaN's bits are no probability's
        int count = 0;
#pragma unroll
        for (int i = 0; i < FOUR; i++) count += __float_as_uint(v.e[i]) == bits;
        return count;
    };
    r.for_each_four([&](int, const four &v, int s, bool last) {
        seen += equal_in(v);
        if (!last) return;
        const int sum = warp_sum(seen);
        if (lane == 0) counts[s] = sum;
        seen = 0;
    });
    __syncthreads();
    const int mine = counts[threadIdx.x], passed = sum_before(mine, scratch).before;
    if (passed < equals && passed + mine >= equals) segment = threadIdx.x, before = passed;
    __syncthreads();
    if (threadIdx.x < 32) {
        int done = before;
        for (int piece = 0; piece < r.pieces; piece++) {
            const int id = (segment * r.pieces + piece) * PIECE + lane * FOUR;
            const four v = r.load(id);
            const int here = equal_in(v), upto = done + warp_scan(here);
            int count = upto - here;
#pragma unroll
            for (int i = 0; i < FOUR; i++)
                if (__float_as_uint(v.e[i]) == bits && ++count == equals)
                    limit = id + i + 1;
            done = __shfl_sync(0xffffffffu, upto, 31);
        }
    }
    __syncthreads();
    return limit;
}

template <class R>
__device__ static double sum_of(const drawing<R> &d, const four &v, int id) {
    const float a = d.share(v.e[0], id), b = d.share(v.e[1], id + 1);
    const float c = d.share(v.e[2], id + 2), e = d.share(v.e[3], id + 3);
    return (double)((a + b) + (c + e));
}

// The first token of a segment at which the sum, `passed` before it, is more than `mark`; else the
// last one that may come. By one warp; -1: none.
template <class R>
__device__ static int walk(const drawing<R> &d, int segment, double passed, double mark) {
    const int lane = threadIdx.x & 31;
    int chosen = -1, last = -1;
    for (int piece = 0; piece < d.r.pieces && chosen < 0; piece++) {
        const int id = (segment * d.r.pieces + piece) * PIECE + lane * FOUR;
        const four v = d.r.load(id);
        const double here = sum_of(d, v, id), upto = passed + warp_scan(here);
        double sum = upto - here;
        int first = d.r.V, latest = -1;
#pragma unroll
        for (int i = 0; i < FOUR; i++) {
            const float p = d.share(v.e[i], id + i);
            sum += (double)p;
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
template <class R>
__device__ static int draw(const drawing<R> &d, const sample_row &row, double *sums, double *scratch,
                           int fallback) {
    __shared__ int first, last, chosen;
    __shared__ double before;
    const int lane = threadIdx.x & 31, segment = threadIdx.x;
    double sum = 0;
    sums[threadIdx.x] = 0;
    if (threadIdx.x == 0) first = THREADS, last = -1;
    __syncthreads();
    d.r.for_each_four([&](int id, const four &v, int s, bool end) {
        sum += sum_of(d, v, id);
        if (!end) return;
        const double whole = warp_sum(sum);
        if (lane == 0) sums[s] = whole;
        sum = 0;
    });
    __syncthreads();
    const double mine = sums[segment];
    const scanned<double> s = sum_before(mine, scratch);
    const double passed = s.before, mark = uniform(row.seed, row.position) * s.all;
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

// Probabilities in the place of logits, and where they are cut.
template <class R>
__device__ static drawing<R> cut_row(counters &c, const R &r, softmax p, const sample_row &row,
                                     double *scratch) {
    __shared__ histogram top, rest;
    const finder<R> f = {r, scale_of(r.V), &c.counted, &top, &rest};
    drawing<R> d = {r, true, p, 0, 0, r.V};
    clear(c.counted);
    r.for_each_four([&](int id, four v, int, bool) {
#pragma unroll
        for (int i = 0; i < FOUR; i++) {
            v.e[i] = p(v.e[i]);
            if (id + i < r.V)
                add(c.counted, __float_as_uint(v.e[i]) >> (DIGITS - DIGIT), v.e[i], f.s);
        }
        r.store(id, v);
    });
    gather(top, c.counted, f.s);
    const cut keep = truncate(f, row);
    d.bits = keep.bits;
    if (keep.equals < keep.equal)
        d.limit = limit_of(r, keep.bits, keep.equals, (int *)c.sums, (int *)scratch);
    return d;
}
