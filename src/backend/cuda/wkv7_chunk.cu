// The chunked recurrence, forward. The front warps take the state through one chunk after the
// other; each of the BACKS warps behind them makes of every BACKS-th chunk's inputs all that does
// not depend on the state, in a slot of its own, and carries away what the front read out there.
//
// Where there are few heads, SPLIT blocks share one: rows of the state do not know of each other,
// so a block takes some of them and makes the rest again. Then the front is what time goes to, a
// chain of products, and two warps share its rows by columns: steps of 16 in turns, which are the
// two sums that a warp alone adds up. Whatever SPLIT and BACKS, the same bits.
//
// 16×512 tokens of 12 heads in bf16 take an H100 97 to 99 µs with states kept, 77 without (`rwkv
// bench kernels`); counted were 80, of which memory takes 70.
#include "wkv7_chunk.cuh"

namespace {

enum { WARP = 32, ALONE = 7, LEAST = 3 };
enum { MEET = 15 }; // the barrier of all front warps, where they share rows

// Warps that share 16 rows of the state, forward.
template <int SPLIT> constexpr int sides = SPLIT > 1 ? 2 : 1;

// What a pair of them has: what one has found of x, for the other, which then puts its part of y
// there.
union shared_rows {
    float4 x[2][WARP];
    float y[T][16 + 4]; // what a warp puts at once lies in different banks
};

template <class E, int SPLIT> struct slot {
    inputs<E> in;
    shared_rows part[STEPS / SPLIT][2];
};
template <class E> struct slot<E, 1> {
    inputs<E> in;
    alignas(16) E y[T][N + 8]; // rows lie in different banks
};

// What a lane has of a token: four channels. Lanes 0 to 15 have the chunk's first half.
template <class E> struct raw_four {
    float4 bits;
    __device__ float4 wide() const { return bits; }
};
template <> struct raw_four<uint16_t> {
    uint2 bits;
    __device__ float4 wide() const {
        return make_float4(bf16_low(bits.x), bf16_high(bits.x), bf16_low(bits.y),
                           bf16_high(bits.y));
    }
};

enum { HALF = T / 2, LANES = N / 4 }; // tokens; lanes of a token

template <class E> __device__ raw_four<E> four_at(const void *base, size_t i) {
    return *(const raw_four<E> *)((const E *)base + i);
}

// BACK: dy instead of v, and no k.
template <bool BACK, class E> struct token {
    raw_four<E> r, k, v, a, b;

    __device__ void load(const wkv7_args &in, size_t at) {
        const size_t plane = in.R * in.C;
        r = four_at<E>(in.r, at);
        if (!BACK) k = four_at<E>(in.u, U_K * plane + at);
        v = BACK ? four_at<E>(in.dy, at) : four_at<E>(in.u, U_V * plane + at);
        a = four_at<E>(in.u, U_A * plane + at);
        b = four_at<E>(in.u, U_B * plane + at);
    }
};

__device__ float4 times(float4 x, float4 y) {
    const float2 left = times(make_float2(x.x, x.y), make_float2(y.x, y.y)),
                 right = times(make_float2(x.z, x.w), make_float2(y.z, y.w));
    return make_float4(left.x, left.y, right.x, right.y);
}

__device__ void put(tile<T, N> &to, int t, int col, float4 x) {
    uint2 hi, lo;
    split(x.x, x.y, hi.x, lo.x);
    split(x.z, x.w, hi.y, lo.y);
    *(uint2 *)&to.hi[to.at(t, col)] = hi;
    *(uint2 *)&to.lo[to.at(t, col)] = lo;
}
__device__ void put_raw(tile<T, N> &to, int t, int col, raw_four<float> x) {
    put(to, t, col, x.bits);
}
__device__ void put_raw(tile<T, N, false> &to, int t, int col, raw_four<uint16_t> x) {
    *(uint2 *)&to.hi[to.at(t, col)] = x.bits;
}

// BACK: b̂, r̂ and â go the ways of â, k̂ and b̂.
template <bool BACK, class E>
__device__ void prepare_token(inputs<E> &s, const token<BACK, E> &x, int t, int col, float4 before,
                              float4 shrink) {
    const float4 grow = make_float4(reciprocal(shrink.x), reciprocal(shrink.y),
                                    reciprocal(shrink.z), reciprocal(shrink.w));
    put(BACK ? s.b : s.a, t, col, times(x.a.wide(), before));
    put(BACK ? s.k : s.r, t, col, times(x.r.wide(), shrink));
    put(BACK ? s.a : s.b, t, col, times(x.b.wide(), grow));
    if (!BACK) put(s.k, t, col, times(x.k.wide(), grow));
    put_raw(s.v, t, col, x.v);
}

// e^(x + y), both in powers of two.
__device__ float4 powers(float4 x, float4 y) {
    return make_float4(power2(x.x + y.x), power2(x.y + y.y), power2(x.z + y.z), power2(x.w + y.w));
}

// The triangles, and â b̂ᵀ as f32, in place of the inverse that is made of it.
template <class E> __device__ void triangles(inputs<E> &s, float (*ab)[T]) {
    float to_ab[2][4] = {}, ak[2][4] = {}, rk[2][4] = {}, rb[2][4] = {};
#pragma unroll
    for (int i = 0; i < N; i += 16) {
        const frag xa = a_of(s.a, 0, i), r = a_of(s.r, 0, i), b = b_of_turned(s.b, 0, i),
                   k = b_of_turned(s.k, 0, i);
        multiply(to_ab, xa, b, ak, xa, k);
        multiply(rk, r, k, rb, r, b);
    }
    each_of_sum([&](int n, int half, int row, int col) {
        put_pair(&ab[row][col], to_ab[n][2 * half], to_ab[n][2 * half + 1]);
    });
    store_lower(s.ak, ak, true);
    store_lower(s.rk, rk, false);
    store_lower(s.rb, rb, false);
}

// (I - ab)⁻¹ by forward substitution, a lane for each column; both halves of the warp do the same.
__device__ void invert(tile<T, T> &to, const float (*ab)[T]) {
    const int lane = (int)(threadIdx.x & 31), col = lane % T;
    float x[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        float sums[2] = {t == col ? 1.0f : 0.0f, 0};
#pragma unroll
        for (int k = 0; k < t; k += 4) {
            const float4 f = *(const float4 *)&ab[t][k];
            sums[0] = fmaf(f.x, x[k], sums[0]);
            if (k + 1 < t) sums[1] = fmaf(f.y, x[k + 1], sums[1]);
            if (k + 2 < t) sums[0] = fmaf(f.z, x[k + 2], sums[0]);
            if (k + 3 < t) sums[1] = fmaf(f.w, x[k + 3], sums[1]);
        }
        x[t] = sums[0] + sums[1];
    }
    __syncwarp(); // ab was read
    // Halves of the warp have rows 0 to 7 and the rest; neighbours, who give each other a number,
    // one of two rows.
    const bool odd = lane & 1, rest = lane >= T;
    const int here = word_at<T>(rest * HALF + odd, col & ~1);
#pragma unroll
    for (int t = 0; t < HALF; t += 2) {
        const float own[2] = {rest ? x[t + HALF] : x[t], rest ? x[t + HALF + 1] : x[t + 1]};
        const float theirs = __shfl_xor_sync(0xffffffffu, odd ? own[0] : own[1], 1);
        const int word = (here ^ (t & 4)) + words_of_rows<T>(t);
        split(odd ? theirs : own[0], odd ? own[1] : theirs, to.hi[word], to.lo[word]);
    }
    __syncwarp();
}

// The tokens of a chunk as a lane reads them, its first four channels of each: the i-th of the
// chunk's half that is the lane's. TAIL: there may be less; instead of others the last one is read.
template <bool TAIL> struct chunk_rows {
    size_t mine;
    int left; // of the lane's half: less than none, if there are none of it

    __device__ chunk_rows(const wkv7_args &a, size_t at, int count) {
        const int lane = (int)threadIdx.x % WARP, first = lane / LANES * HALF;
        mine = at + (size_t)first * a.C + lane % LANES * 4;
        left = count - first;
    }
    __device__ bool has(int i) const { return !TAIL || i < left; }
    __device__ size_t at(const wkv7_args &a, int i) const {
        return has(i) ? mine + i * a.C : mine - (size_t)(1 - left) * a.C;
    }
};

// What a back warp has asked for of the chunk that is next: ω, and of the tokens as many as can be
// on their way at once.
template <bool BACK, class E> struct asked_rows {
    enum { FEW = splits<E> ? 1 : 2 };
    raw_four<E> w[HALF];
    token<BACK, E> tokens[FEW];

    template <bool TAIL>
    __device__ void load_decays(const wkv7_args &a, const chunk_rows<TAIL> &rows) {
#pragma unroll
        for (int i = 0; i < HALF; i++) w[i] = four_at<E>(a.u, U_W * a.R * a.C + rows.at(a, i));
    }
    template <bool TAIL>
    __device__ void load_tokens(const wkv7_args &a, const chunk_rows<TAIL> &rows) {
#pragma unroll
        for (int n = 0; n < FEW; n++) tokens[n].load(a, rows.at(a, n));
    }
};

// A back warp's chunk; next: the one that is asked for meanwhile. Tokens are a loop in the code
// too: warps that are at different places fetch their instructions through the same caches. Tokens
// that are not there leave the state as it is.
template <bool BACK, bool TAIL, class E>
__device__ void prepare(inputs<E> &s, asked_rows<BACK, E> &asked, const wkv7_args &a,
                        const chunk_rows<TAIL> &rows, const chunk_rows<TAIL> &next) {
    enum { FEW = asked_rows<BACK, E>::FEW };
    const int lane = now((int)threadIdx.x % WARP), col = lane % LANES * 4;
    // Sums of log-decays, in powers of two, of this half of the chunk, where later something else
    // will be; and before it.
    float4 *const sums = (float4 *)(BACK ? (void *)&s.r : (void *)&s.ak) + lane;
    static_assert(4 * sizeof s.ak == T * N * sizeof(float), "from ak to solve, and r is not less");
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float4 x = asked.w[i].wide();
        if (rows.has(i)) {
            sum.x -= c0 * log2_e * quick_sigmoid(x.x);
            sum.y -= c0 * log2_e * quick_sigmoid(x.y);
            sum.z -= c0 * log2_e * quick_sigmoid(x.z);
            sum.w -= c0 * log2_e * quick_sigmoid(x.w);
        }
        sums[i * WARP] = sum;
    }
    const bool later = lane >= LANES;
    const auto of_first = [&](float x) {
        const float first = __shfl_sync(0xffffffffu, x, lane % LANES);
        return later ? first : 0;
    };
    const float4 ahead =
        make_float4(of_first(sum.x), of_first(sum.y), of_first(sum.z), of_first(sum.w));
    float4 before = powers(ahead, make_float4(0, 0, 0, 0));
#pragma unroll 1
    for (int i = 0; i < HALF; i += FEW) {
        const bool here = i + FEW < HALF;
#pragma unroll
        for (int n = 0; n < FEW; n++) {
            const float4 shrink = powers(ahead, sums[(i + n) * WARP]);
            if (!rows.has(i + n)) asked.tokens[n] = {};
            prepare_token(s, asked.tokens[n], later * HALF + i + n, col, before, shrink);
            asked.tokens[n].load(a, here ? rows.at(a, i + FEW + n) : next.at(a, n));
            before = shrink;
        }
    }
    if (later) *(float4 *)&s.decay[col] = before;
    asked.load_decays(a, next);
    __syncwarp();
    if (BACK) {
        triangle(s.rb, s.k, s.a, false);
        return;
    }
    float(*ab)[T] = (float(*)[T]) & s.solve;
    static_assert(sizeof s.solve == T * T * sizeof(float), "ab takes the place of its inverse");
    triangles(s, ab);
    __syncwarp();
    invert(s.solve, ab);
}

