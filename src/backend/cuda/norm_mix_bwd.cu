// The gradient of norm and token shift in one pass: of a row, dm, x and the gradient that flows
// past are read once, and dx is written once. A block has whole rows and walks down a strip of
// them: what a row gets from the next one's mixes is carried along, and z of the row before, which
// is made again from x, is the next row's own.
//
// Bound by memory, if enough of it is asked for: the next two rows are on their way into shared
// memory while one is at work, some 30 KB a block of 768 columns with six mixes, and two such
// blocks share a multiprocessor.
#include "vector.cuh"

#include "kernels.h"

enum { MIXES = 6, VEC = 4, DEPTH = 3 };

// What a row wants, in shared memory: each thread has its own columns and reads nobody else's.
template <class T, int M> struct ring {
    char *bytes;

    __device__ static size_t plane() { return blockDim.x * (size_t)VEC; } // numbers
    static size_t stage(unsigned threads) {
        return threads * (size_t)VEC * (M * sizeof(T) + 2 * sizeof(float));
    }
    __device__ char *at(int slot) const {
        return bytes + slot * plane() * (M * sizeof(T) + 2 * sizeof(float));
    }
    __device__ T *dm(int slot, int k) const {
        return (T *)at(slot) + k * plane() + threadIdx.x * VEC;
    }
    __device__ float *add(int slot) const {
        return (float *)(at(slot) + M * plane() * sizeof(T)) + threadIdx.x * VEC;
    }
    __device__ float *x(int slot) const { return add(slot) + plane(); } // of the row before
};

// Sums over the block; all threads get the same bits. With two scratches in turns one barrier a
// sum is enough.
template <int K, int BLOCK>
__device__ static void block_sums(float (&x)[K], float (*scratch)[BLOCK / 32]) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = warp_sum(x[k]);
        if ((threadIdx.x & 31) == 0) scratch[k][threadIdx.x >> 5] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = 0;
#pragma unroll
        for (int w = 0; w < BLOCK / 32; w++) x[k] += scratch[k][w];
    }
}

struct normed { // a row's x̂ and 1/√(var+ε)
    several<VEC> xhat;
    float scale;
};

// What a block knows of its strip: the i-th row from its end is row end - 1 - i.
template <int BLOCK> struct notes {
    float sums[4][BLOCK / 32];
    float first[MOST_PART + 1];  // number of the i-th row: means are counted from there on
    int32_t prev[MOST_PART + 1]; // of the row after the i-th

    __device__ void take(const mix_bwd_args &p, size_t end, int n) {
        for (int i = (int)threadIdx.x; i <= n; i += (int)blockDim.x) {
            const size_t r = end - i;
            prev[i] = r < p.R ? p.prev[r] : -1;
            first[i] = r ? p.x[(r - 1) * p.C] : 0;
        }
        for (int i = (int)threadIdx.x; i < 4 * (BLOCK / 32); i += (int)blockDim.x)
            sums[0][i] = 0; // there may be fewer warps
        __syncthreads();
    }
};

// A thread's columns on the way down.
template <class T, int M, int BLOCK> struct walk {
    const mix_bwd_args &p;
    notes<BLOCK> &note;
    const ring<T, M> row;
    const size_t C, c, end;
    const int n;
    const bool in; // there are such columns
    const float share;
    several<VEC> weight[M], dmix[M], w, b, dw, db;
    several<VEC> carried; // what a row gets from the next one
    several<VEC> x;       // of the row before
    normed now;

    __device__ walk(const mix_bwd_args &args, notes<BLOCK> &notes, char *bytes, size_t begin,
                    size_t strip)
        : p(args), note(notes), row{bytes}, C(args.C), c(threadIdx.x * (size_t)VEC),
          end(begin + strip < args.R ? begin + strip : args.R), n((int)(end - begin)), in(c < C),
          share(1.0f / (float)C), weight{}, dmix{}, w{}, b{}, dw{}, db{}, carried{}, x{} {}

    __device__ void ask_for(int i, int slot) {
        const size_t r = end - 1 - i;
        if (in && i < n) {
#pragma unroll
            for (int k = 0; k < M; k++)
                ask<VEC>(row.dm(slot, k), (const T *)p.dm + (k * p.R + r) * C + c);
            if (p.add) ask<VEC>(row.add(slot), p.add + r * C + c);
            if (r) ask<VEC>(row.x(slot), p.x + (r - 1) * C + c);
        }
        asked();
    }

    // x less its mean, and the sum of its squares here.
    __device__ float centre(float mean) {
        float square = 0;
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            x[e] = in ? x[e] - mean : 0;
            square += x[e] * x[e];
        }
        return square;
    }
    __device__ normed scaled(float square) const {
        normed y;
        y.scale = 1.0f / sqrtf(square * share + p.eps);
#pragma unroll
        for (int e = 0; e < VEC; e++) y.xhat[e] = x[e] * y.scale;
        return y;
    }

    // The last row's x̂, and what it gets from the next strip.
    __device__ void begin() {
        if (in) {
            w = load<VEC>(p.w + c);
            b = load<VEC>(p.b + c);
            x = load<VEC>(p.x + (end - 1) * C + c);
#pragma unroll
            for (int k = 0; k < M; k++) {
                weight[k] = load<VEC>(p.mix + k * C + c);
                if (note.prev[0] < 0) continue;
                const several<VEC> g = load<VEC>((const T *)p.dm + (k * p.R + end) * C + c);
#pragma unroll
                for (int e = 0; e < VEC; e++) carried[e] += g[e] * weight[k][e];
            }
        }
        float sum[1] = {0};
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[0] += in ? x[e] - note.first[0] : 0;
        block_sums<1, BLOCK>(sum, note.sums);
        sum[0] = centre(note.first[0] + sum[0] * share);
        block_sums<1, BLOCK>(sum, note.sums + 3);
        now = scaled(sum[0]);
    }

    // dz of the i-th row.
    __device__ several<VEC> gradient(int i, int slot) {
        several<VEC> dz = {}, mine = {};
        if (in)
#pragma unroll
            for (int k = 0; k < M; k++) {
                const several<VEC> g = load<VEC>((const T *)row.dm(slot, k));
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    dz[e] += g[e];
                    mine[e] += g[e] * weight[k][e];
                }
            }
