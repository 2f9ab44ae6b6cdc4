// Products of bf16, int8 and int4 on tensor cores, for few rows and for many.
#include "mma.cuh"
#include "products.cuh"
#include "vector.cuh"

// STRETCHES warps make a block, one stretch each, of 8·VEC outputs: lane 4g + t takes the outputs
// VEC·g… and four k of every sixteen, 4t…, in one load each. They are the A of the product, two of
// its rows a pair of outputs; x is B, TILES · 8 rows of it, as the sum of PARTS bf16 (1: it is
// rounded to bf16; 3: nothing is lost). So a weight is read once for all rows, straight into the
// registers it is used from, and how many rows there are changes no bit of any.
//
// Integers meet inputs that are integers (backend/quant.h), of up to seven bits: bf16 holds these
// and the weights, f32 the sum of a group, exactly. Every block makes them again of what it reads,
// five instructions a number, for a launch that does it costs more.
//
// Bound by memory: on an H100 at 3 TB/s 768 × 65536 in bf16 is 33 µs, 4096 × 16384 45 µs, and
// 768 × 768 0.4 µs, less than the way there and back: all of it is asked for at once, by many
// blocks of few outputs.
enum { STRETCHES = 16, STEP = 16, TILE_ROWS = 8 };

// k that share a scale, and so a sum of their own.
__host__ __device__ static constexpr int group_of(int type) {
    return type == T_INT8 ? 64 : type == T_INT4 ? 32 : STEP;
}
static int stretch_of(size_t K, int type) {
    const size_t unit = STRETCHES * (size_t)group_of(type);
    return (int)((K + unit - 1) / unit) * group_of(type);
}

// What a lane has of a step's weights, as they lie in memory.
template <int TYPE, int VEC> struct weights {
    enum { PIECES = TYPE == T_INT4 ? 2 : 4, WORDS = TYPE == T_BF16 ? VEC / 2 : VEC / 4 };
    uint32_t w[PIECES][WORDS];

    // Those of four k from `at` on, in rows of `pitch` bytes; k whose wanted is false are zero and
    // not read.
    __device__ void load(const char *at, uint32_t pitch, const bool (&wanted)[4]) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            load_once<WORDS>(w[i], at + (uint64_t)pitch * (uint32_t)i,
                             PIECES == 4 ? wanted[i] : wanted[2 * i] || wanted[2 * i + 1]);
    }

    // Outputs 2v and 2v + 1 as bf16.
    __device__ void pair(uint32_t (&a)[4], int v) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = 2 * v + (i & 1), half = i >> 1;
            if constexpr (TYPE == T_BF16) {
                a[i] = __byte_perm(w[2 * half][v], w[2 * half + 1][v], i & 1 ? 0x7632 : 0x5410);
            } else if constexpr (TYPE == T_INT8) { // 2^23 + byte
                const unsigned pick = 0x7440u | (unsigned)(c & 3);
                const uint32_t x = __byte_perm(w[2 * half][c / 4], 0x4b000000, pick);
                const uint32_t y = __byte_perm(w[2 * half + 1][c / 4], 0x4b000000, pick);
                a[i] = __byte_perm(__float_as_uint(__uint_as_float(x) - 8388736.0f),
                                   __float_as_uint(__uint_as_float(y) - 8388736.0f), 0x7632);
            } else { // 128 + nibble
                const uint32_t x = w[half][c / 4] >> 8 * (c & 3);
                a[i] = minus_136((x & 0xf) | (x & 0xf0) << 12 | 0x43004300u);
            }
        }
    }

    __device__ static uint32_t minus_136(uint32_t pair) {
#ifdef CUDA_EMU
        return bf16_pair(bf16_value((uint16_t)pair) - 136,
                         bf16_value((uint16_t)(pair >> 16)) - 136);
#else
        uint32_t y;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(y)
            : "r"(pair), "r"(0x3f803f80), "r"(0xc308c308));
        return y;
#endif
    }
};

