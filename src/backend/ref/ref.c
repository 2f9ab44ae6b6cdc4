// One text, compiled with REF_f32 and with REF_f64; see ref.h. Sums are in double in both.
#include "backend/ref/ref.h"

#include "backend/host.h"
#include "backend/ops.h"
#include "backend/quant.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef REF_f32
typedef float real;
#define REAL_TYPE DT_F32
#define REF_NAME  "ref"
#define REF_OPEN  ref_f32_open
#else
typedef double real;
#define REAL_TYPE DT_F64
#define REF_NAME  "ref64"
#define REF_OPEN  ref_f64_open
#endif

static const double c0 = 0.6065306597126334; // e^(-1/2)

static real *data(struct tensor t) {
    return tensor_host(t);
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

// ---- rows --------------------------------------------------------------------------------------

static void ref_embed(struct backend *be, struct tensor y, struct tensor tokens,
                      struct tensor drawn, struct tensor table) {
    (void)be;
    const size_t C = y.dim[1], size = dtype_size(table.dtype);
    const int32_t *token = tensor_host(tokens), *later = tensor_host(drawn);
    for (size_t r = 0; r < y.dim[0]; r++) {
        assert(token[r] >= 0 || (size_t)(-1 - token[r]) < drawn.dim[0]);
        const int32_t id = token[r] < 0 ? later[-1 - token[r]] : token[r];
        assert(id >= 0 && (size_t)id < table.dim[0]);
        const char *row = (const char *)tensor_host(table) + (size_t)id * C * size;
        dtype_convert(data(y) + r * C, REAL_TYPE, row, table.dtype, C);
    }
}

static void ref_embed_bwd(struct backend *be, struct tensor dtable, struct tensor dy,
                          struct tensor tokens, struct tensor order) {
    (void)be, (void)order;
    const size_t C = dy.dim[1];
    const int32_t *token = tensor_host(tokens);
    for (size_t r = 0; r < dy.dim[0]; r++)
        for (size_t c = 0; c < C; c++)
            data(dtable)[(size_t)token[r] * C + c] += data(dy)[r * C + c];
}

static void ref_gather_rows(struct backend *be, struct tensor y, struct tensor x,
                            struct tensor rows) {
    (void)be;
    const size_t C = x.dim[1];
    const int32_t *row = tensor_host(rows);
    for (size_t o = 0; o < y.dim[0]; o++)
        memcpy(data(y) + o * C, data(x) + (size_t)row[o] * C, C * sizeof(real));
}

// Mean and 1/√(var+ε) of n numbers; two passes. Counted from the first number on, so that the mean
// of equal numbers is that number and what is left of them is zero, not rounding times 1/√ε.
static void moments(const real *x, size_t n, double eps, double *mean, double *scale) {
    double sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] - (double)x[0];
    *mean = (double)x[0] + sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)x[i] - *mean;
        square += d * d;
    }
    *scale = 1 / sqrt(square / (double)n + eps);
}

static void ref_norm(struct backend *be, struct tensor y, struct tensor x, struct tensor w,
                     struct tensor b, double eps) {
    (void)be;
    const size_t C = x.dim[1];
    for (size_t r = 0; r < x.dim[0]; r++) {
        const real *xr = data(x) + r * C;
        real *yr = data(y) + r * C;
        double mean, scale;
        moments(xr, C, eps, &mean, &scale);
        for (size_t c = 0; c < C; c++)
            yr[c] =
                (real)(((double)xr[c] - mean) * scale * (double)data(w)[c] + (double)data(b)[c]);
    }
}

// One normalised group: given e = ∂ℓ/∂x̂, dx = s(e - mean e - x̂ mean(e x̂)).
static void normalise_bwd(double *dx, const double *e, const real *x, size_t n, double mean,
                          double scale) {
    double sum_e = 0, sum_ex = 0;
    for (size_t i = 0; i < n; i++) {
        sum_e += e[i];
        sum_ex += e[i] * ((double)x[i] - mean) * scale;
    }
    for (size_t i = 0; i < n; i++)
        dx[i] =
            scale * (e[i] - sum_e / (double)n - ((double)x[i] - mean) * scale * sum_ex / (double)n);
}

static void ref_norm_bwd(struct backend *be, struct tensor dx, struct tensor dw, struct tensor db,
                         struct tensor dy, struct tensor x, struct tensor w, double eps,
                         struct tensor add) {
    (void)be;
    const size_t C = x.dim[1];
    double *e = mem_alloc(2 * C * sizeof *e), *d = e + C;
    for (size_t r = 0; r < x.dim[0]; r++) {
        const real *xr = data(x) + r * C, *g = data(dy) + r * C;
        double mean, scale;
        moments(xr, C, eps, &mean, &scale);
        for (size_t c = 0; c < C; c++) {
            e[c] = (double)g[c] * (double)data(w)[c];
            data(dw)[c] += (real)((double)g[c] * ((double)xr[c] - mean) * scale);
            data(db)[c] += g[c];
        }
        normalise_bwd(d, e, xr, C, mean, scale);
        for (size_t c = 0; c < C; c++)
            data(dx)[r * C + c] =
                (real)(d[c] + (tensor_is(add) ? (double)data(add)[r * C + c] : 0));
    }
    free(e);
}

// ---- token shift -------------------------------------------------------------------------------

