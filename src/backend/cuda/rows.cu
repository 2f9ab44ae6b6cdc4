// Ops over rows and over elements. All are bound by memory: each tensor goes through once, and what
// is summed over rows goes through again by columns, in chunks of a fixed number of rows whose
// sums are added in order.
#include "device.cuh"

#include "kernels.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32, CHUNK = 64, COLUMNS = 128 };

size_t k_parts(size_t R) {
    return (R + CHUNK - 1) / CHUNK;
}

// out[i] += Σ over parts; each part is `stride` long, `first` is where ours begins in it. Eight
// threads share a column's parts, a stretch each.
enum { PART_COLUMNS = 32, STRETCHES = 8 };

static __global__ void add_parts(float *out, const float *part, size_t parts, size_t stride,
                                 size_t first, size_t n) {
    begin_kernel();
    __shared__ float sums[STRETCHES][PART_COLUMNS];
    const int c = threadIdx.x % PART_COLUMNS, t = threadIdx.x / PART_COLUMNS;
    const size_t i = blockIdx.x * (size_t)PART_COLUMNS + c;
    const size_t each = (parts + STRETCHES - 1) / STRETCHES, from = t * each;
    const size_t end = from + each < parts ? from + each : parts;
    float sum = 0;
    if (i < n)
#pragma unroll 8
        for (size_t p = from; p < end; p++) sum += part[p * stride + first + i];
    sums[t][c] = sum;
    __syncthreads();
    if (t || i >= n) return;
    for (int k = 1; k < STRETCHES; k++) sum += sums[k][c];
    out[i] += sum;
}

void k_add_parts(struct queue *s, float *out, const float *part, size_t parts, size_t stride,
                 size_t first, size_t n) {
    LAUNCH(add_parts, blocks(n, PART_COLUMNS), PART_COLUMNS * STRETCHES, s, out, part, parts,
           stride, first, n);
}

// ---- embedding ---------------------------------------------------------------------------------

static __global__ void embed(float *y, const int32_t *token, const void *table, int type, size_t C,
                             size_t V) {
    begin_kernel();
    const size_t r = blockIdx.x, t = (size_t)token[r];
    if (t >= V) __trap();
    for (size_t c = threadIdx.x; c < C; c += blockDim.x)
        y[r * C + c] = (float)load_number(table, type, t * C + c);
}

void k_embed(struct queue *s, float *y, const int32_t *token, const void *table, int type, size_t R,
             size_t C, size_t V) {
    if (R) LAUNCH(embed, (unsigned)R, ROW_THREADS, s, y, token, table, type, C, V);
}

// The block of the first row that holds a token adds all rows that hold it, in order: nothing is
// left to chance, and no two blocks write the same row.
static __global__ void embed_bwd(float *dtable, const float *dy, const int32_t *token, size_t R,
                                 size_t C, size_t V) {
    begin_kernel();
    __shared__ int32_t match[ROW_THREADS];
    __shared__ int before[ROW_WARPS + 1];
    const size_t r = blockIdx.x;
    const int32_t mine = token[r];
    if ((size_t)mine >= V) __trap();
    for (size_t at = 0; at < r; at += ROW_THREADS) {
        const size_t i = at + threadIdx.x;
        if (__syncthreads_or(i < r && token[i] == mine)) return;
    }
    float *out = dtable + (size_t)mine * C;
    for (size_t at = r; at < R; at += ROW_THREADS) {
        const size_t i = at + threadIdx.x;
        const bool hit = i < R && token[i] == mine;
        const unsigned votes = __ballot_sync(0xffffffffu, hit);
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        if (lane == 0) before[warp + 1] = __popc(votes);
        __syncthreads();
        if (threadIdx.x == 0) {
            before[0] = 0;
            for (int w = 0; w < ROW_WARPS; w++) before[w + 1] += before[w];
        }
        __syncthreads();
        if (hit) match[before[warp] + __popc(votes & ((1u << lane) - 1))] = (int32_t)i;
        __syncthreads();
        const int n = before[ROW_WARPS];
        for (size_t c = threadIdx.x; n && c < C; c += ROW_THREADS) {
            float sum = out[c];
            for (int k = 0; k < n; k++) sum += dy[(size_t)match[k] * C + c];
            out[c] = sum;
        }
        __syncthreads();
    }
}

