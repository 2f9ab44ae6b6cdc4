// The table of tokens, forward and backward. Rows of one token are summed upwards, whoever has
// them: their order comes from the host, blocks take strips of it, and what a strip has of a token
// that began before it is added afterwards. So a token that half of the rows hold costs no more
// than others.
#include "vector.cuh"

#include "kernels.h"

enum { ROW_THREADS = 256, THREADS = 128, STRIP = 32, AT_ONCE = 8 };

size_t k_embed_strips(size_t R) {
    return (R + STRIP - 1) / STRIP;
}

static __global__ void embed(float *y, const int32_t *token, const int32_t *drawn, size_t D,
                             const void *table, int type, size_t C, size_t V) {
    begin_kernel();
    const size_t r = blockIdx.x, at = (size_t)(-1 - token[r]);
    if (token[r] < 0 && at >= D) __trap();
    const size_t t = (size_t)(token[r] < 0 ? drawn[at] : token[r]);
    if (t >= V) __trap();
    for (size_t c = threadIdx.x; c < C; c += blockDim.x)
        y[r * C + c] = (float)load_number(table, type, t * C + c);
}

void k_embed(struct queue *s, float *y, const int32_t *token, const int32_t *drawn, size_t D,
             const void *table, int type, size_t R, size_t C, size_t V) {
    if (R) LAUNCH(embed, (unsigned)R, ROW_THREADS, s, y, token, drawn, D, table, type, C, V);
}

// ---- backward ----------------------------------------------------------------------------------

struct embed_bwd_args {
    float *dtable, *part; // part (strips,C): of the token that goes on from the strip before
    const float *dy;
    const int32_t *token, *order;
    size_t R, C, V;

    __device__ int32_t token_at(size_t place) const { return token[order[place]]; }
};

// N neighbouring columns a thread.
template <int N> static __global__ void __launch_bounds__(THREADS) embed_bwd(embed_bwd_args p) {
    begin_kernel();
    __shared__ int32_t row[STRIP], around[STRIP + 2]; // tokens, with the ones before and after
    const size_t first = blockIdx.x * (size_t)STRIP, C = p.C;
    const int n = p.R - first < STRIP ? (int)(p.R - first) : (int)STRIP;
    for (int i = (int)threadIdx.x; i < n + 2; i += THREADS) {
        const size_t place = first + i - 1;
        around[i] = place < p.R ? p.token_at(place) : -1; // (size_t)-1 is not
        if (place < p.R && (size_t)around[i] >= p.V) __trap();
        if (i && i <= n) row[i - 1] = p.order[place];
    }
    __syncthreads();
    const int32_t *token = around + 1;
    const size_t c = (blockIdx.y * (size_t)THREADS + threadIdx.x) * N;
    if (c >= C) return;
    several<N> sum = {};
    for (int base = 0; base < n; base += AT_ONCE) {
        several<N> dy[AT_ONCE] = {}, old[AT_ONCE] = {};
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int i = base + j;
            if (i >= n) continue;
            dy[j] = load<N>(p.dy + (size_t)row[i] * C + c);
            if (token[i] != token[i - 1]) old[j] = load<N>(p.dtable + (size_t)token[i] * C + c);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int i = base + j;
            if (i >= n) continue;
            if (token[i] != token[i - 1]) sum = old[j];
#pragma unroll
            for (int e = 0; e < N; e++) sum[e] += dy[j][e];
            if (i < n - 1 && token[i] == token[i + 1]) continue;
            const bool goes_on = token[i] == token[-1];
            store<N>((goes_on ? p.part + blockIdx.x * C : p.dtable + (size_t)token[i] * C) + c,
                     sum);
        }
    }
}

// Of a token that begins in this strip and goes on after it: what the strips after it have.
template <int N>
static __global__ void __launch_bounds__(THREADS) embed_bwd_rest(embed_bwd_args p) {
    begin_kernel();
    __shared__ int strips;
    const size_t first = blockIdx.x * (size_t)STRIP, next = first + STRIP, C = p.C;
    const int32_t t = p.token_at(next - 1);
    if (p.token_at(next) != t || (first && p.token_at(first - 1) == t)) return;
    if (threadIdx.x == 0) strips = 0;
    for (size_t at = next;; at += THREADS * (size_t)STRIP) {
        const size_t place = at + threadIdx.x * (size_t)STRIP;
        const bool has = place < p.R && p.token_at(place) == t;
        __syncthreads();
        if (has) atomicAdd(&strips, 1);
        if (__syncthreads_or(!has)) break;
    }
    const size_t c = (blockIdx.y * (size_t)THREADS + threadIdx.x) * N;
    if (c >= C) return;
    several<N> sum = load<N>(p.dtable + (size_t)t * C + c);
    const float *part = p.part + (blockIdx.x + 1) * C + c;
#pragma unroll 8
    for (int i = 0; i < strips; i++) {
        const several<N> x = load<N>(part + i * C);
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] += x[e];
    }
    store<N>(p.dtable + (size_t)t * C + c, sum);
}

template <int N> static void start(struct queue *s, const embed_bwd_args &p) {
    const unsigned strips = (unsigned)k_embed_strips(p.R), columns = blocks(p.C, THREADS * N);
    LAUNCH(embed_bwd<N>, dim3(strips, columns), THREADS, s, p);
    if (strips > 1) LAUNCH(embed_bwd_rest<N>, dim3(strips - 1, columns), THREADS, s, p);
}

void k_embed_bwd(struct queue *s, float *dtable, const float *dy, const int32_t *token,
                 const int32_t *order, float *part, size_t R, size_t C, size_t V) {
    if (!R) return;
    const embed_bwd_args p = {dtable, part, dy, token, order, R, C, V};
    if (in_fours(C, dtable, dy, part))
        start<4>(s, p);
    else
        start<1>(s, p);
}
