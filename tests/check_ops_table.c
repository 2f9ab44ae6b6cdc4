// The list: shapes and calls of every op.
#include "check_ops.h"

#include <math.h>
#include <string.h>

// ---- arguments ---------------------------------------------------------------------------------

static struct arg *put(struct call *c, const char *name, const char *mode, int ndim,
                       const size_t *dim, int row_axis) {
    struct arg *a = &c->arg[c->args++];
    *a = (struct arg){.name = name, .mode = mode, .ndim = ndim, .row_axis = row_axis};
    for (int d = 0; d < ndim; d++) a->dim[d] = dim[d];
    return a;
}

static struct arg *put_vector(struct call *c, const char *name, const char *mode, size_t n) {
    struct arg *a = put(c, name, mode, 1, &n, -1);
    a->value = value_param;
    return a;
}

static struct arg *put_rows(struct call *c, const char *name, const char *mode, size_t cols) {
    return put(c, name, mode, 2, (size_t[]){(size_t)c->size.R, cols}, 0);
}

static struct arg *put_planes(struct call *c, const char *name, const char *mode, size_t n) {
    return put(c, name, mode, 3, (size_t[]){n, (size_t)c->size.R, (size_t)c->size.C}, 1);
}

static struct arg *put_params(struct call *c, const char *name, const char *mode, size_t n) {
    struct arg *a = put(c, name, mode, 2, (size_t[]){n, (size_t)c->size.C}, -1);
    a->value = value_param;
    return a;
}

static struct arg *put_ids(struct call *c, const char *name,
                           double (*value)(const struct call *, const struct arg *, size_t)) {
    struct arg *a = put(c, name, "i", 1, (size_t[]){(size_t)c->size.R}, 0);
    a->dtype = DT_I32;
    a->value = value;
    return a;
}

// Stands for an argument that is not there; t[] keeps its place.
static void put_none(struct call *c, const char *name) {
    *put(c, name, "i", 0, NULL, -1) = (struct arg){.name = name, .mode = "i", .row_axis = -1};
}

static struct arg *put_shift(struct call *c, const char *name, const char *mode) {
    struct arg *a = put(c, name, mode, 2, (size_t[]){(size_t)c->S, (size_t)c->size.C}, -1);
    a->slots = true;
    return a;
}

static void put_shift_out(struct call *c) {
    if (c->bare)
        put_none(c, "shift_out");
    else
        put_shift(c, "shift_out", c->aliased ? "+" : "=");
}

static void put_shift_in(struct call *c) { // or shift_out itself
    if (c->bare)
        put_none(c, "shift_in");
    else
        put_shift(c, "shift_in", "i")->shares = "shift_out";
}

static struct arg *put_state(struct call *c, const char *name, const char *mode) {
    const size_t N = (size_t)c->size.N;
    struct arg *a = put(c, name, mode, 4, (size_t[]){(size_t)c->S, (size_t)c->H, N, N}, -1);
    a->slots = true;
    return a;
}

static void put_batch(struct call *c) {
    static const char *const names[] = {"span", "prev", "last"};
    const size_t dims[3][2] = {{(size_t)c->spans, 4}, {(size_t)c->size.R}, {(size_t)c->size.R}};
    const void *const given[] = {c->span, c->prev, c->last};
    for (int i = 0; i < 3; i++) {
        struct arg *a = put(c, names[i], "i", i ? 1 : 2, dims[i], -1);
        a->dtype = DT_I32;
        a->given = given[i];
    }
}

// ---- rows --------------------------------------------------------------------------------------

#define UNUSED     __attribute__((unused))
#define CALL(name) STEP(call, name)
#define STEP(step, name)                                                                           \
    static void step##_##name(struct backend *be, const struct tensor *t,                          \
                              UNUSED const struct weight *w, UNUSED const struct batch *b,         \
                              UNUSED const struct call *c)

static void shape_embed(struct call *c) {
    static const enum dtype stored[] = {DT_NONE, DT_BF16, DT_F16};
    put_rows(c, "y", "=", (size_t)c->size.C);
    // embed_bwd, whose finite differences take the first variant, knows no drawn ones.
    put_ids(c, "tokens", c->variant ? value_token_or_drawn : value_token);
    if (!c->variant) {
        put_none(c, "drawn");
    } else {
        struct arg *a = put(c, "drawn", "i", 1, (size_t[]){DRAWN}, -1);
        a->dtype = DT_I32;
        a->value = value_token;
    }
    put(c, "table", "i", 2, (size_t[]){(size_t)c->size.V, (size_t)c->size.C}, -1)->dtype =
        stored[c->variant];
}
CALL(embed) {
    op_embed(be, t[0], t[1], t[2], t[3]);
}

static void shape_embed_bwd(struct call *c) {
    put(c, "dtable", "+", 2, (size_t[]){(size_t)c->size.V, (size_t)c->size.C}, -1);
    put_rows(c, "dy", "i", (size_t)c->size.C);
    const struct arg *tokens = put_ids(c, "tokens", value_token);
    double token[MAX_ROWS];
    for (int r = 0; r < c->size.R; r++) {
        int i = r;
        token[r] = value_token(c, tokens, (size_t)r);
        for (; i > 0 && token[c->order[i - 1]] > token[r]; i--) c->order[i] = c->order[i - 1];
        c->order[i] = r;
    }
    put_ids(c, "order", NULL)->given = c->order;
}
CALL(embed_bwd) {
    op_embed_bwd(be, t[0], t[1], t[2], t[3]);
}

static void shape_gather_rows(struct call *c) {
    const int rows = c->row_map ? c->whole_rows : c->size.R;
    put_rows(c, "y", "=", (size_t)c->size.C);
    put(c, "x", "i", 2, (size_t[]){(size_t)rows, (size_t)c->size.C}, -1);
    put_ids(c, "rows", value_any_row);
}
CALL(gather_rows) {
    op_gather_rows(be, t[0], t[1], t[2]);
}

