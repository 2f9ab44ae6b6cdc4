// Products of integers (integers.cuh) for many rows: inputs become integers once, then tiles of 128
// outputs by 64 rows, eight warps of 32 by 32, 64 k at a time out of a ring that copies fill. The
// same sums in the same order as for few rows, so the same bits: stretches of k apart.
#include "integers.cuh"

namespace {

enum { OUTPUTS = 128, ROWS = 64, STAGES = 4, THREADS = 256, SIDE = 32 };

// ---- inputs ------------------------------------------------------------------------------------

// A warp makes 64 k of a row.
template <int TYPE> __global__ void __launch_bounds__(THREADS) make_integers(product_args p) {
    enum { LANES = group_of(TYPE) / 2 };
    begin_kernel();
    const integer_rows to(p);
    const int lane = threadIdx.x & 31;
    const size_t task = blockIdx.x * (size_t)(THREADS / 32) + (threadIdx.x >> 5);
    const size_t row = task / (size_t)to.depths, depth = task % (size_t)to.depths;
    if (row >= p.R) return;
    const size_t k = depth * DEPTH + 2 * lane;
    const float *from = p.x + row * p.xr + k;
    const float x = k < p.K ? from[0] : 0, y = k + 1 < p.K ? from[1] : 0;
    uint32_t most = larger(magnitude(x), magnitude(y));
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) most = larger(most, __shfl_xor_sync(0xffffffffu, most, d));
    const float by = steps_of(most);
    const uint32_t both =
        with_signs(__byte_perm(integer_of(x, by), integer_of(y, by), 0x40) & 0x7f7fu,
                   signs(x, y) & 0xffffu) &
        0xffffu;
    int sum = sum_of_bytes(both, 0);
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    const int step = lane / 8, t = lane % 8 / 2;
    *(uint16_t *)(to.q + (row * to.depths + depth) * DEPTH + (t * 4 + step) * 4 + lane % 2 * 2) =
        (uint16_t)both;
    if (lane % LANES == 0)
        to.groups[(depth * groups_of<TYPE> + lane / LANES) * p.R + row] = {step_of(most),
                                                                           AS_FLOAT -
                                                                               zero_of(TYPE) * sum};
}

// ---- products ----------------------------------------------------------------------------------

// Where a thread copies from. Rows past R are R's last; outputs past the matrix are not copied.
template <int TYPE> struct sources {
    enum { GROUPS = groups_of<TYPE> };
    const char *w;              // this thread's 16 outputs in the first row
    const int8_t *x;            // its 16 inputs, a quarter of a row's first 64
    const group_inputs *groups; // what it copies of the first groups, in rows of `rows`
    const float *scale;         // or of their scales
    uint32_t pitch, rows;
    int w_rows, scales; // how many rows there are; 0: none for this thread

    __device__ static int row() { return (int)threadIdx.x / (OUTPUTS / 16); }
    __device__ static int output() { return (int)threadIdx.x % (OUTPUTS / 16) * 16; }
    __device__ static int scaled() { return (int)threadIdx.x % (OUTPUTS / 4) * 4; }
    __device__ static int group() { // of scales
        return ((int)threadIdx.x - GROUPS * ROWS) / (OUTPUTS / 4);
    }

    __device__ sources(const product_args &p, const integer_rows &in, size_t row0, size_t o0) {
        const int tid = (int)threadIdx.x, count = (int)(p.K + group_of(TYPE) - 1) / group_of(TYPE);
        const auto row_of = [&](int r) { return row0 + r < p.R ? row0 + r : p.R - 1; };
        pitch = (uint32_t)p.w.sk, rows = (uint32_t)p.R;
        w = (const char *)p.w.data + o0 + output();
        w_rows = o0 + output() < p.w.sk ? count * (group_of(TYPE) * pieces_of(TYPE) / 4) : 0;
        x = in.q + row_of(tid / 4) * in.depths * DEPTH + tid % 4 * 16;
        groups = in.groups + (size_t)(tid / ROWS) * p.R + row_of(tid % ROWS);
        scale = p.w.scale + (size_t)group() * p.w.sk + o0 + scaled();
        scales = group() < GROUPS && o0 + scaled() < p.w.sk ? count : 0;
    }
};

