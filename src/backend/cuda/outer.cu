// Gradients of weights with a short side, of bf16, on Hopper: all of a layer's LoRAs in one launch.
// Memory's affair: of every input the wide side comes once. A tile is 128 columns of that by 64 of
// the slim one; a cluster of CUTS blocks has one, each a stretch of the rows, and adds up what they
// found in the order of the rows. Two groups of four warps multiply, one warp asks for tiles.
#include "hopper.cuh"
#include "vector.cuh"

namespace {

#ifndef CUDA_EMU
struct alignas(64) outer_args {
#else
struct outer_args {
#endif
    outer p[MAX_PRODUCTS];
    int first_tile[MAX_PRODUCTS];
    int R;
};
static_assert(sizeof(outer) % 64 == 0, "maps lie at multiples of 64");

enum {
    CUTS = 4,
    TILE = BOX_ROWS * TILE_PITCH,
    STAGE = 3 * TILE, // two tiles of the wide side, one of the slim
    STAGES = 4,
    GROUPS = 2,
    CONSUMERS = 128 * GROUPS,
    THREADS = CONSUMERS + 32,
    PITCH = 64 + 4, // floats, of a row of sums
    SHARED = STAGES * STAGE + 2 * STAGES * 8,
};
static_assert(GROUPS * 64 * PITCH * 4 <= STAGES * STAGE, "sums take the place of tiles");

#ifdef HOPPER

// Which of all tiles a cluster has, and which rows its block: blocks of 64, from one to another.
struct place {
    int which, wide, slim, first, end;
};

__device__ place find_place(const outer_args &a) {
    const int tile = (int)blockIdx.x / CUTS, rank = cluster_rank();
    const int steps = (a.R + BOX_ROWS - 1) / BOX_ROWS;
    place t = {};
#pragma unroll
    for (int i = 1; i < MAX_PRODUCTS; i++) t.which += tile >= a.first_tile[i];
    const int at = tile - a.first_tile[t.which], across = (a.p[t.which].S + 63) / 64;
    t.wide = at / across * 128; // those that share a piece of the wide side are neighbours
    t.slim = at % across * 64;
    t.first = steps * rank / CUTS;
    t.end = steps * (rank + 1) / CUTS;
    return t;
}

typedef tile_ring<STAGE> ring; // a stage has a tile of the wide side a group, and the slim one's

// One lane of the last warp.
__device__ void load_tiles(ring r, const outer &p, const place &t) {
#pragma unroll 1
    for (int i = t.first; i < t.end; i++, r.next()) {
        phase_barrier &full = r.full[r.stage];
        if (i - t.first >= STAGES) barrier_wait(r.empty[r.stage], r.phase ^ 1);
        barrier_expect(full, STAGE);
        for (int g = 0; g < GROUPS; g++)
            tile_load(r.at() + g * TILE, &p.wide, i * BOX_ROWS, t.wide + 64 * g, full);
        tile_load(r.at() + GROUPS * TILE, &p.slim, i * BOX_ROWS, t.slim, full);
    }
}

// Rows are what is summed over, so both sides lie turned.
__device__ void multiply_all(float (&d)[32], ring r, int steps, bool slim_first) {
    const int group = (int)threadIdx.x / 128;
    const bool first_lane = threadIdx.x % 32 == 0;
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < steps; i++, r.next()) {
        barrier_wait(r.full[r.stage], r.phase);
        const char *wide = r.at() + group * TILE, *slim = r.at() + GROUPS * TILE;
        const tile_side a = {slim_first ? slim : wide}, b = {slim_first ? wide : slim};
        products_begin();
#pragma unroll
        for (int k = 0; k < BOX_ROWS / 16; k++)
            multiply_tiles<true, true>(d, side_step(a, k, true), side_step(b, k, true), i || k);
        products_commit();
        products_wait<1>();
        if (i && first_lane) barrier_arrive(r.empty[before]);
        before = r.stage;
    }
    products_wait<0>();
}

template <int N> __device__ void put(const outer &p, size_t at, several<N> x) {
    if (p.more) {
        const several<N> before = load<N>(p.dw + at);
#pragma unroll
        for (int e = 0; e < N; e++) x[e] = before[e] + x[e];
    }
    store<N>(p.dw + at, x);
}

// This block's share of the cluster's rows of sums: everybody's, in the order of the stretches.
__device__ void finish_rows(const float *tile, const outer &p, const place &t) {
    enum { ROWS = GROUPS * 64 / CUTS, FOURS = 16 };
    const int columns = p.slim_first ? p.W : p.S, rows = p.slim_first ? p.S : p.W;
    const bool fours = columns % 4 == 0 && (uintptr_t)p.dw % 16 == 0;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < ROWS * FOURS; i += THREADS) {
        const int line = cluster_rank() * ROWS + i / FOURS, group = line / 64;
        const int row = (p.slim_first ? t.slim : t.wide + 64 * group) + line % 64;
        const int col = (p.slim_first ? t.wide + 64 * group : t.slim) + i % FOURS * 4;
        if (row >= rows || col >= columns) continue;
        several<4> x = {};
#pragma unroll
        for (int rank = 0; rank < CUTS; rank++) {
            const float4 part = load_of_rank(tile + line * PITCH + i % FOURS * 4, rank);
            x = {{x[0] + part.x, x[1] + part.y, x[2] + part.z, x[3] + part.w}};
        }
        const size_t at = (size_t)row * columns + col;
        if (fours) {
            put<4>(p, at, x);
            continue;
        }
        for (int e = 0; e < columns - col && e < 4; e++) put<1>(p, at + e, {{x[e]}});
    }
}

#endif // HOPPER

__global__ void __launch_bounds__(THREADS, 2) multiply_outer(const __grid_constant__ outer_args a) {
#ifdef HOPPER
    SHARED_BYTES(shared);
    const ring r(shared, shared + STAGES * STAGE, STAGES);
    const place t = find_place(a);
    const outer &p = a.p[t.which];
    if (threadIdx.x == CONSUMERS) {
        tile_map_fetch(&p.wide);
        tile_map_fetch(&p.slim);
        r.init(CONSUMERS / 32);
    }
    begin_kernel();
    __syncthreads();
    float mine[32] = {};
    if (threadIdx.x < CONSUMERS)
        multiply_all(mine, r, t.end - t.first, p.slim_first);
    else if (threadIdx.x == CONSUMERS)
        load_tiles(r, p, t);
    __syncthreads(); // all tiles were used: sums take their place
    if (threadIdx.x < CONSUMERS)
        put_sums<PITCH>((float *)shared + threadIdx.x / 32 * 16 * PITCH, mine);
    cluster_barrier();
    finish_rows((const float *)shared, p, t);
    cluster_barrier(); // nobody goes while another reads
#else
    __trap();
#endif
}

} // namespace

void k_outer(struct queue *q, const struct outer_list *list) {
    outer_args a = {};
    int tiles = 0;
    a.R = list->R;
    for (int i = 0; i < MAX_PRODUCTS; i++) {
        a.first_tile[i] = i < list->n ? tiles : INT32_MAX;
        if (i >= list->n) continue;
        a.p[i] = list->p[i];
        tiles += (int)(blocks((size_t)a.p[i].W, 128) * blocks((size_t)a.p[i].S, 64));
    }
    launch_shaped(q, multiply_outer, {(unsigned)(tiles * CUTS), THREADS, SHARED, CUTS}, a);
}
