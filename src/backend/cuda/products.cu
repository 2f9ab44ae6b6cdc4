// Matrix products with sums in f32 in one order for every number of rows, so that a row's bits do
// not depend on the batch. Two families, each with its own order:
//
// - bf16, int8 and int4: tensor cores. k is cut into STRETCHES by its length alone; a warp adds one
//   up, 16 of k at a time, and the stretches are added up in order. Few rows or many, it is the
//   same code.
// - f32: FMA. k is cut into SEGMENTS, each summed upwards, and the segments are added up in order:
//   a segment is a thread's for few rows (skinny), all of them for many (tile).
#include "products.cuh"

__device__ static float finish(const product_args &p, float sum, size_t at) {
    if (p.add) sum = p.add[at] + sum;
    return activate(sum, p.act);
}

// Rows of whole loads, outputs side by side.
static bool is_packed(const product_args &p) {
    return p.w.type != T_F32 && p.w.so == 1 && p.w.sk % 64 == 0 && p.xk == 1 &&
           (uintptr_t)p.w.data % 16 == 0;
}

static void start_packed(struct queue *s, const product_list &list) {
    list.p[0].w.type == T_BF16 ? start_tensor(s, list) : start_integers(s, list);
}

// ---- FMA: few rows -----------------------------------------------------------------------------

enum { SEGMENTS = 64 };

// Whole tiles of k_product.
__host__ __device__ static inline size_t segment_of(size_t K) {
    return ((K + SEGMENTS - 1) / SEGMENTS + 7) / 8 * 8;
}

// A block has COLS outputs, VEC of them a thread, for each of the segments. Fewer columns make
// more blocks, and leave more registers to many rows.
enum { VEC = 4, ROUND = 4 };
template <int COLS> constexpr int skinny_threads = COLS / VEC *SEGMENTS;

// Four neighbours of one k, from o on. Nothing is loaded past the padded row.
__device__ static float4 weights4(const matrix &w, size_t k, size_t o) {
    return *(const float4 *)((const float *)w.data + k * w.sk + o);
}

// One row that is mostly zero, as relu² leaves it: a weight whose input is zero is not read.
__device__ static void sparse_sum(float (&acc)[1][VEC], const product_args &p, size_t o,
                                  size_t first, size_t end) {
    enum { AHEAD = 16 };
    for (size_t k0 = first; k0 < end; k0 += AHEAD) {
        float x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            x[i] = k0 + i < end ? p.x[k0 + i] : 0;
            if (p.narrow) x[i] = bf16_round(x[i]);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const bool some = x[i] != 0; // NaN is some
            const float4 w = some ? weights4(p.w, k0 + i, o) : make_float4(0, 0, 0, 0);
            acc[0][0] = fmaf(x[i], w.x, acc[0][0]);
            acc[0][1] = fmaf(x[i], w.y, acc[0][1]);
            acc[0][2] = fmaf(x[i], w.z, acc[0][2]);
            acc[0][3] = fmaf(x[i], w.w, acc[0][3]);
        }
    }
}

template <int ROWS>
__device__ static void skinny_sum(float (&acc)[ROWS][VEC], const product_args &p, size_t o,
                                  size_t first, size_t end) {
    // The channel mix's second matrix is the one that is four times as deep as wide.
    if constexpr (ROWS == 1)
        if (p.K == 4 * p.O) return sparse_sum(acc, p, o, first, end);
#pragma unroll(ROWS <= 2 ? 16 : 8)
    for (size_t k = first; k < end; k++) {
        const float4 w = weights4(p.w, k, o);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float x = r < (int)p.R ? p.x[r * p.xr + k] : 0;
            if (p.narrow) x = bf16_round(x);
            acc[r][0] = fmaf(x, w.x, acc[r][0]);
            acc[r][1] = fmaf(x, w.y, acc[r][1]);
            acc[r][2] = fmaf(x, w.z, acc[r][2]);
            acc[r][3] = fmaf(x, w.w, acc[r][3]);
        }
    }
}

