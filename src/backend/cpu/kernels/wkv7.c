// The recurrence and its gradient, one head of one span at a time; each state is 16 KiB at N = 64
// and stays in the first-level cache. Everything runs along contiguous vectors, never across one:
// the forward pass keeps Sᵀ (key-major: s = S a and y = S r add up whole columns), the backward
// pass S, G and Gᵀ. States inside a chunk are recomputed forward from the chunk's first one, so
// nothing is ever divided by the decay (the official kernel steps back instead, and loses up to
// 1/w^16).
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

static void add_to(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void transpose(float *restrict out, const float *restrict in, size_t N) {
    for (size_t i = 0; i < N; i += 8) // tiles: both sides stay in a few cache lines
        for (size_t j = 0; j < N; j++)
            for (size_t l = 0; l < 8; l++) out[j * N + i + l] = in[(i + l) * N + j];
}

static void decays(float *restrict w, const float *restrict omega, size_t N) {
    for (size_t j = 0; j < N; j++) w[j] = exp_f(-c0 * sigmoid_f(omega[j]));
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

// T is Sᵀ: [key j][value i]. y and s receive N values each.
INLINE void token_forward(float *y, float *s, float *T, const struct token x, size_t N, int V) {
    for (size_t i = 0; i < N; i += (size_t)(V * LANES)) {
        vf sum[MAX_V] = {0}, out[MAX_V] = {0}, v[MAX_V];
        for (size_t j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) sum[l] += load(T + j * N + i + l * LANES) * x.a[j];
        load_block(v, x.v + i, V);
        for (size_t j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                float *at = T + j * N + i + l * LANES;
                const vf S = load(at) * x.w[j] + (sum[l] * x.b[j] + v[l] * x.k[j]);
                store(at, S);
                out[l] += S * x.r[j];
            }
        store_block(s + i, sum, V);
        store_block(y + i, out, V);
    }
}

INLINE void forward(float *y, float *state, float *chunks, float *s_out, const float *r,
                    const float *u, size_t plane, size_t step, size_t len, size_t N, int V,
                    float *scratch) {
    float *T = scratch, *w = T + N * N, *s = w + N;
    transpose(T, state, N);
    for (size_t t = 0; t < len; t++) {
        if (chunks && t % WKV_CHUNK == 0) transpose(chunks + t / WKV_CHUNK * N * N, T, N);
        const float *ut = u + t * step;
        decays(w, ut + U_W * plane, N);
        token_forward(y + t * step, s_out ? s_out + t * step : s, T,
                      token_at(r + t * step, ut, w, plane), N, V);
    }
    transpose(state, T, N);
}

// S_t from S_{t-1}, value-major, with s = S_{t-1} a known.
INLINE void token_replay(float *to, const float *from, const float *s, const struct token x,
                         size_t N, int V) {
    for (size_t j = 0; j < N; j += (size_t)(V * LANES)) {
        vf w[MAX_V], k[MAX_V], b[MAX_V];
        load_block(w, x.w + j, V);
        load_block(k, x.k + j, V);
        load_block(b, x.b + j, V);
        for (size_t i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                const size_t at = i * N + j + (size_t)(l * LANES);
                store(to + at, load(from + at) * w[l] + (b[l] * s[i] + k[l] * x.v[i]));
            }
    }
}

// Gradients of one token, N values each.
struct token_grads {
    float *dr, *dw, *dk, *dv, *da, *db, *ds;
};

// G and T hold ∂ℓ/∂S_t and its transpose on entry, ∂ℓ/∂S_{t-1} on return; P and S are the states
// before and after the token.
INLINE void token_backward(struct token_grads d, float *G, float *T, const float *P, const float *S,
                           const float *dy, const float *s, const struct token x, size_t N, int V) {
    for (size_t i = 0; i < N; i += (size_t)(V * LANES)) {
        vf dv[MAX_V] = {0}, ds[MAX_V] = {0}, gy[MAX_V];
        load_block(gy, dy + i, V);
        for (size_t j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                float *at = T + j * N + i + l * LANES;
                const vf g = load(at) + gy[l] * x.r[j];
                store(at, g);
                dv[l] += g * x.k[j];
                ds[l] += g * x.b[j];
            }
        for (size_t j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                float *at = T + j * N + i + l * LANES;
                store(at, load(at) * x.w[j] + ds[l] * x.a[j]);
            }
        store_block(d.dv + i, dv, V);
        store_block(d.ds + i, ds, V);
    }
    for (size_t j = 0; j < N; j += (size_t)(V * LANES)) {
        vf dr[MAX_V] = {0}, dw[MAX_V] = {0}, dk[MAX_V] = {0}, da[MAX_V] = {0}, db[MAX_V] = {0};
        for (size_t i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int l = 0; l < V; l++) {
                const size_t col = j + (size_t)(l * LANES), at = i * N + col;
                const vf p = load(P + at), g = load(G + at) + load(x.r + col) * dy[i];
                dr[l] += load(S + at) * dy[i];
                dw[l] += g * p;
                dk[l] += g * x.v[i];
                db[l] += g * s[i];
                da[l] += p * d.ds[i];
                store(G + at, g * load(x.w + col) + load(x.a + col) * d.ds[i]);
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
    for (size_t j = 0; j < N; j++) domega[j] = -c0 * dw[j] * w[j] * gate_f(omega[j]).slope;
}

INLINE void backward(float *dr, float *du, float *dstate, const float *dy, const float *chunks,
                     const float *s, const float *r, const float *u, size_t plane, size_t step,
                     size_t len, size_t N, int V, float *scratch) {
    float *T = scratch, *w = T + N * N, *sums = w + WKV_CHUNK * N, *states = sums + 7 * N;
    const struct token_grads d = {.dr = sums,
                                  .dw = sums + N,
                                  .dk = sums + 2 * N,
                                  .dv = sums + 3 * N,
                                  .da = sums + 4 * N,
                                  .db = sums + 5 * N,
                                  .ds = sums + 6 * N};
    transpose(T, dstate, N);
    for (size_t c = (len + WKV_CHUNK - 1) / WKV_CHUNK; c-- > 0;) {
        const size_t first = c * WKV_CHUNK;
        const size_t tokens = len - first < WKV_CHUNK ? len - first : WKV_CHUNK;
        memcpy(states, chunks + c * N * N, N * N * sizeof *states);
        for (size_t n = 0; n < tokens; n++) {
            const size_t at = (first + n) * step;
            decays(w + n * N, u + at + U_W * plane, N);
            token_replay(states + (n + 1) * N * N, states + n * N * N, s + at,
                         token_at(r + at, u + at, w + n * N, plane), N, V);
        }
        for (size_t n = tokens; n-- > 0;) {
            const size_t at = (first + n) * step;
            token_backward(d, dstate, T, states + n * N * N, states + (n + 1) * N * N, dy + at,
                           s + at, token_at(r + at, u + at, w + n * N, plane), N, V);
            add_to(dr + at, d.dr, N);
            add_to(du + at + U_K * plane, d.dk, N);
            add_to(du + at + U_V * plane, d.dv, N);
            memcpy(du + at + U_A * plane, d.da, N * sizeof *d.da);
            memcpy(du + at + U_B * plane, d.db, N * sizeof *d.db);
            decay_bwd(du + at + U_W * plane, d.dw, w + n * N, u + at + U_W * plane, N);
        }
    }
}

// The head size of every official model gets code of its own. Other sizes are multiples of 16.
enum { NARROW = 16 / LANES };

static void wkv7_forward(float *y, float *state, float *chunks, float *s, const float *r,
                         const float *u, size_t plane, size_t step, size_t len, size_t N,
                         float *scratch) {
    if (N == 64)
        forward(y, state, chunks, s, r, u, plane, step, len, 64, MAX_V, scratch);
    else
        forward(y, state, chunks, s, r, u, plane, step, len, N, NARROW, scratch);
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
