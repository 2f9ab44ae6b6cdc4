// GGUF: what is written reads back under the official names, another program's file holds the same
// numbers, and no header gets past the door with a lie.
#include "backend/quant.h"
#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/mem.h"
#include "shared.h"
#include "weights/gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define FIXTURE "tests/fixtures/model/n16/w_bf16.safetensors"
enum { V = 12 };

static struct weights *open_ok(const char *path) {
    struct weights *w = NULL;
    struct error err;
    if (weights_open(&w, path, &err)) fail_msg("%s", err.msg);
    return w;
}

static const char *temporary(const char *name) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/rwkv-test-%d-%s", (int)getpid(), name);
    return path;
}

static void read_from(const struct weights_source *s, void *out) {
    weights_read(s->context, s->dtype, out);
}

static struct weights_source *sources_of(const struct weights *w, enum dtype to) {
    struct weights_source *s = mem_zero(weights_count(w), sizeof *s);
    for (size_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        s[i] = (struct weights_source){
            .name = t->name, .dtype = to, .ndim = t->ndim, .read = read_from, .context = t};
        memcpy(s[i].dim, t->dim, sizeof t->dim);
    }
    return s;
}

// Ids 1 to 11 have texts, among them all that need an escape.
static const char *token(const void *context, int32_t id, size_t *len) {
    static const char *const texts[V] = {NULL,           "\n\n", "\\", "\t", "'\"", "\r",
                                         "\x7f\xc3\xa9", "a",    "b",  "c",  "d",   "e"};
    const char *first = context;
    const char *text = id == 7 && first ? first : texts[id];
    *len = text ? strlen(text) : 0;
    return text;
}

// The fixture as GGUF; `whole` receives the file when it is not NULL.
static int write_fixture(const char *path, enum dtype to, const struct weights_gguf *extra,
                         struct str *whole, struct error *err) {
    struct weights *w = open_ok(FIXTURE);
    struct weights_source *s = sources_of(w, to);
    int rc = weights_write_gguf(path, s, weights_count(w), extra, err);
    free(s);
    weights_close(w);
    if (rc == 0 && whole) {
        str_init(whole, 1 << 20);
        rc = file_read(whole, path, err);
        unlink(path);
    }
    return rc;
}

static void make_file(struct str *whole) {
    const struct weights_gguf extra = {.token = token, .tokens = V};
    struct error err;
    if (write_fixture(temporary("made.gguf"), DT_F32, &extra, whole, &err)) fail_msg("%s", err.msg);
}

static int open_bytes(struct weights **w, const void *data, size_t len, struct error *err) {
    const char *path = temporary("cut.gguf");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
    const int rc = weights_open(w, path, err);
    unlink(path);
    return rc;
}

static float *values_of(const struct weights_tensor *t) {
    float *x = mem_alloc(t->count * sizeof *x);
    weights_read(t, DT_F32, x);
    return x;
}

// `slack`: how far off bytes may be, in steps of their scale. Four bits: the best scale may cut the
// largest number off.
static void expect_same(const struct weights_tensor *got, const struct weights_tensor *want,
                        float slack) {
    float *x = values_of(got), *y = values_of(want), most = 0;
    if (got->ndim != want->ndim || memcmp(got->dim, want->dim, sizeof got->dim))
        fail_msg("%s has another shape", want->name);
    for (size_t i = 0; i < want->count; i++) most = fmaxf(most, fabsf(y[i]));
    const float off = got->blocks == BLOCKS_Q8_0 ? slack * most / 127 : got->blocks ? most / 9 : 0;
    for (size_t i = 0; i < want->count; i++)
        if (!(fabsf(x[i] - y[i]) <= off))
            fail_msg("%s[%zu] is %g, expected %g within %g", want->name, i, (double)x[i],
                     (double)y[i], (double)off);
    free(x);
    free(y);
}

static void expect_model(const struct weights *got, const struct weights *want, float slack) {
    size_t dummies = 0;
    for (size_t i = 0; i < weights_count(want); i++) {
        const struct weights_tensor *t = weights_at(want, i), *u = weights_find(got, t->name);
        const bool dummy = strncmp(t->name, "blocks.0.att.v", 14) == 0 && t->name[14] != 'a';
        dummies += dummy;
        if (dummy != !u) fail_msg("%s is %s", t->name, u ? "there" : "missing");
        if (u) expect_same(u, t, slack);
    }
    assert_int_equal(dummies, 3);
    assert_int_equal(weights_count(got), weights_count(want) - dummies);
}

