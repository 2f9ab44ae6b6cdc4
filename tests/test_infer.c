// The engine and what it leans on: laws first. What a sequence writes must not depend on its
// company, on cuts of its prompt, on steps that are written down ahead, or on what happens to the
// limits meanwhile. RWKV_TEST_BACKEND says on which backend.
#include "infer/engine.h"

#include "backend/backend.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/str.h"
#include "draw.h"
#include "infer/sched.h"
#include "model/model.h"
#include "model/writer.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef CUDA_EMU
#include "cuda_runtime_api.h"
#endif

// ---- the scheduler -----------------------------------------------------------------------------

static void schedules_keep_their_laws(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++) {
        begin_draws(seed);
        struct sched_seq seqs[12];
        int take[12], left[12], steps = 0;
        const int n = 1 + draw(12);
        const struct sched_limits limits = {1 + draw(400), SCHED_CELL, draw(2)};
        const int budget = limits.paragraph_len < SCHED_CELL ? SCHED_CELL : limits.paragraph_len;
        for (int i = 0; i < n; i++) {
            seqs[i] = (struct sched_seq){0, 1 + draw(1000), false, draw(5) == 0};
            left[i] = draw(30);
        }
        for (;; steps++) {
            int prompts = 0, all = 0, writing = 0, wrote = 0, alive = 0, able = 0;
            for (int i = 0; i < n; i++) seqs[i].parked = draw(10) == 0;
            const int sum = sched_plan(take, seqs, n, limits);
            int total = 0;
            for (int i = 0; i < n; i++) {
                struct sched_seq *s = &seqs[i];
                const bool reads = s->read < s->prompt, done = !reads && !left[i];
                total += take[i];
                able += !s->parked;
                if (s->parked) assert_int_equal(take[i], 0);
                if (reads) {
                    prompts += take[i];
                    if (s->all_logits) all += take[i];
                    s->read += take[i];
                    assert_true(s->read <= s->prompt);
                    assert_true(s->read == s->prompt || s->read % SCHED_CELL == 0);
                } else {
                    writing += !s->parked;
                    wrote += take[i];
                    assert_true(take[i] <= 1);
                    if (left[i]) left[i] -= take[i];
                }
                alive += !done;
            }
            assert_int_equal(total, sum);
            assert_true(prompts <= budget && all <= limits.all_rows);
            assert_true(wrote == writing || (!limits.decode_first && prompts && !wrote));
            assert_true(sum || !able); // whoever can go on does
            if (!alive) break;
            assert_true(steps < 20000);
        }
    }
}

// ---- the engine --------------------------------------------------------------------------------

static char model_path[64] = "/tmp/rwkv_test_infer_XXXXXX.pth";

static int make_model(void **state) {
    struct backend *be;
    struct model *m;
    struct error err;
    struct dims d = {.L = 2, .C = 64, .H = 1, .V = 257};
    (void)state;
    dims_default_ranks(&d);
    const int fd = mkstemps(model_path, 4);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(backend_open(&be, "cpu", 1, &err), 0);
    assert_int_equal(
        model_create(&m, be, &d,
                     (struct model_options){.precision = {DT_F32, DT_F32}, .trained = true}, &err),
        0);
    assert_int_equal(model_randomise(m, 3, false, &err), 0);
    assert_int_equal(model_save(m, model_path, DT_F32, &err), 0);
    model_destroy(m);
    backend_destroy(be);
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    return unlink(model_path);
}

// What an emulated device takes a second for must be small.
#ifdef CUDA_EMU
enum { MOST_PROMPT = 70, MOST_TOKENS = 10, FEWER = 2 };
#else
enum { MOST_PROMPT = 299, MOST_TOKENS = 40, FEWER = 1 };
#endif

static bool half_states;
static int depth; // of the engine that is tested; 0: as the backend likes

static int one_step(void **state) {
    (void)state;
    depth = 1;
    return 0;
}

static int steps_ahead(void **state) {
    (void)state;
    depth = MAX_DEPTH;
    return 0;
}

