// The checked callers: a wrong shape is our own mistake and ends the program with the op's name,
// in every build, before it can spoil memory. RWKV_TRACE=1 prints each call.
#include "backend/ops.h"

#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t sample_penalty_bytes(size_t V) {
    return V * sizeof(float) + (V + 31) / 32 * 4;
}

#define OP(name)                                                                                   \
    { #name, offsetof(struct ops, name), false }
#define SEVERAL(name)                                                                              \
    { #name, offsetof(struct ops, name), true }

static const struct {
    const char *name;
    size_t offset;
    bool several; // ops as one: may be NULL
} op_table[] = {
    OP(embed),       OP(embed_bwd),     OP(gather_rows), OP(norm),          OP(norm_bwd),
    OP(shift_mix),   OP(shift_mix_bwd), OP(matmul),      OP(matmul_bwd_x),  OP(matmul_bwd_w),
    OP(act),         OP(act_bwd),       OP(key_prep),    OP(key_prep_bwd),  OP(wkv7),
    OP(wkv7_bwd),    OP(readout),       OP(readout_bwd), SEVERAL(norm_mix), SEVERAL(norm_mix_bwd),
    SEVERAL(recall), SEVERAL(clear),    OP(xent),        OP(sample),        OP(sum),
    OP(sumsq),       OP(adamw),         OP(fill),        OP(copy),          OP(add),
};

enum { OP_COUNT = sizeof op_table / sizeof op_table[0] };
_Static_assert(sizeof(struct ops) == OP_COUNT * sizeof(void (*)(void)), "an op without a name");

const char *op_name(int i) {
    return i >= 0 && i < OP_COUNT ? op_table[i].name : NULL;
}

int ops_missing(const struct ops *ops, const char **missing) {
    int n = 0;
    for (int i = OP_COUNT - 1; i >= 0; i--) {
        void (*f)(void);
        memcpy(&f, (const char *)ops + op_table[i].offset, sizeof f);
        if (f || op_table[i].several) continue;
        *missing = op_table[i].name;
        n++;
    }
    return n;
}

// ---- checks ------------------------------------------------------------------------------------

static void describe(char *out, size_t cap, struct tensor t) {
    size_t len = (size_t)snprintf(out, cap, "%s", tensor_is(t) ? dtype_name(t.dtype) : "absent");
    for (int d = 0; d < t.ndim && len < cap; d++)
        len += (size_t)snprintf(out + len, cap - len, "%s%zu", d ? "," : " (", t.dim[d]);
}

static void wrong(const char *op, const char *name, struct tensor t, const char *want) {
    char got[160];
    describe(got, sizeof got, t);
    die("bug: op %s: %s is %s), expected %s", op, name, got, want);
}

// One argument against the shape it must have.
static void want(const char *op, const char *name, struct tensor t, enum dtype type, int ndim,
                 size_t d0, size_t d1, size_t d2) {
    const size_t dim[3] = {d0, d1, d2};
    bool ok = tensor_is(t) && t.dtype == type && t.ndim == ndim;
    for (int d = 0; ok && d < ndim; d++) ok = t.dim[d] == dim[d];
    if (ok) return;
    char text[160];
    const struct tensor w = {.buf = t.buf, .dtype = type, .ndim = ndim, .dim = {d0, d1, d2}};
    describe(text, sizeof text, w);
    wrong(op, name, t, text);
}

static void maybe(const char *op, const char *name, struct tensor t, enum dtype type, int ndim,
                  size_t d0, size_t d1, size_t d2) {
    if (tensor_is(t)) want(op, name, t, type, ndim, d0, d1, d2);
}

static void require(const char *op, bool ok, const char *what) {
    if (!ok) die("bug: op %s: %s", op, what);
}

static void trace(const char *op, struct tensor y) {
    static _Atomic int on = -1; // engines of several threads ask
    if (on < 0) on = getenv("RWKV_TRACE") != NULL;
    if (!on) return;
    char text[160];
    describe(text, sizeof text, y);
    fprintf(stderr, "op %s → %s)\n", op, text);
}

static void want_batch(const char *op, const struct batch *b, size_t R) {
    require(op, b->rows >= 0 && (size_t)b->rows == R, "the batch has another number of rows");
    want(op, "span", b->span, DT_I32, 2, (size_t)b->spans, 4, 0);
    require(op, b->singles <= b->spans && (!b->spans || b->longest > 0), "lengths of spans");
    want(op, "prev", b->prev, DT_I32, 1, R, 0, 0);
    want(op, "last", b->last, DT_I32, 1, R, 0, 0);
}

// What may be rounded for products (°): be->real, or DT_BF16 where the backend knows how.
static enum dtype narrow(const struct backend *be, struct tensor t) {
    return t.dtype == DT_BF16 && can_narrow(be) ? DT_BF16 : be->real;
}

// The same with a weight, whose inputs decide.
static enum dtype narrow_with(const struct backend *be, const struct weight *w, struct tensor t) {
    return w->precision.inputs == DT_BF16 ? narrow(be, t) : be->real;
}

static bool same_shape(struct tensor a, struct tensor b) {
    bool same = a.ndim == b.ndim;
    for (int d = 0; same && d < a.ndim; d++) same = a.dim[d] == b.dim[d];
    return same;
}

// ---- the callers -------------------------------------------------------------------------------

void op_embed(struct backend *be, struct tensor y, struct tensor tokens, struct tensor drawn,
              struct tensor table) {
    require("embed", y.ndim == 2 && table.ndim == 2, "y and table have two dimensions");
    want("embed", "y", y, be->real, 2, y.dim[0], table.dim[1], 0);
    want("embed", "tokens", tokens, DT_I32, 1, y.dim[0], 0, 0);
    maybe("embed", "drawn", drawn, DT_I32, 1, drawn.dim[0], 0, 0);
    trace("embed", y);
    be->ops->embed(be, y, tokens, drawn, table);
}

void op_embed_bwd(struct backend *be, struct tensor dtable, struct tensor dy, struct tensor tokens,
                  struct tensor order) {
    want("embed_bwd", "dtable", dtable, be->real, 2, dtable.dim[0], dy.dim[1], 0);
    want("embed_bwd", "dy", dy, be->real, 2, dy.dim[0], dy.dim[1], 0);
    want("embed_bwd", "tokens", tokens, DT_I32, 1, dy.dim[0], 0, 0);
    want("embed_bwd", "order", order, DT_I32, 1, dy.dim[0], 0, 0);
    trace("embed_bwd", dtable);
    be->ops->embed_bwd(be, dtable, dy, tokens, order);
}

void op_gather_rows(struct backend *be, struct tensor y, struct tensor x, struct tensor rows) {
    want("gather_rows", "x", x, be->real, 2, x.dim[0], x.dim[1], 0);
    want("gather_rows", "y", y, be->real, 2, rows.dim[0], x.dim[1], 0);
    want("gather_rows", "rows", rows, DT_I32, 1, rows.dim[0], 0, 0);
    trace("gather_rows", y);
    be->ops->gather_rows(be, y, x, rows);
}

void op_norm(struct backend *be, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
             double eps) {
    const size_t R = x.dim[0], C = x.dim[1];
    want("norm", "x", x, be->real, 2, R, C, 0);
    want("norm", "y", y, narrow(be, y), 2, R, C, 0);
    want("norm", "w", w, be->real, 1, C, 0, 0);
    want("norm", "b", b, be->real, 1, C, 0, 0);
    trace("norm", y);
    be->ops->norm(be, y, x, w, b, eps);
}

void op_norm_bwd(struct backend *be, struct tensor dx, struct tensor dw, struct tensor db,
                 struct tensor dy, struct tensor x, struct tensor w, double eps,
                 struct tensor add) {
    const size_t R = x.dim[0], C = x.dim[1];
    want("norm_bwd", "dx", dx, be->real, 2, R, C, 0);
    want("norm_bwd", "dy", dy, be->real, 2, R, C, 0);
    maybe("norm_bwd", "add", add, be->real, 2, R, C, 0);
    want("norm_bwd", "w", w, be->real, 1, C, 0, 0);
    want("norm_bwd", "dw", dw, be->real, 1, C, 0, 0);
    want("norm_bwd", "db", db, be->real, 1, C, 0, 0);
    trace("norm_bwd", dx);
    be->ops->norm_bwd(be, dx, dw, db, dy, x, w, eps, add);
}

void op_shift_mix(struct backend *be, struct tensor m, struct tensor shift_out, struct tensor z,
                  struct tensor shift_in, struct tensor mix, const struct batch *b) {
    const size_t n = mix.dim[0], R = z.dim[0], C = z.dim[1];
    want("shift_mix", "m", m, narrow(be, m), 3, n, R, C);
    want("shift_mix", "mix", mix, be->real, 2, n, C, 0);
    maybe("shift_mix", "shift_in", shift_in, be->real, 2, shift_in.dim[0], C, 0);
    maybe("shift_mix", "shift_out", shift_out, be->real, 2, shift_out.dim[0], C, 0);
    want_batch("shift_mix", b, R);
    trace("shift_mix", m);
    be->ops->shift_mix(be, m, shift_out, z, shift_in, mix, b);
}

void op_shift_mix_bwd(struct backend *be, struct tensor dz, struct tensor dmix, struct tensor dm,
                      struct tensor z, struct tensor shift_in, struct tensor mix,
                      const struct batch *b) {
    const size_t n = mix.dim[0], R = z.dim[0], C = z.dim[1];
    want("shift_mix_bwd", "dz", dz, be->real, 2, R, C, 0);
    want("shift_mix_bwd", "dm", dm, narrow(be, dm), 3, n, R, C);
    want("shift_mix_bwd", "dmix", dmix, be->real, 2, n, C, 0);
    maybe("shift_mix_bwd", "shift_in", shift_in, be->real, 2, shift_in.dim[0], C, 0);
    want_batch("shift_mix_bwd", b, R);
    trace("shift_mix_bwd", dz);
    be->ops->shift_mix_bwd(be, dz, dmix, dm, z, shift_in, mix, b);
}

void op_matmul(struct backend *be, const struct product *products, int n) {
    for (int i = 0; i < n; i++) {
        const struct product *p = &products[i];
        const size_t R = p->x.dim[0];
        want("matmul", "x", p->x, narrow_with(be, p->w, p->x), 2, R, p->w->in, 0);
        want("matmul", "y", p->y, narrow_with(be, p->w, p->y), 2, R, p->w->out, 0);
        maybe("matmul", "add", p->add, be->real, 2, R, p->w->out, 0);
        require("matmul", p->y.dtype == be->real || !tensor_is(p->add), "y is rounded once");
        trace("matmul", p->y);
    }
    be->ops->matmul(be, products, n);
}

void op_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n) {
    for (int i = 0; i < n; i++) {
        const struct input_grad *g = &grads[i];
        const size_t R = g->dy.dim[0];
        require("matmul_bwd_x", g->w->trained, "the weight was not created to be trained");
        want("matmul_bwd_x", "dy", g->dy, narrow_with(be, g->w, g->dy), 2, R, g->w->out, 0);
        want("matmul_bwd_x", "dx", g->dx, narrow_with(be, g->w, g->dx), 2, R, g->w->in, 0);
        maybe("matmul_bwd_x", "add", g->add, g->dx.dtype, 2, R, g->w->in, 0);
        maybe("matmul_bwd_x", "y", g->y, g->dx.dtype, 2, R, g->w->in, 0);
        require("matmul_bwd_x", !tensor_is(g->y) || !tensor_is(g->add), "nothing is added with y");
        trace("matmul_bwd_x", g->dx);
    }
    be->ops->matmul_bwd_x(be, grads, n);
}

void op_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n) {
    for (int i = 0; i < n; i++) {
        const struct weight_grad *g = &grads[i];
        const size_t R = g->x.dim[0], K = g->w->in, O = g->w->out;
        const bool oi = g->w->layout == WEIGHT_OUT_IN;
        want("matmul_bwd_w", "x", g->x, narrow_with(be, g->w, g->x), 2, R, K, 0);
        want("matmul_bwd_w", "dy", g->dy, narrow_with(be, g->w, g->dy), 2, R, O, 0);
        want("matmul_bwd_w", "dw", g->dw, be->real, 2, oi ? O : K, oi ? K : O, 0);
        trace("matmul_bwd_w", g->dw);
    }
    be->ops->matmul_bwd_w(be, grads, n);
}