// The row before row r of its sequence; NULL stands for zeros.
static const real *previous(struct tensor z, struct tensor shift_in, const struct batch *b,
                            size_t r) {
    const size_t C = z.dim[1];
    const int32_t p = ((const int32_t *)tensor_host(b->prev))[r];
    if (p >= 0) return data(z) + (size_t)p * C;
    return tensor_is(shift_in) ? data(shift_in) + (size_t)(-1 - p) * C : NULL;
}

static void ref_shift_mix(struct backend *be, struct tensor m, struct tensor shift_out,
                          struct tensor z, struct tensor shift_in, struct tensor mix,
                          const struct batch *b) {
    (void)be;
    const size_t R = z.dim[0], C = z.dim[1];
    for (size_t n = 0; n < mix.dim[0]; n++)
        for (size_t r = 0; r < R; r++) {
            const real *zr = data(z) + r * C, *before = previous(z, shift_in, b, r);
            for (size_t c = 0; c < C; c++) {
                const real d = (before ? before[c] : 0) - zr[c];
                data(m)[(n * R + r) * C + c] = zr[c] + d * data(mix)[n * C + c];
            }
        }
    const int32_t *last = tensor_host(b->last);
    for (size_t r = 0; tensor_is(shift_out) && r < R; r++)
        if (last[r] >= 0)
            memcpy(data(shift_out) + (size_t)last[r] * C, data(z) + r * C, C * sizeof(real));
}

static void ref_shift_mix_bwd(struct backend *be, struct tensor dz, struct tensor dmix,
                              struct tensor dm, struct tensor z, struct tensor shift_in,
                              struct tensor mix, const struct batch *b) {
    (void)be;
    const size_t R = z.dim[0], C = z.dim[1];
    const int32_t *prev = tensor_host(b->prev);
    memset(data(dz), 0, tensor_bytes(dz));
    for (size_t n = 0; n < mix.dim[0]; n++)
        for (size_t r = 0; r < R; r++) {
            const real *zr = data(z) + r * C, *before = previous(z, shift_in, b, r);
            for (size_t c = 0; c < C; c++) {
                const real g = data(dm)[(n * R + r) * C + c], x = data(mix)[n * C + c];
                data(dz)[r * C + c] += g * (1 - x);
                if (prev[r] >= 0) data(dz)[(size_t)prev[r] * C + c] += g * x;
                data(dmix)[n * C + c] += g * ((before ? before[c] : 0) - zr[c]);
            }
        }
}

// ---- matrices ----------------------------------------------------------------------------------

struct ref_weight {
    struct weight base;
    real *value; // (in, out), rounded to the stored type
};

static bool is_integer(const struct weight *w) {
    return w->precision.stored == DT_INT8 || w->precision.stored == DT_INT4;
}

// Column o of value as quantised blocks give it back.
static void round_column(struct ref_weight *w, size_t o) {
    const enum dtype t = w->base.precision.stored;
    const size_t group = quant_group(t), out = w->base.out;
    for (size_t k = 0; k < w->base.in; k += group) {
        float x[QUANT_MAX_GROUP] = {0};
        uint8_t q[QUANT_MAX_GROUP];
        const size_t n = w->base.in - k < group ? w->base.in - k : group;
        for (size_t i = 0; i < n; i++) x[i] = (float)w->value[(k + i) * out + o];
        const float scale = quant_weights(q, x, group, t);
        for (size_t i = 0; i < n; i++)
            w->value[(k + i) * out + o] = (real)(scale * (float)(q[i] - quant_zero(t)));
    }
}

static void ref_weight_refresh(struct backend *be, struct weight *w, struct tensor src) {
    (void)be;
    const size_t n = w->in * w->out;
    const enum dtype stored = is_integer(w) ? REAL_TYPE : w->precision.stored;
    void *rounded = mem_alloc(n * 8);
    real *plain = mem_alloc(n * sizeof(real));
    dtype_convert(rounded, stored, tensor_host(src), src.dtype, n);
    dtype_convert(plain, REAL_TYPE, rounded, stored, n);
    real *value = ((struct ref_weight *)w)->value;
    for (size_t k = 0; k < w->in; k++)
        for (size_t o = 0; o < w->out; o++)
            value[k * w->out + o] =
                w->layout == WEIGHT_OUT_IN ? plain[o * w->in + k] : plain[k * w->out + o];
    for (size_t o = 0; is_integer(w) && o < w->out; o++) round_column((struct ref_weight *)w, o);
    free(rounded);
    free(plain);
}

static struct weight *ref_weight_create(struct backend *be, struct tensor src,
                                        struct tensor rounded, enum weight_layout layout,
                                        struct precision precision, bool trained) {
    (void)rounded;
    struct ref_weight *w = mem_zero(1, sizeof *w);
    const bool oi = layout == WEIGHT_OUT_IN;
    w->base = (struct weight){.be = be,
                              .in = src.dim[oi ? 1 : 0],
                              .out = src.dim[oi ? 0 : 1],
                              .precision = precision,
                              .layout = layout,
                              .trained = trained};
    w->value = mem_zero(w->base.in * w->base.out, sizeof(real));
    ref_weight_refresh(be, &w->base, src);
    return &w->base;
}

