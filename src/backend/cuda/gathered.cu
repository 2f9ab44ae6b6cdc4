// One row times a matrix of which it wants few rows: relu² leaves half of a channel mix's inputs
// zero with random weights, nine of ten with trained ones, and at one row a large model is nothing
// but bytes of weights that are read.
//
// A cluster of blocks has WIDTH outputs, each block a stretch of k. It lists the inputs that are
// not zero and reads their rows, a warp the next one each: 256 or 512 bytes in one piece, 80 KB on
// their way. Sums go from warp to block to cluster, in that order. Who chooses with a predicate
// instead (tensor.cu) has as many loads on their way, but most of them of nothing. 4096 × 16384 in
// bf16 of which 12 % are wanted are 5.6 us at 2.9 TB/s, half of it 23; by count this takes some 10,
// where listed.cu, 64 bytes at a time, takes 24. Not measured yet: RWKV_CUDA_TRY=rows.
//
// Sums are in f32 and in an order of their own, so this is for one row where its bits may differ
// from those that more rows would give it.
#include "hopper.cuh"
#include "vector.cuh"

#include "kernels.h"

namespace {

enum {
    CUTS = 8,
    WARPS = 16,
    THREADS = 32 * WARPS,
    LISTED = 4 * THREADS
};                             // inputs in a list, at most
enum { LANE = 8, AHEAD = 10 }; // outputs of a lane, 16 bytes; its rows on their way

template <int WIDTH> struct memory {
    uint32_t list[LISTED]; // the input's place and, as bf16, its value
    int counts[WARPS];
    float part[WARPS][WIDTH];
    float total[CUTS][WIDTH / CUTS]; // what this block finishes, of each of the cluster
    alignas(16) uint32_t row[AHEAD][THREADS][LANE / 2]; // a thread's own
};

__device__ void copy_16(uint32_t (&to)[4], const uint32_t *from) {
#ifdef CUDA_EMU
    std::memcpy(to, from, 16);
#else
    const uint4 x = *(const uint4 *)from;
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
#endif
}

// Of inputs k to end, at most LISTED, those that are not zero, in order. Returns how many. Little
// code, which each launch has to fetch again.
__device__ int make_list(uint32_t *list, int *counts, const float *x, int k, int end) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int at = 4 * (int)threadIdx.x, here = k + at;
    const float4 v = here < end ? *(const float4 *)(x + here) : make_float4(0, 0, 0, 0);
    const uint32_t bits[] = {bf16_bits(v.x), bf16_bits(v.y), bf16_bits(v.z), bf16_bits(v.w)};
    const unsigned below = (1u << lane) - 1;
    int n = 0, before = 0, all = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) n += (bits[e] & 0x7fff) != 0;
#pragma unroll
    for (int b = 0; b < 3; b++) {
        const unsigned set = __ballot_sync(0xffffffffu, n >> b & 1);
        before += __popc(set & below) << b;
        all += __popc(set) << b;
    }
    if (!lane) counts[warp] = all;
    __syncthreads();
    all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += counts[w];
        all += counts[w];
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (bits[e] & 0x7fff) list[before++] = (uint32_t)(at + e) << 16 | bits[e];
    __syncthreads();
    return all;
}

// Adds this thread's eight outputs of the rows in the list that are its warp's, or its part of a
// warp's: every so many-th. Copies into its own shared memory, so that little code has many on
// their way, and nobody waits for others.
template <int LANES, class M>
__device__ void add_rows(float (&sum)[LANE], M &s, int count, const char *w, uint32_t pitch) {
    enum { STEP = THREADS / LANES };
    const int tid = (int)threadIdx.x, first = tid / LANES;
    const auto ask_row = [&](int i, int slot) {
        if (i < count) ask_bytes<16>(s.row[slot][tid], w + (uint64_t)(s.list[i] >> 16) * pitch);
        asked();
    };
#pragma unroll 1
    for (int a = 0; a < AHEAD; a++) ask_row(first + a * STEP, a);
#pragma unroll 1
    for (int i = first, slot = 0; i < count; i += STEP) {
        wait_for_asked<AHEAD - 1>();
        uint32_t pair[LANE / 2];
        copy_16(pair, s.row[slot][tid]);
        const float by = bf16_low(s.list[i]);
#pragma unroll
        for (int e = 0; e < LANE / 2; e++) {
            sum[2 * e] = fmaf(bf16_low(pair[e]), by, sum[2 * e]);
            sum[2 * e + 1] = fmaf(bf16_high(pair[e]), by, sum[2 * e + 1]);
        }
        ask_row(i + AHEAD * STEP, slot);
        slot = slot + 1 < AHEAD ? slot + 1 : 0;
    }
}