void op_act(struct backend *be, struct tensor y, struct tensor x, enum act f) {
    require("act", f != ACT_NONE, "there is nothing to do");
    require("act", y.dtype == be->real && x.dtype == be->real && same_shape(y, x), "y is like x");
    trace("act", y);
    be->ops->act(be, y, x, f);
}

void op_act_bwd(struct backend *be, struct tensor dx, struct tensor dy, struct tensor y,
                enum act f) {
    require("act_bwd",
            dx.dtype == narrow(be, dx) && dy.dtype == dx.dtype && y.dtype == dx.dtype &&
                same_shape(dx, dy) && same_shape(dy, y),
            "dx and dy are like y");
    trace("act_bwd", dx);
    be->ops->act_bwd(be, dx, dy, y, f);
}

void op_key_prep(struct backend *be, struct tensor u, struct tensor rkv, struct tensor lora,
                 struct tensor v_first, struct tensor vecs, int H) {
    const size_t R = u.dim[1], C = u.dim[2];
    want("key_prep", "u", u, narrow(be, u), 3, U_COUNT, R, C);
    want("key_prep", "rkv", rkv, u.dtype, 3, RKV_COUNT, R, C);
    want("key_prep", "lora", lora, u.dtype, 3, LORA_COUNT, R, C);
    maybe("key_prep", "v_first", v_first, u.dtype, 2, R, C, 0);
    want("key_prep", "vecs", vecs, be->real, 2, KEY_COUNT, C, 0);
    require("key_prep", H > 0 && C % (size_t)H == 0, "H divides C");
    trace("key_prep", u);
    be->ops->key_prep(be, u, rkv, lora, v_first, vecs, H);
}

