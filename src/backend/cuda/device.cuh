// What kernels share: launches, sums in a fixed order, number formats.
#pragma once
#ifdef CUDA_EMU
#include "cuda_emu.h"
#else
#include <cuda_runtime.h>
#endif
#include "queue.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

// ---- launches ----------------------------------------------------------------------------------

// As a cluster: all blocks run at once, or the launch fails. They may wait for each other.
enum : unsigned { WHOLE_GRID = 0 };

// A kernel with its arguments as bytes, each at a multiple of 8.
template <class... P> struct launched {
    struct header {
        void (*kernel)(P...);
        unsigned grid[2], block, shared, overlap, cluster;
    };

    static constexpr size_t whole(size_t bytes) { return (bytes + 7) / 8 * 8; }
    static constexpr size_t total() {
        size_t n = whole(sizeof(header));
        ((n += whole(sizeof(P))), ...);
        return n;
    }

    template <class T> static T copied(const char *from) {
        T x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }

    template <size_t... I>
    static void start(const header &h, char *const *slot, cudaStream_t stream,
                      std::index_sequence<I...>) {
#ifdef CUDA_EMU
        const std::tuple<P...> args(copied<P>(slot[I])...);
        const unsigned together = h.cluster == WHOLE_GRID ? h.grid[0] : h.cluster;
        emu_launch(stream, dim3(h.grid[0], h.grid[1]), dim3(h.block), together, h.overlap,
                   [kernel = h.kernel, args] { std::apply(kernel, args); });
#else
        void *args[] = {(void *)slot[I]...};
        cudaLaunchAttribute attrs[2] = {};
        unsigned n = 0;
        if (h.cluster == WHOLE_GRID) {
            attrs[n].id = cudaLaunchAttributeCooperative;
            attrs[n++].val.cooperative = 1;
        } else if (h.overlap) {
            attrs[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attrs[n++].val.programmaticStreamSerializationAllowed = 1;
        }
        if (h.cluster > 1) {
            attrs[n].id = cudaLaunchAttributeClusterDimension;
            attrs[n].val.clusterDim.x = h.cluster;
            attrs[n].val.clusterDim.y = attrs[n].val.clusterDim.z = 1;
            n++;
        }
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(h.grid[0], h.grid[1]);
        config.blockDim = dim3(h.block);
        config.dynamicSmemBytes = h.shared;
        if (h.shared > 32 << 10) // with what a kernel has by itself it may be more than 48 KB
            cudaFuncSetAttribute((const void *)h.kernel,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)h.shared);
        config.stream = stream;
        config.attrs = attrs;
        config.numAttrs = n;
        cudaLaunchKernelExC(&config, (const void *)h.kernel, args);
#endif
    }

    static void play(const void *payload, cudaStream_t stream) {
        char *at = (char *)payload, *slot[sizeof...(P)];
        size_t n = 0;
        at += whole(sizeof(header));
        ((slot[n++] = at, at += whole(sizeof(P))), ...);
        start(*(const header *)payload, slot, stream, std::index_sequence_for<P...>());
    }
};

// shared: bytes of SHARED_BYTES in the kernel. cluster: blocks that run at once and see each
// other's, neighbours along x; or WHOLE_GRID.
struct launch_shape {
    dim3 grid, block;
    size_t shared;
    unsigned cluster;
};

template <class... P, class... A>
static void launch_shaped(struct queue *q, void (*kernel)(P...), const launch_shape &s,
                          const A &...args) {
    using l = launched<P...>;
    alignas(8) char bytes[l::total()] = {};
    const typename l::header h = {
        kernel,    {s.grid.x, s.grid.y}, s.block.x, (unsigned)s.shared, (unsigned)queue_overlaps(q),
        s.cluster,
    };
    std::memcpy(bytes, &h, sizeof h);
    char *at = bytes + l::whole(sizeof h);
    auto put = [&](const auto &x) {
        std::memcpy(at, &x, sizeof x);
        at += l::whole(sizeof x);
    };
    (put((P)args), ...);
    queue_add(q, l::play, bytes, sizeof bytes);
}

template <class... P, class... A>
static void launch_with(struct queue *q, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                        const A &...args) {
    launch_shaped(q, kernel, {grid, block, shared, 1}, args...);
}

#define LAUNCH(kernel, grid, block, queue, ...)                                                    \
    launch_with(queue, kernel, grid, block, 0, __VA_ARGS__)

// Shared memory whose size the launch says.
#ifdef CUDA_EMU
#define SHARED_BYTES(name) char *name = emu_shared()
#else
#define SHARED_BYTES(name) extern __shared__ __align__(1024) char name[]
#endif

// Bytes of it that a block may ask for.
static inline size_t most_shared() {
#ifdef CUDA_EMU
    return emu_most_shared();
#else
    static thread_local const int bytes = [] { // a thread has one device
        int device = 0, most = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        return most;
    }();
    return (size_t)bytes;
#endif
}

// Multiprocessors, for kernels whose blocks take what there is in turn.
static inline int processors() {
#ifdef CUDA_EMU
    return emu_processors();
#else
    static thread_local const int count = [] {
        int device = 0, n = 1;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device);
        return n;
    }();
    return count;
#endif
}

// As in backend/dtype.h and ops.h; cuda.c asserts that they agree.
enum : int { T_F64 = 1, T_F32, T_BF16, T_F16, T_INT8 = 9, T_INT4 };
enum : int { A_TANH, A_SIGMOID, A_RELU2, A_NONE };
enum : int { U_W, U_K, U_V, U_A, U_B };
enum : int { STATE_CELL = 64 };

