// The recurrence and its gradient, one head of one span at a time; each state is 16 KiB at N = 64.
// The forward pass keeps Sᵀ (key-major: s = S a and y = S r add up whole columns); the backward
// pass keeps S and its gradient G value-major, so that all sums but two run along contiguous
// vectors, and those two (G k and G b) are gathered LANES rows at a time. States inside a chunk are
// recomputed forward from the chunk's first one, so nothing is ever divided by the decay (the
// official kernel steps back instead, and loses up to 1/w^16).
//
// At N = 64 with AVX-512 a token takes 5·256 vector operations forward and 15·256 backward. On Zen
// 4 at 3.5 GHz, one such operation a cycle, that is 0.36 and 1.1 µs; measured 0.47 and 1.41 (tokens
// 768 bytes apart), 0.54 and 1.72 (3072 bytes apart: rows and saved states come from memory). What
// it had cost: scalar transposes of the saved states 0.13 forward; a second copy Gᵀ for G k and G
// b, and S_t read for dr, 0.15 backward (512-bit stores take two cycles, a second state does not
// fit into the first-level cache); broadcasts from memory in every operation, 0.1 backward.
// Prefetching in the backward pass changed nothing.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"
#include "backend/ops.h"

static const float c0 = 0.6065306597126334f; // e^(-1/2)

// Loops run over blocks of V vectors of the contiguous index; V is a constant at every call, so the
// sums of a block stay in registers while the other index runs.
enum { MAX_V = 4 };

INLINE void load_block(vf out[MAX_V], const float *p, int V) {
#pragma GCC unroll 4
    for (int l = 0; l < V; l++) out[l] = load(p + l * LANES);
}

INLINE void store_block(float *p, const vf in[MAX_V], int V) {
#pragma GCC unroll 4
    for (int l = 0; l < V; l++) store(p + l * LANES, in[l]);
}

// A token's rows lie a stride apart that no prefetcher follows.
INLINE void fetch_token(const float *r, const float *u, size_t plane, size_t N) {
    for (size_t c = 0; c < N; c += 16) {
        __builtin_prefetch(r + c);
        for (size_t p = 0; p < U_COUNT; p++) __builtin_prefetch(u + p * plane + c);
    }
}

static void add_to(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void transpose(float *restrict out, const float *restrict in, size_t N) {
    for (size_t i = 0; i < N; i += LANES)
        for (size_t j = 0; j < N; j += LANES) {
            vf square[LANES];
#pragma GCC unroll 16
            for (size_t l = 0; l < LANES; l++) square[l] = load(in + (i + l) * N + j);
            transpose_square(square);
#pragma GCC unroll 16
            for (size_t l = 0; l < LANES; l++) store(out + (j + l) * N + i, square[l]);
        }
}

static void decays(float *restrict w, const float *restrict omega, size_t N) {
    for (size_t j = 0; j < N; j += LANES) store(w + j, exp_v(-c0 * sigmoid_v(load(omega + j))));
}

// What one token brings, at the head's channels.
struct token {
    const float *r, *w, *k, *v, *a, *b; // w is the decay itself
};

static struct token token_at(const float *r, const float *u, const float *w, size_t plane) {
    return (struct token){.r = r,
                          .w = w,
                          .k = u + U_K * plane,
                          .v = u + U_V * plane,
                          .a = u + U_A * plane,
                          .b = u + U_B * plane};
}

// T is Sᵀ: [key j][value i]. y and s receive N values each. Of a sequence's first token T comes
// from far away.
enum { T_AHEAD = 8 };

INLINE void token_forward(float *y, float *s, float *T, const struct token x, size_t N, int V,
                          bool far) {
    for (size_t i = 0; i < N; i += (size_t)(V * LANES)) {
        vf sum[MAX_V] = {0}, out[MAX_V] = {0}, v[MAX_V];
        for (size_t j = 0; j < N; j++) {
            const vf aj = splat(x.a[j]);
            for (int l = 0; far && l < V * LANES; l += 16)
                __builtin_prefetch(T + (j + T_AHEAD) * N + i + l);
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) sum[l] += load(T + j * N + i + l * LANES) * aj;
        }
        load_block(v, x.v + i, V);
        for (size_t j = 0; j < N; j++) {
            const vf wj = splat(x.w[j]), bj = splat(x.b[j]), kj = splat(x.k[j]), rj = splat(x.r[j]);
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                float *at = T + j * N + i + l * LANES;
                const vf S = load(at) * wj + (sum[l] * bj + v[l] * kj);
                store(at, S);
                out[l] += S * rj;
            }
        }
        store_block(s + i, sum, V);
        store_block(y + i, out, V);
    }
}