void op_key_prep_bwd(struct backend *be, struct tensor drkv, struct tensor dlora,
                     struct tensor dv_first, struct tensor dvecs, struct tensor du,
                     struct tensor rkv, struct tensor lora, struct tensor v_first,
                     struct tensor vecs, int H) {
    const size_t R = du.dim[1], C = du.dim[2];
    want("key_prep_bwd", "du", du, narrow(be, du), 3, U_COUNT, R, C);
    want("key_prep_bwd", "drkv", drkv, du.dtype, 3, RKV_COUNT, R, C);
    want("key_prep_bwd", "dlora", dlora, du.dtype, 3, LORA_COUNT, R, C);
    want("key_prep_bwd", "dvecs", dvecs, be->real, 2, KEY_COUNT, C, 0);
    want("key_prep_bwd", "rkv", rkv, du.dtype, 3, RKV_COUNT, R, C);
    want("key_prep_bwd", "lora", lora, du.dtype, 3, LORA_COUNT, R, C);
    require("key_prep_bwd", tensor_is(v_first) == tensor_is(dv_first),
            "v_first and dv_first come together");
    maybe("key_prep_bwd", "v_first", v_first, du.dtype, 2, R, C, 0);
    maybe("key_prep_bwd", "dv_first", dv_first, du.dtype, 2, R, C, 0);
    require("key_prep_bwd", H > 0 && C % (size_t)H == 0, "H divides C");
    trace("key_prep_bwd", drkv);
    be->ops->key_prep_bwd(be, drkv, dlora, dv_first, dvecs, du, rkv, lora, v_first, vecs, H);
}