// Four numbers of which `left` are there; the others are zero.
__device__ static inline float4 inputs(const float *x, int left, bool whole) {
    if (whole) return left > 0 ? *(const float4 *)x : make_float4(0, 0, 0, 0);
    return make_float4(left > 0 ? x[0] : 0, left > 1 ? x[1] : 0, left > 2 ? x[2] : 0,
                       left > 3 ? x[3] : 0);
}

// Of four numbers: those that are neighbours, as a product takes them.
__device__ static inline uint2 bf16_pairs(float4 x) {
    return uint2{bf16_pair(x.x, x.y), bf16_pair(x.z, x.w)};
}

// |x| · by to the nearest integer, at most 127, halves up, with x's sign, of two numbers.
__device__ static inline uint32_t integer_pair(float x, float y, float by) {
#ifdef CUDA_EMU
    const auto of = [=](float x) {
        const double q = (double)(fabsf(x) * by) + 0.5;
        return (x < 0 ? -1.0f : 1.0f) * (q < 127 ? (float)(int)q : 127.0f);
    };
    return bf16_pair(of(x), of(y));
#else
    // Up to 2^22 a step is a half: bits 1 and up are the integer.
    const uint32_t a = __float_as_uint(__fadd_rz(fabsf(x) * by, 4194304.5f)),
                   b = __float_as_uint(__fadd_rz(fabsf(y) * by, 4194304.5f));
    const uint32_t big = (a >> 1 & 0x7f) | (b << 15 & 0x7f0000) | 0x43004300u; // 128 + integer
    uint32_t q;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(q) : "r"(big), "r"(0x3f803f80), "r"(0xc300c300));
    return q | (__byte_perm(__float_as_uint(x), __float_as_uint(y), 0x7632) & 0x80008000u);
#endif
}

// One row with more k than outputs: SPARSE reads only the weights that meet something that is not
// zero, DEEP has asked for all of them before it knows.
enum { ANY_KIND, DEEP_KIND, SPARSE_KIND };

// How many steps' weights are asked for before the first is used.
static constexpr int steps_ahead(int type, int vec, int tiles, int kind) {
    if (kind == DEEP_KIND) return 12; // all there are in the 3072 of 0.1b
    if (tiles == 4) return 1;
    if (type != T_BF16) return tiles == 2 && vec == 8 ? 1 : (int)group_of(type) / STEP;
    if (kind == SPARSE_KIND) return vec == 2 ? 6 : 4;
    if (vec == 8) return tiles;
    return tiles == 2 ? 2 : vec == 2 ? 4 : 3;
}