static void what_is_written_reads_back(void **state) {
    (void)state;
    static const struct {
        enum dtype to;
        enum weights_blocks blocks;
        const char *matrix, *lora, *decay; // how the embedding, a1 and w1 are stored
    } cases[] = {{DT_BF16, BLOCKS_NONE, "bf16", "bf16", "f32"},
                 {DT_F32, BLOCKS_NONE, "f32", "f32", "f32"},
                 {DT_F64, BLOCKS_NONE, "f32", "f32", "f32"},
                 {DT_BF16, BLOCKS_Q8_0, "q8_0", "bf16", "f32"},
                 {DT_BF16, BLOCKS_Q4_0, "q4_0", "bf16", "f32"}};
    struct weights *want = open_ok(FIXTURE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct weights_gguf extra = {.blocks = cases[i].blocks};
        const char *path = temporary("round.gguf");
        struct error err;
        if (write_fixture(path, cases[i].to, &extra, NULL, &err)) fail_msg("%s", err.msg);
        struct weights *got = open_ok(path);
        assert_string_equal(weights_format(got), "gguf");
        expect_model(got, want, 0.52f); // half a step, and the scale's own rounding
        assert_string_equal(weights_storage(weights_find(got, "head.weight")), cases[i].matrix);
        assert_string_equal(weights_storage(weights_find(got, "blocks.1.att.a1")), cases[i].lora);
        assert_string_equal(weights_storage(weights_find(got, "blocks.1.att.w1")), cases[i].decay);
        weights_close(got);
        unlink(path);
    }
    weights_close(want);
}

// By extension alone, and from a GGUF file again: strides and dummies survive a second trip.
static void a_copy_of_a_copy_is_the_same_file(void **state) {
    (void)state;
    struct error err;
    struct str first, second;
    char path[64];
    if (write_fixture(temporary("first.gguf"), DT_F32, &(struct weights_gguf){0}, &first, &err))
        fail_msg("%s", err.msg);
    snprintf(path, sizeof path, "%s", temporary("first.gguf"));
    assert_int_equal(file_replace(path, first.data, first.len, &err), 0);
    struct weights *w = open_ok(path);
    struct weights_source *s = sources_of(w, DT_F32);
    if (weights_write(path, s, weights_count(w), &err)) fail_msg("%s", err.msg);
    weights_close(w);
    free(s);
    str_init(&second, 1 << 20);
    assert_int_equal(file_read(&second, path, &err), 0);
    assert_int_equal(first.len, second.len);
    assert_memory_equal(first.data, second.data, first.len);
    unlink(path);
    str_free(&first);
    str_free(&second);
}

static void another_programs_file_holds_the_same_numbers(void **state) {
    (void)state;
    char theirs[512], ours[512];
    if (!shared_path(theirs, sizeof theirs, "vectors/h1-rand/export/model_f32.gguf") ||
        !shared_path(ours, sizeof ours, "vectors/h1-rand/w_fp32.safetensors"))
        skip();
    struct weights *got = open_ok(theirs), *want = open_ok(ours);
    expect_model(got, want, 0);
    weights_close(got);
    weights_close(want);
}

static bool holds(const struct str *s, const char *text) {
    const size_t len = strlen(text);
    for (size_t i = 0; i + len <= s->len; i++)
        if (memcmp(s->data + i, text, len) == 0) return true;
    return false;
}

static void tokens_are_escaped(void **state) {
    (void)state;
    // Each with the low byte of its length in front and the zeros of it.
    static const char *const texts[] = {"<s>", "\\n\\n",          "\\\\",      "\\t", "'\"",
                                        "\\r", "\\x7f\\xc3\\xa9", "rwkv-world"};
    struct str whole;
    make_file(&whole);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (!holds(&whole, texts[i])) fail_msg("%s is not in the file", texts[i]);
    assert_false(holds(&whole, "[PAD"));
    str_free(&whole);
}

