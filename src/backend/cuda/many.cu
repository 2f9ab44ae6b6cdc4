// Products of more rows than tensor.cu likes, of bf16, on Hopper: several at once, each with what
// is made of it before it is written. A block has a tile of BM rows and BN outputs; one warp asks
// for tiles of x and W, a ring of them ahead, groups of four warps multiply, 64 rows each.
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
    int R, row_tiles, stages;
};
static_assert(sizeof(many_product) % 64 == 0, "maps lie at multiples of 64");

enum { TILE = BOX_ROWS * TILE_PITCH, MOST_STAGES = 12 };
enum { BARRIERS = 2 * MOST_STAGES * 8 }; // bytes, behind the tiles

template <int BN_, int GROUPS_> struct shape {
    enum {
        BN = BN_,
        WIDE = BN < 128 ? BN : 128, // outputs of one instruction
        PIECES = BN / WIDE,
        GROUPS = GROUPS_, // of four warps that multiply
        BM = 64 * GROUPS,
        CONSUMERS = 128 * GROUPS,
        THREADS = CONSUMERS + 32,
        STAGE = (GROUPS + BN / 64) * TILE,
        BLOCKS = BN == 256 ? 1 : 2, // on a multiprocessor, at least
        PITCH = BN + 4,             // floats, of a row of sums
        SUMS = BM * PITCH * 4,
    };
};

#ifdef HOPPER

struct tile_of_product {
    int which, row, col, steps; // of its first element; blocks of 64 k
};

template <class S> __device__ tile_of_product find_tile(const many_args &a) {
    const int tile = (int)blockIdx.x;
    tile_of_product t = {};
#pragma unroll
    for (int i = 1; i < MAX_PRODUCTS; i++) t.which += tile >= a.first_tile[i];
    const int at = tile - a.first_tile[t.which];
    t.row = at % a.row_tiles * S::BM; // rows first: neighbours share weights
    t.col = at / a.row_tiles * S::BN;
    t.steps = (a.p[t.which].K + TILE_WIDTH - 1) / TILE_WIDTH;
    return t;
}

// A lane's sums, as hopper.cuh says, WIDE outputs each.
template <class S> using sums = float[S::PIECES][S::WIDE / 2];

// A stage has the tiles of x, one a group, and behind them those of W.
template <class S> using ring = tile_ring<S::STAGE>;
template <class S> __device__ char *tiles_of_w(const ring<S> &r) {
    return r.at() + S::GROUPS * TILE;
}

// One lane of the last warp: all tiles, in order.
template <class S>
__device__ void load_tiles(ring<S> r, const many_product &p, const tile_of_product &t) {
    const bool by_output = p.by_output;
    const auto load_w = [&](const ring<S> &at, int block) {
        barrier_expect(at.full[at.stage], S::STAGE);
        for (int i = 0; i < S::BN / 64; i++) {
            const int o = t.col + 64 * i, k = block * TILE_WIDTH;
            tile_load(tiles_of_w<S>(at) + i * TILE, &p.w, by_output ? o : k, by_output ? k : o,
                      at.full[at.stage]);
        }
    };
    // Weights that were there long before come while the kernel before this one still runs.
    const int most = !p.fixed ? 0 : t.steps < r.stages ? t.steps : r.stages;
    ring<S> ahead = r;
#pragma unroll 1
    for (int i = 0; i < most; i++, ahead.next()) load_w(ahead, i);
    begin_kernel();
#pragma unroll 1
    for (int i = 0; i < t.steps; i++, r.next()) {
        if (i >= r.stages) barrier_wait(r.empty[r.stage], r.phase ^ 1);
        if (i >= most) load_w(r, i);
        for (int g = 0; g < S::GROUPS; g++)
            tile_load(r.at() + g * TILE, &p.x, t.row + 64 * g, i * TILE_WIDTH, r.full[r.stage]);
    }
}

