// Every op of every backend against the reference in double, and the laws that need no reference:
// the same bits whatever the batch, the number of threads and the day.
#include "check_ops.h"

#include "base/mem.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Largest |value| before and after, plane by plane: what an error is relative to.
static void plane_scales(double *scale, const struct run *truth, int arg) {
    const struct arg *a = &truth->c->arg[arg];
    const size_t n = arg_count(a), plane = a->ndim == 3 ? n / a->dim[0] : n;
    assert(n <= MAX_PLANES * plane);
    for (size_t p = 0; p * plane < n; p++) {
        scale[p] = 0;
        for (size_t i = p * plane; i < (p + 1) * plane; i++) {
            const char mode = arg_mode(truth->c, a, i);
            const double x = mode == '=' || mode == '+' ? fabs(run_get(truth, arg, i)) : 0;
            const double was = mode == '+' ? fabs(run_was(truth, arg, i)) : 0;
            if (x > scale[p] && isfinite(x)) scale[p] = x;
            if (was > scale[p]) scale[p] = was;
        }
    }
}

static double tolerance_of(const struct op_case *op, const struct backend *be) {
    return op->tensor_cores > 0 && strcmp(be->name, "cuda") == 0 ? op->tensor_cores : op->tolerance;
}

// What lies between the parts of an op may be rounded to bf16 too, and each part adds to its
// errors.
static double between(const struct call *c) {
    for (int i = 0; i < c->args; i++)
        if (c->arg[i].narrow && c->arg[i].mode[0] == '~') return 12.0 / 256;
    return 0;
}

// A state of f16 is rounded where a cell of tokens ends, and at the span's end; what is read out
// behind a cell's end shows it. It is at most the largest that f16 can hold, and below 2^-14 f16
// thins out. Returns what an error may be more than by the tolerance, relative and absolute.
static double of_half(const struct run *got, int arg, double *least) {
    const struct call *c = got->c;
    bool any = false;
    for (int i = 0; i < c->args; i++) any |= got->t[i].dtype == DT_F16;
    *least = any ? 0x1p-25 : 0;
    if (got->t[arg].dtype == DT_F16) return 1.0 / 2048;
    return any && got->batch.longest > STATE_CELL ? 1.0 / 1024 : 0;
}

// One output against the truth. *worst: the largest error, relative to the plane.
static int compare_arg(const struct run *got, const struct run *truth, int arg, double *worst,
                       char *what, size_t cap) {
    const struct arg *a = &got->c->arg[arg];
    const size_t n = arg_count(a), plane = a->ndim == 3 ? n / a->dim[0] : n;
    double tolerance = tolerance_of(got->c->op, got->be), scale[MAX_PLANES], least;
    if (got->t[arg].dtype == DT_BF16 && truth->t[arg].dtype != DT_BF16)
        tolerance += a->rounding > 0 ? a->rounding : 1.0 / 256;
    tolerance += between(got->c) + of_half(got, arg, &least);
    plane_scales(scale, truth, arg);
    for (size_t i = 0; i < n; i++) {
        const char mode = arg_mode(got->c, a, i);
        if (mode != '=' && mode != '+') continue;
        const double x = run_get(got, arg, i), exact = run_get(truth, arg, i);
        const double most = got->t[arg].dtype == DT_F16 ? 65504 : (double)INFINITY;
        const double want = fmax(-most, fmin(exact, most));
        if (x == want) continue;
        const double error = fabs(x - want), allowed = tolerance * scale[i / plane];
        if (error / scale[i / plane] > *worst && error > (double)FLT_MIN + least)
            *worst = error / scale[i / plane];
        // Below FLT_MIN floats thin out; a relative error means nothing there.
        if (error <= allowed + (tolerance > 0 ? (double)FLT_MIN + least : 0)) continue;
        snprintf(what, cap, "%s[%zu] is %.9g, expected %.9g (scale %.3g, tolerance %.1g)", a->name,
                 i, x, want, scale[i / plane], tolerance);
        return -1;
    }
    return 0;
}

static int compare_runs(const struct run *got, const struct run *truth, double *worst, char *what,
                        size_t cap) {
    for (int i = 0; i < got->c->args; i++)
        if (got->c->arg[i].ndim && !got->c->arg[i].shares &&
            compare_arg(got, truth, i, worst, what, cap))
            return -1;
    return run_check_edges(got, what, cap);
}

