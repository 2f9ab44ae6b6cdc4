// key_prep and readout: a warp takes one head of one row. What is summed over rows stays in
// registers while a warp walks through the rows of its chunk.
#include "device.cuh"

#include "kernels.h"

enum { WARPS = 4, THREADS = WARPS * 32, CHUNK_ROWS = 64 }; // CHUNK_ROWS: k_parts cuts so

enum { RKV_R, RKV_K, RKV_V };
enum { LORA_W, LORA_A, LORA_V, LORA_G };
enum { KEY_W0, KEY_A0, KEY_V0, KEY_KK, KEY_KA, KEY_COUNT };
enum { READ_WEIGHT, READ_BIAS, READ_RK, READ_COUNT };

void k_add_parts(struct queue *s, float *out, const float *part, size_t parts, size_t stride,
                 size_t first, size_t n); // rows.cu

// Columns of a lane: j = lane, lane + 32, …
#define COLUMNS_OF(j, N) for (int j = lane; j < (N); j += 32)

__device__ static float key_norm(const float *k, const float *k_k, int lane, int N) {
    float sum = 0;
    COLUMNS_OF(j, N) sum += (k[j] * k_k[j]) * (k[j] * k_k[j]);
    return sqrtf(warp_sum(sum));
}

// ---- key_prep ----------------------------------------------------------------------------------

static __global__ void key_prep(float *u, const float *rkv, const float *lora, const float *v_first,
                                const float *vecs, size_t R, size_t C, int H) {
    begin_kernel();
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5);
    if (task >= R * H) return;
    const int lane = threadIdx.x & 31, N = (int)(C / H);
    const size_t r = task / H, h = task % H * N, plane = R * C, at = r * C + h;
    const float *k = rkv + RKV_K * plane + at, *k_k = vecs + KEY_KK * C + h;
    const float norm = fmaxf(key_norm(k, k_k, lane, N), 1e-12f);
    COLUMNS_OF(j, N) {
        const size_t c = h + j, i = at + j;
        const float a = sigmoid(vecs[KEY_A0 * C + c] + lora[LORA_A * plane + i]);
        const float kappa = k[j] * k_k[j] / norm;
        float v = rkv[RKV_V * plane + i];
        if (v_first)
            v += (v_first[i] - v) * sigmoid(vecs[KEY_V0 * C + c] + lora[LORA_V * plane + i]);
        u[U_W * plane + i] = vecs[KEY_W0 * C + c] + lora[LORA_W * plane + i];
        u[U_K * plane + i] = k[j] * (1 + (a - 1) * vecs[KEY_KA * C + c]);
        u[U_V * plane + i] = v;
        u[U_A * plane + i] = -kappa;
        u[U_B * plane + i] = kappa * a;
    }
}

void k_key_prep(struct queue *s, float *u, const float *rkv, const float *lora,
                const float *v_first, const float *vecs, size_t R, size_t C, int H) {
    if (R) LAUNCH(key_prep, blocks(R * H, WARPS), THREADS, s, u, rkv, lora, v_first, vecs, R, C, H);
}

// The warps' sums of K vectors, in order, to this chunk's part (K,C) at head h.
template <int K, int NL>
__device__ static void store_sums(float *part, const float (&sum)[K][NL], size_t h, size_t C,
                                  int N) {
    __shared__ float shared[WARPS][K][NL * 32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int i = 0; i < NL; i++) shared[warp][k][lane + 32 * i] = sum[k][i];
    __syncthreads();
    for (int e = threadIdx.x; e < K * N; e += THREADS) {
        const int k = e / N, j = e % N;
        float total = 0;
        for (int w = 0; w < WARPS; w++) total += shared[w][k][j];
        part[k * C + h + j] = total;
    }
}

struct key_bwd {
    float *drkv, *dlora, *dv_first, *part;
    const float *du, *rkv, *lora, *v_first, *vecs;
    size_t R, C;
    int H;
};

