// key_prep and readout: memory's affair. A warp takes one head of one row. What is summed over rows
// stays in registers while a warp walks through the rows of its chunk.
#include "heads.cuh"

#include "kernels.h"

enum { WARPS = 4, THREADS = WARPS * 32 };

// LAUNCH by the width of a head and by storage; <VEC, NL, T> is what the kernel has first.
#define BY_WIDTH(kernel, T, N, twos, grid, s, ...)                                                 \
    do {                                                                                           \
        if ((N) == 64 && (twos))                                                                   \
            LAUNCH((kernel<2, 1, T>), grid, THREADS, s, __VA_ARGS__);                              \
        else if ((N) <= 64)                                                                        \
            LAUNCH((kernel<1, 2, T>), grid, THREADS, s, __VA_ARGS__);                              \
        else                                                                                       \
            LAUNCH((kernel<1, 8, T>), grid, THREADS, s, __VA_ARGS__);                              \
    } while (0)
#define BY_HEAD(kernel, narrow, N, twos, grid, s, ...)                                             \
    do {                                                                                           \
        if (narrow)                                                                                \
            BY_WIDTH(kernel, uint16_t, N, twos, grid, s, __VA_ARGS__);                             \
        else                                                                                       \
            BY_WIDTH(kernel, float, N, twos, grid, s, __VA_ARGS__);                                \
    } while (0)

// Of a head, known where two numbers a lane are all of it.
template <int NL> __device__ static int width(size_t C, int H) {
    return NL == 1 ? 64 : (int)(C / H);
}

// ---- key_prep ----------------------------------------------------------------------------------

// Where a head is two numbers a lane, a warp takes it of so many rows, all asked for at once: with
// one it would read as much of vecs as of anything else.
enum { ROWS_AT_ONCE = 4 };
static unsigned row_blocks(size_t R, size_t C, int H, bool twos) {
    const size_t each = twos && C / H == 64 ? ROWS_AT_ONCE : 1;
    return blocks((R + each - 1) / each * H, WARPS);
}

template <int VEC, int NL, class T> static __global__ void key_prep(key_args p) {
    begin_kernel();
    constexpr int ROWS = NL == 1 ? ROWS_AT_ONCE : 1;
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5), C = p.C;
    const size_t row = task / p.H * ROWS;
    if (row >= p.R) return;
    const int N = width<NL>(p.C, p.H);
    const size_t h = task % p.H * N, plane = p.R * C;
    const T *rkv = (const T *)p.rkv + h, *lora = (const T *)p.lora + h;
    head<VEC, NL> k[ROWS], v[ROWS], w[ROWS], a[ROWS], mixed[ROWS] = {}, first[ROWS] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const size_t at = (row + i) * C;
        if (row + i >= p.R) break;
        k[i].take(rkv + RKV_K * plane + at, N);
        v[i].take(rkv + RKV_V * plane + at, N);
        w[i].take(lora + LORA_W * plane + at, N);
        a[i].take(lora + LORA_A * plane + at, N);
        if (!p.v_first) continue;
        mixed[i].take(lora + LORA_V * plane + at, N);
        first[i].take((const T *)p.v_first + at + h, N);
    }
    TAKE(w0, p.vecs + KEY_W0 * C + h);
    TAKE(a0, p.vecs + KEY_A0 * C + h);
    TAKE(v0, p.vecs + KEY_V0 * C + h);
    TAKE(k_k, p.vecs + KEY_KK * C + h);
    TAKE(k_a, p.vecs + KEY_KA * C + h);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row + i >= p.R) break;
        prepare<T>(k[i], v[i], w[i], a[i], mixed[i], first[i], p.v_first, w0, a0, v0, k_k, k_a);
        T *u = (T *)p.u + (row + i) * C + h;
        w[i].give(u + U_W * plane, N);
        k[i].give(u + U_K * plane, N);
        v[i].give(u + U_V * plane, N);
        a[i].give(u + U_A * plane, N);
        mixed[i].give(u + U_B * plane, N);
    }
}