constexpr float c0 = 0.6065306597126334f; // e^(-1/2)

static inline unsigned blocks(size_t n, size_t per) {
    return (unsigned)((n + per - 1) / per);
}

// Rows whose sums make one part: as many as leave each multiprocessor of a large device four parts,
// within limits. By the number of rows alone.
enum { LEAST_PART = 32, MOST_PART = 128 };
static inline size_t part_rows(size_t R) {
    size_t rows = LEAST_PART;
    while (rows < MOST_PART && R > 528 * rows) rows *= 2;
    return rows;
}

// Every kernel starts so. Where launches overlap (queue.h), what stands before this kernel in the
// queue is complete from here on, and the next one may come and wait.
__device__ static inline void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
#elif defined(CUDA_EMU)
    emu_begin_kernel();
#endif
}

// Before begin_kernel: what this thread will want soon comes to the second-level cache, where no
// writer can be missed.
__device__ static inline void prefetch(const void *at) {
#ifdef CUDA_EMU
    (void)*(const volatile char *)at; // there must be something
#else
    asm volatile("prefetch.global.L2 [%0];" : : "l"(at));
#endif
}

// A barrier of whole warps of a block, `threads` in all; id 1 to 15.
__device__ static inline void group_barrier(int id, int threads) {
#ifdef CUDA_EMU
    emu_group_barrier(id, threads);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// The same for one who does not wait: what it wrote is seen by those who do.
__device__ static inline void group_arrive(int id, int threads) {
#ifdef CUDA_EMU
    emu_group_arrive(id, threads);
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- sums --------------------------------------------------------------------------------------

// All lanes get the same bits.
template <class T> __device__ inline T warp_sum(T x) {
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ static inline uint32_t larger(uint32_t x, uint32_t y) {
    return x > y ? x : y;
}
__device__ static inline uint32_t warp_max(uint32_t x) {
#ifdef CUDA_EMU
    for (int d = 16; d; d >>= 1) x = larger(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
#else
    return __reduce_max_sync(0xffffffffu, x);
#endif
}
__device__ static inline int warp_add(int x) {
#ifdef CUDA_EMU
    return warp_sum(x);
#else
    return __reduce_add_sync(0xffffffffu, x);
#endif
}

// Of a block of whole warps; all threads get it. Ends with everybody past the scratch.
template <class T, int WARPS> __device__ inline T block_sum(T x, T *scratch) {
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    T sum = scratch[0];
    for (int i = 1; i < WARPS; i++) sum += scratch[i];
    __syncthreads();
    return sum;
}

// ---- numbers -----------------------------------------------------------------------------------

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

__device__ inline float activate(float x, int act) {
    switch (act) {
    case A_TANH: return tanhf(x);
    case A_SIGMOID: return sigmoid(x);
    case A_RELU2: x = fmaxf(x, 0); return x * x;
    default: return x;
    }
}

// f'(x) from y = f(x).
__device__ inline float slope(float y, int act) {
    switch (act) {
    case A_TANH: return 1 - y * y;
    case A_SIGMOID: return y * (1 - y);
    case A_RELU2: return 2 * sqrtf(y);
    default: return 1;
    }
}

__device__ inline float bf16_value(uint16_t h) {
    return __uint_as_float((uint32_t)h << 16);
}

__device__ inline uint16_t bf16_bits(float f) {
    const uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

__device__ inline float bf16_round(float f) {
    return bf16_value(bf16_bits(f));
}

// Two as one word, rounded: x in the lower half.
__device__ static inline uint32_t bf16_pair(float x, float y) {
#ifdef __CUDA_ARCH__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
#else
    return bf16_bits(x) | (uint32_t)bf16_bits(y) << 16;
#endif
}

__device__ static inline float bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ static inline float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

__device__ inline float f16_value(uint16_t h) {
#ifdef __CUDA_ARCH__
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
#else
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31) return __uint_as_float(sign | 0x7f800000 | man << 13);
    if (exp) return __uint_as_float(sign | (exp + 112) << 23 | man << 13);
    return __uint_as_float(sign | __float_as_uint((float)man * 5.9604644775390625e-8f)); // 2^-24
#endif
}

__device__ inline uint16_t f16_bits(float f) {
    uint32_t u = __float_as_uint(f);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) return sign | 0x7e00;
    if (u >= 0x477ff000) return sign | 0x7c00; // rounds past 65504
    if (u < 0x38800000)                        // subnormal: the adder rounds at bit 2^-24
        return (uint16_t)(sign | (__float_as_uint(__uint_as_float(u) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13));
}

// Two as one word, rounded: x in the lower half.
__device__ static inline uint32_t f16_pair(float x, float y) {
#ifdef __CUDA_ARCH__
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
#else
    return f16_bits(x) | (uint32_t)f16_bits(y) << 16;
#endif
}

__device__ inline double load_number(const void *p, int type, size_t i) {
    switch (type) {
    case T_F64: return ((const double *)p)[i];
    case T_F32: return (double)((const float *)p)[i];
    case T_BF16: return (double)bf16_value(((const uint16_t *)p)[i]);
    default: return (double)f16_value(((const uint16_t *)p)[i]);
    }
}

__device__ inline void store_number(void *p, int type, size_t i, double x) {
    switch (type) {
    case T_F64: ((double *)p)[i] = x; break;
    case T_F32: ((float *)p)[i] = (float)x; break;
    case T_BF16: ((uint16_t *)p)[i] = bf16_bits((float)x); break;
    default: ((uint16_t *)p)[i] = f16_bits((float)x);
    }
}
