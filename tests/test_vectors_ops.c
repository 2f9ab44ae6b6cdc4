// Ops against recorded vectors of an independent implementation in double: the wkv7 recurrence with
// all its gradients, and four steps of AdamW. On ref64, ref, and cpu at every level of this
// machine, or on what RWKV_TEST_BACKEND names.
#include "backend/cpu/kernels/kernels.h"
#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "shared.h"
#include "weights/weights.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct weights *vectors(const char *name) {
    char path[512], file[64];
    struct weights *w = NULL;
    struct error err;
    snprintf(file, sizeof file, "vectors/%s.safetensors", name);
    if (!shared_path(path, sizeof path, file)) skip();
    if (weights_open(&w, path, &err)) fail_msg("%s", err.msg);
    return w;
}

static double *values(const struct weights *w, const char *name, size_t *count) {
    const struct weights_tensor *t = weights_find(w, name);
    if (!t) fail_msg("%s has no %s", weights_path(w), name);
    double *x = mem_alloc(t->count * sizeof *x);
    weights_read(t, DT_F64, x);
    *count = t->count;
    return x;
}

// ---- backends ----------------------------------------------------------------------------------

enum { MAX_SUBJECTS = 6 };

struct subject {
    const char *backend, *isa;
};

static int subjects(struct subject out[MAX_SUBJECTS]) {
    int n = 0;
    if (strcmp(test_backend(), "cpu") != 0) {
        out[n++] = (struct subject){test_backend(), NULL};
        return n;
    }
    out[n++] = (struct subject){"ref64", NULL};
    out[n++] = (struct subject){"ref", NULL};
    for (int i = 0; kernels_level(i); i++)
        out[n++] = (struct subject){"cpu", kernels_level(i)->isa};
    return n;
}

static struct backend *subject_open(const struct subject *s) {
    struct backend *be;
    struct error err;
    if (s->isa) setenv("RWKV_ISA", s->isa, 1);
    if (backend_open(&be, s->backend, 2, &err)) fail_msg("%s", err.msg);
    unsetenv("RWKV_ISA");
    return be;
}

static struct buffer *memory(struct backend *be, size_t bytes) {
    struct error err;
    struct buffer *b = buffer_create(be, bytes, &err);
    if (!b) fail_msg("%s", err.msg);
    return b;
}

static void put(struct tensor t, const double *x) {
    struct backend *be = t.buf->be;
    char *bytes = mem_alloc(tensor_bytes(t));
    dtype_convert(bytes, t.dtype, x, DT_F64, tensor_count(t));
    be->class->upload(be, t, bytes);
    free(bytes);
}

static double *get(struct tensor t) {
    struct backend *be = t.buf->be;
    char *bytes = mem_alloc(tensor_bytes(t));
    double *x = mem_alloc(tensor_count(t) * sizeof *x);
    be->class->download(be, bytes, t);
    dtype_convert(x, DT_F64, bytes, t.dtype, tensor_count(t));
    free(bytes);
    return x;
}

// The vectors have S [value][key], the ops [key][value].
static void turn_heads(double *x, size_t count, size_t N) {
    for (double *S = x; S < x + count; S += N * N)
        for (size_t i = 0; i < N; i++)
            for (size_t j = i + 1; j < N; j++) {
                const double t = S[i * N + j];
                S[i * N + j] = S[j * N + i];
                S[j * N + i] = t;
            }
}

// Largest error relative to the largest wanted value.
static double error_of(struct tensor got, const struct weights *w, const char *name) {
    size_t n;
    double *want = values(w, name, &n), *x = get(got), worst = 0, scale = 0;
    assert_int_equal(n, tensor_count(got));
    if (got.ndim == 4) turn_heads(want, n, got.dim[3]);
    for (size_t i = 0; i < n; i++) {
        scale = fmax(scale, fabs(want[i]));
        // Not fmax: NaN must not pass.
        if (!(fabs(x[i] - want[i]) <= worst)) worst = fabs(x[i] - want[i]);
    }
    free(want);
    free(x);
    return worst / scale;
}

// ---- wkv7 --------------------------------------------------------------------------------------

struct wkv {
    struct buffer *buf;
    struct tensor r, u, S0, ST, y, saved, dy, dST, dr, du, dS0;
    struct batch batch;
    int H;
};

