// Large products of bf16 on Hopper with relu² on the way out, y = max(x W, 0)², or its slope,
// dx = (dy Wᵀ) · 2√h, which as passes of their own took 33 and 48 µs beside a product of 59
// (8192 x 768 -> 3072). Sums run over k upward, as many.cu's. docs/performance.md says what bounds
// it and what it was worth.
//
// Blocks stay, one a multiprocessor. Two of them, a cluster, have 256 rows and 256 outputs, 128
// rows each, and share the tiles of W: each asks for one half, which goes to both. So 64 of k cost
// a block 32 KB out of the second-level cache for 1,024 clocks of the tensor cores. One warp asks
// for tiles, up to four steps ahead and on into the next tile; two groups of four warps multiply 64
// rows each, and have the registers that its group gives up.
//
// What goes out is 128 numbers a thread: some 600 clocks of a group by itself, with h 1,024, for a
// multiprocessor takes 16 roots a clock. Where k is short, the second group is a step behind the
// first, so that one multiplies while the other writes. h comes through the ring of tiles, into
// registers: its left half before a tile's products, its right half behind them.
#include "hopper.cuh"
#include "mma.cuh"
#include "vector.cuh"

namespace {

// In the device, maps have to lie at multiples of 64.
#ifndef CUDA_EMU
struct alignas(64) large_args {
#else
struct large_args {
#endif
    large_product p;
};
static_assert(sizeof(large_product) % 64 == 0, "as many.cu's");

enum { TILE = BOX_ROWS * TILE_PITCH, CLUSTER = 2, GROUPS = 2, WARPS = 4 * GROUPS };
enum { BM = 64 * GROUPS, BN = 256, CONSUMERS = 32 * WARPS, THREADS = CONSUMERS + 128 };
enum { FEW = 40, MANY = 232 }; // registers: of 168 for all when a block begins
enum { STAGE = (GROUPS + BN / 64) * TILE, STAGES = 4 };
enum { PIECE = STORE_ROWS * TILE_PITCH, PIECES = BN / 64, ROOMS = 2 }; // of a warp's outputs
enum { BARRIERS = STAGES * STAGE + WARPS * ROOMS * PIECE, SHARED = BARRIERS + 3 * STAGES * 8 };
enum { NEAR_ROWS = 8 };    // tiles of rows that take turns with the same outputs
enum { SHORT_STEPS = 32 }; // up to which groups go one behind the other
enum { BEHIND = 1 };       // the barrier of that
static_assert(SHARED <= 227 << 10, "what a block may have");

#ifdef HOPPER

// Of a cluster's tile, the first element.
struct place {
    int row, col;
};

struct ring : tile_ring<STAGE> {
    place *of; // which tile a step is of: who multiplies has no time for divisions

