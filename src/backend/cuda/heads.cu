// key_prep and readout: memory's affair. A warp takes one head of one row. What is summed over rows
// stays in registers while a warp walks through the rows of its chunk.
#include "heads.cuh"

#include "kernels.h"

enum { WARPS = 4, THREADS = WARPS * 32, CHUNK_ROWS = 32 }; // CHUNK_ROWS: k_parts cuts so

// LAUNCH by the width of a head; <VEC, NL> is what the kernel has first.
#define BY_HEAD(kernel, N, twos, grid, s, ...)                                                     \
    do {                                                                                           \
        if ((N) == 64 && (twos))                                                                   \
            LAUNCH((kernel<2, 1>), grid, THREADS, s, __VA_ARGS__);                                 \
        else if ((N) <= 32)                                                                        \
            LAUNCH((kernel<1, 1>), grid, THREADS, s, __VA_ARGS__);                                 \
        else if ((N) <= 64)                                                                        \
            LAUNCH((kernel<1, 2>), grid, THREADS, s, __VA_ARGS__);                                 \
        else                                                                                       \
            LAUNCH((kernel<1, 8>), grid, THREADS, s, __VA_ARGS__);                                 \
    } while (0)

// ---- key_prep ----------------------------------------------------------------------------------

template <int VEC, int NL>
static __global__ void key_prep(float *u, const float *rkv, const float *lora, const float *v_first,
                                const float *vecs, size_t R, size_t C, int H) {
    begin_kernel();
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5);
    if (task >= R * H) return;
    const int N = (int)(C / H);
    const size_t r = task / H, h = task % H * N, plane = R * C, at = r * C + h;
    TAKE(k, rkv + RKV_K * plane + at);
    TAKE(v, rkv + RKV_V * plane + at);
    TAKE(w, lora + LORA_W * plane + at);
    TAKE(a, lora + LORA_A * plane + at);
    head<VEC, NL> mixed = {}, first = {};
    if (v_first) {
        mixed.take(lora + LORA_V * plane + at, N);
        first.take(v_first + at, N);
    }
    TAKE(w0, vecs + KEY_W0 * C + h);
    TAKE(a0, vecs + KEY_A0 * C + h);
    TAKE(v0, vecs + KEY_V0 * C + h);
    TAKE(k_k, vecs + KEY_KK * C + h);
    TAKE(k_a, vecs + KEY_KA * C + h);
    prepare(k, v, w, a, mixed, v_first ? &first : nullptr, w0, a0, v0, k_k, k_a);
    u += at;
    w.give(u + U_W * plane, N);
    k.give(u + U_K * plane, N);
    v.give(u + U_V * plane, N);
    a.give(u + U_A * plane, N);
    mixed.give(u + U_B * plane, N);
}

void k_key_prep(struct queue *s, float *u, const float *rkv, const float *lora,
                const float *v_first, const float *vecs, size_t R, size_t C, int H) {
    const bool twos = in_fours(4, u, rkv, lora, v_first, vecs);
    if (R)
        BY_HEAD(key_prep, C / H, twos, blocks(R * H, WARPS), s, u, rkv, lora, v_first, vecs, R, C,
                H);
}

// The warps' sums of K vectors, in order, to this chunk's part (K,C) at head h.
template <int K, int VEC, int NL>
__device__ static void store_sums(float *part, const head<VEC, NL> (&sum)[K], size_t h, size_t C,
                                  int N) {
    __shared__ float shared[WARPS][K][NL * VEC * 32];
    const int warp = threadIdx.x >> 5;
#pragma unroll
    for (int k = 0; k < K; k++) EACH(i)
    shared[warp][k][head<VEC, NL>::column(i / VEC) + i % VEC] = sum[k][i];
    __syncthreads();
    for (int e = threadIdx.x; e < K * N; e += THREADS) {
        const int k = e / N, j = e % N;
        float total = 0;
        for (int w = 0; w < WARPS; w++) total += shared[w][k][j];
        part[k * C + h + j] = total;
    }
}

struct key_bwd {
    void *drkv, *dlora;
    float *dv_first, *part;
    const float *du, *rkv, *lora, *v_first, *vecs;
    size_t R, C;
    int H;
};