static bool is_half(struct tensor state) {
    return tensor_is(state) && state.dtype == DT_F16;
}

// A state tensor (S,H,N,N) by its count: ndim 4 is one more than `want` compares.
static void want_state(const char *op, const struct backend *be, struct tensor s, size_t C, int H) {
    if (!tensor_is(s)) return;
    const size_t N = C / (size_t)H;
    const bool half = is_half(s) && be->class->half_states;
    require(op,
            (half || s.dtype == be->real) && s.ndim == 4 && s.dim[1] == (size_t)H &&
                s.dim[2] == N && s.dim[3] == N,
            "a state is not (S,H,N,N)");
}

void op_wkv7(struct backend *be, struct tensor y, struct tensor state_out, struct tensor saved,
             struct tensor r, struct tensor u, struct tensor state_in, const struct batch *b,
             int H) {
    const size_t R = r.dim[0], C = r.dim[1];
    require("wkv7", H > 0 && C % (size_t)H == 0, "H divides C");
    want("wkv7", "y", y, r.dtype, 2, R, C, 0);
    want("wkv7", "r", r, narrow(be, r), 2, R, C, 0);
    want("wkv7", "u", u, r.dtype, 3, U_COUNT, R, C);
    want_state("wkv7", be, state_in, C, H);
    want_state("wkv7", be, state_out, C, H);
    require("wkv7",
            !tensor_is(state_in) || !tensor_is(state_out) || state_in.dtype == state_out.dtype,
            "states have one dtype");
    require("wkv7", !tensor_is(saved) || !(is_half(state_in) || is_half(state_out)),
            "training has no f16 states");
    want_batch("wkv7", b, R);
    require("wkv7",
            !tensor_is(saved) ||
                tensor_bytes(saved) >=
                    be->class->wkv7_saved_bytes(be, b->rows, b->spans, H, (int)C / H),
            "saved is too small");
    trace("wkv7", y);
    be->ops->wkv7(be, y, state_out, saved, r, u, state_in, b, H);
}

