// Products of bf16 on tensor cores, for few rows and for many (few.cuh).
#include "few.cuh"

// x, in f32, is the sum of PARTS bf16 (1: it is rounded to bf16; 3: nothing is lost).
//
// Bound by memory: on an H100 at 3 TB/s 768 × 65536 in bf16 is 33 µs, 4096 × 16384 45 µs, and
// 768 × 768 0.4 µs, less than the way there and back: all of it is asked for at once, by many
// blocks of few outputs.

// What a lane has of a step's weights, as they lie in memory.
template <int VEC> struct weights {
    uint32_t w[4][VEC / 2];

    // Those of four k from `at` on, in rows of `pitch` bytes; k whose wanted is false are zero and
    // not read.
    __device__ void load(const char *at, uint32_t pitch, const bool (&wanted)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            load_once<VEC / 2>(w[i], at + (uint64_t)pitch * (uint32_t)i, wanted[i]);
    }

    // Outputs 2v and 2v + 1.
    __device__ void pair(uint32_t (&a)[4], int v) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = __byte_perm(w[i & ~1][v], w[i | 1][v], i & 1 ? 0x7632 : 0x5410);
    }
};

// Of four numbers: those that are neighbours, as a product takes them.
__device__ static inline uint2 bf16_pairs(float4 x) {
    return uint2{bf16_pair(x.x, x.y), bf16_pair(x.z, x.w)};
}

// One row with more k than outputs: SPARSE reads only the weights that meet something that is not
// zero, DEEP has asked for all of them before it knows.
enum { ANY_KIND, DEEP_KIND, SPARSE_KIND };

// How many steps' weights are asked for before the first is used.
static constexpr int steps_ahead(int vec, int tiles, int kind) {
    if (kind == DEEP_KIND) return 12; // all there are in the 3072 of 0.1b
    if (tiles == 4) return vec == 8 ? 1 : vec == 4 ? 2 : 3;
    if (kind == SPARSE_KIND) return vec == 2 ? 6 : 4;
    if (vec == 8) return tiles;
    return tiles == 2 ? 2 : vec == 2 ? 4 : 3;
}

template <int VEC, int TILES, int PARTS, int KIND> struct few {
    static constexpr bool SPARSE = KIND == SPARSE_KIND;
    enum {
        // Two blocks share a multiprocessor where 64 registers a thread are enough.
        BLOCKS = (TILES == 1 || (TILES == 2 && VEC == 2)) && KIND == ANY_KIND ? 2 : 1,
        AHEAD = steps_ahead(VEC, TILES, KIND),
    };
    using step = weights<VEC>;

    // Of this lane: its first four k of the next step.
    const char *w;
    const float *x[TILES];
    int left;        // k up to the end of x, from this lane's on
    int steps;       // of the stretch
    bool has[TILES]; // whether there is such a row
    bool whole;      // x has fours
    bool asked;      // whether the next steps' weights are
    step asked_for[AHEAD];
    few_sums<VEC, TILES> sums;

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

    __device__ void multiply(const step &a_side, const b_sides &b) {
#pragma unroll
        for (int v = 0; v < VEC / 2; v++) {
            uint32_t a[4];
            a_side.pair(a, v);
#pragma unroll
            for (int part = PARTS - 1; part >= 0; part--)
#pragma unroll
                for (int n = 0; n < TILES; n++) mma(sums.acc[v][n], a, b[part][n].x, b[part][n].y);
        }
    }

    // Asks for the weights of the next AHEAD steps. Sparse: of those whose input is not zero, as
    // is_zero(step, which of four) has it.
    template <class F> __device__ void ask(const product_args &p, const F &is_zero) {
        const uint32_t pitch = (uint32_t)p.w.sk * 2;
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            bool wanted[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                wanted[i] = SPARSE ? !is_zero(s, i) : s < steps && left - s * STEP > i;
            asked_for[s].load(w + (uint64_t)pitch * (uint32_t)(s * STEP), pitch, wanted);
        }
        w += (uint64_t)pitch * (AHEAD * STEP);
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
            multiply(asked_for[s], b);
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) x[n] += AHEAD * STEP;
        left -= AHEAD * STEP;
        steps -= AHEAD;
    }

    // This warp's stretch begins; nothing of the inputs is read.
    __device__ void begin(const product_args &p, int len, size_t row0, size_t o0) {
        const int lane = threadIdx.x & 31, g = lane >> 2, k4 = 4 * (lane & 3);
        const size_t o = o0 + VEC * g;
        const int k = (int)(threadIdx.x >> 5) * len, mine = k + k4, rest = (int)p.K - k;
        w = (const char *)p.w.data + (mine * p.w.sk + o) * 2;
        left = rest - k4;
        steps = ((rest < len ? rest : len) + STEP - 1) / STEP;
        whole = has_fours(p);
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

    __device__ void run(const product_args &p, int len, size_t row0, size_t o0) {
        sums.begin(p, row0, o0);
        while (steps > 0) add_steps(p);
        sums.end(p, len, row0, o0);
    }
};

template <int VEC, int TILES, int PARTS, int KIND>
static __global__ void __launch_bounds__(FEW_THREADS, few<VEC, TILES, PARTS, KIND>::BLOCKS)
    multiply_few(launch_list a) {
    multiply_part<few<VEC, TILES, PARTS, KIND>, VEC, TILES>(a);
}

template <int VEC, int TILES, int PARTS, int KIND = ANY_KIND>
static void start_few(struct queue *s, const product_list &list) {
    launch_list a = {};
    const dim3 grid = few_blocks(&a, list, VEC, TILES, STEP);
    LAUNCH((multiply_few<VEC, TILES, PARTS, KIND>), grid, FEW_THREADS, s, a);
}

// Narrow blocks where there are few of them: all multiprocessors have something to read.
template <int TILES, int PARTS> static void start_width(struct queue *s, const product_list &list) {
    const size_t outputs = outputs_of(list) * blocks(list.p[0].R, (size_t)(TILES * TILE_ROWS));
    if (outputs >= 12288)
        start_few<8, TILES, PARTS>(s, list);
    else if (outputs >= 4096)
        start_few<4, TILES, PARTS>(s, list);
    else
        start_few<2, TILES, PARTS>(s, list);
}

// One row of relu², mostly zero. Up to 6 MB of weights come while the product before still runs,
// faster than it could be chosen what to read of them.
template <int PARTS> static void start_relu2(struct queue *s, const product_list &list) {
    const product_args &p = list.p[0];
    if (p.fixed && p.K * p.O <= 3 << 20)
        start_few<2, 1, PARTS, DEEP_KIND>(s, list);
    else if (p.O < 4096)
        start_few<2, 1, PARTS, SPARSE_KIND>(s, list);
    else
        start_few<4, 1, PARTS, SPARSE_KIND>(s, list);
}

template <int PARTS> static void start_kind(struct queue *s, const product_list &list) {
    const product_args &p = list.p[0];
    // The channel mix's second matrix is the one four times as deep as wide.
    if (p.R == 1 && p.K == 4 * p.O)
        start_relu2<PARTS>(s, list);
    else if (p.R <= TILE_ROWS)
        start_width<1, PARTS>(s, list);
    else if (p.R <= 2 * TILE_ROWS)
        start_width<2, PARTS>(s, list);
    else
        start_width<4, PARTS>(s, list);
}

void start_tensor(struct queue *s, const product_list &list) {
    list.p[0].narrow ? start_kind<1>(s, list) : start_kind<3>(s, list);
}
