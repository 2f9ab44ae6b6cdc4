// Values of arguments that may not be just anything: parameters, indices, gates, transitions. Pure
// functions of the call and the element. And how many operations a call takes.
#include "check_ops.h"

#include <math.h>

static double normal(const struct call *c, const struct arg *a, size_t i) {
    return call_draw(c, a->name, i);
}

static double uniform(const struct call *c, const struct arg *a, size_t i) {
    return (double)(call_bits(c, a->name, i) >> 11) * 0x1p-53;
}

// Parameters: ordinary whatever the activations are.
double value_param(const struct call *c, const struct arg *a, size_t i) {
    return c->fill == FILL_ZERO ? 0 : 0.5 * normal(c, a, i) + 0.25;
}

double value_token(const struct call *c, const struct arg *a, size_t i) {
    if (c->fill == FILL_EQUAL) return 0;
    return floor(uniform(c, a, i) * c->size.V);
}

double value_token_or_drawn(const struct call *c, const struct arg *a, size_t i) {
    const uint64_t bits = call_bits(c, "whether", i);
    return bits & 1 ? -1 - (double)(bits / 2 % DRAWN) : value_token(c, a, i);
}

double value_target(const struct call *c, const struct arg *a, size_t i) {
    return i % 5 == 3 ? -1 : value_token(c, a, i);
}

double value_any_row(const struct call *c, const struct arg *a, size_t i) {
    return floor(uniform(c, a, i) * (c->row_map ? c->whole_rows : c->size.R));
}

static double magnitude(const struct call *c) {
    return c->fill == FILL_TINY ? 1e-20 : c->fill == FILL_HUGE ? 1e4 : c->fill == FILL_ZERO ? 0 : 1;
}

// What an activation can have given: in (-1,1), in (0,1), not negative.
double value_activated(const struct call *c, const struct arg *a, size_t i) {
    const double u = c->fill == FILL_ZERO ? 0 : uniform(c, a, i);
    if (c->variant % ACT_NONE == ACT_TANH) return 2 * u - 1;
    if (c->variant % ACT_NONE == ACT_SIGMOID) return u;
    return magnitude(c) * (i % 3 ? u : 0);
}

// Of gates: a saturated one has no gradient left to compare.
double value_gate_input(const struct call *c, const struct arg *a, size_t i) {
    if (c->fill == FILL_EQUAL) return 0.7;
    return (c->fill == FILL_HUGE ? 5 : magnitude(c)) * normal(c, a, i);
}

// Tiny keys lie on both sides of the floor of 1e-12 that their norm is divided by: rows in turn.
double value_rkv(const struct call *c, const struct arg *a, size_t i) {
    if (c->fill == FILL_EQUAL) return 0.7;
    const size_t rows = c->row_map ? (size_t)c->whole_rows : a->dim[1];
    const double tiny = i / a->dim[2] % rows % 2 ? 1e-12 : 5e-14;
    return (c->fill == FILL_TINY ? tiny : magnitude(c)) * normal(c, a, i);
}

// Gradients and moments whose squares are floats still: 1e-15 is tiny enough.
double value_gradient(const struct call *c, const struct arg *a, size_t i) {
    if (c->fill == FILL_EQUAL) return 0.7;
    return (c->fill == FILL_TINY ? 1e-15 : magnitude(c)) * normal(c, a, i);
}

double value_gradient_squared(const struct call *c, const struct arg *a, size_t i) {
    const double g = value_gradient(c, a, i);
    return g * g;
}

// The transition must stay tame: κ is a unit vector, the rate a is in (0,1), as key_prep makes
// them.
double value_wkv_input(const struct call *c, const struct arg *a, size_t i) {
    const size_t plane = a->dim[1] * a->dim[2];
    const size_t which = i / (c->row_map ? (size_t)c->whole_rows * a->dim[2] : plane);
    const size_t within = i % (c->row_map ? (size_t)c->whole_rows * a->dim[2] : plane);
    const double x = normal(c, a, i);
    if (c->fill == FILL_ZERO) return 0;
    if (which == U_K || which == U_V) return c->fill == FILL_EQUAL ? 0.7 : magnitude(c) * x;
    if (which == U_W) return c->fill == FILL_HUGE ? 30 * x : 3 * x - 2;
    const double sign = call_bits(c, "sign", within) & 1 ? 1 : -1;
    const double kappa = sign / sqrt(c->size.N);
    return which == U_A ? -kappa : kappa * (double)(call_bits(c, "rate", within) >> 11) * 0x1p-53;
}