static void shape_norm(struct call *c) {
    const size_t C = (size_t)c->size.C;
    put_rows(c, "y", "=", C)->narrow = c->variant;
    put_rows(c, "x", "i", C);
    put_vector(c, "w", "i", C);
    put_vector(c, "b", "i", C);
}
CALL(norm) {
    op_norm(be, t[0], t[1], t[2], t[3], 1e-5);
}

static void shape_norm_bwd(struct call *c) {
    const size_t C = (size_t)c->size.C;
    put_rows(c, "dx", c->aliased ? "+" : "=", C);
    put_vector(c, "dw", "+", C);
    put_vector(c, "db", "+", C);
    put_rows(c, "dy", "i", C);
    put_rows(c, "x", "i", C);
    put_vector(c, "w", "i", C);
    if (c->bare)
        put_none(c, "add");
    else
        put_rows(c, "add", "i", C)->shares = "dx";
}
CALL(norm_bwd) {
    op_norm_bwd(be, t[0], t[1], t[2], t[3], t[4], t[5], 1e-5, t[6]);
}

static size_t mixes(const struct call *c) {
    return c->variant & 1 ? 1 : MIX_COUNT;
}

static void shape_shift_mix(struct call *c) {
    put_planes(c, "m", "=", mixes(c))->narrow = c->variant & 2;
    put_shift_out(c);
    put_rows(c, "z", "i", (size_t)c->size.C);
    put_shift_in(c);
    put_params(c, "mix", "i", mixes(c));
    put_batch(c);
}
CALL(shift_mix) {
    op_shift_mix(be, t[0], t[1], t[2], t[3], t[4], b);
}

static void shape_shift_mix_bwd(struct call *c) {
    put_rows(c, "dz", "=", (size_t)c->size.C);
    put_params(c, "dmix", "+", mixes(c));
    put_planes(c, "dm", "i", mixes(c))->narrow = c->variant & 2;
    put_rows(c, "z", "i", (size_t)c->size.C);
    if (c->bare)
        put_none(c, "shift_in");
    else
        put_shift(c, "shift_in", "i");
    put_params(c, "mix", "i", mixes(c));
    put_batch(c);
}
CALL(shift_mix_bwd) {
    op_shift_mix_bwd(be, t[0], t[1], t[2], t[3], t[4], t[5], b);
}

// ---- matrices ----------------------------------------------------------------------------------

// Variants: stored (O,K) or (K,O), in one of the precisions; of matmul from SPARSE on the same with
// inputs that are mostly zero, from ACTS on the activations, from NARROW on bf16 x, bf16 y, both,
// and both with the activations. Of the gradients from 6 on: bf16 dy, the other bf16, both; of the
// inputs' from GRAD_ACTS on with the slope of variant % ACT_NONE.
enum { PRECISIONS = 5, SPARSE = 2 * PRECISIONS, ACTS = 2 * SPARSE, NARROW = ACTS + 3 };
enum { NARROW_ACTS = NARROW + 3, COMPANY = NARROW_ACTS + 3, MATMULS = COMPANY + 2 };
enum { GRAD_NARROW = 6, GRAD_COMPANY = GRAD_NARROW + 3, MATMUL_GRADS = GRAD_COMPANY + 2 };
enum { GRAD_ACTS = MATMUL_GRADS, INPUT_GRADS = GRAD_ACTS + 7 };
static const struct {
    bool wide, company;
} grad_acts[] = {{.wide = true}, {0}, {.company = true}, {0}, {.company = true}, {0}, {0}};
static int narrow_bits(const struct call *c, int first) {
    const int n = c->variant < first ? 0 : c->variant - first + 1;
    return n < 3 ? n : 3;
}
static enum act act_of(const struct call *c) {
    if (c->variant >= COMPANY) return ACT_TANH;
    if (c->variant >= NARROW_ACTS) return (enum act)(c->variant - NARROW_ACTS);
    const bool has = c->variant >= ACTS && c->variant < NARROW;
    return has ? (enum act)(c->variant - ACTS) : ACT_NONE;
}
static const struct precision precisions[] = {
    {DT_F32, DT_F32}, {DT_BF16, DT_F32}, {DT_BF16, DT_BF16}, {DT_INT8, DT_F32}, {DT_INT4, DT_F32}};
static void put_weight(struct call *c, bool trained) {
    const size_t K = (size_t)c->size.C, O = (size_t)c->size.V;
    c->precision = precisions[c->variant < ACTS ? c->variant % SPARSE / 2 : 0];
    const bool wide = trained && c->variant >= GRAD_ACTS && grad_acts[c->variant - GRAD_ACTS].wide;
    if (narrow_bits(c, trained ? GRAD_NARROW : NARROW) && !wide) c->precision = precisions[2];
    c->layout = c->variant & 1 ? WEIGHT_IN_OUT : WEIGHT_OUT_IN;
    c->trained = trained;
    const bool oi = c->layout == WEIGHT_OUT_IN;
    put(c, "weight", "i", 2, (size_t[]){oi ? O : K, oi ? K : O}, -1)->value = value_param;
}

static void put_add(struct call *c, const char *with, size_t cols) {
    if (c->bare)
        put_none(c, "add");
    else
        put_rows(c, "add", "i", cols)->shares = with;
}

