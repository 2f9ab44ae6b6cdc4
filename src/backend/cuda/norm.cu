// Norms, forward and backward: memory's affair. A row of up to 4096 numbers stays in registers,
// with a warp or a block, and goes through once; wider or odd rows are read again where they are
// wanted.
#include "norm.cuh"

#include "kernels.h"

enum { COLUMNS = 128 };

// Of a row that a block has: counted from the first number on, what is left of equal numbers is
// zero.
__device__ static float2 moments(const float *x, size_t C, float eps, float *scratch) {
    const float first = x[0];
    float sum = 0, square = 0;
    for (size_t c = threadIdx.x; c < C; c += THREADS) sum += x[c] - first;
    const float mean = first + block_sum<float, WARPS>(sum, scratch) / (float)C;
    for (size_t c = threadIdx.x; c < C; c += THREADS) square += (x[c] - mean) * (x[c] - mean);
    const float var = block_sum<float, WARPS>(square, scratch) / (float)C;
    return make_float2(mean, 1.0f / sqrtf(var + eps));
}

template <int GROUP, int NV, class T>
static __global__ void norm_rows(T *y, const float *x, const float *w, const float *b, size_t rows,
                                 size_t C, float eps) {
    begin_kernel();
    using R = row<GROUP, NV>;
    __shared__ float scratch[WARPS];
    const size_t r = GROUP == 1 ? blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5) : blockIdx.x;
    if (r >= rows) return;
    R v;
    v.take(x + r * C, C);
    const float2 m = row_moments(v, x[r * C], C, eps, scratch);
#pragma unroll
    for (int i = 0; i < NV; i++) {
        const size_t c = R::column(i);
        if (c >= C) continue;
        const several<4> scale = load<4>(w + c), shift = load<4>(b + c);
#pragma unroll
        for (int e = 0; e < 4; e++) v.v[i][e] = normed(v.v[i][e], m, scale[e], shift[e]);
        store<4>(y + r * C + c, v.v[i]);
    }
}

struct bwd {
    float *dx, *part;
    const float *dy, *x, *w, *add;
    size_t R, C, chunk; // chunk: rows of a part
    float eps;
};

// dx of a chunk of rows, and their sums for dw and db: part (2,C) of the chunk.
template <int GROUP, int NV>
static __global__ void __launch_bounds__(THREADS) norm_bwd_rows(bwd p) {
    begin_kernel();
    using R = row<GROUP, NV>;
    __shared__ float scratch[WARPS];
    __shared__ float4 sums[GROUP == 1 ? WARPS : 1][GROUP == 1 ? NV * 32 : 1];
    const int warp = threadIdx.x >> 5;
    const size_t C = p.C, first = blockIdx.x * p.chunk;
    const size_t end = first + p.chunk < p.R ? first + p.chunk : p.R;
    R dw = {}, db = {};
    for (size_t r = first + (GROUP == 1 ? warp : 0); r < end; r += WARPS / GROUP) {
        R x, g;
        x.take(p.x + r * C, C);
        g.take(p.dy + r * C, C);
        const float2 m = row_moments(x, p.x[r * C], C, p.eps, scratch);
        float sum_e = 0, sum_ex = 0;
#pragma unroll
        for (int i = 0; i < NV; i++) {
            if (R::column(i) >= C) continue;
            const several<4> w = load<4>(p.w + R::column(i));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float xhat = (x.v[i][e] - m.x) * m.y, d = g.v[i][e] * w[e];
                dw.v[i][e] += g.v[i][e] * xhat;
                db.v[i][e] += g.v[i][e];
                sum_e += d;
                sum_ex += d * xhat;
                x.v[i][e] = xhat;
                g.v[i][e] = d;
            }
        }
        sum_e = row_sum<GROUP>(sum_e, scratch) / (float)C;
        sum_ex = row_sum<GROUP>(sum_ex, scratch) / (float)C;
#pragma unroll
        for (int i = 0; i < NV; i++) {
            const size_t c = R::column(i);
            if (c >= C) continue;
            several<4> past = {};
            if (p.add) past = load<4>(p.add + r * C + c);
#pragma unroll
            for (int e = 0; e < 4; e++) past[e] += m.y * (g.v[i][e] - sum_e - x.v[i][e] * sum_ex);
            store<4>(p.dx + r * C + c, past);
        }
    }
    float *part = p.part + blockIdx.x * 2 * C;
    if constexpr (GROUP == 1) {
#pragma unroll
        for (int k = 0; k < 2; k++) { // dw, then db: the warps' sums in order
            if (k) __syncthreads();
#pragma unroll
            for (int i = 0; i < NV; i++) {
                const several<4> &v = k ? db.v[i] : dw.v[i];
                sums[warp][i * 32 + (threadIdx.x & 31)] = make_float4(v[0], v[1], v[2], v[3]);
            }
            __syncthreads();
            for (size_t c = threadIdx.x; c < C; c += THREADS) {
                float total = 0;
                for (int w = 0; w < WARPS; w++) total += ((const float *)sums[w])[c];
                part[k * C + c] = total;
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < NV; i++) {
            if (R::column(i) >= C) continue;
            store<4>(part + R::column(i), dw.v[i]);
            store<4>(part + C + R::column(i), db.v[i]);
        }
    }
}

