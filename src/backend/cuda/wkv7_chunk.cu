// The chunked recurrence, forward: the back group makes of the next chunk's inputs all that does
// not depend on the state, while the front group goes through this one.
#include "wkv7_chunk.cuh"

namespace {

// A warp's rows of the state through a chunk, and what they read out.
template <class E>
__device__ void advance(rows_of_state &S, const inputs<E> &in, const wkv7_args &a, size_t at,
                        int row0) {
    float x[2][4] = {}, y[2][4] = {}, u[2][4] = {};
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag state = a_of_sum(S[j]);
        multiply(x, state, b_of_turned(in.a, 0, 16 * j));
        multiply(y, state, b_of_turned(in.r, 0, 16 * j));
    }
    const auto v = a_of_turned(in.v, 0, row0);
    multiply(x, v, b_of_turned(in.ak, 0, 0));
    multiply(y, v, b_of_turned(in.rk, 0, 0));
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
    const frag sums = a_of_sum(u); // rows of U: S_{t-1} a_t
    multiply(y, sums, b_of_turned(in.rb, 0, 0));
    each_of_channels(y, [&](int, int, int row, int t, float2 pair) {
        put_pair((E *)a.y + at + (size_t)t * a.C + row0 + row, pair.x, pair.y);
    });
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        multiply(S[j], v, b_of(in.k, 0, 16 * j));
        multiply(S[j], sums, b_of(in.b, 0, 16 * j));
    }
    scale_columns(S, in.decay);
}

template <class E> __global__ void __launch_bounds__(THREADS, 2) forward(wkv7_args a) {
    begin_kernel();
    SHARED_BYTES(bytes);
    inputs<E> *s = (inputs<E> *)bytes; // two, in turns
    const place p = place_of(a);
    const int chunks = p.len / T, warp = (int)(threadIdx.x >> 5) % 4, row0 = 16 * warp;
    if (!chunks) return;
    const size_t step = (size_t)T * a.C;
    if (threadIdx.x >= GROUP) {
        part<E, 4> next(warp);
        next.load(a, p.at);
        for (int c = 0; c < chunks; c++) {
            next.prepare(s[c & 1], nullptr);
            if (c + 1 < chunks) next.load(a, p.at + (c + 1) * step);
            group_barrier(1, GROUP);
            triangles(s[c & 1], warp);
            __syncthreads(); // chunk c is ready, chunk c - 1 is done
        }
    } else {
        rows_of_state S = {};
        if (p.in) each_of_rows(S, row0, [&](float &x, int at) { x = p.in[at]; });
        for (int c = 0; c < chunks; c++) {
            if (a.saved)
                each_of_rows(S, row0,
                             [&](float &x, int at) { p.chunks[c * p.chunk_step + at] = x; });
            __syncthreads();
            advance(S, s[c & 1], a, p.at + c * step, row0);
        }
        if (p.out) each_of_rows(S, row0, [&](float &x, int at) { p.out[at] = x; });
    }
}

} // namespace

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a) {
    const dim3 grid(a.H, a.spans);
    if (a.narrow)
        launch_with(q, forward<uint16_t>, grid, THREADS, 2 * sizeof(inputs<uint16_t>), a);
    else
        launch_with(q, forward<float>, grid, THREADS, 2 * sizeof(inputs<float>), a);
}