static void wkv_carve(struct wkv *k, struct backend *be, size_t T, size_t H, size_t N) {
    struct carver c = {0};
    const size_t C = H * N, row[] = {T, C}, planes[] = {U_COUNT, T, C}, state[] = {1, H, N, N};
    const size_t saved = be->class->wkv7_saved_bytes(be, (int)T, 1, (int)H, (int)N);
    struct tensor *const rows[] = {&k->r, &k->y, &k->dy, &k->dr};
    struct tensor *const states[] = {&k->S0, &k->ST, &k->dST, &k->dS0};
    k->H = (int)H;
    for (int pass = 0; pass < 2; pass++) {
        if (pass) k->buf = memory(be, c.used);
        c = (struct carver){.buf = k->buf};
        for (int i = 0; i < 4; i++) *rows[i] = carve(&c, be->real, 2, row);
        for (int i = 0; i < 4; i++) *states[i] = carve(&c, be->real, 4, state);
        k->u = carve(&c, be->real, 3, planes);
        k->du = carve(&c, be->real, 3, planes);
        k->saved = carve(&c, DT_U8, 1, &saved);
        k->batch = (struct batch){.rows = (int)T, .exact = true};
        k->batch.span = carve(&c, DT_I32, 2, (size_t[]){1, 4});
        k->batch.prev = carve(&c, DT_I32, 1, &T);
        k->batch.last = carve(&c, DT_I32, 1, &T);
    }
    const struct span span = {.len = (int)T};
    batch_count(&k->batch, &span, 1);
    be->class->upload(be, k->batch.span, &span);
}

static void wkv_load(struct wkv *k, const struct weights *w) {
    static const char *const planes[U_COUNT] = {"in.omega", "in.k", "in.v", "in.a", "in.b"};
    const struct {
        const char *name;
        struct tensor t;
    } others[] = {{"in.r", k->r}, {"in.S0", k->S0}, {"in.dy", k->dy}, {"in.dST", k->dST}};
    size_t n;
    for (int p = 0; p < U_COUNT; p++) {
        double *x = values(w, planes[p], &n);
        put(tensor_at(k->u, (size_t)p), x);
        free(x);
    }
    for (int i = 0; i < 4; i++) {
        double *x = values(w, others[i].name, &n);
        if (others[i].t.ndim == 4) turn_heads(x, n, others[i].t.dim[3]);
        put(others[i].t, x);
        free(x);
    }
}

// Errors relative to the largest entry of each output. Measured: in float 5.3e-7 at most, also
// where every decay is at its fastest (nothing is divided by it); in double 8e-16.
static void check_wkv(const char *file, double float_bound) {
    struct weights *w = vectors(file);
    const size_t *dim = weights_find(w, "in.r")->dim;
    struct subject list[MAX_SUBJECTS];
    for (int i = subjects(list); i-- > 0;) {
        struct backend *be = subject_open(&list[i]);
        struct wkv k = {0};
        wkv_carve(&k, be, dim[0], dim[1], dim[2]);
        wkv_load(&k, w);
        op_wkv7(be, k.y, k.ST, k.saved, k.r, k.u, k.S0, &k.batch, k.H);
        op_wkv7_bwd(be, k.dr, k.du, k.dS0, k.dy, k.r, k.u, k.saved, k.dST, &k.batch, k.H);
        const struct {
            const char *name;
            struct tensor t;
        } outs[] = {{"out.y", k.y},
                    {"out.ST", k.ST},
                    {"out.dS0", k.dS0},
                    {"out.dr", k.dr},
                    {"out.domega", tensor_at(k.du, U_W)},
                    {"out.dk", tensor_at(k.du, U_K)},
                    {"out.dv", tensor_at(k.du, U_V)},
                    {"out.da", tensor_at(k.du, U_A)},
                    {"out.db", tensor_at(k.du, U_B)}};
        const double bound = be->real == DT_F64 ? 1e-13 : float_bound;
        for (size_t o = 0; o < sizeof outs / sizeof outs[0]; o++) {
            const double error = error_of(outs[o].t, w, outs[o].name);
            if (!(error <= bound))
                fail_msg("%s, %s %s: %s is off by %.3g of its scale, at most %.1g expected", file,
                         list[i].backend, list[i].isa ? list[i].isa : "", outs[o].name, error,
                         bound);
        }
        buffer_destroy(k.buf);
        backend_destroy(be);
    }
    weights_close(w);
}

static void wkv7_n16(void **state) {
    (void)state;
    check_wkv("wkv7_n16", 1e-6);
}

static void wkv7_n64(void **state) {
    (void)state;
    check_wkv("wkv7_n64", 1e-6);
}

static void wkv7_n64_fast_decay(void **state) {
    (void)state;
    check_wkv("wkv7_n64_fast_decay", 1e-6);
}

// ---- adamw -------------------------------------------------------------------------------------

static const struct {
    const char *name;
    double lr, decay;
} groups[] = {{"a.weight", 1, 0.1}, {"blocks.0.att.w0", 2, 0}, {"b.bias", 1, 0}};

enum { GROUPS = 3, STEPS = 4, MOST = 128 };

static double *recorded(const struct weights *w, char what, int step, int group, size_t *n) {
    char name[80];
    snprintf(name, sizeof name, "%c%d.%s", what, step, groups[group].name);
    return values(w, name, n);
}

