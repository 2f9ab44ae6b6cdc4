// Products of integers (integers.cuh) for few rows, cut as few.cuh says. Every block makes its
// inputs integers again, for a launch that does it costs more: of one row a warp makes them
// together, two a lane. Of more than SKINNY_ROWS they are made before (integers_many.cu).
#include "integers.cuh"

namespace {

// One row, which a warp makes integers together; SPARSE: weights that meet a zero are not read.
// MADE: inputs are integers already.
enum { ANY_KIND, ONE_KIND, SPARSE_KIND, MADE_KIND };

// What a lane has of a step's weights, as they lie in memory: rows of one k, or of two.
template <int TYPE, int VEC> struct weights {
    enum { PIECES = pieces_of(TYPE), WORDS = VEC / 4 };
    uint32_t w[PIECES][WORDS];

    // wanted: of four k, a byte each that is not zero.
    __device__ void load(const char *at, uint32_t pitch, uint32_t wanted) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            load_once<WORDS>(w[i], at + (uint64_t)pitch * (uint32_t)i,
                             wanted & (PIECES == 4 ? 0xffu << 8 * i : 0xffffu << 16 * i));
    }
    // Four outputs.
    __device__ void turned(uint32_t (&out)[4], int word) const {
        uint32_t column[PIECES];
#pragma unroll
        for (int i = 0; i < PIECES; i++) column[i] = w[i][word];
        turn<TYPE>(out, column);
    }
};

template <int TYPE, int VEC, int TILES, int KIND> struct few {
    static constexpr bool SPARSE = KIND == SPARSE_KIND, ONE = KIND == ONE_KIND || SPARSE;
    enum {
        GROUP = group_of(TYPE),
        STEPS = GROUP / STEP,
        STEP_ROWS = TYPE == T_INT4 ? STEP / 2 : STEP,
        ZERO = zero_of(TYPE),
        EACH = GROUP / 32, // inputs of a lane where a warp has them together
        // Groups whose weights are on their way.
        AHEAD = TILES == 4 || (TILES == 2 && VEC == 8)           ? 1
                : TYPE == T_INT4 && VEC == 4 && KIND == ONE_KIND ? 1
                : TYPE == T_INT4 && VEC == 8                     ? 4
                                                                 : 2,
        // Two blocks share a multiprocessor where 64 registers a thread are enough.
        BLOCKS = TYPE == T_INT4 && TILES == 1 && VEC == 4 ? 2 : 1,
    };
    using step = weights<TYPE, VEC>;

    // Of this lane: its first four k, or inputs, of what comes next.
    const char *w;
    const float *x[TILES], *scale;
    int left, left_x; // k up to the end of x, of weights from this lane's on, and of inputs
    int groups;       // of the stretch that are not multiplied yet
    bool has[TILES];  // whether there is such a row
    bool whole;       // x has fours
    bool asked;       // whether the first weights are
    step asked_for[AHEAD][STEPS];
    few_sums<VEC, TILES> sums;

    // Inputs of a group: words of four, their scale, and what sums begin with.
    struct integers {
        uint32_t b[STEPS][TILES];
        float2 by[TILES]; // of this lane's two rows of sums
        int from[TILES][2];
    };

    // Of `left` from here on, whether there are four, a byte each.
    __device__ static uint32_t first_of(int left) {
        return left >= 4 ? 0xffffffffu : left > 0 ? (1u << 8 * left) - 1 : 0;
    }

    // The weights of the next group; `wanted` of each step.
    template <class F>
    __device__ void ask(const product_args &p, step (&to)[STEPS], const F &wanted) {
        const uint32_t pitch = (uint32_t)p.w.sk;
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            to[s].load(w + (uint64_t)pitch * (uint32_t)(s * STEP_ROWS), pitch, wanted(s));
        w += (uint64_t)pitch * (STEPS * STEP_ROWS);
        left -= GROUP;
    }
    __device__ void ask_all(const product_args &p, step (&to)[STEPS]) {
        const int from = left;
        ask(p, to, [=](int s) { return first_of(from - s * STEP); });
    }

    // ---- integers ------------------------------------------------------------------------------

    // Each lane has four of a step of its row.
    __device__ void take(integers &in) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float4 r[STEPS];
            uint32_t most = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                r[s] = inputs(x[n] + s * STEP, has[n] ? left_x - s * STEP : 0, whole);
                most = larger(most, larger(larger(magnitude(r[s].x), magnitude(r[s].y)),
                                           larger(magnitude(r[s].z), magnitude(r[s].w))));
            }
            x[n] += GROUP;
#pragma unroll
            for (int d = 1; d < 4; d *= 2)
                most = larger(most, __shfl_xor_sync(0xffffffffu, most, d));
            const float by = steps_of(most), step = step_of(most);
            int sum = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                in.b[s][n] = four_integers(r[s], by);
                sum = sum_of_bytes(in.b[s][n], sum);
            }