static void ref_weight_destroy(struct weight *w) {
    free(((struct ref_weight *)w)->value);
    free(w);
}

static size_t ref_weight_bytes(const struct backend *be, size_t rows, size_t cols,
                               struct precision precision, bool trained) {
    (void)be, (void)precision, (void)trained;
    return rows * cols * sizeof(real);
}

// n numbers as the weight takes its inputs.
static void round_inputs(real *out, const real *x, size_t n, const struct weight *w) {
    const size_t group = quant_group(w->precision.stored);
    if (!is_integer(w)) {
        const bool narrow = w->precision.inputs == DT_BF16;
        for (size_t i = 0; i < n; i++)
            out[i] = narrow ? (real)bf16_to_f32(f32_to_bf16((float)x[i])) : x[i];
        return;
    }
    for (size_t at = 0; at < n; at += group) {
        float part[QUANT_MAX_GROUP] = {0};
        int8_t q[QUANT_MAX_GROUP];
        const size_t len = n - at < group ? n - at : group;
        for (size_t i = 0; i < len; i++) part[i] = (float)x[at + i];
        const float scale = quant_inputs(q, part, group);
        for (size_t i = 0; i < len; i++) out[at + i] = (real)(scale * (float)q[i]);
    }
}

// All rows, rounded; the caller frees them.
static real *rounded_rows(struct tensor x, const struct weight *w) {
    real *out = mem_alloc(tensor_count(x) * sizeof(real));
    for (size_t r = 0; r < x.dim[0]; r++)
        round_inputs(out + r * x.dim[1], data(x) + r * x.dim[1], x.dim[1], w);
    return out;
}

static double activate(double x, enum act f) {
    switch (f) {
    case ACT_TANH: return tanh(x);
    case ACT_SIGMOID: return sigmoid(x);
    case ACT_RELU2: return x > 0 ? x * x : 0;
    default: return x;
    }
}

static double slope(double y, enum act f) { // f'(x) from y = f(x)
    return f == ACT_TANH ? 1 - y * y : f == ACT_SIGMOID ? y * (1 - y) : 2 * sqrt(y);
}

static void product_of(const struct product *p) {
    const struct weight *w = p->w;
    const real *value = ((const struct ref_weight *)w)->value;
    real *x = rounded_rows(p->x, w);
    for (size_t r = 0; r < p->x.dim[0]; r++)
        for (size_t o = 0; o < w->out; o++) {
            double sum = 0;
            for (size_t k = 0; k < w->in; k++)
                sum += (double)x[r * w->in + k] * (double)value[k * w->out + o];
            const size_t at = r * w->out + o;
            const double add = tensor_is(p->add) ? (double)data(p->add)[at] : 0;
            data(p->y)[at] = (real)activate(add + sum, p->act);
        }
    free(x);
}

static void ref_matmul(struct backend *be, const struct product *products, int n) {
    (void)be;
    for (int i = 0; i < n; i++) product_of(&products[i]);
}

static void input_grad_of(const struct input_grad *p) {
    const struct weight *w = p->w;
    const real *value = ((const struct ref_weight *)w)->value;
    real *g = rounded_rows(p->dy, w);
    for (size_t r = 0; r < p->dy.dim[0]; r++)
        for (size_t k = 0; k < w->in; k++) {
            double sum = 0;
            for (size_t o = 0; o < w->out; o++)
                sum += (double)g[r * w->out + o] * (double)value[k * w->out + o];
            const size_t at = r * w->in + k;
            if (tensor_is(p->y))
                sum *= slope((double)data(p->y)[at], p->act);
            else if (tensor_is(p->add))
                sum += (double)data(p->add)[at];
            data(p->dx)[at] = (real)sum;
        }
    free(g);
}

static void ref_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n) {
    (void)be;
    for (int i = 0; i < n; i++) input_grad_of(&grads[i]);
}

static void weight_grad_of(const struct weight_grad *p) {
    const size_t R = p->x.dim[0], K = p->w->in, O = p->w->out;
    real *in = rounded_rows(p->x, p->w), *g = rounded_rows(p->dy, p->w);
    for (size_t o = 0; o < O; o++)
        for (size_t k = 0; k < K; k++) {
            double sum = 0;
            for (size_t r = 0; r < R; r++) sum += (double)g[r * O + o] * (double)in[r * K + k];
            real *to = &data(p->dw)[p->w->layout == WEIGHT_OUT_IN ? o * K + k : k * O + o];
            *to = (p->more ? *to : 0) + (real)sum;
        }
    free(in);
    free(g);
}

static void ref_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n) {
    (void)be;
    for (int i = 0; i < n; i++) weight_grad_of(&grads[i]);
}

static void ref_act(struct backend *be, struct tensor y, struct tensor x, enum act f) {
    (void)be;
    for (size_t i = 0; i < tensor_count(x); i++) data(y)[i] = (real)activate((double)data(x)[i], f);
}

static void ref_act_bwd(struct backend *be, struct tensor dx, struct tensor dy, struct tensor y,
                        enum act f) {
    (void)be;
    for (size_t i = 0; i < tensor_count(y); i++)
        data(dx)[i] = (real)((double)data(dy)[i] * slope((double)data(y)[i], f));
}

// ---- time mix ----------------------------------------------------------------------------------