// The inverse: backward finds it where forward keeps it.
template <bool BACK>
__device__ void keep_inverse(tile<T, T> &solve, const wkv7_args &a, size_t at) {
    each_of_inverse((int)(threadIdx.x & 31), a.C, [&](bool low, int word, size_t i) {
        void *here = &(low ? solve.lo : solve.hi)[word];
        float *there = a.saved + at + i;
        copy_piece(BACK ? here : there, BACK ? there : here);
    });
}

template <int COUNT>
__device__ void scale(float (&S)[COUNT][2][4], const float *decay, int side = 0) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        const float *const d = decay + 16 * (STEPS / COUNT * j + side) + 2 * (threadIdx.x & 3);
        scale_columns(S[j], pair_at(d), pair_at(d + 8));
    }
}

template <int COUNT>
__device__ void keep(const frag (&state)[COUNT], float *chunk, int row0, int side) {
    uint32_t *to =
        (uint32_t *)chunk + (row0 / 16 * STEPS + side) * KEPT_STEP + now((int)threadIdx.x & 31);
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t *const word = to + STEPS / COUNT * j * KEPT_STEP + i * KEPT_MATRIX;
            word[0] = state[j].hi[i];
            word[4 * KEPT_MATRIX] = state[j].lo[i];
        }
}