#pragma unroll
            for (int d = 1; d < 4; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
            const int first = 8 * (lane & 3), second = first + 4; // lanes of the two rows
            in.by[n] = make_float2(__shfl_sync(0xffffffffu, step, first),
                                   __shfl_sync(0xffffffffu, step, second));
            in.from[n][0] = AS_FLOAT - ZERO * __shfl_sync(0xffffffffu, sum, first);
            in.from[n][1] = AS_FLOAT - ZERO * __shfl_sync(0xffffffffu, sum, second);
        }
        left_x -= GROUP;
    }

    // They are made.
    __device__ void take_made(integers &in, const product_args &p, size_t row0, int group) {
        const integer_rows from(p);
        const int lane = threadIdx.x & 31, depth = group / groups_of<TYPE>;
        const auto row_of = [&](size_t row) { return row < p.R ? row : p.R - 1; };
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const size_t row = row_of(row0 + TILE_ROWS * n + lane / 4);
            const int8_t *const q = from.q + (row * from.depths + depth) * DEPTH + lane % 4 * 16 +
                                    group % groups_of<TYPE> * STEPS * 4;
#pragma unroll
            for (int s = 0; s < STEPS; s += 2) {
                const uint2 two = *(const uint2 *)(q + 4 * s);
                in.b[s][n] = two.x, in.b[s + 1][n] = two.y;
            }
            const group_inputs *const of = from.groups + (size_t)group * p.R;
            const size_t first = row0 + TILE_ROWS * n + 2 * (lane & 3);
            const group_inputs one = of[row_of(first)], two = of[row_of(first + 1)];
            in.by[n] = make_float2(one.step, two.step);
            in.from[n][0] = one.from, in.from[n][1] = two.from;
        }
    }

    // A warp has EACH neighbours a lane of the only row.
    __device__ void load_together(float (&r)[EACH]) {
#pragma unroll
        for (int i = 0; i < EACH; i++) r[i] = i < left_x ? x[0][i] : 0;
        x[0] += GROUP;
        left_x -= GROUP;
    }
    __device__ void take_together(integers &in, const float (&r)[EACH]) {
        constexpr uint32_t own = EACH == 2 ? 0xffffu : 0xffu; // a lane's bytes
        const int lane = threadIdx.x & 31;
        const float first = r[0], last = r[EACH - 1];
        const uint32_t most = warp_max(larger(magnitude(first), magnitude(last)));
        const float by = steps_of(most), step = step_of(most);
        uint32_t word = __byte_perm(integer_of(first, by), integer_of(last, by), 0x40);
        word = with_signs(word & 0x7f7fu & own, signs(first, last) & own) & own;
        const int sum = warp_add(sum_of_bytes(word, 0));
#pragma unroll
        for (int have = EACH, d = 1; have < 4; have *= 2, d *= 2) { // with the neighbours'
            const uint32_t other = __shfl_xor_sync(0xffffffffu, word, d);
            word = lane & d ? other | word << 8 * have : word | other << 8 * have;
        }
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            in.b[s][0] = __shfl_sync(0xffffffffu, word, (4 * s + (lane & 3)) * (4 / EACH));
        in.by[0] = make_float2(step, step);
        in.from[0][0] = in.from[0][1] = AS_FLOAT - ZERO * sum;
    }

    // ---- products ------------------------------------------------------------------------------

    __device__ void multiply(const product_args &p, const step (&a)[STEPS], const integers &in) {
        const bool other = ONE && (threadIdx.x & 31) >= 4; // rows that there are not
        int d[VEC / 2][TILES][4];
#pragma unroll
        for (int v = 0; v < VEC / 2; v++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) d[v][n][e] = in.from[n][e & 1];
#pragma unroll
        for (int s = 0; s < STEPS; s += 2)
#pragma unroll
            for (int j = 0; j < VEC / 4; j++) {
                uint32_t k[4], next_k[4];
                a[s].turned(k, j);
                a[s + 1].turned(next_k, j);
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    const uint32_t both[] = {k[i], k[i + 1], next_k[i], next_k[i + 1]};
#pragma unroll
                    for (int n = 0; n < TILES; n++)
                        mma(d[2 * j + i / 2][n], both, other ? 0 : in.b[s][n],
                            other ? 0 : in.b[s + 1][n]);
                }
            }