static struct engine_spec spec(void) {
    const char *backend = getenv("RWKV_TEST_BACKEND");
    return (struct engine_spec){.name = "test",
                                .weights_path = model_path,
                                .vocab_path = "bytes",
                                .backend = backend ? backend : "cpu",
                                .dtype = "f32",
                                .half_states = half_states,
                                .num_threads = 2,
                                .depth = depth,
                                .shape_path = "test"};
}

// One job, and what came of it.
struct task {
    struct engine_job job;
    int32_t prompt[300];
    struct engine_bias bias[3];
    char stop[3];
    struct str text, tokens, logprobs; // the last two as bytes
    int generated, prompt_read, finals;
    enum engine_finish finish;
};

struct bell {
    pthread_mutex_t lock;
    pthread_cond_t rung;
    bool ringing;
};

static void ring(void *ctx) {
    struct bell *b = ctx;
    pthread_mutex_lock(&b->lock);
    b->ringing = true;
    pthread_cond_signal(&b->rung);
    pthread_mutex_unlock(&b->lock);
}

static void wait_for(struct bell *b) {
    pthread_mutex_lock(&b->lock);
    while (!b->ringing) pthread_cond_wait(&b->rung, &b->lock);
    b->ringing = false;
    pthread_mutex_unlock(&b->lock);
}

static void make_task(struct task *t, uint64_t seed) {
    memset(t, 0, sizeof *t);
    begin_draws(seed);
    struct engine_job *j = &t->job;
    j->prompt = t->prompt;
    j->num_prompt = 1 + draw(draw(3) ? 12 : MOST_PROMPT);
    for (int i = 0; i < j->num_prompt; i++) t->prompt[i] = draw(257);
    j->max_tokens = draw(12) ? 1 + draw(MOST_TOKENS) : 0;
    j->temperature = draw(3) ? 0.5f + (float)draw(10) / 10 : 0;
    j->top_p = draw(2) ? 1 : 0.7f;
    j->top_k = draw(2) ? 0 : 20;
    j->presence = draw(2) ? 0 : 0.4f;
    j->frequency = draw(2) ? 0 : 0.1f;
    j->penalty_decay = 0.99f;
    j->seed = seed;
    j->top = draw(25) ? -1 : draw(3); // such steps have no other beside them
    j->prompt_logprobs = j->top >= 0 && draw(2);
    j->ignore_end = draw(2);
    j->owner = t;
    if (!draw(3)) {
        for (int i = 0; i < 3; i++)
            t->bias[i] = (struct engine_bias){draw(80) + 80 * i, (float)(draw(9) - 4)};
        j->bias = t->bias;
        j->num_bias = 3;
    }
    if (!draw(3)) {
        for (int i = 0, len = 1 + draw(2); i < len; i++) t->stop[i] = (char)(' ' + draw(90));
        j->stops[j->num_stops++] = t->stop;
    }
    str_init(&t->text, 1 << 20);
    str_init(&t->tokens, 1 << 20);
    str_init(&t->logprobs, 1 << 24);
}

static void free_task(struct task *t) {
    str_free(&t->text);
    str_free(&t->tokens);
    str_free(&t->logprobs);
}

static void free_tasks(struct task *tasks, int n) {
    for (int i = 0; i < n; i++) free_task(&tasks[i]);
    free(tasks);
}

static void take_events(struct engine *e) {
    size_t count;
    const struct engine_event *events = engine_poll(e, &count);
    for (size_t i = 0; i < count; i++) {
        struct task *t = events[i].job->owner;
        assert_int_equal(t->finals, 0); // nothing comes after the last one
        str_append(&t->text, events[i].text, events[i].text_len);
        if (events[i].generated_tokens)
            str_append(&t->tokens, (const char *)&events[i].token, sizeof events[i].token);
        const int each = 1 + (t->job.top > 0 ? t->job.top : 0);
        str_append(&t->logprobs, (const char *)events[i].logprobs,
                   (size_t)(events[i].num_logprobs * each) * sizeof *events[i].logprobs);
        t->generated += events[i].generated_tokens;
        t->prompt_read += events[i].prompt_tokens;
        t->finish = events[i].finish;
        t->finals += events[i].finish != ENGINE_NOT_YET;
    }
}

