// Row kernels: norms, token-shift mixes, gates, readout, loss, optimizer. The compiler vectorises
// the plain loops; sums go through vectors of partial sums, added up in a fixed tree.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"
#include "backend/ops.h"
#include "base/half.h"

static const float c_read_eps = 64e-5f;

// Σ a·b·c; b and c may be NULL (ones).
INLINE float sum3(const float *a, const float *b, const float *c, size_t n) {
    vf acc = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf t = load(a + i);
        if (b) t *= load(b + i);
        if (c) t *= load(c + i);
        acc += t;
    }
    float sum = sum_lanes(acc);
    for (; i < n; i++) sum += a[i] * (b ? b[i] : 1.0f) * (c ? c[i] : 1.0f);
    return sum;
}

// The mean is counted from the first number on: that of equal numbers is exact, and numbers close
// together lose nothing to their distance from zero.
INLINE void moments(const float *x, size_t n, float eps, float *mean, float *scale) {
    vf acc = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) acc += load(x + i) - x[0];
    float sum = sum_lanes(acc);
    for (; i < n; i++) sum += x[i] - x[0];
    const float mu = x[0] + sum / (float)n;
    acc = (vf){0};
    for (i = 0; i + LANES <= n; i += LANES) {
        const vf d = load(x + i) - mu;
        acc += d * d;
    }
    float square = sum_lanes(acc);
    for (; i < n; i++) square += (x[i] - mu) * (x[i] - mu);
    *mean = mu;
    *scale = 1.0f / sqrtf(square / (float)n + eps);
}

static void norm(float *y, const float *x, const float *w, const float *b, size_t C, float eps) {
    float mean, scale;
    moments(x, C, eps, &mean, &scale);
    for (size_t c = 0; c < C; c++) y[c] = (x[c] - mean) * scale * w[c] + b[c];
}

static void norm_bwd(float *dx, float *part, const float *dy, const float *x, const float *w,
                     const float *add, size_t C, float eps) {
    float mean, scale;
    float *restrict dw = part, *restrict db = part + C;
    moments(x, C, eps, &mean, &scale);
    for (size_t c = 0; c < C; c++) {
        dw[c] += dy[c] * ((x[c] - mean) * scale);
        db[c] += dy[c];
    }
    const float mean_e = sum3(dy, w, NULL, C) / (float)C;
    // Σ e x̂ = s (Σ e x - mean Σ e) would cancel; sum the products themselves.
    vf acc = {0};
    size_t i = 0;
    for (; i + LANES <= C; i += LANES)
        acc += load(dy + i) * load(w + i) * ((load(x + i) - mean) * scale);
    float sum = sum_lanes(acc);
    for (; i < C; i++) sum += dy[i] * w[i] * ((x[i] - mean) * scale);
    const float mean_ex = sum / (float)C;
    for (size_t c = 0; c < C; c++) {
        const float xhat = (x[c] - mean) * scale;
        const float d = scale * (dy[c] * w[c] - mean_e - xhat * mean_ex);
        dx[c] = add ? add[c] + d : d;
    }
}

INLINE void add_some(float *p, vf x, size_t n) {
    store_some(p, load_some(p, n) + x, n);
}

// The n mixes of w ≤ LANES channels; the row and the one before it are read once for all of them.
INLINE void mix_some(float *m, const float *z, const float *before, const float *mix, size_t n,
                     size_t plane, size_t C, size_t w) {
    const vf now = load_some(z, w), d = (before ? load_some(before, w) : (vf){0}) - now;
    for (size_t i = 0; i < n; i++)
        store_some(m + i * plane, now + d * load_some(mix + i * C, w), w);
}

static void mix(float *m, const float *z, const float *before, const float *mix, size_t n,
                size_t plane, size_t C) {
    size_t c = 0;
    for (; c + LANES <= C; c += LANES)
        mix_some(m + c, z + c, before ? before + c : NULL, mix + c, n, plane, C, LANES);
    if (c < C) mix_some(m + c, z + c, before ? before + c : NULL, mix + c, n, plane, C, C - c);
}