// The i-th size of an op; R < 0: there are no more.
static struct size size_at(const struct op_case *op, int i, const struct backend *be) {
    const struct size *s = op->sizes;
    for (; i && s->R >= 0; i--) s++;
    const bool is_device = strcmp(be->name, "cpu") != 0;
    return s->R < 0 && is_device && op->device_sizes ? op->device_sizes[i] : *s;
}

// Walks all calls of an op: sizes, variants, fills, optional arguments, aliases.
struct walk {
    const struct op_case *op;
    const struct backend *be;
    bool narrow; // bf16 is stored somewhere
    int size, variant, fill, option;
};

static bool next_call(struct walk *w, struct call *c) {
    for (;; w->option++) {
        if (w->option == 4) w->option = 0, w->fill++;
        if (w->fill == FILL_COUNT) w->fill = 0, w->variant++;
        if (w->variant == w->op->variants) w->variant = 0, w->size++;
        const struct size size = size_at(w->op, w->size, w->be);
        if (size.R < 0) return false;
        const bool bare = w->option & 1, aliased = w->option & 2;
        if (!w->narrow && w->op->narrow >> w->variant & 1) continue;
        if ((bare && !w->op->can_bare) || (aliased && !w->op->can_alias)) continue;
        if (w->option && w->fill != FILL_RANDOM)
            continue; // what is where has nothing to do with
                      // how large it is
        call_init(c, w->op, size, w->variant, (enum fill)w->fill, bare, aliased);
        w->option++;
        return true;
    }
}

static void compare_op(struct tally *t, const struct op_case *op, struct backend *ref,
                       struct subject *s, int n) {
    struct call *c = mem_alloc(sizeof *c);
    struct walk w = {.op = op, .be = s[0].be};
    for (int i = 0; i < n; i++) {
        s[i].worst = 0, s[i].failed = false;
        w.narrow |= can_narrow(s[i].be);
    }
    while (next_call(&w, c)) {
        struct run truth, got;
        run_open(&truth, c, ref);
        run_go(&truth);
        for (int i = 0; i < n; i++) {
            char what[256], text[256];
            run_open(&got, c, s[i].be);
            run_go(&got);
            if (!s[i].failed && compare_runs(&got, &truth, &s[i].worst, what, sizeof what)) {
                call_text(text, sizeof text, c);
                s[i].failed = true;
                tally_one(t, false, "compare %s: %s: %s", s[i].name, text, what);
            }
            run_close(&got);
        }
        run_close(&truth);
    }
    for (int i = 0; i < n; i++)
        if (!s[i].failed)
            tally_one(t, true, "compare %s %s: within %.1e of ref64 (allowed %.1e)", s[i].name,
                      op->name, s[i].worst, tolerance_of(op, s[i].be));
    free(c);
}

void check_compare(struct tally *t) {
    struct subject s[MAX_SUBJECTS];
    struct backend *ref = open_backend("ref64", NULL, 1);
    const int n = subjects_open(s, t->backend);
    if (!n) tally_one(t, false, "no backend to judge");
    for (int i = 0; op_name(i); i++) {
        const struct op_case *op = op_case_find(op_name(i));
        if (!op)
            tally_one(t, false, "op %s has no case in check_ops_table.c", op_name(i));
        else if (!t->only || strcmp(t->only, op->name) == 0)
            compare_op(t, op, ref, s, n);
    }
    subjects_close(s, n);
    backend_destroy(ref);
}

// ---- laws --------------------------------------------------------------------------------------

static bool judged(const struct run *r, int arg) {
    const struct arg *a = &r->c->arg[arg];
    return a->ndim && !a->shares && strcmp(a->name, "saved") != 0 && strchr(a->mode, 'i') == NULL &&
           a->mode[0] != '~';
}

