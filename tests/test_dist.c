// Processes that train together: how they meet and end, what they do with tensors, and that the
// same global batch gives the same losses, however many share it. On cpu, or on what
// RWKV_TEST_BACKEND names, with a device each where RWKV_TEST_DEVICES says how many there are.
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "data/binidx.h"
#include "data/build.h"
#include "model/model.h"
#include "shared.h"
#include "text/tok.h"
#include "train/buckets.h"
#include "train/dist.h"
#include "train/team.h"
#include "train/trainer.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// clang-format off
#include <cmocka.h>
// clang-format on

// Members are processes of their own: what they find wrong is an error of team_run. (cmocka has
// taken the name of `fail`.)
#define WRONG(...) fail_minus_one(fail_set(err, E_FORMAT, __VA_ARGS__))
#define EXPECT(x)                                                                                  \
    if (!(x)) return WRONG("line %d: %s", __LINE__, #x)

// ---- the team ----------------------------------------------------------------------------------

static int meet(void *ctx, struct team *t, struct error *err) {
    const int size = *(const int *)ctx;
    EXPECT(team_size(t) == size && team_rank(t) >= 0 && team_rank(t) < size);
    for (int i = 0; i < 300 && t; i++) {
        *(int *)team_mine(t) = 1000 * i + team_rank(t);
        team_meet(t);
        for (int r = 0; r < size; r++) EXPECT(*(const int *)team_theirs(t, r) == 1000 * i + r);
    }
    return 0;
}

static void members_read_what_all_laid_down(void **state) {
    (void)state;
    for (int size = 1; size <= 4; size++) {
        struct error err;
        if (team_run(size, meet, &size, &err)) fail_msg("%s", err.msg);
    }
}

struct end {
    int rank; // who
    enum { SAY, DIE, GO } how;
    const char *says;
    enum error_code code;
};

// The others wait for one that will not come.
static int end(void *ctx, struct team *t, struct error *err) {
    const struct end *e = ctx;
    if (team_rank(t) == e->rank) {
        if (e->how == SAY) return fail_minus_one(fail_set(err, E_CONFIG, "no such thing"));
        if (e->how == DIE) raise(SIGKILL);
        if (e->how == GO) _exit(7);
    }
    team_meet(t);
    return 0;
}

static void the_end_of_one_is_the_end_of_all(void **state) {
    (void)state;
    static const struct end ends[] = {
        {0, SAY, "rank 0 of 3: no such thing", E_CONFIG},
        {2, SAY, "rank 2 of 3: no such thing", E_CONFIG},
        {1, DIE, "killed by signal 9", E_DEVICE},
        {2, GO, "ended with exit code 7", E_DEVICE},
    };
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        struct error err = {0};
        struct end e = ends[i];
        assert_int_equal(team_run(3, end, &e, &err), -1);
        assert_int_equal(err.code, e.code);
        if (!strstr(err.msg, e.says)) fail_msg("\"%s\" does not say \"%s\"", err.msg, e.says);
    }
}

// ---- tensors -----------------------------------------------------------------------------------

// How many processes can have a device; on the processor, or emulated, any number.
static int most_devices(void) {
    const char *n = getenv("RWKV_TEST_DEVICES");
    return n ? atoi(n) : TEAM_MOST;
}

static int open_device(struct backend **be, const char *name, struct team *t, struct error *err) {
    if (!getenv("RWKV_TEST_DEVICES")) return backend_open(be, name, 1, err);
    return backend_open_device(be, name, team_rank(t), 1, err);
}

