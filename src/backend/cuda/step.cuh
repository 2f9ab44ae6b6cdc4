// The recurrence of one token and one head of 64, with what comes before and after it: shared by
// step.cu and decode.cu, so that both give the same bits.
//
// Four warps take it, a warp a quarter of the columns, a lane two rows. A warp's columns are those
// of a thread of wkv7_forward, and so is the order of its sums: the same bits as the three ops
// give, which is why what they store in T is rounded to it here.
#pragma once
#include "heads.cuh"
#include "wkv7.cuh"

enum { N = 64, QUAD = 4, NJ = N / QUAD, STEP_THREADS = QUAD * 32 };
enum { V_R = U_B + 1, VECTORS };

template <class T> __device__ static float stored(float x) {
    return sizeof(T) == 2 ? bf16_round(x) : x;
}

typedef head<2, 1> lanes; // of a head, two neighbours a lane

struct key_lanes {
    lanes w0, a0, v0, k_k, k_a;

    // vecs (5,C) from the head's first column on.
    __device__ void take(const float *vecs, size_t C) {
        w0.take(vecs + KEY_W0 * C, N);
        a0.take(vecs + KEY_A0 * C, N);
        v0.take(vecs + KEY_V0 * C, N);
        k_k.take(vecs + KEY_KK * C, N);
        k_a.take(vecs + KEY_KA * C, N);
    }
};

struct read_lanes {
    lanes weight, bias, r_k;

    __device__ void take(const float *vecs, size_t C) {
        weight.take(vecs + READ_WEIGHT * C, N);
        bias.take(vecs + READ_BIAS * C, N);
        r_k.take(vecs + READ_RK * C, N);
    }
};

// What a token's four warps share.
struct step_room {
    alignas(16) float vec[VECTORS][N];
    alignas(16) float part[2][QUAD][N];
};

// What the recurrence reads of this token, by what it is made of.
template <class T>
__device__ static void put_keys(step_room &room, const lanes &r, const lanes &k, const lanes &a,
                                const lanes &b) {
    constexpr int VEC = 2, NL = 1;
    EACH(i) {
        const int c = lanes::column(0) + i;
        room.vec[U_K][c] = stored<T>(k[i]);
        room.vec[U_A][c] = stored<T>(a[i]);
        room.vec[U_B][c] = stored<T>(b[i]);
        room.vec[V_R][c] = r[i];
    }
}
template <class T> __device__ static void put_decay(step_room &room, const lanes &w) {
    constexpr int VEC = 2, NL = 1;
    EACH(i) room.vec[U_W][lanes::column(0) + i] = decay_of(stored<T>(w[i]));
}
template <class T> __device__ static void put_values(step_room &room, lanes &v) {
    constexpr int VEC = 2, NL = 1;
    EACH(i) room.vec[U_V][lanes::column(0) + i] = v[i] = stored<T>(v[i]);
}

// Warp 0: all of it. later: than layer 0, which has no first values. v becomes the values.
template <class T>
__device__ static void prepare_token(step_room &room, lanes r, lanes k, lanes &v, lanes w, lanes a,
                                     lanes b, const lanes &first, bool later,
                                     const key_lanes &keys) {
    prepare<T>(k, v, w, a, b, first, later, keys.w0, keys.a0, keys.v0, keys.k_k, keys.k_a);
    put_decay<T>(room, w);
    put_keys<T>(room, r, k, a, b);
    put_values<T>(room, v);
}

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

// A thread's part of a head's state and what becomes of it; the four warps meet between its steps.
__device__ static int state_row() {
    return 2 * (int)(threadIdx.x % 32);
}
template <class E> struct state_lanes {
    raw_columns<E> S[NJ / 4];

    __device__ static int quarter() { return (int)threadIdx.x / 32 % QUAD; }
    __device__ static int place(int m) { return (16 * m + 4 * quarter()) * N + state_row(); }

    __device__ void take(const E *state) {
#pragma unroll
        for (int m = 0; m < NJ / 4; m++) S[m].take(state + place(m));
    }
    // After all is put: its share of s.
    __device__ void meet_a(step_room &room) const {
        const float4(*four)[N / 4] = (const float4(*)[N / 4]) room.vec;
        float4 x = make_float4(0, 0, 0, 0), y = x;
#pragma unroll
        for (int m = 0; m < NJ / 4; m++) {
            const float4 a = four[U_A][4 * m + quarter()];
            const columns from = S[m].wide();
            add_products(x, from.x, a);
            add_products(y, from.y, a);
        }
        *(float2 *)&room.part[0][quarter()][state_row()] = make_float2(across(x), across(y));
    }
    // Then: the next state, and its share of y.
    __device__ void go_on(step_room &room, E *state) const {
        const float4(*four)[N / 4] = (const float4(*)[N / 4]) room.vec;
        const float2 s = sum_of(room.part[0], state_row()),
                     v = *(const float2 *)&room.vec[U_V][state_row()];
        float4 x = make_float4(0, 0, 0, 0), y = x;
#pragma unroll
        for (int m = 0; m < NJ / 4; m++) {
            const int c = 4 * m + quarter();
            const float4 w = four[U_W][c], b = four[U_B][c], k = four[U_K][c], r = four[V_R][c];
            const columns from = S[m].wide();
            const columns to = {next_state(from.x, w, s.x, b, v.x, k),
                                next_state(from.y, w, s.y, b, v.y, k)};
            add_products(x, to.x, r);
            add_products(y, to.y, r);
            to.give(state + place(m));
        }
        *(float2 *)&room.part[1][quarter()][state_row()] = make_float2(across(x), across(y));
    }
};

// Then warp 0: y.
template <class T> __device__ static lanes sum_token(const step_room &room) {
    const float2 sum = sum_of(room.part[1], state_row());
    return {{stored<T>(sum.x), stored<T>(sum.y)}};
}

// The same, gated.
template <class T>
__device__ static lanes read_token(const step_room &room, const lanes &g, const read_lanes &with) {
    constexpr int VEC = 2, NL = 1;
    lanes y = sum_token<T>(room);
    TAKE(r, room.vec[V_R]);
    TAKE(k, room.vec[U_K]);
    TAKE(v, room.vec[U_V]);
    read_head(y, r, k, v, g, with.weight, with.bias, with.r_k, N);
    return y;
}