INLINE void mix_bwd_some(float *dz, float *part, const float *dm, const float *dm_next,
                         const float *z, const float *before, const float *mix, size_t n,
                         size_t plane, size_t C, size_t w) {
    const vf d = (before ? load_some(before, w) : (vf){0}) - load_some(z, w);
    vf sum = {0};
    for (size_t i = 0; i < n; i++) {
        const vf g = load_some(dm + i * plane, w), x = load_some(mix + i * C, w);
        sum += g * (1.0f - x);
        if (dm_next) sum += load_some(dm_next + i * plane, w) * x;
        add_some(part + i * C, g * d, w);
    }
    store_some(dz, sum, w);
}

static void mix_bwd(float *dz, float *part, const float *dm, const float *dm_next, const float *z,
                    const float *before, const float *mix, size_t n, size_t plane, size_t C) {
    size_t c = 0;
    for (; c + LANES <= C; c += LANES)
        mix_bwd_some(dz + c, part + c, dm + c, dm_next ? dm_next + c : NULL, z + c,
                     before ? before + c : NULL, mix + c, n, plane, C, LANES);
    if (c < C)
        mix_bwd_some(dz + c, part + c, dm + c, dm_next ? dm_next + c : NULL, z + c,
                     before ? before + c : NULL, mix + c, n, plane, C, C - c);
}

// y = f(x) of n ≤ LANES numbers.
INLINE void act_some(float *y, const float *at, size_t n, int f) {
    const vf x = load_some(at, n);
    store_some(y, f == ACT_TANH ? tanh_v(x) : sigmoid_v(x), n);
}

static void act(float *y, const float *x, size_t n, int f) {
    size_t i = 0;
    if (f == ACT_RELU2)
        for (; i < n; i++) {
            const float v = x[i] > 0 ? x[i] : 0;
            y[i] = v * v;
        }
    else if (f == ACT_TANH)
        for (; i + LANES <= n; i += LANES) act_some(y + i, x + i, LANES, ACT_TANH);
    else
        for (; i + LANES <= n; i += LANES) act_some(y + i, x + i, LANES, ACT_SIGMOID);
    if (i < n) act_some(y + i, x + i, n - i, f);
}

// n ≤ LANES of them.
INLINE vf finished(const float *acc, const float *add, size_t n, int f) {
    const vf x = add ? load_some(add, n) + load_some(acc, n) : load_some(acc, n);
    const vf positive = choose(x > 0.0f, x, (vf){0});
    return f == ACT_NONE      ? x
           : f == ACT_RELU2   ? positive * positive
           : f == ACT_SIGMOID ? sigmoid_v(x)
                              : tanh_v(x);
}

INLINE void finish_as(float *y, const float *acc, const float *add, size_t n, int f) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(y + i, finished(acc + i, add ? add + i : NULL, LANES, f));
    if (i < n) store_some(y + i, finished(acc + i, add ? add + i : NULL, n - i, f), n - i);
}

static void finish(float *y, const float *acc, const float *add, size_t n, int f) {
    switch (f) {
    case ACT_TANH: finish_as(y, acc, add, n, ACT_TANH); break;
    case ACT_SIGMOID: finish_as(y, acc, add, n, ACT_SIGMOID); break;
    case ACT_RELU2: finish_as(y, acc, add, n, ACT_RELU2); break;
    default: finish_as(y, acc, add, n, ACT_NONE);
    }
}

static void act_bwd(float *dx, const float *dy, const float *y, size_t n, int f) {
    if (f == ACT_TANH)
        for (size_t i = 0; i < n; i++) dx[i] = dy[i] * (1.0f - y[i] * y[i]);
    else if (f == ACT_SIGMOID)
        for (size_t i = 0; i < n; i++) dx[i] = dy[i] * (y[i] * (1.0f - y[i]));
    else
        for (size_t i = 0; i < n; i++) dx[i] = dy[i] * (2.0f * sqrtf(y[i]));
}

