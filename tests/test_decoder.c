// A step of one row as one op (backend/decoder.h) gives the bits of its parts: logits and states,
// whatever the step is told and whatever steps of several rows lie between. RWKV_CUDA_LISTED=all
// has both read ffn.value by the rows it wants, as they do with more than 1,024 channels. On the
// backend that RWKV_TEST_BACKEND names, where it can; on others there is nothing to compare.
#include "backend/decoder.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/forward.h"
#include "model/run.h"
#include "shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
#include <cmocka.h>
// clang-format on

enum { SLOTS = 4, MOST_ROWS = 3 };

struct subject {
    struct backend *be;
    struct model *m;
    struct run *run;
    struct feed *feed;
    struct state *state;
    struct buffer *drawn; // (MOST_ROWS) i32
};

// Whether there is anything to compare.
static bool backend_decodes(void) {
    struct backend *be;
    struct error err;
    if (backend_open(&be, test_backend(), 1, &err)) fail_msg("%s", err.msg);
    const bool decodes = be->class->decoder_create;
    backend_destroy(be);
    return decodes;
}

// token: what RWKV_CUDA_TOKEN says.
static struct subject subject_open(const char *token, struct dims dims, bool half) {
    struct subject s;
    struct error err;
    const struct model_options o = {.precision = precision_parse("bf16"), .half_states = half};
    setenv("RWKV_CUDA_TOKEN", token, 1);
    if (backend_open(&s.be, test_backend(), 1, &err) || model_create(&s.m, s.be, &dims, o, &err) ||
        model_randomise(s.m, 5, false, &err) ||
        run_create(&s.run, s.m, (struct run_limits){MOST_ROWS, MOST_ROWS, MOST_ROWS, 0, RUN_INFER},
                   &err) ||
        feed_create(&s.feed, s.be, (struct feed_limits){MOST_ROWS, MOST_ROWS, MOST_ROWS}, &err) ||
        state_create(&s.state, s.m, SLOTS, &err) ||
        !(s.drawn = buffer_create(s.be, MOST_ROWS * sizeof(int32_t), &err)))
        fail_msg("%s", err.msg);
    unsetenv("RWKV_CUDA_TOKEN");
    return s;
}

static void subject_close(struct subject *s) {
    buffer_destroy(s->drawn);
    state_destroy(s->state);
    feed_destroy(s->feed);
    run_destroy(s->run);
    model_destroy(s->m);
    backend_destroy(s->be);
}

// Step t, of R rows: of three one wants all logits, one of every other row, one none; every other
// one has tokens that only the device knows.
static void step(struct subject *s, int R, int t, float *logits) {
    struct span spans[MOST_ROWS] = {0};
    int32_t tokens[MOST_ROWS] = {0}, rows[MOST_ROWS] = {0};
    struct error err;
    int outs = 0;
    for (int r = 0; r < R; r++) {
        spans[r] = (struct span){.first = r, .len = 1, .slot = (r + t / 3) % SLOTS};
        tokens[r] = (r * 5 + t * 11 + 3) % s->m->dims.V;
        if (t % 3 == 0 || (t % 3 == 1 && r % 2 == 0)) rows[outs++] = R - 1 - r;
    }
    if (t % 2) {
        const struct tensor drawn = {.buf = s->drawn,
                                     .dtype = DT_I32,
                                     .ndim = 1,
                                     .dim = {MOST_ROWS}};
        s->be->class->upload(s->be, drawn, tokens);
        s->feed->drawn = drawn;
        for (int r = 0; r < R; r++) tokens[r] = -1 - r;
    }
    feed_set(s->feed, spans, R, tokens, rows, outs, NULL);
    const struct tensor out = model_forward(s->m, s->run, s->feed, s->state);
    assert_int_equal(tensor_is(out), outs > 0);
    memset(logits, 0, MOST_ROWS * (size_t)s->m->dims.V * sizeof *logits);
    if (outs) s->be->class->download(s->be, logits, out);
    if (s->be->class->sync(s->be, &err)) fail_msg("%s", err.msg);
}

