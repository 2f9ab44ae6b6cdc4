// The engine and what it leans on: laws first. What a sequence writes must not depend on its
// company, on cuts of its prompt, or on what happens to the limits meanwhile.
#include "infer/engine.h"

#include "backend/backend.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "infer/sched.h"
#include "model/model.h"
#include "model/writer.h"
#include "text/prompt.h"
#include "text/stop.h"
#include "text/think.h"
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

static uint64_t draw_seed, draw_count;

static int draw(int n) { // in [0, n)
    return (int)(rng_u64(draw_seed, 7, draw_count++) % (uint64_t)n);
}

static void begin_draws(uint64_t seed) {
    draw_seed = seed;
    draw_count = 0;
}

// ---- stop strings ------------------------------------------------------------------------------

// By definition: the text ends before the string that is complete first, the longest of those.
static size_t naive_stop(const char *text, const char *const *stops, int n, bool *stopped) {
    for (size_t end = 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (int i = 0; i < n; i++) {
            const size_t len = strlen(stops[i]);
            if (len <= end && !memcmp(text + end - len, stops[i], len) && len > longest)
                longest = len;
        }
        *stopped = longest > 0;
        if (longest) return end - longest;
    }
    return strlen(text);
}

static void stops_are_found_however_the_text_is_cut(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        begin_draws(seed);
        char text[64] = {0}, strings[3][8] = {{0}};
        const char *stops[3];
        const int n = draw(4);
        for (int i = 0, len = draw(60); i < len; i++) text[i] = (char)('a' + draw(2));
        for (int k = 0; k < n; k++) {
            for (int i = 0, len = 1 + draw(6); i < len; i++) strings[k][i] = (char)('a' + draw(2));
            stops[k] = strings[k];
        }
        bool wanted_stop = false, stopped = false;
        const size_t wanted = naive_stop(text, stops, n, &wanted_stop);
        struct stop *s = stop_create(stops, n);
        struct str out;
        str_init(&out, 1000);
        for (size_t at = 0; at < strlen(text) && !stopped;) {
            size_t len = (size_t)draw(5);
            if (len > strlen(text) - at) len = strlen(text) - at;
            stopped = stop_feed(s, text + at, len, &out);
            at += len;
        }
        if (!stopped) stop_flush(s, &out);
        if (stopped != wanted_stop || out.len != wanted || memcmp(out.data, text, wanted))
            fail_msg("seed %llu: \"%s\" became \"%s\", wanted %zu bytes", (unsigned long long)seed,
                     text, out.data, wanted);
        stop_destroy(s);
        str_free(&out);
    }
}

// ---- thoughts ----------------------------------------------------------------------------------

static void thoughts_are_split_however_the_text_is_cut(void **state) {
    (void)state;
    static const struct {
        const char *text, *thoughts, *answer;
        bool in_tag;
    } cases[] = {
        {" Hello <think>no</think>", "", "Hello <think>no</think>", false},
        {"<think>\nhm </thin </think>\n\nYes.", "hm </thin ", "Yes.", false},
        {">\nfirst\n</think>\nthen", "first\n", "then", true},
        {"><b></think>", "<b>", "", true},
        {"no tag", "no tag", "", true},
        {"<thin", "", "<thin", false},
        {">never closed </thi", "never closed </thi", "", true},
        {"", "", "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t piece = 1; piece < 9; piece++) {
            struct think t;
            struct str thoughts, answer;
            str_init(&thoughts, 1000);
            str_init(&answer, 1000);
            think_begin(&t, cases[i].in_tag);
            const size_t len = strlen(cases[i].text);
            for (size_t at = 0; at < len; at += piece)
                think_feed(&t, cases[i].text + at, len - at < piece ? len - at : piece, &thoughts,
                           &answer);
            think_flush(&t, &thoughts, &answer);
            assert_string_equal(thoughts.data, cases[i].thoughts);
            assert_string_equal(answer.data, cases[i].answer);
            str_free(&thoughts);
            str_free(&answer);
        }
    }
}