void op_wkv7_bwd(struct backend *be, struct tensor dr, struct tensor du, struct tensor dstate_in,
                 struct tensor dy, struct tensor r, struct tensor u, struct tensor saved,
                 struct tensor dstate_out, const struct batch *b, int H) {
    const size_t R = r.dim[0], C = r.dim[1];
    require("wkv7_bwd", H > 0 && C % (size_t)H == 0, "H divides C");
    want("wkv7_bwd", "r", r, narrow(be, r), 2, R, C, 0);
    want("wkv7_bwd", "dr", dr, r.dtype, 2, R, C, 0);
    want("wkv7_bwd", "du", du, r.dtype, 3, U_COUNT, R, C);
    want("wkv7_bwd", "dy", dy, r.dtype, 2, R, C, 0);
    want("wkv7_bwd", "u", u, r.dtype, 3, U_COUNT, R, C);
    require("wkv7_bwd",
            tensor_is(saved) &&
                tensor_bytes(saved) >=
                    be->class->wkv7_saved_bytes(be, b->rows, b->spans, H, (int)C / H),
            "saved is absent or too small");
    want_state("wkv7_bwd", be, dstate_in, C, H);
    want_state("wkv7_bwd", be, dstate_out, C, H);
    require("wkv7_bwd", !is_half(dstate_in) && !is_half(dstate_out), "training has no f16 states");
    want_batch("wkv7_bwd", b, R);
    trace("wkv7_bwd", du);
    be->ops->wkv7_bwd(be, dr, du, dstate_in, dy, r, u, saved, dstate_out, b, H);
}