static int unfinished(const struct task *tasks, int n) {
    int left = 0;
    for (int i = 0; i < n; i++) left += !tasks[i].finals;
    return left;
}

enum { MAX_CONTEXT = 320 }; // some end there

static struct engine_limits limits_of(int batch, int paragraph, bool decode_first) {
    return (struct engine_limits){batch, paragraph, MAX_CONTEXT, 1000, decode_first};
}

static struct engine *open_engine(struct bell *bell, int batch, int paragraph, bool decode_first) {
    struct engine *e;
    struct error err;
    const struct engine_spec s = spec();
    const struct engine_limits limits = limits_of(batch, paragraph, decode_first);
    if (engine_open(&e, &s, limits, ring, bell, &err)) fail_msg("%s", err.msg);
    return e;
}

#define BELL                                                                                       \
    { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false }

// Each task by itself, a step at a time; of an emulated device, whose steps are slow, all at once.
static struct task *run_alone(int n) {
    struct task *tasks = mem_zero((size_t)n, sizeof *tasks);
    struct bell bell = BELL;
    struct error err;
    const int wanted = depth;
    depth = 1;
    struct engine *e = open_engine(&bell, FEWER > 1 ? n : 1, 4096, true);
    depth = wanted;
    for (int i = 0; i < n; i++) make_task(&tasks[i], (uint64_t)i);
    for (int i = 0; i < n; i++) assert_int_equal(engine_submit(e, &tasks[i].job, &err), 0);
    while (unfinished(tasks, n)) wait_for(&bell), take_events(e);
    engine_close(e);
    for (int i = 0; i < n; i++) assert_int_equal(tasks[i].prompt_read, tasks[i].job.num_prompt);
    return tasks;
}

// Everything that was said is what was said alone. Of a job that was canceled the beginning, but
// for its text, which ends with what was held back.
static void same_as_alone(const struct task *alone, const struct task *t, int i) {
    const struct str *a[] = {&alone->text, &alone->tokens, &alone->logprobs},
                     *b[] = {&t->text, &t->tokens, &t->logprobs};
    static const char *const names[] = {"text", "tokens", "logprobs"};
    const bool canceled = t->finish == ENGINE_CANCELED;
    for (int k = canceled; k < 3; k++)
        if (b[k]->len > a[k]->len || memcmp(a[k]->data, b[k]->data, b[k]->len) ||
            (!canceled && b[k]->len != a[k]->len))
            fail_msg("task %d, depth %d: other %s than alone: \"%s\", not \"%s\"", i, depth,
                     names[k], t->text.data, alone->text.data);
    if (!canceled && t->finish != alone->finish)
        fail_msg("task %d, depth %d: ends with %d, alone with %d", i, depth, (int)t->finish,
                 (int)alone->finish);
}

static void company_changes_nothing(void **state) {
    enum { N = 40 / FEWER };
    (void)state;
    struct task *alone = run_alone(N), *together = mem_zero(N, sizeof *together);
    struct bell bell = BELL;
    struct error err;
    for (int round = 0; round < 2; round += FEWER) {
        struct engine *e = open_engine(&bell, 18, 100, round); // more than few rows on a GPU
        for (int i = 0; i < N; i++) make_task(&together[i], (uint64_t)i);
        for (int i = 0; i < N; i++) assert_int_equal(engine_submit(e, &together[i].job, &err), 0);
        for (int looks = 0; unfinished(together, N); looks++) {
            wait_for(&bell);
            take_events(e);
            if (looks == 5) // limits change under way
                engine_set_limits(e, limits_of(3, 64, round));
            if (looks == 20) engine_set_limits(e, limits_of(11, 300, round));
        }
        engine_close(e);
        for (int i = 0; i < N; i++) {
            same_as_alone(&alone[i], &together[i], i);
            free_task(&together[i]);
        }
    }
    free(together);
    free_tasks(alone, N);
}

