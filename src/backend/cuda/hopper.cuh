// Hopper's asynchronous machinery (sm_90a): copies that a barrier in shared memory announces,
// of tiles of matrices, products of four warps straight out of shared memory,
// and clusters of blocks that see each other's. Kernels that use it have a body under HOPPER only.
//
// A tile lies in shared memory in rows of 128 bytes, 64 bf16, at a multiple of 1024; of each
// address bits 4 to 6 are interchanged with bits 7 to 9 (exclusive or), so that neither rows nor
// columns meet in a bank.
#pragma once
#include "device.cuh"

#include "kernels.h"

#if defined(CUDA_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#endif

enum { TILE_WIDTH = 64, TILE_PITCH = 2 * TILE_WIDTH };

#ifndef CUDA_EMU
__device__ static inline uint32_t shared_at(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
#endif

// ---- barriers ----------------------------------------------------------------------------------

// Passes from phase to phase when all who are expected have arrived and all bytes that were
// announced have come.
struct phase_barrier {
    uint64_t bits;
};

#ifdef HOPPER

#ifdef CUDA_EMU
struct emu_phase { // as phase_barrier's bits
    int16_t expected, missing;
    int32_t bytes : 31;
    uint32_t odd : 1;
};
static inline emu_phase &emu_of(phase_barrier &b) {
    return *(emu_phase *)&b;
}
static inline void emu_advance(emu_phase &p) {
    if (p.missing || p.bytes) return;
    p.missing = p.expected;
    p.odd ^= 1;
}
#endif

__device__ static inline void barrier_init(phase_barrier &b, int expected) {
#ifdef CUDA_EMU
    b.bits = 0;
    emu_of(b).expected = emu_of(b).missing = (int16_t)expected;
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(&b)), "r"(expected));
#endif
}

// After all barrier_init of a thread, before the block meets.
__device__ static inline void barriers_ready() {
#ifndef CUDA_EMU
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ static inline void barrier_arrive(phase_barrier &b) {
#ifdef CUDA_EMU
    emu_of(b).missing--;
    emu_advance(emu_of(b));
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(&b)) : "memory");
#endif
}

// Arrives, and announces so many bytes.
__device__ static inline void barrier_expect(phase_barrier &b, uint32_t bytes) {
#ifdef CUDA_EMU
    emu_of(b).bytes += (int32_t)bytes;
    barrier_arrive(b);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(&b)),
                 "r"(bytes)
                 : "memory");
#endif
}

// Waits for the end of a phase: the first one has parity 0.
__device__ static inline void barrier_wait(phase_barrier &b, uint32_t parity) {
#ifdef CUDA_EMU
    emu_await_bit(&b.bits, 63, !parity); // emu_phase.odd
#else
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra.uni out;\n"
                 "bra.uni again;\n"
                 "out:\n"
                 "}" ::"r"(shared_at(&b)),
                 "r"(parity)
                 : "memory");
#endif
}

// The same for who must not hang: what has not come after a second never will, and a kernel that
// traps shows at sync.
__device__ static inline void barrier_await(phase_barrier &b, uint32_t parity) {
#ifdef CUDA_EMU
    barrier_wait(b, parity);
#else
    enum { MOST = 1 << 25 }; // a try is 20 clocks or more
    for (int tries = 0;; tries++) {
        uint32_t done;
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}"
                     : "=r"(done)
                     : "r"(shared_at(&b)), "r"(parity)
                     : "memory");
        if (done) return;
        if (tries > MOST) __trap();
    }
#endif
}

// The same barrier of another block of the cluster: what this thread has read is read, but what it
// wrote need not be seen there, for which all of the device would have to wait.
__device__ static inline void barrier_arrive_at(phase_barrier &b, int rank) {
#ifdef CUDA_EMU
    barrier_arrive(*(phase_barrier *)emu_shared_of(&b, rank));
#else
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(shared_at(&b)),
                 "r"(rank)
                 : "memory");
#endif
}

// ---- tiles -------------------------------------------------------------------------------------

#ifdef CUDA_EMU
// Where a byte of shared memory lies that comes `at` bytes behind a tile's beginning.
static inline char *emu_swizzled(const char *tile, size_t at) {
    const uintptr_t u = (uintptr_t)tile + at;
    return (char *)(u ^ ((u >> 7 & 7) << 4));
}
#endif

// What the first copy would wait for.
__device__ static inline void tile_map_fetch(const tile_map *m) {
#ifdef CUDA_EMU
    (void)m;
#else
    asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory");
#endif
}

