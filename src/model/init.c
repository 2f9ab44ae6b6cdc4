// The official initialisation, SPEC-rwkv7 §5.1. At the start every block is the identity: the
// matrices that write into the residual stream are zero.
#include "model/model.h"

#include "backend/ops.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "model/orthogonal.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

// Where a vector's element is: layer i of L, channel n of C, heads of N.
struct at {
    double i, L, n, C, N;
};

static double up(struct at a) {
    return a.L > 1 ? a.i / (a.L - 1) : 0;
}
static double down(struct at a) {
    return 1 - a.i / a.L;
}
static double linear(struct at a) {
    return a.C > 1 ? a.n / (a.C - 1) - 0.5 : 0;
}

// From -1 to 1 across each head, squared with its sign.
static double zigzag(struct at a) {
    const double z = (fmod(a.n, a.N) - (a.N - 1) / 2) / ((a.N - 1) / 2);
    return z * fabs(z);
}

static double ramp(struct at a, double exponent) {
    return 1 - pow(a.n / a.C, exponent);
}

static double zero(struct at a) {
    return (void)a, 0;
}
static double one(struct at a) {
    return (void)a, 1;
}
static double x_rg(struct at a) {
    return ramp(a, 0.2 * down(a));
}
static double x_wa(struct at a) {
    return ramp(a, 0.9 * down(a));
}
static double x_kv(struct at a) {
    return ramp(a, 0.7 * down(a));
}
static double ffn_x_k(struct at a) {
    return ramp(a, pow(down(a), 4));
}
static double a0(struct at a) {
    return -0.19 + 0.3 * zigzag(a) + 0.4 * linear(a);
}
static double v0(struct at a) {
    return 0.73 - 0.4 * linear(a);
}
static double k_k(struct at a) {
    return 0.71 - 0.1 * linear(a);
}
static double k_a(struct at a) {
    return (void)a, 1.02;
}
static double r_k(struct at a) {
    return (void)a, -0.04;
}
static double ln_x(struct at a) {
    return pow((1 + a.i) / a.L, 0.7);
}

static double w0(struct at a) {
    return -6 + 6 * pow(a.n / (a.C - 1), 1 + pow(up(a), 0.3)) + 0.5 + 2.5 * zigzag(a);
}

enum how { FORMULA, ORTHOGONAL, ORTHOGONAL_LORA, ORTHOGONAL_HEAD, SMALL_UNIFORM };

static const struct {
    enum how how;
    double gain;
    double (*formula)(struct at);
} table[P_END] = {
    [P_EMB] = {SMALL_UNIFORM, 1e-4, NULL},
    [P_LN0_W] = {.formula = one},
    [P_LN0_B] = {.formula = zero},
    [P_OUT_W] = {.formula = one},
    [P_OUT_B] = {.formula = zero},
    [P_HEAD] = {ORTHOGONAL_HEAD, 0.5, NULL},
    [P_LN1_W] = {.formula = one},
    [P_LN1_B] = {.formula = zero},
    [P_LN2_W] = {.formula = one},
    [P_LN2_B] = {.formula = zero},
    [P_X_R] = {.formula = x_rg},
    [P_X_W] = {.formula = x_wa},
    [P_X_K] = {.formula = x_kv},
    [P_X_V] = {.formula = x_kv},
    [P_X_A] = {.formula = x_wa},
    [P_X_G] = {.formula = x_rg},
    [P_W0] = {.formula = w0},
    [P_A0] = {.formula = a0},
    [P_V0] = {.formula = v0},
    [P_K_K] = {.formula = k_k},
    [P_K_A] = {.formula = k_a},
    [P_LNX_W] = {.formula = ln_x},
    [P_LNX_B] = {.formula = zero},
    [P_R_K] = {.formula = r_k},
    [P_W1] = {.formula = zero},
    [P_W2] = {ORTHOGONAL_LORA, 0.1, NULL},
    [P_A1] = {.formula = zero},
    [P_A2] = {ORTHOGONAL_LORA, 0.1, NULL},
    [P_V1] = {.formula = zero},
    [P_V2] = {ORTHOGONAL_LORA, 0.1, NULL},
    [P_G1] = {.formula = zero},
    [P_G2] = {ORTHOGONAL_LORA, 0.1, NULL},
    [P_RECEPTANCE] = {ORTHOGONAL, 1, NULL},
    [P_KEY] = {ORTHOGONAL, 0.1, NULL},
    [P_VALUE] = {ORTHOGONAL, 1, NULL},
    [P_OUTPUT] = {.formula = zero},
    [P_FFN_X_K] = {.formula = ffn_x_k},
    [P_FFN_KEY] = {ORTHOGONAL, 1, NULL},
    [P_FFN_VALUE] = {.formula = zero},
};

static double gain_of(const struct param *p) {
    const double gain = table[p->id].gain, rows = (double)p->dim[0], cols = (double)p->dim[1];
    const double widening = rows > cols ? sqrt(rows / cols) : 1;
    return table[p->id].how == ORTHOGONAL ? gain : gain * widening;
}