// Pointer to row r of plane p of an (n,R,C) tensor.
static real *plane(struct tensor t, size_t p, size_t r) {
    return data(t) + (p * t.dim[1] + r) * t.dim[2];
}

static double key_norm(const real *k, const real *kk, size_t N) {
    double sum = 0;
    for (size_t j = 0; j < N; j++)
        sum += (double)k[j] * (double)kk[j] * (double)k[j] * (double)kk[j];
    return sqrt(sum);
}

static void ref_key_prep(struct backend *be, struct tensor u, struct tensor rkv, struct tensor lora,
                         struct tensor v_first, struct tensor vecs, int H) {
    (void)be;
    const size_t R = u.dim[1], C = u.dim[2], N = C / (size_t)H;
    const real *vec = data(vecs);
    const real *w0 = vec + KEY_W0 * C, *a0 = vec + KEY_A0 * C, *v0 = vec + KEY_V0 * C,
               *k_k = vec + KEY_KK * C, *k_a = vec + KEY_KA * C;
    for (size_t r = 0; r < R; r++)
        for (size_t h = 0; h < C; h += N) {
            const real *k = plane(rkv, RKV_K, r), *v = plane(rkv, RKV_V, r);
            double norm = key_norm(k + h, k_k + h, N);
            if (norm < 1e-12) norm = 1e-12;
            for (size_t c = h; c < h + N; c++) {
                const double a = sigmoid((double)a0[c] + (double)plane(lora, LORA_A, r)[c]);
                const double kappa = (double)k[c] * (double)k_k[c] / norm;
                double value = (double)v[c];
                if (tensor_is(v_first))
                    value += ((double)data(v_first)[r * C + c] - value) *
                             sigmoid((double)v0[c] + (double)plane(lora, LORA_V, r)[c]);
                plane(u, U_W, r)[c] = w0[c] + plane(lora, LORA_W, r)[c];
                plane(u, U_K, r)[c] = (real)((double)k[c] * (1 + (a - 1) * (double)k_a[c]));
                plane(u, U_V, r)[c] = (real)value;
                plane(u, U_A, r)[c] = (real)-kappa;
                plane(u, U_B, r)[c] = (real)(kappa * a);
            }
        }
}

static void ref_key_prep_bwd(struct backend *be, struct tensor drkv, struct tensor dlora,
                             struct tensor dv_first, struct tensor dvecs, struct tensor du,
                             struct tensor rkv, struct tensor lora, struct tensor v_first,
                             struct tensor vecs, int H) {
    (void)be;
    const size_t R = du.dim[1], C = du.dim[2], N = C / (size_t)H;
    const real *vec = data(vecs);
    const real *a0 = vec + KEY_A0 * C, *v0 = vec + KEY_V0 * C, *k_k = vec + KEY_KK * C,
               *k_a = vec + KEY_KA * C;
    real *dvec = data(dvecs);
    for (size_t r = 0; r < R; r++)
        for (size_t h = 0; h < C; h += N) {
            const real *k = plane(rkv, RKV_K, r), *v = plane(rkv, RKV_V, r);
            const real *dw = plane(du, U_W, r), *dk = plane(du, U_K, r), *dv = plane(du, U_V, r),
                       *da = plane(du, U_A, r), *db = plane(du, U_B, r);
            const double norm = key_norm(k + h, k_k + h, N);
            const double s = norm > 1e-12 ? norm : 1e-12;
            double along = 0; // κ · dκ
            for (size_t c = h; c < h + N; c++) {
                const double a = sigmoid((double)a0[c] + (double)plane(lora, LORA_A, r)[c]);
                along += (double)k[c] * (double)k_k[c] / s * ((double)db[c] * a - (double)da[c]);
            }
            for (size_t c = h; c < h + N; c++) {
                const double a = sigmoid((double)a0[c] + (double)plane(lora, LORA_A, r)[c]);
                const double kappa = (double)k[c] * (double)k_k[c] / s;
                const double dkappa = (double)db[c] * a - (double)da[c];
                // Under the floor of 1e-12 the norm is a constant.
                const double dtilde = (dkappa - (norm > 1e-12 ? kappa * along : 0)) / s;
                const double dgate_a =
                    (double)db[c] * kappa + (double)dk[c] * (double)k[c] * (double)k_a[c];
                const double dlogit_a = dgate_a * a * (1 - a);
                plane(drkv, RKV_K, r)[c] = (real)(dtilde * (double)k_k[c] +
                                                  (double)dk[c] * (1 + (a - 1) * (double)k_a[c]));
                plane(dlora, LORA_W, r)[c] = dw[c];
                plane(dlora, LORA_A, r)[c] = (real)dlogit_a;
                dvec[KEY_W0 * C + c] += dw[c];
                dvec[KEY_A0 * C + c] += (real)dlogit_a;
                dvec[KEY_KK * C + c] += (real)(dtilde * (double)k[c]);
                dvec[KEY_KA * C + c] += (real)((double)dk[c] * (double)k[c] * (a - 1));
                double gate = 0, dlogit_v = 0;
                if (tensor_is(v_first)) {
                    gate = sigmoid((double)v0[c] + (double)plane(lora, LORA_V, r)[c]);
                    dlogit_v = (double)dv[c] * ((double)data(v_first)[r * C + c] - (double)v[c]) *
                               gate * (1 - gate);
                    data(dv_first)[r * C + c] += (real)((double)dv[c] * gate);
                    dvec[KEY_V0 * C + c] += (real)dlogit_v;
                }
                plane(drkv, RKV_V, r)[c] = (real)((double)dv[c] * (1 - gate));
                plane(dlora, LORA_V, r)[c] = (real)dlogit_v;
            }
        }
}

