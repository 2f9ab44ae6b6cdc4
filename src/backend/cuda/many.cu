// Products of more rows than tensor.cu likes, of bf16, on Hopper: several at once, each with what
// is made of it before it is written. A block has a tile of BM rows and BN outputs; one warp asks
// for tiles of x and W, a ring of them ahead, groups of four warps multiply, 64 rows each. Where
// there are few tiles, `split` blocks of a cluster share one, a stretch of k each, and add them up
// in order through each other's shared memory.
//
// Sums: a stretch of k upward, 16 at a time; then the stretches in order. How many there are
// depends on the products alone, so a row has the same bits in any batch that comes here.
#include "hopper.cuh"
#include "vector.cuh"

namespace {

// What a kernel has of a list. In the device, maps have to lie at multiples of 64.
#ifndef CUDA_EMU
struct alignas(64) many_args {
#else
struct many_args {
#endif
    many_product p[MAX_PRODUCTS];
    int first_tile[MAX_PRODUCTS];
    int R, row_tiles, split;
};

template <int BN_, int GROUPS_> struct shape {
    enum {
        BN = BN_,
        WIDE = BN < 128 ? BN : 128, // outputs of one instruction
        PIECES = BN / WIDE,
        GROUPS = GROUPS_, // of four warps that multiply
        BM = 64 * GROUPS,
        CONSUMERS = 128 * GROUPS,
        THREADS = CONSUMERS + 32,
        TILE = BOX_ROWS * TILE_PITCH,
        STAGE = (GROUPS + BN / 64) * TILE,
        STAGES = BN == 64 || BN == 256 ? 4 : 3,
        BLOCKS = BN == 256 ? 1 : 2, // on a multiprocessor
        PITCH = BN + 4,             // floats, of a row of sums
        SUMS = BM * PITCH * 4,
        BYTES = STAGES * STAGE > SUMS ? STAGES *STAGE : SUMS,
        SHARED = BYTES + 2 * STAGES * 8,
    };
};

#ifdef HOPPER

struct tile_of_product {
    int which, row, col; // row and column of its first element
    int begin, end;      // of its blocks of 64 k, this block's stretch
};

template <class S> __device__ tile_of_product find_tile(const many_args &a) {
    const int tile = (int)blockIdx.x / a.split, rank = (int)blockIdx.x % a.split;
    tile_of_product t = {};
#pragma unroll
    for (int i = 1; i < MAX_PRODUCTS; i++) t.which += tile >= a.first_tile[i];
    const int at = tile - a.first_tile[t.which];
    const int blocks = (a.p[t.which].K + TILE_WIDTH - 1) / TILE_WIDTH;
    t.row = at % a.row_tiles * S::BM; // rows first: neighbours share weights
    t.col = at / a.row_tiles * S::BN;
    t.begin = blocks * rank / a.split;
    t.end = blocks * (rank + 1) / a.split;
    return t;
}

template <class S> struct sums {
    float d[S::PIECES][S::WIDE / 2]; // as hopper.cuh says, WIDE outputs each
};

template <class S> struct ring {
    char *tiles;
    phase_barrier *full, *empty;

    __device__ explicit ring(char *shared)
        : tiles(shared), full((phase_barrier *)(shared + S::BYTES)), empty(full + S::STAGES) {}
    __device__ char *x(int stage) const { return tiles + stage * S::STAGE; }
    __device__ char *w(int stage) const { return x(stage) + S::GROUPS * S::TILE; }
};

// One lane of the last warp: all tiles, in order.
template <class S>
__device__ void load_tiles(const ring<S> &r, const many_product &p, const tile_of_product &t) {
    const auto load_w = [&](int stage, int block) {
        barrier_expect(r.full[stage], S::STAGE);
        for (int i = 0; i < S::BN / 64; i++) {
            char *to = r.w(stage) + i * S::TILE;
            const int o = t.col + 64 * i, k = block * TILE_WIDTH;
            if (p.by_output)
                tile_load(to, &p.w, o, k, r.full[stage]);
            else
                tile_load(to, &p.w, k, o, r.full[stage]);
        }
    };
    const auto load_x = [&](int stage, int block) {
        for (int i = 0; i < S::GROUPS; i++)
            tile_load(r.x(stage) + i * S::TILE, &p.x, t.row + 64 * i, block * TILE_WIDTH,
                      r.full[stage]);
    };
    // Weights that were there long before come while the kernel before this one still runs.
    int ahead = 0;
    if (p.fixed)
        for (; ahead < S::STAGES && t.begin + ahead < t.end; ahead++)
            load_w(ahead, t.begin + ahead);
    begin_kernel();
    for (int i = 0; t.begin + i < t.end; i++) {
        const int stage = i % S::STAGES;
        if (i >= S::STAGES) barrier_wait(r.empty[stage], (i / S::STAGES + 1) & 1);
        if (i >= ahead) load_w(stage, t.begin + i);
        load_x(stage, t.begin + i);
    }
}

// TB: the tiles of w have k down their rows.
template <bool TB, class S> __device__ void multiply_all(sums<S> &s, const ring<S> &r, int steps) {
    const int group = (int)threadIdx.x / 128;
    const bool first_lane = threadIdx.x % 32 == 0;
    for (int i = 0; i < steps; i++) {
        const int stage = i % S::STAGES;
        barrier_wait(r.full[stage], i / S::STAGES & 1);
        const tile_side x = {r.x(stage) + group * S::TILE}, w = {r.w(stage)};
        products_begin();
#pragma unroll
        for (int k = 0; k < TILE_WIDTH / 16; k++)
#pragma unroll
            for (int n = 0; n < S::PIECES; n++)
                multiply_tiles<false, TB>(s.d[n], side_step(x, k, false),
                                          side_step({w.at + n * S::WIDE * TILE_PITCH}, k, TB),
                                          i || k);
        products_commit();
        products_wait<1>();
        if (i && first_lane) barrier_arrive(r.empty[(i - 1) % S::STAGES]);
    }
    products_wait<0>();
}

// A lane's sums to where the block adds them up.
template <class S> __device__ void put_sums(float *tile, const sums<S> &s) {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float *to = tile + (16 * warp + lane / 4) * S::PITCH + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < S::BN / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(float2 *)(to + 8 * half * S::PITCH + 8 * n) =
                make_float2(s.d[n / (S::WIDE / 8)][4 * (n % (S::WIDE / 8)) + 2 * half],
                            s.d[n / (S::WIDE / 8)][4 * (n % (S::WIDE / 8)) + 2 * half + 1]);
}

__device__ void finish_four(const many_product &p, size_t at, float4 sum, int left) {
    float x[4] = {sum.x, sum.y, sum.z, sum.w};
    const bool whole = left >= 4 && p.O % 4 == 0;
    if (left > 4) left = 4;
    if (p.add && whole) {
        const several<4> before = load<4>(p.add + at);
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] = before[e] + x[e];
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (p.add && !whole && e < left) x[e] = p.add[at + e] + x[e];
        x[e] = activate(x[e], p.act);
    }
    const several<4> y = {{x[0], x[1], x[2], x[3]}};
    if (whole && p.narrow)
        store((uint16_t *)p.y + at, y);
    else if (whole)
        store((float *)p.y + at, y);
    else
        for (int e = 0; e < left; e++)
            if (p.narrow)
                ((uint16_t *)p.y)[at + e] = bf16_bits(x[e]);
            else
                ((float *)p.y)[at + e] = x[e];
}

// This block's rows of the tile: all stretches of k in order, and what is made of them.
template <class S>
__device__ void finish_rows(const float *tile, const many_args &a, const tile_of_product &t) {
    enum { FOURS = S::BN / 4 };
    const many_product &p = a.p[t.which];
    const int rank = (int)blockIdx.x % a.split, rows = S::BM / a.split;
    for (int i = (int)threadIdx.x; i < rows * FOURS; i += S::THREADS) {
        const int row = rank * rows + i / FOURS, col = i % FOURS * 4;
        if (t.row + row >= a.R || t.col + col >= p.O) continue;
        const float *at = tile + row * S::PITCH + col;
        float4 sum = a.split == 1 ? *(const float4 *)at : load_of_rank(at, 0);
        for (int other = 1; other < a.split; other++) {
            const float4 more = load_of_rank(at, other);
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
        }
        finish_four(p, (size_t)(t.row + row) * p.O + t.col + col, sum, p.O - t.col - col);
    }
}

#endif // HOPPER

template <int BN, int GROUPS>
__global__ void __launch_bounds__((shape<BN, GROUPS>::THREADS), (shape<BN, GROUPS>::BLOCKS))
    multiply_many(const __grid_constant__ many_args a) {
#ifdef HOPPER
    typedef shape<BN, GROUPS> S;
    SHARED_BYTES(shared);
    const ring<S> r(shared);
    const tile_of_product t = find_tile<S>(a);
    const many_product &p = a.p[t.which];
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(r.full[i], 1);
            barrier_init(r.empty[i], S::CONSUMERS / 32);
        }
        barriers_ready();
    }
    __syncthreads();
    sums<S> mine;
    if (threadIdx.x < S::CONSUMERS) {
        const int steps = t.end - t.begin;
        if (p.by_output)
            multiply_all<false>(mine, r, steps);
        else
            multiply_all<true>(mine, r, steps);
        if (!steps) mine = {};
    } else if (threadIdx.x == S::CONSUMERS) {
        load_tiles(r, p, t);
    }
    begin_kernel();
    __syncthreads(); // all tiles were used: sums take their place
    if (threadIdx.x < S::CONSUMERS) put_sums<S>((float *)shared, mine);
    if (a.split > 1)
        cluster_barrier();
    else
        __syncthreads();
    finish_rows<S>((const float *)shared, a, t);
    if (a.split > 1) cluster_barrier(); // nobody leaves while its sums are read