static void expect_refusal(const struct weights_gguf *extra, const char *says) {
    struct error err;
    const char *path = temporary("no.gguf");
    if (write_fixture(path, DT_F32, extra, NULL, &err) == 0) fail_msg("accepted; no \"%s\"", says);
    if (!strstr(err.msg, says)) fail_msg("\"%s\" lacks \"%s\"", err.msg, says);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void what_cannot_be_written_is_refused(void **state) {
    (void)state;
    expect_refusal(&(struct weights_gguf){.token = token, .tokens = V + 1}, "12 embeddings");
    expect_refusal(&(struct weights_gguf){.token = token, .tokens = V, .context = "[PAD9]"},
                   "token 7 of the vocabulary");
    expect_refusal(&(struct weights_gguf){.token = token, .tokens = V, .context = "<s>"},
                   "token 7 of the vocabulary");
    struct weights *w = open_ok(FIXTURE);
    const size_t count = weights_count(w);
    struct weights_source *s = sources_of(w, DT_F32);
    struct error err;
    const char *path = temporary("no.gguf");
    assert_int_equal(weights_write(path, s + 1, count - 1, &err), -1);
    assert_non_null(strstr(err.msg, "has no tensor \"emb.weight\""));
    s[count - 1].name = "blocks.7.ffn.value.weight";
    assert_int_equal(weights_write(path, s, count, &err), -1);
    assert_non_null(strstr(err.msg, "tensor \""));
    assert_int_not_equal(access(path, F_OK), 0);
    free(s);
    weights_close(w);
}

static void q8_0_is_exact_where_it_can_be(void **state) {
    (void)state;
    float x[64], back[64], part[3];
    uint8_t blocks[2 * 34];
    for (int i = 0; i < 64; i++) x[i] = 0.25f * (float)(4 * (i % 32) - 124);
    x[0] = x[32] = 127 * 0.25f; // the scale becomes 0.25
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), 0);
    blocks_read(BLOCKS_Q8_0, back, DT_F32, blocks, 0, 64);
    assert_memory_equal(x, back, sizeof x);
    blocks_read(BLOCKS_Q8_0, part, DT_F32, blocks, 31, 3); // over the edge of a block
    assert_memory_equal(part, x + 31, sizeof part);
    memset(x, 0, sizeof x);
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), 0);
    blocks_read(BLOCKS_Q8_0, back, DT_F32, blocks, 0, 64);
    assert_memory_equal(x, back, sizeof x);
    x[5] = 1e-42f; // its scale has no inverse
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), 0);
    x[5] = NAN;
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), -1);
    x[5] = INFINITY;
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), -1);
    x[5] = 1e8f; // the scale is beyond f16
    assert_int_equal(blocks_write(BLOCKS_Q8_0, blocks, x, 64), -1);
}

// And what it says is what int4 computes with: made again of its own numbers it is the same.
static void q4_0_is_our_int4(void **state) {
    (void)state;
    float x[96], back[96], part[3];
    uint8_t data[3 * 18], again[3 * 18], q[32];
    for (int i = 0; i < 96; i++) x[i] = (float)((i * 37 + 11) % 61 - 30) * (i < 64 ? 0.01f : 3.0f);
    assert_int_equal(blocks_write(BLOCKS_Q4_0, data, x, 96), 0);
    blocks_read(BLOCKS_Q4_0, back, DT_F32, data, 0, 96);
    for (int b = 0; b < 3; b++) {
        const float scale = quant_weights(q, x + 32 * b, 32, DT_INT4);
        for (int k = 0; k < 32; k++)
            assert_true(back[32 * b + k] == scale * (float)((int)q[k] - 8));
    }
    assert_int_equal(blocks_write(BLOCKS_Q4_0, again, back, 96), 0);
    blocks_read(BLOCKS_Q4_0, x, DT_F32, again, 0, 96);
    assert_memory_equal(x, back, sizeof x);
    blocks_read(BLOCKS_Q4_0, part, DT_F32, data, 47, 3); // over the middle of a block
    assert_memory_equal(part, back + 47, sizeof part);
    x[5] = INFINITY;
    assert_int_equal(blocks_write(BLOCKS_Q4_0, data, x, 96), -1);
    for (int k = 0; k < 32; k++) x[k] = 1e9f;
    assert_int_equal(blocks_write(BLOCKS_Q4_0, data, x, 32), -1);
}

