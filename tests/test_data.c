// Tokenised data: the official order, files byte by byte, the loader against plain arithmetic.
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "data/binidx.h"
#include "data/build.h"
#include "data/loader.h"
#include "data/order.h"
#include "shared.h"
#include "text/tok.h"
#include "train/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
#include <cmocka.h>
// clang-format on

static char dir[] = "/tmp/rwkv-test-data-XXXXXX";

static const char *in_dir(const char *name) {
    static char path[4][300];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static struct json *misc(void) {
    char path[300];
    if (!shared_path(path, sizeof path, "vectors/misc.json")) return NULL;
    struct str text;
    struct json *doc;
    struct error err;
    str_init(&text, 16 << 20);
    if (file_read(&text, path, &err) || json_parse(&doc, text.data, text.len, 16 << 20, path, &err))
        fail_msg("%s", err.msg);
    str_free(&text);
    return doc;
}

static double num(const struct json *v) {
    double x;
    struct error err;
    if (json_read_float(&x, v, -1e300, 1e300, "a number", &err)) fail_msg("%s", err.msg);
    return x;
}

static const char *text_of(const struct json *v) {
    const char *s;
    size_t len;
    struct error err;
    if (json_read_text(&s, &len, v, "a text", &err)) fail_msg("%s", err.msg);
    return s;
}

static void order_and_primes_are_the_official_ones(void **state) {
    (void)state;
    struct json *doc = misc();
    if (!doc) skip();
    const struct json *primes = json_member(doc, "magic_prime"),
                      *orders = json_member(doc, "order");
    for (size_t i = 0; i < json_length(primes); i++) {
        const struct json *p = json_item(primes, i);
        assert_int_equal(order_magic_prime((uint64_t)num(json_item(p, 0)),
                                           (uint64_t)num(json_item(p, 1))),
                         (uint64_t)num(json_item(p, 2)));
    }
    int checked = 0;
    for (size_t i = 0; i < json_length(orders); i++) {
        const struct json *o = json_item(orders, i), *rows = json_member(o, "ii_offset");
        for (size_t k = 0; k < json_length(rows); k++, checked++)
            assert_int_equal(order_offset((uint64_t)num(json_member(o, "magic_prime")),
                                          (uint64_t)num(json_member(o, "ctx")),
                                          (uint64_t)num(json_item(json_item(rows, k), 0))),
                             (uint64_t)num(json_item(json_item(rows, k), 1)));
    }
    printf("  %d offsets\n", checked);
    json_free(doc);
}

static void learning_rates_are_the_official_ones(void **state) {
    (void)state;
    struct json *doc = misc();
    if (!doc) skip();
    void *at = NULL;
    const char *name;
    const struct json *run;
    while (json_next(json_member(doc, "lr"), &at, &name, &run)) {
        const struct json *a = json_member(run, "args"), *points = json_member(run, "points");
        const struct schedule s = {.lr_init = num(json_member(a, "lr_init")),
                                   .lr_final = num(json_member(a, "lr_final")),
                                   .warmup_steps = (int64_t)num(json_member(a, "warmup")),
                                   .exit_tokens = (int64_t)num(json_member(a, "exit_tokens")),
                                   .tokens_per_step =
                                       (int64_t)num(json_member(a, "tokens_per_step"))};
        for (size_t i = 0; i < json_length(points); i++) {
            const struct json *p = json_item(points, i);
            const int64_t step = (int64_t)num(json_item(p, 0));
            const double want = num(json_item(p, 1));
            assert_true(fabs(schedule_lr(&s, step) - want) <= 1e-12 * want);
            assert_true(fabs(schedule_progress(&s, step) - num(json_item(p, 2))) <= 1e-12);
        }
    }
    json_free(doc);
}

static void every_window_is_visited_once(void **state) {
    (void)state;
    const uint64_t p = order_magic_prime(100000, 128);
    bool *seen = mem_zero(p, sizeof *seen);
    for (uint64_t ii = 1; ii <= p; ii++) {
        const uint64_t w = order_offset(p, 128, ii) / 128;
        assert_true(w < p && !seen[w]);
        seen[w] = true;
    }
    free(seen);
    assert_int_equal(order_magic_prime(0, 16), 0);
    assert_int_equal(order_magic_prime(40, 16), 0);
}

static void expect_hex(const char *path, const char *hex) {
    struct str bytes;
    struct error err;
    str_init(&bytes, 1 << 20);
    assert_int_equal(file_read(&bytes, path, &err), 0);
    assert_int_equal(2 * bytes.len, strlen(hex));
    for (size_t i = 0; i < bytes.len; i++) {
        unsigned want;
        sscanf(hex + 2 * i, "%2x", &want);
        assert_int_equal((unsigned char)bytes.data[i], want);
    }
    str_free(&bytes);
}

static void files_are_megatrons_byte_by_byte(void **state) {
    (void)state;
    struct json *doc = misc();
    if (!doc) skip();
    const struct json *b = json_member(doc, "binidx"), *docs = json_member(b, "docs");
    struct binidx_writer w;
    struct error err;
    assert_int_equal(binidx_create(&w, in_dir("tiny"), &err), 0);
    for (size_t i = 0; i < json_length(docs); i++) {
        int32_t tokens[16];
        const size_t n = json_length(json_item(docs, i));
        for (size_t k = 0; k < n; k++) tokens[k] = (int32_t)num(json_item(json_item(docs, i), k));
        assert_int_equal(binidx_add(&w, tokens, n), 0);
    }
    assert_int_equal(binidx_commit(&w), 0);
    expect_hex(in_dir("tiny.bin"), text_of(json_member(b, "bin_hex")));
    expect_hex(in_dir("tiny.idx"), text_of(json_member(b, "idx_hex")));
    json_free(doc);
}

// Documents of 0, 1 and many tokens; token values follow a rule.
static void write_sample(const char *name, int documents) {
    struct binidx_writer w;
    struct error err;
    int32_t tokens[200];
    assert_int_equal(binidx_create(&w, in_dir(name), &err), 0);
    for (int d = 0, t = 0; d < documents; d++) {
        const int n = d * 37 % 200;
        for (int i = 0; i < n; i++) tokens[i] = 1 + (t++ * 7919) % 500;
        assert_int_equal(binidx_add(&w, tokens, (size_t)n), 0);
    }
    assert_int_equal(binidx_commit(&w), 0);
}

static void damage_is_refused(void **state) {
    (void)state;
    struct str idx;
    struct error err;
    struct binidx *b;
    write_sample("damage", 9);
    str_init(&idx, 1 << 20);
    assert_int_equal(file_read(&idx, in_dir("damage.idx"), &err), 0);
    const char *path = in_dir("damage.idx"), *prefix = in_dir("damage");
    // Any byte of the header, the lengths and the offsets; any length of the file.
    for (size_t i = 0; i < idx.len; i++) {
        const bool document_list = i >= 34 + 12 * 9;
        idx.data[i] ^= 0x41;
        assert_int_equal(file_replace(path, idx.data, idx.len, &err), 0);
        idx.data[i] ^= 0x41;
        const int rc = binidx_open(&b, prefix, &err);
        if (rc == 0) binidx_close(b);
        if (!document_list && rc == 0) fail_msg("byte %zu may be anything", i);
        assert_int_equal(file_replace(path, idx.data, i, &err), 0);
        assert_int_equal(binidx_open(&b, prefix, &err), -1);
    }
    idx.data[17] = 4;
    assert_int_equal(file_replace(path, idx.data, idx.len, &err), 0);
    assert_int_equal(binidx_open(&b, prefix, &err), -1);
    assert_non_null(strstr(err.msg, "i32"));
    str_free(&idx);
}

static void the_loader_gives_the_official_samples(void **state) {
    (void)state;
    struct binidx *b;
    struct loader *l;
    struct error err;
    enum { T = 16, B = 3 };
    write_sample("load", 60);
    assert_int_equal(binidx_open(&b, in_dir("load"), &err), 0);
    const uint64_t p = order_magic_prime(b->num_tokens, T);
    for (uint64_t first = 1; first < 200; first += 66) { // from the start, and resumed
        const struct loader_options o = {.ctx = T,
                                         .batch = B,
                                         .vocab_size = 512,
                                         .first_sample = first,
                                         .stride = first == 1 ? B : 2 * B}; // alone, one of two
        int32_t in[B * T], want[B * T];
        assert_int_equal(loader_create(&l, b, o, &err), 0);
        assert_int_equal(loader_magic_prime(l), p);
        for (uint64_t n = 0; n < 30; n++) {
            assert_int_equal(loader_next(l, in, want, &err), 0);
            for (uint64_t s = 0; s < B; s++) {
                const uint16_t *t =
                    b->tokens + order_offset(p, T, first + n * (uint64_t)o.stride + s);
                for (int i = 0; i < T; i++) {
                    assert_int_equal(in[s * T + (uint64_t)i], t[i]);
                    assert_int_equal(want[s * T + (uint64_t)i], t[i + 1]);
                }
            }
        }
        loader_destroy(l);
    }
    // A token outside the vocabulary is an error that says where.
    const struct loader_options small = {
        .ctx = T, .batch = B, .vocab_size = 100, .first_sample = 1, .stride = B};
    int32_t in[B * T], want[B * T];
    int rc = 0;
    assert_int_equal(loader_create(&l, b, small, &err), 0);
    for (int n = 0; n < 30 && rc == 0; n++) rc = loader_next(l, in, want, &err);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(err.msg, "vocabulary has 100"));
    loader_destroy(l);
    const struct loader_options large = {
        .ctx = 100000, .batch = 1, .vocab_size = 512, .first_sample = 1, .stride = 1};
    assert_int_equal(loader_create(&l, b, large, &err), -1);
    assert_non_null(strstr(err.msg, "too few"));
    // Windows cover the data in order, without the last token, which is only a target.
    for (uint64_t w = 0; w < window_count(b, T); w++) {
        assert_int_equal(window_read(b, w, T, 512, in, want, &err), 0);
        assert_int_equal(in[0], b->tokens[w * T]);
        assert_int_equal(want[T - 1], b->tokens[w * T + T]);
    }
    assert_int_equal(window_read(b, window_count(b, T), T, 512, in, want, &err), -1);
    binidx_close(b);
}

