// What a layer does to a token when it has one row for each sequence, in few launches: a token's
// way through 0.1b was 12 of them a layer, 2.2 us each and most of that the way there and back.
#include "heads.cuh"
#include "wkv7.cuh"

#include "kernels.h"

// ---- key_prep, the recurrence, readout ---------------------------------------------------------

// A block has one head of one row, a warp a quarter of the columns, a lane two rows. Bound by
// reading and writing the state, 32 KB, or 16 in f16: 256 sequences of 12 heads take 34 us, or 17,
// at 3 TB/s, which wants many blocks a multiprocessor. A warp's columns are those of a thread of
// wkv7_forward, and so is the order of its sums: the same bits as the three ops give, which is why
// what they store in T is rounded to it here.
enum { N = 64, QUAD = 4, NJ = N / QUAD, STEP_THREADS = QUAD * 32 };
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
        first.take((const T *)p.v_first + at, N);
    }
    TAKE(w0, p.key_vecs + KEY_W0 * C + h);
    TAKE(a0, p.key_vecs + KEY_A0 * C + h);
    TAKE(v0, p.key_vecs + KEY_V0 * C + h);
    TAKE(k_k, p.key_vecs + KEY_KK * C + h);
    TAKE(k_a, p.key_vecs + KEY_KA * C + h);
    prepare<T>(k, v, w, a, b, first, p.v_first, w0, a0, v0, k_k, k_a);
    EACH(i) {
        w[i] = stored<T>(w[i]);
        k[i] = stored<T>(k[i]);
        v[i] = stored<T>(v[i]);
        a[i] = stored<T>(a[i]);
        b[i] = stored<T>(b[i]);
    }
    if (p.v_out) v.give((T *)p.v_out + at, N);
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

// Columns 16m + 4·warp + {0…3} of a lane's two rows. In memory a state is [column][row], so that a
// warp's loads are whole lines.
struct columns {
    float4 x, y; // row 2·lane, row 2·lane + 1

    template <class E> __device__ void give(E *state) const {
        store_state(state, x.x, y.x);
        store_state(state + N, x.y, y.y);
        store_state(state + 2 * N, x.z, y.z);
        store_state(state + 3 * N, x.w, y.w);
    }
};

// The same as they came from memory: half as many registers for f16.
template <class E> struct raw_columns {
    state_pair<E> pair[4];

    __device__ void take(const E *state) {
#pragma unroll
        for (int c = 0; c < 4; c++) pair[c] = load_state(state + c * N);
    }
    __device__ columns wide() const {
        const float2 a = state_wide(pair[0]), b = state_wide(pair[1]), c = state_wide(pair[2]),
                     d = state_wide(pair[3]);
        return {make_float4(a.x, b.x, c.x, d.x), make_float4(a.y, b.y, c.y, d.y)};
    }
};

__device__ static float across(float4 x) {
    return (x.x + x.y) + (x.z + x.w);
}

// A row's sum over the warps' quarters.
__device__ static float2 sum_of(const float (&part)[QUAD][N], int row) {
    const float2 a = *(const float2 *)&part[0][row], b = *(const float2 *)&part[1][row],
                 c = *(const float2 *)&part[2][row], d = *(const float2 *)&part[3][row];
    return make_float2((a.x + b.x) + (c.x + d.x), (a.y + b.y) + (c.y + d.y));
}

template <class T, class E>
static __global__ void __launch_bounds__(STEP_THREADS, sizeof(E) == 2 ? 7 : 6)
    recall(recall_args p) {
    alignas(16) __shared__ float vec[VECTORS][N];
    alignas(16) __shared__ float part[2][QUAD][N];
    const int tid = threadIdx.x, row = 2 * (tid % 32), q = tid / 32;
    const int *span = p.span + 4 * blockIdx.y;
    const size_t token = (size_t)span[0];
    E *state = (E *)p.state + ((size_t)span[2] * p.H + blockIdx.x) * N * N;
    constexpr int LINES = N * N * (int)sizeof(E) / 128, // of a state, of parameters
        HALVES = 2 * (KEY_COUNT + READ_COUNT);
    if (tid < LINES) prefetch((const char *)state + tid * 128);
    if (tid < HALVES) {
        const float *vecs = tid < 2 * KEY_COUNT ? p.key_vecs : p.read_vecs - KEY_COUNT * p.C;
        prefetch(vecs + tid / 2 * p.C + blockIdx.x * (size_t)N + tid % 2 * 32);
    }
    begin_kernel();
    raw_columns<E> S[NJ / 4];
    E *mine = state + 4 * q * N + row;
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) S[m].take(mine + 16 * m * N);
    reader<T> out;
    if (tid < 32) {
        out.ask(p, token);
        prepare_token<T>(vec, p, token);
    }
    __syncthreads();
    const float4(*four)[N / 4] = (const float4(*)[N / 4]) vec;
    float4 x = make_float4(0, 0, 0, 0), y = x;
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) {
        const float4 a = four[U_A][4 * m + q];
        const columns from = S[m].wide();
        add_products(x, from.x, a);
        add_products(y, from.y, a);
    }
    *(float2 *)&part[0][q][row] = make_float2(across(x), across(y));
    __syncthreads();
    const float2 s = sum_of(part[0], row), v = *(const float2 *)&vec[U_V][row];
    x = y = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int m = 0; m < NJ / 4; m++) {
        const int c = 4 * m + q;
        const float4 w = four[U_W][c], b = four[U_B][c], k = four[U_K][c], r = four[V_R][c];
        const columns from = S[m].wide();
        const columns to = {next_state(from.x, w, s.x, b, v.x, k),
                            next_state(from.y, w, s.y, b, v.y, k)};
        add_products(x, to.x, r);
        add_products(y, to.y, r);
        to.give(mine + 16 * m * N);
    }
    *(float2 *)&part[1][q][row] = make_float2(across(x), across(y));
    __syncthreads();
    if (tid >= 32) return;
    float *now = part[0][0]; // nobody reads it any more
    *(float2 *)&now[row] = sum_of(part[1], row);
    __syncwarp();
    out.read(vec, now, p, token);
}

template <class T> static void start_recall(struct queue *s, const recall_args &p) {
    const dim3 grid(p.H, (unsigned)p.R);
    if (p.half)
        LAUNCH((recall<T, uint16_t>), grid, STEP_THREADS, s, p);
    else
        LAUNCH((recall<T, float>), grid, STEP_THREADS, s, p);
}

bool k_recall(struct queue *s, const struct recall_args *p) {
    const size_t step = p->narrow ? 4 : 8; // a lane's two numbers
    const uintptr_t in = (uintptr_t)p->rkv | (uintptr_t)p->lora | p->R * p->C * step / 2;
    const uintptr_t rest = (uintptr_t)p->v_first | (uintptr_t)p->v_out | (uintptr_t)p->key_vecs |
                           (uintptr_t)p->read_vecs | (uintptr_t)p->o | (uintptr_t)p->state;
    if (p->C != (size_t)p->H * N || in % step || rest % 8) return false;
    if (!p->R) return true;
    if (p->narrow)
        start_recall<uint16_t>(s, *p);
    else
        start_recall<float>(s, *p);
    return true;
}