template <int ROWS, int COLS>
static __global__ void __launch_bounds__(skinny_threads<COLS>) skinny(launch_list a) {
    begin_kernel();
    __shared__ float part[ROUND][SEGMENTS][COLS];
    const int which = product_of_block(a);
    const product_args &p = a.list.p[which];
    const int tid = threadIdx.x, seg = tid / (COLS / VEC), vec = tid % (COLS / VEC) * VEC;
    const size_t o0 = (blockIdx.x - a.first_block[which]) * (size_t)COLS, o = o0 + vec;
    const size_t len = segment_of(p.K), first = seg * len < p.K ? seg * len : p.K;
    const size_t end = first + len < p.K ? first + len : p.K;
    float acc[ROWS][VEC] = {};
    if (o < p.w.sk) skinny_sum(acc, p, o, first, end);
#pragma unroll
    for (int r0 = 0; r0 < ROWS; r0 += ROUND) {
        if (r0) __syncthreads();
#pragma unroll
        for (int r = 0; r < ROUND; r++)
            if (r0 + r < ROWS)
#pragma unroll
                for (int v = 0; v < VEC; v++) part[r][seg][vec + v] = acc[r0 + r][v];
        __syncthreads();
        const int r = tid / COLS, c = tid % COLS;
        if (r < ROUND && r0 + r < ROWS && r0 + r < (int)p.R && o0 + c < p.O) {
            float sum = 0;
#pragma unroll
            for (int s = 0; s < SEGMENTS; s++) sum += part[r][s][c];
            const size_t at = (r0 + r) * p.O + o0 + c;
            p.y[at] = finish(p, sum, at);
        }
    }
}

template <int ROWS, int COLS> static void start_skinny(struct queue *s, const product_list &list) {
    launch_list a = {};
    const int grid = lay_out_blocks(&a, &list, COLS);
    LAUNCH((skinny<ROWS, COLS>), grid, skinny_threads<COLS>, s, a);
}

static void start_fma(struct queue *s, const product_list &list) {
    const size_t R = list.p[0].R;
    const bool wide = outputs_of(list) >= 8192; // enough blocks of the larger kind
    if (R == 1)
        wide ? start_skinny<1, 32>(s, list) : start_skinny<1, 16>(s, list);
    else if (R == 2)
        wide ? start_skinny<2, 32>(s, list) : start_skinny<2, 16>(s, list);
    else if (R <= 4)
        wide ? start_skinny<4, 32>(s, list) : start_skinny<4, 16>(s, list);
    else if (R <= 8)
        start_skinny<8, 16>(s, list);
    else
        start_skinny<16, 16>(s, list);
}

// Products of one kind are one launch.
void k_skinny(struct queue *s, const struct product_list *list) {
    unsigned done = 0;
    for (int i = 0; i < list->n; i++) {
        const product_args &first = list->p[i];
        const bool deep = first.K == 4 * first.O;
        product_list kind = {};
        for (int j = i; j < list->n; j++) {
            const product_args &p = list->p[j];
            if (done >> j & 1 || p.w.type != first.w.type || p.narrow != first.narrow ||
                (p.K == 4 * p.O) != deep)
                continue;
            kind.p[kind.n++] = p;
            done |= 1u << j;
        }
        if (!kind.n || !first.R) continue;
        first.w.type == T_F32 ? start_fma(s, kind) : start_packed(s, kind);
    }
}

// ---- FMA: many rows -----------------------------------------------------------------------------

// Element (k, o) of w.
__device__ static float weight_at(const matrix &w, size_t k, size_t o, bool narrow) {
    const size_t i = k * w.sk + o * w.so;
    if (w.type == T_BF16) return bf16_value(((const uint16_t *)w.data)[i]);
    const float x = ((const float *)w.data)[i];
    return narrow ? bf16_round(x) : x;
}

// Tiles of 16·T × 16·T, T × T a thread, 8 of k at a time.
enum { TILE_THREADS = 256, DEPTH = 8 };