static void a_file_cut_anywhere_is_refused(void **state) {
    (void)state;
    struct str whole;
    size_t header = 0;
    make_file(&whole);
    for (size_t i = 0; i + 17 < whole.len; i++) // the last tensor's line ends the header
        if (memcmp(whole.data + i, "channel_mix_value", 17) == 0) header = i + 64;
    assert_in_range(header, 1000, whole.len / 2);
    for (size_t n = 0; n < whole.len; n += n < header ? 1 : 997) {
        struct weights *w;
        struct error err;
        if (open_bytes(&w, whole.data, n, &err) == 0) fail_msg("%zu bytes are accepted", n);
    }
    str_free(&whole);
}

#define POWER_60 "\0\0\0\0\0\0\0\x10"
#define MOST     "\xff\xff\xff\xff\xff\xff\xff\xff"

// One lie at a time: `value` goes to `offset` behind `find`.
static void headers_that_lie_are_refused(void **state) {
    (void)state;
#define CASE(find, offset, value, says)                                                            \
    { find, offset, value, sizeof value - 1, says }
    static const struct {
        const char *find;
        int offset;
        const char *value;
        size_t len;
        const char *says;
    } cases[] = {
        CASE("GGUF", 4, "\1", "version 1"),
        CASE("GGUF", 4, "\0\0\0\3", "big-endian"),
        CASE("GGUF", 8, MOST, "tensors, at most"),
        CASE("GGUF", 16, POWER_60, "entries of metadata"),
        CASE("GGUF", 16, "\xff\3", "ends too early"),
        CASE("general.architecture", -8, POWER_60, "ends too early"),
        CASE("general.architecture", -8, "\0", "has 0 bytes"),
        CASE("general.architecture", 0, "x", "without the text"),
        CASE("general.architecture", 4, " ", "printable ASCII"),
        CASE("general.architecture", 20, "\x0d", "its type is 13"),
        CASE("general.architecture", 20, "\4", "ends too early"),
        CASE("general.architecture", 24, POWER_60, "ends too early"),
        CASE("general.architecture", 32, "l\n", "\"l?kv7\""),
        CASE("general.file_type", 8, "alignment", "\"general.alignment\" is 0"),
        CASE("tokenizer.ggml.tokens", 25, "\x09", "array of arrays"),
        CASE("tokenizer.ggml.tokens", 25, "\x0d", "its type is 13"),
        CASE("tokenizer.ggml.tokens", 29, POWER_60, "items, at most"),
        CASE("tokenizer.ggml.tokens", 29, "\0\0\1", "ends too early"),
        CASE("tokenizer.ggml.tokens", 37, POWER_60, "ends too early"),
        CASE("tokenizer.ggml.token_type", 33, "\0\0\0\1", "ends too early"),
        CASE("tokenizer.ggml.bos_token_id", 15, "e", "is there twice"),
        CASE("rwkv7.attention.layer_norm_epsilon", 38, "\0\0\0\0", "only 1e-05 is supported"),
        CASE("rwkv7.attention.layer_norm_epsilon", 38, "\xff\xff\xff\xff", "nan, only"),
        CASE("rwkv7.wkv.head_size", 23, "\7", "does not divide"),
        CASE("rwkv7.wkv.head_size", 23, "\0", "does not divide"),
        CASE("rwkv7.wkv.head_size", 23, "\xff\xff\xff\xff", "does not divide"),
        CASE("rwkv7.wkv.head_size", 19, "\6", "does not divide"),
        CASE("blk.0.time_mix_w1.weight", -8, POWER_60, "ends too early"),
        CASE("blk.0.time_mix_w1.weight", 24, "\0", "0 dimensions"),
        CASE("blk.0.time_mix_w1.weight", 24, "\5", "5 dimensions"),
        CASE("blk.0.time_mix_w1.weight", 28, "\0\0\0\0\0\0\0\x80", "a dimension is"),
        CASE("blk.0.time_mix_w1.weight", 28, "\0", "a dimension is 0"),
        CASE("blk.0.time_mix_w1.weight", 28, POWER_60 POWER_60, "overflows"),
        CASE("blk.0.time_mix_w1.weight", 28, POWER_60 "\1", "reaches past the end"),
        CASE("blk.0.time_mix_w1.weight", 28, "\x21", "overlaps another"),
        CASE("blk.0.time_mix_w1.weight", 44, "\3", "stored as q4_1; f32, f16, bf16, q8_0 and q4_0"),
        CASE("blk.0.time_mix_w1.weight", 44, "\x0c", "stored as q4_K"),
        CASE("blk.0.time_mix_w1.weight", 44, "\x63", "its type is 99, which is none"),
        CASE("blk.0.time_mix_w1.weight", 44, "\4", "which is none"),
        CASE("blk.0.time_mix_w1.weight", 44, "\x1e", "leaves a gap"),
        CASE("blk.0.time_mix_w2.weight", 44, "\x08", "no whole blocks of q8_0"),
        CASE("blk.0.time_mix_w1.weight", 48, "\1", "at byte"),
        CASE("blk.0.time_mix_w1.weight", 48, MOST, "leaves a gap"),
        CASE("blk.0.time_mix_w1.weight", 48, "\0\0\0\0\0\0\0\0", "overlaps another"),
        CASE("blk.0.time_mix_w1.weight", 15, "a", "is there twice"),
        CASE("blk.0.time_mix_w1.weight", 0, "\n", "printable"),
        CASE("blk.0.time_mix_lerp_fused.weight", 60, "\5", "leaves a gap"),
    };
#undef CASE
    struct str whole;
    make_file(&whole);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *lie = mem_alloc(whole.len);
        struct weights *w;
        struct error err;
        const size_t find_len = strlen(cases[i].find);
        size_t at = 0;
        memcpy(lie, whole.data, whole.len);
        while (at + find_len <= whole.len && memcmp(lie + at, cases[i].find, find_len)) at++;
        if (at + find_len > whole.len) fail_msg("case %zu: nothing to change", i);
        memcpy(lie + at + cases[i].offset, cases[i].value, cases[i].len);
        if (open_bytes(&w, lie, whole.len, &err) == 0)
            fail_msg("case %zu (%s) is accepted", i, cases[i].says);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.msg, cases[i].says);
        free(lie);
    }
    str_free(&whole);
}