// S_t from S_{t-1}, and s = S_{t-1} a; S is (N,N), here [value][key].
static void state_step(real *S, real *s, const real *w, const real *k, const real *v, const real *a,
                       const real *b, size_t N) {
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (size_t j = 0; j < N; j++) sum += (double)S[i * N + j] * (double)a[j];
        s[i] = (real)sum;
    }
    for (size_t j = 0; j < N; j++) {
        const double decay = exp(-c0 * sigmoid((double)w[j]));
        for (size_t i = 0; i < N; i++)
            S[i * N + j] = (real)((double)S[i * N + j] * decay + (double)s[i] * (double)b[j] +
                                  (double)v[i] * (double)k[j]);
    }
}

// To and from the [key][value] of ops.h.
static void turn(real *out, const real *in, size_t N) {
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) out[i * N + j] = in[j * N + i];
}

// `saved` is simply every S_{t-1}: (R, H, N, N).
static size_t ref_wkv7_saved_bytes(const struct backend *be, int rows, int spans, int H, int N) {
    (void)be, (void)spans;
    return (size_t)rows * (size_t)H * (size_t)N * (size_t)N * sizeof(real);
}

static void ref_wkv7(struct backend *be, struct tensor y, struct tensor state_out,
                     struct tensor saved, struct tensor r, struct tensor u, struct tensor state_in,
                     const struct batch *b, int H) {
    (void)be;
    const size_t C = y.dim[1], N = C / (size_t)H;
    const struct span *span = tensor_host(b->span);
    real *S = mem_alloc((N * N + N) * sizeof *S), *s = S + N * N;
    for (int i = 0; i < b->spans; i++)
        for (size_t h = 0; h < (size_t)H; h++) {
            const size_t at = ((size_t)span[i].slot * (size_t)H + h) * N * N;
            memset(S, 0, N * N * sizeof *S);
            if (tensor_is(state_in)) turn(S, data(state_in) + at, N);
            for (size_t t = (size_t)span[i].first; t < (size_t)(span[i].first + span[i].len); t++) {
                if (tensor_is(saved))
                    memcpy((real *)tensor_host(saved) + (t * (size_t)H + h) * N * N, S,
                           N * N * sizeof *S);
                state_step(S, s, plane(u, U_W, t) + h * N, plane(u, U_K, t) + h * N,
                           plane(u, U_V, t) + h * N, plane(u, U_A, t) + h * N,
                           plane(u, U_B, t) + h * N, N);
                for (size_t m = 0; m < N; m++) {
                    double sum = 0;
                    for (size_t j = 0; j < N; j++)
                        sum += (double)S[m * N + j] * (double)data(r)[t * C + h * N + j];
                    data(y)[t * C + h * N + m] = (real)sum;
                }
            }
            if (tensor_is(state_out)) turn(data(state_out) + at, S, N);
        }
    free(S);
}

// One token of one head: G is ∂ℓ/∂S_t on entry and ∂ℓ/∂S_{t-1} on return; P is S_{t-1}.
static void state_step_bwd(real *G, const real *P, size_t N, size_t at, struct tensor dr,
                           struct tensor du, const real *dy, const real *r, struct tensor u,
                           size_t t, real *work) {
    const real *w = plane(u, U_W, t) + at, *k = plane(u, U_K, t) + at, *v = plane(u, U_V, t) + at,
               *a = plane(u, U_A, t) + at, *b = plane(u, U_B, t) + at;
    real *S = work, *s = S + N * N, *ds = s + N;
    memcpy(S, P, N * N * sizeof *S);
    state_step(S, s, w, k, v, a, b, N);
    for (size_t j = 0; j < N; j++) {
        double sum = 0;
        for (size_t i = 0; i < N; i++) sum += (double)S[i * N + j] * (double)dy[i];
        data(dr)[t * dr.dim[1] + at + j] += (real)sum;
    }
    for (size_t i = 0; i < N; i++) {
        double dv = 0, dsi = 0;
        for (size_t j = 0; j < N; j++) {
            G[i * N + j] += dy[i] * r[j];
            dv += (double)G[i * N + j] * (double)k[j];
            dsi += (double)G[i * N + j] * (double)b[j];
        }
        plane(du, U_V, t)[at + i] += (real)dv;
        ds[i] = (real)dsi;
    }
    for (size_t j = 0; j < N; j++) {
        double dw = 0, dk = 0, da = 0, db = 0;
        for (size_t i = 0; i < N; i++) {
            dw += (double)G[i * N + j] * (double)P[i * N + j];
            dk += (double)G[i * N + j] * (double)v[i];
            db += (double)G[i * N + j] * (double)s[i];
            da += (double)P[i * N + j] * (double)ds[i];
        }
        const double gate = sigmoid((double)w[j]), decay = exp(-c0 * gate);
        plane(du, U_W, t)[at + j] = (real)(-c0 * dw * decay * gate * (1 - gate));
        plane(du, U_K, t)[at + j] += (real)dk;
        plane(du, U_A, t)[at + j] = (real)da;
        plane(du, U_B, t)[at + j] = (real)db;
        for (size_t i = 0; i < N; i++)
            G[i * N + j] = (real)((double)G[i * N + j] * decay + (double)ds[i] * (double)a[j]);
    }
}