static int same_bits(const struct run *a, const struct run *b, char *what, size_t cap) {
    for (int i = 0; i < a->c->args; i++) {
        if (!judged(a, i) || !memcmp(run_bytes(a, i), run_bytes(b, i), run_size(a, i))) continue;
        const size_t n = arg_count(&a->c->arg[i]), size = run_size(a, i) / n;
        for (size_t e = 0; e < n; e++)
            if (memcmp((const char *)run_bytes(a, i) + e * size,
                       (const char *)run_bytes(b, i) + e * size, size))
                return snprintf(what, cap, "%s[%zu] is %.9g and %.9g", a->c->arg[i].name, e,
                                run_get(a, i, e), run_get(b, i, e)),
                       -1;
    }
    return 0;
}

// The rows of a part against the same rows of the whole.
static int same_rows(const struct run *part, const struct run *whole, char *what, size_t cap) {
    const struct call *c = part->c;
    for (int i = 0; i < c->args; i++) {
        const struct arg *a = &c->arg[i];
        if (!judged(part, i) || a->row_axis < 0) continue;
        size_t inner = 1, outer = 1;
        for (int d = a->row_axis + 1; d < a->ndim; d++) inner *= a->dim[d];
        for (int d = 0; d < a->row_axis; d++) outer *= a->dim[d];
        const size_t rows = a->dim[a->row_axis], size = run_size(part, i) / arg_count(a);
        for (size_t o = 0; o < outer; o++)
            for (size_t r = 0; r < rows; r++) {
                const size_t here = (o * rows + r) * inner;
                const size_t there = (o * (size_t)c->whole_rows + (size_t)c->row_map[r]) * inner;
                for (size_t e = 0; e < inner; e++)
                    if (memcmp((const char *)run_bytes(part, i) + (here + e) * size,
                               (const char *)run_bytes(whole, i) + (there + e) * size, size))
                        return snprintf(what, cap,
                                        "%s of row %d is %.9g in the part, %.9g in the "
                                        "whole",
                                        a->name, c->row_map[r], run_get(part, i, here + e),
                                        run_get(whole, i, there + e)),
                               -1;
            }
    }
    return 0;
}

static void report(struct tally *t, const struct call *c, int rc, const char *law,
                   const char *what) {
    char text[256];
    call_text(text, sizeof text, c);
    if (rc)
        tally_one(t, false, "%s: %s: %s", law, text, what);
    else
        tally_one(t, true, "%s: %s", law, c->op->name);
}

static struct size law_size(const struct op_case *op) {
    struct size best = op->sizes[0];
    for (const struct size *s = op->sizes; s->R >= 0; s++)
        if ((size_t)s->R * (size_t)s->C * (size_t)s->V >
            (size_t)best.R * (size_t)best.C * (size_t)best.V)
            best = *s;
    return best;
}

static void law_threads(struct tally *t, const struct op_case *op, const char *isa) {
    struct call *c = mem_alloc(sizeof *c);
    char what[256] = "";
    int rc = 0;
    for (int variant = 0; variant < op->variants && !rc; variant++) {
        struct run one, many;
        struct backend *alone = open_backend("cpu", isa, 1);
        call_init(c, op, law_size(op), variant, FILL_RANDOM, false, false);
        run_open(&one, c, alone);
        run_go(&one);
        for (int threads = 1; threads <= 3 && !rc; threads++) {
            struct backend *be = open_backend("cpu", isa, threads);
            run_open(&many, c, be);
            run_go(&many);
            rc = same_bits(&one, &many, what, sizeof what);
            run_close(&many);
            backend_destroy(be);
        }
        run_close(&one);
        backend_destroy(alone);
    }
    report(t, c, rc, "1, 2 and 3 threads give the same bits", what);
    free(c);
}

static void part_init(struct call *part, const struct call *whole, const int *rows, int n) {
    struct size size = whole->size;
    size.R = n;
    call_init(part, whole->op, size, whole->variant, whole->fill, whole->bare, false);
    part->seed = whole->seed;
    part->exact = whole->exact;
    part->row_map = rows;
    part->whole_rows = whole->size.R;
    part->S = whole->S;
    call_reshape(part);
}

// Inputs of a product are bf16 where a pass has found its rows many: those are a library's, with an
// order for each number of rows (docs/cuda.md).
static bool may_depend_on_batch(const struct run *r) {
    return strcmp(r->c->op->name, "matmul") == 0 && r->t[call_arg(r->c, "x")].dtype == DT_BF16;
}

