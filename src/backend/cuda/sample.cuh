// What sampling's parts share (sample.cu): a row of logits, its probabilities, sums over a block.
#pragma once
#include "device.cuh"

// Blocks have THREADS threads, or FEW for a small vocabulary.
enum { THREADS = 512, WARPS = THREADS / 32, FEW = 128, FEW_V = 8192 };
enum { FOUR = 4, PIECE = 32 * FOUR, WORDS = 4 };

__device__ static int warps() {
    return (int)blockDim.x / 32;
}

// struct sample_row of ops.h; cuda.c asserts its size.
struct sample_row {
    float temperature, top_p, min_p;
    float presence, repetition, frequency, penalty_decay;
    int32_t top_k, slot, num_bias, bias_slot, reserved;
    uint64_t seed, position;
};

struct sample_bias {
    int32_t token;
    float value;
};

// Whether top_k keeps less than all.
__device__ static inline bool cuts_to_k(const sample_row &row, int V) {
    return row.top_k > 0 && row.top_k < V;
}

// rng_uniform of base/rng.h, stream 0: Philox 4x32-10.
__device__ static __noinline__ double uniform(uint64_t seed, uint64_t index) {
    uint32_t x[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll 1
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * x[0], p1 = (uint64_t)0xCD9E8D57 * x[2];
        const uint32_t y1 = x[1], y3 = x[3];
        x[0] = (uint32_t)(p1 >> 32) ^ y1 ^ k0;
        x[1] = (uint32_t)p1;
        x[2] = (uint32_t)(p0 >> 32) ^ y3 ^ k1;
        x[3] = (uint32_t)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    const uint64_t bits = (uint64_t)x[1] << 32 | x[0];
    return (double)(bits >> 11) * 1.1102230246251565e-16; // 2^-53
}

// Inclusive, over the lanes of a warp.
template <class T> __device__ static T warp_scan(T x) {
    const int lane = threadIdx.x & 31;
    for (int d = 1; d < 32; d <<= 1) {
        const T y = __shfl_up_sync(0xffffffffu, x, d);
        if (lane >= d) x += y;
    }
    return x;
}

template <class T> struct scanned {
    T before, all;
};

// Over the threads of a block, in order: of those before, and of all.
template <class T> __device__ static __noinline__ scanned<T> sum_before(T x, T *scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const T sum = warp_scan(x), up = __shfl_up_sync(0xffffffffu, sum, 1);
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    scanned<T> s = {0, 0};
#pragma unroll 1
    for (int w = 0; w < warps(); w++) {
        if (w < warp) s.before += scratch[w];
        s.all += scratch[w];
    }
    __syncthreads();
    if (lane) s.before += up;
    return s;
}

struct four {
    float e[FOUR];
};

// At most as many segments as threads, of whole pieces; a piece is 128 ids, four a lane. Of n warps
// warp w takes the segments w, w + n and so on. PLAIN: segments are pieces, all of them whole, each at
// a multiple of 16 bytes.
template <bool PLAIN> struct row_of {
    float *x;
    int V, pieces;

    // NaN, which is nobody's largest and has no probability, stands for what is not there.
    __device__ four load(int id) const {
        four y = {{NAN, NAN, NAN, NAN}};
        if constexpr (PLAIN) {
            const float4 v = *(const float4 *)(x + id);
            y = {{v.x, v.y, v.z, v.w}};
        } else {
#pragma unroll
            for (int i = 0; i < FOUR; i++)
                if (id + i < V) y.e[i] = x[id + i];
        }
        return y;
    }

    __device__ void store(int id, const four &y) const {
        if constexpr (PLAIN) {
            *(float4 *)(x + id) = make_float4(y.e[0], y.e[1], y.e[2], y.e[3]);
        } else {
#pragma unroll
            for (int i = 0; i < FOUR; i++)
                if (id + i < V) x[id + i] = y.e[i];
        }
    }

    // f(id, numbers, segment, whether it is the segment's last piece), by whole warps, each warp's
    // pieces upwards. The next one is on its way meanwhile.
    template <class F> __device__ void for_each_four(F f) const {
        const int warp = threadIdx.x >> 5, mine = ((int)threadIdx.x & 31) * FOUR;
        if constexpr (PLAIN) {
            const int step = warps() * PIECE;
            int id = warp * PIECE;
            if (id >= V) return;
            four next = load(id + mine);
            for (; id < V; id += step) {
                const four v = next;
                next = load((id + step < V ? id + step : id) + mine);
                f(id + mine, v, id / PIECE, true);
            }
        } else {
            for (int segment = warp; segment * pieces * PIECE < V; segment += warps())
                for (int piece = 0; piece < pieces; piece++) {
                    const int id = (segment * pieces + piece) * PIECE + mine;
                    f(id, load(id), segment, piece + 1 == pieces);
                }
        }
    }
};

// Probabilities relative to the largest.
struct softmax {
    float max, inverse; // of the logits; of the temperature
    __device__ float operator()(float x) const {
        const float p = expf((x - max) * inverse);
        return p > 0 ? p : 0; // NaN is nothing
    }
};

// A mass that sums of do not depend on the order in which its parts come: whole units of 1/scale.
__device__ static uint64_t units(float p, float scale) {
    return __float2ull_rn(p * scale);
}

// What top_p wants of all, at least one unit: one token stays.
__device__ static uint64_t goal_of(float top_p, double all) {
    const double wanted = ceil((double)top_p * all);
    return wanted > 1 ? (uint64_t)wanted : 1;
}