static void build(const char *const *inputs, size_t n, const char *output, struct build_options o,
                  struct build_result *r) {
    struct tok *tok;
    struct error err;
    tok_open_bytes(&tok);
    o.inputs = inputs;
    o.num_inputs = n;
    o.output = output;
    if (build_run(r, tok, &o, &err)) fail_msg("%s", err.msg);
    tok_close(tok);
}

static void building_keeps_every_byte(void **state) {
    (void)state;
    static const char jsonl[] =
        "{\"text\": \"one\"}\n\n{\"text\": \"\\u00e9\\n\\u0000x\", \"other\": 3}\r\n"
        "{\"text\": \"\"}\n{\"text\": \"last, no newline\"}";
    static const char plain[] = "first\npart\n\n\n\nsecond\n";
    struct error err;
    struct build_result r;
    struct binidx *b;
    char in[300], txt[300], out[300];
    snprintf(in, sizeof in, "%s", in_dir("in.jsonl"));
    snprintf(txt, sizeof txt, "%s", in_dir("in.txt"));
    snprintf(out, sizeof out, "%s", in_dir("built"));
    assert_int_equal(file_replace(in, jsonl, sizeof jsonl - 1, &err), 0);
    assert_int_equal(file_replace(txt, plain, sizeof plain - 1, &err), 0);
    build((const char *[]){in, txt}, 2, out, (struct build_options){.split_blank = true}, &r);
    assert_int_equal(r.documents, 6);
    assert_int_equal(binidx_open(&b, out, &err), 0);
    static const char *const want[] = {"one",           "\xc3\xa9\n\0x", "", "last, no newline",
                                       "first\npart\n", "second\n"};
    static const size_t len[] = {3, 5, 0, 16, 11, 7};
    for (uint64_t d = 0; d < 6; d++) {
        const uint16_t *t = b->tokens + binidx_document_start(b, d);
        for (size_t i = 0; i < len[d]; i++) assert_int_equal(t[i], 1 + (unsigned char)want[d][i]);
        assert_int_equal(t[len[d]], 0);
        assert_int_equal(binidx_document_start(b, d + 1) - binidx_document_start(b, d), len[d] + 1);
    }
    binidx_close(b);
    // A shuffle is a permutation by seed, and nothing is lost to the held-out part.
    build((const char *[]){in, txt}, 2, out,
          (struct build_options){.split_blank = true, .shuffle = true, .seed = 4, .held_out = 2},
          &r);
    assert_int_equal(r.documents, 4);
    assert_int_equal(r.held_documents, 2);
    assert_int_equal(r.tokens + r.held_tokens, 3 + 5 + 0 + 16 + 11 + 7 + 6);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    static const char *const lines[] = {"{\"text\": \"a\"}\n{\"txt\": \"a\"}\n", "{\"text\": 3}\n",
                                        "{\"text\": \"a\n", "\n\n"};
    static const char *const says[] = {"in.jsonl:2", "in.jsonl:1", "in.jsonl:1", "no document"};
    struct tok *tok;
    tok_open_bytes(&tok);
    for (int i = 0; i < 4; i++) {
        struct error err;
        struct build_result r;
        char in[300];
        snprintf(in, sizeof in, "%s", in_dir("in.jsonl"));
        assert_int_equal(file_replace(in, lines[i], strlen(lines[i]), &err), 0);
        const char *inputs[] = {in};
        const struct build_options o = {.inputs = inputs,
                                        .num_inputs = 1,
                                        .output = in_dir("never")};
        assert_int_equal(build_run(&r, tok, &o, &err), -1);
        if (!strstr(err.msg, says[i])) fail_msg("\"%s\" lacks \"%s\"", err.msg, says[i]);
        assert_false(file_exists(in_dir("never.bin")));
        assert_false(file_exists(in_dir("never.bin.tmp")));
    }
    tok_close(tok);
}

int main(void) {
    json_init();
    if (!mkdtemp(dir)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_primes_are_the_official_ones),
        cmocka_unit_test(learning_rates_are_the_official_ones),
        cmocka_unit_test(every_window_is_visited_once),
        cmocka_unit_test(files_are_megatrons_byte_by_byte),
        cmocka_unit_test(damage_is_refused),
        cmocka_unit_test(the_loader_gives_the_official_samples),
        cmocka_unit_test(building_keeps_every_byte),
        cmocka_unit_test(bad_lines_are_named),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) ? 1 : rc;
}