__device__ void put_four(float *to, float4 x) {
    *(float4 *)to = x;
}
__device__ void put_four(uint16_t *to, float4 x) {
    *(uint2 *)to = uint2{bf16_pair(x.x, x.y), bf16_pair(x.z, x.w)};
}

// Of a sum whose rows are channels and whose columns tokens, two channels of one token:
// f(channel, token, pair). Neighbouring lanes give each other one number.
template <class F> __device__ void each_of_channels(const float (&d)[2][4], const F &f) {
    const bool odd = threadIdx.x & 4; // of rows g and g ^ 1
    each_of_sum([&](int n, int half, int row, int t) {
        const float own[2] = {d[n][2 * half], d[n][2 * half + 1]};
        const float theirs = __shfl_xor_sync(0xffffffffu, odd ? own[0] : own[1], 4);
        f(row & ~1, t + odd, odd ? make_float2(theirs, own[1]) : make_float2(own[0], theirs));
    });
}

// A warp's rows of the state through a chunk, and what they read out.
template <class E>
__device__ void advance(rows_of_state &S, const frag (&state)[STEPS], slot<E, 1> &s, int row0,
                        int) {
    const inputs<E> &in = s.in;
    // The chain from state to state: x in two sums, U, S. The rest fills the gaps.
    float x[2][4] = {}, x2[2][4] = {}, y[2][4] = {}, y2[2][4] = {}, u[2][4] = {};
    const auto v = a_of_turned(in.v, 0, row0);
    multiply(x2, v, b_of_turned(in.ak, 0, 0));
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(x, state[j], b_of_turned(in.a, 0, 16 * j), x2, state[j + 1],
                 b_of_turned(in.a, 0, 16 * (j + 1)));
    add(x, x2);
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(S[j], v, b_of(in.k, 0, 16 * j), S[j + 1], v, b_of(in.k, 0, 16 * (j + 1)));
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(y, state[j], b_of_turned(in.r, 0, 16 * j), y2, state[j + 1],
                 b_of_turned(in.r, 0, 16 * (j + 1)));
    const frag sums = a_of_sum(u); // rows of U: S_{t-1} a_t
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(S[j], sums, b_of(in.b, 0, 16 * j), S[j + 1], sums, b_of(in.b, 0, 16 * (j + 1)));
    multiply(y, v, b_of_turned(in.rk, 0, 0), y2, sums, b_of_turned(in.rb, 0, 0));
    add(y, y2);
    scale(S, in.decay);
    each_of_channels(y, [&](int row, int t, float2 pair) {
        put_pair(&s.y[t][row0 + row], pair.x, pair.y);
    });
}