static void fill(float *out, const struct param *p, const struct dims *d, uint64_t seed,
                 uint64_t stream, struct pool *pool) {
    switch (table[p->id].how) {
    case FORMULA:
        for (size_t n = 0; n < p->count; n++)
            out[n] = (float)table[p->id].formula(
                (struct at){p->layer, d->L, (double)n, d->C, (double)d->C / d->H});
        break;
    case SMALL_UNIFORM:
        for (size_t n = 0; n < p->count; n++)
            out[n] = (float)(table[p->id].gain * (2 * rng_uniform(seed, stream, n) - 1));
        break;
    default: orthogonal_fill(out, p->dim[0], p->dim[1], gain_of(p), seed, stream, pool);
    }
}

void model_init_param(struct model *m, int param, uint64_t seed, struct pool *pool) {
    const struct param *p = &m->params[param];
    const struct tensor t = model_master(m, param);
    float *values = mem_alloc(p->count * sizeof *values);
    void *raw = mem_alloc(tensor_bytes(t));
    fill(values, p, &m->dims, seed, (uint64_t)param, pool);
    dtype_convert(raw, t.dtype, values, DT_F32, p->count);
    m->be->class->upload(m->be, t, raw);
    free(values);
    free(raw);
}

void model_init(struct model *m, uint64_t seed) {
    assert(m->options.trained);
    struct pool *pool = pool_create(0);
    for (int i = 0; i < m->num_params; i++) model_init_param(m, i, seed, pool);
    pool_destroy(pool);
    model_refresh(m);
}

// Trained models leave some 88 % of relu² zero. So will this one: LN2's bias of a half meets a mean
// in ffn.key that moves its outputs down by 1.3, where their deviation is about 1.1.
static double mean_of(const struct param *p, bool sparse) {
    return sparse && p->id == P_FFN_KEY ? -2.6 / (double)p->dim[1] : 0;
}

// Vectors as at the start of training, matrices uniform with rows of norm about 1.
// Numbers of a matrix come again after so many, which is no multiple of a width: no row is
// another's. 7.2b are there in seconds.
enum { PERIOD = 1048572 };

// The first n numbers of t, again and again to its end.
static void repeat(struct backend *be, struct tensor t, size_t n) {
    const size_t count = tensor_count(t);
    for (size_t part; n < count; n += part) {
        part = n < count - n ? n : count - n;
        op_copy(be, tensor_slice(t, n, part), tensor_slice(t, 0, part));
    }
}

int model_randomise(struct model *m, uint64_t seed, bool sparse, struct error *err) {
    for (int i = 0; i < m->num_params; i++) {
        const struct param *p = &m->params[i];
        if (p->unused) continue;
        if (!p->matrix && p->id != P_EMB) {
            model_init_param(m, i, seed, NULL);
            if (sparse && p->id == P_LN2_B) op_fill(m->be, model_master(m, i), 0.5);
            continue;
        }
        const double size = sqrt(3.0 / (double)p->dim[p->layout == WEIGHT_OUT_IN ? 1 : 0]);
        const bool own = p->id == P_EMB || m->options.trained; // else only the packed form stays
        struct buffer *b = NULL;
        struct tensor t = p->id == P_EMB ? m->embedding : tensor_none();
        if (own && p->id != P_EMB) t = model_master(m, i);
        if (!own) {
            if (!(b = buffer_create(m->be, p->count * dtype_size(m->be->real), err))) return -1;
            t = (struct tensor){.buf = b,
                                .dtype = m->be->real,
                                .ndim = 2,
                                .dim = {p->dim[0], p->dim[1]}};
        }
        const double mean = mean_of(p, sparse);
        const size_t drawn = p->count < PERIOD ? p->count : PERIOD;
        float *values = mem_alloc(drawn * sizeof *values);
        void *raw = mem_alloc(drawn * dtype_size(t.dtype));
        for (size_t k = 0; k < drawn; k += 4) {
            uint32_t block[4];
            rng_block(block, seed, (uint64_t)i, k);
            for (size_t l = 0; l < 4 && k + l < drawn; l++)
                values[k + l] = (float)(size * ((double)block[l] * 0x1p-31 - 1) + mean);
        }
        dtype_convert(raw, t.dtype, values, DT_F32, drawn);
        struct tensor flat = t;
        flat.ndim = 1;
        flat.dim[0] = p->count;
        m->be->class->upload(m->be, tensor_slice(flat, 0, drawn), raw);
        repeat(m->be, flat, drawn);
        if (!own) {
            weight_destroy(m->weights[i]);
            m->weights[i] = m->be->class->weight_create(m->be, t, tensor_none(), p->layout,
                                                        model_precision(m->options, p), false);
        }
        free(values);
        free(raw);
        buffer_destroy(b);
    }
    if (m->options.trained) model_refresh(m);
    return 0;
}