static void shape_matmul(struct call *c) {
    const int narrow = narrow_bits(c, NARROW);
    struct arg *y = put_rows(c, "y", c->aliased ? "+" : "=", (size_t)c->size.V);
    y->narrow = narrow & 2;
    // Rounded, an error that a square doubles, and rounded again.
    if (act_of(c) != ACT_NONE) y->rounding = 3.0 / 256;
    struct arg *x = put_rows(c, "x", "i", (size_t)c->size.C);
    x->narrow = narrow & 1;
    if (c->variant >= SPARSE) x->value = c->variant < ACTS ? value_mostly_zero : value_faint;
    if (narrow & 2)
        put_none(c, "add");
    else
        put_add(c, "y", (size_t)c->size.V);
    put_weight(c, false);
    if (c->variant >= COMPANY) put_rows(c, "y of another", "=", (size_t)c->size.V)->narrow = true;
}
CALL(matmul) {
    struct product p[2] = {{t[0], t[1], w, t[2], act_of(c)}};
    const bool two = c->variant >= COMPANY;
    if (two) p[1] = (struct product){t[4], t[1], w, tensor_none(), ACT_NONE};
    op_matmul(be, p, 1 + two);
}

static bool has_slope(const struct call *c) {
    return c->variant >= GRAD_ACTS;
}
static bool has_company(const struct call *c) {
    return has_slope(c) ? grad_acts[c->variant - GRAD_ACTS].company : c->variant >= GRAD_COMPANY;
}

static void shape_matmul_bwd_x(struct call *c) {
    const bool wide = has_slope(c) && grad_acts[c->variant - GRAD_ACTS].wide;
    const int narrow = wide ? 0 : narrow_bits(c, GRAD_NARROW);
    // With a slope it is no gradient of matmul's x: another name.
    struct arg *dx = put_rows(c, has_slope(c) ? "dx before f" : "dx",
                              c->aliased && !has_slope(c) ? "+" : "=", (size_t)c->size.C);
    dx->narrow = narrow & 2;
    // cuBLASLt may round the product, and the sum again, or what it is times the slope.
    if (narrow & 2) dx->rounding = 2.0 / 256;
    put_rows(c, "dy", "i", (size_t)c->size.V)->narrow = narrow & 1;
    if (has_slope(c))
        put_rows(c, "y", "i", (size_t)c->size.C)->value = value_activated;
    else
        put_add(c, "dx", (size_t)c->size.C);
    c->arg[c->args - 1].narrow = narrow & 2;
    put_weight(c, true);
    if (has_company(c)) put_rows(c, "dx of another", "=", (size_t)c->size.C)->narrow = true;
}
CALL(matmul_bwd_x) {
    struct input_grad g[2] = {{.dx = t[0], .dy = t[1], .w = w}};
    if (has_slope(c)) {
        g[0].y = t[2];
        g[0].act = (enum act)(c->variant % ACT_NONE);
    } else {
        g[0].add = t[2];
    }
    if (has_company(c)) g[1] = (struct input_grad){.dx = t[4], .dy = t[1], .w = w};
    op_matmul_bwd_x(be, g, 1 + has_company(c));
}

static void shape_matmul_bwd_w(struct call *c) {
    const size_t K = (size_t)c->size.C, O = (size_t)c->size.V;
    put(c, "dweight", c->bare ? "=" : "+", 2,
        (size_t[]){c->variant & 1 ? K : O, c->variant & 1 ? O : K}, -1);
    put_rows(c, "dy", "i", O)->narrow = narrow_bits(c, GRAD_NARROW) & 1;
    put_rows(c, "x", "i", K)->narrow = narrow_bits(c, GRAD_NARROW) & 2;
    put_weight(c, true);
    if (c->variant < GRAD_COMPANY) return;
    put(c, "dweight of another", "=", 2, c->arg[0].dim, -1);
}
CALL(matmul_bwd_w) {
    struct weight_grad g[2] = {{t[0], t[1], t[2], w, !c->bare}};
    const bool two = c->variant >= GRAD_COMPANY;
    if (two) g[1] = (struct weight_grad){t[4], t[1], t[2], w, false};
    op_matmul_bwd_w(be, g, 1 + two);
}

static void shape_act(struct call *c) {
    put_rows(c, "y", c->aliased ? "+" : "=", (size_t)c->size.C);
    put_rows(c, "x", "i", (size_t)c->size.C)->shares = "y";
}
CALL(act) {
    op_act(be, t[0], t[1], (enum act)c->variant);
}

static void shape_act_bwd(struct call *c) {
    const bool narrow = c->variant >= ACT_NONE;
    put_rows(c, "dx", c->aliased ? "+" : "=", (size_t)c->size.C)->narrow = narrow;
    struct arg *a = put_rows(c, "dy", "i", (size_t)c->size.C);
    a->shares = "dx";
    a->narrow = narrow;
    a = put_rows(c, "y", "i", (size_t)c->size.C);
    a->value = value_activated;
    a->narrow = narrow;
}
CALL(act_bwd) {
    op_act_bwd(be, t[0], t[1], t[2], (enum act)(c->variant % ACT_NONE));
}

// ---- time mix ----------------------------------------------------------------------------------

// rkv and lora; from variant 1 on they and what else lies between products are bf16.
static void put_projections(struct call *c) {
    struct arg *a = put_planes(c, "rkv", "i", RKV_COUNT);
    a->value = value_rkv;
    a->narrow = c->variant & 1;
    a = put_planes(c, "lora", "i", LORA_COUNT);
    a->value = value_gate_input;
    a->narrow = c->variant & 1;
}

static void shape_key_prep(struct call *c) {
    put_planes(c, "u", "=", U_COUNT)->narrow = c->variant;
    put_projections(c);
    if (c->bare)
        put_none(c, "v_first");
    else
        put_rows(c, "v_first", "i", (size_t)c->size.C)->narrow = c->variant;
    put_params(c, "vecs", "i", KEY_COUNT);
}
CALL(key_prep) {
    op_key_prep(be, t[0], t[1], t[2], t[3], t[4], c->H);
}

