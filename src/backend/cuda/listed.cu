// One row times a matrix of which it wants few rows: relu² leaves half of a channel mix's inputs
// zero with random weights, nine of ten with trained ones, and at one row a large model is nothing
// but bytes of weights that are read.
//
// A warp has a stretch of k. It lists those that are not zero, and reads their rows as far as the
// block's outputs go, all that it has room for at once: who chooses with a predicate instead
// (tensor.cu) has as many loads on their way, but most of them of nothing. 4096 × 16384 in bf16 of
// which 12 % are wanted are 5.6 us at 2.9 TB/s, half of it 23. Longer pieces of a row by clusters
// that share k lost (docs/performance.md, with figures).
//
// Sums are in f32 and in an order of their own, which decode_listed.cuh shares, so this is for one
// row where its bits may differ from those that more rows would give it.
#include "listed.cuh"

#include "kernels.h"

namespace {

enum { STRETCHES = 16, LISTED = 1024, AHEAD = 8 };
enum { EACH_LOAD = 128, LOADS = LISTED / EACH_LOAD }; // of inputs

// What a warp has in shared memory: some inputs, and which of them are wanted.
struct stretch {
    uint2 x[LISTED / 4]; // as bf16
    uint16_t list[LISTED];

    __device__ float input(uint32_t k) const {
        const uint2 four = x[k / 4];
        const uint32_t pair = k & 2 ? four.y : four.x;
        return k & 1 ? bf16_high(pair) : bf16_low(pair);
    }
};

template <int WIDTH> struct listed {
    enum { LANES = WIDTH / LANE }; // of a row

    const product_args &p;
    const int lane;
    stretch &here;
    float sum[LANE] = {};

    // Inputs from k on, up to LISTED of them.
    __device__ void take_inputs(int k, int end) const {
        float4 x[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int at = k + i * EACH_LOAD + 4 * lane;
            x[i] = at < end ? *(const float4 *)(p.x + at) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            here.x[i * (EACH_LOAD / 4) + lane] =
                uint2{bf16_pair(x[i].x, x[i].y), bf16_pair(x[i].z, x[i].w)};
    }

    // How many of them are not zero. Little code, which each launch has to fetch again.
    __device__ int make_list() const {
        const unsigned below = (1u << lane) - 1;
        int count = 0;
#pragma unroll 1
        for (int k = 4 * lane; k < LISTED; k += EACH_LOAD) {
            const uint2 four = here.x[k / 4];
            const bool wanted[] = {(four.x & 0x7fffu) != 0, (four.x & 0x7fff0000u) != 0,
                                   (four.y & 0x7fffu) != 0, (four.y & 0x7fff0000u) != 0};
            const int n = wanted[0] + wanted[1] + wanted[2] + wanted[3];
            const unsigned ones = __ballot_sync(0xffffffffu, n & 1),
                           twos = __ballot_sync(0xffffffffu, n & 2),
                           fours = __ballot_sync(0xffffffffu, n & 4);
            int at =
                count + __popc(ones & below) + 2 * __popc(twos & below) + 4 * __popc(fours & below);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (wanted[e]) here.list[at] = (uint16_t)(k + e);
                at += wanted[e];
            }
            count += __popc(ones) + 2 * __popc(twos) + 4 * __popc(fours);
        }
        __syncwarp();
        return count;
    }

    // Outputs from o0 on, of a warp's stretch, into `to`.
    __device__ void run(float *to, int warp, int len, size_t o0) {
        const int begin = warp * len, K = (int)p.K, end = begin + len < K ? begin + len : K;
#pragma unroll 1
        for (int k = begin; k < end; k += LISTED) {
            take_inputs(k, end);
            const int count = make_list();
            const char *w =
                (const char *)p.w.data + ((size_t)k * p.w.sk + o0 + lane % LANES * LANE) * 2;
            add_rows<LANES, AHEAD>(
                sum, here.list, count, w, (uint32_t)(2 * p.w.sk), [](uint32_t at) { return at; },
                [this](uint32_t at) { return here.input(at); });
            __syncwarp(); // inputs and list were read
        }
        put_total<LANES>(to, sum);
    }
};

template <int WIDTH>
__global__ void __launch_bounds__(STRETCHES * 32, 2) multiply_listed(product_args p) {
    SHARED_BYTES(bytes);
    stretch *const stretches = (stretch *)bytes;
    __shared__ float part[STRETCHES][WIDTH];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tid = threadIdx.x;
    const int len = ((int)p.K + STRETCHES * 4 - 1) / (STRETCHES * 4) * 4;
    const size_t o0 = blockIdx.x * (size_t)WIDTH;
    begin_kernel();
    const float before = tid < WIDTH && p.add ? p.add[o0 + tid] : 0;
    listed<WIDTH> all = {p, lane, stretches[warp]};
    all.run(part[warp], warp, len, o0);
    __syncthreads();
    if (tid >= WIDTH) return;
    float sum = 0;
#pragma unroll
    for (int s = 0; s < STRETCHES; s++) sum += part[s][tid];
    p.y[o0 + tid] = activate(before + sum, p.act);
}

template <int WIDTH> void start_listed(struct queue *s, const product_args &p) {
    launch_with(s, multiply_listed<WIDTH>, blocks(p.O, WIDTH), STRETCHES * 32,
                STRETCHES * sizeof(stretch), p);
}

} // namespace

// Narrow blocks where there are few outputs: all multiprocessors have something to read.
bool k_listed(struct queue *s, const struct product_args *p) {
    const uintptr_t at = (uintptr_t)p->w.data | (uintptr_t)p->x;
    if (p->R != 1 || p->xk != 1 || !p->narrow || p->w.type != T_BF16 || p->w.so != 1 ||
        p->w.sk % LANE || at % 16 || p->K % 4 || p->O % 32)
        return false;
    if (p->O >= 4096)
        start_listed<32>(s, *p);
    else
        start_listed<16>(s, *p);
    return true;
}