template <int WIDTH>
__global__ void __launch_bounds__(THREADS, 1) multiply_gathered(product_args p) {
    enum { LANES = WIDTH / LANE, MINE = WIDTH / CUTS };
    SHARED_BYTES(bytes);
    auto &s = *(memory<WIDTH> *)bytes;
    const int tid = (int)threadIdx.x, warp = tid / 32, lane = tid % 32;
    const int rank = cluster_rank(), K = (int)p.K;
    const int len = (K + CUTS * 4 - 1) / (CUTS * 4) * 4, begin = rank * len;
    const int end = begin + len < K ? begin + len : K;
    const size_t o0 = blockIdx.x / CUTS * (size_t)WIDTH, mine = o0 + rank * MINE + tid;
    cluster_barrier(); // all are there to be written to
    begin_kernel();
    const float before = tid < MINE && p.add ? p.add[mine] : 0;
    float sum[LANE] = {};
#pragma unroll 1
    for (int k = begin; k < end; k += LISTED) {
        const size_t first = (size_t)k * p.w.sk + o0 + lane % LANES * LANE;
        const int count = make_list(s.list, s.counts, p.x, k, end);
        add_rows<LANES>(sum, s, count, (const char *)p.w.data + first * 2, (uint32_t)(2 * p.w.sk));
        __syncthreads(); // the list was read
    }
#pragma unroll
    for (int d = LANES; d < 32; d *= 2)
#pragma unroll
        for (int e = 0; e < LANE; e++) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], d);
    if (lane < LANES)
#pragma unroll
        for (int e = 0; e < LANE; e++) s.part[warp][LANE * lane + e] = sum[e];
    __syncthreads();
    if (tid < WIDTH) {
        float all = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) all += s.part[w][tid];
        store_to_rank(&s.total[rank][tid % MINE], all, tid / MINE);
    }
    cluster_barrier();
    if (tid >= MINE) return;
    float all = 0;
#pragma unroll
    for (int r = 0; r < CUTS; r++) all += s.total[r][tid];
    p.y[mine] = activate(before + all, p.act);
}

template <int WIDTH> void start_gathered(struct queue *s, const product_args &p) {
    launch_shaped(s, multiply_gathered<WIDTH>,
                  {(unsigned)(p.O / WIDTH * CUTS), THREADS, sizeof(memory<WIDTH>), CUTS}, p);
}

} // namespace

// Outputs of a cluster: few where there are few, so that all multiprocessors have something to
// read.
#ifdef CUDA_EMU
enum { WIDE = 64, NARROW = 64 }; // so that small products are done so
#else
enum { WIDE = 256, NARROW = 128 };
#endif

bool k_gathered(struct queue *s, const struct product_args *p) {
    const uintptr_t at = (uintptr_t)p->w.data | (uintptr_t)p->x;
    if (p->R != 1 || p->xk != 1 || !p->narrow || p->w.type != T_BF16 || p->w.so != 1 ||
        p->w.sk % LANE || at % 16 || p->K % 4 || p->O % NARROW)
        return false;
    if (p->O >= 4096 && p->O % WIDE == 0)
        start_gathered<WIDE>(s, *p);
    else
        start_gathered<NARROW>(s, *p);
    return true;
}