static void ref_wkv7_bwd(struct backend *be, struct tensor dr, struct tensor du,
                         struct tensor dstate_in, struct tensor dy, struct tensor r,
                         struct tensor u, struct tensor saved, struct tensor dstate_out,
                         const struct batch *b, int H) {
    (void)be;
    const size_t C = dy.dim[1], N = C / (size_t)H;
    const struct span *span = tensor_host(b->span);
    real *G = mem_alloc((2 * N * N + 2 * N) * sizeof *G), *work = G + N * N;
    for (int i = 0; i < b->spans; i++)
        for (size_t h = 0; h < (size_t)H; h++) {
            const size_t at = ((size_t)span[i].slot * (size_t)H + h) * N * N;
            memset(G, 0, N * N * sizeof *G);
            if (tensor_is(dstate_out)) turn(G, data(dstate_out) + at, N);
            for (size_t n = (size_t)span[i].len; n-- > 0;) {
                const size_t t = (size_t)span[i].first + n;
                const real *P = (real *)tensor_host(saved) + (t * (size_t)H + h) * N * N;
                state_step_bwd(G, P, N, h * N, dr, du, data(dy) + t * C + h * N,
                               data(r) + t * C + h * N, u, t, work);
            }
            if (tensor_is(dstate_in)) turn(data(dstate_in) + at, G, N);
        }
    free(G);
}

static const double read_eps = 64e-5;

// β = Σ_{j in head} r k r_k
static double bonus(const real *r, const real *k, const real *r_k, size_t N) {
    double sum = 0;
    for (size_t j = 0; j < N; j++) sum += (double)r[j] * (double)k[j] * (double)r_k[j];
    return sum;
}

static void ref_readout(struct backend *be, struct tensor o, struct tensor y, struct tensor r,
                        struct tensor u, struct tensor g, struct tensor vecs, int H) {
    (void)be;
    const size_t C = y.dim[1], N = C / (size_t)H;
    const real *weight = data(vecs) + READ_WEIGHT * C, *bias = data(vecs) + READ_BIAS * C,
               *r_k = data(vecs) + READ_RK * C;
    for (size_t t = 0; t < y.dim[0]; t++)
        for (size_t h = 0; h < C; h += N) {
            const real *yt = data(y) + t * C, *v = plane(u, U_V, t);
            double mean, scale;
            moments(yt + h, N, read_eps, &mean, &scale);
            const double beta = bonus(data(r) + t * C + h, plane(u, U_K, t) + h, r_k + h, N);
            for (size_t c = h; c < h + N; c++)
                data(o)[t * C + c] = (real)((((double)yt[c] - mean) * scale * (double)weight[c] +
                                             (double)bias[c] + beta * (double)v[c]) *
                                            (double)data(g)[t * C + c]);
        }
}

static void ref_readout_bwd(struct backend *be, struct tensor dy, struct tensor dr,
                            struct tensor du, struct tensor dg, struct tensor dvecs,
                            struct tensor d_o, struct tensor y, struct tensor r, struct tensor u,
                            struct tensor g, struct tensor vecs, int H) {
    (void)be;
    const size_t C = y.dim[1], N = C / (size_t)H;
    const real *weight = data(vecs) + READ_WEIGHT * C, *bias = data(vecs) + READ_BIAS * C,
               *r_k = data(vecs) + READ_RK * C;
    real *dvec = data(dvecs);
    double *e = mem_alloc(2 * N * sizeof *e), *d = e + N;
    for (size_t t = 0; t < y.dim[0]; t++)
        for (size_t h = 0; h < C; h += N) {
            const real *yt = data(y) + t * C, *rt = data(r) + t * C, *gt = data(g) + t * C,
                       *go = data(d_o) + t * C, *k = plane(u, U_K, t), *v = plane(u, U_V, t);
            double mean, scale, dbeta = 0;
            moments(yt + h, N, read_eps, &mean, &scale);
            const double beta = bonus(rt + h, k + h, r_k + h, N);
            for (size_t c = h; c < h + N; c++) {
                const double xhat = ((double)yt[c] - mean) * scale;
                const double before =
                    xhat * (double)weight[c] + (double)bias[c] + beta * (double)v[c];
                const double gated = (double)go[c] * (double)gt[c];
                data(dg)[t * C + c] = (real)((double)go[c] * before);
                dvec[READ_WEIGHT * C + c] += (real)(gated * xhat);
                dvec[READ_BIAS * C + c] += (real)gated;
                plane(du, U_V, t)[c] = (real)(beta * gated);
                dbeta += gated * (double)v[c];
                e[c - h] = gated * (double)weight[c];
            }
            normalise_bwd(d, e, yt + h, N, mean, scale);
            for (size_t c = h; c < h + N; c++) {
                data(dy)[t * C + c] = (real)d[c - h];
                data(dr)[t * C + c] = (real)(dbeta * (double)k[c] * (double)r_k[c]);
                plane(du, U_K, t)[c] = (real)(dbeta * (double)rt[c] * (double)r_k[c]);
                dvec[READ_RK * C + c] += (real)(dbeta * (double)rt[c] * (double)k[c]);
            }
        }
    free(e);
}

