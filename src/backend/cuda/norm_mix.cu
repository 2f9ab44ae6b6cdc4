// Norm and token shift in one pass: a row is read once, its mixes are written, and what lies
// between stays in registers.
#include "norm.cuh"

#include "kernels.h"

enum { MIXES = 6, ROWS_EACH = 4 }; // rows of a block, a warp each

// z from x.
template <int GROUP, int NV>
__device__ static void normalise(row<GROUP, NV> &v, float first, const mix_args &p,
                                 float *scratch) {
    using R = row<GROUP, NV>;
    const float2 m = row_moments(v, first, p.C, p.eps, scratch);
#pragma unroll
    for (int i = 0; i < NV; i++) {
        const size_t c = R::column(i);
        if (c >= p.C) continue;
        const several<4> scale = load<4>(p.w + c), shift = load<4>(p.b + c);
#pragma unroll
        for (int e = 0; e < 4; e++) v.v[i][e] = normed(v.v[i][e], m, scale[e], shift[e]);
    }
}

// ---- spans of one row --------------------------------------------------------------------------

// Norm and mixes of rows that are a span each: the row before lies in a slot. A block has a row; of
// rows that a warp can hold each warp has all of it, and one mix: the shortest way for few rows.
// AHEAD: wider rows' mixes are asked for all together, which takes registers that more than a block
// a multiprocessor has not.
template <int GROUP, int NV, class T, bool AHEAD>
static __global__ void __launch_bounds__(THREADS, AHEAD ? 1 : 0) norm_mix_rows(mix_args p) {
    using R = row<GROUP, NV>;
    constexpr int HELD = GROUP != 1 && AHEAD ? MIXES : 1;
    __shared__ float scratch[WARPS];
    const int warp = threadIdx.x >> 5;
    const size_t r = blockIdx.x, C = p.C, lines = C / 32, line = threadIdx.x;
    if (line < lines) prefetch(p.w + line * 32), prefetch(p.b + line * 32);
    for (size_t i = line; i < p.n * lines; i += THREADS) prefetch(p.mix + i * 32);
    const int32_t before_row = p.prev[r], last_row = p.last[r]; // the host's
    begin_kernel();
    // All is asked for at once.
    R v, before = {}, scale, shift, mix[HELD] = {};
    v.take(p.x + r * C, C);
    const float first = p.x[r * C];
    if (p.in) before.take(p.in + (size_t)(-1 - before_row) * C, C);
    scale.take(p.w, C);
    shift.take(p.b, C);
    if (GROUP == 1 && (size_t)warp < p.n) mix[0].take(p.mix + warp * C, C);
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if (GROUP != 1 && (size_t)k < p.n) mix[k].take(p.mix + k * C, C);
    const float2 m = row_moments(v, first, C, p.eps, scratch);
    EACH_OF_ROW(i, c, C) {
        v.v[i][e] = normed(v.v[i][e], m, scale.v[i][e], shift.v[i][e]);
        before.v[i][e] -= v.v[i][e];
    }
    __syncthreads(); // all have what was before
    const auto give = [&](size_t k, R &mix) {
        EACH_OF_ROW(i, c, C) mix.v[i][e] = mixed(v.v[i][e], before.v[i][e], mix.v[i][e]);
        mix.give((T *)p.m + (k * p.R + r) * C, C);
    };
    if constexpr (GROUP == 1) {
        if ((size_t)warp < p.n) give(warp, mix[0]);
    } else {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if ((size_t)k < p.n) give(k, mix[k]);
        for (size_t k = HELD; k < p.n; k++) {
            mix[0].take(p.mix + k * C, C);
            give(k, mix[0]);
        }
    }
    if (p.out && (GROUP != 1 || warp == WARPS - 1)) v.give(p.out + (size_t)last_row * C, C);
}

// The same for many rows: a warp has a row and all of its mixes, so nothing is made twice. 960 rows
// of 768 take 6 us at 3 TB/s; a block a row took an H100 22, for it reads and adds up eight times.
template <int NV, class T>
static __global__ void __launch_bounds__(ROWS_EACH * 32) norm_mix_warps(mix_args p) {
    using R = row<1, NV>;
    const size_t C = p.C, lines = C / 32, r = blockIdx.x * (size_t)ROWS_EACH + (threadIdx.x >> 5);
    for (size_t i = threadIdx.x; i < lines; i += ROWS_EACH * 32)
        prefetch(p.w + i * 32), prefetch(p.b + i * 32);
    for (size_t i = threadIdx.x; i < p.n * lines; i += ROWS_EACH * 32) prefetch(p.mix + i * 32);
    begin_kernel();
    if (r >= p.R) return;
    const int32_t before_row = p.prev[r], last_row = p.last[r];
    R v, before = {}, mix;
    v.take(p.x + r * C, C);
    if (p.in) before.take(p.in + (size_t)(-1 - before_row) * C, C);
    mix.take(p.mix, C);
    normalise(v, p.x[r * C], p, nullptr);
    if (p.out) v.give(p.out + (size_t)last_row * C, C);
    EACH_OF_ROW(i, c, C) before.v[i][e] -= v.v[i][e];
    for (size_t k = 0; k < p.n; k++) {
        R y;
        EACH_OF_ROW(i, c, C) y.v[i][e] = mixed(v.v[i][e], before.v[i][e], mix.v[i][e]);
        if (k + 1 < p.n) mix.take(p.mix + (k + 1) * C, C);
        y.give((T *)p.m + (k * p.R + r) * C, C);
    }
}

// ---- any spans ---------------------------------------------------------------------------------