INLINE void forward(float *y, float *T, float *chunks, float *s_out, const float *r, const float *u,
                    size_t plane, size_t step, size_t len, size_t N, int V, float *scratch) {
    float *w = scratch, *s = w + N;
    for (size_t t = 0; t < len; t++) {
        if (t + 2 < len) fetch_token(r + (t + 2) * step, u + (t + 2) * step, plane, N);
        if (chunks && t % WKV_CHUNK == 0) transpose(chunks + t / WKV_CHUNK * N * N, T, N);
        const float *ut = u + t * step;
        decays(w, ut + U_W * plane, N);
        const struct token x = token_at(r + t * step, ut, w, plane);
        float *st = s_out ? s_out + t * step : s;
        if (t)
            token_forward(y + t * step, st, T, x, N, V, false);
        else
            token_forward(y, st, T, x, N, V, true);
    }
}

// S_t from S_{t-1}, value-major, with s = S_{t-1} a known.
INLINE void token_replay(float *to, const float *from, const float *s, const struct token x,
                         size_t N, int V) {
    for (size_t j = 0; j < N; j += (size_t)(V * LANES)) {
        vf w[MAX_V], k[MAX_V], b[MAX_V];
        load_block(w, x.w + j, V);
        load_block(k, x.k + j, V);
        load_block(b, x.b + j, V);
        for (size_t i = 0; i < N; i++) {
            const vf si = splat(s[i]), value = splat(x.v[i]);
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                const size_t at = i * N + j + (size_t)(l * LANES);
                store(to + at, load(from + at) * w[l] + (b[l] * si + k[l] * value));
            }
        }
    }
}

// Gradients of one token, N values each.
struct token_grads {
    float *dr, *dw, *dk, *dv, *da, *db, *ds;
};

// dv = G k and ds = G b for G = ∂ℓ/∂S_t, which is G here plus dy rᵀ: sums along the rows.
INLINE void row_sums(struct token_grads d, const float *G, const float *dy, const struct token x,
                     size_t N, int V) {
    for (size_t i = 0; i < N; i += LANES) {
        vf dv[LANES], ds[LANES];
        for (size_t j = 0; j < N; j += (size_t)(V * LANES)) {
            vf r[MAX_V], k[MAX_V], b[MAX_V];
            load_block(r, x.r + j, V);
            load_block(k, x.k + j, V);
            load_block(b, x.b + j, V);
            for (size_t n = 0; n < LANES; n++) {
                vf v = {0}, s = {0};
#pragma GCC unroll 4
                for (int l = 0; l < V; l++) {
                    const vf g = load(G + (i + n) * N + j + (size_t)(l * LANES)) + r[l] * dy[i + n];
                    v += g * k[l];
                    s += g * b[l];
                }
                dv[n] = j ? dv[n] + v : v;
                ds[n] = j ? ds[n] + s : s;
            }
        }
        store(d.dv + i, sum_rows(dv));
        store(d.ds + i, sum_rows(ds));
    }
}

// G holds ∂ℓ/∂S_t without this token's dy rᵀ on entry, ∂ℓ/∂S_{t-1} on return; P is the state before
// the token. dr = S_tᵀ dy is formed from P too: S_t = P diag(w) + s bᵀ + v kᵀ.
INLINE void token_backward(struct token_grads d, float *restrict G, const float *P, const float *dy,
                           const float *s, const struct token x, size_t N, int V) {
    row_sums(d, G, dy, x, N, V);
    vf along_s = {0}, along_v = {0};
    for (size_t i = 0; i < N; i += LANES) {
        along_s += load(s + i) * load(dy + i);
        along_v += load(x.v + i) * load(dy + i);
    }
    const float s_dy = sum_lanes(along_s), v_dy = sum_lanes(along_v);
    for (size_t j = 0; j < N; j += (size_t)(V * LANES)) {
        vf dr[MAX_V] = {0}, dw[MAX_V] = {0}, dk[MAX_V] = {0}, da[MAX_V] = {0}, db[MAX_V] = {0};
        for (size_t i = 0; i < N; i++) {
            const vf dyi = splat(dy[i]), dsi = splat(d.ds[i]), value = splat(x.v[i]),
                     si = splat(s[i]);
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                const size_t col = j + (size_t)(l * LANES), at = i * N + col;
                const vf p = load(P + at), g = load(G + at) + load(x.r + col) * dyi;
                dr[l] += p * dyi;
                dw[l] += g * p;
                dk[l] += g * value;
                db[l] += g * si;
                da[l] += p * dsi;
                store(G + at, g * load(x.w + col) + load(x.a + col) * dsi);
            }
        }
#pragma GCC unroll 4
        for (int l = 0; l < V; l++) {
            const size_t col = j + (size_t)(l * LANES);
            dr[l] = dr[l] * load(x.w + col) + load(x.b + col) * s_dy + load(x.k + col) * v_dy;
        }
        store_block(d.dr + j, dr, V);
        store_block(d.dw + j, dw, V);
        store_block(d.dk + j, dk, V);
        store_block(d.da + j, da, V);
        store_block(d.db + j, db, V);
    }
}