// Every element by itself, relative to it. A first moment that two gradients nearly cancel in is as
// exact as the one before it. Some second moments lie under the smallest float: a few of its steps
// are allowed, which show nowhere else, since next to their roots ε = 1e-18 is large.
static void check_against(const struct weights *w, const struct subject *s, struct tensor got,
                          char what, int step, int group) {
    size_t n;
    double *want = recorded(w, what, step, group, &n), *x = get(got);
    double *before = what == 'm' && step > 1 ? recorded(w, what, step - 1, group, &n) : NULL;
    const bool wide = got.dtype == DT_F64;
    const double bound = wide ? 1e-13 : 1e-6, least = wide ? 0 : 4 * (double)FLT_TRUE_MIN;
    for (size_t i = 0; i < n; i++) {
        const double scale = fmax(fabs(want[i]), before ? fabs(before[i]) : 0);
        if (!(fabs(x[i] - want[i]) <= bound * scale + least))
            fail_msg("%s %s: %c%d.%s[%zu] is %.9g, expected %.9g (%.2g relative)", s->backend,
                     s->isa ? s->isa : "", what, step, groups[group].name, i, x[i], want[i],
                     fabs(x[i] - want[i]) / scale);
    }
    free(before);
    free(want);
    free(x);
}

static struct tensor stretch(struct tensor all, const struct adamw_group *g) {
    return tensor_slice(all, (size_t)g->first, (size_t)g->count);
}

static void one_step(struct backend *be, const struct subject *s, const struct weights *w,
                     const struct adamw *t, const struct adamw_group *part, int step) {
    size_t n;
    double *lr = values(w, "lr", &n), *norm = values(w, "norm_and_clip", &n);
    for (int i = 0; i < GROUPS; i++) {
        char name[80];
        snprintf(name, sizeof name, "g%d.%s", step, groups[i].name);
        double *g = values(w, name, &n);
        put(stretch(t->g, &part[i]), g);
        free(g);
    }
    put(t->now, (const double[]){lr[step - 1], 1 - pow(0.9, step), 1 - pow(0.99, step)});
    put(t->sums, (const double[]){0, 1});
    op_sumsq(be, tensor_slice(t->sums, 0, 1), t->g, false);
    double *sums = get(t->sums);
    assert_true(fabs(sqrt(sums[0]) / norm[2 * (step - 1)] - 1) < 1e-7);
    op_adamw(be, t);
    for (int i = 0; i < GROUPS; i++) {
        check_against(w, s, stretch(t->p, &part[i]), 'p', step, i);
        check_against(w, s, stretch(t->m, &part[i]), 'm', step, i);
        check_against(w, s, stretch(t->v, &part[i]), 'v', step, i);
    }
    free(sums);
    free(lr);
    free(norm);
}

static void adamw_follows_the_vectors(void **state) {
    (void)state;
    struct weights *w = vectors("adamw");
    struct subject list[MAX_SUBJECTS];
    for (int s = subjects(list); s-- > 0;) {
        struct backend *be = subject_open(&list[s]);
        struct buffer *buf = memory(be, 4 * GROUPS * MOST * sizeof(double) + 1024);
        struct carver c = {.buf = buf};
        struct adamw t = {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-18, .clip = 1};
        struct adamw_group part[GROUPS];
        double *start[GROUPS];
        size_t all = 0, n;
        for (int i = 0; i < GROUPS; i++) {
            char name[80];
            snprintf(name, sizeof name, "p0.%s", groups[i].name);
            start[i] = values(w, name, &n);
            part[i] = (struct adamw_group){(int64_t)all, (int64_t)n, groups[i].lr, groups[i].decay};
            all += n;
        }
        struct tensor *const flat[] = {&t.p, &t.m, &t.v, &t.g};
        for (int k = 0; k < 4; k++) *flat[k] = carve(&c, be->real, 1, &all);
        t.sums = carve(&c, DT_F64, 1, &(size_t){2});
        t.now = carve(&c, DT_F64, 1, &(size_t){3});
        t.groups = carve(&c, DT_U8, 2, (size_t[]){GROUPS, sizeof *part});
        be->class->upload(be, t.groups, part);
        for (int i = 0; i < GROUPS; i++) {
            put(stretch(t.p, &part[i]), start[i]);
            free(start[i]);
        }
        for (int step = 1; step <= STEPS; step++) one_step(be, &list[s], w, &t, part, step);
        buffer_destroy(buf);
        backend_destroy(be);
    }
    weights_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wkv7_n16),
        cmocka_unit_test(wkv7_n64),
        cmocka_unit_test(wkv7_n64_fast_decay),
        cmocka_unit_test(adamw_follows_the_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