// ---- prompts -----------------------------------------------------------------------------------

static void chat_prompts_are_the_official_ones(void **state) {
    (void)state;
    struct prompt_message m[] = {{PROMPT_SYSTEM, " S\r\n\r\nS2 ", 8},
                                 {PROMPT_USER, "Q\n\n\nUser: x", 11},
                                 {PROMPT_ASSISTANT, "A", 1},
                                 {PROMPT_USER, "Q2\n", 3}};
    static const struct {
        enum prompt_think think;
        const char *end;
    } ends[] = {{PROMPT_PLAIN, "User: Q2\n\nAssistant:"},
                {PROMPT_DONT_THINK, "User: Q2\n\nAssistant: <think></think>"},
                {PROMPT_THINK, "User: Q2 (think)\n\nAssistant: <think"},
                {PROMPT_THINK_A_LOT, "User: Q2 (think a lot)\n\nAssistant: <think"}};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        char wanted[200];
        struct str out;
        str_init(&out, 1000);
        assert_int_equal(prompt_chat(&out, m, 4, ends[i].think), 0);
        snprintf(wanted, sizeof wanted, "System: S\nS2\n\nUser: Q\nUser: x\n\nAssistant: A\n\n%s",
                 ends[i].end);
        assert_string_equal(out.data, wanted);
        str_free(&out);
    }
}

static void no_text_begins_a_turn(void **state) {
    (void)state;
    static const char *const pieces[] = {"\n", "\r", "\r\n", "User:", " ", "Assistant:", "x", "\t"};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        begin_draws(seed);
        struct str text, out;
        str_init(&text, 1000);
        str_init(&out, 4000);
        for (int i = 0, n = draw(12); i < n; i++) str_puts(&text, pieces[draw(8)]);
        struct prompt_message m[2] = {{PROMPT_USER, text.data, text.len},
                                      {PROMPT_ASSISTANT, text.data, text.len}};
        prompt_chat(&out, m, 2, PROMPT_PLAIN);
        int turns = 0;
        for (const char *p = out.data; (p = strstr(p, "\n\n")); p++) turns++;
        if (turns != 2)
            fail_msg("seed %llu: %d empty lines in \"%s\"", (unsigned long long)seed, turns,
                     out.data);
        str_free(&text);
        str_free(&out);
    }
}

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

static struct engine_spec spec(void) {
    return (struct engine_spec){.name = "test",
                                .weights_path = model_path,
                                .vocab_path = "bytes",
                                .backend = "cpu",
                                .dtype = "f32",
                                .num_threads = 2,
                                .shape_path = "test"};
}

// One job, what came of it, and what is wanted.
struct task {
    struct engine_job job;
    int32_t prompt[300];
    struct str text;
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
    j->num_prompt = 1 + draw(299);
    for (int i = 0; i < j->num_prompt; i++) t->prompt[i] = draw(257);
    j->max_tokens = 1 + draw(40);
    j->temperature = draw(3) ? 0.5f + (float)draw(10) / 10 : 0;
    j->top_p = draw(2) ? 1 : 0.7f;
    j->top_k = draw(2) ? 0 : 20;
    j->presence = draw(2) ? 0 : 0.4f;
    j->frequency = draw(2) ? 0 : 0.1f;
    j->penalty_decay = 0.99f;
    j->seed = seed;
    j->top = draw(3) - 1;
    j->prompt_logprobs = j->top >= 0 && draw(2);
    j->ignore_end = draw(2);
    j->owner = t;
    str_init(&t->text, 1 << 20);
}