// ∂ℓ/∂ω from ∂ℓ/∂w: w = exp(-c₀ σ(ω)).
static void decay_bwd(float *restrict domega, const float *restrict dw, const float *restrict w,
                      const float *restrict omega, size_t N) {
    for (size_t j = 0; j < N; j += LANES)
        store(domega + j, -c0 * load(dw + j) * load(w + j) * gate_v(load(omega + j)).slope);
}

INLINE void backward(float *dr, float *du, float *dstate, const float *dy, const float *chunks,
                     const float *s, const float *r, const float *u, size_t plane, size_t step,
                     size_t len, size_t N, int V, float *scratch) {
    float *w = scratch, *sums = w + WKV_CHUNK * N, *states = sums + 7 * N;
    float *G = states + WKV_CHUNK * N * N;
    transpose(G, dstate, N);
    const struct token_grads d = {.dr = sums,
                                  .dw = sums + N,
                                  .dk = sums + 2 * N,
                                  .dv = sums + 3 * N,
                                  .da = sums + 4 * N,
                                  .db = sums + 5 * N,
                                  .ds = sums + 6 * N};
    for (size_t c = (len + WKV_CHUNK - 1) / WKV_CHUNK; c-- > 0;) {
        const size_t first = c * WKV_CHUNK;
        const size_t tokens = len - first < WKV_CHUNK ? len - first : WKV_CHUNK;
        memcpy(states, chunks + c * N * N, N * N * sizeof *states);
        for (size_t n = 0; n < tokens; n++) {
            const size_t at = (first + n) * step;
            decays(w + n * N, u + at + U_W * plane, N);
            if (n + 1 < tokens)
                token_replay(states + (n + 1) * N * N, states + n * N * N, s + at,
                             token_at(r + at, u + at, w + n * N, plane), N, V);
        }
        for (size_t n = tokens; n-- > 0;) {
            const size_t at = (first + n) * step;
            token_backward(d, G, states + n * N * N, dy + at, s + at,
                           token_at(r + at, u + at, w + n * N, plane), N, V);
            add_to(dr + at, d.dr, N);
            add_to(du + at + U_K * plane, d.dk, N);
            add_to(du + at + U_V * plane, d.dv, N);
            memcpy(du + at + U_A * plane, d.da, N * sizeof *d.da);
            memcpy(du + at + U_B * plane, d.db, N * sizeof *d.db);
            decay_bwd(du + at + U_W * plane, d.dw, w + n * N, u + at + U_W * plane, N);
        }
    }
    transpose(dstate, G, N);
}

// The head size of every official model gets code of its own. Other sizes are multiples of 16.
enum { NARROW = 16 / LANES };

static void wkv7_forward(float *y, float *T, float *chunks, float *s, const float *r,
                         const float *u, size_t plane, size_t step, size_t len, size_t N,
                         float *scratch) {
    if (N == 64)
        forward(y, T, chunks, s, r, u, plane, step, len, 64, MAX_V, scratch);
    else
        forward(y, T, chunks, s, r, u, plane, step, len, N, NARROW, scratch);
}

static void wkv7_backward(float *dr, float *du, float *dstate, const float *dy, const float *chunks,
                          const float *s, const float *r, const float *u, size_t plane, size_t step,
                          size_t len, size_t N, float *scratch) {
    if (N == 64)
        backward(dr, du, dstate, dy, chunks, s, r, u, plane, step, len, 64, MAX_V, scratch);
    else
        backward(dr, du, dstate, dy, chunks, s, r, u, plane, step, len, N, NARROW, scratch);
}

const struct wkv7_kernels LEVEL(wkv7_kernels) = {.forward = wkv7_forward,
                                                 .backward = wkv7_backward};