// The same by two warps, each of which has every other step of columns, and of x and y one of the
// two sums.
template <class E, int SPLIT>
__device__ void advance(float (&S)[STEPS / 2][2][4], const frag (&state)[STEPS / 2],
                        slot<E, SPLIT> &s, int row0, int side) {
    const inputs<E> &in = s.in;
    shared_rows *const part = s.part[row0 / 16 % (STEPS / SPLIT)];
    const int lane = now((int)threadIdx.x % WARP);
    float x[2][4] = {}, y[2][4] = {}, u[2][4] = {};
    const auto v = a_of_turned(in.v, 0, row0);
    if (side) multiply(x, v, b_of_turned(in.ak, 0, 0));
#pragma unroll
    for (int j = 0; j < STEPS / 2; j++) {
        const int col = 16 * (2 * j + side);
        multiply(x, state[j], b_of_turned(in.a, 0, col), y, state[j], b_of_turned(in.r, 0, col));
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
        part[side].x[n][lane] = make_float4(x[n][0], x[n][1], x[n][2], x[n][3]);
    group_barrier(MEET, STEPS / SPLIT * 2 * WARP);
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const float4 other = part[!side].x[n][lane];
        x[n][0] += other.x, x[n][1] += other.y, x[n][2] += other.z, x[n][3] += other.w;
    }
    const frag k[] = {b_of(in.k, 0, 16 * side), b_of(in.k, 0, 16 * (2 + side))};
    multiply(S[0], v, k[0], S[1], v, k[1]);
    multiply(u, a_of_sum(x), b_of_turned(in.solve, 0, 0));
    const frag sums = a_of_sum(u), b[] = {b_of(in.b, 0, 16 * side), b_of(in.b, 0, 16 * (2 + side))};
    multiply(S[0], sums, b[0], S[1], sums, b[1]);
    if (side)
        multiply(y, sums, b_of_turned(in.rb, 0, 0));
    else
        multiply(y, v, b_of_turned(in.rk, 0, 0));
    scale(S, in.decay, side);
    __syncwarp(); // x was read
    each_of_sum([&](int n, int half, int row, int t) {
        part[!side].y[t][row] = y[n][2 * half];
        part[!side].y[t + 1][row] = y[n][2 * half + 1];
    });
}

