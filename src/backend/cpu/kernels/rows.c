// Row kernels: norms, token-shift mixes, gates, readout, loss, optimizer. The compiler vectorises
// the plain loops; sums go through vectors of partial sums, added up in a fixed tree.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"
#include "backend/ops.h"

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

static void mix(float *restrict m, const float *z, const float *before, const float *x, size_t C) {
    if (before)
        for (size_t c = 0; c < C; c++) m[c] = z[c] + (before[c] - z[c]) * x[c];
    else
        for (size_t c = 0; c < C; c++) m[c] = z[c] - z[c] * x[c];
}

static void mix_bwd(float *restrict dz, float *restrict part, const float *dm, const float *dm_next,
                    const float *z, const float *before, const float *x, size_t C) {
    for (size_t c = 0; c < C; c++) dz[c] += dm[c] * (1.0f - x[c]);
    if (dm_next)
        for (size_t c = 0; c < C; c++) dz[c] += dm_next[c] * x[c];
    if (before)
        for (size_t c = 0; c < C; c++) part[c] += dm[c] * (before[c] - z[c]);
    else
        for (size_t c = 0; c < C; c++) part[c] -= dm[c] * z[c];
}

static void act(float *y, const float *x, size_t n, int f) {
    if (f == ACT_TANH)
        for (size_t i = 0; i < n; i++) y[i] = tanh_f(x[i]);
    else if (f == ACT_SIGMOID)
        for (size_t i = 0; i < n; i++) y[i] = sigmoid_f(x[i]);
    else
        for (size_t i = 0; i < n; i++) {
            const float v = x[i] > 0 ? x[i] : 0;
            y[i] = v * v;
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

static void key_prep(float *restrict u, const float *restrict rkv, const float *restrict lora,
                     const float *restrict v_first, const float *restrict vecs, size_t plane,
                     size_t C, size_t N) {
    const float *w0 = vecs + KEY_W0 * C, *a0 = vecs + KEY_A0 * C, *v0 = vecs + KEY_V0 * C,
                *k_k = vecs + KEY_KK * C, *k_a = vecs + KEY_KA * C;
    const float *k = rkv + RKV_K * plane, *v = rkv + RKV_V * plane;
    const float *lw = lora + LORA_W * plane, *la = lora + LORA_A * plane,
                *lv = lora + LORA_V * plane;
    float *uw = u + U_W * plane, *uk = u + U_K * plane, *uv = u + U_V * plane,
          *ua = u + U_A * plane, *ub = u + U_B * plane;
    for (size_t h = 0; h < C; h += N) {
        const float inverse = 1.0f / key_norm(k + h, k_k + h, N);
        for (size_t c = h; c < h + N; c++) {
            const float a = sigmoid_f(a0[c] + la[c]), kappa = k[c] * k_k[c] * inverse;
            uw[c] = w0[c] + lw[c];
            uk[c] = k[c] * (1.0f + (a - 1.0f) * k_a[c]);
            ua[c] = -kappa;
            ub[c] = kappa * a;
        }
    }
    if (v_first)
        for (size_t c = 0; c < C; c++)
            uv[c] = v[c] + (v_first[c] - v[c]) * sigmoid_f(v0[c] + lv[c]);
    else
        memcpy(uv, v, C * sizeof *uv);
}

static void key_prep_bwd(float *restrict drkv, float *restrict dlora, float *restrict dv_first,
                         float *restrict part, const float *restrict du, const float *restrict rkv,
                         const float *restrict lora, const float *restrict v_first,
                         const float *restrict vecs, size_t plane, size_t C, size_t N) {
    const float *a0 = vecs + KEY_A0 * C, *v0 = vecs + KEY_V0 * C, *k_k = vecs + KEY_KK * C,
                *k_a = vecs + KEY_KA * C;
    const float *k = rkv + RKV_K * plane, *v = rkv + RKV_V * plane;
    const float *la = lora + LORA_A * plane, *lv = lora + LORA_V * plane;
    const float *dw = du + U_W * plane, *dk = du + U_K * plane, *dv = du + U_V * plane,
                *da = du + U_A * plane, *db = du + U_B * plane;
    float *dk0 = drkv + RKV_K * plane, *dv0 = drkv + RKV_V * plane, *dlw = dlora + LORA_W * plane,
          *dla = dlora + LORA_A * plane, *dlv = dlora + LORA_V * plane;
    float *pw0 = part + KEY_W0 * C, *pa0 = part + KEY_A0 * C, *pv0 = part + KEY_V0 * C,
          *pkk = part + KEY_KK * C, *pka = part + KEY_KA * C;
    for (size_t h = 0; h < C; h += N) {
        const float n = key_norm(k + h, k_k + h, N), inverse = 1.0f / n;
        float along = 0; // κ · dκ; under the floor of 1e-12 the norm is a constant
        if (n > 1e-12f) {
            float t[16] = {0};
            for (size_t c = h; c < h + N; c++)
                t[c & 15] += k[c] * k_k[c] * inverse * (db[c] * sigmoid_f(a0[c] + la[c]) - da[c]);
            for (int l = 0; l < 16; l++) along += t[l];
        }
        for (size_t c = h; c < h + N; c++) {
            const struct gate gate = gate_f(a0[c] + la[c]);
            const float a = gate.value, kappa = k[c] * k_k[c] * inverse;
            const float dtilde = (db[c] * a - da[c] - kappa * along) * inverse;
            const float dlogit = (db[c] * kappa + dk[c] * k[c] * k_a[c]) * gate.slope;
            dk0[c] = dtilde * k_k[c] + dk[c] * (1.0f + (a - 1.0f) * k_a[c]);
            dlw[c] = dw[c];
            dla[c] = dlogit;
            pw0[c] += dw[c];
            pa0[c] += dlogit;
            pkk[c] += dtilde * k[c];
            pka[c] += dk[c] * k[c] * (a - 1.0f);
        }
    }
    if (!v_first) {
        memcpy(dv0, dv, C * sizeof *dv0);
        memset(dlv, 0, C * sizeof *dlv);
        return;
    }
    for (size_t c = 0; c < C; c++) {
        const struct gate gate = gate_f(v0[c] + lv[c]);
        const float dlogit = dv[c] * (v_first[c] - v[c]) * gate.slope;
        dv_first[c] += dv[c] * gate.value;
        dv0[c] = dv[c] * (1.0f - gate.value);
        dlv[c] = dlogit;
        pv0[c] += dlogit;
    }
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

static void readout_bwd(float *restrict dy, float *restrict dr, float *restrict du,
                        float *restrict dg, float *restrict part, const float *restrict d_o,
                        const float *restrict y, const float *restrict r, const float *restrict u,
                        const float *restrict g, const float *restrict vecs, size_t plane, size_t C,
                        size_t N) {
    const float *weight = vecs + READ_WEIGHT * C, *bias = vecs + READ_BIAS * C,
                *r_k = vecs + READ_RK * C, *k = u + U_K * plane, *v = u + U_V * plane;
    float *dk = du + U_K * plane, *dv = du + U_V * plane;
    float *pw = part + READ_WEIGHT * C, *pb = part + READ_BIAS * C, *prk = part + READ_RK * C;
    for (size_t h = 0; h < C; h += N) {
        float mean, scale;
        moments(y + h, N, c_read_eps, &mean, &scale);
        const float beta = sum3(r + h, k + h, r_k + h, N);
        float t[3][16] = {0}; // partial sums of e, e x̂ and ∂ℓ/∂β
        for (size_t c = h; c < h + N; c++) {
            const float xhat = (y[c] - mean) * scale, gated = d_o[c] * g[c];
            dg[c] = d_o[c] * (xhat * weight[c] + bias[c] + beta * v[c]);
            dv[c] = beta * gated;
            pw[c] += gated * xhat;
            pb[c] += gated;
            dy[c] = gated * weight[c]; // e, finished below
        }
        for (size_t c = h; c < h + N; c++) {
            t[0][c & 15] += dy[c];
            t[1][c & 15] += dy[c] * ((y[c] - mean) * scale);
            t[2][c & 15] += d_o[c] * g[c] * v[c];
        }
        float sum[3] = {0};
        for (int i = 0; i < 3; i++)
            for (int l = 0; l < 16; l++) sum[i] += t[i][l];
        const float mean_e = sum[0] / (float)N, mean_ex = sum[1] / (float)N, dbeta = sum[2];
        for (size_t c = h; c < h + N; c++) {
            dy[c] = scale * (dy[c] - mean_e - (y[c] - mean) * scale * mean_ex);
            dr[c] = dbeta * k[c] * r_k[c];
            dk[c] = dbeta * r[c] * r_k[c];
            prk[c] += dbeta * r[c] * k[c];
        }
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
    for (size_t i = 0; i < n; i++) p[i] = exp_f((x[i] - max) * inverse_temperature);
}

// Σ exp(x - max), in blocks so that a float accumulator never holds more than 256 terms.
INLINE double sum_exp(const float *x, size_t n, float max) {
    double total = 0;
    for (size_t i = 0; i < n; i += 4096) {
        const size_t end = n - i < 4096 ? n - i : 4096;
        float t[16] = {0};
        size_t j = 0;
        for (; j + 16 <= end; j += 16)
            for (int l = 0; l < 16; l++) t[l] += exp_f(x[i + j + l] - max);
        for (; j < end; j++) t[0] += exp_f(x[i + j] - max);
        for (int l = 0; l < 16; l++) total += (double)t[l];
    }
    return total;
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
    for (size_t i = 0; i < V; i++) g[i] = exp_f(x[i] - max) * factor;
    g[target] -= scale;
    if (l2wrap) g[best] += 1e-4f * max * scale;
    return loss;
}

const struct row_kernels LEVEL(row_kernels) = {
    .norm = norm,
    .norm_bwd = norm_bwd,
    .mix = mix,
    .mix_bwd = mix_bwd,
    .act = act,
    .act_bwd = act_bwd,
    .add = add,
    .scale = scale_by,
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