#ifdef CUDA_EMU
static inline void emu_tile_arrive(void *to, const tile_map *m, int row, int col,
                                   phase_barrier &b) {
    for (int r = 0; r < (int)m->opaque[4]; r++)
        for (int c = 0; c < TILE_WIDTH; c++) {
            uint16_t x = 0;
            if ((uint64_t)(row + r) < m->opaque[1] && (uint64_t)(col + c) < m->opaque[2])
                x = *(const uint16_t *)((const char *)m->opaque[0] +
                                        (size_t)(row + r) * m->opaque[3] + (size_t)(col + c) * 2);
            *(uint16_t *)emu_swizzled((char *)to, (size_t)r * TILE_PITCH + (size_t)c * 2) = x;
        }
    emu_of(b).bytes -= (int32_t)m->opaque[4] * TILE_PITCH;
    emu_advance(emu_of(b));
}
static inline void emu_tile_load(void *to, const tile_map *m, int row, int col, phase_barrier &b) {
    emu_bulk_load(to, m->opaque[4] * TILE_PITCH, [=, &b] { emu_tile_arrive(to, m, row, col, b); });
}
#endif

// The tile of matrix m (kernels.h) from (row, col) on, col a multiple of 64; what lies outside of
// the matrix is zero. One thread asks for it; all its bytes count for b.
__device__ static inline void tile_load(void *to, const tile_map *m, int row, int col,
                                        phase_barrier &b) {
#ifdef CUDA_EMU
    emu_tile_load(to, m, row, col, b);
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)),
                 "l"(m), "r"(col), "r"(row), "r"(shared_at(&b))
                 : "memory");
#endif
}

// The same for the first BLOCKS of the cluster, to the same place in each, where it counts for the
// barrier at b's place.
template <int BLOCKS>
__device__ static inline void tile_load_all(void *to, const tile_map *m, int row, int col,
                                            phase_barrier &b) {
#ifdef CUDA_EMU
    for (int i = 0; i < BLOCKS; i++)
        emu_tile_load(emu_shared_of(to, i), m, row, col, *(phase_barrier *)emu_shared_of(&b, i));
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_at(to)),
                 "l"(m), "r"(col), "r"(row), "r"(shared_at(&b)), "h"((uint16_t)((1 << BLOCKS) - 1))
                 : "memory");
#endif
}

#ifdef CUDA_EMU
// In rows of so many bytes, 32 or 64, pieces of 16 are interchanged so that eight rows have all
// places.
static inline char *emu_swizzled_row(const char *at, size_t row) {
    const uintptr_t u = (uintptr_t)at;
    return (char *)(u ^ ((u >> 7 & (row / 16 - 1)) << 4));
}
static inline void emu_stretches_arrive(char *to, const tile_map *m, int row, int col,
                                        phase_barrier &b) {
    const uint64_t len = m->opaque[1], cols = m->opaque[2], pitch = m->opaque[3];
    const size_t box = m->opaque[4], n = m->opaque[5], width = m->opaque[6];
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < box; r++)
            for (size_t c = 0; c < width; c++) {
                uint16_t x = 0;
                if ((uint64_t)row + r < len && (uint64_t)col + c < cols)
                    x = *(const uint16_t *)((const char *)m->opaque[0] +
                                            (i * len + (uint64_t)row + r) * pitch +
                                            ((uint64_t)col + c) * 2);
                *(uint16_t *)emu_swizzled_row(to + ((i * box + r) * width + c) * 2, 2 * width) = x;
            }
    emu_of(b).bytes -= (int32_t)(n * box * width * 2);
    emu_advance(emu_of(b));
}
#endif

// Rows from `row` on of all stretches (tile_map_stretches), columns from col on, to a multiple of
// 1024; what lies outside is zero.
__device__ static inline void stretches_load(void *to, const tile_map *m, int row, int col,
                                             phase_barrier &b) {
#ifdef CUDA_EMU
    emu_bulk_load(to, m->opaque[4] * m->opaque[5] * m->opaque[6] * 2,
                  [=, &b] { emu_stretches_arrive((char *)to, m, row, col, b); });
#else
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_at(to)),
                 "l"(m), "r"(col), "r"(row), "r"(0), "r"(shared_at(&b))
                 : "memory");
#endif
}

// So many bytes as they lie, a multiple of 16.
__device__ static inline void bytes_load(void *to, const void *from, uint32_t bytes,
                                         phase_barrier &b) {
#ifdef CUDA_EMU
    emu_bulk_load(to, bytes, [=, &b] {
        memcpy(to, from, bytes);
        emu_of(b).bytes -= (int32_t)bytes;
        emu_advance(emu_of(b));
    });
#else
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_at(to)),
                 "l"(from), "r"(bytes), "r"(shared_at(&b))
                 : "memory");
#endif
}