// TB: the tiles of w have k down their rows.
template <class S, bool TB> __device__ void multiply_all(sums<S> &s, ring<S> r, int steps) {
    const int group = (int)threadIdx.x / 128;
    const bool first_lane = threadIdx.x % 32 == 0;
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < steps; i++, r.next()) {
        barrier_wait(r.full[r.stage], r.phase);
        const tile_side x = {r.at() + group * TILE}, w = {tiles_of_w<S>(r)};
        products_begin();
#pragma unroll
        for (int k = 0; k < TILE_WIDTH / 16; k++)
#pragma unroll
            for (int n = 0; n < S::PIECES; n++)
                multiply_tiles<false, TB>(s[n], side_step(x, k, false),
                                          side_step({w.at + n * S::WIDE * TILE_PITCH}, k, TB),
                                          i || k);
        products_commit();
        products_wait<1>();
        if (i && first_lane) barrier_arrive(r.empty[before]);
        before = r.stage;
    }
    products_wait<0>();
}

// What becomes of sums. Held in registers, for stores could be to anywhere; and little code, for
// every launch has to fetch it again.
// BACK: what is added may be bf16, or what act gave says its slope.
template <bool BACK> struct output {
    void *y;
    const void *given; // to be added, or what act gave
    int R, O, act;
    bool narrow, is_slope;

    __device__ output(const many_args &a, const many_product &p)
        : y(p.y), given(p.h ? p.h : p.add), R(a.R), O(p.O), act(p.act), narrow(p.narrow),
          is_slope(p.h) {}

    template <int N> __device__ several<N> load_given(size_t at) const {
        if (BACK && narrow) return load<N>((const uint16_t *)given + at);
        return load<N>((const float *)given + at);
    }
    template <int N> __device__ void put(size_t at, several<N> x) const {
        if (given) {
            const several<N> v = load_given<N>(at);
#pragma unroll
            for (int e = 0; e < N; e++)
                x[e] = BACK && is_slope ? x[e] * slope(v[e], act) : v[e] + x[e];
        }
        if (act != A_NONE && !(BACK && is_slope))
#pragma unroll
            for (int e = 0; e < N; e++) x[e] = activate(x[e], act);
        if (narrow)
            store((uint16_t *)y + at, x);
        else
            store((float *)y + at, x);
    }
};

// The tile in rows, four neighbours a thread.
template <class S, bool BACK>
__device__ void finish_rows(const float *tile, const output<BACK> &out, const tile_of_product &t) {
    enum { FOURS = S::BN / 4 };
    const bool fours = out.O % 4 == 0;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < S::BM * FOURS; i += S::THREADS) {
        const int row = i / FOURS, col = i % FOURS * 4, left = out.O - t.col - col;
        if (t.row + row >= out.R || left <= 0) continue;
        const float *from = tile + row * S::PITCH + col;
        const size_t at = (size_t)(t.row + row) * out.O + t.col + col;
        const float4 x = *(const float4 *)from;
        if (fours) {
            out.template put<4>(at, {{x.x, x.y, x.z, x.w}});
            continue;
        }
#pragma unroll 1
        for (int e = 0; e < left && e < 4; e++) out.template put<1>(at + e, {{from[e]}});
    }
}

#endif // HOPPER

