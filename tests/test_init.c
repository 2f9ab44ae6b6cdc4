// How a model begins: initial parameters, sizes, the first loss. On cpu, or on what
// RWKV_TEST_BACKEND names.
#include "base/pool.h"
#include "model/forward.h"
#include "models.h"
#include "shared.h"

#include <math.h>
#include <string.h>

static double *values_of(const struct model *m, enum param_id id, int layer) {
    const int i = params_index(id, layer);
    double *x = mem_zero(m->params[i].count, sizeof *x);
    read_tensor(model_master(m, i), x);
    return x;
}

static void expect_orthogonal(const struct model *m, enum param_id id, double gain) {
    const struct param *p = &m->params[params_index(id, 1)];
    double *x = values_of(m, id, 1);
    const size_t rows = p->dim[0], cols = p->dim[1];
    const bool tall = rows > cols;
    const size_t n = tall ? cols : rows, len = tall ? rows : cols;
    for (size_t a = 0; a < n; a++)
        for (size_t b = a; b < n; b++) {
            double dot = 0;
            for (size_t k = 0; k < len; k++)
                dot += tall ? x[k * cols + a] * x[k * cols + b] : x[a * cols + k] * x[b * cols + k];
            if (fabs(dot - (a == b ? gain * gain : 0)) > 1e-5)
                fail_msg("%s: rows %zu and %zu have the product %g", p->name, a, b, dot);
        }
    free(x);
}

static void initialisation_is_official(void **state) {
    (void)state;
    struct backend *be;
    struct error err;
    assert_int_equal(backend_open(&be, test_backend(), 2, &err), 0);
    struct model *m = initialised(be, (struct dims){.L = 2, .C = 128, .H = 2, .V = 300}, 42);
    expect_orthogonal(m, P_HEAD, 0.5 * sqrt(300.0 / 128));
    expect_orthogonal(m, P_RECEPTANCE, 1);
    expect_orthogonal(m, P_KEY, 0.1);
    expect_orthogonal(m, P_W2, 0.1);
    expect_orthogonal(m, P_FFN_KEY, 1);
    struct model *again = initialised(be, (struct dims){.L = 2, .C = 128, .H = 2, .V = 300}, 42);
    struct model *other = initialised(be, (struct dims){.L = 2, .C = 128, .H = 2, .V = 300}, 43);
    double *a = values_of(m, P_EMB, 0), *b = values_of(again, P_EMB, 0),
           *c = values_of(other, P_EMB, 0);
    assert_memory_equal(a, b, 300 * 128 * sizeof *a);
    assert_memory_not_equal(a, c, 300 * 128 * sizeof *a);
    for (int i = 0; i < 300 * 128; i++) assert_true(fabs(a[i]) <= 1e-4);
    free(a);
    free(b);
    free(c);
    model_destroy(m);
    model_destroy(again);
    model_destroy(other);
    backend_destroy(be);
}

static void initial_vectors_match_the_recorded_ones(void **state) {
    (void)state;
    char path[300];
    if (!shared_path(path, sizeof path, "vectors/misc.json")) skip();
    struct json *misc = read_json(path);
    const struct json *all = at(misc, "init_L12_C768", NULL);
    struct backend *be;
    struct error err;
    assert_int_equal(backend_open(&be, test_backend(), 2, &err), 0);
    // A small vocabulary: the recorded tensors don't depend on it.
    struct model *m = created(be, (struct dims){.L = 12, .C = 768, .H = 12, .V = 16});
    struct pool *pool = pool_create(1);
    void *it = NULL;
    const char *name;
    const struct json *want;
    int checked = 0;
    while (json_next(all, &it, &name, &want)) {
        int i = 0;
        while (i < m->num_params && strcmp(m->params[i].name, name)) i++;
        assert_true(i < m->num_params);
        double *x = mem_zero(m->params[i].count, sizeof *x), index[64], value[64];
        model_init_param(m, i, 1, pool);
        read_tensor(model_master(m, i), x);
        const size_t n = flatten(at(want, "at", NULL), index, 0);
        flatten(at(want, "val", NULL), value, 0);
        double norm = 0;
        for (size_t k = 0; k < m->params[i].count; k++) norm += x[k] * x[k];
        assert_true(fabs(sqrt(norm) - number(at(want, "norm", NULL))) < 1e-4);
        for (size_t k = 0; k < n; k++, checked++)
            if (fabs(x[(size_t)index[k]] - value[k]) > 4e-7 * (1 + fabs(value[k])))
                fail_msg("%s[%g] is %.9g, expected %.9g", name, index[k], x[(size_t)index[k]],
                         value[k]);
        free(x);
    }
    printf("  %d recorded values\n", checked);
    pool_destroy(pool);
    model_destroy(m);
    backend_destroy(be);
    json_free(misc);
}