// What threads wrote to shared memory is seen by copies of tiles out of it that begin after this,
// and what they read from there was read before copies into it.
__device__ static inline void tile_touched() {
#ifdef CUDA_EMU
    emu_touched();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A tile to matrix m, but for what lies outside of it. One thread asks for it.
__device__ static inline void tile_store(const tile_map *m, int row, int col, const void *from) {
#ifdef CUDA_EMU
    emu_later(EMU_STORES, [=] {
        for (uint64_t r = 0; r < m->opaque[4] && (uint64_t)row + r < m->opaque[1]; r++)
            for (uint64_t c = 0; c < TILE_WIDTH && (uint64_t)col + c < m->opaque[2]; c++)
                *(uint16_t *)((char *)m->opaque[0] + ((uint64_t)row + r) * m->opaque[3] +
                              ((uint64_t)col + c) * 2) =
                    *(const uint16_t *)emu_swizzled((const char *)from, r * TILE_PITCH + c * 2);
    });
#else
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], "
                 "[%3];" ::"l"(m),
                 "r"(col), "r"(row), "r"(shared_at(from))
                 : "memory");
#endif
}
// Ends a group of them.
__device__ static inline void tiles_stored() {
#ifdef CUDA_EMU
    emu_later_commit(EMU_STORES);
#else
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Until what all but the last LEFT groups of this thread read may be written again: before it
// leaves, too.
template <int LEFT> __device__ static inline void tiles_wait() {
#ifdef CUDA_EMU
    emu_later_wait(EMU_STORES, LEFT);
#else
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
#endif
}

// One side of a product in shared memory. Rows of its tiles are M (or N), 64 numbers of k each, or
// they are `turned`: rows are k, 64 numbers of M (or N) each, and every 64 of those are a tile of
// 64 rows. At a step of 16 in k it begins 32 bytes, or 16 rows, later.
struct tile_side {
    const char *at;
};
__device__ static inline tile_side side_step(tile_side s, int step, bool turned) {
    return {s.at + step * (turned ? 16 * TILE_PITCH : 32)};
}

#ifdef CUDA_EMU
static inline float emu_side(tile_side s, bool turned, int row, int k) {
    const size_t at = turned ? (size_t)(row / 64 * 64 + k) * TILE_PITCH + (size_t)(row % 64) * 2
                             : (size_t)row * TILE_PITCH + (size_t)k * 2;
    return bf16_value(*(const uint16_t *)emu_swizzled(s.at, at));
}
#else
// Groups of 8 rows are 1024 bytes apart, tiles of 64 columns 8192.
__device__ static inline uint64_t descriptor(tile_side s, bool turned) {
    const uint64_t swizzle_128 = (uint64_t)1 << 62, apart = (uint64_t)(1024 >> 4) << 32;
    const uint64_t tiles = (uint64_t)((turned ? 8192 : 16) >> 4) << 16;
    return swizzle_128 | apart | tiles | (shared_at(s.at) >> 4 & 0x3fff);
}
#endif

// ---- products of four warps --------------------------------------------------------------------

// Sums are a lane's as in mma.cuh: warp w of the four has rows 16w to 16w + 15; d[4n + e] is row g
// + 8(e / 2), column 8n + 2q + e % 2, for lane 4g + q.

__device__ static inline void products_begin() { // before the first one that uses new registers
#ifndef CUDA_EMU
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ static inline void products_commit() {
#ifdef CUDA_EMU
    emu_later_commit(EMU_PRODUCTS);
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most LEFT of the commits are not done.
template <int LEFT> __device__ static inline void products_wait() {
#ifdef CUDA_EMU
    emu_later_wait(EMU_PRODUCTS, LEFT);
    __syncwarp(); // lanes go together there
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
}

#ifdef CUDA_EMU
template <bool TA, bool TB, int SUMS>
static inline void emu_multiply_now(float (&d)[SUMS], tile_side a, tile_side b, bool add) {
    const int warp = (int)threadIdx.x / 32 % 4, lane = (int)threadIdx.x % 32;
    float rows[2][16], col[16];
    for (int k = 0; k < 32; k++)
        rows[k / 16][k % 16] = emu_side(a, TA, 16 * warp + lane / 4 + k / 16 * 8, k % 16);
    for (int i = 0; i < SUMS / 2; i++) { // column by column, both rows
        for (int k = 0; k < 16; k++)
            col[k] = emu_side(b, TB, 8 * (i / 2) + 2 * (lane % 4) + i % 2, k);
        for (int half = 0; half < 2; half++) {
            float &to = d[4 * (i / 2) + 2 * half + i % 2];
            double sum = 0;
            for (int k = 0; k < 16; k++) sum += (double)rows[half][k] * (double)col[k];
            to = (float)((add ? (double)to : 0) + sum);
        }
    }
}
template <bool TA, bool TB, int SUMS>
static inline void emu_multiply(float (&d)[SUMS], tile_side a, tile_side b, bool add) {
    emu_later(EMU_PRODUCTS, [=, &d] { emu_multiply_now<TA, TB>(d, a, b, add); });
}
#endif

// d (64,N) = A (64,16) · B (16,N), or += it, for N of 64, 128 and 256; TA, TB: a, b are turned.
#define D8(i)                                                                                      \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
template <bool TA, bool TB>
__device__ static inline void multiply_tiles(float (&d)[32], tile_side a, tile_side b, bool add) {
#ifdef CUDA_EMU
    emu_multiply<TA, TB>(d, a, b, add);
#else
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, add, 1, 1, %35, %36;\n"
                 "}"
                 : D8(0), D8(8), D8(16), D8(24)
                 : "l"(descriptor(a, TA)), "l"(descriptor(b, TB)), "r"((int)add), "n"(TA), "n"(TB));
#endif
}
template <bool TA, bool TB>
__device__ static inline void multiply_tiles(float (&d)[64], tile_side a, tile_side b, bool add) {
#ifdef CUDA_EMU
    emu_multiply<TA, TB>(d, a, b, add);
#else
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, add, 1, 1, %67, %68;\n"
                 "}"
                 : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56)
                 : "l"(descriptor(a, TA)), "l"(descriptor(b, TB)), "r"((int)add), "n"(TA), "n"(TB));
#endif
}
template <bool TA, bool TB>
__device__ static inline void multiply_tiles(float (&d)[128], tile_side a, tile_side b, bool add) {
#ifdef CUDA_EMU
    emu_multiply<TA, TB>(d, a, b, add);
#else
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "
                 "%110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
                 "%125, %126, %127}, "
                 "%128, %129, add, 1, 1, %131, %132;\n"
                 "}"
                 : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56), D8(64), D8(72),
                   D8(80), D8(88), D8(96), D8(104), D8(112), D8(120)
                 : "l"(descriptor(a, TA)), "l"(descriptor(b, TB)), "r"((int)add), "n"(TA), "n"(TB));