// Under the floor of 1e-12 the norm is a constant.
template <int NL> static __global__ void key_prep_bwd(key_bwd p) {
    begin_kernel();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, N = (int)(p.C / p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * (size_t)CHUNK_ROWS;
    const size_t end = first + CHUNK_ROWS < p.R ? first + CHUNK_ROWS : p.R;
    const float *k_k = p.vecs + KEY_KK * C + h;
    float sum[KEY_COUNT][NL] = {};
    for (size_t r = first + warp; r < end; r += WARPS) {
        const size_t at = r * C + h;
        const float *k = p.rkv + RKV_K * plane + at;
        const float norm = key_norm(k, k_k, lane, N), s = fmaxf(norm, 1e-12f);
        float along = 0, gate_a[NL] = {}, dkappa[NL] = {};
#pragma unroll
        for (int n = 0; n < NL; n++) {
            const int j = lane + 32 * n;
            if (j >= N) continue;
            const size_t i = at + j;
            gate_a[n] = sigmoid(p.vecs[KEY_A0 * C + h + j] + p.lora[LORA_A * plane + i]);
            dkappa[n] = p.du[U_B * plane + i] * gate_a[n] - p.du[U_A * plane + i];
            along += k[j] * k_k[j] / s * dkappa[n];
        }
        along = warp_sum(along);
#pragma unroll
        for (int n = 0; n < NL; n++) {
            const int j = lane + 32 * n;
            if (j >= N) continue;
            const size_t i = at + j, c = h + j;
            const float a = gate_a[n], kappa = k[j] * k_k[j] / s, k_a = p.vecs[KEY_KA * C + c];
            const float dk = p.du[U_K * plane + i], dv = p.du[U_V * plane + i];
            const float dw = p.du[U_W * plane + i];
            const float dtilde = (dkappa[n] - (norm > 1e-12f ? kappa * along : 0)) / s;
            const float dlogit_a = (p.du[U_B * plane + i] * kappa + dk * k[j] * k_a) * a * (1 - a);
            p.drkv[RKV_K * plane + i] = dtilde * k_k[j] + dk * (1 + (a - 1) * k_a);
            p.dlora[LORA_W * plane + i] = dw;
            p.dlora[LORA_A * plane + i] = dlogit_a;
            sum[KEY_W0][n] += dw;
            sum[KEY_A0][n] += dlogit_a;
            sum[KEY_KK][n] += dtilde * k[j];
            sum[KEY_KA][n] += dk * k[j] * (a - 1);
            float gate = 0, dlogit_v = 0;
            if (p.v_first) {
                const float v = p.rkv[RKV_V * plane + i];
                gate = sigmoid(p.vecs[KEY_V0 * C + c] + p.lora[LORA_V * plane + i]);
                dlogit_v = dv * (p.v_first[i] - v) * gate * (1 - gate);
                p.dv_first[i] += dv * gate;
                sum[KEY_V0][n] += dlogit_v;
            }
            p.drkv[RKV_V * plane + i] = dv * (1 - gate);
            p.dlora[LORA_V * plane + i] = dlogit_v;
        }
    }
    store_sums<KEY_COUNT, NL>(p.part + blockIdx.y * KEY_COUNT * C, sum, h, C, N);
}

// How many columns a lane holds is fixed when compiling: 2 is a head of 64.
#define BY_HEAD(kernel, N, grid, s, args)                                                          \
    do {                                                                                           \
        if ((N) <= 32)                                                                             \
            LAUNCH(kernel<1>, grid, THREADS, s, args);                                             \
        else if ((N) <= 64)                                                                        \
            LAUNCH(kernel<2>, grid, THREADS, s, args);                                             \
        else                                                                                       \
            LAUNCH(kernel<8>, grid, THREADS, s, args);                                             \
    } while (0)

void k_key_prep_bwd(struct queue *s, float *drkv, float *dlora, float *dv_first, float *dvecs,
                    const float *du, const float *rkv, const float *lora, const float *v_first,
                    const float *vecs, float *part, size_t R, size_t C, int H) {
    if (!R) return;
    const key_bwd p = {drkv, dlora, dv_first, part, du, rkv, lora, v_first, vecs, R, C, H};
    const dim3 grid(H, (unsigned)k_parts(R));
    BY_HEAD(key_prep_bwd, C / H, grid, s, p);
    k_add_parts(s, dvecs, part, k_parts(R), KEY_COUNT * C, 0, KEY_COUNT * C);
}

// ---- readout -----------------------------------------------------------------------------------

constexpr float read_eps = 64e-5f;

// Mean and 1/√(var+ε) of a head, counted from its first number on.
__device__ static float2 head_moments(const float *y, int lane, int N) {
    const float first = y[0];
    float sum = 0, square = 0;
    COLUMNS_OF(j, N) sum += y[j] - first;
    const float mean = first + warp_sum(sum) / (float)N;
    COLUMNS_OF(j, N) square += (y[j] - mean) * (y[j] - mean);
    return make_float2(mean, 1.0f / sqrtf(warp_sum(square) / (float)N + read_eps));
}

__device__ static float bonus(const float *r, const float *k, const float *r_k, int lane, int N) {
    float sum = 0;
    COLUMNS_OF(j, N) sum += r[j] * k[j] * r_k[j];
    return warp_sum(sum);
}

static __global__ void readout(float *o, const float *y, const float *r, const float *u,
                               const float *g, const float *vecs, size_t R, size_t C, int H) {
    begin_kernel();
    const size_t task = blockIdx.x * (size_t)WARPS + (threadIdx.x >> 5);
    if (task >= R * H) return;
    const int lane = threadIdx.x & 31, N = (int)(C / H);
    const size_t h = task % H * N, plane = R * C, at = task / H * C + h;
    const float2 m = head_moments(y + at, lane, N);
    const float beta = bonus(r + at, u + U_K * plane + at, vecs + READ_RK * C + h, lane, N);
    COLUMNS_OF(j, N) {
        const size_t c = h + j, i = at + j;
        const float normed =
            (y[i] - m.x) * m.y * vecs[READ_WEIGHT * C + c] + vecs[READ_BIAS * C + c];
        o[i] = (normed + beta * u[U_V * plane + i]) * g[i];
    }
}

void k_readout(struct queue *s, float *o, const float *y, const float *r, const float *u,
               const float *g, const float *vecs, size_t R, size_t C, int H) {
    if (R) LAUNCH(readout, blocks(R * H, WARPS), THREADS, s, o, y, r, u, g, vecs, R, C, H);
}

struct read_bwd {
    float *dy, *dr, *du, *dg, *part;
    const float *d_o, *y, *r, *u, *g, *vecs;
    size_t R, C;
    int H;
};

template <int NL> static __global__ void readout_bwd(read_bwd p) {
    begin_kernel();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, N = (int)(p.C / p.H);
    const size_t h = blockIdx.x * (size_t)N, C = p.C, plane = p.R * C;
    const size_t first = blockIdx.y * (size_t)CHUNK_ROWS;
    const size_t end = first + CHUNK_ROWS < p.R ? first + CHUNK_ROWS : p.R;
    const float *weight = p.vecs + READ_WEIGHT * C + h, *bias = p.vecs + READ_BIAS * C + h,
                *r_k = p.vecs + READ_RK * C + h;
    float sum[READ_COUNT][NL] = {};
    for (size_t t = first + warp; t < end; t += WARPS) {
        const size_t at = t * C + h;
        const float *k = p.u + U_K * plane + at, *v = p.u + U_V * plane + at;
        const float2 m = head_moments(p.y + at, lane, N);
        const float beta = bonus(p.r + at, k, r_k, lane, N);
        float dbeta = 0, sum_e = 0, sum_ex = 0, e[NL] = {}, xhat[NL] = {};
#pragma unroll
        for (int n = 0; n < NL; n++) {
            const int j = lane + 32 * n;
            if (j >= N) continue;
            const size_t i = at + j;
            const float gated = p.d_o[i] * p.g[i];
            xhat[n] = (p.y[i] - m.x) * m.y;
            e[n] = gated * weight[j];
            p.dg[i] = p.d_o[i] * (xhat[n] * weight[j] + bias[j] + beta * v[j]);
            p.du[U_V * plane + i] = beta * gated;
            sum[READ_WEIGHT][n] += gated * xhat[n];
            sum[READ_BIAS][n] += gated;
            dbeta += gated * v[j];
            sum_e += e[n];
            sum_ex += e[n] * xhat[n];
        }
        dbeta = warp_sum(dbeta);
        sum_e = warp_sum(sum_e) / (float)N;
        sum_ex = warp_sum(sum_ex) / (float)N;
#pragma unroll
        for (int n = 0; n < NL; n++) {
            const int j = lane + 32 * n;
            if (j >= N) continue;
            const size_t i = at + j;
            p.dy[i] = m.y * (e[n] - sum_e - xhat[n] * sum_ex);
            p.dr[i] = dbeta * k[j] * r_k[j];
            p.du[U_K * plane + i] = dbeta * p.r[i] * r_k[j];
            sum[READ_RK][n] += dbeta * p.r[i] * k[j];
        }
    }
    store_sums<READ_COUNT, NL>(p.part + blockIdx.y * READ_COUNT * C, sum, h, C, N);
}

void k_readout_bwd(struct queue *s, float *dy, float *dr, float *du, float *dg, float *dvecs,
                   const float *d_o, const float *y, const float *r, const float *u, const float *g,
                   const float *vecs, float *part, size_t R, size_t C, int H) {
    if (!R) return;
    const read_bwd p = {dy, dr, du, dg, part, d_o, y, r, u, g, vecs, R, C, H};
    const dim3 grid(H, (unsigned)k_parts(R));
    BY_HEAD(readout_bwd, C / H, grid, s, p);
    k_add_parts(s, dvecs, part, k_parts(R), READ_COUNT * C, 0, READ_COUNT * C);
}