void k_embed_bwd(struct queue *s, float *dtable, const float *dy, const int32_t *token, size_t R,
                 size_t C, size_t V) {
    if (R) LAUNCH(embed_bwd, (unsigned)R, ROW_THREADS, s, dtable, dy, token, R, C, V);
}

static __global__ void gather_rows(float *y, const float *x, const int32_t *row, size_t C) {
    begin_kernel();
    const size_t o = blockIdx.x, r = (size_t)row[o];
    for (size_t c = threadIdx.x; c < C; c += blockDim.x) y[o * C + c] = x[r * C + c];
}

void k_gather_rows(struct queue *s, float *y, const float *x, const int32_t *row, size_t O,
                   size_t C) {
    if (O) LAUNCH(gather_rows, (unsigned)O, ROW_THREADS, s, y, x, row, C);
}

// ---- norm --------------------------------------------------------------------------------------

// Counted from the first number on: what is left of equal numbers is zero.
__device__ static float2 moments(const float *x, size_t C, float eps, float *scratch) {
    const float first = x[0];
    float sum = 0, square = 0;
    for (size_t c = threadIdx.x; c < C; c += ROW_THREADS) sum += x[c] - first;
    const float mean = first + block_sum<float, ROW_WARPS>(sum, scratch) / (float)C;
    for (size_t c = threadIdx.x; c < C; c += ROW_THREADS) square += (x[c] - mean) * (x[c] - mean);
    const float var = block_sum<float, ROW_WARPS>(square, scratch) / (float)C;
    return make_float2(mean, 1.0f / sqrtf(var + eps));
}

static __global__ void norm(float *y, const float *x, const float *w, const float *b, size_t C,
                            float eps) {
    begin_kernel();
    __shared__ float scratch[ROW_WARPS];
    x += blockIdx.x * C;
    y += blockIdx.x * C;
    const float2 m = moments(x, C, eps, scratch);
    for (size_t c = threadIdx.x; c < C; c += ROW_THREADS) y[c] = (x[c] - m.x) * m.y * w[c] + b[c];
}

void k_norm(struct queue *s, float *y, const float *x, const float *w, const float *b, size_t R,
            size_t C, float eps) {
    if (R) LAUNCH(norm, (unsigned)R, ROW_THREADS, s, y, x, w, b, C, eps);
}

// dx of a row; its mean and scale stay in `stat` for the sums over rows.
static __global__ void norm_bwd(float *dx, const float *dy, const float *x, const float *w,
                                const float *add, float2 *stat, size_t C, float eps) {
    begin_kernel();
    __shared__ float scratch[ROW_WARPS];
    const size_t at = blockIdx.x * C;
    x += at, dy += at, dx += at;
    const float2 m = moments(x, C, eps, scratch);
    float sum_e = 0, sum_ex = 0;
    for (size_t c = threadIdx.x; c < C; c += ROW_THREADS) {
        const float e = dy[c] * w[c];
        sum_e += e;
        sum_ex += e * ((x[c] - m.x) * m.y);
    }
    sum_e = block_sum<float, ROW_WARPS>(sum_e, scratch) / (float)C;
    sum_ex = block_sum<float, ROW_WARPS>(sum_ex, scratch) / (float)C;
    for (size_t c = threadIdx.x; c < C; c += ROW_THREADS) {
        const float d = m.y * (dy[c] * w[c] - sum_e - (x[c] - m.x) * m.y * sum_ex);
        dx[c] = add ? d + add[at + c] : d;
    }
    if (threadIdx.x == 0) stat[blockIdx.x] = m;
}

