// Weight files: every spelling of the same tensors reads the same, what we write others read, and
// nothing hostile gets past the door.
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "weights/weights.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURE(name) "tests/fixtures/weights/" name

static struct weights *open_ok(const char *path) {
    struct weights *w = NULL;
    struct error err;
    if (weights_open(&w, path, &err)) fail_msg("%s", err.msg);
    return w;
}

static void expect_values(const struct weights *w) {
    static const float a[] = {0, 1, 2, 3, 4, 5}, b[] = {-1, -0.5f, 0.25f, 8}, c[] = {1.5f};
    const struct {
        const char *name;
        const float *values;
        size_t count;
        int ndim;
    } want[] = {{"a", a, 6, 2}, {"b", b, 4, 1}, {"c", c, 1, 0}};
    assert_int_equal(weights_count(w), 3);
    for (int i = 0; i < 3; i++) {
        const struct weights_tensor *t = weights_find(w, want[i].name);
        float got[6];
        assert_non_null(t);
        assert_int_equal(t->count, want[i].count);
        assert_int_equal(t->ndim, want[i].ndim);
        weights_read(t, DT_F32, got);
        for (size_t k = 0; k < t->count; k++)
            if (got[k] != want[i].values[k])
                fail_msg("%s: %s[%zu] is %g, expected %g", weights_path(w), want[i].name, k,
                         (double)got[k], (double)want[i].values[k]);
    }
    assert_null(weights_find(w, "d"));
}

static void every_spelling_reads_the_same(void **state) {
    (void)state;
    static const char *const paths[] = {FIXTURE("plain.safetensors"), FIXTURE("f32.pth"),
                                        FIXTURE("bf16.pth"),          FIXTURE("f16.pth"),
                                        FIXTURE("f64.pth"),           FIXTURE("prefix.pth"),
                                        FIXTURE("parameter.pth"),     FIXTURE("shared.pth"),
                                        FIXTURE("state_dict.pth")};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        struct weights *w = open_ok(paths[i]);
        expect_values(w);
        weights_close(w);
    }
}

static void strangers_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *path, *says;
    } cases[] = {
        {FIXTURE("evil.pth"), "posix.system"},
        {FIXTURE("not_tensor.pth"), "expected a flat dict of tensors"},
        {FIXTURE("int64.pth"), "torch.LongStorage"},
        {FIXTURE("bare.pth"), "bare pickle"},
        {FIXTURE("deflated.pth"), "compressed"},
        {"tests/fixtures", "is a directory"},
        {"/dev/zero", "not a regular file"},
        {"tests/fixtures/weights/absent.pth", "cannot open"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct weights *w;
        struct error err;
        assert_int_equal(weights_open(&w, cases[i].path, &err), -1);
        if (!strstr(err.msg, cases[i].says) || !strstr(err.msg, cases[i].path))
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].path, err.msg, cases[i].says);
    }
    assert_int_not_equal(access("/tmp/owned", F_OK), 0);
}

static void texts_are_refused_with_advice(void **state) {
    (void)state;
    static const struct {
        const char *name, *text, *says;
    } cases[] = {
        {"x.gguf", "GGUF\3\0\0\0", "GGUF"},
        {"x.pth", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
        {"x.pth", "<!DOCTYPE html><html>", "web page"},
        {"x.pth", "", "empty"},
        {"x.mpk", "\x83whatever", ".mpk"},
        {"x.bin", "hello world", "neither"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[64];
        struct weights *w;
        struct error err;
        snprintf(path, sizeof path, "/tmp/rwkv-test-%d-%s", (int)getpid(), cases[i].name);
        assert_int_equal(file_replace(path, cases[i].text, strlen(cases[i].text), &err), 0);
        assert_int_equal(weights_open(&w, path, &err), -1);
        unlink(path);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("\"%s\" lacks \"%s\"", err.msg, cases[i].says);
    }
}

// A file cut anywhere is an error or, past the last byte that counts, the same tensors.
static void a_file_cut_anywhere_never_crashes(void **state) {
    (void)state;
    static const char *const paths[] = {FIXTURE("plain.safetensors"), FIXTURE("shared.pth")};
    char cut[64];
    snprintf(cut, sizeof cut, "/tmp/rwkv-test-%d-cut", (int)getpid());
    for (int p = 0; p < 2; p++) {
        struct str whole;
        struct error err;
        str_init(&whole, 1 << 20);
        assert_int_equal(file_read(&whole, paths[p], &err), 0);
        for (size_t n = 0; n < whole.len; n++) {
            struct weights *w;
            FILE *f = fopen(cut, "wb");
            assert_non_null(f);
            fwrite(whole.data, 1, n, f);
            fclose(f);
            assert_int_equal(weights_open(&w, cut, &err), -1);
        }
        str_free(&whole);
    }
    unlink(cut);
}

static void expect_bad_safetensors(const char *header, const char *says) {
    char path[64];
    struct str s;
    struct error err;
    struct weights *w;
    snprintf(path, sizeof path, "/tmp/rwkv-test-%d-bad.safetensors", (int)getpid());
    str_init(&s, 4096);
    const uint64_t len = strlen(header);
    str_append(&s, &len, 8);
    str_puts(&s, header);
    str_append(&s, "\0\0\0\0\0\0\0\0", 8); // eight bytes of data
    assert_int_equal(file_replace(path, s.data, s.len, &err), 0);
    const int rc = weights_open(&w, path, &err);
    unlink(path);
    str_free(&s);
    if (rc == 0) fail_msg("accepted: %s", header);
    if (!strstr(err.msg, says)) fail_msg("\"%s\" lacks \"%s\" for %s", err.msg, says, header);
}

static void headers_that_lie_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header, *says;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", "another size"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "follow the last"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", "gap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}",
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}",
         "dimensions"},
        {"{\"a\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype I32"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", "dimension"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype is missing"},
        {"{\"a\":[]}", "entry"},
        {"[]", "neither"},
        {"{", "header"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_bad_safetensors(cases[i].header, cases[i].says);
}

static void read_from(const struct weights_source *s, void *out) {
    weights_read(s->context, s->dtype, out);
}

extern uint64_t pth_zip64_from;

static void what_is_written_reads_back(void **state) {
    (void)state;
    struct weights *from = open_ok(FIXTURE("shared.pth"));
    struct weights_source sources[3];
    for (size_t i = 0; i < 3; i++) {
        const struct weights_tensor *t = weights_at(from, i);
        sources[i] = (struct weights_source){
            .name = t->name, .dtype = DT_BF16, .ndim = t->ndim, .read = read_from, .context = t};
        memcpy(sources[i].dim, t->dim, sizeof sources[i].dim);
    }
    static const char *const names[] = {"/tmp/rwkv-test-out.pth", "/tmp/rwkv-test-out.safetensors"};
    for (int i = 0; i < 3; i++) {
        struct error err;
        pth_zip64_from = i == 2 ? 1 : 0xffffffff; // the third time every field is wide
        if (weights_write(names[i % 2], sources, 3, &err)) fail_msg("%s", err.msg);
        struct weights *back = open_ok(names[i % 2]);
        expect_values(back);
        weights_close(back);
        unlink(names[i % 2]);
    }
    pth_zip64_from = 0xffffffff;
    weights_close(from);
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spelling_reads_the_same),
        cmocka_unit_test(strangers_are_refused_by_name),
        cmocka_unit_test(texts_are_refused_with_advice),
        cmocka_unit_test(a_file_cut_anywhere_never_crashes),
        cmocka_unit_test(headers_that_lie_are_refused),
        cmocka_unit_test(what_is_written_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