// A warp's rows of the state's gradient, times decay, through a chunk: the sums that
// wkv7_chunk_bwd.cu makes too, in the same order.
template <class E> __device__ void retreat(rows_of_state &G, const inputs<E> &in, int row0) {
    float du[2][4] = {}, g[2][4] = {};
    const auto dy = a_of_turned(in.v, 0, row0);
#pragma unroll
    for (int j = 0; j < STEPS; j++) multiply(du, a_of_sum(G[j]), b_of_turned(in.a, 0, 16 * j));
    multiply(du, dy, b_of(in.rb, 0, 0));
    multiply(g, a_of_sum(du), b_of(in.solve, 0, 0));
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(G[j], dy, b_of(in.k, 0, 16 * j), G[j + 1], dy, b_of(in.k, 0, 16 * (j + 1)));
    const frag gamma = a_of_sum(g);
#pragma unroll
    for (int j = 0; j < STEPS; j += 2)
        multiply(G[j], gamma, b_of(in.b, 0, 16 * j), G[j + 1], gamma, b_of(in.b, 0, 16 * (j + 1)));
}

// y of a chunk's first tokens, the channels of this block, by a warp.
template <class E>
__device__ void put_out(const wkv7_args &a, size_t at, const slot<E, 1> &s, unsigned count) {
    enum { PIECE = 16 / sizeof(E), PIECES = N / PIECE };
    const unsigned lane = now(threadIdx.x & 31);
#pragma unroll
    for (int i = 0; i < T * PIECES; i += WARP) {
        const unsigned e = i + lane, t = e / PIECES, col = e % PIECES * PIECE;
        if (t < count) copy_piece((E *)a.y + at + t * a.C + col, &s.y[t][col]);
    }
}

// Four numbers of a row each.
template <class E, int SPLIT>
__device__ void put_out(const wkv7_args &a, size_t at, const slot<E, SPLIT> &s, unsigned count) {
    enum { COLS = N / SPLIT, PIECES = COLS / 4 };
    const unsigned lane = now(threadIdx.x & 31);
#pragma unroll
    for (int i = 0; i < T * PIECES; i += WARP) {
        const unsigned e = i + lane, t = e / PIECES, col = e % PIECES * 4;
        const shared_rows *const part = s.part[col / 16];
        const float4 x = *(const float4 *)&part[0].y[t][col % 16],
                     x2 = *(const float4 *)&part[1].y[t][col % 16];
        E *const to = (E *)a.y + at + t * a.C + blockIdx.x % SPLIT * COLS + col;
        if (t < count) put_four(to, make_float4(x.x + x2.x, x.y + x2.y, x.z + x2.z, x.w + x2.w));
    }
}

template <bool BACK, int SPLIT, int BACKS> struct shape {
    enum { SIDES = BACK ? 1 : sides<SPLIT> };
    enum { FRONT = STEPS / SPLIT * SIDES * WARP, ALL = FRONT + BACKS * WARP, BOTH = FRONT + WARP };
    enum { MADE = 1, DONE = MADE + BACKS };
    static_assert(DONE + BACKS <= MEET, "barriers there are");
};