static void sizes_match_the_recorded_ones(void **state) {
    (void)state;
    char path[300];
    if (!shared_path(path, sizeof path, "vectors/misc.json")) skip();
    struct json *misc = read_json(path);
    void *it = NULL;
    const char *name;
    const struct json *s;
    while (json_next(at(misc, "sizes", NULL), &it, &name, &s)) {
        struct dims d = {.L = (int)number(at(s, "L", NULL)),
                         .C = (int)number(at(s, "C", NULL)),
                         .V = 65536};
        d.H = d.C / 64;
        struct dims formula = d;
        d.Dw = (int)number(at(s, "ranks", "w"));
        d.Da = (int)number(at(s, "ranks", "a"));
        d.Dv = (int)number(at(s, "ranks", "v"));
        d.Dg = (int)number(at(s, "ranks", "g"));
        assert_int_equal(dims_param_count(&d), (int64_t)number(at(s, "params", NULL)));
        assert_int_equal(state_count(&d), (int64_t)number(at(s, "state_floats", NULL)));
        double ranks[4];
        flatten(at(s, "formula_train_temp", NULL), ranks, 0);
        dims_default_ranks(&formula);
        assert_int_equal(formula.Dw, (int)ranks[0]);
        assert_int_equal(formula.Da, (int)ranks[1]);
        assert_int_equal(formula.Dv, (int)ranks[2]);
        assert_int_equal(formula.Dg, (int)ranks[3]);
    }
    json_free(misc);
}

static void the_first_loss_is_the_expected_one(void **state) {
    (void)state;
    struct backend *be;
    struct error err;
    assert_int_equal(backend_open(&be, test_backend(), 2, &err), 0);
    // SPEC-rwkv7 §5.1: ln V + σ²/2 for logits of standard deviation σ; computed there: 5.6747.
    struct model *m = initialised(be, (struct dims){.L = 3, .C = 192, .H = 3, .V = 256}, 7);
    struct run *run;
    struct feed *feed;
    int32_t idx[512], targets[512];
    for (int i = 0; i < 512; i++) {
        idx[i] = (i * 131 + 7) % 256;
        targets[i] = (i * 57 + 3) % 256;
    }
    assert_int_equal(run_create(&run, m, (struct run_limits){512, 2, 0, 0, RUN_TRAIN}, &err), 0);
    assert_int_equal(feed_create(&feed, be, (struct feed_limits){512, 2, 0}, &err), 0);
    feed_set_grid(feed, 2, 256, idx, targets);
    const double loss = model_loss(m, run, feed, GRADIENT_NEW, 1.0 / 512, true) / 512;
    printf("  first loss %.4f\n", loss);
    assert_true(fabs(loss - 5.675) < 0.06);
    // Where output and value matrices are zero, nothing below them may move at all.
    double *g = mem_zero(192 * 192, sizeof *g);
    read_tensor(model_grad(m, params_index(P_RECEPTANCE, 1)), g);
    for (int i = 0; i < 192 * 192; i++) assert_true(g[i] == 0);
    free(g);
    run_destroy(run);
    feed_destroy(feed);
    model_destroy(m);
    backend_destroy(be);
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initialisation_is_official),
        cmocka_unit_test(initial_vectors_match_the_recorded_ones),
        cmocka_unit_test(sizes_match_the_recorded_ones),
        cmocka_unit_test(the_first_loss_is_the_expected_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