template <int BN, int GROUPS, bool BACK>
__global__ void __launch_bounds__((shape<BN, GROUPS>::THREADS), (shape<BN, GROUPS>::BLOCKS))
    multiply_many(const __grid_constant__ many_args a) {
#ifdef HOPPER
    typedef shape<BN, GROUPS> S;
    SHARED_BYTES(shared);
    const ring<S> r(shared, shared + a.stages * S::STAGE, a.stages);
    const tile_of_product t = find_tile<S>(a);
    const many_product &p = a.p[t.which];
    if (threadIdx.x == S::CONSUMERS) {
        tile_map_fetch(&p.w);
        tile_map_fetch(&p.x);
        r.init(S::CONSUMERS / 32);
    }
    __syncthreads();
    const output<BACK> out(a, p);
    sums<S> mine;
    if (threadIdx.x < S::CONSUMERS) {
        if (p.by_output)
            multiply_all<S, false>(mine, r, t.steps);
        else
            multiply_all<S, true>(mine, r, t.steps);
    } else if (threadIdx.x == S::CONSUMERS) {
        load_tiles<S>(r, p, t);
    }
    begin_kernel();
    __syncthreads(); // all tiles were used: sums take their place
    if (threadIdx.x < S::CONSUMERS)
#pragma unroll
        for (int n = 0; n < S::PIECES; n++)
            put_sums<S::PITCH>((float *)shared + threadIdx.x / 32 * 16 * S::PITCH + n * S::WIDE,
                               mine[n]);
    __syncthreads();
    finish_rows<S>((const float *)shared, out, t);
#else
    __trap();
#endif
}

// ---- which shape -------------------------------------------------------------------------------

static int tiles_of(const many_list &list, int BM, int BN) {
    const int row_tiles = (int)blocks((size_t)list.R, (size_t)BM);
    int tiles = 0;
    for (int i = 0; i < list.n; i++)
        tiles += (int)blocks((size_t)list.p[i].O, (size_t)BN) * row_tiles;
    return tiles;
}

template <int BN, int GROUPS> void start(struct queue *q, const many_list &list) {
    typedef shape<BN, GROUPS> S;
    enum { ROOM = (220 << 10) - BARRIERS };
    many_args a = {};
    a.R = list.R;
    a.row_tiles = (int)blocks((size_t)list.R, S::BM);
    int tiles = 0, most = 1;
    for (int i = 0; i < MAX_PRODUCTS; i++) {
        a.first_tile[i] = i < list.n ? tiles : INT32_MAX;
        if (i >= list.n) continue;
        const int steps = (int)blocks((size_t)list.p[i].K, TILE_WIDTH);
        a.p[i] = list.p[i];
        tiles += (int)blocks((size_t)list.p[i].O, BN) * a.row_tiles;
        if (steps > most) most = steps;
    }
    // The whole ring for one block where each has a multiprocessor for itself.
    a.stages = (tiles > list.processors ? ROOM / S::BLOCKS : ROOM) / S::STAGE;
    if (a.stages > most) a.stages = most;
    if (a.stages > MOST_STAGES) a.stages = MOST_STAGES;
    const int least = (S::SUMS + S::STAGE - 1) / S::STAGE;
    if (a.stages < least) a.stages = least;
    bool back = false;
    for (int i = 0; i < list.n; i++) back |= list.p[i].h || (list.p[i].add && list.p[i].narrow);
    launch_with(q, back ? multiply_many<BN, GROUPS, true> : multiply_many<BN, GROUPS, false>,
                (unsigned)tiles, S::THREADS, (size_t)a.stages * S::STAGE + BARRIERS, a);
}

} // namespace

// The smallest tiles of which two a multiprocessor are enough; where k is short, writing is what
// takes time, and small ones are better for longer. With more rows than that was measured for, sums
// are never what takes time where k or outputs are few: no tile is larger than two blocks a
// multiprocessor can have.
void k_many(struct queue *q, const struct many_list *list) {
    int k = 0, o = 0;
    for (int i = 0; i < list->n; i++) {
        k = k < list->p[i].K ? list->p[i].K : k;
        o = o < list->p[i].O ? list->p[i].O : o;
    }
    const int enough = list->processors * (k <= SLIM ? 6 : 2);
    if (tiles_of(*list, 64, 64) <= enough)
        start<64, 1>(q, *list);
    else if (tiles_of(*list, 128, 64) <= enough)
        start<64, 2>(q, *list);
    else if ((list->R > 1024 && (k <= SLIM || o <= 128)) || tiles_of(*list, 128, 128) <= enough)
        start<128, 2>(q, *list);
    else
        start<256, 2>(q, *list);
}