template <int TYPE, int VEC, int TILES, int PARTS, int KIND> struct few {
    static constexpr bool SPARSE = KIND == SPARSE_KIND;
    enum {
        THREADS = STRETCHES * 32,
        // Two blocks share a multiprocessor where 64 registers a thread are enough.
        BLOCKS = TILES == 1 && KIND == ANY_KIND && TYPE == T_BF16 ? 2 : 1,
        AHEAD = steps_ahead(TYPE, VEC, TILES, KIND),
        GROUP = (int)group_of(TYPE) / STEP, // steps
        STEP_ROWS = TYPE == T_INT4 ? STEP / 2 : STEP,
        WIDTH = 8 * VEC,
        PITCH = WIDTH + 4, // other banks
    };
    using step = weights<TYPE, VEC>;
    using sums = float[VEC / 2][TILES][4];

    // Of this lane: its first four k of the next step.
    const char *w;
    const float *x[TILES], *scale;
    int left;        // k up to the end of x, from this lane's on
    int steps;       // of the stretch
    bool has[TILES]; // whether there is such a row
    bool whole;      // x has fours
    bool asked;      // whether the next steps' weights are
    step asked_for[AHEAD];
    sums acc;

    using b_sides = uint2[PARTS][TILES];
    // A step's inputs as bf16, and what is left of them.
    __device__ static void split(b_sides &b, const float4 (&x)[TILES], bool zero) {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float4 r = zero ? make_float4(0, 0, 0, 0) : x[n];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const uint2 q = b[part][n] = bf16_pairs(r);
                r = make_float4(r.x - bf16_low(q.x), r.y - bf16_high(q.x), r.z - bf16_low(q.y),
                                r.w - bf16_high(q.y));
            }
        }
    }

    __device__ static void multiply(sums &d, const step &a_side, const b_sides &b) {
#pragma unroll
        for (int v = 0; v < VEC / 2; v++) {
            uint32_t a[4];
            a_side.pair(a, v);
#pragma unroll
            for (int part = PARTS - 1; part >= 0; part--)
#pragma unroll
                for (int n = 0; n < TILES; n++) mma(d[v][n], a, b[part][n].x, b[part][n].y);
        }
    }

    // Asks for the weights of the next AHEAD steps. Sparse: of those whose input is not zero, as
    // is_zero(step, which of four) has it.
    template <class F> __device__ void ask(const product_args &p, const F &is_zero) {
        const uint32_t pitch = (uint32_t)p.w.sk * (TYPE == T_BF16 ? 2 : 1);
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            bool wanted[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                wanted[i] = SPARSE ? !is_zero(s, i) : s < steps && left - s * STEP > i;
            asked_for[s].load(w + (uint64_t)pitch * (uint32_t)(s * STEP_ROWS), pitch, wanted);
        }
        w += (uint64_t)pitch * (AHEAD * STEP_ROWS);
        asked = true;
    }

    // The inputs of step s from here.
    __device__ float4 inputs_of(int n, int s) const {
        return inputs(x[n] + s * STEP, has[n] && s < steps ? left - s * STEP : 0, whole);
    }

    // The next AHEAD steps, or what is left of them.
    __device__ void add_steps(const product_args &p) {
        float4 b_side[AHEAD][TILES];
#pragma unroll
        for (int s = 0; s < AHEAD; s++)
#pragma unroll
            for (int n = 0; n < TILES; n++) b_side[s][n] = inputs_of(n, s);
        if (!asked)
            ask(p, [&](int s, int i) { // NaN is not
                const float4 r = b_side[s][0];
                return (i == 0 ? r.x : i == 1 ? r.y : i == 2 ? r.z : r.w) == 0;
            });
        asked = false;
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            if (s >= steps) continue;
            b_sides b;
            split(b, b_side[s], SPARSE && (threadIdx.x & 31) >= 4);
            multiply(acc, asked_for[s], b);
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) x[n] += AHEAD * STEP;
        left -= AHEAD * STEP;
        steps -= AHEAD;
    }

    // Integers: the inputs of a group as such, and what gives them back.
    __device__ float quantise(b_sides (&b)[GROUP], int n) const {
        float4 r[GROUP];
        float most = 0, blemish = 0; // not a number where one is not
        const auto look = [&](float x) {
            most = fabsf(x) > most ? fabsf(x) : most;
            blemish += x * 0.0f;
        };
#pragma unroll
        for (int s = 0; s < GROUP; s++) {
            r[s] = inputs_of(n, s);
            look(r[s].x), look(r[s].y), look(r[s].z), look(r[s].w);
        }
#pragma unroll
        for (int d = 1; d < 4; d *= 2) { // lanes of a row
            const float other = __shfl_xor_sync(0xffffffffu, most, d);
            most = other > most ? other : most;
            blemish += __shfl_xor_sync(0xffffffffu, blemish, d);
        }
        const float by = most > 0 ? 254.0f / most * 0.5f : 0;
#pragma unroll
        for (int s = 0; s < GROUP; s++)
            b[s][0][n] = uint2{integer_pair(r[s].x, r[s].y, by), integer_pair(r[s].z, r[s].w, by)};
        return __fadd_rn(most / 127.0f, blemish);
    }

    // Integers: the next group.
    __device__ void add_group(const product_args &p) {
        static_assert(PARTS == 1 || TYPE == T_BF16, "integers are exact");
        const int lane = threadIdx.x & 31;
        b_sides b[GROUP];
        float2 by[TILES]; // of this lane's two rows of sums
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const float mine = quantise(b, n);
            by[n].x = __shfl_sync(0xffffffffu, mine, 8 * (lane & 3));
            by[n].y = __shfl_sync(0xffffffffu, mine, 8 * (lane & 3) + 4);
        }
        sums sum;
        clear(sum);