// 64 k of a block's weights and inputs. Of a row of weights the 16-byte pieces are interchanged, so
// that rows of lanes that go together lie in different banks.
template <int TYPE> struct stage {
    enum { W_ROWS = DEPTH / (4 / pieces_of(TYPE)), GROUPS = groups_of<TYPE> };
    alignas(16) uint8_t w[W_ROWS][OUTPUTS];
    int8_t x[ROWS][DEPTH];
    group_inputs groups[GROUPS][ROWS];
    float scale[GROUPS][OUTPUTS];

    __device__ static int place(int row, int output) {
        return (((output / 16) ^ (row / pieces_of(TYPE) % 4 * 2)) * 16) + output % 16;
    }

    // Asks for depth i.
    __device__ void ask(const sources<TYPE> &from, int i) {
        typedef sources<TYPE> is;
        const int tid = (int)threadIdx.x, o = is::output(), g = is::group();
        static_assert(W_ROWS * OUTPUTS % (16 * THREADS) == 0 && ROWS * DEPTH == 16 * THREADS,
                      "all");
#pragma unroll
        for (int n = 0; n < W_ROWS * OUTPUTS / 16 / THREADS; n++) {
            const int r = is::row() + n * (THREADS * 16 / OUTPUTS), row = i * W_ROWS + r;
            if (row < from.w_rows)
                ask_bytes<16>(&w[r][place(r, o)], from.w + (uint64_t)from.pitch * (uint32_t)row);
        }
        ask_bytes<16>(&x[tid / 4][tid % 4 * 16], from.x + i * DEPTH);
        if (tid < GROUPS * ROWS)
            ask_bytes<8>(&groups[0][tid],
                         from.groups + (uint64_t)from.rows * (uint32_t)(i * GROUPS));
        else if (i * GROUPS + g < from.scales)
            ask_bytes<16>(&scale[g][is::scaled()],
                          from.scale + (uint64_t)from.pitch * (uint32_t)(i * GROUPS));
    }
};

// A warp's 32 outputs, four for each g, by 32 rows, in four times eight.
typedef float tile_sums[2][4][4];

__device__ void add_up(tile_sums &total, tile_sums &stretch) {
#pragma unroll
    for (int v = 0; v < 2; v++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[v][n][e] += stretch[v][n][e], stretch[v][n][e] = 0;
}

template <int TYPE>
__global__ void __launch_bounds__(THREADS, 2) multiply_tile(product_args p, int stretch) {
    enum { GROUPS = groups_of<TYPE>, STEPS = DEPTH / STEP / GROUPS, PIECES = pieces_of(TYPE) };
    SHARED_BYTES(bytes);
    stage<TYPE> *const ring = (stage<TYPE> *)bytes;
    begin_kernel();
    const integer_rows in(p);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const size_t o0 = blockIdx.x * (size_t)OUTPUTS, row0 = blockIdx.y * (size_t)ROWS;
    const int side = warp % 4 * SIDE + 4 * g, rows = warp / 4 * SIDE;
    const int groups = (int)((p.K + group_of(TYPE) - 1) / group_of(TYPE)),
              together = stretch / group_of(TYPE);
    const sources<TYPE> from(p, in, row0, o0);
    tile_sums total = {}, acc = {};
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < in.depths) ring[i].ask(from, i);
        asked();
    }
    int slot = 0, next = STAGES - 1, upto = together;