// Jobs come a few at a time, are parked, go on and are canceled at any moment, and the limits
// change: slots change hands while a step of their last owner is under way.
static void stories_change_nothing(void **state) {
    enum { N = 60 / FEWER / FEWER, STORIES = FEWER > 1 ? 1 : 3 };
    (void)state;
    struct task *alone = run_alone(N);
    struct bell bell = BELL;
    struct error err;
    for (uint64_t story = 0; story < STORIES; story++) {
        struct task *tasks = mem_zero(N, sizeof *tasks);
        bool parked[N] = {false};
        int submitted = 0;
        for (int i = 0; i < N; i++) make_task(&tasks[i], (uint64_t)i);
        begin_draws(900 + story);
        struct engine *e = open_engine(&bell, 4, 64 + draw(200), draw(2));
        while (submitted < N || unfinished(tasks, N)) {
            for (int k = draw(4); k > 0 && submitted < N; k--)
                assert_int_equal(engine_submit(e, &tasks[submitted++].job, &err), 0);
            take_events(e);
            for (int i = 0; i < submitted; i++) {
                if (tasks[i].finals || draw(4)) continue;
                if (i % 5 == 0 && !draw(4)) engine_cancel(e, &tasks[i].job);
                parked[i] = !parked[i] && !draw(3);
                engine_park(e, &tasks[i].job, parked[i]);
            }
            if (!draw(20)) engine_set_limits(e, limits_of(1 + draw(9), 64 + draw(200), draw(2)));
            usleep((unsigned)draw(300));
        }
        engine_close(e);
        for (int i = 0; i < N; i++) same_as_alone(&alone[i], &tasks[i], i);
        free_tasks(tasks, N);
    }
    free_tasks(alone, N);
}

// The command line's writer and the engine are two ways to the same text.
static void engine_writes_what_the_writer_writes(void **state) {
    (void)state;
    struct bell bell = BELL;
    struct error err;
    struct backend *be;
    struct model *m;
    struct writer *w;
    struct tok *tok;
    struct engine *e = open_engine(&bell, 4, 64, true);
    tok_open_bytes(&tok);
    assert_int_equal(backend_open(&be, spec().backend, 1, &err), 0);
    const struct model_options options = {.precision = {DT_F32, DT_F32},
                                          .half_states = half_states};
    assert_int_equal(model_open(&m, be, model_path, options, &err), 0);
    assert_int_equal(writer_create(&w, m, &err), 0);
    for (uint64_t seed = 100; seed < 100 + 4 / FEWER; seed++) {
        struct task t;
        make_task(&t, seed);
        t.job.ignore_end = true;
        t.job.num_bias = t.job.num_stops = 0;
        assert_int_equal(engine_submit(e, &t.job, &err), 0);
        while (!t.finals) wait_for(&bell), take_events(e);
        const struct writer_options o = {.temperature = t.job.temperature,
                                         .top_p = t.job.top_p,
                                         .top_k = t.job.top_k,
                                         .presence = t.job.presence,
                                         .frequency = t.job.frequency,
                                         .penalty_decay = t.job.penalty_decay,
                                         .seed = t.job.seed};
        int32_t tokens[64];
        struct str text;
        str_init(&text, 1 << 16);
        writer_reset(w);
        writer_feed(w, t.prompt, (size_t)t.job.num_prompt);
        for (int i = 0; i < t.job.max_tokens; i++) tokens[i] = writer_next(w, &o);
        struct utf8 utf8 = {0}; // as the engine shows it: invalid bytes become U+FFFD
        for (int i = 0; i < t.job.max_tokens; i++) {
            size_t len;
            const char *bytes = tok_bytes(tok, tokens[i], &len);
            utf8_feed(&utf8, bytes, len, &text);
        }
        utf8_flush(&utf8, &text);
        assert_string_equal(t.text.data, text.data);
        assert_int_equal(t.generated, t.job.max_tokens);
        str_free(&text);
        free_task(&t);
    }
    writer_destroy(w);
    model_destroy(m);
    backend_destroy(be);
    tok_close(tok);
    engine_close(e);
}