template <int T> static __global__ void __launch_bounds__(TILE_THREADS) tile(product_args p) {
    begin_kernel();
    constexpr int SIDE = 16 * T, LOADS = SIDE * DEPTH / TILE_THREADS;
    __shared__ float4 xs[DEPTH][SIDE / 4], ws[DEPTH][SIDE / 4];
    const int tid = threadIdx.x, tx = tid % 16, ty = tid / 16;
    const size_t r0 = blockIdx.y * (size_t)SIDE, o0 = blockIdx.x * (size_t)SIDE;
    const size_t segment = segment_of(p.K);
    // Neighbouring threads load along the side that lies in a row.
    const bool x_along_k = p.xk == 1, w_along_k = p.w.so != 1;
    float acc[T][T] = {}, sum[T][T] = {}, next_x[LOADS], next_w[LOADS];
    auto load = [&](size_t k0) {
#pragma unroll
        for (int n = 0; n < LOADS; n++) {
            const int e = tid + n * TILE_THREADS;
            const int xk = x_along_k ? e % DEPTH : e / SIDE, xi = x_along_k ? e / DEPTH : e % SIDE;
            const int wk = w_along_k ? e % DEPTH : e / SIDE, wi = w_along_k ? e / DEPTH : e % SIDE;
            const bool in_x = k0 + xk < p.K && r0 + xi < p.R, in_w = k0 + wk < p.K && o0 + wi < p.O;
            const float x = in_x ? p.x[(r0 + xi) * p.xr + (k0 + xk) * p.xk] : 0;
            next_x[n] = p.narrow ? bf16_round(x) : x;
            next_w[n] = in_w ? weight_at(p.w, k0 + wk, o0 + wi, p.narrow) : 0;
        }
    };
    load(0);
    for (size_t k0 = 0; k0 < p.K; k0 += DEPTH) {
        if (k0 && k0 % segment == 0)
#pragma unroll
            for (int i = 0; i < T; i++)
#pragma unroll
                for (int j = 0; j < T; j++) sum[i][j] += acc[i][j], acc[i][j] = 0;
        __syncthreads();
#pragma unroll
        for (int n = 0; n < LOADS; n++) {
            const int e = tid + n * TILE_THREADS;
            const int xk = x_along_k ? e % DEPTH : e / SIDE, xi = x_along_k ? e / DEPTH : e % SIDE;
            const int wk = w_along_k ? e % DEPTH : e / SIDE, wi = w_along_k ? e / DEPTH : e % SIDE;
            ((float *)xs[xk])[xi] = next_x[n];
            ((float *)ws[wk])[wi] = next_w[n];
        }
        __syncthreads();
        load(k0 + DEPTH);
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float x[T], w[T];
#pragma unroll
            for (int b = 0; b < T / 4; b++) {
                *(float4 *)(x + 4 * b) = xs[k][16 * b + ty];
                *(float4 *)(w + 4 * b) = ws[k][16 * b + tx];
            }
#pragma unroll
            for (int i = 0; i < T; i++)
#pragma unroll
                for (int j = 0; j < T; j++) acc[i][j] = fmaf(x[i], w[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < T; i++)
#pragma unroll
        for (int j = 0; j < T; j++) {
            const size_t r = r0 + i / 4 * 64 + ty * 4 + i % 4, o = o0 + j / 4 * 64 + tx * 4 + j % 4;
            if (r >= p.R || o >= p.O) continue;
            p.y[r * p.O + o] = finish(p, sum[i][j] + acc[i][j], r * p.O + o);
        }
}

void k_product(struct queue *s, const struct product_args *p) {
    if (!p->R || !p->O) return;
    if (is_packed(*p)) return start_packed(s, product_list{{*p}, 1});
    // Large tiles where there are enough of them to fill the device.
    if ((size_t)blocks(p->R, 128) * blocks(p->O, 128) >= 128)
        LAUNCH(tile<8>, dim3(blocks(p->O, 128), blocks(p->R, 128)), TILE_THREADS, s, *p);
    else
        LAUNCH(tile<4>, dim3(blocks(p->O, 64), blocks(p->R, 64)), TILE_THREADS, s, *p);
}