#pragma unroll
        for (int e = 0; e < VEC; e++) dz[e] += (note.prev[i] >= 0 ? carried[e] : 0) - mine[e];
        carried = mine;
        return dz;
    }

    __device__ void give_dx(size_t r, int slot, const several<VEC> &dz, float e_mean,
                            float ex_mean) {
        several<VEC> dx = {};
        if (in && p.add) dx = load<VEC>((const float *)row.add(slot));
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            dw[e] += dz[e] * now.xhat[e];
            db[e] += dz[e];
            dx[e] += now.scale * (dz[e] * w[e] - e_mean - now.xhat[e] * ex_mean);
        }
        if (!in) return;
        store<VEC>(p.dx + r * C + c, dx);
        if (p.rounded) store<VEC>(p.rounded + r * C + c, dx);
    }

    // The i-th row's share of dmix, with the row before.
    __device__ void add_mixes(int i, int slot, const normed &before) {
        several<VEC> d = {};
        if (note.prev[i + 1] >= 0)
#pragma unroll
            for (int e = 0; e < VEC; e++) d[e] = before.xhat[e] * w[e] + b[e];
        else if (in && p.in)
            d = load<VEC>(p.in + (size_t)(-1 - note.prev[i + 1]) * C + c);
#pragma unroll
        for (int e = 0; e < VEC; e++) d[e] -= now.xhat[e] * w[e] + b[e];
        if (in)
#pragma unroll
            for (int k = 0; k < M; k++) {
                const several<VEC> g = load<VEC>((const T *)row.dm(slot, k));
#pragma unroll
                for (int e = 0; e < VEC; e++) dmix[k][e] += g[e] * d[e];
            }
    }

    // Two barriers: the sums of this row's gradient come with the mean of the row before.
    __device__ void step(int i, int slot) {
        const size_t r = end - 1 - i;
        float sum[3] = {0, 0, 0}; // Σ e, Σ e x̂, Σ (x - first)
        const several<VEC> dz = gradient(i, slot);
        x = {};
        if (in && r) x = load<VEC>((const float *)row.x(slot));
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            sum[0] += dz[e] * w[e];
            sum[1] += dz[e] * w[e] * now.xhat[e];
            sum[2] += in ? x[e] - note.first[i + 1] : 0;
        }
        block_sums<3, BLOCK>(sum, note.sums);
        float square[1] = {centre(note.first[i + 1] + sum[2] * share)};
        give_dx(r, slot, dz, sum[0] * share, sum[1] * share);
        block_sums<1, BLOCK>(square, note.sums + 3);
        const normed before = scaled(square[0]);
        add_mixes(i, slot, before);
        now = before;
    }
};

template <class T, int M, int BLOCK>
static __global__ void __launch_bounds__(BLOCK, BLOCK <= 256 ? 2 : 1)
    norm_mix_bwd_strips(mix_bwd_args p, size_t strip) {
    begin_kernel();
    SHARED_BYTES(bytes);
    __shared__ notes<BLOCK> note;
    walk<T, M, BLOCK> down(p, note, bytes, blockIdx.x * strip, strip);
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++) down.ask_for(i, i);
    note.take(p, down.end, down.n);
    down.begin();
    for (int i = 0, slot = 0; i < down.n; i++, slot = slot + 1 < DEPTH ? slot + 1 : 0) {
        down.ask_for(i + DEPTH - 1, slot ? slot - 1 : DEPTH - 1); // where the last row was
        wait_for_asked<DEPTH - 1>();
        down.step(i, slot);
    }
    if (!down.in) return;
    float *part = p.part + blockIdx.x * (M + 2) * p.C + down.c;
#pragma unroll
    for (int k = 0; k < M; k++) store<VEC>(part + k * p.C, down.dmix[k]);
    store<VEC>(part + M * p.C, down.dw);
    store<VEC>(part + (M + 1) * p.C, down.db);
}

// ---- the door ----------------------------------------------------------------------------------

template <class T, int M> static bool start(struct queue *s, const mix_bwd_args &p) {
    const unsigned threads = blocks(p.C, 32 * VEC) * 32;
    const size_t shared = DEPTH * ring<T, M>::stage(threads);
    if (threads > 640 || shared + 8192 > most_shared()) return false;
    const unsigned strips = (unsigned)k_parts(p.R);
    if (threads <= 256)
        launch_with(s, norm_mix_bwd_strips<T, M, 256>, strips, threads, shared, p, part_rows(p.R));
    else
        launch_with(s, norm_mix_bwd_strips<T, M, 640>, strips, threads, shared, p, part_rows(p.R));
    return true;
}

bool k_norm_mix_bwd(struct queue *s, const struct mix_bwd_args *p) {
    if ((p->n != 1 && p->n != MIXES) ||
        !in_fours(p->C, p->dx, p->rounded, p->dm, p->x, p->w, p->b, p->mix, p->in, p->add))
        return false;
    if (!p->R) return true;
    if (p->n == 1) return p->narrow ? start<uint16_t, 1>(s, *p) : start<float, 1>(s, *p);
    return p->narrow ? start<uint16_t, MIXES>(s, *p) : start<float, MIXES>(s, *p);
}