// ---- any row -----------------------------------------------------------------------------------

template <class T>
static __global__ void norm_any(T *y, const float *x, const float *w, const float *b, size_t C,
                                float eps) {
    begin_kernel();
    __shared__ float scratch[WARPS];
    x += blockIdx.x * C;
    y += blockIdx.x * C;
    const float2 m = moments(x, C, eps, scratch);
    for (size_t c = threadIdx.x; c < C; c += THREADS)
        store<1>(y + c, several<1>{{(x[c] - m.x) * m.y * w[c] + b[c]}});
}

// dx of a row; its mean and scale stay in `stat` for the sums over rows.
static __global__ void norm_bwd_any(bwd p, float2 *stat) {
    begin_kernel();
    __shared__ float scratch[WARPS];
    const size_t at = blockIdx.x * p.C, C = p.C;
    const float *x = p.x + at, *dy = p.dy + at;
    const float2 m = moments(x, C, p.eps, scratch);
    float sum_e = 0, sum_ex = 0;
    for (size_t c = threadIdx.x; c < C; c += THREADS) {
        const float e = dy[c] * p.w[c];
        sum_e += e;
        sum_ex += e * ((x[c] - m.x) * m.y);
    }
    sum_e = block_sum<float, WARPS>(sum_e, scratch) / (float)C;
    sum_ex = block_sum<float, WARPS>(sum_ex, scratch) / (float)C;
    for (size_t c = threadIdx.x; c < C; c += THREADS) {
        const float d = m.y * (dy[c] * p.w[c] - sum_e - (x[c] - m.x) * m.y * sum_ex);
        p.dx[at + c] = p.add ? d + p.add[at + c] : d;
    }
    if (threadIdx.x == 0) stat[blockIdx.x] = m;
}

static __global__ void norm_sums(float *part, const float *dy, const float *x, const float2 *stat,
                                 size_t R, size_t C, size_t chunk) {
    begin_kernel();
    const size_t c = blockIdx.x * (size_t)COLUMNS + threadIdx.x, first = blockIdx.y * chunk;
    if (c >= C) return;
    const size_t end = first + chunk < R ? first + chunk : R;
    float dw = 0, db = 0;
    for (size_t r = first; r < end; r++) {
        const float2 m = stat[r];
        const float g = dy[r * C + c];
        dw += g * ((x[r * C + c] - m.x) * m.y);
        db += g;
    }
    part[blockIdx.y * 2 * C + c] = dw;
    part[(blockIdx.y * 2 + 1) * C + c] = db;
}

// ---- doors -------------------------------------------------------------------------------------

template <class T>
static void norm_as(struct queue *s, T *y, const float *x, const float *w, const float *b, size_t R,
                    size_t C, float eps) {
#define GO(GROUP, NV)                                                                              \
    LAUNCH((norm_rows<GROUP, NV, T>), blocks(R, WARPS / GROUP), THREADS, s, y, x, w, b, R, C, eps)
    if (C <= WIDEST && in_fours(C, y, x, w, b))
        BY_WIDTH(C, GO);
    else
        LAUNCH(norm_any<T>, (unsigned)R, THREADS, s, y, x, w, b, C, eps);
#undef GO
}

void k_norm(struct queue *s, void *y, bool narrow, const float *x, const float *w, const float *b,
            size_t R, size_t C, float eps) {
    if (!R) return;
    if (narrow)
        norm_as(s, (uint16_t *)y, x, w, b, R, C, eps);
    else
        norm_as(s, (float *)y, x, w, b, R, C, eps);
}

void k_norm_bwd(struct queue *s, float *dx, const float *dy, const float *x, const float *w,
                const float *add, float *part, size_t R, size_t C, float eps) {
    if (!R) return;
    const size_t parts = k_parts(R);
    const bwd p = {dx, part, dy, x, w, add, R, C, part_rows(R), eps};
#define GO(GROUP, NV) LAUNCH((norm_bwd_rows<GROUP, NV>), (unsigned)parts, THREADS, s, p)
    if (C <= WIDEST && in_fours(C, dx, dy, x, w, add)) {
        BY_WIDTH(C, GO);
    } else {
        float2 *stat = (float2 *)(part + parts * 2 * C);
        LAUNCH(norm_bwd_any, (unsigned)R, THREADS, s, p, stat);
        LAUNCH(norm_sums, dim3(blocks(C, COLUMNS), (unsigned)parts), COLUMNS, s, part, dy, x, stat,
               R, C, part_rows(R));
    }
#undef GO
}