static void shape_key_prep_bwd(struct call *c) {
    put_planes(c, "drkv", ".==", RKV_COUNT)->narrow = c->variant;
    put_planes(c, "dlora", "===.", LORA_COUNT)->narrow = c->variant;
    if (c->bare)
        put_none(c, "dv_first");
    else
        put_rows(c, "dv_first", "+", (size_t)c->size.C)->narrow = c->variant;
    put_params(c, "dvecs", "+", KEY_COUNT);
    put_planes(c, "du", "i", U_COUNT)->narrow = c->variant;
    put_projections(c);
    if (c->bare)
        put_none(c, "v_first");
    else
        put_rows(c, "v_first", "i", (size_t)c->size.C)->narrow = c->variant;
    put_params(c, "vecs", "i", KEY_COUNT);
}
CALL(key_prep_bwd) {
    op_key_prep_bwd(be, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], c->H);
}

static void put_saved(struct call *c) {
    struct arg *a = put(c, "saved", "~", 1, (size_t[]){1}, -1);
    a->dtype = DT_U8;
    a->aligned = true; // its size is the backend's business: run_open asks
}

static void put_wkv_inputs(struct call *c, bool narrow) {
    put_rows(c, "r", "i", (size_t)c->size.C)->narrow = narrow;
    struct arg *a = put_planes(c, "u", "i", U_COUNT);
    a->value = value_wkv_input;
    a->narrow = narrow;
}

// Variants: for training; without what it saves; for training in bf16; f16 states, if they can hold
// what is read behind a cell's end; without what it saves in bf16.
static void shape_wkv7(struct call *c) {
    const bool narrow = c->variant == 2 || c->variant == 4,
               trains = c->variant % 2 == 0 && c->variant < 4;
    const bool half = c->variant == 3 && (c->fill != FILL_HUGE || c->size.R <= STATE_CELL);
    put_rows(c, "y", "=", (size_t)c->size.C)->narrow = narrow;
    if (c->bare)
        put_none(c, "state_out");
    else
        put_state(c, "state_out", c->aliased ? "+" : "=")->half = half;
    if (c->bare || !trains)
        put_none(c, "saved");
    else
        put_saved(c);
    put_wkv_inputs(c, narrow);
    if (c->bare) {
        put_none(c, "state_in");
    } else {
        struct arg *a = put_state(c, "state_in", "i");
        a->shares = "state_out";
        a->half = half;
    }
    put_batch(c);
}
CALL(wkv7) {
    op_wkv7(be, t[0], t[1], t[2], t[3], t[4], t[5], b, c->H);
}

static void shape_wkv7_bwd(struct call *c) {
    put_rows(c, "dr", "+", (size_t)c->size.C)->narrow = c->variant;
    put_planes(c, "du", "=++==", U_COUNT)->narrow = c->variant;
    if (c->bare)
        put_none(c, "dstate_in");
    else
        put_state(c, "dstate_in", "=");
    put_rows(c, "dy", "i", (size_t)c->size.C)->narrow = c->variant;
    put_wkv_inputs(c, c->variant);
    put_saved(c);
    if (c->bare)
        put_none(c, "dstate_out");
    else
        put_state(c, "dstate_out", "i");
    if (c->bare)
        put_none(c, "state_in");
    else
        put_state(c, "state_in", "i");
    put_rows(c, "y", "=", (size_t)c->size.C)->narrow = c->variant;
    put_batch(c);
}
// What the forward pass saves is the backend's own affair, so it must have run.
STEP(prepare, wkv7_bwd) {
    op_wkv7(be, t[9], tensor_none(), t[6], t[4], t[5], t[8], b, c->H);
}
CALL(wkv7_bwd) {
    op_wkv7_bwd(be, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], b, c->H);
}

static void put_read_inputs(struct call *c) {
    const size_t C = (size_t)c->size.C;
    put_rows(c, "y", "i", C)->narrow = c->variant;
    put_rows(c, "r", "i", C)->narrow = c->variant;
    put_planes(c, "u", "i", U_COUNT)->narrow = c->variant;
    put_rows(c, "g", "i", C)->narrow = c->variant;
    put_params(c, "vecs", "i", READ_COUNT);
}

static void shape_readout(struct call *c) {
    put_rows(c, "o", "=", (size_t)c->size.C)->narrow = c->variant;
    put_read_inputs(c);
}
CALL(readout) {
    op_readout(be, t[0], t[1], t[2], t[3], t[4], t[5], c->H);
}

// Bits of a variant: bf16 m; one mix; spans of one row (.singles).
static void shape_norm_mix(struct call *c) {
    const size_t n = c->variant & 2 ? 1 : MIX_COUNT, C = (size_t)c->size.C;
    put_planes(c, "m", "=", n)->narrow = c->variant & 1;
    put_shift_out(c);
    put_rows(c, "z", "~", C);
    put_rows(c, "x", "i", C);
    put_vector(c, "w", "i", C);
    put_vector(c, "b", "i", C);
    put_shift_in(c);
    put_params(c, "mix", "i", n);
    put_batch(c);
}
CALL(norm_mix) {
    op_norm_mix(be, t[0], t[1], t[2], t[3], t[4], t[5], 1e-5, t[6], t[7], b);
}

