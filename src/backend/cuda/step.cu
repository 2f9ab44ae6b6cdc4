// What a layer does to sequences that have one row each, in few launches: a token's way through 0.1b
// was 12 of them a layer, 2.2 us each and most of that the way there and back. And what the
// recurrence does to such rows where others have more.
#include "step.cuh"

#include "kernels.h"

// ---- key_prep, the recurrence, readout ---------------------------------------------------------

// A block has one head of one row. Bound by reading and writing the state, 32 KB, or 16 in f16: 256
// sequences of 12 heads take 34 us, or 17, at 3 TB/s, which wants many blocks a multiprocessor.
template <class E> constexpr int step_blocks = sizeof(E) == 2 ? 7 : 6;

// Asks for a state, by all threads.
template <class E> __device__ static void prefetch_state(const E *state) {
    constexpr int LINES = N * N * (int)sizeof(E) / 128;
    if (threadIdx.x < LINES) prefetch((const char *)state + threadIdx.x * 128);
}

// Warp 0: what comes before the recurrence.
template <class T>
__device__ static void prepare_row(step_room &room, const recall_args &p, size_t row) {
    constexpr int VEC = 2, NL = 1;
    const size_t C = p.C, plane = p.R * C, h = blockIdx.x * (size_t)N, at = row * C + h;
    const T *rkv = (const T *)p.rkv + at, *lora = (const T *)p.lora + at;
    TAKE(k, rkv + RKV_K * plane);
    TAKE(v, rkv + RKV_V * plane);
    TAKE(r, rkv + RKV_R * plane);
    TAKE(w, lora + LORA_W * plane);
    TAKE(a, lora + LORA_A * plane);
    lanes b = {}, first = {};
    if (p.v_first) {
        b.take(lora + LORA_V * plane, N);
        first.take((const T *)p.v_first + at, N);
    }
    key_lanes keys;
    keys.take(p.key_vecs + h, C);
    prepare_token<T>(room, r, k, v, w, a, b, first, p.v_first, keys);
    if (p.v_out) v.give((T *)p.v_out + at, N);
}

template <class T, class E>
static __global__ void __launch_bounds__(STEP_THREADS, step_blocks<E>) recall(recall_args p) {
    __shared__ step_room room;
    const int tid = threadIdx.x;
    const int *span = p.span + 4 * blockIdx.y;
    const size_t token = (size_t)span[0], h = blockIdx.x * (size_t)N;
    E *state = (E *)p.state + ((size_t)span[2] * p.H + blockIdx.x) * N * N;
    constexpr int HALVES = 2 * (KEY_COUNT + READ_COUNT); // of lines of parameters
    prefetch_state(state);
    if (tid < HALVES) {
        const float *vecs = tid < 2 * KEY_COUNT ? p.key_vecs : p.read_vecs - KEY_COUNT * p.C;
        prefetch(vecs + tid / 2 * p.C + h + tid % 2 * 32);
    }
    begin_kernel();
    state_lanes<E> S;
    S.take(state);
    lanes g;
    read_lanes with; // on its way while the others are at the state
    if (tid < 32) {
        g.take((const T *)p.lora + (LORA_G * p.R + token) * p.C + h, N);
        with.take(p.read_vecs + h, p.C);
        prepare_row<T>(room, p, token);
    }
    __syncthreads();
    S.meet_a(room);
    __syncthreads();
    S.go_on(room, state);
    __syncthreads();
    if (tid < 32) read_token<T>(room, g, with).give((T *)p.o + token * p.C + h, N);
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

// ---- the recurrence alone ----------------------------------------------------------------------

// Rows that write among others that read a prompt: what comes before and after has all rows.
template <class T, class E>
static __global__ void __launch_bounds__(STEP_THREADS, step_blocks<E>) one_token(wkv7_args a) {
    __shared__ step_room room;
    const int *span = a.span + 4 * (a.spans + blockIdx.y);
    const size_t plane = a.R * a.C, at = span[0] * a.C + blockIdx.x * (size_t)N;
    const size_t state = ((size_t)span[2] * a.H + blockIdx.x) * N * N;
    prefetch_state((const E *)a.state_in + state);
    begin_kernel();
    state_lanes<E> S;
    S.take((const E *)a.state_in + state);
    if (threadIdx.x < 32) {
        constexpr int VEC = 2, NL = 1;
        const T *u = (const T *)a.u + at;
        TAKE(w, u + U_W * plane);
        TAKE(r, (const T *)a.r + at);
        TAKE(k, u + U_K * plane);
        TAKE(v, u + U_V * plane);
        TAKE(x, u + U_A * plane);
        TAKE(b, u + U_B * plane);
        put_decay<T>(room, w);
        put_keys<T>(room, r, k, x, b);
        put_values<T>(room, v);
    }
    __syncthreads();
    S.meet_a(room);
    __syncthreads();
    S.go_on(room, (E *)a.state_out + state);
    __syncthreads();
    if (threadIdx.x < 32) sum_token<T>(room).give((T *)a.y + at, N);
}

bool wkv7_steps(const wkv7_args &a) {
    const uintptr_t all = (uintptr_t)a.y | (uintptr_t)a.r | (uintptr_t)a.u | (uintptr_t)a.state_in |
                          (uintptr_t)a.state_out;
    return a.singles && a.C == (size_t)a.H * N && a.y && a.state_in && a.state_out && !a.saved &&
           all % 8 == 0;
}

template <class T> static void start_step(struct queue *s, const wkv7_args &a) {
    const dim3 grid(a.H, a.singles);
    if (a.half)
        LAUNCH((one_token<T, uint16_t>), grid, STEP_THREADS, s, a);
    else
        LAUNCH((one_token<T, float>), grid, STEP_THREADS, s, a);
}

void wkv7_step(struct queue *s, const wkv7_args &a) {
    if (a.narrow)
        start_step<uint16_t>(s, a);
    else
        start_step<float>(s, a);
}