static __global__ void norm_sums(float *part, const float *dy, const float *x, const float2 *stat,
                                 size_t R, size_t C) {
    begin_kernel();
    const size_t c = blockIdx.x * (size_t)COLUMNS + threadIdx.x, first = blockIdx.y * (size_t)CHUNK;
    if (c >= C) return;
    const size_t end = first + CHUNK < R ? first + CHUNK : R;
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

void k_norm_bwd(struct queue *s, float *dx, float *dw, float *db, const float *dy, const float *x,
                const float *w, const float *add, float *part, size_t R, size_t C, float eps) {
    if (!R) return;
    const size_t parts = k_parts(R);
    float2 *stat = (float2 *)part;
    part += 2 * R;
    LAUNCH(norm_bwd, (unsigned)R, ROW_THREADS, s, dx, dy, x, w, add, stat, C, eps);
    LAUNCH(norm_sums, dim3(blocks(C, COLUMNS), (unsigned)parts), COLUMNS, s, part, dy, x, stat, R,
           C);
    k_add_parts(s, dw, part, parts, 2 * C, 0, C);
    k_add_parts(s, db, part, parts, 2 * C, C, C);
}

// ---- token shift -------------------------------------------------------------------------------

__device__ static float before_row(const float *z, const float *in, int32_t prev, size_t c,
                                   size_t C) {
    if (prev >= 0) return z[(size_t)prev * C + c];
    return in ? in[(size_t)(-1 - prev) * C + c] : 0;
}

static __global__ void shift_mix(float *m, float *out, const float *z, const float *in,
                                 const float *mix, const int32_t *prev, const int32_t *last,
                                 size_t n, size_t R, size_t C) {
    begin_kernel();
    const size_t c = blockIdx.x * (size_t)COLUMNS + threadIdx.x;
    if (c >= C) return;
    for (size_t r = blockIdx.y; r < R; r += gridDim.y) {
        const float x = z[r * C + c], d = before_row(z, in, prev[r], c, C) - x;
        for (size_t k = 0; k < n; k++) m[(k * R + r) * C + c] = x + d * mix[k * C + c];
        if (out && last[r] >= 0) out[(size_t)last[r] * C + c] = x;
    }
}

static __global__ void shift_out(float *out, const float *z, const int32_t *last, size_t C) {
    begin_kernel();
    const size_t r = blockIdx.x;
    if (last[r] < 0) return;
    for (size_t c = threadIdx.x; c < C; c += blockDim.x)
        out[(size_t)last[r] * C + c] = z[r * C + c];
}

constexpr size_t MAX_GRID_Y = 65535;

void k_shift_mix(struct queue *s, float *m, float *out, const float *z, const float *in,
                 const float *mix, const int32_t *prev, const int32_t *last, size_t n, size_t R,
                 size_t C, bool single) {
    if (!R) return;
    // A row may read the slot that another one writes, unless each span is one row.
    const dim3 grid(blocks(C, COLUMNS), (unsigned)(R < MAX_GRID_Y ? R : MAX_GRID_Y));
    LAUNCH(shift_mix, grid, COLUMNS, s, m, single ? out : nullptr, z, in, mix, prev, last, n, R, C);
    if (out && !single) LAUNCH(shift_out, (unsigned)R, ROW_THREADS, s, out, z, last, C);
}

enum { MIXES = 6 };

static __global__ void shift_mix_bwd(float *dz, float *part, const float *dm, const float *z,
                                     const float *in, const float *mix, const int32_t *prev,
                                     const int32_t *last, size_t n, size_t R, size_t C) {
    begin_kernel();
    const size_t c = blockIdx.x * (size_t)COLUMNS + threadIdx.x, first = blockIdx.y * (size_t)CHUNK;
    if (c >= C) return;
    const size_t end = first + CHUNK < R ? first + CHUNK : R;
    float weight[MIXES], sum[MIXES];
#pragma unroll
    for (int k = 0; k < MIXES; k++) {
        weight[k] = (size_t)k < n ? mix[k * C + c] : 0;
        sum[k] = 0;
    }
    for (size_t r = first; r < end; r++) {
        const float d = before_row(z, in, prev[r], c, C) - z[r * C + c];
        const bool followed = last[r] < 0;
        float total = 0;
#pragma unroll
        for (int k = 0; k < MIXES; k++) {
            if ((size_t)k >= n) continue;
            const float g = dm[(k * R + r) * C + c];
            const float next = followed ? dm[(k * R + r + 1) * C + c] : 0;
            total += g * (1 - weight[k]) + next * weight[k];
            sum[k] += g * d;
        }
        dz[r * C + c] = total;
    }
#pragma unroll
    for (int k = 0; k < MIXES; k++)
        if ((size_t)k < n) part[(blockIdx.y * n + k) * C + c] = sum[k];
}

void k_shift_mix_bwd(struct queue *s, float *dz, float *dmix, const float *dm, const float *z,
                     const float *in, const float *mix, const int32_t *prev, const int32_t *last,
                     float *part, size_t n, size_t R, size_t C) {
    if (!R) return;
    const dim3 grid(blocks(C, COLUMNS), (unsigned)k_parts(R));
    LAUNCH(shift_mix_bwd, grid, COLUMNS, s, dz, part, dm, z, in, mix, prev, last, n, R, C);
    k_add_parts(s, dmix, part, k_parts(R), n * C, 0, n * C);
}

// ---- elements ----------------------------------------------------------------------------------

enum { ELEMENTS = 256 };
constexpr size_t MOST_BLOCKS = 4096;

static unsigned element_blocks(size_t n) {
    const size_t b = (n + ELEMENTS - 1) / ELEMENTS;
    return (unsigned)(b < MOST_BLOCKS ? b : MOST_BLOCKS);
}

#define EACH(i, n)                                                                                 \
    for (size_t i = blockIdx.x * (size_t)ELEMENTS + threadIdx.x; i < (n);                          \
         i += gridDim.x * (size_t)ELEMENTS)

static __global__ void act_each(float *y, const float *x, size_t n, int act) {
    begin_kernel();
    EACH(i, n) y[i] = activate(x[i], act);
}

void k_act(struct queue *s, float *y, const float *x, size_t n, int act) {
    if (n) LAUNCH(act_each, element_blocks(n), ELEMENTS, s, y, x, n, act);
}

static __global__ void act_bwd_each(float *dx, const float *dy, const float *y, size_t n, int act) {
    begin_kernel();
    EACH(i, n) {
        const float v = y[i];
        const float slope = act == A_TANH      ? 1 - v * v
                            : act == A_SIGMOID ? v * (1 - v)
                                               : 2 * sqrtf(v);
        dx[i] = dy[i] * slope;
    }
}

void k_act_bwd(struct queue *s, float *dx, const float *dy, const float *y, size_t n, int act) {
    if (n) LAUNCH(act_bwd_each, element_blocks(n), ELEMENTS, s, dx, dy, y, n, act);
}

static __global__ void add_each(float *y, const float *x, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] += x[i];
}