// Under the floor of 1e-12 the norm is a constant.
template <int VEC, int NL, class T> __device__ static void key_prep_bwd_as(const key_bwd &p) {
    const int warp = threadIdx.x >> 5, N = (int)(p.C / p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * (size_t)CHUNK_ROWS;
    const size_t end = first + CHUNK_ROWS < p.R ? first + CHUNK_ROWS : p.R;
    TAKE(a0, p.vecs + KEY_A0 * C + h);
    TAKE(v0, p.vecs + KEY_V0 * C + h);
    TAKE(k_k, p.vecs + KEY_KK * C + h);
    TAKE(k_a, p.vecs + KEY_KA * C + h);
    head<VEC, NL> sum[KEY_COUNT] = {};
    for (size_t r = first + warp; r < end; r += WARPS) {
        const size_t at = r * C + h;
        TAKE(k, p.rkv + RKV_K * plane + at);
        TAKE(a, p.lora + LORA_A * plane + at);
        TAKE(dw, p.du + U_W * plane + at);
        TAKE(dk, p.du + U_K * plane + at);
        TAKE(dv, p.du + U_V * plane + at);
        TAKE(da, p.du + U_A * plane + at);
        TAKE(db, p.du + U_B * plane + at);
        head<VEC, NL> v = {}, gate = {}, v_first = {}, dv_first = {};
        if (p.v_first) {
            v.take(p.rkv + RKV_V * plane + at, N);
            gate.take(p.lora + LORA_V * plane + at, N);
            v_first.take(p.v_first + at, N);
            dv_first.take(p.dv_first + at, N);
        }
        const float norm = key_norm(k, k_k), s = fmaxf(norm, 1e-12f);
        float along = 0;
        EACH(i) {
            a[i] = sigmoid(a0[i] + a[i]);
            da[i] = db[i] * a[i] - da[i]; // of κ
            along += k[i] * k_k[i] / s * da[i];
        }
        along = warp_sum(along);
        EACH(i) {
            const float kappa = k[i] * k_k[i] / s;
            const float dtilde = (da[i] - (norm > 1e-12f ? kappa * along : 0)) / s;
            const float dlogit = (db[i] * kappa + dk[i] * k[i] * k_a[i]) * a[i] * (1 - a[i]);
            sum[KEY_W0][i] += dw[i];
            sum[KEY_A0][i] += dlogit;
            sum[KEY_KK][i] += dtilde * k[i];
            sum[KEY_KA][i] += dk[i] * k[i] * (a[i] - 1);
            dk[i] = dtilde * k_k[i] + dk[i] * (1 + (a[i] - 1) * k_a[i]);
            da[i] = dlogit;
            db[i] = 0; // of the value's gate
            if (!p.v_first) continue;
            const float g = sigmoid(v0[i] + gate[i]);
            db[i] = dv[i] * (v_first[i] - v[i]) * g * (1 - g);
            dv_first[i] += dv[i] * g;
            dv[i] *= 1 - g;
            sum[KEY_V0][i] += db[i];
        }
        T *drkv = (T *)p.drkv + at, *dlora = (T *)p.dlora + at;
        dk.give(drkv + RKV_K * plane, N);
        dv.give(drkv + RKV_V * plane, N);
        dw.give(dlora + LORA_W * plane, N);
        da.give(dlora + LORA_A * plane, N);
        db.give(dlora + LORA_V * plane, N);
        if (p.v_first) dv_first.give(p.dv_first + at, N);
    }
    store_sums<KEY_COUNT, VEC, NL>(p.part + blockIdx.y * KEY_COUNT * C, sum, h, C, N);
}

template <int VEC, int NL> static __global__ void key_prep_bwd(key_bwd p) {
    begin_kernel();
    key_prep_bwd_as<VEC, NL, float>(p);
}
template <int VEC, int NL> static __global__ void key_prep_bwd_narrow(key_bwd p) {
    begin_kernel();
    key_prep_bwd_as<VEC, NL, uint16_t>(p);
}

void k_key_prep_bwd(struct queue *s, void *drkv, void *dlora, bool narrow, float *dv_first,
                    float *dvecs, const float *du, const float *rkv, const float *lora,
                    const float *v_first, const float *vecs, float *part, size_t R, size_t C,
                    int H) {
    if (!R) return;
    const key_bwd p = {drkv, dlora, dv_first, part, du, rkv, lora, v_first, vecs, R, C, H};
    const dim3 grid(H, (unsigned)k_parts(R));
    const bool twos = in_fours(4, drkv, dlora, dv_first, du, rkv, lora, v_first, vecs);
    if (narrow)
        BY_HEAD(key_prep_bwd_narrow, C / H, twos, grid, s, p);
    else
        BY_HEAD(key_prep_bwd, C / H, twos, grid, s, p);
    k_add_parts(s, dvecs, KEY_COUNT * C, nullptr, part, k_parts(R), KEY_COUNT * C);
}

// ---- readout -----------------------------------------------------------------------------------

struct read {
    void *o;
    const float *y, *r, *u, *g, *vecs;
    size_t R, C;
    int H;
    bool narrow;
};

template <int VEC, int NL> static __global__ void readout(read p) {
    begin_kernel();
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5), C = p.C;
    if (task >= p.R * p.H) return;
    const int N = (int)(C / p.H);
    const size_t h = task % p.H * N, plane = p.R * C, at = task / p.H * C + h;
    TAKE(y, p.y + at);
    TAKE(r, p.r + at);
    TAKE(k, p.u + U_K * plane + at);
    TAKE(v, p.u + U_V * plane + at);
    TAKE(g, p.g + at);
    TAKE(weight, p.vecs + READ_WEIGHT * C + h);
    TAKE(bias, p.vecs + READ_BIAS * C + h);
    TAKE(r_k, p.vecs + READ_RK * C + h);
    read_head(y, r, k, v, g, weight, bias, r_k, N);
    if (p.narrow)
        y.give((uint16_t *)p.o + at, N);
    else
        y.give((float *)p.o + at, N);
}