static void add(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void widen(float *restrict y, const uint16_t *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = bf16_to_f32(x[i]);
}

static void narrow(uint16_t *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = f32_to_bf16(x[i]);
}

static float read_all(const float *x, size_t n) {
    vf acc[4] = {0};
    for (size_t i = 0; i + 64 <= n; i += 64) {
        for (int l = 0; l < 64; l += 16) __builtin_prefetch(x + i + 2048 + l);
        for (size_t l = 0; l < 64; l += LANES) acc[l / LANES % 4] += load(x + i + l);
    }
    return sum_lanes(acc[0] + acc[1] + acc[2] + acc[3]);
}

static void scale_by(float *y, size_t n, float s) {
    for (size_t i = 0; i < n; i++) y[i] *= s;
}

static double sumsq(const float *x, size_t n) {
    double acc[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) acc[l] += (double)x[i + l] * (double)x[i + l];
    double sum = 0;
    for (int l = 0; l < 16; l++) sum += acc[l];
    for (; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void adamw(float *restrict p, float *restrict m, float *restrict v, const float *restrict g,
                  size_t n, const struct adamw_constants *k) {
    const struct adamw_constants c = *k;
    for (size_t i = 0; i < n; i++) {
        const float grad = g[i] * c.factor;
        m[i] = c.b1 * m[i] + c.e1 * grad;
        v[i] = c.b2 * v[i] + c.e2 * (grad * grad);
        p[i] -= c.lr * (m[i] * c.c1 / (sqrtf(v[i] * c.c2) + c.eps) + c.wd * p[i]);
    }
}

// ---- time mix ----------------------------------------------------------------------------------

INLINE float key_norm(const float *k, const float *k_k, size_t N) {
    vf acc = {0};
    size_t i = 0;
    for (; i + LANES <= N; i += LANES) {
        const vf t = load(k + i) * load(k_k + i);
        acc += t * t;
    }
    float sum = sum_lanes(acc);
    for (; i < N; i++) sum += k[i] * k_k[i] * (k[i] * k_k[i]);
    const float n = sqrtf(sum);
    return n > 1e-12f ? n : 1e-12f;
}

// The arrays of one row that key_prep and its gradient go through, all at channel 0.
struct key_row {
    const float *k, *v, *v_first, *lw, *la, *lv; // the row's inputs
    const float *w0, *a0, *v0, *k_k, *k_a;       // parameters
};

INLINE struct key_row key_row(const float *rkv, const float *lora, const float *v_first,
                              const float *vecs, size_t plane, size_t C) {
    return (struct key_row){.k = rkv + RKV_K * plane,
                            .v = rkv + RKV_V * plane,
                            .v_first = v_first,
                            .lw = lora + LORA_W * plane,
                            .la = lora + LORA_A * plane,
                            .lv = lora + LORA_V * plane,
                            .w0 = vecs + KEY_W0 * C,
                            .a0 = vecs + KEY_A0 * C,
                            .v0 = vecs + KEY_V0 * C,
                            .k_k = vecs + KEY_KK * C,
                            .k_a = vecs + KEY_KA * C};
}

// n ≤ LANES channels, from c on, of a head whose 1/‖κ̃‖ is `inverse`.
INLINE void key_some(float *u, const struct key_row *x, size_t plane, size_t c, size_t n,
                     float inverse) {
    const vf k = load_some(x->k + c, n), k_a = load_some(x->k_a + c, n);
    const vf a = sigmoid_v(load_some(x->a0 + c, n) + load_some(x->la + c, n));
    const vf kappa = k * load_some(x->k_k + c, n) * inverse;
    vf v = load_some(x->v + c, n);
    if (x->v_first)
        v += (load_some(x->v_first + c, n) - v) *
             sigmoid_v(load_some(x->v0 + c, n) + load_some(x->lv + c, n));
    u += c;
    store_some(u + U_W * plane, load_some(x->w0 + c, n) + load_some(x->lw + c, n), n);
    store_some(u + U_K * plane, k * (1.0f + (a - 1.0f) * k_a), n);
    store_some(u + U_V * plane, v, n);
    store_some(u + U_A * plane, -kappa, n);
    store_some(u + U_B * plane, kappa * a, n);
}

static void key_prep(float *u, const float *rkv, const float *lora, const float *v_first,
                     const float *vecs, size_t plane, size_t C, size_t N) {
    const struct key_row x = key_row(rkv, lora, v_first, vecs, plane, C);
    for (size_t h = 0; h < C; h += N) {
        const float inverse = 1.0f / key_norm(x.k + h, x.k_k + h, N);
        size_t c = h;
        for (; c + LANES <= h + N; c += LANES) key_some(u, &x, plane, c, LANES, inverse);
        if (c < h + N) key_some(u, &x, plane, c, h + N - c, inverse);
    }
}

// What the gradient reads and writes besides.
struct key_grads {
    const float *dw, *dk, *dv, *da, *db;           // of u
    float *dk0, *dv0, *dv_first, *dlw, *dla, *dlv; // = but dv_first +=
    float *pw0, *pa0, *pv0, *pkk, *pka;            // +=
};

// A share of κ · dκ.
INLINE vf along_some(const struct key_row *x, const struct key_grads *d, size_t c, size_t n,
                     float inverse) {
    const vf a = sigmoid_v(load_some(x->a0 + c, n) + load_some(x->la + c, n));
    return load_some(x->k + c, n) * load_some(x->k_k + c, n) * inverse *
           (load_some(d->db + c, n) * a - load_some(d->da + c, n));
}

INLINE void key_bwd_some(const struct key_row *x, const struct key_grads *d, size_t c, size_t n,
                         float inverse, float along) {
    const struct gate gate = gate_v(load_some(x->a0 + c, n) + load_some(x->la + c, n));
    const vf a = gate.value, k = load_some(x->k + c, n), k_k = load_some(x->k_k + c, n);
    const vf k_a = load_some(x->k_a + c, n), kappa = k * k_k * inverse;
    const vf dw = load_some(d->dw + c, n), dk = load_some(d->dk + c, n);
    const vf db = load_some(d->db + c, n);
    const vf dtilde = (db * a - load_some(d->da + c, n) - kappa * along) * inverse;
    const vf dlogit = (db * kappa + dk * k * k_a) * gate.slope;
    store_some(d->dk0 + c, dtilde * k_k + dk * (1.0f + (a - 1.0f) * k_a), n);
    store_some(d->dlw + c, dw, n);
    store_some(d->dla + c, dlogit, n);
    add_some(d->pw0 + c, dw, n);
    add_some(d->pa0 + c, dlogit, n);
    add_some(d->pkk + c, dtilde * k, n);
    add_some(d->pka + c, dk * k * (a - 1.0f), n);
}

INLINE void value_bwd_some(const struct key_row *x, const struct key_grads *d, size_t c, size_t n) {
    const struct gate gate = gate_v(load_some(x->v0 + c, n) + load_some(x->lv + c, n));
    const vf dv = load_some(d->dv + c, n);
    const vf dlogit = dv * (load_some(x->v_first + c, n) - load_some(x->v + c, n)) * gate.slope;
    add_some(d->dv_first + c, dv * gate.value, n);
    store_some(d->dv0 + c, dv * (1.0f - gate.value), n);
    store_some(d->dlv + c, dlogit, n);
    add_some(d->pv0 + c, dlogit, n);
}

static void key_prep_bwd(float *drkv, float *dlora, float *dv_first, float *part, const float *du,
                         const float *rkv, const float *lora, const float *v_first,
                         const float *vecs, size_t plane, size_t C, size_t N) {
    const struct key_row x = key_row(rkv, lora, v_first, vecs, plane, C);
    const struct key_grads d = {.dw = du + U_W * plane,
                                .dk = du + U_K * plane,
                                .dv = du + U_V * plane,
                                .da = du + U_A * plane,
                                .db = du + U_B * plane,
                                .dk0 = drkv + RKV_K * plane,
                                .dv0 = drkv + RKV_V * plane,
                                .dv_first = dv_first,
                                .dlw = dlora + LORA_W * plane,
                                .dla = dlora + LORA_A * plane,
                                .dlv = dlora + LORA_V * plane,
                                .pw0 = part + KEY_W0 * C,
                                .pa0 = part + KEY_A0 * C,
                                .pv0 = part + KEY_V0 * C,
                                .pkk = part + KEY_KK * C,
                                .pka = part + KEY_KA * C};
    for (size_t h = 0; h < C; h += N) {
        const float norm = key_norm(x.k + h, x.k_k + h, N), inverse = 1.0f / norm;
        float along = 0; // under the floor of 1e-12 the norm is a constant
        size_t c = h;
        if (norm > 1e-12f) {
            vf sum = {0};
            for (; c + LANES <= h + N; c += LANES) sum += along_some(&x, &d, c, LANES, inverse);
            if (c < h + N) sum += along_some(&x, &d, c, h + N - c, inverse);
            along = sum_lanes(sum);
        }
        for (c = h; c + LANES <= h + N; c += LANES) key_bwd_some(&x, &d, c, LANES, inverse, along);
        if (c < h + N) key_bwd_some(&x, &d, c, h + N - c, inverse, along);
    }
    if (!v_first) {
        memcpy(d.dv0, d.dv, C * sizeof *d.dv0);
        memset(d.dlv, 0, C * sizeof *d.dlv);
        return;
    }
    size_t c = 0;
    for (; c + LANES <= C; c += LANES) value_bwd_some(&x, &d, c, LANES);
    if (c < C) value_bwd_some(&x, &d, c, C - c);
}

static void readout(float *restrict o, const float *restrict y, const float *restrict r,
                    const float *restrict u, const float *restrict g, const float *restrict vecs,
                    size_t plane, size_t C, size_t N) {
    const float *weight = vecs + READ_WEIGHT * C, *bias = vecs + READ_BIAS * C,
                *r_k = vecs + READ_RK * C, *k = u + U_K * plane, *v = u + U_V * plane;
    for (size_t h = 0; h < C; h += N) {
        float mean, scale;
        moments(y + h, N, c_read_eps, &mean, &scale);
        const float beta = sum3(r + h, k + h, r_k + h, N);
        for (size_t c = h; c < h + N; c++)
            o[c] = ((y[c] - mean) * scale * weight[c] + bias[c] + beta * v[c]) * g[c];
    }
}

// What readout_bwd goes through, all at channel 0 of a row.
struct read_row {
    const float *d_o, *y, *r, *k, *v, *g; // given
    const float *weight, *bias, *r_k;     // parameters
    float *dy, *dr, *dk, *dv, *dg;        // wanted, =
    float *pw, *pb, *prk;                 // +=
};

// First pass over a head: what needs no sums, and shares of the three sums: e, e x̂ and ∂ℓ/∂β.
INLINE void read_bwd_first(const struct read_row *x, vf sum[3], size_t c, size_t n, float mean,
                           float scale, float beta) {
    const vf d_o = load_some(x->d_o + c, n), v = load_some(x->v + c, n);
    const vf weight = load_some(x->weight + c, n), gated = d_o * load_some(x->g + c, n);
    const vf xhat = (load_some(x->y + c, n) - mean) * scale, e = gated * weight;
    store_some(x->dg + c, d_o * (xhat * weight + load_some(x->bias + c, n) + beta * v), n);
    store_some(x->dv + c, beta * gated, n);
    add_some(x->pw + c, gated * xhat, n);
    add_some(x->pb + c, gated, n);
    store_some(x->dy + c, e, n); // finished in the second pass
    sum[0] += e;
    sum[1] += e * xhat;
    sum[2] += gated * v;
}

INLINE void read_bwd_second(const struct read_row *x, size_t c, size_t n, float mean, float scale,
                            float mean_e, float mean_ex, float dbeta) {
    const vf xhat = (load_some(x->y + c, n) - mean) * scale, e = load_some(x->dy + c, n);
    const vf r = load_some(x->r + c, n), k = load_some(x->k + c, n);
    const vf r_k = load_some(x->r_k + c, n);
    store_some(x->dy + c, scale * (e - mean_e - xhat * mean_ex), n);
    store_some(x->dr + c, dbeta * k * r_k, n);
    store_some(x->dk + c, dbeta * r * r_k, n);
    add_some(x->prk + c, dbeta * r * k, n);
}

static void readout_bwd(float *dy, float *dr, float *du, float *dg, float *part, const float *d_o,
                        const float *y, const float *r, const float *u, const float *g,
                        const float *vecs, size_t plane, size_t C, size_t N) {
    const struct read_row x = {.d_o = d_o,
                               .y = y,
                               .r = r,
                               .k = u + U_K * plane,
                               .v = u + U_V * plane,
                               .g = g,
                               .weight = vecs + READ_WEIGHT * C,
                               .bias = vecs + READ_BIAS * C,
                               .r_k = vecs + READ_RK * C,
                               .dy = dy,
                               .dr = dr,
                               .dk = du + U_K * plane,
                               .dv = du + U_V * plane,
                               .dg = dg,
                               .pw = part + READ_WEIGHT * C,
                               .pb = part + READ_BIAS * C,
                               .prk = part + READ_RK * C};
    for (size_t h = 0; h < C; h += N) {
        float mean, scale;
        moments(y + h, N, c_read_eps, &mean, &scale);
        const float beta = sum3(r + h, x.k + h, x.r_k + h, N);
        vf sum[3] = {0};
        size_t c = h;
        for (; c + LANES <= h + N; c += LANES) read_bwd_first(&x, sum, c, LANES, mean, scale, beta);
        // Lanes beyond the head are 0 in d_o, so they add nothing to the sums.
        if (c < h + N) read_bwd_first(&x, sum, c, h + N - c, mean, scale, beta);
        const float mean_e = sum_lanes(sum[0]) / (float)N, mean_ex = sum_lanes(sum[1]) / (float)N;
        const float dbeta = sum_lanes(sum[2]);
        for (c = h; c + LANES <= h + N; c += LANES)
            read_bwd_second(&x, c, LANES, mean, scale, mean_e, mean_ex, dbeta);
        if (c < h + N) read_bwd_second(&x, c, h + N - c, mean, scale, mean_e, mean_ex, dbeta);
    }
}

// ---- loss and sampling -------------------------------------------------------------------------

static size_t argmax(const float *x, size_t n) {
    float best[16];
    size_t i = 0;
    for (int l = 0; l < 16; l++) best[l] = -INFINITY;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) best[l] = x[i + l] > best[l] ? x[i + l] : best[l];
    float max = -INFINITY;
    for (int l = 0; l < 16; l++) max = best[l] > max ? best[l] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (i = 0; i < n; i++)
        if (x[i] == max) return i;
    return 0; // all NaN
}

static void exp_shifted(float *p, const float *x, size_t n, float max, float inverse_temperature) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(p + i, exp_v((load(x + i) - max) * inverse_temperature));
    if (i < n)
        store_some(p + i, exp_v((load_some(x + i, n - i) - max) * inverse_temperature), n - i);
}

// Σ exp(x - max), in blocks so that a float never holds more than 256 terms.
INLINE double sum_exp(const float *x, size_t n, float max) {
    double total = 0;
    size_t i = 0;
    while (i + LANES <= n) {
        const size_t end = n - i < 256 * LANES ? n : i + 256 * LANES;
        vf sum = {0};
        for (; i + LANES <= end; i += LANES) sum += exp_v(load(x + i) - max);
        total += (double)sum_lanes(sum);
    }
    float rest[LANES];
    store(rest, exp_v(load_some(x + i, n - i) - max));
    for (size_t l = 0; l < n - i; l++) total += (double)rest[l];
    return total;
}

INLINE void softmax_some(float *g, const float *x, size_t n, float max, float factor) {
    store_some(g, exp_v(load_some(x, n) - max) * factor, n);
}

static float xent(float *g, const float *x, size_t V, int32_t target, float scale, bool l2wrap) {
    const size_t best = argmax(x, V);
    const float max = x[best];
    const double sum = sum_exp(x, V, max);
    const float loss = target < 0 ? 0 : (float)((double)max + log(sum) - (double)x[target]);
    if (!g) return loss;
    if (target < 0) {
        memset(g, 0, V * sizeof *g);
        return loss;
    }
    const float factor = (float)((double)scale / sum);
    size_t i = 0;
    for (; i + LANES <= V; i += LANES) softmax_some(g + i, x + i, LANES, max, factor);
    if (i < V) softmax_some(g + i, x + i, V - i, max, factor);
    g[target] -= scale;
    if (l2wrap) g[best] += 1e-4f * max * scale;
    return loss;
}

const struct row_kernels LEVEL(row_kernels) = {
    .read = read_all,
    .finish = finish,
    .norm = norm,
    .norm_bwd = norm_bwd,
    .mix = mix,
    .mix_bwd = mix_bwd,
    .act = act,
    .act_bwd = act_bwd,
    .add = add,
    .scale = scale_by,
    .widen = widen,
    .narrow = narrow,
    .sumsq = sumsq,
    .adamw = adamw,
    .key_prep = key_prep,
    .key_prep_bwd = key_prep_bwd,
    .readout = readout,
    .readout_bwd = readout_bwd,
    .xent = xent,
    .exp_shifted = exp_shifted,
    .argmax = argmax,
};