#pragma unroll 1
    for (int i = 0; i < in.depths; i++) {
        wait_for_asked<STAGES - 2>();
        __syncthreads();
        if (i + STAGES - 1 < in.depths) ring[next].ask(from, i + STAGES - 1);
        asked();
        const stage<TYPE> &s = ring[slot];
        uint32_t a[DEPTH / STEP][4];
#pragma unroll
        for (int k = 0; k < DEPTH / STEP; k++) {
            uint32_t w[PIECES];
#pragma unroll
            for (int j = 0; j < PIECES; j++) {
                const int r = (k * 4 + t) * PIECES + j;
                w[j] = *(const uint32_t *)&s.w[r][s.place(r, side)];
            }
            turn<TYPE>(a[k], w);
        }
#pragma unroll
        for (int h = 0; h < GROUPS; h++) {
            const int group = i * GROUPS + h;
            if (group >= groups) break;
            if (group == upto) {
                add_up(total, acc);
                upto += together;
            }
            const float4 scale = *(const float4 *)&s.scale[h][side];
            const float by[] = {scale.x, scale.y, scale.z, scale.w};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int row = rows + 8 * n;
                uint32_t b[STEPS];
#pragma unroll
                for (int k = 0; k < STEPS; k += 2) {
                    const uint2 two = *(const uint2 *)&s.x[row + g][t * 16 + (h * STEPS + k) * 4];
                    b[k] = two.x, b[k + 1] = two.y;
                }
                const group_inputs of[] = {s.groups[h][row + 2 * t], s.groups[h][row + 2 * t + 1]};
#pragma unroll
                for (int v = 0; v < 2; v++) {
                    int d[] = {of[0].from, of[1].from, of[0].from, of[1].from};
#pragma unroll
                    for (int k = 0; k < STEPS; k += 2) {
                        const uint32_t(*const at)[4] = a + h * STEPS + k;
                        const uint32_t both[] = {at[0][2 * v], at[0][2 * v + 1], at[1][2 * v],
                                                 at[1][2 * v + 1]};
                        mma(d, both, b[k], b[k + 1]);
                    }
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        acc[v][n][e] =
                            fmaf(by[2 * v + e / 2] * of[e & 1].step, float_of(d[e]), acc[v][n][e]);
                }
            }
        }
        slot = slot + 1 < STAGES ? slot + 1 : 0;
        next = next + 1 < STAGES ? next + 1 : 0;
    }
    add_up(total, acc);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const size_t row = row0 + rows + 8 * n + 2 * t + odd;
            if (row >= p.R) continue;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const size_t o = o0 + side + i, at = row * p.O + o;
                if (o >= p.O) continue;
                const float before = p.add ? p.add[at] : 0;
                p.y[at] = activate(before + total[i / 2][n][i % 2 * 2 + odd], p.act);
            }
        }
}

template <int TYPE> void start_tiles(struct queue *s, const product_args &p) {
    launch_with(s, multiply_tile<TYPE>, dim3(blocks(p.O, OUTPUTS), blocks(p.R, ROWS)), THREADS,
                STAGES * sizeof(stage<TYPE>), p, stretch_of(p.K, group_of(TYPE)));
}

} // namespace

size_t k_integers_scratch(const struct product_args *p) {
    if ((p->w.type != T_INT8 && p->w.type != T_INT4) || p->R <= SKINNY_ROWS) return 0;
    const size_t groups = DEPTH / (p->w.type == T_INT8 ? group_of(T_INT8) : group_of(T_INT4));
    return p->R * ((p->K + DEPTH - 1) / DEPTH) * (DEPTH + groups * sizeof(group_inputs));
}

void start_making_integers(struct queue *s, const product_args &p) {
    const unsigned grid = blocks(p.R * ((p.K + DEPTH - 1) / DEPTH), THREADS / 32);
    if (p.w.type == T_INT8)
        LAUNCH(make_integers<T_INT8>, grid, THREADS, s, p);
    else
        LAUNCH(make_integers<T_INT4>, grid, THREADS, s, p);
}

void start_many_integers(struct queue *s, const product_args &p) {
    p.w.type == T_INT8 ? start_tiles<T_INT8>(s, p) : start_tiles<T_INT4>(s, p);
}