// ---- loss and sampling -------------------------------------------------------------------------

// The first of the largest; NaN is never it, unless there is nothing else.
static size_t argmax(const real *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    return best;
}

static void ref_xent(struct backend *be, struct tensor loss, struct tensor dlogits,
                     struct tensor logits, struct tensor target, float scale, bool l2wrap) {
    (void)be;
    const size_t V = logits.dim[1];
    const int32_t *targets = tensor_host(target);
    for (size_t o = 0; o < logits.dim[0]; o++) {
        const real *x = data(logits) + o * V;
        const size_t best = argmax(x, V);
        const double max = (double)x[best];
        double sum = 0;
        for (size_t i = 0; i < V; i++) sum += exp((double)x[i] - max);
        const int32_t t = targets[o];
        data(loss)[o] = t < 0 ? 0 : (real)(max + log(sum) - (double)x[t]);
        if (!tensor_is(dlogits)) continue;
        real *g = data(dlogits) + o * V;
        const double factor = t < 0 ? 0 : (double)scale;
        for (size_t i = 0; i < V; i++) g[i] = (real)(exp((double)x[i] - max) / sum * factor);
        if (t >= 0) g[t] -= (real)factor;
        if (l2wrap) g[best] += (real)(1e-4 * max * factor);
    }
}

struct choice {
    double p;
    int32_t id;
};

static int by_probability(const void *a, const void *b) {
    const struct choice *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b) {
    return ((const struct choice *)a)->id - ((const struct choice *)b)->id;
}

// Keeps the head of the sorted list that top_k, top_p (over what top_k left, the crossing token
// kept whole) and min_p leave, then walks it in order of ids until the drawn share of its mass is
// passed.
static int32_t draw(struct choice *c, size_t V, const struct sample_row *row) {
    qsort(c, V, sizeof *c, by_probability);
    size_t n = row->top_k > 0 && (size_t)row->top_k < V ? (size_t)row->top_k : V;
    double mass = 0, kept = 0;
    for (size_t i = 0; i < n; i++) mass += c[i].p;
    if (row->top_p < 1) {
        size_t cut = 0;
        for (; cut < n && (cut == 0 || kept < (double)row->top_p * mass); cut++) kept += c[cut].p;
        n = cut;
    }
    while (n > 1 && c[n - 1].p < (double)row->min_p * c[0].p) n--;
    qsort(c, n, sizeof *c, by_id);
    kept = 0;
    for (size_t i = 0; i < n; i++) kept += c[i].p;
    const double mark = rng_uniform(row->seed, 0, row->position) * kept;
    double passed = 0;
    for (size_t i = 0; i < n; i++) {
        passed += c[i].p;
        if (passed > mark) return c[i].id;
    }
    return c[n - 1].id;
}

static void penalise(struct tensor penalties, const struct sample_row *row, size_t V,
                     int32_t token) {
    float *p =
        (float *)((char *)tensor_host(penalties) + (size_t)row->slot * sample_penalty_bytes(V));
    uint32_t *seen = (uint32_t *)(p + V), bit = (uint32_t)1 << (token & 31);
    for (size_t i = 0; i < V; i++) p[i] *= row->penalty_decay;
    p[token] += (seen[token / 32] & bit ? row->repetition : row->presence) + row->frequency;
    seen[token / 32] |= bit;
}

static void add_biases(real *x, size_t V, struct tensor biases, const struct sample_row *row) {
    const struct sample_bias *b =
        (const void *)((const char *)tensor_host(biases) + (size_t)row->bias_slot * biases.dim[1]);
    for (int i = 0; i < row->num_bias; i++) {
        assert(b[i].token >= 0 && (size_t)b[i].token < V);
        x[b[i].token] += (real)b[i].value;
    }
}

static void ref_sample(struct backend *be, struct tensor token, struct tensor logits,
                       struct tensor rows, struct tensor penalties, struct tensor biases) {
    (void)be;
    const size_t V = logits.dim[1];
    struct choice *c = mem_alloc(V * sizeof *c);
    for (size_t o = 0; o < logits.dim[0]; o++) {
        const struct sample_row *row = (const struct sample_row *)tensor_host(rows) + o;
        const bool penalised = tensor_is(penalties) && row->slot >= 0;
        real *x = data(logits) + o * V;
        if (row->num_bias) add_biases(x, V, biases, row);
        if (penalised) {
            const float *p = (const float *)((const char *)tensor_host(penalties) +
                                             (size_t)row->slot * sample_penalty_bytes(V));
            for (size_t i = 0; i < V; i++) x[i] -= (real)p[i];
        }
        const size_t best = argmax(x, V);
        int32_t chosen = (int32_t)best;
        if (row->temperature > 0 && row->top_k != 1) {
            for (size_t i = 0; i < V; i++)
                c[i] = (struct choice){exp(((double)x[i] - (double)x[best]) /
                                           (double)row->temperature),
                                       (int32_t)i};
            chosen = draw(c, V, row);
        }
        ((int32_t *)tensor_host(token))[o] = chosen;
        if (penalised) penalise(penalties, row, V, chosen);
    }
    free(c);
}