#endif
}
#undef D8

// A lane's sums of 64 rows to where they are taken from in rows; its warp's first row begins at
// `to`.
template <int PITCH, int SUMS>
__device__ static inline void put_sums(float *to, const float (&d)[SUMS]) {
    const int lane = (int)threadIdx.x % 32;
    to += lane / 4 * PITCH + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < SUMS / 4; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(float2 *)(to + 8 * half * PITCH + 8 * n) =
                make_float2(d[4 * n + 2 * half], d[4 * n + 2 * half + 1]);
}

// ---- a ring of tiles ---------------------------------------------------------------------------

// Stages of so many bytes, and what is next of them for who has this: one warp asks for tiles,
// others multiply them. A stage is full when all that was announced has come, empty when all who
// read it have arrived.
template <int BYTES> struct tile_ring {
    char *tiles;
    phase_barrier *full, *empty;
    int stages, stage = 0;
    uint32_t phase = 0;

    __device__ tile_ring(char *tiles, char *barriers, int stages)
        : tiles(tiles), full((phase_barrier *)barriers), empty(full + stages), stages(stages) {}
    // By one thread, before the block meets.
    __device__ void init(int readers) const {
#pragma unroll 1
        for (int i = 0; i < stages; i++) {
            barrier_init(full[i], 1);
            barrier_init(empty[i], readers);
        }
        barriers_ready();
    }
    __device__ char *at() const {
        return tiles + stage * BYTES;
    }
    __device__ void next() {
        if (++stage < stages) return;
        stage = 0;
        phase ^= 1;
    }
};

// ---- registers ---------------------------------------------------------------------------------

// All threads of four warps have N registers from here on: fewer than before, or more, which waits
// until others of the block have given up as many.
template <int N> __device__ static inline void registers_give() {
#ifndef CUDA_EMU
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> __device__ static inline void registers_take() {
#ifndef CUDA_EMU
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// ---- clusters ----------------------------------------------------------------------------------

__device__ static inline int cluster_rank() {
#ifdef CUDA_EMU
    return emu_cluster_rank();
#else
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
#endif
}

// All threads of the cluster's blocks; what they wrote before is seen after.
__device__ static inline void cluster_barrier() {
#ifdef CUDA_EMU
    emu_cluster_barrier();
#else
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
#endif
}

// Four numbers at the same place of another block's shared memory.
__device__ static inline float4 load_of_rank(const float *p, int rank) {
#ifdef CUDA_EMU
    return *(const float4 *)emu_shared_of(p, rank);
#else
    uint32_t at;
    float4 x;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_at(p)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(at)
                 : "memory");
    return x;
#endif
}

#endif // HOPPER