void op_readout(struct backend *be, struct tensor o, struct tensor y, struct tensor r,
                struct tensor u, struct tensor g, struct tensor vecs, int H) {
    const size_t R = y.dim[0], C = y.dim[1];
    want("readout", "o", o, y.dtype, 2, R, C, 0);
    want("readout", "y", y, narrow(be, y), 2, R, C, 0);
    want("readout", "r", r, y.dtype, 2, R, C, 0);
    want("readout", "u", u, y.dtype, 3, U_COUNT, R, C);
    want("readout", "g", g, y.dtype, 2, R, C, 0);
    want("readout", "vecs", vecs, be->real, 2, READ_COUNT, C, 0);
    require("readout", H > 0 && C % (size_t)H == 0, "H divides C");
    trace("readout", o);
    be->ops->readout(be, o, y, r, u, g, vecs, H);
}

void op_readout_bwd(struct backend *be, struct tensor dy, struct tensor dr, struct tensor du,
                    struct tensor dg, struct tensor dvecs, struct tensor d_o, struct tensor y,
                    struct tensor r, struct tensor u, struct tensor g, struct tensor vecs, int H) {
    const size_t R = y.dim[0], C = y.dim[1];
    want("readout_bwd", "y", y, narrow(be, y), 2, R, C, 0);
    want("readout_bwd", "r", r, y.dtype, 2, R, C, 0);
    want("readout_bwd", "u", u, y.dtype, 3, U_COUNT, R, C);
    want("readout_bwd", "g", g, y.dtype, 2, R, C, 0);
    want("readout_bwd", "dy", dy, y.dtype, 2, R, C, 0);
    want("readout_bwd", "dr", dr, y.dtype, 2, R, C, 0);
    want("readout_bwd", "du", du, y.dtype, 3, U_COUNT, R, C);
    want("readout_bwd", "dg", dg, y.dtype, 2, R, C, 0);
    want("readout_bwd", "dvecs", dvecs, be->real, 2, READ_COUNT, C, 0);
    want("readout_bwd", "do", d_o, y.dtype, 2, R, C, 0);
    require("readout_bwd", H > 0 && C % (size_t)H == 0, "H divides C");
    trace("readout_bwd", dy);
    be->ops->readout_bwd(be, dy, dr, du, dg, dvecs, d_o, y, r, u, g, vecs, H);
}

void op_norm_mix(struct backend *be, struct tensor m, struct tensor shift_out, struct tensor z,
                 struct tensor x, struct tensor w, struct tensor b, double eps,
                 struct tensor shift_in, struct tensor mix, const struct batch *batch) {
    if (!be->ops->norm_mix) {
        op_norm(be, z, x, w, b, eps);
        op_shift_mix(be, m, shift_out, z, shift_in, mix, batch);
        return;
    }
    const size_t n = mix.dim[0], R = x.dim[0], C = x.dim[1];
    want("norm_mix", "m", m, narrow(be, m), 3, n, R, C);
    want("norm_mix", "z", z, be->real, 2, R, C, 0);
    want("norm_mix", "x", x, be->real, 2, R, C, 0);
    want("norm_mix", "w", w, be->real, 1, C, 0, 0);
    want("norm_mix", "b", b, be->real, 1, C, 0, 0);
    want("norm_mix", "mix", mix, be->real, 2, n, C, 0);
    maybe("norm_mix", "shift_in", shift_in, be->real, 2, shift_in.dim[0], C, 0);
    maybe("norm_mix", "shift_out", shift_out, be->real, 2, shift_out.dim[0], C, 0);
    want_batch("norm_mix", batch, R);
    trace("norm_mix", m);
    be->ops->norm_mix(be, m, shift_out, z, x, w, b, eps, shift_in, mix, batch);
}

void norm_mix_bwd_parts(struct backend *be, const struct norm_mix_bwd *t, const struct batch *b) {
    op_norm(be, t->z, t->x, t->w, t->b, t->eps);
    op_shift_mix_bwd(be, t->dz, t->dmix, t->dm, t->z, t->shift_in, t->mix, b);
    op_norm_bwd(be, t->dx, t->dw, t->db, t->dz, t->x, t->w, t->eps, t->add);
    if (tensor_is(t->rounded)) op_copy(be, t->rounded, t->dx);
}

