// What a layer does to a token when it has one row for each sequence, in few launches: a token's
// way through 0.1b was 12 of them a layer, 2.2 us each and most of that the way there and back.
#include "heads.cuh"
#include "wkv7.cuh"

#include "kernels.h"

// ---- key_prep, the recurrence, readout ---------------------------------------------------------

// A block has one head of one row. Bound by reading and writing the state, 32 KB: 256 sequences of
// 12 heads take 34 us at 3 TB/s. Neighbouring threads have neighbouring rows of it, which lie
// together; a thread's columns are those of wkv7_forward, and so is the order of its sums: the same
// bits as the three ops give, which is why what they store in T is rounded to it here.
enum { N = 64, QUAD = 4, NJ = N / QUAD, STEP_THREADS = QUAD * N };
enum { V_R = U_B + 1, VECTORS };

template <class T> __device__ static float stored(float x) {
    return sizeof(T) == 2 ? bf16_round(x) : x;
}

// Warp 0: what the recurrence reads of this token.
template <class T>
__device__ static void prepare_token(float (&vec)[VECTORS][N], const recall_args &p, size_t row) {
    constexpr int VEC = 2, NL = 1;
    const size_t C = p.C, plane = p.R * C, h = blockIdx.x * (size_t)N, at = row * C + h;
    const T *rkv = (const T *)p.rkv + at, *lora = (const T *)p.lora + at;
    TAKE(k, rkv + RKV_K * plane);
    TAKE(v, rkv + RKV_V * plane);
    TAKE(r, rkv + RKV_R * plane);
    TAKE(w, lora + LORA_W * plane);
    TAKE(a, lora + LORA_A * plane);
    head<VEC, NL> b = {}, first = {};
    if (p.v_first) {
        b.take(lora + LORA_V * plane, N);
        first.take(p.v_first + at, N);
    }
    TAKE(w0, p.key_vecs + KEY_W0 * C + h);
    TAKE(a0, p.key_vecs + KEY_A0 * C + h);
    TAKE(v0, p.key_vecs + KEY_V0 * C + h);
    TAKE(k_k, p.key_vecs + KEY_KK * C + h);
    TAKE(k_a, p.key_vecs + KEY_KA * C + h);
    prepare(k, v, w, a, b, p.v_first ? &first : nullptr, w0, a0, v0, k_k, k_a);
    EACH(i) {
        w[i] = stored<T>(w[i]);
        k[i] = stored<T>(k[i]);
        v[i] = stored<T>(v[i]);
        a[i] = stored<T>(a[i]);
        b[i] = stored<T>(b[i]);
    }
    if (p.v_out) v.give(p.v_out + at, N);
    EACH(i) {
        const int c = head<VEC, NL>::column(0) + i;
        vec[U_W][c] = decay_of(w[i]);
        vec[U_K][c] = k[i];
        vec[U_V][c] = v[i];
        vec[U_A][c] = a[i];
        vec[U_B][c] = b[i];
        vec[V_R][c] = r[i];
    }
}

// Warp 0: y, gated. What it reads besides is on its way while the others are at the state.
template <class T> struct reader {
    static constexpr int VEC = 2, NL = 1;
    head<VEC, NL> g, weight, bias, r_k;

    __device__ void ask(const recall_args &p, size_t row) {
        const size_t C = p.C, h = blockIdx.x * (size_t)N;
        g.take((const T *)p.lora + LORA_G * p.R * C + row * C + h, N);
        weight.take(p.read_vecs + READ_WEIGHT * C + h, N);
        bias.take(p.read_vecs + READ_BIAS * C + h, N);
        r_k.take(p.read_vecs + READ_RK * C + h, N);
    }
    __device__ void read(const float (&vec)[VECTORS][N], const float *now, const recall_args &p,
                         size_t row) const {
        TAKE(y, now);
        EACH(i) y[i] = stored<T>(y[i]);
        TAKE(r, vec[V_R]);
        TAKE(k, vec[U_K]);
        TAKE(v, vec[U_V]);
        read_head(y, r, k, v, g, weight, bias, r_k, N);
        const size_t at = row * p.C + blockIdx.x * (size_t)N;
        y.give((T *)p.o + at, N);
    }
};

template <class T> static __global__ void __launch_bounds__(STEP_THREADS) recall(recall_args p) {
    alignas(16) __shared__ float vec[VECTORS][N];
    alignas(16) __shared__ float part[2][QUAD][N];
    const int tid = threadIdx.x, i = tid % N, q = tid / N;
    const int *span = p.span + 4 * blockIdx.y;
    const size_t row = (size_t)span[0];
    float *state = p.state + ((size_t)span[2] * p.H + blockIdx.x) * N * N;
    prefetch(state + tid * (N * N / STEP_THREADS));      // half a line
    constexpr int HALVES = 2 * (KEY_COUNT + READ_COUNT); // lines of parameters
    if (tid < HALVES) {
        const float *vecs = tid < 2 * KEY_COUNT ? p.key_vecs : p.read_vecs - KEY_COUNT * p.C;
        prefetch(vecs + tid / 2 * p.C + blockIdx.x * (size_t)N + tid % 2 * 32);
    }
    begin_kernel();
    float4 S[NJ / 4];
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) S[m] = load_row(state + i, N, 16 * m + 4 * q);
    reader<T> out;
    if (tid < 32) {
        out.ask(p, row);
        prepare_token<T>(vec, p, row);
    }
    __syncthreads();
    const float4(*four)[N / 4] = (const float4(*)[N / 4]) vec;
    float4 sums = make_float4(0, 0, 0, 0), ys = sums;
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) add_products(sums, S[m], four[U_A][4 * m + q]);
    part[0][q][i] = (sums.x + sums.y) + (sums.z + sums.w);
    __syncthreads();
    const float s = (part[0][0][i] + part[0][1][i]) + (part[0][2][i] + part[0][3][i]);
    const float v = vec[U_V][i];
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) {
        const int c = 4 * m + q;
        const float4 to = next_state(S[m], four[U_W][c], s, four[U_B][c], v, four[U_K][c]);
        add_products(ys, to, four[V_R][c]);
        store_row(state + i, N, 16 * m + 4 * q, to);
    }
    part[1][q][i] = (ys.x + ys.y) + (ys.z + ys.w);
    __syncthreads();
    if (tid >= 32) return;
    float *now = part[0][0]; // nobody reads it any more
#pragma unroll
    for (int c = tid; c < N; c += 32)
        now[c] = (part[1][0][c] + part[1][1][c]) + (part[1][2][c] + part[1][3][c]);
    __syncwarp();
    out.read(vec, now, p, row);
}

bool k_recall(struct queue *s, const struct recall_args *p) {
    const size_t step = p->narrow ? 4 : 8; // a lane's two numbers
    const uintptr_t in = (uintptr_t)p->rkv | (uintptr_t)p->lora | p->R * p->C * step / 2;
    const uintptr_t rest = (uintptr_t)p->v_first | (uintptr_t)p->v_out | (uintptr_t)p->key_vecs |
                           (uintptr_t)p->read_vecs | (uintptr_t)p->o | (uintptr_t)p->state;
    if (p->C != (size_t)p->H * N || in % step || rest % 8) return false;
    const dim3 grid(p->H, (unsigned)p->R);
    if (!p->R) return true;
    if (p->narrow)
        LAUNCH(recall<uint16_t>, grid, STEP_THREADS, s, *p);
    else
        LAUNCH(recall<float>, grid, STEP_THREADS, s, *p);
    return true;
}