void k_add(struct queue *s, float *y, const float *x, size_t n) {
    if (n) LAUNCH(add_each, element_blocks(n), ELEMENTS, s, y, x, n);
}

template <class T> static __global__ void fill_each(T *y, T value, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] = value;
}

void k_fill(struct queue *s, void *y, const void *value, size_t size, size_t n) {
    if (!n) return;
    const unsigned grid = element_blocks(n);
    if (size == 2)
        LAUNCH(fill_each<uint16_t>, grid, ELEMENTS, s, (uint16_t *)y, *(const uint16_t *)value, n);
    else if (size == 4)
        LAUNCH(fill_each<uint32_t>, grid, ELEMENTS, s, (uint32_t *)y, *(const uint32_t *)value, n);
    else
        LAUNCH(fill_each<uint64_t>, grid, ELEMENTS, s, (uint64_t *)y, *(const uint64_t *)value, n);
}

static __global__ void copy_each(void *y, int to, const void *x, int from, size_t n) {
    begin_kernel();
    EACH(i, n) store_number(y, to, i, load_number(x, from, i));
}

static __global__ void narrow_each(uint16_t *y, const float *x, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] = bf16_bits(x[i]);
}

void k_round_bf16(struct queue *s, uint16_t *y, const float *x, size_t n) {
    if (n) LAUNCH(narrow_each, element_blocks(n), ELEMENTS, s, y, x, n);
}

void k_copy(struct queue *s, void *y, int to, const void *x, int from, size_t n) {
    if (!n) return;
    if (to == T_BF16 && from == T_F32)
        k_round_bf16(s, (uint16_t *)y, (const float *)x, n);
    else
        LAUNCH(copy_each, element_blocks(n), ELEMENTS, s, y, to, x, from, n);
}

template <class T> static __global__ void copy_words(T *y, const T *x, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] = x[i];
}

void k_copy_bytes(struct queue *s, void *y, const void *x, size_t bytes) {
    const size_t together = (size_t)y | (size_t)x | bytes;
    if (!bytes) return;
    if (together % 16 == 0)
        LAUNCH(copy_words<float4>, element_blocks(bytes / 16), ELEMENTS, s, (float4 *)y,
               (const float4 *)x, bytes / 16);
    else if (together % 4 == 0)
        LAUNCH(copy_words<float>, element_blocks(bytes / 4), ELEMENTS, s, (float *)y,
               (const float *)x, bytes / 4);
    else
        LAUNCH(copy_words<char>, element_blocks(bytes), ELEMENTS, s, (char *)y, (const char *)x,
               bytes);
}