// WAVE: strips that a multiprocessor has at a time.
template <int GROUP> struct strip {
    enum { BLOCK = GROUP == 1 ? 128 : THREADS, MOST = GROUP == 1 ? 4 : 8 };
    enum { IN_BLOCK = BLOCK / 32 / GROUP, WAVE = GROUP == 1 ? 12 : 2 };
};

// GROUP warps walk up a strip of rows with the row before in hand, and the next one on its way; the
// row before the first is made once more. A slot is written by those who have read it: where a span
// begins its last row is made too, if it lies behind the strip. OUT: there are slots to write.
template <int GROUP, int NV, int M, bool OUT, class T>
static __global__ void __launch_bounds__(strip<GROUP>::BLOCK)
    norm_mix_strips(mix_args p, unsigned rows) {
    begin_kernel();
    using R = row<GROUP, NV>;
    using S = strip<GROUP>;
    __shared__ float scratch[WARPS];
    const size_t group = GROUP == 1 ? threadIdx.x >> 5 : 0, C = p.C;
    const size_t begin = (blockIdx.x * (size_t)S::IN_BLOCK + group) * rows;
    if (begin >= p.R) return;
    const size_t end = begin + rows < p.R ? begin + rows : p.R;
    R next, before = {};
    size_t ends = p.R; // the last row of a span that begins in the strip
    next.take(p.x + begin * C, C);
    float first = p.x[begin * C];
    if (p.prev[begin] >= 0) {
        before.take(p.x + (begin - 1) * C, C);
        normalise(before, p.x[(begin - 1) * C], p, scratch);
    }
    for (size_t r = begin; r < end; r++) {
        const int32_t prev = p.prev[r];
        R z = next;
        const float start = first;
        if (r + 1 < end) {
            next.take(p.x + (r + 1) * C, C);
            first = p.x[(r + 1) * C];
        }
        if (prev < 0) {
            before = {};
            if (p.in) before.take(p.in + (size_t)(-1 - prev) * C, C);
        }
        normalise(z, start, p, scratch);
        if (OUT && prev < 0) ends = p.last[r] < 0 ? r + (size_t)-p.last[r] : r;
        if (OUT && r == ends) z.give(p.out + (size_t)p.last[r] * C, C);
#pragma unroll
        for (int i = 0; i < NV; i++) {
            const size_t c = R::column(i);
            if (c >= C) continue;
            several<4> mix[M], d;
#pragma unroll
            for (int k = 0; k < M; k++) mix[k] = load<4>(p.mix + k * C + c);
#pragma unroll
            for (int e = 0; e < 4; e++) d[e] = before.v[i][e] - z.v[i][e];
#pragma unroll
            for (int k = 0; k < M; k++) {
#pragma unroll
                for (int e = 0; e < 4; e++) mix[k][e] = mixed(z.v[i][e], d[e], mix[k][e]);
                store<4>((T *)p.m + (k * p.R + r) * C + c, mix[k]);
            }
            before.v[i] = z.v[i];
        }
        if (OUT && prev < 0 && ends >= end) {
            z.take(p.x + ends * C, C);
            normalise(z, p.x[ends * C], p, scratch);
            z.give(p.out + (size_t)(-1 - prev) * C, C);
        }
    }
}

// ---- the door ----------------------------------------------------------------------------------

// As long as all strips are at work at once they are as short as they can be: what they take is the
// way of their rows, one after the other.
template <int GROUP, int NV, int M, class T>
static void start_strips(struct queue *s, const mix_args &p) {
    using S = strip<GROUP>;
    const size_t wave = (size_t)processors() * S::WAVE, each = (p.R + wave - 1) / wave;
    const unsigned rows = each < S::MOST ? (unsigned)each : (unsigned)S::MOST;
    const unsigned strips = blocks(p.R, rows * S::IN_BLOCK);
    if (p.out)
        LAUNCH((norm_mix_strips<GROUP, NV, M, true, T>), strips, S::BLOCK, s, p, rows);
    else
        LAUNCH((norm_mix_strips<GROUP, NV, M, false, T>), strips, S::BLOCK, s, p, rows);
}

template <int GROUP, int NV, class T> static void start(struct queue *s, const mix_args &p) {
    if (GROUP == 1 && p.spans == (int)p.R && p.R >= 3 * (size_t)processors()) {
        LAUNCH((norm_mix_warps<NV, T>), blocks(p.R, ROWS_EACH), ROWS_EACH * 32, s, p);
        return;
    }
    if (p.spans == (int)p.R) {
        constexpr bool WIDE = GROUP != 1;
        if (WIDE && p.n > 1 && p.R <= (size_t)processors())
            LAUNCH((norm_mix_rows<GROUP, NV, T, WIDE>), (unsigned)p.R, THREADS, s, p);
        else
            LAUNCH((norm_mix_rows<GROUP, NV, T, false>), (unsigned)p.R, THREADS, s, p);
        return;
    }
    if (p.n == 1)
        start_strips<GROUP, NV, 1, T>(s, p);
    else
        start_strips<GROUP, NV, MIXES, T>(s, p);
}

bool k_norm_mix(struct queue *s, const struct mix_args *p) {
    if (p->C > WIDEST || (p->n != 1 && p->n != MIXES) ||
        !in_fours(p->C, p->m, p->out, p->x, p->w, p->b, p->in, p->mix))
        return false;
#define GO(GROUP, NV)                                                                              \
    do {                                                                                           \
        if (p->narrow)                                                                             \
            start<GROUP, NV, uint16_t>(s, *p);                                                     \
        else                                                                                       \
            start<GROUP, NV, float>(s, *p);                                                        \
    } while (0)
    if (p->R) BY_WIDTH(p->C, GO);
#undef GO
    return true;
}