    __device__ explicit ring(char *shared)
        : tile_ring(shared, shared + BARRIERS, STAGES), of((place *)(empty + STAGES)) {}
    __device__ char *x() const { return at(); }
    __device__ char *w() const { return x() + GROUPS * TILE; }
    // What a group has there of h: two tiles.
    __device__ char *h(int group) const { return x() + group * 2 * TILE; }
    // A warp has read what lies there: both blocks hear of it, for tiles come to both.
    __device__ void release(int which) const {
        const int lane = (int)threadIdx.x % 32;
        if (lane < CLUSTER) barrier_arrive_at(empty[which], lane);
    }
};

// Tiles at work at one time are some eight high and wide.
__device__ place find_place(const large_product &p, int tile) {
    const int all = (p.R + CLUSTER * BM - 1) / (CLUSTER * BM), wide = (p.O + BN - 1) / BN;
    const int first = tile / (NEAR_ROWS * wide) * NEAR_ROWS, at = tile - first * wide;
    const int high = all - first < NEAR_ROWS ? all - first : NEAR_ROWS;
    return {(first + at % high) * CLUSTER * BM, at / high * BN};
}
__device__ int tiles_of(const large_product &p) {
    return (p.R + CLUSTER * BM - 1) / (CLUSTER * BM) * ((p.O + BN - 1) / BN);
}
__device__ int steps_of(const large_product &p) {
    return (p.K + TILE_WIDTH - 1) / TILE_WIDTH;
}

// ---- tiles on their way in ---------------------------------------------------------------------

// Half of the columns of h from (row, col) on.
__device__ void load_h(ring &r, const large_product &p, int row, int col) {
    barrier_wait(r.empty[r.stage], r.phase ^ 1);
    barrier_expect(r.full[r.stage], 2 * GROUPS * TILE);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < 2; i++)
            tile_load(r.h(g) + i * TILE, &p.h, row + 64 * g, col + 64 * i, r.full[r.stage]);
    r.next();
}

// One lane: all tiles, in order. TB: those of w have k down their rows.
template <bool TB, bool SLOPE> __device__ void load_tiles(ring r, const large_product &p) {
    const int tiles = tiles_of(p), steps = steps_of(p), rank = cluster_rank();
#pragma unroll 1
    for (int tile = (int)blockIdx.x / CLUSTER; tile < tiles; tile += (int)gridDim.x / CLUSTER) {
        const place at = find_place(p, tile);
        const int row = at.row + rank * BM;
        if (SLOPE) load_h(r, p, row, at.col);
#pragma unroll 1
        for (int i = 0; i < steps; i++, r.next()) {
            const int k = i * TILE_WIDTH;
            barrier_wait(r.empty[r.stage], r.phase ^ 1);
            r.of[r.stage] = at;
            barrier_expect(r.full[r.stage], STAGE);
            for (int g = 0; g < GROUPS; g++)
                tile_load(r.x() + g * TILE, &p.x, row + 64 * g, k, r.full[r.stage]);
            for (int n = 0; n < BN / 64 / CLUSTER; n++) {
                const int box = rank * (BN / 64 / CLUSTER) + n, o = at.col + 64 * box;
                tile_load_all<CLUSTER>(r.w() + box * TILE, &p.w, TB ? k : o, TB ? o : k,
                                       r.full[r.stage]);
            }
        }
        if (SLOPE) load_h(r, p, row, at.col + BN / 2);
    }
}

// ---- products ----------------------------------------------------------------------------------

// All steps of a tile; the last one, whose place in the ring is returned, is still to be waited
// for. leads: the other group begins when the first step is done.
template <bool TB>
__device__ int multiply_all(float (&d)[BN / 2], ring &r, int group, int steps, bool leads) {
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < steps; i++, r.next()) {
        barrier_wait(r.full[r.stage], r.phase);
        const tile_side x = {r.x() + group * TILE}, w = {r.w()};
        products_begin();
#pragma unroll
        for (int k = 0; k < TILE_WIDTH / 16; k++)
            multiply_tiles<false, TB>(d, side_step(x, k, false), side_step(w, k, TB), i || k);
        products_commit();
        products_wait<1>();
        if (i) r.release(before);
        if (i == 1 && leads) group_arrive(BEHIND, CONSUMERS);
        before = r.stage;
    }
    return before;
}

// ---- what goes out -----------------------------------------------------------------------------

// Where a lane's row begins of 16 rows and the 16 columns from 16j on, of a tile, for load_matrices
// and store_matrices; it gets and gives what it has of sums (hopper.cuh).
__device__ uint32_t *rows_at(char *tile, int j) {
    const int lane = (int)threadIdx.x % 32, part = 2 * j + lane / 16;
#ifdef CUDA_EMU
    return (uint32_t *)emu_swizzled(tile, (size_t)(lane % 16 * TILE_PITCH + part * 16));
#else
    return (uint32_t *)(tile + lane % 16 * TILE_PITCH + ((part ^ lane % 8) * 16));
#endif
}

// A warp's 16 rows of 64 columns of h.
typedef uint32_t piece_of_h[4][4];
__device__ void take_h(piece_of_h &h, char *tile) {
#pragma unroll
    for (int j = 0; j < 4; j++) load_matrices<false>(h[j], rows_at(tile, j));
}

// 128 columns, which come next in the ring. Lanes read them, and copies come to the same place
// next: without the fence a copy could be there first, for it goes another way to memory, and what
// is not h may have no root.
__device__ void take_half(piece_of_h (&h)[2], ring &r, int group, int warp) {
    barrier_wait(r.full[r.stage], r.phase);
    for (int i = 0; i < 2; i++) take_h(h[i], r.h(group) + i * TILE + warp % 4 * PIECE);
    tile_touched();
    __syncwarp();
    r.release(r.stage);
    r.next();
}

// A warp's outputs, 64 columns at a time: two pieces have room, one is made while the one before
// goes out.
struct writer {
    const tile_map *y;
    char *room;
    int row, col;

