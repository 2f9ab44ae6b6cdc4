#include "model/params.h"

#include "base/error.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// Symbols for shapes; a dimension of 1 is written in official files and means nothing.
enum dim { ONE, DIM_C, DIM_F, DIM_V, DIM_H, DIM_N, DIM_DW, DIM_DA, DIM_DV, DIM_DG, DIM_NONE };

static size_t dim_of(const struct dims *d, enum dim s) {
    const int size[] = {
        [ONE] = 1,        [DIM_C] = d->C,        [DIM_F] = 4 * d->C, [DIM_V] = d->V,
        [DIM_H] = d->H,   [DIM_N] = d->C / d->H, [DIM_DW] = d->Dw,   [DIM_DA] = d->Da,
        [DIM_DV] = d->Dv, [DIM_DG] = d->Dg,      [DIM_NONE] = 1};
    return (size_t)size[s];
}

enum kind {
    VECTOR,
    ADJACENT,
    TABLE,
    OUT_IN,
    IN_OUT
}; // ADJACENT: a vector right after the last one

// Weight decay: tensors named *.weight with two real dimensions; att.w0 learns twice as fast.
static const struct row {
    const char *name;
    enum kind kind;
    enum dim dim[3];
    double lr;
    bool decay;
} table[P_END] = {
    // clang-format off
    [P_EMB]        = {"emb.weight",             TABLE,    {DIM_V, DIM_C, DIM_NONE},   1, true},
    [P_LN0_W]      = {"blocks.0.ln0.weight",    VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_LN0_B]      = {"blocks.0.ln0.bias",      VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_OUT_W]      = {"ln_out.weight",          VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_OUT_B]      = {"ln_out.bias",            VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_HEAD]       = {"head.weight",            OUT_IN,   {DIM_V, DIM_C, DIM_NONE},   1, true},
    [P_LN1_W]      = {"ln1.weight",             VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_LN1_B]      = {"ln1.bias",               VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_LN2_W]      = {"ln2.weight",             VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_LN2_B]      = {"ln2.bias",               VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_X_R]        = {"att.x_r",                VECTOR,   {ONE, ONE, DIM_C},          1, false},
    [P_X_W]        = {"att.x_w",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_X_K]        = {"att.x_k",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_X_V]        = {"att.x_v",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_X_A]        = {"att.x_a",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_X_G]        = {"att.x_g",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_W0]         = {"att.w0",                 VECTOR,   {ONE, ONE, DIM_C},          2, false},
    [P_A0]         = {"att.a0",                 ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_V0]         = {"att.v0",                 ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_K_K]        = {"att.k_k",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_K_A]        = {"att.k_a",                ADJACENT, {ONE, ONE, DIM_C},          1, false},
    [P_LNX_W]      = {"att.ln_x.weight",        VECTOR,   {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_LNX_B]      = {"att.ln_x.bias",          ADJACENT, {DIM_C, DIM_NONE, DIM_NONE}, 1, false},
    [P_R_K]        = {"att.r_k",                ADJACENT, {DIM_H, DIM_N, DIM_NONE},   1, false},
    [P_W1]         = {"att.w1",                 IN_OUT,   {DIM_C, DIM_DW, DIM_NONE},  1, false},
    [P_W2]         = {"att.w2",                 IN_OUT,   {DIM_DW, DIM_C, DIM_NONE},  1, false},
    [P_A1]         = {"att.a1",                 IN_OUT,   {DIM_C, DIM_DA, DIM_NONE},  1, false},
    [P_A2]         = {"att.a2",                 IN_OUT,   {DIM_DA, DIM_C, DIM_NONE},  1, false},
    [P_V1]         = {"att.v1",                 IN_OUT,   {DIM_C, DIM_DV, DIM_NONE},  1, false},
    [P_V2]         = {"att.v2",                 IN_OUT,   {DIM_DV, DIM_C, DIM_NONE},  1, false},
    [P_G1]         = {"att.g1",                 IN_OUT,   {DIM_C, DIM_DG, DIM_NONE},  1, false},
    [P_G2]         = {"att.g2",                 IN_OUT,   {DIM_DG, DIM_C, DIM_NONE},  1, false},
    [P_RECEPTANCE] = {"att.receptance.weight",  OUT_IN,   {DIM_C, DIM_C, DIM_NONE},   1, true},
    [P_KEY]        = {"att.key.weight",         OUT_IN,   {DIM_C, DIM_C, DIM_NONE},   1, true},
    [P_VALUE]      = {"att.value.weight",       OUT_IN,   {DIM_C, DIM_C, DIM_NONE},   1, true},
    [P_OUTPUT]     = {"att.output.weight",      OUT_IN,   {DIM_C, DIM_C, DIM_NONE},   1, true},
    [P_FFN_X_K]    = {"ffn.x_k",                VECTOR,   {ONE, ONE, DIM_C},          1, false},
    [P_FFN_KEY]    = {"ffn.key.weight",         OUT_IN,   {DIM_F, DIM_C, DIM_NONE},   1, true},
    [P_FFN_VALUE]  = {"ffn.value.weight",       OUT_IN,   {DIM_C, DIM_F, DIM_NONE},   1, true},
    // clang-format on
};

int params_count(const struct dims *d) {
    return P_ONCE + d->L * PARAMS_PER_LAYER;
}

int params_index(enum param_id id, int layer) {
    return id < P_ONCE ? (int)id : (int)id + layer * PARAMS_PER_LAYER;
}

static struct param describe(const struct dims *d, enum param_id id, int layer) {
    const struct row *row = &table[id];
    struct param p = {.id = id,
                      .layer = layer,
                      .count = 1,
                      .matrix = row->kind == OUT_IN || row->kind == IN_OUT,
                      .layout = row->kind == OUT_IN ? WEIGHT_OUT_IN : WEIGHT_IN_OUT,
                      .unused = layer == 0 && (id == P_V0 || id == P_V1 || id == P_V2),
                      .lr_scale = row->lr,
                      .decay = row->decay};
    while (p.ndim < 3 && row->dim[p.ndim] != DIM_NONE) {
        p.dim[p.ndim] = dim_of(d, row->dim[p.ndim]);
        p.count *= p.dim[p.ndim++];
    }
    if (id < P_ONCE)
        snprintf(p.name, sizeof p.name, "%s", row->name);
    else
        snprintf(p.name, sizeof p.name, "blocks.%d.%s", layer, row->name);
    return p;
}

size_t params_list(struct param *out, const struct dims *d, size_t *vectors) {
    const int n = params_count(d);
    for (int i = 0; i < n; i++) {
        const int layer = i < P_ONCE ? 0 : (i - P_ONCE) / PARAMS_PER_LAYER;
        out[i] = describe(d,
                          i < P_ONCE ? (enum param_id)i
                                     : (enum param_id)(P_ONCE + (i - P_ONCE) % PARAMS_PER_LAYER),
                          layer);
    }
    size_t at = 0;
    for (int pass = 0; pass < 3; pass++) {
        if (pass == 1) *vectors = at = (at + 15) & ~(size_t)15;
        for (int i = 0; i < n; i++) {
            const enum kind kind = table[out[i].id].kind;
            if ((kind == TABLE ? 1 : out[i].matrix ? 2 : 0) != pass) continue;
            if (kind != ADJACENT) at = (at + 15) & ~(size_t)15;
            out[i].offset = at;
            at += out[i].count;
        }
    }
    return (at + 15) & ~(size_t)15;
}

// Python's round: halves go to the even side, so 2.5 is 2.
static int rank(double factor, const struct dims *d) {
    const double N = (double)d->C / d->H;
    const int r = (int)(32 * nearbyint(factor * sqrt((double)d->C) / 32 * (N / 64)));
    return r > 32 ? r : 32;
}

void dims_default_ranks(struct dims *d) {
    if (!d->Dw) d->Dw = rank(2.5, d);
    if (!d->Da) d->Da = rank(2.5, d);
    if (!d->Dv) d->Dv = rank(1.7, d);
    if (!d->Dg) d->Dg = rank(5.0, d);
}

size_t dims_param_count(const struct dims *d) {
    size_t n = 0;
    for (int i = 0; i < params_count(d); i++) {
        const int layer = i < P_ONCE ? 0 : (i - P_ONCE) / PARAMS_PER_LAYER;
        const int id = i < P_ONCE ? i : P_ONCE + (i - P_ONCE) % PARAMS_PER_LAYER;
        n += describe(d, (enum param_id)id, layer).count;
    }
    return n;
}

int dims_check(const struct dims *d, struct error *err) {
    const struct {
        const char *name;
        int value, min, max;
    } bounds[] = {
        {"number of layers", d->L, 1, 1024},  {"width", d->C, 16, 65536},
        {"number of heads", d->H, 1, 4096},   {"vocabulary size", d->V, 1, 1 << 24},
        {"decay LoRA rank", d->Dw, 1, 65536}, {"rate LoRA rank", d->Da, 1, 65536},
        {"value LoRA rank", d->Dv, 1, 65536}, {"gate LoRA rank", d->Dg, 1, 65536},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
        if (bounds[i].value < bounds[i].min || bounds[i].value > bounds[i].max)
            return fail(err, E_CONFIG, "the model's %s is %d, expected %d to %d", bounds[i].name,
                        bounds[i].value, bounds[i].min, bounds[i].max);
    if (d->C % d->H)
        return fail(err, E_CONFIG, "the model's width %d is not a multiple of its %d heads", d->C,
                    d->H);
    if (d->C / d->H % 16 || d->C / d->H > 256)
        return fail(err, E_CONFIG,
                    "the model's head size is %d (width %d / %d heads), expected a multiple of 16 "
                    "up to 256",
                    d->C / d->H, d->C, d->H);
    return 0;
}