static void expect_bits(const float *a, const float *b, size_t n, const char *what) {
    for (size_t k = 0; k < n; k++)
        if (memcmp(&a[k], &b[k], sizeof *a))
            fail_msg("%s: number %zu is %.9g, expected %.9g", what, k, (double)a[k], (double)b[k]);
}

static void same_states(struct subject *one, struct subject *parts) {
    const size_t numbers = state_count(&one->m->dims);
    float *a = mem_zero(2 * numbers, sizeof *a), *b = a + numbers;
    for (int slot = 0; slot < SLOTS; slot++) {
        state_get(one->state, slot, a);
        state_get(parts->state, slot, b);
        expect_bits(a, b, numbers, "a state");
    }
    free(a);
}

// Steps of one row with some of several between, which go on with each other's states.
enum { STEPS = 9 };
static void expect_same(struct dims dims, bool half, int steps) {
    static const int rows[STEPS] = {1, 1, 1, 2, 1, 1, 3, 1, 1};
    char what[64];
    if (!backend_decodes()) skip();
    struct subject one = subject_open("", dims, half), parts = subject_open("off", dims, half);
    if (!one.run->decoder) {
        subject_close(&one);
        subject_close(&parts);
        skip();
    }
    assert_null(parts.run->decoder);
    const size_t numbers = MOST_ROWS * (size_t)dims.V;
    float *a = mem_zero(2 * numbers, sizeof *a), *b = a + numbers;
    for (int t = 0; t < steps; t++) {
        step(&one, rows[t], t, a);
        step(&parts, rows[t], t, b);
        snprintf(what, sizeof what, "step %d of %d rows, logits", t, rows[t]);
        expect_bits(a, b, numbers, what);
        assert_true(t % 3 == 2 || a[0] != a[1]); // they do say something
    }
    free(a);
    same_states(&one, &parts);
    subject_close(&one);
    subject_close(&parts);
}

static struct dims sizes(int L, int C, int V) {
    struct dims d = {.L = L, .C = C, .H = C / 64, .V = V};
    dims_default_ranks(&d);
    return d;
}

static void several_layers(void **unused) {
    (void)unused;
    expect_same(sizes(3, 128, 65), false, STEPS);
}

static void half_states(void **unused) {
    (void)unused;
    expect_same(sizes(2, 192, 33), true, STEPS);
}

// Of ranks that are more than a slot of the ring holds, and no multiples of a stretch.
static void ranks_of_all_kinds(void **unused) {
    (void)unused;
    struct dims d = sizes(2, 320, 47);
    d.Dw = 48, d.Da = 16, d.Dv = 32, d.Dg = 272;
    expect_same(d, false, STEPS);
}

// 13 stretches of 48 channels, and one of 16.
static void a_stretch_that_is_shorter(void **unused) {
    (void)unused;
    expect_same(sizes(2, 640, 33), false, 2);
}

static void one_layer_goes_op_by_op(void **unused) {
    (void)unused;
    struct subject s = subject_open("", sizes(1, 64, 33), false);
    assert_null(s.run->decoder);
    float logits[MOST_ROWS * 33];
    step(&s, 1, 0, logits);
    subject_close(&s);
}

// A size of its own, for a device: L C V. From 896 to 1,024 channels with RWKV_CUDA_GEMM=own, for
// else only op by op ffn.value is read by the rows it wants.
static struct dims asked;

static void the_size_that_was_asked_for(void **unused) {
    (void)unused;
    for (int half = 0; half < 2; half++) expect_same(asked, half, STEPS);
}

// L C V: that size. NAME, with asterisks: only those tests.
int main(int argc, char **argv) {
    const struct CMUnitTest one[] = {cmocka_unit_test(the_size_that_was_asked_for)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_layers),          cmocka_unit_test(half_states),
        cmocka_unit_test(ranks_of_all_kinds),      cmocka_unit_test(a_stretch_that_is_shorter),
        cmocka_unit_test(one_layer_goes_op_by_op),
    };
    if (argc == 4) {
        asked = sizes(atoi(argv[1]), atoi(argv[2]), atoi(argv[3]));
        return cmocka_run_group_tests(one, NULL, NULL);
    }
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