static void take_events(struct engine *e) {
    size_t count;
    const struct engine_event *events = engine_poll(e, &count);
    for (size_t i = 0; i < count; i++) {
        struct task *t = events[i].job->owner;
        assert_int_equal(t->finals, 0); // nothing comes after the last one
        str_append(&t->text, events[i].text, events[i].text_len);
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

static struct engine *open_engine(struct bell *bell, int batch, int paragraph, bool decode_first) {
    struct engine *e;
    struct error err;
    const struct engine_spec s = spec();
    const struct engine_limits limits = {batch, paragraph, 100000, 1000, decode_first};
    if (engine_open(&e, &s, limits, ring, bell, &err)) fail_msg("%s", err.msg);
    return e;
}

#define BELL                                                                                       \
    { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false }

static void company_changes_nothing(void **state) {
    enum { N = 40 };
    (void)state;
    struct task *alone = mem_zero(N, sizeof *alone), *together = mem_zero(N, sizeof *together);
    struct bell bell = BELL;
    struct error err;
    struct engine *e = open_engine(&bell, 1, 4096, true);
    for (int i = 0; i < N; i++) {
        make_task(&alone[i], (uint64_t)i);
        assert_int_equal(engine_submit(e, &alone[i].job, &err), 0);
        while (!alone[i].finals) wait_for(&bell), take_events(e);
        assert_int_equal(alone[i].prompt_read, alone[i].job.num_prompt);
    }
    engine_close(e);
    for (int round = 0; round < 2; round++) {
        e = open_engine(&bell, 7, 100, round);
        for (int i = 0; i < N; i++) make_task(&together[i], (uint64_t)i);
        for (int i = 0; i < N; i++) assert_int_equal(engine_submit(e, &together[i].job, &err), 0);
        for (int looks = 0; unfinished(together, N); looks++) {
            wait_for(&bell);
            take_events(e);
            if (looks == 5) // limits change under way
                engine_set_limits(e, (struct engine_limits){3, 64, 100000, 1000, round});
            if (looks == 20)
                engine_set_limits(e, (struct engine_limits){11, 300, 100000, 1000, round});
        }
        for (int i = 0; i < N; i++) {
            if (strcmp(alone[i].text.data, together[i].text.data) ||
                alone[i].generated != together[i].generated ||
                alone[i].finish != together[i].finish)
                fail_msg("task %d, round %d: \"%s\" alone, \"%s\" in company", i, round,
                         alone[i].text.data, together[i].text.data);
            str_free(&together[i].text);
        }
        engine_close(e);
    }
    for (int i = 0; i < N; i++) str_free(&alone[i].text);
    free(alone);
    free(together);
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
    assert_int_equal(backend_open(&be, "cpu", 1, &err), 0);
    assert_int_equal(model_open(&m, be, model_path,
                                (struct model_options){.precision = {DT_F32, DT_F32}}, &err),
                     0);
    assert_int_equal(writer_create(&w, m, &err), 0);
    for (uint64_t seed = 100; seed < 110; seed++) {
        struct task t;
        make_task(&t, seed);
        t.job.ignore_end = true;
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
        str_free(&t.text);
    }
    writer_destroy(w);
    model_destroy(m);
    backend_destroy(be);
    tok_close(tok);
    engine_close(e);
}

static void every_cancel_ends_once(void **state) {
    enum { N = 60 };
    (void)state;
    struct task *tasks = mem_zero(N, sizeof *tasks);
    struct bell bell = BELL;
    struct error err;
    struct engine *e = open_engine(&bell, 3, 64, true);
    struct engine_stats stats;
    for (int i = 0; i < N; i++) {
        make_task(&tasks[i], 200 + (uint64_t)i);
        tasks[i].job.max_tokens = 300;
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
    for (int i = 0; i < N; i++) {
        assert_int_equal(tasks[i].finals, 1);
        str_free(&tasks[i].text);
    }
    free(tasks);
}

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
    for (int i = 0; i < 12; i++) str_free(&tasks[i].text);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stops_are_found_however_the_text_is_cut),
        cmocka_unit_test(thoughts_are_split_however_the_text_is_cut),
        cmocka_unit_test(chat_prompts_are_the_official_ones),
        cmocka_unit_test(no_text_begins_a_turn),
        cmocka_unit_test(schedules_keep_their_laws),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(engine_writes_what_the_writer_writes),
        cmocka_unit_test(every_cancel_ends_once),
        cmocka_unit_test(a_full_queue_refuses),
        cmocka_unit_test(wrong_shapes_are_named),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