// ---- optimizer and memory ----------------------------------------------------------------------

static void ref_sum(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    (void)be;
    double s = more ? *(double *)tensor_host(sum) : 0;
    for (size_t i = 0; i < tensor_count(x); i++) s += (double)data(x)[i];
    *(double *)tensor_host(sum) = s;
}

static void ref_sumsq(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    (void)be;
    double s = more ? *(double *)tensor_host(sum) : 0;
    for (size_t i = 0; i < tensor_count(x); i++) s += (double)data(x)[i] * (double)data(x)[i];
    *(double *)tensor_host(sum) = s;
}

static void ref_adamw(struct backend *be, const struct adamw *t) {
    (void)be;
    const double *sums = tensor_host(t->sums), *now = tensor_host(t->now);
    if (!isfinite(sums[0]) || !isfinite(sums[1])) return;
    const double want = t->clip / (sqrt(sums[0]) + 1e-6);
    const double factor = t->clip > 0 && want < 1 ? want : 1;
    const double b1 = t->beta1, b2 = t->beta2;
    const size_t n = tensor_count(t->p), last = tensor_is(t->rounded) ? t->rounded.dim[0] : 0;
    real *p = data(t->p), *m = data(t->m), *v = data(t->v);
    for (size_t k = 0; k < t->groups.dim[0]; k++) {
        const struct adamw_group *g = (const struct adamw_group *)tensor_host(t->groups) + k;
        const double lr = now[0] * g->lr_scale;
        for (int64_t i = g->first; i < g->first + g->count; i++) {
            const double grad = (double)data(t->g)[i] * factor;
            const double mi = b1 * (double)m[i] + (1 - b1) * grad;
            const double vi = b2 * (double)v[i] + (1 - b2) * grad * grad;
            const double update = mi / now[1] / (sqrt(vi / now[2]) + t->eps);
            m[i] = (real)mi;
            v[i] = (real)vi;
            p[i] = (real)((double)p[i] - lr * (update + g->weight_decay * (double)p[i]));
            if ((size_t)i >= n - last) data(t->rounded)[(size_t)i - (n - last)] = p[i];
        }
    }
}

static void ref_fill(struct backend *be, struct tensor y, double value) {
    (void)be;
    const size_t size = dtype_size(y.dtype);
    for (size_t i = 0; i < tensor_count(y); i++)
        dtype_convert((char *)tensor_host(y) + i * size, y.dtype, &value, DT_F64, 1);
}

static void ref_copy(struct backend *be, struct tensor y, struct tensor x) {
    (void)be;
    dtype_convert(tensor_host(y), y.dtype, tensor_host(x), x.dtype, tensor_count(y));
}

static void ref_add(struct backend *be, struct tensor y, struct tensor x) {
    (void)be;
    for (size_t i = 0; i < tensor_count(y); i++) data(y)[i] += data(x)[i];
}

// ---- the backend -------------------------------------------------------------------------------

static const struct ops ref_ops = {
    .embed = ref_embed,
    .embed_bwd = ref_embed_bwd,
    .gather_rows = ref_gather_rows,
    .norm = ref_norm,
    .norm_bwd = ref_norm_bwd,
    .shift_mix = ref_shift_mix,
    .shift_mix_bwd = ref_shift_mix_bwd,
    .matmul = ref_matmul,
    .matmul_bwd_x = ref_matmul_bwd_x,
    .matmul_bwd_w = ref_matmul_bwd_w,
    .act = ref_act,
    .act_bwd = ref_act_bwd,
    .key_prep = ref_key_prep,
    .key_prep_bwd = ref_key_prep_bwd,
    .wkv7 = ref_wkv7,
    .wkv7_bwd = ref_wkv7_bwd,
    .readout = ref_readout,
    .readout_bwd = ref_readout_bwd,
    .xent = ref_xent,
    .sample = ref_sample,
    .sum = ref_sum,
    .sumsq = ref_sumsq,
    .adamw = ref_adamw,
    .fill = ref_fill,
    .copy = ref_copy,
    .add = ref_add,
};

static void ref_destroy(struct backend *be) {
    free(be);
}

// A meaning has no speed.
static double ref_measure(struct backend *be, enum limit what) {
    (void)be, (void)what;
    return 0;
}

static const struct backend_class ref_class = {
    .destroy = ref_destroy,
    .buffer_create = host_buffer_create,
    .buffer_destroy = host_buffer_destroy,
    .upload = host_upload,
    .download = host_download,
    .sync = host_sync,
    .fetch = host_download,
    .fetched = host_fetched,
    .weight_create = ref_weight_create,
    .weight_refresh = ref_weight_refresh,
    .weight_destroy = ref_weight_destroy,
    .weight_bytes = ref_weight_bytes,
    .measure = ref_measure,
    .wkv7_saved_bytes = ref_wkv7_saved_bytes,
    .wkv7_grain = host_wkv7_grain,
    .head_rows = 256,
    .prompt_rows = 256,
};

int REF_OPEN(struct backend **out, int num_threads, struct error *err) {
    (void)num_threads, (void)err;
    struct backend *be = mem_alloc(sizeof *be);
    *be = (struct backend){
        .name = REF_NAME, .real = REAL_TYPE, .ops = &ref_ops, .class = &ref_class, .depth = 1};
    *out = be;
    return 0;
}