#else
    __trap();
#endif
}

static_assert(sizeof(many_product) % 64 == 0, "maps lie at multiples of 64");

template <int BN, int GROUPS> void start(struct queue *q, const many_list &list, int split) {
    typedef shape<BN, GROUPS> S;
    many_args a = {};
    a.R = list.R;
    a.row_tiles = (int)blocks((size_t)list.R, S::BM);
    a.split = split;
    int tiles = 0;
    for (int i = 0; i < MAX_PRODUCTS; i++) {
        a.first_tile[i] = i < list.n ? tiles : INT32_MAX;
        if (i >= list.n) continue;
        a.p[i] = list.p[i];
        tiles += (int)blocks((size_t)list.p[i].O, BN) * a.row_tiles;
    }
    launch_shaped(q, multiply_many<BN, GROUPS>,
                  {(unsigned)(tiles * split), S::THREADS, S::SHARED, (unsigned)split}, a);
}

} // namespace

// As many blocks as multiprocessors for the fewest rows, each with two blocks of k at least.
static int split_of(const many_list &list) {
    int tiles = 0, k = list.p[0].K;
    for (int i = 0; i < list.n; i++) {
        tiles += (int)blocks((size_t)list.p[i].O, 64);
        if (list.p[i].K < k) k = list.p[i].K;
    }
    int split = 1;
    while (split < 4 && 2 * split * tiles <= list.processors + list.processors / 4 &&
           k >= 4 * split * TILE_WIDTH)
        split *= 2;
    return split;
}

void k_many(struct queue *q, const struct many_list *list) {
    const int split = split_of(*list);
    int outputs = 0;
    for (int i = 0; i < list->n; i++) outputs += list->p[i].O;
    const bool wide = (long)outputs * list->R / (128 * 128) * split >= list->processors;
    if (list->R <= 64)
        wide ? start<128, 1>(q, *list, split) : start<64, 1>(q, *list, split);
    else
        wide ? start<128, 2>(q, *list, split) : start<64, 2>(q, *list, split);
}
