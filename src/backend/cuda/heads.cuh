// What a warp does with one head of one row: shared by heads.cu and step.cu, so that both give the
// same bits.
#pragma once
#include "vector.cuh"

enum { RKV_R, RKV_K, RKV_V };
enum { LORA_W, LORA_A, LORA_V, LORA_G };
enum { KEY_W0, KEY_A0, KEY_V0, KEY_KK, KEY_KA, KEY_COUNT };
enum { READ_WEIGHT, READ_BIAS, READ_RK, READ_COUNT };

// A head of N columns in the registers of a warp: a lane has NL times VEC neighbours. A head of 64
// whose tensors lie on 8 bytes is <2, 1>.
template <int VEC, int NL> struct head {
    float x[NL * VEC];

    __device__ static int column(int n) { return (n * 32 + (threadIdx.x & 31)) * VEC; }
    __device__ static bool in(int n, int N) { return (VEC == 2 && NL == 1) || column(n) < N; }
    template <class P> __device__ void take(const P *from, int N) {
#pragma unroll
        for (int n = 0; n < NL; n++) {
            several<VEC> v = {};
            if (in(n, N)) v = load<VEC>(from + column(n));
#pragma unroll
            for (int e = 0; e < VEC; e++) x[n * VEC + e] = v[e];
        }
    }
    template <class P> __device__ void give(P *to, int N) const {
#pragma unroll
        for (int n = 0; n < NL; n++) {
            several<VEC> v;
#pragma unroll
            for (int e = 0; e < VEC; e++) v[e] = x[n * VEC + e];
            if (in(n, N)) store<VEC>(to + column(n), v);
        }
    }
    __device__ float &operator[](int i) {
        return x[i];
    }
    __device__ float operator[](int i) const {
        return x[i];
    }
};

// All that a head's row reads is asked for before anything is made of it.
#define TAKE(name, from)                                                                           \
    head<VEC, NL> name;                                                                            \
    name.take(from, N)
#define EACH(i) _Pragma("unroll") for (int i = 0; i < NL * VEC; i++)
// Columns past the head are zero wherever they are summed.
#define EACH_IN(i) EACH(i) if (head<VEC, NL>::in((i) / VEC, N))

template <int VEC, int NL>
__device__ static float key_norm(const head<VEC, NL> &k, const head<VEC, NL> &k_k) {
    float sum = 0;
    EACH(i) sum += (k[i] * k_k[i]) * (k[i] * k_k[i]);
    return sqrtf(warp_sum(sum));
}

// The values of layers after the first one: v' and lora_v, mixed with the first one's.
template <class T, int VEC, int NL>
__device__ static void prepare_values(head<VEC, NL> &v, const head<VEC, NL> &mix,
                                      const head<VEC, NL> &first, const head<VEC, NL> &v0) {
    EACH(i) v[i] += (first[i] - v[i]) * sigmoid_as<T>(v0[i] + mix[i]);
}

// From k' and lora_a: k, -κ and κa.
template <class T, int VEC, int NL>
__device__ static void prepare_keys(head<VEC, NL> &k, head<VEC, NL> &a, head<VEC, NL> &b,
                                    const head<VEC, NL> &a0, const head<VEC, NL> &k_k,
                                    const head<VEC, NL> &k_a) {
    const float norm = fmaxf(key_norm(k, k_k), 1e-12f);
    EACH(i) {
        const float rate = sigmoid_as<T>(a0[i] + a[i]), kappa = quotient<T>(k[i] * k_k[i], norm);
        k[i] *= 1 + (rate - 1) * k_a[i];
        a[i] = -kappa;
        b[i] = kappa * rate;
    }
}

// From k' v' lora_w lora_a lora_v, stored as T: k, v, ω, -κ and κa, each in its place. later: than
// layer 0, which has no first values.
template <class T, int VEC, int NL>
__device__ static void prepare(head<VEC, NL> &k, head<VEC, NL> &v, head<VEC, NL> &w,
                               head<VEC, NL> &a, head<VEC, NL> &mixed, const head<VEC, NL> &first,
                               bool later, const head<VEC, NL> &w0, const head<VEC, NL> &a0,
                               const head<VEC, NL> &v0, const head<VEC, NL> &k_k,
                               const head<VEC, NL> &k_a) {
    if (later) prepare_values<T>(v, mixed, first, v0);
    EACH(i) w[i] += w0[i];
    prepare_keys<T>(k, a, mixed, a0, k_k, k_a);
}

constexpr float read_eps = 64e-5f;

// Mean and 1/√(var+ε) of a head, counted from its first number on.
template <int VEC, int NL> __device__ static float2 head_moments(const head<VEC, NL> &y, int N) {
    const float first = __shfl_sync(0xffffffffu, y[0], 0);
    float sum = 0, square = 0;
    EACH_IN(i) sum += y[i] - first;
    const float mean = first + warp_sum(sum) / (float)N;
    EACH_IN(i) square += (y[i] - mean) * (y[i] - mean);
    return make_float2(mean, 1.0f / sqrtf(warp_sum(square) / (float)N + read_eps));
}

template <int VEC, int NL>
__device__ static float bonus(const head<VEC, NL> &r, const head<VEC, NL> &k,
                              const head<VEC, NL> &r_k) {
    float sum = 0;
    EACH(i) sum += r[i] * k[i] * r_k[i];
    return warp_sum(sum);
}

// y becomes the gated readout.
template <int VEC, int NL>
__device__ static void read_head(head<VEC, NL> &y, const head<VEC, NL> &r, const head<VEC, NL> &k,
                                 const head<VEC, NL> &v, const head<VEC, NL> &g,
                                 const head<VEC, NL> &weight, const head<VEC, NL> &bias,
                                 const head<VEC, NL> &r_k, int N) {
    const float2 m = head_moments(y, N);
    const float beta = bonus(r, k, r_k);
    EACH(i) y[i] = ((y[i] - m.x) * m.y * weight[i] + bias[i] + beta * v[i]) * g[i];
}