void op_norm_mix_bwd(struct backend *be, const struct norm_mix_bwd *t, const struct batch *b) {
    if (!be->ops->norm_mix_bwd) {
        norm_mix_bwd_parts(be, t, b);
        return;
    }
    const size_t n = t->mix.dim[0], R = t->x.dim[0], C = t->x.dim[1];
    want("norm_mix_bwd", "dx", t->dx, be->real, 2, R, C, 0);
    maybe("norm_mix_bwd", "rounded", t->rounded, narrow(be, t->rounded), 2, R, C, 0);
    want("norm_mix_bwd", "dw", t->dw, be->real, 1, C, 0, 0);
    want("norm_mix_bwd", "db", t->db, be->real, 1, C, 0, 0);
    want("norm_mix_bwd", "dmix", t->dmix, be->real, 2, n, C, 0);
    want("norm_mix_bwd", "dm", t->dm, narrow(be, t->dm), 3, n, R, C);
    want("norm_mix_bwd", "x", t->x, be->real, 2, R, C, 0);
    want("norm_mix_bwd", "w", t->w, be->real, 1, C, 0, 0);
    want("norm_mix_bwd", "b", t->b, be->real, 1, C, 0, 0);
    want("norm_mix_bwd", "mix", t->mix, be->real, 2, n, C, 0);
    maybe("norm_mix_bwd", "shift_in", t->shift_in, be->real, 2, t->shift_in.dim[0], C, 0);
    maybe("norm_mix_bwd", "add", t->add, be->real, 2, R, C, 0);
    want("norm_mix_bwd", "z", t->z, be->real, 2, R, C, 0);
    want("norm_mix_bwd", "dz", t->dz, be->real, 2, R, C, 0);
    want_batch("norm_mix_bwd", b, R);
    trace("norm_mix_bwd", t->dx);
    be->ops->norm_mix_bwd(be, t, b);
}

void recall_parts(struct backend *be, const struct recall *t, const struct batch *b, int H) {
    const struct tensor r = tensor_at(t->rkv, RKV_R), g = tensor_at(t->lora, LORA_G);
    op_key_prep(be, t->u, t->rkv, t->lora, t->v_first, t->key_vecs, H);
    if (tensor_is(t->v_out)) op_copy(be, t->v_out, tensor_at(t->u, U_V));
    op_wkv7(be, t->y, t->state, t->saved, r, t->u, t->state, b, H);
    op_readout(be, t->o, t->y, r, t->u, g, t->read_vecs, H);
}

void op_recall(struct backend *be, const struct recall *t, const struct batch *b, int H) {
    const size_t R = t->rkv.dim[1], C = t->rkv.dim[2];
    const enum dtype in = narrow(be, t->rkv);
    if (!be->ops->recall) {
        recall_parts(be, t, b, H);
        return;
    }
    require("recall", H > 0 && C % (size_t)H == 0, "H divides C");
    want("recall", "o", t->o, in, 2, R, C, 0);
    maybe("recall", "v_out", t->v_out, in, 2, R, C, 0);
    want_state("recall", be, t->state, C, H);
    want("recall", "u", t->u, in, 3, U_COUNT, R, C);
    want("recall", "y", t->y, in, 2, R, C, 0);
    want("recall", "rkv", t->rkv, in, 3, RKV_COUNT, R, C);
    want("recall", "lora", t->lora, in, 3, LORA_COUNT, R, C);
    maybe("recall", "v_first", t->v_first, in, 2, R, C, 0);
    want("recall", "key_vecs", t->key_vecs, be->real, 2, KEY_COUNT, C, 0);
    want("recall", "read_vecs", t->read_vecs, be->real, 2, READ_COUNT, C, 0);
    want_batch("recall", b, R);
    trace("recall", t->o);
    be->ops->recall(be, t, b, H);
}