    __device__ void put(int piece, const piece_of_h &out) const {
        char *to = room + piece % ROOMS * PIECE;
        const bool first_lane = threadIdx.x % 32 == 0;
        if (first_lane) tiles_wait<ROOMS - 1>();
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 4; j++) store_matrices(rows_at(to, j), out[j]);
        tile_touched();
        __syncwarp();
        if (!first_lane) return;
        tile_store(y, row, col + 64 * piece, to);
        tiles_stored();
    }
};

// Sums 64·piece and on, as pairs: f of them, or times the slope that h says.
__device__ void make_piece(piece_of_h &out, const float (&d)[BN / 2], int piece) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float *x = &d[32 * piece + 2 * i];
        out[i / 4][i % 4] = bf16_pair(activate(x[0], A_RELU2), activate(x[1], A_RELU2));
    }
}
__device__ void make_piece(piece_of_h &out, const float (&d)[BN / 2], int piece,
                           const piece_of_h &h) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float *x = &d[32 * piece + 2 * i];
        const uint32_t y = h[i / 4][i % 4];
        out[i / 4][i % 4] = bf16_pair(x[0] * (2 * root<uint16_t>(bf16_low(y))),
                                      x[1] * (2 * root<uint16_t>(bf16_high(y))));
    }
}

template <bool TB, bool SLOPE>
__device__ void multiply(ring r, const large_product &p, char *rooms) {
    const int tiles = tiles_of(p), steps = steps_of(p), rank = cluster_rank();
    const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0), group = warp / 4;
    const bool one_behind = steps > 1 && steps <= SHORT_STEPS;
    bool first = one_behind;
    float d[BN / 2];
#pragma unroll 1
    for (int tile = (int)blockIdx.x / CLUSTER; tile < tiles; tile += (int)gridDim.x / CLUSTER) {
        piece_of_h left[SLOPE ? 2 : 1], piece;
        if constexpr (SLOPE) {
            take_half(left, r, group, warp);
        }
        if (first && group) group_barrier(BEHIND, CONSUMERS);
        const int last = multiply_all<TB>(d, r, group, steps, first && !group);
        first = false;
        const place at = r.of[last];
        const writer out = {&p.y, rooms + warp * ROOMS * PIECE, at.row + rank * BM + 16 * warp,
                            at.col};
        products_wait<0>();
        r.release(last);
        if constexpr (SLOPE) {
            piece_of_h right[2];
            take_half(right, r, group, warp);
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                make_piece(piece, d, i, i < 2 ? left[i] : right[i - 2]);
                out.put(i, piece);
            }
        } else {
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                make_piece(piece, d, i);
                out.put(i, piece);
            }
        }
    }
    if (threadIdx.x % 32 == 0) tiles_wait<0>();
}

#endif // HOPPER

template <bool TB, bool SLOPE>
__global__ void __launch_bounds__(THREADS, 1) multiply_large(const __grid_constant__ large_args a) {
#ifdef HOPPER
    SHARED_BYTES(shared);
    const ring r(shared);
    const large_product &p = a.p;
    if (threadIdx.x == CONSUMERS) {
        tile_map_fetch(&p.x);
        tile_map_fetch(&p.w);
        tile_map_fetch(&p.y);
        r.init(CLUSTER * WARPS);
    }
    cluster_barrier(); // nobody copies to where barriers are not there yet
    begin_kernel();
    if (threadIdx.x < CONSUMERS) {
        registers_take<MANY>();
        multiply<TB, SLOPE>(r, p, shared + STAGES * STAGE);
    } else {
        registers_give<FEW>();
        if (threadIdx.x == CONSUMERS) load_tiles<TB, SLOPE>(r, p);
    }
    __syncwarp();
    cluster_barrier(); // nobody leaves while the other one arrives
#else
    __trap();
#endif
}

template <bool TB, bool SLOPE> void start(struct queue *q, const large_args &a) {
    const unsigned tiles = blocks((size_t)a.p.R, CLUSTER * BM) * blocks((size_t)a.p.O, BN);
    const unsigned most = (unsigned)processors() / CLUSTER;
    launch_shaped(q, multiply_large<TB, SLOPE>,
                  {CLUSTER * (tiles < most ? tiles : most), THREADS, SHARED, CLUSTER}, a);
}

} // namespace

void k_large(struct queue *q, const struct large_product *p) {
    large_args a = {};
    a.p = *p;
    if (p->by_output)
        p->slope ? start<false, true>(q, a) : start<false, false>(q, a);
    else
        p->slope ? start<true, true>(q, a) : start<true, false>(q, a);
}