#pragma unroll
        for (int s0 = 0; s0 < GROUP; s0 += AHEAD) {
            if (!asked)
                ask(p, [&](int s, int i) {
                    const uint2 q = b[s0 + s][0][0];
                    return ((i < 2 ? q.x : q.y) & (i & 1 ? 0x7fff0000u : 0x7fffu)) == 0;
                });
            asked = false;
#pragma unroll
            for (int s = 0; s < AHEAD; s++) {
                if (SPARSE && lane >= 4) b[s0 + s][0][0] = uint2{0, 0};
                if (s < steps) multiply(sum, asked_for[s], b[s0 + s]);
            }
            left -= AHEAD * STEP;
            steps -= AHEAD;
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) x[n] += GROUP * STEP;
#pragma unroll
        for (int v = 0; v < VEC / 2; v++) {
            const float2 each = *(const float2 *)(scale + 2 * v);
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    acc[v][n][e] = fmaf((e < 2 ? each.x : each.y) * (e & 1 ? by[n].y : by[n].x),
                                        sum[v][n][e], acc[v][n][e]);
        }
        scale += p.w.sk;
    }

    __device__ static void clear(sums &sum) {
#pragma unroll
        for (int v = 0; v < VEC / 2; v++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[v][n][e] = 0;
    }

    // This warp's stretch begins; nothing of the inputs is read.
    __device__ void begin(const product_args &p, int len, size_t row0, size_t o0) {
        const int lane = threadIdx.x & 31, g = lane >> 2, k4 = 4 * (lane & 3);
        const size_t o = o0 + VEC * g;
        const int k = (int)(threadIdx.x >> 5) * len, mine = k + k4, rest = (int)p.K - k;
        w = (const char *)p.w.data +
            (mine / (STEP / STEP_ROWS) * p.w.sk + o) * (TYPE == T_BF16 ? 2 : 1);
        scale = p.w.scale + (size_t)(k / group_of(TYPE)) * p.w.sk + o;
        left = rest - k4;
        steps = ((rest < len ? rest : len) + STEP - 1) / STEP;
        whole = ((uintptr_t)p.x | p.xr * sizeof(float) | p.K * sizeof(float)) % 16 == 0;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const size_t row = row0 + (SPARSE ? 0 : TILE_ROWS * n + g);
            has[n] = row < p.R;
            x[n] = p.x + row * p.xr + mine;
        }
        asked = false;
        // While the kernel before this one still runs, where it can't have written them.
        if (!SPARSE && p.fixed) ask(p, [](int, int) { return false; });
    }

    __device__ void add_stretch(const product_args &p) {
        if constexpr (TYPE == T_BF16)
            while (steps > 0) add_steps(p);
        else
            while (steps > 0) add_group(p);
    }

    // Eight rows' sums of this warp: part[row][output].
    __device__ void put(float (*part)[PITCH], int n) const {
        const int lane = threadIdx.x & 31, o = VEC * (lane >> 2), row = 2 * (lane & 3);
#pragma unroll
        for (int v = 0; v < VEC / 2; v++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                *(float2 *)&part[row + i][o + 2 * v] = make_float2(acc[v][n][i], acc[v][n][2 + i]);
    }

    // A thread has one output of every eight rows.
    __device__ void run(const product_args &p, int len, size_t row0, size_t o0) {
        __shared__ float part[STRETCHES][TILE_ROWS][PITCH];
        const int warp = threadIdx.x >> 5, K = (int)p.K, first = warp * len;
        const int c = threadIdx.x % WIDTH, r = threadIdx.x / WIDTH;
        const bool in = r < TILE_ROWS && o0 + c < p.O;
        const size_t row = row0 + r, at = row * p.O + o0 + c;
        float before[TILES]; // on its way while the weights are
#pragma unroll
        for (int n = 0; n < TILES; n++)
            before[n] =
                p.add && in && row + TILE_ROWS * n < p.R ? p.add[at + TILE_ROWS * n * p.O] : 0;
        clear(acc);
        add_stretch(p);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            if (n) __syncthreads();
            if (first < K) put(part[warp], n);
            __syncthreads();
            if (!in || row + TILE_ROWS * n >= p.R) continue;
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STRETCHES; s++) sum += s * len < K ? part[s][r][c] : 0;
            p.y[at + TILE_ROWS * n * p.O] = activate(before[n] + sum, p.act);
        }
    }
};