// As team_run. One alone has a process of its own, too: who has had a device cannot fork members
// that have one.
static int run_members(int size, int (*work)(void *ctx, struct team *t, struct error *err),
                       void *ctx, struct error *err) {
    if (size > 1) return team_run(size, work, ctx, err);
    int status = 0;
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        const int rc = work(ctx, NULL, err);
        if (rc) fprintf(stderr, "%s\n", err->msg);
        exit(rc ? 1 : 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
        return WRONG("one process alone failed");
    return 0;
}

static double number(int rank, size_t i) {
    return (double)((i * 7 + (size_t)rank * 13) % 101) - 50;
}

// Element i of what a collective leaves, where it says anything.
static bool wanted(double *x, enum collective what, int rank, int size, size_t n, size_t i) {
    const size_t share = n / (size_t)size;
    *x = 0;
    for (int r = 0; r < size; r++) *x += number(r, i);
    if (what == ALL_GATHER) *x = number((int)(i / share), i);
    if (what == BROADCAST) *x = number(0, i);
    return what != REDUCE_SCATTER || i / share == (size_t)rank;
}

static int collective(struct dist *d, struct backend *be, enum collective what, size_t n,
                      struct error *err) {
    const int rank = dist_rank(d), size = dist_size(d);
    struct buffer *b = buffer_create(be, n * 8, err);
    if (!b) return -1;
    const struct tensor t = {.buf = b, .dtype = be->real, .ndim = 1, .dim = {n}};
    double *x = mem_zero(n, sizeof *x);
    char *raw = mem_zero(n, 8);
    for (size_t i = 0; i < n; i++) x[i] = number(rank, i);
    dtype_convert(raw, be->real, x, DT_F64, n);
    be->class->upload(be, t, raw);
    dist_start(d, what, t);
    dist_wait(d);
    be->class->download(be, raw, t);
    dtype_convert(x, DT_F64, raw, be->real, n);
    for (size_t i = 0; i < n; i++) {
        double want;
        if (wanted(&want, what, rank, size, n, i) && x[i] != want)
            return WRONG("collective %d of %zu, rank %d of %d: [%zu] is %g, not %g", (int)what, n,
                         rank, size, i, x[i], want);
    }
    buffer_destroy(b);
    free(x);
    free(raw);
    return 0;
}

static int collectives(void *ctx, struct team *t, struct error *err) {
    struct backend *be;
    struct dist *d;
    if (open_device(&be, ctx, t, err) || dist_open(&d, t, be, err)) return -1;
    const size_t size = (size_t)dist_size(d);
    // One element a share, some, and more than a desk holds.
    const size_t shares[] = {1, 37, TEAM_DESK / 4 / size + 5};
    for (int i = 0; i < 3; i++)
        for (int what = ALL_REDUCE; what <= BROADCAST; what++)
            if (collective(d, be, (enum collective)what, shares[i] * size, err)) return -1;
    if (collective(d, be, ALL_REDUCE, 5 * size + 1, err)) return -1;
    double x[2] = {1, dist_rank(d)};
    dist_sum(d, x, 2);
    EXPECT(x[0] == (double)size && x[1] == (double)(size * (size - 1) / 2));
    dist_close(d);
    backend_destroy(be);
    return 0;
}

static void collectives_are_what_they_say(void **state) {
    (void)state;
    char *names[] = {(char *)test_backend(), "ref64"};
    for (int size = 1; size <= 3 && size <= most_devices(); size++)
        for (int i = 0; i < 2; i++) {
            struct error err;
            if (run_members(size, collectives, names[i], &err)) fail_msg("%s", err.msg);
        }
}

// ---- buckets -----------------------------------------------------------------------------------

static int cut(struct model *m, const struct dist *d, bool split, size_t bytes, struct error *err) {
    const size_t all = tensor_count(m->master);
    struct buckets b;
    buckets_cut(&b, m, d, split, bytes);
    double *times = mem_zero(all, sizeof *times); // how often an element is in somebody's share
    size_t held = 0, count = 0;
    for (int i = 0; i < b.n; i++) {
        const struct bucket *k = &b.at[i];
        EXPECT(i == 0 || k->ready <= b.at[i - 1].ready);
        EXPECT(!k->split || (split && k->own.count * (size_t)dist_size(d) == k->count));
        EXPECT(k->own.first % 16 == 0 && k->own.at % 16 == 0);
        for (size_t e = 0; e < k->own.count; e++)
            if (k->split || dist_rank(d) == 0) times[k->own.first + e]++;
        for (int p = 0; p < m->num_params; p++) { // nothing in it is complete later
            const struct param *q = &m->params[p];
            const bool in = q->offset < k->first + k->count && q->offset + q->count > k->first;
            EXPECT(!in || q->id < P_ONCE || k->ready <= q->layer);
            EXPECT(!in || q->id != P_EMB || k->ready == -1);
        }
        held += k->own.count;
        count += k->count;
    }
    EXPECT(held == b.held && count == all);
    EXPECT(!split || held < all / (size_t)dist_size(d) + 16 * (size_t)dist_size(d));
    dist_sum(d, times, (int)all);
    for (size_t e = 0; e < all; e++) EXPECT(times[e] == 1);
    free(times);
    buckets_free(&b);
    return 0;
}

static const struct dims tiny = {
    .L = 3, .C = 32, .H = 2, .V = 257, .Dw = 8, .Da = 8, .Dv = 8, .Dg = 8};

static int cuts(void *ctx, struct team *t, struct error *err) {
    const struct model_options o = {.precision = {DT_F32, DT_F32}, .trained = true};
    struct backend *be;
    struct dist *d;
    struct model *m;
    (void)ctx;
    if (backend_open(&be, "cpu", 1, err) || dist_open(&d, t, be, err) ||
        model_create(&m, be, &tiny, o, err))
        return -1;
    const size_t bytes[] = {1, 4096, 100000, 1 << 30};
    for (int i = 0; i < 8; i++)
        if (cut(m, d, i % 2, bytes[i / 2], err)) return -1;
    model_destroy(m);
    dist_close(d);
    backend_destroy(be);
    return 0;
}

static void buckets_cover_everything_once(void **state) {
    (void)state;
    for (int size = 2; size <= 5; size += size - 1) {
        struct error err;
        if (team_run(size, cuts, NULL, &err)) fail_msg("%s", err.msg);
    }
}

// ---- whole runs --------------------------------------------------------------------------------

static char dir[] = "/tmp/rwkv-test-dist-XXXXXX";
static const struct dims tinier = {
    .L = 2, .C = 16, .H = 1, .V = 257, .Dw = 8, .Da = 8, .Dv = 8, .Dg = 8};

struct run_of {
    const char *name;
    int size, batch, accumulation;
    bool whole;
    size_t bucket_bytes;
    int steps;
};

static int train(void *ctx, struct team *team, struct error *err) {
    const struct run_of *r = ctx;
    const struct model_options mo = {.precision = {DT_F32, DT_F32}, .trained = true};
    char *path = path_join(dir, r->name), *prefix = path_join(dir, "data");
    struct train_options o = {.run_dir = path,
                              .name = r->name,
                              .seed = 1,
                              .ctx = 8,
                              .batch = r->batch,
                              .accumulation = r->accumulation,
                              .num_steps = r->steps,
                              .schedule = {.lr_init = 1e-3, .lr_final = 1e-3},
                              .optimizer = {.beta1 = 0.9,
                                            .beta2 = 0.99,
                                            .eps = 1e-18,
                                            .weight_decay = 0.1,
                                            .clip = 1,
                                            .w0_lr_scale = 2,
                                            .whole = r->whole,
                                            .bucket_bytes = r->bucket_bytes},
                              .l2wrap = true,
                              .checkpointing = true,
                              .log_every = 1000, // quietly
                              .val_every = 1,
                              .val_tokens = 40,
                              .keep = 9};
    struct backend *be;
    struct dist *d;
    struct model *m;
    struct binidx *data;
    struct trainer *t;
    log_set_level(LOG_ERROR);
    if (binidx_open(&data, prefix, err) || open_device(&be, test_backend(), team, err) ||
        dist_open(&d, team, be, err) || model_create(&m, be, &tinier, mo, err))
        return -1;
    model_init(m, 1);
    if (trainer_create(&t, m, data, data, NULL, &o, d, err) || trainer_run(t, err)) return -1;
    trainer_destroy(t);
    model_destroy(m);
    dist_close(d);
    backend_destroy(be);
    binidx_close(data);
    free(path);
    free(prefix);
    return 0;
}

enum { STEPS = 4, LINES = 2 * STEPS + 1 }; // validated before step 1 and after each

static double member(const struct json *line, const char *name) {
    double x = 0;
    const struct json *v = json_member(line, name);
    if (v && json_read_float(&x, v, -1e300, 1e300, name, NULL)) return NAN;
    return x;
}

// The run's log: loss or validation loss, and the norm of the gradients.
static void read_log(double (*out)[2], const char *name) {
    char at[400];
    struct str text;
    struct error err;
    int n = 0;
    snprintf(at, sizeof at, "%s/%s/log.jsonl", dir, name);
    str_init(&text, 1 << 20);
    if (file_read(&text, at, &err)) fail_msg("%s", err.msg);
    for (char *line = strtok(text.data, "\n"); line; line = strtok(NULL, "\n"), n++) {
        struct json *v;
        assert_true(n < LINES);
        if (json_parse(&v, line, strlen(line), 4096, name, &err)) fail_msg("%s", err.msg);
        out[n][0] = member(v, "loss") + member(v, "val_loss");
        out[n][1] = member(v, "grad_norm");
        json_free(v);
    }
    assert_int_equal(n, LINES);
    str_free(&text);
}

// Devices sum products of another size in another order, too.
static void same_curve(double (*want)[2], const char *name) {
    const double allowed = strcmp(test_backend(), "cpu") ? 2e-4 : 2e-5;
    double got[LINES][2];
    read_log(got, name);
    for (int i = 0; i < LINES; i++)
        for (int j = 0; j < 2; j++)
            if (!(fabs(got[i][j] - want[i][j]) <= allowed * fabs(want[i][j])))
                fail_msg("%s, line %d: %.9g, wanted %.9g", name, i, got[i][j], want[i][j]);
}

// An emulated device takes its time.
static bool emulated(void) {
    return strcmp(test_backend(), "cpu") && !getenv("RWKV_TEST_DEVICES");
}

static void go(struct run_of r) {
    struct error err;
    if (run_members(r.size, train, &r, &err)) fail_msg("%s: %s", r.name, err.msg);
}

static void the_curve_is_the_global_batchs(void **state) {
    (void)state;
    double want[LINES][2], two[LINES][2], again[LINES][2];
    static const struct run_of runs[] = {
        {"alone", 1, 6, 1, false, 4096, STEPS},
        {"two", 2, 3, 1, false, 4096, STEPS},
        {"three", 3, 1, 2, false, 1000, STEPS}, // and two passes a step
        {"two-again", 2, 3, 1, false, 4096, STEPS},
        {"two-whole", 2, 3, 1, true, 4096, STEPS},
        {"three-large", 3, 2, 1, false, 1 << 30, STEPS},
        {"three-whole", 3, 2, 1, true, 1 << 30, STEPS},
    };
    const size_t n = emulated() ? 3 : sizeof runs / sizeof runs[0];
    for (size_t i = 0; i < n; i++) {
        if (runs[i].size > most_devices()) continue;
        go(runs[i]);
        if (i == 0) read_log(want, "alone");
        same_curve(want, runs[i].name);
    }
    if (emulated()) return;
    read_log(two, "two"); // as many processes, the same bits
    read_log(again, "two-again");
    assert_memory_equal(two, again, sizeof two);
}

static void a_run_goes_on_with_fewer_and_more(void **state) {
    (void)state;
    double want[LINES][2];
    static const struct run_of legs[] = {
        {"changing", 2, 3, 1, false, 4096, 1},
        {"changing", 1, 6, 1, false, 4096, 2},
        {"changing", 3, 2, 1, true, 9999, 3},
        {"changing", 2, 1, 3, false, 4096, STEPS},
    };
    if (emulated()) skip();
    for (size_t i = 0; i < sizeof legs / sizeof legs[0]; i++)
        if (legs[i].size <= most_devices()) go(legs[i]);
    read_log(want, "alone");
    same_curve(want, "changing");
}

static int set_up(void **state) {
    (void)state;
    struct build_result built;
    struct tok *tok;
    struct error err;
    if (!mkdtemp(dir)) return -1;
    char *output = path_join(dir, "data");
    const char *input = "LICENSE";
    const struct build_options o = {.inputs = &input, .num_inputs = 1, .output = output};
    tok_open_bytes(&tok);
    const int rc = build_run(&built, tok, &o, &err);
    tok_close(tok);
    free(output);
    return rc;
}

static int clean_up(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_read_what_all_laid_down),
        cmocka_unit_test(the_end_of_one_is_the_end_of_all),
        cmocka_unit_test(collectives_are_what_they_say),
        cmocka_unit_test(buckets_cover_everything_once),
        cmocka_unit_test(the_curve_is_the_global_batchs),
        cmocka_unit_test(a_run_goes_on_with_fewer_and_more),
    };
    json_init();
    return cmocka_run_group_tests(tests, set_up, clean_up);
}
