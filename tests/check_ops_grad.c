// Every gradient against central differences in double, found by names alone: an op whose `forward`
// is set has arguments "dX" for X of the forward op. Those that are inputs weigh the outputs into
// one number ℓ, those that are outputs must be ∂ℓ/∂X (after what was there, and `add`).
#include "check_ops.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Relative to the largest entry of the gradient. Measured: 1e-9 at worst.
static const double tolerance = 1e-7;

struct pair {
    struct call fwd, bwd;
    struct backend *be;
};

static int gradient_of(const struct pair *p, const struct arg *of) {
    char name[40];
    snprintf(name, sizeof name, "d%s", of->name);
    return call_arg(&p->bwd, name);
}

static bool is_input(const struct arg *a) {
    return a->ndim && a->mode[0] == 'i';
}

// What xent is the gradient of: the mean loss, and L2Wrap's share, which no loss reports.
static double xent_functional(const struct run *r) {
    const struct call *c = r->c;
    const size_t V = (size_t)c->size.V;
    const int loss = call_arg(c, "loss"), logits = call_arg(c, "logits");
    double sum = 0;
    for (size_t o = 0; o < (size_t)c->size.R; o++) {
        double max = -INFINITY;
        for (size_t i = 0; i < V; i++) max = fmax(max, run_get(r, logits, o * V + i));
        sum += 0.125 * run_get(r, loss, o);
        if (c->variant && run_get(r, call_arg(c, "target"), o) >= 0)
            sum += 0.125 * 0.5e-4 * max * max;
    }
    return sum;
}

// ℓ of the forward op's outputs, with one input moved; *mass: what its terms are without their
// signs.
static double functional(struct pair *p, const char *moved, size_t at, double by, double *mass) {
    struct run r;
    double sum = 0;
    *mass = 0;
    p->fwd.moved = moved;
    p->fwd.moved_at = at;
    p->fwd.moved_by = by;
    run_open(&r, &p->fwd, p->be);
    run_go(&r);
    for (int i = 0; i < p->fwd.args; i++) {
        const struct arg *out = &p->fwd.arg[i];
        const int d = gradient_of(p, out);
        if (is_input(out) || d < 0 || !is_input(&p->bwd.arg[d])) continue;
        for (size_t n = 0; n < arg_count(out); n++)
            if (arg_mode(&p->fwd, out, n) != '.') {
                const double term = run_get(&r, i, n) * arg_value(&p->bwd, &p->bwd.arg[d], n);
                sum += term;
                *mass += fabs(term);
            }
    }
    if (strcmp(p->fwd.op->name, "xent") == 0) *mass = sum = xent_functional(&r);
    run_close(&r);
    return sum;
}

// Key vectors under the floor of 1e-12 are divided by a constant: a step must not leave that range.
static double step_of(const struct pair *p, double x) {
    if (p->fwd.fill == FILL_TINY && fabs(x) < 1e-10) return 1e-17;
    return 1e-5 * (1 + fabs(x));
}

static int check_arg(struct pair *p, const struct run *bwd, int in, double *worst, char *what,
                     size_t cap) {
    const struct arg *x = &p->fwd.arg[in];
    const int d = gradient_of(p, x), add = call_arg(&p->bwd, "add");
    const struct arg *g = &p->bwd.arg[d];
    const size_t n = arg_count(g);
    double scale = 0;
    for (size_t i = 0; i < n; i++)
        if (arg_mode(&p->bwd, g, i) != '.') scale = fmax(scale, fabs(run_get(bwd, d, i)));
    for (size_t i = 0; i < n; i++) {
        if (arg_mode(&p->bwd, g, i) == '.') continue;
        const double h = step_of(p, arg_value(&p->fwd, x, i));
        double mass;
        const double up = functional(p, x->name, i, h, &mass);
        const double down = functional(p, x->name, i, -h, &mass);
        double want = (up - down) / (2 * h);
        if (arg_mode(&p->bwd, g, i) == '+') want += run_was(bwd, d, i);
        if (d == 0 && add >= 0) want += arg_value(&p->bwd, &p->bwd.arg[add], i);
        const double got = run_get(bwd, d, i), noise = 1e-15 * mass / h;
        if (scale > 0 && noise < tolerance * scale) *worst = fmax(*worst, fabs(got - want) / scale);
        if (fabs(got - want) <= tolerance * scale + noise) continue;
        snprintf(what, cap, "%s[%zu] is %.10g, finite differences say %.10g (scale %.3g)", g->name,
                 i, got, want, scale);
        return -1;
    }
    return 0;
}