void k_key_prep(struct queue *s, const struct key_args *p) {
    const bool twos = in_fours(4, p->u, p->rkv, p->lora, p->v_first, p->vecs);
    const unsigned grid = row_blocks(p->R, p->C, p->H, twos);
    if (p->R) BY_HEAD(key_prep, p->narrow, p->C / p->H, twos, grid, s, *p);
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

// Under the floor of 1e-12 the norm is a constant.
template <int VEC, int NL, class T>
static __global__ void key_prep_bwd(key_bwd_args p, size_t chunk) {
    begin_kernel();
    const int warp = threadIdx.x >> 5, N = width<NL>(p.C, p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * chunk, end = first + chunk < p.R ? first + chunk : p.R;
    TAKE(a0, p.vecs + KEY_A0 * C + h);
    TAKE(v0, p.vecs + KEY_V0 * C + h);
    TAKE(k_k, p.vecs + KEY_KK * C + h);
    TAKE(k_a, p.vecs + KEY_KA * C + h);
    head<VEC, NL> sum[KEY_COUNT] = {};
    for (size_t r = first + warp; r < end; r += WARPS) {
        const size_t at = r * C + h;
        const T *rkv = (const T *)p.rkv + at, *lora = (const T *)p.lora + at;
        const T *du = (const T *)p.du + at;
        TAKE(k, rkv + RKV_K * plane);
        TAKE(a, lora + LORA_A * plane);
        TAKE(dw, du + U_W * plane);
        TAKE(dk, du + U_K * plane);
        TAKE(dv, du + U_V * plane);
        TAKE(da, du + U_A * plane);
        TAKE(db, du + U_B * plane);
        head<VEC, NL> v = {}, gate = {}, v_first = {}, dv_first = {};
        if (p.v_first) {
            v.take(rkv + RKV_V * plane, N);
            gate.take(lora + LORA_V * plane, N);
            v_first.take((const T *)p.v_first + at, N);
            dv_first.take((const T *)p.dv_first + at, N);
        }
        const float norm = key_norm(k, k_k), inverse = 1.0f / fmaxf(norm, 1e-12f);
        float along = 0;
        EACH(i) {
            a[i] = sigmoid_as<T>(a0[i] + a[i]);
            da[i] = db[i] * a[i] - da[i]; // of κ
            along += k[i] * k_k[i] * inverse * da[i];
        }
        along = warp_sum(along);
        EACH(i) {
            const float kappa = k[i] * k_k[i] * inverse;
            const float dtilde = (da[i] - (norm > 1e-12f ? kappa * along : 0)) * inverse;
            const float dlogit = (db[i] * kappa + dk[i] * k[i] * k_a[i]) * a[i] * (1 - a[i]);
            sum[KEY_W0][i] += dw[i];
            sum[KEY_A0][i] += dlogit;
            sum[KEY_KK][i] += dtilde * k[i];
            sum[KEY_KA][i] += dk[i] * k[i] * (a[i] - 1);
            dk[i] = dtilde * k_k[i] + dk[i] * (1 + (a[i] - 1) * k_a[i]);
            da[i] = dlogit;
            db[i] = 0; // of the value's gate
            if (!p.v_first) continue;
            const float g = sigmoid_as<T>(v0[i] + gate[i]);
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
        if (p.v_first) dv_first.give((T *)p.dv_first + at, N);
    }
    store_sums<KEY_COUNT, VEC, NL>(p.part + blockIdx.y * KEY_COUNT * C, sum, h, C, N);
}

void k_key_prep_bwd(struct queue *s, const struct key_bwd_args *p) {
    if (!p->R) return;
    const dim3 grid(p->H, (unsigned)k_parts(p->R));
    const bool twos =
        in_fours(4, p->drkv, p->dlora, p->dv_first, p->du, p->rkv, p->lora, p->v_first, p->vecs);
    BY_HEAD(key_prep_bwd, p->narrow, p->C / p->H, twos, grid, s, *p, part_rows(p->R));
}

// ---- readout -----------------------------------------------------------------------------------

template <int VEC, int NL, class T> static __global__ void readout(read_args p) {
    begin_kernel();
    constexpr int ROWS = NL == 1 ? ROWS_AT_ONCE : 1;
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5), C = p.C;
    const size_t row = task / p.H * ROWS;
    if (row >= p.R) return;
    const int N = width<NL>(p.C, p.H);
    const size_t h = task % p.H * N, plane = p.R * C;
    head<VEC, NL> y[ROWS], r[ROWS], k[ROWS], v[ROWS], g[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row + i >= p.R) break;
        const size_t at = (row + i) * C + h;
        y[i].take((const T *)p.y + at, N);
        r[i].take((const T *)p.r + at, N);
        k[i].take((const T *)p.u + U_K * plane + at, N);
        v[i].take((const T *)p.u + U_V * plane + at, N);
        g[i].take((const T *)p.g + at, N);
    }
    TAKE(weight, p.vecs + READ_WEIGHT * C + h);
    TAKE(bias, p.vecs + READ_BIAS * C + h);
    TAKE(r_k, p.vecs + READ_RK * C + h);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row + i >= p.R) break;
        read_head(y[i], r[i], k[i], v[i], g[i], weight, bias, r_k, N);
        y[i].give((T *)p.o + (row + i) * C + h, N);
    }
}