// Nor where states are rounded may it show how a prompt was cut.
static void f16_states_keep_these_laws(void **state) {
    if (strcmp(spec().backend, "cuda") != 0) skip();
    half_states = true;
    company_changes_nothing(state);
    stories_change_nothing(state);
    engine_writes_what_the_writer_writes(state);
    half_states = false;
}

static void every_cancel_ends_once(void **state) {
    enum { N = 60 / FEWER / FEWER };
    (void)state;
    struct task *tasks = mem_zero(N, sizeof *tasks);
    struct bell bell = BELL;
    struct error err;
    struct engine *e = open_engine(&bell, 3, 64, true);
    struct engine_stats stats;
    for (int i = 0; i < N; i++) {
        make_task(&tasks[i], 200 + (uint64_t)i);
        tasks[i].job.max_tokens = 300 / FEWER / FEWER;
        tasks[i].job.ignore_end = true;
    }
    begin_draws(77);
    for (int i = 0; i < N; i++) assert_int_equal(engine_submit(e, &tasks[i].job, &err), 0);
    while (unfinished(tasks, N)) {
        const int i = draw(N);
        // Waiting, in its prompt, writing, parked, or with the end on its way.
        if (!tasks[i].finals && draw(3)) engine_park(e, &tasks[i].job, draw(2));
        if (!tasks[i].finals) engine_cancel(e, &tasks[i].job);
        if (!tasks[i].finals && draw(2)) engine_cancel(e, &tasks[i].job);
        if (!draw(4)) wait_for(&bell);
        take_events(e);
        if (unfinished(tasks, N) && unfinished(tasks, N) < 5) // the rest goes to the end
            for (int k = 0; k < N; k++)
                if (!tasks[k].finals) engine_cancel(e, &tasks[k].job);
    }
    engine_stats(e, &stats);
    for (int i = 0; i < 100 && (stats.running || stats.waiting); i++) {
        usleep(1000);
        engine_stats(e, &stats);
    }
    assert_int_equal(stats.running + stats.waiting, 0);
    engine_close(e);
    for (int i = 0; i < N; i++) assert_int_equal(tasks[i].finals, 1);
    free_tasks(tasks, N);
}

#ifdef CUDA_EMU
// What changes from step to step lies in memory that kernels read, not in how they are launched: a
// step in which all write is a graph, of two that take turns, and those are made before the first.
static void steady_steps_are_graphs(void **state) {
    enum { N = 3, TOKENS = 40 };
    (void)state;
    struct bell bell = BELL;
    struct error err;
    struct task *tasks = mem_zero(N, sizeof *tasks);
    struct engine *e;
    struct engine_spec s = spec();
    s.warm = true;
    if (strcmp(s.backend, "cuda")) skip();
    assert_int_equal(engine_open(&e, &s, limits_of(N, 64, true), ring, &bell, &err), 0);
    for (int i = 0; i < N; i++) {
        make_task(&tasks[i], (uint64_t)i);
        struct engine_job *j = &tasks[i].job;
        *j = (struct engine_job){.prompt = tasks[i].prompt,
                                 .num_prompt = 5,
                                 .max_tokens = TOKENS,
                                 .temperature = 1,
                                 .top_p = 1,
                                 .presence = i ? 0 : 0.5f,
                                 .bias = tasks[i].bias,
                                 .num_bias = i == 1,
                                 .top = -1,
                                 .ignore_end = true,
                                 .owner = &tasks[i]};
    }
    const unsigned long graphs = cuda_emu_graphs, made = cuda_emu_graphs_made;
    for (int i = 0; i < N; i++) assert_int_equal(engine_submit(e, &tasks[i].job, &err), 0);
    while (unfinished(tasks, N)) wait_for(&bell), take_events(e);
    engine_close(e);
    if (cuda_emu_graphs - graphs < TOKENS - N || cuda_emu_graphs_made != made)
        fail_msg("%lu graphs, and %lu were made", cuda_emu_graphs - graphs,
                 cuda_emu_graphs_made - made);
    free_tasks(tasks, N);
}