// Bits of a variant: bf16 dm and dx once more; one mix.
static void shape_norm_mix_bwd(struct call *c) {
    const size_t n = c->variant & 2 ? 1 : MIX_COUNT, C = (size_t)c->size.C;
    put_rows(c, "dx", c->aliased ? "+" : "=", C);
    if (c->variant & 1)
        put_rows(c, "rounded", "=", C)->narrow = true;
    else
        put_none(c, "rounded");
    put_vector(c, "dw", "+", C);
    put_vector(c, "db", "+", C);
    put_params(c, "dmix", "+", n);
    put_planes(c, "dm", "i", n)->narrow = c->variant & 1;
    put_rows(c, "x", "i", C);
    put_vector(c, "w", "i", C);
    put_vector(c, "b", "i", C);
    put_params(c, "mix", "i", n);
    if (c->bare)
        put_none(c, "shift_in");
    else
        put_shift(c, "shift_in", "i");
    put_add(c, "dx", C);
    put_rows(c, "z", "~", C);
    put_rows(c, "dz", "~", C);
    put_batch(c);
}
CALL(norm_mix_bwd) {
    const struct norm_mix_bwd p = {.dx = t[0],
                                   .rounded = t[1],
                                   .dw = t[2],
                                   .db = t[3],
                                   .dmix = t[4],
                                   .dm = t[5],
                                   .x = t[6],
                                   .w = t[7],
                                   .b = t[8],
                                   .mix = t[9],
                                   .shift_in = t[10],
                                   .add = t[11],
                                   .z = t[12],
                                   .dz = t[13],
                                   .eps = 1e-5};
    op_norm_mix_bwd(be, &p, b);
}

// Spans of one row (.singles): longer ones are its parts everywhere. Bits of a
// variant: bf16; f16 states.
static void shape_recall(struct call *c) {
    const size_t C = (size_t)c->size.C;
    put_rows(c, "o", "=", C)->narrow = c->variant & 1;
    if (c->bare)
        put_none(c, "v_out");
    else
        put_rows(c, "v_out", "=", C)->narrow = c->variant & 1;
    put_state(c, "state", "+")->half = c->variant & 2;
    put_planes(c, "u", "~", U_COUNT)->narrow = c->variant & 1;
    put_rows(c, "y", "~", C)->narrow = c->variant & 1;
    put_projections(c);
    if (c->bare)
        put_none(c, "v_first");
    else
        put_rows(c, "v_first", "i", C)->narrow = c->variant & 1;
    put_params(c, "key_vecs", "i", KEY_COUNT);
    put_params(c, "read_vecs", "i", READ_COUNT);
    put_batch(c);
}
CALL(recall) {
    const struct recall r = {.o = t[0],
                             .v_out = t[1],
                             .state = t[2],
                             .saved = tensor_none(),
                             .u = t[3],
                             .y = t[4],
                             .rkv = t[5],
                             .lora = t[6],
                             .v_first = t[7],
                             .key_vecs = t[8],
                             .read_vecs = t[9]};
    op_recall(be, &r, b, c->H);
}

static void shape_readout_bwd(struct call *c) {
    const size_t C = (size_t)c->size.C;
    put_rows(c, "dy", "=", C)->narrow = c->variant;
    put_rows(c, "dr", "=", C)->narrow = c->variant;
    put_planes(c, "du", ".==..", U_COUNT)->narrow = c->variant;
    put_rows(c, "dg", "=", C)->narrow = c->variant;
    put_params(c, "dvecs", "+", READ_COUNT);
    put_rows(c, "do", "i", C)->narrow = c->variant;
    put_read_inputs(c);
}
CALL(readout_bwd) {
    op_readout_bwd(be, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], c->H);
}

// ---- loss, sampling, optimizer, memory ---------------------------------------------------------

static void shape_xent(struct call *c) {
    put(c, "loss", "=", 1, (size_t[]){(size_t)c->size.R}, 0);
    if (c->bare)
        put_none(c, "dlogits");
    else
        put_rows(c, "dlogits", c->aliased ? "+" : "=", (size_t)c->size.V)->narrow = c->variant & 2;
    struct arg *logits = put_rows(c, "logits", "i", (size_t)c->size.V);
    logits->shares = "dlogits";
    logits->narrow = c->variant & 2;
    put_ids(c, "target", value_target);
}
CALL(xent) {
    op_xent(be, t[0], t[1], t[2], t[3], 0.125f, c->variant & 1);
}

static void shape_sample(struct call *c) {
    const size_t R = (size_t)c->size.R, V = (size_t)c->size.V;
    if (!c->row_map) c->whole_rows = c->size.R;
    struct arg *a = put(c, "token", "=", 1, &R, 0);
    a->dtype = DT_I32;
    put_rows(c, "logits", "~", V);
    a = put_rows(c, "rows", "i", sizeof(struct sample_row));
    a->dtype = DT_U8;
    a->aligned = true;
    a->value = value_sample_rows;
    if (c->bare) {
        put_none(c, "penalties");
        put_none(c, "biases");
        return;
    }
    a = put(c, "penalties", "+", 2, (size_t[]){(size_t)c->whole_rows, sample_penalty_bytes(V)}, -1);
    a->dtype = DT_U8;
    a->aligned = true;
    a->value = value_sample_penalties;
    const size_t biases = BIASES * sizeof(struct sample_bias);
    a = put(c, "biases", "i", 2, (size_t[]){(size_t)c->whole_rows, biases}, -1);
    a->dtype = DT_U8;
    a->aligned = true;
    a->value = value_sample_biases;
}
CALL(sample) {
    op_sample(be, t[0], t[1], t[2], t[3], t[4]);
}

// All slots but every seventh, the last one first.
enum { PLANES_TO_CLEAR = 2, SLOTS_TO_CLEAR = 160 };
static int slots_to_clear(int32_t *slots) {
    int n = 0;
    for (int i = SLOTS_TO_CLEAR - 1; i >= 0; i--)
        if (i % 7) slots[n++] = i;
    return n;
}
static void shape_clear(struct call *c) {
    static const enum dtype stored[] = {DT_NONE, DT_F64, DT_BF16};
    const size_t dims[] = {PLANES_TO_CLEAR, SLOTS_TO_CLEAR, (size_t)c->size.C};
    struct arg *a = put(c, "y", "=", 3, dims, -1);
    a->dtype = stored[c->variant];
    a->slots = true;
    a->slot_axis = 1;
    memset(c->used, 0, sizeof c->used);
    int32_t slots[SLOTS_TO_CLEAR];
    for (int n = slots_to_clear(slots); n-- > 0;) c->used[slots[n]] = true;
}
CALL(clear) {
    int32_t slots[SLOTS_TO_CLEAR];
    const int n = slots_to_clear(slots);
    op_clear(be, t[0], slots, n);
}