// Rows alone, and rows in pieces of odd sizes: the tiles of products and the vectors of row kernels
// end elsewhere, the bits may not change.
static void law_rows(struct tally *t, const struct op_case *op, struct backend *be) {
    static const int pieces[] = {1, 2, 3, 5, 7, 11, 13, 64};
    struct call *whole = mem_alloc(2 * sizeof *whole), *part = whole + 1;
    char what[256] = "";
    int rc = 0;
    for (int variant = 0; variant < op->variants && !rc; variant++) {
        struct run all, some;
        call_init(whole, op, law_size(op), variant, FILL_RANDOM, false, false);
        run_open(&all, whole, be);
        run_go(&all);
        int rows[MAX_ROWS];
        const int judged_rows = may_depend_on_batch(&all) ? 0 : whole->size.R;
        for (int first = 0, p = 0; first < judged_rows && !rc; p++) {
            int n = pieces[p % 8];
            if (n > whole->size.R - first) n = whole->size.R - first;
            for (int i = 0; i < n; i++) rows[i] = first + n - 1 - i; // and backwards
            part_init(part, whole, rows, n);
            run_open(&some, part, be);
            run_go(&some);
            rc = same_rows(&some, &all, what, sizeof what);
            run_close(&some);
            first += n;
        }
        run_close(&all);
    }
    report(t, whole, rc, "a row's bits do not depend on the batch", what);
    free(whole);
}

// ---- spans -------------------------------------------------------------------------------------

// Splits the whole's spans into pieces of `piece` tokens (0: whole spans, one a call) and carries
// the state from call to call; every row and the last states must come out the same.
static int run_in_pieces(const struct call *whole, const struct run *all, struct backend *be,
                         int piece, const char *in, const char *out, char *what, size_t cap) {
    struct call *part = mem_alloc(sizeof *part);
    const int ai = call_arg(whole, in), ao = call_arg(whole, out);
    const size_t bytes = run_size(all, ai);
    unsigned char *carry = mem_alloc(bytes);
    memcpy(carry, run_bytes(all, ai), bytes);
    int done[MAX_SPANS] = {0}, rows[MAX_ROWS], rc = 0;
    for (int round = 0; !rc; round++) {
        struct span spans[MAX_SPANS];
        int n = 0, R = 0;
        // Every other round takes the spans in reverse order.
        for (int i = 0; i < whole->spans; i++) {
            const int s = round & 1 ? whole->spans - 1 - i : i;
            const struct span *from = &whole->span[s];
            int len = from->len - done[s];
            if (piece && len > piece) len = piece;
            if (!len || (!piece && n)) continue;
            spans[n++] = (struct span){.first = R, .len = len, .slot = from->slot, .pos = done[s]};
            for (int k = 0; k < len; k++) rows[R++] = from->first + done[s] + k;
            done[s] += len;
        }
        if (!n) break;
        part_init(part, whole, rows, R);
        call_set_spans(part, spans, n);
        call_reshape(part);
        part->arg[ai].given = carry;
        struct run some;
        run_open(&some, part, be);
        run_go(&some);
        rc = same_rows(&some, all, what, cap);
        const size_t slot_bytes = bytes / (size_t)whole->S;
        for (int i = 0; i < n; i++) {
            const size_t at = (size_t)spans[i].slot * slot_bytes;
            memcpy(carry + at, (const char *)run_bytes(&some, ao) + at, slot_bytes);
        }
        run_close(&some);
    }
    for (int s = 0; s < whole->spans && !rc; s++) {
        const size_t slot_bytes = bytes / (size_t)whole->S;
        const size_t at = (size_t)whole->span[s].slot * slot_bytes;
        if (memcmp(carry + at, (const char *)run_bytes(all, ao) + at, slot_bytes)) {
            snprintf(what, cap, "the last state of span %d differs", s);
            rc = -1;
        }
    }
    free(carry);
    free(part);
    return rc;
}