void k_readout(struct queue *s, void *o, bool narrow, const float *y, const float *r,
               const float *u, const float *g, const float *vecs, size_t R, size_t C, int H) {
    const read p = {o, y, r, u, g, vecs, R, C, H, narrow};
    if (R) BY_HEAD(readout, C / H, in_fours(4, o, y, r, u, g, vecs), blocks(R * H, WARPS), s, p);
}

struct read_bwd {
    float *dy, *dr, *du, *part;
    void *dg;
    const void *d_o;
    const float *y, *r, *u, *g, *vecs;
    size_t R, C;
    int H;
    bool narrow;
};

template <int VEC, int NL> static __global__ void readout_bwd(read_bwd p) {
    begin_kernel();
    const int warp = threadIdx.x >> 5, N = (int)(p.C / p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * (size_t)CHUNK_ROWS;
    const size_t end = first + CHUNK_ROWS < p.R ? first + CHUNK_ROWS : p.R;
    TAKE(weight, p.vecs + READ_WEIGHT * C + h);
    TAKE(bias, p.vecs + READ_BIAS * C + h);
    TAKE(r_k, p.vecs + READ_RK * C + h);
    head<VEC, NL> sum[READ_COUNT] = {};
    for (size_t t = first + warp; t < end; t += WARPS) {
        const size_t at = t * C + h;
        TAKE(y, p.y + at);
        TAKE(r, p.r + at);
        TAKE(k, p.u + U_K * plane + at);
        TAKE(v, p.u + U_V * plane + at);
        head<VEC, NL> d;
        if (p.narrow)
            d.take((const uint16_t *)p.d_o + at, N);
        else
            d.take((const float *)p.d_o + at, N);
        TAKE(g, p.g + at);
        const float2 m = head_moments(y, N);
        const float beta = bonus(r, k, r_k);
        float dbeta = 0, sum_e = 0, sum_ex = 0;
        EACH(i) {
            const float gated = d[i] * g[i], xhat = (y[i] - m.x) * m.y;
            g[i] = d[i] * (xhat * weight[i] + bias[i] + beta * v[i]);
            d[i] = gated * weight[i];
            y[i] = xhat;
            sum[READ_WEIGHT][i] += gated * xhat;
            sum[READ_BIAS][i] += gated;
            dbeta += gated * v[i];
            sum_e += d[i];
            sum_ex += d[i] * xhat;
            v[i] = beta * gated;
        }
        dbeta = warp_sum(dbeta);
        sum_e = warp_sum(sum_e) / (float)N;
        sum_ex = warp_sum(sum_ex) / (float)N;
        EACH(i) {
            sum[READ_RK][i] += dbeta * r[i] * k[i];
            y[i] = m.y * (d[i] - sum_e - y[i] * sum_ex);
            k[i] = dbeta * k[i] * r_k[i];
            r[i] = dbeta * r[i] * r_k[i];
        }
        y.give(p.dy + at, N);
        k.give(p.dr + at, N);
        r.give(p.du + U_K * plane + at, N);
        v.give(p.du + U_V * plane + at, N);
        if (p.narrow)
            g.give((uint16_t *)p.dg + at, N);
        else
            g.give((float *)p.dg + at, N);
    }
    store_sums<READ_COUNT, VEC, NL>(p.part + blockIdx.y * READ_COUNT * C, sum, h, C, N);
}

void k_readout_bwd(struct queue *s, float *dy, float *dr, float *du, void *dg, bool narrow,
                   float *dvecs, const void *d_o, const float *y, const float *r, const float *u,
                   const float *g, const float *vecs, float *part, size_t R, size_t C, int H) {
    if (!R) return;
    const read_bwd p = {dy, dr, du, part, dg, d_o, y, r, u, g, vecs, R, C, H, narrow};
    const dim3 grid(H, (unsigned)k_parts(R));
    BY_HEAD(readout_bwd, C / H, in_fours(4, dy, dr, du, dg, d_o, y, r, u, g, vecs), grid, s, p);
    k_add_parts(s, dvecs, READ_COUNT * C, nullptr, part, k_parts(R), READ_COUNT * C);
}