// Every job ends, those that write, wait and come later, and so does the engine.
static void a_device_that_fails_ends_every_job(void **state) {
    enum { N = 6 };
    (void)state;
    struct bell bell = BELL;
    struct error err;
    struct task *tasks = mem_zero(N, sizeof *tasks);
    if (strcmp(spec().backend, "cuda")) skip();
    struct engine *e = open_engine(&bell, 2, 64, true);
    for (int i = 0; i < N; i++) {
        make_task(&tasks[i], (uint64_t)i);
        tasks[i].job.max_tokens = 100;
        tasks[i].job.ignore_end = true;
        tasks[i].job.num_stops = 0;
    }
    for (int i = 0; i < N - 1; i++) assert_int_equal(engine_submit(e, &tasks[i].job, &err), 0);
    while (tasks[0].generated < 3) wait_for(&bell), take_events(e);
    cuda_emu_broken = 1;
    while (unfinished(tasks, N - 1)) wait_for(&bell), take_events(e);
    assert_int_equal(engine_submit(e, &tasks[N - 1].job, &err), 0);
    while (unfinished(tasks, N)) wait_for(&bell), take_events(e);
    engine_close(e);
    cuda_emu_broken = 0;
    for (int i = 0; i < N; i++) assert_int_equal(tasks[i].finish, ENGINE_FAILED);
    free_tasks(tasks, N);
}
#endif

static void a_full_queue_refuses(void **state) {
    (void)state;
    struct bell bell = BELL;
    struct error err;
    struct engine *e;
    const struct engine_spec s = spec();
    struct task tasks[12];
    assert_int_equal(engine_open(&e, &s, (struct engine_limits){1, 64, 1000, 2, true}, ring, &bell,
                                 &err),
                     0);
    int refused = 0;
    for (int i = 0; i < 12; i++) {
        make_task(&tasks[i], (uint64_t)i);
        tasks[i].job.max_tokens = 500;
        if (engine_submit(e, &tasks[i].job, &err)) {
            refused++;
            assert_int_equal(err.code, E_LIMIT);
            tasks[i].finals = 1;
        }
    }
    assert_true(refused >= 9);
    for (int i = 0; i < 12; i++)
        if (!tasks[i].finals) engine_cancel(e, &tasks[i].job);
    while (unfinished(tasks, 12)) wait_for(&bell), take_events(e);
    for (int i = 0; i < 12; i++) free_task(&tasks[i]);
    engine_close(e);
}

static void wrong_shapes_are_named(void **state) {
    (void)state;
    struct engine *e;
    struct error err;
    struct engine_spec s = spec();
    uint64_t bytes;
    const struct engine_limits limits = {1, 64, 1000, 2, true};
    assert_int_equal(engine_plan(&bytes, &s, limits, &err), 0);
    assert_true(bytes > 100000);
    s.L = 3;
    s.shape_path = "some.toml";
    assert_int_equal(engine_plan(&bytes, &s, limits, &err), -1);
    assert_int_equal(engine_open(&e, &s, limits, ring, NULL, &err), -1);
    assert_non_null(strstr(err.msg, "num_cells 2"));
    assert_non_null(strstr(err.msg, "some.toml says 3"));
}

// Once a step at a time, and once with the next step written down before one is done.
#define BOTH_WAYS(test)                                                                            \
    {#test, test, one_step, NULL, NULL}, {                                                         \
#test " (ahead)", test, steps_ahead, NULL, NULL                                            \
    }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_keep_their_laws),
        BOTH_WAYS(company_changes_nothing),
        BOTH_WAYS(stories_change_nothing),
        BOTH_WAYS(engine_writes_what_the_writer_writes),
        BOTH_WAYS(every_cancel_ends_once),
#ifdef CUDA_EMU
        {"steady_steps_are_graphs", steady_steps_are_graphs, steps_ahead, NULL, NULL},
        BOTH_WAYS(a_device_that_fails_ends_every_job),
#endif
        cmocka_unit_test(a_full_queue_refuses),
        {"f16_states_keep_these_laws", f16_states_keep_these_laws, steps_ahead, NULL, NULL},
        cmocka_unit_test(wrong_shapes_are_named),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