void op_clear(struct backend *be, struct tensor y, const int32_t *slots, int count) {
    for (int j = 0; j < count; j++)
        require("clear", y.ndim == 3 && slots[j] >= 0 && (size_t)slots[j] < y.dim[1],
                "y is not (n,S,M), or has no such slot");
    if (be->ops->clear) {
        trace("clear", y);
        be->ops->clear(be, y, slots, count);
        return;
    }
    for (int j = 0; j < count; j++)
        for (size_t i = 0; i < y.dim[0]; i++)
            op_fill(be, tensor_slice(tensor_at(y, i), (size_t)slots[j], 1), 0);
}

void op_xent(struct backend *be, struct tensor loss, struct tensor dlogits, struct tensor logits,
             struct tensor target, float scale, bool l2wrap) {
    const size_t O = logits.dim[0], V = logits.dim[1];
    want("xent", "logits", logits, narrow(be, logits), 2, O, V, 0);
    want("xent", "loss", loss, be->real, 1, O, 0, 0);
    want("xent", "target", target, DT_I32, 1, O, 0, 0);
    maybe("xent", "dlogits", dlogits, logits.dtype, 2, O, V, 0);
    trace("xent", loss);
    be->ops->xent(be, loss, dlogits, logits, target, scale, l2wrap);
}

void op_sample(struct backend *be, struct tensor token, struct tensor logits, struct tensor rows,
               struct tensor penalties, struct tensor biases) {
    const size_t O = logits.dim[0], V = logits.dim[1];
    want("sample", "logits", logits, be->real, 2, O, V, 0);
    want("sample", "token", token, DT_I32, 1, O, 0, 0);
    want("sample", "rows", rows, DT_U8, 2, O, sizeof(struct sample_row), 0);
    maybe("sample", "penalties", penalties, DT_U8, 2, penalties.dim[0], sample_penalty_bytes(V), 0);
    maybe("sample", "biases", biases, DT_U8, 2, biases.dim[0], biases.dim[1], 0);
    trace("sample", token);
    be->ops->sample(be, token, logits, rows, penalties, biases);
}

void op_sum(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    want("sum", "sum", sum, DT_F64, 1, 1, 0, 0);
    require("sum", x.dtype == be->real, "x is in the backend's storage");
    trace("sum", x);
    be->ops->sum(be, sum, x, more);
}

void op_sumsq(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    want("sumsq", "sum", sum, DT_F64, 1, 1, 0, 0);
    require("sumsq", x.dtype == be->real, "x is in the backend's storage");
    trace("sumsq", x);
    be->ops->sumsq(be, sum, x, more);
}

void op_adamw(struct backend *be, const struct adamw *t) {
    const size_t n = tensor_count(t->p), k = t->groups.dim[0];
    want("adamw", "p", t->p, be->real, 1, n, 0, 0);
    want("adamw", "m", t->m, be->real, 1, n, 0, 0);
    want("adamw", "v", t->v, be->real, 1, n, 0, 0);
    want("adamw", "g", t->g, be->real, 1, n, 0, 0);
    require("adamw", !tensor_is(t->rounded) || t->rounded.dim[0] <= n, "rounded is of p's last");
    want("adamw", "groups", t->groups, DT_U8, 2, k, sizeof(struct adamw_group), 0);
    want("adamw", "sums", t->sums, DT_F64, 1, 2, 0, 0);
    want("adamw", "now", t->now, DT_F64, 1, 3, 0, 0);
    trace("adamw", t->p);
    be->ops->adamw(be, t);
}

void op_fill(struct backend *be, struct tensor y, double value) {
    trace("fill", y);
    be->ops->fill(be, y, value);
}

void op_copy(struct backend *be, struct tensor y, struct tensor x) {
    require("copy", tensor_count(y) == tensor_count(x), "y and x have the same count");
    trace("copy", y);
    be->ops->copy(be, y, x);
}

void op_add(struct backend *be, struct tensor y, struct tensor x) {
    require("add",
            tensor_count(y) == tensor_count(x) && y.dtype == narrow(be, y) && x.dtype == y.dtype,
            "x is like y");
    trace("add", y);
    be->ops->add(be, y, x);
}