static void law_spans(struct tally *t, const struct op_case *op, struct backend *be, const char *in,
                      const char *out) {
    enum { ANY = 1, HALF = 3, NARROW = 4 }; // variants of wkv7; of others the first
    static const struct {
        int tokens, variant;
        bool exact;
        const char *law;
    } pieces[] = {{0, ANY, false, "spans together = alone"},
                  {1, ANY, false, "spans whole = token by token"},
                  {7, ANY, false, "spans whole = in pieces of 7 with carried state"},
                  {16, ANY, false, "spans whole = in pieces of 16 with carried state"},
                  {0, HALF, false, "spans together = alone, f16 states"},
                  {STATE_CELL, HALF, false, "spans whole = in cells with carried f16 state"},
                  {STATE_CELL, HALF, true, "the same token by token"},
                  {0, NARROW, false, "spans together = alone, bf16"},
                  {1, NARROW, false, "spans whole = token by token, bf16"}};
    struct call *whole = mem_alloc(sizeof *whole);
    for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
        const bool states = strcmp(op->name, "wkv7") == 0;
        char what[256] = "";
        int rc = 0;
        if (pieces[p].variant != ANY && !states) continue;
        if (pieces[p].variant == NARROW && !can_narrow(be)) continue; // they are the first ones
        struct size size;
        for (int i = 0; !rc && (size = size_at(op, i, be)).R >= 0; i++) {
            struct run all;
            call_init(whole, op, size, states ? pieces[p].variant : 0, FILL_RANDOM, false, false);
            whole->exact =
                states && (pieces[p].exact || pieces[p].tokens % be->class->wkv7_grain(be, size.N));
            run_open(&all, whole, be);
            run_go(&all);
            rc = run_in_pieces(whole, &all, be, pieces[p].tokens, in, out, what, sizeof what);
            run_close(&all);
        }
        report(t, whole, rc, pieces[p].law, what);
    }
    free(whole);
}

// The same call twice, with memory that holds something else.
static void law_again(struct tally *t, const struct op_case *op, struct backend *be) {
    struct call *c = mem_alloc(sizeof *c);
    char what[256] = "";
    int rc = 0;
    for (int variant = 0; variant < op->variants && !rc; variant++) {
        struct run first, again;
        call_init(c, op, law_size(op), variant, FILL_RANDOM, false, false);
        run_open(&first, c, be);
        run_go(&first);
        run_open(&again, c, be);
        run_go(&again);
        rc = same_bits(&first, &again, what, sizeof what);
        run_close(&first);
        run_close(&again);
    }
    report(t, c, rc, "the same bits every time", what);
    free(c);
}

// Several ops as one give the bits of the ops they stand for.
static void law_parts(struct tally *t, const struct op_case *op, struct backend *be) {
    const struct ops *const as_one = be->ops;
    struct ops parts = *as_one;
    struct call *c = mem_alloc(sizeof *c);
    char what[256] = "";
    int rc = 0;
    parts.norm_mix = NULL;
    parts.recall = NULL;
    struct size size;
    for (int i = 0; !rc && (size = size_at(op, i, be)).R >= 0; i++)
        for (int variant = 0; variant < op->variants && !rc; variant++) {
            struct run one, several;
            call_init(c, op, size, variant, FILL_HUGE, false, false);
            run_open(&one, c, be);
            run_go(&one);
            be->ops = &parts;
            run_open(&several, c, be);
            run_go(&several);
            be->ops = as_one;
            rc = same_bits(&one, &several, what, sizeof what);
            run_close(&one);
            run_close(&several);
        }
    report(t, c, rc, "the bits of its parts", what);
    free(c);
}

void check_laws(struct tally *t) {
    struct subject s[MAX_SUBJECTS];
    const int n = subjects_open(s, t->backend);
    for (int k = 0; k < n; k++) {
        if (strcmp(s[k].backend, "ref") == 0) continue; // it is what the laws are read from
        for (int i = 0; i < op_case_count; i++) {
            const struct op_case *op = &op_cases[i];
            if (t->only && strcmp(t->only, op->name) != 0) continue;
            if (s[k].isa)
                law_threads(t, op, s[k].isa);
            else
                law_again(t, op, s[k].be);
            if (op->rowwise) law_rows(t, op, s[k].be);
            if (op->singles) law_parts(t, op, s[k].be);
            if (strcmp(op->name, "shift_mix") == 0 || strcmp(op->name, "norm_mix") == 0)
                law_spans(t, op, s[k].be, "shift_in", "shift_out");
            if (strcmp(op->name, "wkv7") == 0) law_spans(t, op, s[k].be, "state_in", "state_out");
        }
    }
    subjects_close(s, n);
}