void k_readout(struct queue *s, const struct read_args *p) {
    const bool twos = in_fours(4, p->o, p->y, p->r, p->u, p->g, p->vecs);
    const unsigned grid = row_blocks(p->R, p->C, p->H, twos);
    if (p->R) BY_HEAD(readout, p->narrow, p->C / p->H, twos, grid, s, *p);
}

template <int VEC, int NL, class T>
static __global__ void readout_bwd(read_bwd_args p, size_t chunk) {
    begin_kernel();
    const int warp = threadIdx.x >> 5, N = width<NL>(p.C, p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * chunk, end = first + chunk < p.R ? first + chunk : p.R;
    TAKE(weight, p.vecs + READ_WEIGHT * C + h);
    TAKE(bias, p.vecs + READ_BIAS * C + h);
    TAKE(r_k, p.vecs + READ_RK * C + h);
    head<VEC, NL> sum[READ_COUNT] = {};
    for (size_t t = first + warp; t < end; t += WARPS) {
        const size_t at = t * C + h;
        const T *u = (const T *)p.u + at;
        TAKE(y, (const T *)p.y + at);
        TAKE(r, (const T *)p.r + at);
        TAKE(k, u + U_K * plane);
        TAKE(v, u + U_V * plane);
        TAKE(d, (const T *)p.d_o + at);
        TAKE(g, (const T *)p.g + at);
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
        T *du = (T *)p.du + at;
        y.give((T *)p.dy + at, N);
        k.give((T *)p.dr + at, N);
        r.give(du + U_K * plane, N);
        v.give(du + U_V * plane, N);
        g.give((T *)p.dg + at, N);
    }
    store_sums<READ_COUNT, VEC, NL>(p.part + blockIdx.y * READ_COUNT * C, sum, h, C, N);
}

void k_readout_bwd(struct queue *s, const struct read_bwd_args *p) {
    if (!p->R) return;
    const dim3 grid(p->H, (unsigned)k_parts(p->R));
    const bool twos =
        in_fours(4, p->dy, p->dr, p->du, p->dg, p->d_o, p->y, p->r, p->u, p->g, p->vecs);
    BY_HEAD(readout_bwd, p->narrow, p->C / p->H, twos, grid, s, *p, part_rows(p->R));
}
