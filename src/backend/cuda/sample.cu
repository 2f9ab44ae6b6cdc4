// Sampling: a block takes one row of logits, in passes over it from the second-level cache. Before,
// biases are added and penalties paid, by the tokens that have some.
//
//   pass 1     the largest logit: all that temperature 0 needs
//   pass 2     with top_k or top_p: the most probable thousand or so go to shared memory, and if what
//              the two keep lies there, the rest is done there, too
//
// Where it does not, as of a row whose tokens are all alike, and without top_k and top_p:
//
//   1 pass     with top_k or top_p: probabilities relative to the largest
//   4 passes   for each of them: where it cuts, 6 bits of a probability after 6
//   1 pass     sums of what is left
//
// Sums that a draw hangs on are doubles over segments of neighbouring ids, in an order that depends
// on V alone; the drawn mark falls into one segment, and only that one is walked id by id. On an
// H100 a multiprocessor reads a row of 65,536 in about 4 µs; the floor of 256 rows in one pass is
// 22 µs of memory.
#include "best.cuh"
#include "sample_listed.cuh"
#include "sample_whole.cuh"

#include "kernels.h"

// A token stands there once, so no two threads meet.
template <class R> __device__ static void add_biases(const R &r, const sample_bias *bias, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        if ((unsigned)bias[i].token >= (unsigned)r.V) __trap();
        r.x[bias[i].token] = __fadd_rn(r.x[bias[i].token], bias[i].value);
    }
    __syncthreads();
}

// Of tokens that have been generated, whose bits are behind the accumulators: no other owes anything.
// What is paid then decays for the next token. A warp takes 32 tokens, a lane each, and asks for
// those of WORDS such words at a time.
template <class R> __device__ static void pay(const R &r, float *pen, float decay) {
    const int lane = threadIdx.x & 31;
    const uint32_t *seen = (const uint32_t *)(pen + r.V);
    for (int first = threadIdx.x >> 5; first * 32 < r.V; first += WORDS * warps()) {
        float owed[WORDS], x[WORDS];
        bool pays[WORDS];
#pragma unroll
        for (int u = 0; u < WORDS; u++) {
            const int word = first + u * warps();
            pays[u] = word * 32 + lane < r.V && seen[word] >> lane & 1;
        }
#pragma unroll
        for (int u = 0; u < WORDS; u++) {
            const int id = (first + u * warps()) * 32 + lane;
            if (pays[u]) owed[u] = pen[id], x[u] = r.x[id];
        }
#pragma unroll
        for (int u = 0; u < WORDS; u++) {
            const int id = (first + u * warps()) * 32 + lane;
            if (!pays[u]) continue;
            r.x[id] = __fadd_rn(x[u], -owed[u]);
            if (decay != 1) pen[id] = __fmul_rn(owed[u], decay);
        }
    }
    __syncthreads();
}

// A thread's own; its ids come upwards.
template <class R> __device__ static best find_best(const R &r) {
    best mine = {NAN, 0};
    r.for_each_four([&](int id, const four &v, int, bool) {
        const float most = fmaxf(fmaxf(v.e[0], v.e[1]), fmaxf(v.e[2], v.e[3]));
        if (!(most > mine.value) && !isnan(mine.value)) return;
#pragma unroll
        for (int i = FOUR; i--;)
            if (v.e[i] == most) mine = {most, id + i};
    });
    return mine;
}

// ---- the kernel --------------------------------------------------------------------------------

template <bool PLAIN>
static __global__ void __launch_bounds__(THREADS, 2)
    sample(int32_t *token, float *logits, const sample_row *rows, char *penalties,
           size_t penalty_bytes, const char *biases, size_t bias_bytes, int V) {
    begin_kernel();
    __shared__ union {
        lists listed;
        counters whole;
    } room;
    __shared__ double scratch[WARPS];
    __shared__ best bests[WARPS];
    const sample_row row = rows[blockIdx.x];
    float *const x = logits + blockIdx.x * (size_t)V;
    float *const pen =
        penalties && row.slot >= 0 ? (float *)(penalties + row.slot * penalty_bytes) : nullptr;
    const row_of<PLAIN> r = {x, V, (V + PIECE * THREADS - 1) / (PIECE * THREADS)};
    if (row.num_bias)
        add_biases(r, (const sample_bias *)(biases + row.bias_slot * bias_bytes), row.num_bias);
    if (pen) pay(r, pen, row.penalty_decay);
    const best mine = find_best(r), max = block_best(mine, bests);
    int chosen = max.index;
    if (row.temperature > 0 && row.top_k != 1) {
        // Near 0 the temperature has no reciprocal: 0 · inf would be NaN where the maximum is.
        const softmax p = {max.value, fminf(1.0f / row.temperature, 3.40282347e38f)};
        const bool cuts = cuts_to_k(row, V) || row.top_p < 1;
        chosen = cuts ? draw_listed(room.listed, r, p, mine.value, row, scratch, max.index) : -1;
        if (chosen < 0) {
            drawing<row_of<PLAIN>> d = {r, false, p, 0, 0, V};
            if (cuts) d = cut_row(room.whole, r, p, row, scratch);
            d.least = fminf(row.min_p, 1);
            chosen = draw(d, row, room.whole.sums, scratch, max.index);
        }
    }
    if (threadIdx.x) return;
    token[blockIdx.x] = chosen;
    if (!pen) return;
    uint32_t *seen = (uint32_t *)(pen + V) + chosen / 32;
    const uint32_t bit = 1u << (chosen & 31);
    pen[chosen] = __fadd_rn(pen[chosen],
                            __fadd_rn(*seen & bit ? row.repetition : row.presence, row.frequency));
    *seen |= bit;
}

void k_sample(struct queue *s, int32_t *token, float *logits, const void *rows, void *penalties,
              size_t penalty_bytes, const void *biases, size_t bias_bytes, size_t O, size_t V) {
    static_assert(sizeof(sample_row) == 64, "struct sample_row of ops.h");
    static_assert((int)FEW_V <= (int)FEW * PIECE, "a thread for every segment");
    const bool plain = V % PIECE == 0 && V <= THREADS * PIECE && (uintptr_t)logits % 16 == 0;
    if (O)
        LAUNCH(plain ? sample<true> : sample<false>, (unsigned)O, V <= FEW_V ? FEW : THREADS, s,
               token, logits, (const sample_row *)rows, (char *)penalties, penalty_bytes,
               (const char *)biases, bias_bytes, (int)V);
}