static void shape_sum(struct call *c) {
    struct arg *a = put(c, "sum", c->bare ? "=" : "+", 1, (size_t[]){1}, -1);
    a->dtype = DT_F64;
    a->aligned = true;
    put_rows(c, "x", "i", (size_t)c->size.C);
}
CALL(sum) {
    op_sum(be, t[0], t[1], !c->bare);
}

static void shape_sumsq(struct call *c) {
    shape_sum(c);
}
CALL(sumsq) {
    op_sumsq(be, t[0], t[1], !c->bare);
}

// Three groups with a gap after the first; the last is rounded too.
enum { GROUPS = 3 };
static size_t group_start(const struct call *c, int k) {
    const size_t n = (size_t)c->size.R * (size_t)c->size.C;
    return k == 0 ? 0 : k == 1 ? n / 3 : k == 2 ? n / 2 : n;
}
static double value_groups(const struct call *c, const struct arg *a, size_t i) {
    const int k = (int)(i / a->dim[1]);
    const size_t first = group_start(c, k), gap = k == 0 ? group_start(c, 1) / 4 : 0;
    const struct adamw_group g = {.first = (int64_t)first,
                                  .count = (int64_t)(group_start(c, k + 1) - first - gap),
                                  .lr_scale = k + 1,
                                  .weight_decay = c->variant && k ? 0.1 : 0};
    return ((const unsigned char *)&g)[i % a->dim[1]];
}
static double value_sums(const struct call *c, const struct arg *a, size_t i) {
    (void)a;
    if (c->variant == 3) return i ? NAN : 1; // not a step to take
    if (c->variant == 4) return i ? 1 : INFINITY;
    return i ? 3 : c->variant == 1 ? 16 : 1e-3; // clipped by 4, or not
}
static double value_now(const struct call *c, const struct arg *a, size_t i) {
    (void)a;
    const double step = c->variant ? 1000 : 1;
    return i == 0 ? 6e-4 : 1 - pow(i == 1 ? 0.9 : 0.99, step);
}
static void put_doubles(struct call *c, const char *name, size_t n,
                        double (*value)(const struct call *, const struct arg *, size_t)) {
    struct arg *a = put(c, name, "i", 1, &n, -1);
    a->dtype = DT_F64;
    a->aligned = true;
    a->value = value;
}
static void shape_adamw(struct call *c) {
    const size_t n = (size_t)c->size.R * (size_t)c->size.C, last = n - group_start(c, 2);
    put(c, "p", "+", 1, &n, -1);
    put(c, "m", "+", 1, &n, -1)->value = value_gradient;
    put(c, "v", "+", 1, &n, -1)->value = value_gradient_squared;
    put(c, "g", "i", 1, &n, -1)->value = value_gradient;
    if (c->bare || c->variant > 2)
        put_none(c, "rounded");
    else
        put(c, "rounded", "=", 1, &last, -1)->narrow = true;
    struct arg *a = put(c, "groups", "i", 2, (size_t[]){GROUPS, sizeof(struct adamw_group)}, -1);
    a->dtype = DT_U8;
    a->aligned = true;
    a->value = value_groups;
    put_doubles(c, "sums", 2, value_sums);
    put_doubles(c, "now", 3, value_now);
}
CALL(adamw) {
    const struct adamw p = {.p = t[0],
                            .m = t[1],
                            .v = t[2],
                            .g = t[3],
                            .rounded = t[4],
                            .groups = t[5],
                            .sums = t[6],
                            .now = t[7],
                            .beta1 = 0.9,
                            .beta2 = 0.99,
                            .eps = 1e-18,
                            .clip = c->variant == 2 ? 0 : 1};
    op_adamw(be, &p);
}

static const enum dtype floats[] = {DT_NONE, DT_BF16, DT_F16, DT_F64};

static void shape_fill(struct call *c) {
    put_rows(c, "y", "=", (size_t)c->size.C)->dtype = floats[c->variant % 4];
}
CALL(fill) {
    op_fill(be, t[0], c->variant < 4 ? 0.1f : 0);
}

static void shape_copy(struct call *c) {
    put_rows(c, "y", "=", (size_t)c->size.C)->dtype = floats[c->variant % 4];
    put_rows(c, "x", "i", (size_t)c->size.C)->dtype = floats[c->variant / 4];
}
CALL(copy) {
    op_copy(be, t[0], t[1]);
}

static void shape_add(struct call *c) {
    put_rows(c, "y", "+", (size_t)c->size.C)->narrow = c->variant;
    put_rows(c, "x", "i", (size_t)c->size.C)->narrow = c->variant;
}
CALL(add) {
    op_add(be, t[0], t[1]);
}

// ---- the list ----------------------------------------------------------------------------------

#define END                                                                                        \
    { .R = -1 }

// One channel would leave a norm nothing but rounding to divide.
static const struct size flat_sizes[] = {{1, 1, 1, 3},     {0, 48, 16, 5},   {3, 33, 11, 2},
                                         {17, 100, 4, 50}, {70, 260, 4, 11}, END};
static const struct size rows_sizes[] = {{1, 3, 1, 3},
                                         {0, 48, 16, 5},
                                         {1, 7, 7, 9},
                                         {3, 33, 11, 2},
                                         {17, 100, 4, 50},
                                         {33, 64, 16, 7},
                                         {5, 200, 8, 300},
                                         {70, 260, 4, 11},
                                         {9, 772, 4, 3},
                                         {3, 1028, 4, 3},
                                         END};