// Rows of every temper; slots in reverse, so that a mixed-up slot shows.
double value_sample_rows(const struct call *c, const struct arg *a, size_t i) {
    static const struct sample_row kinds[] = {
        {.temperature = 0, .top_p = 1},
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.7f, .top_p = 0.9f, .penalty_decay = 0.996f, .presence = 0.25f},
        {.temperature = 1.5f, .top_p = 1, .top_k = 5, .frequency = 0.5f, .penalty_decay = 1},
        {.temperature = 1, .top_p = 0.5f, .top_k = 20, .min_p = 0.1f, .penalty_decay = 0.5f},
        {.temperature = 1, .top_p = 1, .min_p = 0.2f, .repetition = 0.125f, .penalty_decay = 1},
        {.temperature = 1, .top_p = 0, .penalty_decay = 1},
        {.temperature = 1e-42f, .top_p = 1, .penalty_decay = 1},
    };
    size_t o = i / a->dim[1];
    struct sample_row row = kinds[o % 8];
    row.slot = o % 5 == 4 ? -1 : c->whole_rows - 1 - (int)o;
    const int most = c->size.V < BIASES ? c->size.V : BIASES;
    row.bias_slot = (int)o;
    if (!c->bare) row.num_bias = (int)(o % 7) < most ? (int)(o % 7) : most;
    row.seed = c->seed;
    row.position = o;
    return ((const unsigned char *)&row)[i % a->dim[1]];
}

// Accumulators of some tokens, none of others; the bits say which.
double value_sample_penalties(const struct call *c, const struct arg *a, size_t i) {
    const size_t V = (size_t)c->size.V, at = i % a->dim[1], id = at / 4;
    if (at >= 4 * V) return 0x21; // tokens 0 and 5 of every eight were generated
    const float p = id % 8 == 0 || id % 8 == 5 ? (float)(id % 16 + 1) / 8 : 0;
    return ((const unsigned char *)&p)[at % 4];
}

// Neighbours, from anywhere on.
double value_sample_biases(const struct call *c, const struct arg *a, size_t i) {
    const size_t slot = i / a->dim[1], at = i % a->dim[1], n = at / sizeof(struct sample_bias);
    const size_t first = call_bits(c, a->name, slot) % (size_t)c->size.V;
    const struct sample_bias b = {(int32_t)((first + n) % (size_t)c->size.V), (float)n * 2 - 3};
    return ((const unsigned char *)&b)[at % sizeof b];
}

// As relu² leaves them: seven of eight are zero.
double value_mostly_zero(const struct call *c, const struct arg *a, size_t i) {
    return call_bits(c, a->name, i) % 8 ? 0 : call_draw(c, a->name, i);
}

// Sums of these stay where tanh and σ are not flat.
double value_faint(const struct call *c, const struct arg *a, size_t i) {
    return call_draw(c, a->name, i) / 16;
}

// ---- operations --------------------------------------------------------------------------------

double flops_matmul(const struct call *c) {
    return 2.0 * c->size.R * c->size.C * c->size.V;
}

// An exponential is some 16 operations, a division 8.
double flops_act(const struct call *c) {
    return (c->variant == ACT_RELU2 ? 2.0 : 32.0) * c->size.R * c->size.C;
}

double flops_key_prep(const struct call *c) {
    return 75.0 * c->size.R * c->size.C;
}

double flops_key_prep_bwd(const struct call *c) {
    return 140.0 * c->size.R * c->size.C;
}

// SPEC: u 2N², update 5N², y 2N² a token and head.
double flops_wkv7(const struct call *c) {
    return 9.0 * c->size.N * c->size.N * c->H * c->size.R;
}

// The replayed state 7N², dr 2, G 2, dw 2, dk 2, dv 2, db 2, du 2, da 2, G 3 and 2.
double flops_wkv7_bwd(const struct call *c) {
    return 28.0 * c->size.N * c->size.N * c->H * c->size.R;
}

double flops_xent(const struct call *c) {
    return (c->bare ? 20.0 : 40.0) * c->size.R * c->size.V;
}