static void what_follows_the_data_is_refused(void **state) {
    (void)state;
    struct str whole;
    struct weights *w;
    struct error err;
    make_file(&whole);
    for (int i = 0; i < GGUF_ALIGNMENT; i++) str_putc(&whole, 0);
    assert_int_equal(open_bytes(&w, whole.data, whole.len, &err), -1);
    assert_non_null(strstr(err.msg, "follow the last tensor"));
    str_free(&whole);
}

// A tensor of no known name is shown as it is, so that a model can refuse it by name.
static void strangers_keep_their_names(void **state) {
    (void)state;
    static const char name[] = "blk.0.time_mix_w1.weight";
    static const char *const others[] = {"blk.00time_mix_w1.weight", "blk.0.time_mix_x1.weight",
                                         "blk.x.time_mix_w1.weight", "blk.0123456789012weight."};
    struct str whole;
    size_t at = 0;
    make_file(&whole);
    while (memcmp(whole.data + at, name, sizeof name - 1)) at++;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct weights *w;
        struct error err;
        memcpy(whole.data + at, others[i], sizeof name - 1);
        if (open_bytes(&w, whole.data, whole.len, &err)) fail_msg("%s", err.msg);
        assert_non_null(weights_find(w, others[i]));
        assert_null(weights_find(w, "blocks.0.att.w1"));
        weights_close(w);
    }
    str_free(&whole);
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(a_copy_of_a_copy_is_the_same_file),
        cmocka_unit_test(another_programs_file_holds_the_same_numbers),
        cmocka_unit_test(tokens_are_escaped),
        cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(q8_0_is_exact_where_it_can_be),
        cmocka_unit_test(q4_0_is_our_int4),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(headers_that_lie_are_refused),
        cmocka_unit_test(what_follows_the_data_is_refused),
        cmocka_unit_test(strangers_keep_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