// What the gradient takes of the forward op's results is what the forward op gave.
static void hand_over(struct pair *p, const struct run *fwd) {
    for (int i = 0; i < p->fwd.args; i++) {
        const int same = call_arg(&p->bwd, p->fwd.arg[i].name);
        if (same >= 0 && !is_input(&p->fwd.arg[i]) && is_input(&p->bwd.arg[same]))
            p->bwd.arg[same].given = run_bytes(fwd, i);
    }
}

static void check_pair(struct tally *t, struct pair *p, double *worst, bool *failed) {
    struct run fwd, bwd;
    run_open(&fwd, &p->fwd, p->be);
    run_go(&fwd);
    hand_over(p, &fwd);
    run_open(&bwd, &p->bwd, p->be);
    run_go(&bwd);
    char what[256], text[256];
    int checked = 0, rc = 0;
    for (int i = 0; i < p->fwd.args && !rc; i++) {
        const int d = p->fwd.arg[i].ndim ? gradient_of(p, &p->fwd.arg[i]) : -1;
        if (d < 0 || !is_input(&p->fwd.arg[i]) || is_input(&p->bwd.arg[d])) continue;
        rc = check_arg(p, &bwd, i, worst, what, sizeof what);
        checked++;
    }
    run_close(&bwd);
    run_close(&fwd);
    if (!rc && checked) return;
    call_text(text, sizeof text, &p->bwd);
    tally_one(t, false, "grad: %s: %s", text, checked ? what : "no gradient has a name to check");
    *failed = true;
}

static bool has_narrow(const struct call *c) {
    bool any = false;
    for (int i = 0; i < c->args; i++) any = any || c->arg[i].narrow;
    return any;
}

static void grad_op(struct tally *t, const struct op_case *op, struct backend *be) {
    static const enum fill fills[] = {FILL_RANDOM, FILL_TINY};
    const struct op_case *forward = op_case_find(op->forward);
    struct pair *p = mem_alloc(sizeof *p);
    double worst = 0;
    bool failed = false;
    const bool key = strcmp(op->name, "key_prep_bwd") == 0;
    for (int f = 0; f < (key ? 2 : 1); f++)
        for (int variant = 0; variant < op->variants && !failed; variant++)
            for (int bare = 0; bare <= op->can_bare && !failed; bare++) {
                const struct size size = {.R = 7, .C = 6, .N = 3, .V = 5};
                if (op == forward && bare) continue;
                p->be = be;
                call_init(&p->fwd, forward, size, variant, fills[f], bare, false);
                call_init(&p->bwd, op, size, variant, fills[f], bare, false);
                if (has_narrow(&p->bwd)) continue; // the same formula, rounded
                if (call_arg(&p->bwd, "dx before f") >= 0) continue; // two gradients in one
                p->fwd.precision = p->bwd.precision =
                    (struct precision){DT_F64, DT_F64}; // a rounded weight follows no small step
                check_pair(t, p, &worst, &failed);
            }
    if (!failed) tally_one(t, true, "grad: %s: within %.1e of finite differences", op->name, worst);
    free(p);
}

void check_grad(struct tally *t) {
    struct backend *be = open_backend("ref64", NULL, 1);
    for (int i = 0; i < op_case_count; i++) {
        const struct op_case *op = &op_cases[i];

        if (t->only && strcmp(t->only, op->name) != 0) continue;
        if (op->forward)
            grad_op(t, op, be);
        else if (strstr(op->name, "_bwd"))
            tally_one(t, false, "grad: %s names no forward op", op->name);
    }
    backend_destroy(be);
}