// The chunks of a way, the i-th of `count`: forward, or backward those that end behind the first
// segment.
template <bool BACK> struct way {
    int chunks, count;

    __device__ way(const place &p, const wkv7_segments &cut)
        : chunks((p.len + T - 1) / T), count(BACK ? chunks - cut.chunks : chunks) {}
    __device__ int chunk(int i) const { return BACK ? chunks - 1 - i : i; }
};

template <bool BACK, bool TAIL, class E, int SPLIT, int BACKS>
__device__ void go_behind(slot<E, SPLIT> &s, int first, const wkv7_args &a, const place &p,
                          const way<BACK> &w) {
    typedef shape<BACK, SPLIT, BACKS> sh;
    const int part = (int)(blockIdx.x % SPLIT);
    const auto at = [&](int i) { return p.at + (size_t)w.chunk(i) * T * a.C; };
    const auto count = [&](int i) { return TAIL && p.len - i * T < T ? p.len - i * T : T; };
    const auto rows = [&](int i) { return chunk_rows<TAIL>(a, at(i), count(i)); };
    asked_rows<BACK, E> asked;
    if (first >= w.count) return;
    asked.load_decays(a, rows(first));
    asked.load_tokens(a, rows(first));
    for (int i = first;; i += BACKS) {
        if (i >= BACKS) {
            group_barrier(sh::DONE + first, sh::BOTH);
            if (!BACK) put_out(a, at(i - BACKS), s, count(i - BACKS));
        }
        if (i >= w.count) break;
        if (BACK) keep_inverse<BACK>(s.in.solve, a, at(i));
        prepare<BACK>(s.in, asked, a, rows(i), rows(i + BACKS < w.count ? i + BACKS : i));
        if (!BACK && a.saved && !part) keep_inverse<BACK>(s.in.solve, a, at(i));
        group_arrive(sh::MADE + first, sh::BOTH);
    }
}

template <bool TAIL, class E, int SPLIT, int BACKS>
__device__ void go_ahead(slot<E, SPLIT> *ring, int row0, int side, const wkv7_args &a,
                         const place &p, const way<false> &w) {
    typedef shape<false, SPLIT, BACKS> sh;
    enum { COUNT = STEPS / sh::SIDES };
    float S[COUNT][2][4] = {};
    if (p.in.at)
        each_of_rows(
            S, row0, [&](float &x, int at) { x = p.in.get((size_t)at); }, side);
    for (int c = 0, i = 0; c < w.count; c++, i = i + 1 < BACKS ? i + 1 : 0) {
        frag state[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; j++) state[j] = a_of_sum(S[j]);
        if (a.saved) keep(state, p.chunks + c * p.chunk_step, row0, side);
        group_barrier(sh::MADE + i, sh::BOTH);
        advance(S, state, ring[i], row0, side);
        group_arrive(sh::DONE + i, sh::BOTH);
        if (ends_cell(a.half, (c + 1) * T))
            each_of_rows(S, row0, [](float &x, int) { x = half_state(x); });
    }
    if (!p.out) return;
    const state_at out = out_of<!TAIL>(a, p);
    each_of_rows(
        S, row0, [&](float &x, int at) { out.put((size_t)at, x); }, side);
}

template <class E, int SPLIT, int BACKS>
__device__ void go_back(slot<E, SPLIT> *ring, int row0, const wkv7_args &a, const place &p,
                        const way<true> &w, const wkv7_segments &cut) {
    typedef shape<true, SPLIT, BACKS> sh;
    rows_of_state G = {};
    if (p.dout) each_of_rows(G, row0, [&](float &x, int at) { x = p.dout[at]; });
    for (int n = 0, i = 0; n < w.count; n++, i = i + 1 < BACKS ? i + 1 : 0) {
        const int c = w.chunk(n);
        group_barrier(sh::MADE + i, sh::BOTH);
        scale(G, ring[i].in.decay);
        retreat(G, ring[i].in, row0);
        group_arrive(sh::DONE + i, sh::BOTH);
        if (c % cut.chunks) continue;
        float *to = end_of(cut, a, blockIdx.x / SPLIT, c / cut.chunks - 1);
        each_of_rows(G, row0, [&](float &x, int at) { to[at] = x; });
    }
}