template <int TYPE, int VEC, int TILES, int PARTS, int KIND>
static __global__ void __launch_bounds__(few<TYPE, VEC, TILES, PARTS, KIND>::THREADS,
                                         few<TYPE, VEC, TILES, PARTS, KIND>::BLOCKS)
    multiply_few(launch_list a) {
    const int which = product_of_block(a);
    const product_args &p = a.list.p[which];
    const size_t row0 = blockIdx.y * (size_t)(TILES * TILE_ROWS);
    const size_t o0 = (blockIdx.x - a.first_block[which]) * (size_t)(8 * VEC);
    few<TYPE, VEC, TILES, PARTS, KIND> all;
    all.begin(p, a.stretch[which], row0, o0);
    begin_kernel();
    all.run(p, a.stretch[which], row0, o0);
}

template <int TYPE, int VEC, int TILES, int PARTS, int KIND = ANY_KIND>
static void start_few(struct queue *s, const product_list &list) {
    launch_list a = {};
    const int grid = lay_out_blocks(&a, &list, 8 * VEC);
    for (int i = 0; i < MAX_PRODUCTS; i++)
        a.stretch[i] = i < list.n ? stretch_of(list.p[i].K, TYPE) : 0;
    LAUNCH((multiply_few<TYPE, VEC, TILES, PARTS, KIND>),
           dim3(grid, blocks(list.p[0].R, TILES * TILE_ROWS)), STRETCHES * 32, s, a);
}

// Narrow blocks where there are few outputs: all multiprocessors have something to read.
template <int TYPE, int TILES, int PARTS>
static void start_width(struct queue *s, const product_list &list) {
    size_t outputs = 0;
    for (int i = 0; i < list.n; i++) outputs += list.p[i].O;
    if (outputs >= 12288) return start_few<TYPE, 8, TILES, PARTS>(s, list);
    if constexpr (TYPE == T_BF16)
        if (outputs < 4096) return start_few<TYPE, 2, TILES, PARTS>(s, list);
    start_few<TYPE, 4, TILES, PARTS>(s, list);
}

// One row of relu², mostly zero. Up to 6 MB of weights come while the product before still runs,
// faster than it could be chosen what to read of them.
template <int TYPE, int PARTS> static void start_relu2(struct queue *s, const product_list &list) {
    const product_args &p = list.p[0];
    if constexpr (TYPE == T_BF16) {
        if (p.fixed && p.K * p.O <= 3 << 20)
            return start_few<TYPE, 2, 1, PARTS, DEEP_KIND>(s, list);
        if (p.O < 4096) return start_few<TYPE, 2, 1, PARTS, SPARSE_KIND>(s, list);
    }
    start_few<TYPE, 4, 1, PARTS, SPARSE_KIND>(s, list);
}

template <int TYPE, int PARTS> static void start_kind(struct queue *s, const product_list &list) {
    const product_args &p = list.p[0];
    // The channel mix's second matrix is the one four times as deep as wide.
    if (p.R == 1 && p.K == 4 * p.O)
        start_relu2<TYPE, PARTS>(s, list);
    else if (p.R <= TILE_ROWS)
        start_width<TYPE, 1, PARTS>(s, list);
    else if (p.R <= 2 * TILE_ROWS)
        start_width<TYPE, 2, PARTS>(s, list);
    else
        start_few<TYPE, TYPE == T_BF16 ? 8 : 4, 4, PARTS>(s, list);
}

void start_tensor(struct queue *s, const product_list &list) {
    switch (list.p[0].w.type) {
    case T_INT8: return start_kind<T_INT8, 1>(s, list);
    case T_INT4: return start_kind<T_INT4, 1>(s, list);
    default: list.p[0].narrow ? start_kind<T_BF16, 1>(s, list) : start_kind<T_BF16, 3>(s, list);
    }
}