static const struct size span_sizes[] = {{1, 9, 1, 1},    {0, 48, 16, 1},  {5, 33, 11, 1},
                                         {37, 100, 4, 1}, {70, 48, 16, 1}, END};
static const struct size head_sizes[] = {{1, 16, 16, 1},   {0, 64, 64, 1},
                                         {5, 48, 16, 1},   {19, 96, 32, 1},
                                         {37, 128, 64, 1}, {34, 192, 64, 1},
                                         {18, 240, 80, 1}, {150, 64, 64, 1},
                                         {1, 128, 64, 1},  END};
// For wkv7: 36 and 138 heads of spans before the last ones, of which a device's blocks share few
// and take many.
static const struct size device_head_sizes[] = {{52, 384, 64, 1}, {52, 1472, 64, 1}, END};
// Widths of a warp's and of a block's rows, and some that neither takes.
static const struct size row_span_sizes[] = {{1, 9, 1, 1},    {0, 48, 16, 1},  {5, 33, 11, 1},
                                             {37, 100, 4, 1}, {6, 500, 4, 1},  {11, 768, 64, 1},
                                             {9, 1028, 4, 1}, {2, 4100, 4, 1}, END};
// More rows than three for each multiprocessor of a device, and than a large one has warps for.
static const struct size device_span_sizes[] = {{401, 20, 4, 1},
#ifndef CUDA_EMU
                                                {1700, 20, 4, 1},
#endif
                                                END};
static const struct size step_sizes[] = {{1, 16, 16, 1},   {0, 64, 64, 1},
                                         {5, 48, 16, 1},   {1, 768, 64, 1},
                                         {37, 128, 64, 1}, {70, 64, 64, 1},
                                         {18, 240, 80, 1}, END};
static const struct size step_bench[] = {{1, 768, 64, 1}, {8, 768, 64, 1}, {64, 768, 64, 1}, END};
// Heads that are no multiple of a vector: not for wkv7.
static const struct size odd_head_sizes[] = {{1, 16, 16, 1},
                                             {0, 64, 64, 1},
                                             {5, 33, 11, 1},
                                             {19, 96, 32, 1},
                                             {37, 128, 64, 1},
                                             {18, 200, 40, 1},
                                             END};
static const struct size product_sizes[] = {
    {1, 1, 1, 1},     {0, 16, 1, 32},  {1, 7, 1, 5},     {3, 33, 1, 31},
    {13, 100, 1, 70}, {25, 64, 1, 96}, {100, 17, 1, 33}, {2, 259, 1, 64},
    {13, 2051, 1, 9}, {1, 256, 1, 64}, {66, 40, 1, 88},  {17, 520, 1, 24},
    {66, 200, 1, 17}, {257, 8, 1, 16}, {9, 72, 1, 328},  END};
// Rows that go in tiles whatever the weights are.
static const struct size device_product_sizes[] = {{200, 270, 1, 24}, END};
static const struct size loss_sizes[] = {{1, 1, 1, 1},    {0, 1, 1, 7},
                                         {3, 1, 1, 7},    {17, 1, 1, 1001},
                                         {5, 1, 1, 4099}, {3, 1, 1, 4104},
                                         {8, 1, 1, 9001}, END};

static const struct size rows_bench[] = {
    {1, 768, 64, 65536}, {32, 768, 64, 65536}, {512, 768, 64, 65536}, {1024, 192, 64, 256}, END};
// The last is a step of training.
static const struct size pass_bench[] = {{1, 768, 64, 1},    {32, 768, 64, 1},   {512, 768, 64, 1},
                                         {1024, 192, 64, 1}, {8192, 768, 64, 1}, END};
static const struct size wide_bench[] = {
    {1, 3072, 64, 1}, {32, 3072, 64, 1}, {512, 3072, 64, 1}, {1024, 768, 64, 1}, END};
static const struct size product_bench[] = {{1, 768, 1, 768},
                                            {32, 768, 1, 768},
                                            {512, 768, 1, 768},
                                            {1, 768, 1, 3072},
                                            {32, 768, 1, 3072},
                                            {512, 768, 1, 3072},
                                            {512, 3072, 1, 768},
                                            {1, 768, 1, 65536},
                                            {512, 768, 1, 64},
                                            {512, 64, 1, 768},
                                            {1024, 192, 1, 192},
                                            {1024, 192, 1, 768},
                                            END};
static const struct size loss_bench[] = {
    {1, 1, 1, 65536}, {32, 1, 1, 65536}, {1024, 1, 1, 256}, {2048, 1, 1, 65536}, END};
static const struct size flat_bench[] = {{1, 768, 1, 1}, {768, 768, 1, 1}, {3072, 3072, 1, 1}, END};

#define NAMED(op) .name = #op, .shape = shape_##op, .call = call_##op