template <bool BACK, bool TAIL, class E, int SPLIT, int BACKS, int BLOCKS>
__global__ void __launch_bounds__(shape<BACK, SPLIT, BACKS>::ALL, BLOCKS)
    through(wkv7_args a, wkv7_segments cut) {
    begin_kernel();
    SHARED_BYTES(bytes);
    slot<E, SPLIT> *ring = (slot<E, SPLIT> *)bytes;
    const place p = place_of<!TAIL>(a, blockIdx.x / SPLIT);
    if (!p.len) return;
    const way<BACK> w(p, cut);
    typedef shape<BACK, SPLIT, BACKS> sh;
    const int warp = (int)threadIdx.x / WARP, fronts = sh::FRONT / WARP;
    const int row0 = 16 * ((int)(blockIdx.x % SPLIT) * (STEPS / SPLIT) + warp / sh::SIDES);
    if (warp >= fronts)
        go_behind<BACK, TAIL, E, SPLIT, BACKS>(ring[warp - fronts], warp - fronts, a, p, w);
    else if constexpr (BACK)
        go_back<E, SPLIT, BACKS>(ring, row0, a, p, w, cut);
    else
        go_ahead<TAIL, E, SPLIT, BACKS>(ring, row0, warp % sh::SIDES, a, p, w);
}

template <bool BACK, bool TAIL, class E, int SPLIT, int BACKS, int BLOCKS>
void start(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    launch_with(q, through<BACK, TAIL, E, SPLIT, BACKS, BLOCKS>, dim3(a.H * SPLIT, a.spans),
                shape<BACK, SPLIT, BACKS>::ALL, BACKS * sizeof(slot<E, SPLIT>), a, cut);
}

// Blocks that share a head, so that each multiprocessor has one; 0: there are more heads than
// these.
int sharers(const wkv7_args &a) {
    const int most = processors() / (a.spans * a.H);
    return most < 4 ? most : 4;
}

// Whether a block has room for ALONE backs, as Hopper's.
template <class E> bool has_room() {
    return most_shared() >= ALONE * sizeof(slot<E, 2>);
}

// Whether a span's last chunk has less than its tokens.
bool has_tails(const wkv7_args &a) {
    bool tails = false;
    for (int i = 0; i < 64; i++) tails |= (a.remainders >> i & 1) && in_chunks(a, i) % T;
    return tails;
}

// MOST: backs that two blocks of a multiprocessor of Hopper's have room for. Others have less.
template <bool TAIL, class E, int MOST> void start_forward(struct queue *q, const wkv7_args &a) {
    const wkv7_segments whole = {};
    const int share = sharers(a);
    if (!has_room<E>())
        start<false, TAIL, E, 1, LEAST, splits<E> ? 1 : 2>(q, a, whole);
    else if (share == 4)
        start<false, TAIL, E, 4, ALONE, 1>(q, a, whole);
    else if (share >= 2)
        start<false, TAIL, E, 2, ALONE, 1>(q, a, whole);
    else if (share)
        start<false, TAIL, E, 1, ALONE, 1>(q, a, whole);
    else
        start<false, TAIL, E, 1, MOST, 2>(q, a, whole);
}

template <class E> void start_ends(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    if (!has_room<E>())
        start<true, false, E, 2, LEAST, 1>(q, a, cut);
    else if (sharers(a) >= 2)
        start<true, false, E, 2, ALONE, 1>(q, a, cut);
    else
        start<true, false, E, 1, ALONE, 1>(q, a, cut);
}

} // namespace

void wkv7_chunk_forward(struct queue *q, const wkv7_args &a) {
    const bool tails = has_tails(a);
    if (a.narrow)
        tails ? start_forward<true, uint16_t, 4>(q, a) : start_forward<false, uint16_t, 4>(q, a);
    else
        tails ? start_forward<true, float, 3>(q, a) : start_forward<false, float, 3>(q, a);
}

void wkv7_chunk_ends(struct queue *q, const wkv7_args &a, wkv7_segments cut) {
    if (a.narrow)
        start_ends<uint16_t>(q, a, cut);
    else
        start_ends<float>(q, a, cut);
}
