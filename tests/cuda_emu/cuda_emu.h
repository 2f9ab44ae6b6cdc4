// CUDA C++ as C++: a launch runs its blocks one after another, the threads of a block as fibers
// that hand over to each other at barriers and warp operations. CUDA_EMU_ORDER=reverse|shuffle
// changes who goes first, which brings out a barrier that is missing. CUDA_EMU_DEVICE=large is a
// device with as much shared memory and as many multiprocessors as Hopper; else it has little.
#pragma once
#include "cuda_runtime_api.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

#define __global__
#define __device__
#define __noinline__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// In a stream. Blocks of a cluster, neighbours along x, run at once. overlap: some blocks may come
// as far as emu_begin_kernel before the kernel ahead has run, and half of the time they do.
void emu_launch(cudaStream_t stream, dim3 grid, dim3 block, unsigned cluster, bool overlap,
                const std::function<void()> &kernel);
void emu_begin_kernel();

void emu_yield(); // lets the others go on: for those who wait for memory to change
void emu_await_bit(const uint64_t *word, int bit, bool value);
void emu_block_barrier();
void emu_warp_barrier();
void emu_group_barrier(int id, int threads); // of so many threads, id 1 to 15
void emu_group_arrive(int id, int threads);  // without waiting
void emu_cluster_barrier();
int emu_cluster_rank();
enum { EMU_WARPS = 32 * 8 };
int emu_warp();           // among those of all blocks that run
size_t emu_most_shared(); // that a block may ask for
int emu_processors();
char *emu_shared(); // the block's, whose size a launch says
// The same place in another block's, which has to be there still.
void *emu_shared_of(const void *shared, int rank);
// Copies that come late: what is there meanwhile is noise. A wait brings all groups of this thread
// but the last few.
void emu_async_copy(void *to, const void *from, size_t bytes);
void emu_async_commit();
void emu_async_wait(int left);
// Of copies that a barrier announces: from here on what is there is noise, and `arrive` brings it
// when nobody can go on without it.
void emu_bulk_load(void *to, size_t bytes, const std::function<void()> &arrive);
// This thread has read or written a place by itself. Where such copies have come it has to say so
// before the next one is asked for, or that traps.
void emu_touch(const void *place);
void emu_touched();
// What this thread has asked for and happens as late as it waits, in groups like those copies:
// stores out of shared memory, products of four warps.
enum emu_late { EMU_STORES, EMU_PRODUCTS, EMU_LATE };
void emu_later(emu_late what, const std::function<void()> &work);
void emu_later_commit(emu_late what);
void emu_later_wait(emu_late what, int left);
bool emu_block_or(bool x);
// Every lane of the warp gives 8 bytes and takes those of lane `from`.
uint64_t emu_exchange(uint64_t mine, int from);
uint32_t emu_ballot(bool x);
[[noreturn]] void emu_trap();

static inline void __syncthreads() {
    emu_block_barrier();
}
static inline int __syncthreads_or(int x) {
    return emu_block_or(x != 0);
}
static inline void __trap() {
    emu_trap();
}
template <class T> static inline T emu_shuffle(T x, int from) {
    uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    bits = emu_exchange(bits, from);
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static inline int emu_lane() {
    return (int)(threadIdx.x & 31);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T x, int d) {
    return emu_shuffle(x, emu_lane() ^ d);
}
template <class T> static inline T __shfl_up_sync(unsigned, T x, int d) {
    return emu_shuffle(x, emu_lane() < d ? emu_lane() : emu_lane() - d);
}
template <class T> static inline T __shfl_down_sync(unsigned, T x, int d) {
    return emu_shuffle(x, emu_lane() + d > 31 ? emu_lane() : emu_lane() + d);
}
template <class T> static inline T __shfl_sync(unsigned, T x, int from) {
    return emu_shuffle(x, from & 31);
}
static inline void __syncwarp() {
    emu_warp_barrier();
}
static inline unsigned __ballot_sync(unsigned, int x) {
    return emu_ballot(x != 0);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
// The bytes of x are 0 to 3, those of y 4 to 7.
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t pick) {
    const uint64_t all = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= (uint32_t)(all >> 8 * (pick >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
static inline float __uint_as_float(uint32_t u) {
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t __float_as_uint(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return u;
}
// Built with -ffp-contract=off: nothing is joined.
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline unsigned long long __float2ull_rn(float x) {
    return (unsigned long long)std::rint(x);
}
// One thread at a time runs.
template <class T> static inline T atomicAdd(T *p, T x) {
    const T old = *p;
    *p += x;
    return old;
}
static inline int atomicMax(int *p, int x) {
    const int old = *p;
    if (x > old) *p = x;
    return old;
}
static inline int atomicMin(int *p, int x) {
    const int old = *p;
    if (x < old) *p = x;
    return old;
}
using std::isfinite;
using std::isinf;
using std::isnan;