// In the order of ops.h. A tolerance is what single precision costs with the sums of these sizes,
// at most three times the worst error measured.
const struct op_case op_cases[] = {
    {NAMED(embed), .sizes = flat_sizes, .bench = rows_bench, .variants = 3, .rowwise = true},
    {NAMED(embed_bwd), .sizes = rows_sizes, .bench = rows_bench, .variants = 1, .tolerance = 1e-6,
     .forward = "embed"},
    {NAMED(gather_rows), .sizes = flat_sizes, .bench = rows_bench, .variants = 1, .rowwise = true},
    {NAMED(norm), .sizes = rows_sizes, .bench = rows_bench, .variants = 2, .rowwise = true,
     .tolerance = 1e-6},
    {NAMED(norm_bwd), .sizes = rows_sizes, .bench = rows_bench, .variants = 1, .rowwise = true,
     .can_bare = true, .can_alias = true, .tolerance = 2e-6, .forward = "norm"},
    {NAMED(shift_mix), .sizes = span_sizes, .bench = rows_bench, .variants = 4, .can_bare = true,
     .can_alias = true, .tolerance = 3e-7},
    {NAMED(shift_mix_bwd), .sizes = span_sizes, .bench = rows_bench, .variants = 4,
     .can_bare = true, .tolerance = 1e-6, .forward = "shift_mix"},
    {NAMED(matmul), .bench_variants = 0x155u, .sizes = product_sizes,
     .device_sizes = device_product_sizes, .bench = product_bench, .variants = MATMULS,
     .rowwise = true, .can_bare = true, .can_alias = true, .tolerance = 4e-6,
     .flops = flops_matmul},
    {NAMED(matmul_bwd_x), .bench_variants = 0x11u, .sizes = product_sizes, .bench = product_bench,
     .variants = INPUT_GRADS, .rowwise = true, .can_bare = true, .can_alias = true,
     .tolerance = 2e-6, .forward = "matmul", .flops = flops_matmul},
    {NAMED(matmul_bwd_w), .bench_variants = 0x11u, .sizes = product_sizes, .bench = product_bench,
     .variants = MATMUL_GRADS, .can_bare = true, .tolerance = 2e-6, .forward = "matmul",
     .flops = flops_matmul},
    {NAMED(act), .bench_variants = 7u, .sizes = flat_sizes, .bench = wide_bench, .variants = 3,
     .rowwise = true, .can_alias = true, .tolerance = 3e-7, .flops = flops_act},
    {NAMED(act_bwd), .bench_variants = 7u, .sizes = flat_sizes, .bench = wide_bench, .variants = 6,
     .rowwise = true, .can_alias = true, .tolerance = 3e-7, .forward = "act"},
    {NAMED(key_prep), .sizes = odd_head_sizes, .bench_variants = 3u, .bench = pass_bench,
     .variants = 2, .rowwise = true, .can_bare = true, .tolerance = 1e-6, .flops = flops_key_prep},
    {NAMED(key_prep_bwd), .sizes = odd_head_sizes, .bench_variants = 3u, .bench = pass_bench,
     .variants = 2, .rowwise = true, .can_bare = true, .tolerance = 2e-6, .forward = "key_prep",
     .flops = flops_key_prep_bwd},
    {NAMED(wkv7), .sizes = head_sizes, .device_sizes = device_head_sizes, .tensor_cores = 2e-5,
     .bench = rows_bench, .variants = 5, .narrow = 1 << 2 | 1 << 4, .can_bare = true,
     .can_alias = true, .tolerance = 5e-6, .flops = flops_wkv7},
    {NAMED(wkv7_bwd), .prepare = prepare_wkv7_bwd, .tensor_cores = 2e-5, .sizes = head_sizes,
     .bench = rows_bench, .variants = 2, .can_bare = true, .tolerance = 5e-6, .forward = "wkv7",
     .flops = flops_wkv7_bwd},
    {NAMED(readout), .sizes = odd_head_sizes, .bench_variants = 3u, .bench = pass_bench,
     .variants = 2, .rowwise = true, .tolerance = 1e-6},
    {NAMED(readout_bwd), .sizes = odd_head_sizes, .bench_variants = 3u, .bench = pass_bench,
     .variants = 2, .rowwise = true, .tolerance = 5e-6, .forward = "readout"},
    {NAMED(norm_mix), .sizes = row_span_sizes, .device_sizes = device_span_sizes,
     .bench_variants = 15u, .bench = pass_bench, .variants = 8, .singles = 0xf0, .can_bare = true,
     .can_alias = true, .tolerance = 1e-6},
    {NAMED(norm_mix_bwd), .bench_variants = 15u, .sizes = row_span_sizes, .bench = pass_bench,
     .variants = 4, .can_bare = true, .can_alias = true, .tolerance = 3e-6, .forward = "norm_mix"},
    {NAMED(recall), .sizes = step_sizes, .bench = step_bench, .variants = 4, .singles = 15,
     .can_bare = true, .tolerance = 5e-6},
    {NAMED(clear), .sizes = flat_sizes, .bench = rows_bench, .variants = 3},
    {NAMED(xent), .bench_variants = 10u, .sizes = loss_sizes, .bench = loss_bench, .variants = 4,
     .rowwise = true, .can_bare = true, .can_alias = true, .tolerance = 1e-6, .forward = "xent",
     .flops = flops_xent},
    {NAMED(sample), .sizes = loss_sizes, .bench = loss_bench, .variants = 1, .can_bare = true},
    {NAMED(sum), .sizes = flat_sizes, .bench = flat_bench, .variants = 1, .can_bare = true,
     .tolerance = 1e-12},
    {NAMED(sumsq), .sizes = flat_sizes, .bench = flat_bench, .variants = 1, .can_bare = true,
     .tolerance = 1e-12},
    {NAMED(adamw), .sizes = flat_sizes, .bench = flat_bench, .variants = 5, .can_bare = true,
     .tolerance = 1e-6},
    {NAMED(fill), .bench_variants = 17u, .sizes = flat_sizes, .bench = flat_bench, .variants = 8,
     .rowwise = true},
    {NAMED(copy), .bench_variants = 19u, .sizes = flat_sizes, .bench = flat_bench, .variants = 16,
     .rowwise = true},
    {NAMED(add), .sizes = flat_sizes, .bench = flat_bench, .variants = 2, .rowwise = true,
     .tolerance = 1e-7},
};

const int op_case_count = sizeof op_cases / sizeof op_cases[0];

const struct op_case *op_case_find(const char *name) {
    for (int i = 0; i < op_case_count; i++)
        if (strcmp(op_cases[i].name, name) == 0) return &op_cases[i];
    return NULL;
}
