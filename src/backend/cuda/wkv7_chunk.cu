// The chunked recurrence, forward. Groups of four warps make of the inputs all that does not depend
// on the state, each of every BACKS-th chunk; the front warps take the state through one chunk
// after the other. A ring of chunks lies between them.
//
// Where there are few heads, SPLIT blocks share one: rows of the state do not know of each other,
// so a block takes some of them and makes the rest again. Whatever SPLIT and BACKS, the same bits.
#include "wkv7_chunk.cuh"

namespace {

// A warp's rows of the state through a chunk, and what they read out.
template <class E>
__device__ void advance(rows_of_state &S, const inputs<E> &in, const wkv7_args &a, size_t at,
                        int row0) {
    // The chain from state to state: x in three sums, U, S. The rest fills the gaps.
    float x[2][4] = {}, other[2][4] = {}, y[2][4] = {}, u[2][4] = {};
    const auto v = a_of_turned(in.v, 0, row0);
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const frag state = a_of_sum(S[j]);
        multiply(j & 1 ? other : x, state, b_of_turned(in.a, 0, 16 * j));
        multiply(y, state, b_of_turned(in.r, 0, 16 * j));
    }
    multiply(other, v, b_of_turned(in.ak, 0, 0));
    add(x, other);
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
    multiply(y, v, b_of_turned(in.rk, 0, 0));
#pragma unroll
    for (int j = 0; j < STEPS; j++) multiply(S[j], v, b_of(in.k, 0, 16 * j));
    const frag sums = a_of_sum(u); // rows of U: S_{t-1} a_t
#pragma unroll
    for (int j = 0; j < STEPS; j++) multiply(S[j], sums, b_of(in.b, 0, 16 * j));
    multiply(y, sums, b_of_turned(in.rb, 0, 0));
    scale_columns(S, in.decay);
    each_of_channels(y, [&](int, int, int row, int t, float2 pair) {
        put_pair((E *)a.y + at + (size_t)t * a.C + row0 + row, pair.x, pair.y);
    });
}

template <int SPLIT, int BACKS> struct shape {
    enum { FRONT = GROUP / SPLIT, ALL = FRONT + BACKS * GROUP, RING = BACKS + 1 };
    enum { MADE = 1, DONE = MADE + RING, EACH = DONE + RING, BOTH = FRONT + GROUP }; // barriers
};

template <class E, int SPLIT, int BACKS>
__global__ void __launch_bounds__(shape<SPLIT, BACKS>::ALL, BACKS == 1 ? 2 : 1)
    forward(wkv7_args a) {
    begin_kernel();
    typedef shape<SPLIT, BACKS> sh;
    SHARED_BYTES(bytes);
    inputs<E> *ring = (inputs<E> *)bytes;
    const place p = place_of(a, blockIdx.x / SPLIT);
    const int chunks = p.len / T, warp = (int)(threadIdx.x >> 5);
    if (!chunks) return;
    const size_t step = (size_t)T * a.C;
    if (threadIdx.x >= sh::FRONT) {
        const int back = (warp - sh::FRONT / 32) / 4, mine = (warp - sh::FRONT / 32) % 4;
        part<E, 4> next(mine);
        if (back < chunks) next.load(a, p.at + back * step);
        for (int c = back; c < chunks; c += BACKS) {
            const int slot = c % sh::RING;
            if (c >= sh::RING) group_barrier(sh::DONE + slot, sh::BOTH);
            next.prepare(ring[slot], nullptr);
            if (c + BACKS < chunks) next.load(a, p.at + (c + BACKS) * step);
            group_barrier(sh::EACH + back, GROUP);
            if (mine < 3)
                triangles(ring[slot], mine);
            else
                invert(ring[slot]);
            if (a.saved && mine == 3) keep_inverse(ring[slot], a.saved + p.at + c * step, a.C);
            group_arrive(sh::MADE + slot, sh::BOTH);
        }
    } else {
        const int row0 = 16 * ((int)(blockIdx.x % SPLIT) * (4 / SPLIT) + warp);
        rows_of_state S = {};
        if (p.in) each_of_rows(S, row0, [&](float &x, int at) { x = p.in[at]; });
        for (int c = 0; c < chunks; c++) {
            const int slot = c % sh::RING;
            if (a.saved)
                each_of_rows(S, row0,
                             [&](float &x, int at) { p.chunks[c * p.chunk_step + at] = x; });
            group_barrier(sh::MADE + slot, sh::BOTH);
            advance(S, ring[slot], a, p.at + c * step, row0);
            if (c + sh::RING < chunks) group_arrive(sh::DONE + slot, sh::BOTH);
        }
        if (p.out) each_of_rows(S, row0, [&](float &x, int at) { p.out[at] = x; });
    }
}

template <class E, int SPLIT, int BACKS> void start(struct queue *q, const wkv7_args &a) {
    typedef shape<SPLIT, BACKS> sh;
    launch_with(q, forward<E, SPLIT, BACKS>, dim3(a.H * SPLIT, a.spans), sh::ALL,
                sh::RING * sizeof(inputs<E>), a);
}

// A multiprocessor takes two blocks that prepare with one group, or one with two: with blocks for
// all of some 132 that one is faster.
template <class E> void start_fitting(struct queue *q, const wkv7_args &a) {
    const int heads = a.spans * a.H;
    if (heads <= 132 / 4)
        start<E, 4, 2>(q, a);
    else if (heads <= 132 / 2)
        start<E, 2, 2>(q, a);
    else if (heads <= 132)
        start<E, 1, 2>(q, a);
    else
        start<E, 1, 1>(q, a);
}

} // namespace

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a) {
    if (a.narrow)
        start_fitting<uint16_t>(q, a);
    else
        start_fitting<float>(q, a);
}