#pragma unroll
        for (int v = 0; v < VEC / 2; v++) {
            const float2 each = *(const float2 *)(scale + 2 * v);
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float &acc = sums.acc[v][n][e];
                    acc = fmaf((e < 2 ? each.x : each.y) * (e & 1 ? in.by[n].y : in.by[n].x),
                               float_of(d[v][n][e]), acc);
                }
        }
        scale += p.w.sk;
        groups--;
    }

    // This warp's stretch begins; nothing of the inputs is read.
    __device__ void begin(const product_args &p, int len, size_t row0, size_t o0) {
        const int lane = threadIdx.x & 31, g = lane >> 2, k4 = 4 * (lane & 3);
        const size_t o = o0 + VEC * g;
        const int k = (int)(threadIdx.x >> 5) * len, rest = (int)p.K - k;
        const int mine = ONE ? lane * EACH : k4;
        w = (const char *)p.w.data + (k + k4) / (STEP / STEP_ROWS) * p.w.sk + o;
        scale = p.w.scale + (size_t)(k / GROUP) * p.w.sk + o;
        left = rest - k4;
        left_x = rest - mine;
        groups = ((rest < len ? rest : len) + GROUP - 1) / GROUP;
        whole = has_fours(p);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const size_t row = row0 + (ONE ? 0 : TILE_ROWS * n + g);
            has[n] = row < p.R;
            x[n] = p.x + row * p.xr + k + mine;
        }
        // While the kernel before this one still runs, where it can't have written them.
        asked = !SPARSE && p.fixed;
        if (asked) ask_first(p);
    }
    __device__ void ask_first(const product_args &p) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (i < groups) ask_all(p, asked_for[i]);
    }

    __device__ void add_stretch(const product_args &p, int len, size_t row0) {
        int group = (int)(threadIdx.x >> 5) * (len / GROUP);
        float next[EACH];
        if (!asked) ask_first(p);
        if constexpr (ONE) load_together(next);
        while (groups > 0)
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (groups <= 0) break;
                integers in;
                if constexpr (ONE) {
                    float r[EACH];
#pragma unroll
                    for (int e = 0; e < EACH; e++) r[e] = next[e];
                    load_together(next);
                    take_together(in, r);
                } else if constexpr (KIND == MADE_KIND) {
                    take_made(in, p, row0, group++);
                } else {
                    take(in);
                }
                multiply(p, asked_for[i], in);
                if (groups >= AHEAD) ask_all(p, asked_for[i]);
            }
    }

    // As many groups at once as can be on their way.
    __device__ void add_wanted(const product_args &p) {
        while (groups > 0) {
            integers in[AHEAD];
            float r[AHEAD][EACH];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) load_together(r[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (i >= groups) break;
                take_together(in[i], r[i]);
                ask(p, asked_for[i], [&](int s) { return in[i].b[s][0]; });
            }
            const int there = groups;
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (i < there) multiply(p, asked_for[i], in[i]);
        }
    }

    __device__ void run(const product_args &p, int len, size_t row0, size_t o0) {
        sums.begin(p, row0, o0);
        if constexpr (SPARSE)
            add_wanted(p);
        else
            add_stretch(p, len, row0);
        sums.end(p, len, row0, o0);
    }
};

template <int TYPE, int VEC, int TILES, int KIND>
__global__ void __launch_bounds__(FEW_THREADS, few<TYPE, VEC, TILES, KIND>::BLOCKS)
    multiply_integers(launch_list a) {
    multiply_part<few<TYPE, VEC, TILES, KIND>, VEC, TILES>(a);
}

template <int TYPE, int VEC, int TILES, int KIND>
void start(struct queue *s, const product_list &list) {
    launch_list a = {};
    const dim3 grid = few_blocks(&a, list, VEC, TILES, group_of(TYPE));
    LAUNCH((multiply_integers<TYPE, VEC, TILES, KIND>), grid, FEW_THREADS, s, a);
}

// Narrow blocks where there are few outputs: all multiprocessors have something to read.
template <int TYPE, int TILES, int KIND>
void start_width(struct queue *s, const product_list &list) {
    const size_t outputs = outputs_of(list);
    if (outputs >= 12288)
        start<TYPE, 8, TILES, KIND>(s, list);
    else
        start<TYPE, 4, TILES, KIND>(s, list);
}

enum { MANY = 192 }; // rows from which tiles are better

template <int TYPE> void start_type(struct queue *s, const product_list &list) {
    const product_args &p = list.p[0];
    // The channel mix's second matrix is the one four times as deep as wide.
    if (p.R == 1 && p.K == 4 * p.O)
        start<TYPE, 4, 1, SPARSE_KIND>(s, list);
    else if (p.R == 1)
        start_width<TYPE, 1, ONE_KIND>(s, list);
    else if (p.R <= TILE_ROWS)
        start_width<TYPE, 1, ANY_KIND>(s, list);
    else if (p.R <= 2 * TILE_ROWS)
        start_width<TYPE, 2, ANY_KIND>(s, list);
    else if (start_making_integers(s, p), p.R >= MANY)
        start_many_integers(s, p);
    else
        start<TYPE, 4, 4, MADE_KIND>(s, list);
}

} // namespace

void start_integers(struct queue *s, const product_list &list) {
    list.p[0].w.type == T_INT8 ? start_type<T_INT8>(s, list) : start_type<T_INT4>(s, list);
}
