// JSON: what is refused, what is read, and that what is written reads back as the same value.
#include "base/error.h"
#include "base/json.h"
#include "base/str.h"
#include "base/unicode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int parse(struct json **v, const char *text, struct error *err) {
    return json_parse(v, text, strlen(text), 1 << 20, "x.json", err);
}

static void bad_documents_are_refused_by_place(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "x.json:1:0: "},
        {"{\"a\":1,\n \"a\":2}", "x.json:2:4: duplicate object key"},
        {"[1,]", "x.json:1:4: "},
        {"[1] 2", "end of file expected"},
        {"[01]", "x.json:1:"},
        {"[1e999]", "real number overflow"},
        {"[9223372036854775808]", "too big integer"},
        {"[NaN]", "x.json:1:"},
        {"[\"\\ud800\"]", "x.json:1:"},
        {"[\"\xc0\x80\"]", "x.json:1:"},
        {"[\"\xed\xa0\x80\"]", "x.json:1:"},
        {"[\"\xff\"]", "x.json:1:"},
        {"[\"a\nb\"]", "x.json:1:"},
        {"{\"\\u0000\":1}", "NUL byte in object key"},
        {"[\"", "x.json:1:"},
        {"// no\n1", "x.json:1:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct json *v = NULL;
        if (!parse(&v, cases[i].text, &err) || !strstr(err.msg, cases[i].says))
            fail_msg("case %zu, %s: \"%s\", wanted \"%s\"", i, cases[i].text, err.msg,
                     cases[i].says);
        assert_null(v);
    }
}

static void length_and_depth_have_ceilings(void **state) {
    (void)state;
    char text[2 * (JSON_MAX_DEPTH + 1) + 1] = {0};
    for (size_t depth = JSON_MAX_DEPTH; depth <= JSON_MAX_DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        struct error err = {0};
        struct json *v = NULL;
        assert_int_equal(parse(&v, text, &err), depth > JSON_MAX_DEPTH ? -1 : 0);
        assert_int_equal(err.code, depth > JSON_MAX_DEPTH ? E_LIMIT : E_NONE);
        json_free(v);
    }
    struct error err = {0};
    struct json *v = NULL;
    // Brackets inside a string are no depth, also behind an escaped quote.
    struct str s;
    str_init(&s, 1000);
    str_puts(&s, "\"\\\"");
    for (int i = 0; i < 200; i++) str_putc(&s, '[');
    str_putc(&s, '"');
    assert_int_equal(parse(&v, s.data, &err), 0);
    json_free(v);
    str_free(&s);
    assert_int_equal(json_parse(&v, "{\"a\":4\0}", 8, 100, "x.json", &err), -1);
    assert_non_null(strstr(err.msg, "byte 6 is NUL"));
    assert_int_equal(json_parse(&v, "[1]", 3, 2, "x.json", &err), -1);
    assert_int_equal(err.code, E_LIMIT);
}

static void values_are_read_with_their_type(void **state) {
    (void)state;
    struct error err = {0};
    struct json *v = NULL;
    assert_int_equal(parse(&v,
                           "{\"z\":1,\"a\":-2.5,\"t\":\"a\\u0000\\ud83d\\ude00\",\"l\":[true,null],"
                           "\"o\":{}}",
                           &err),
                     0);
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *text = NULL;
    size_t len = 0;
    assert_int_equal(json_read_int(&i, json_member(v, "z"), 0, 5, "z", &err), 0);
    assert_int_equal(i, 1);
    assert_int_equal(json_read_float(&d, json_member(v, "a"), -3, 3, "a", &err), 0);
    assert_true(d == -2.5);
    assert_int_equal(json_read_float(&d, json_member(v, "z"), -3, 3, "z", &err), 0);
    assert_true(d == 1);
    assert_int_equal(json_read_text(&text, &len, json_member(v, "t"), "t", &err), 0);
    assert_int_equal(len, 6);
    assert_memory_equal(text, "a\0\xf0\x9f\x98\x80", 7);
    const struct json *list = json_member(v, "l");
    assert_int_equal(json_length(list), 2);
    assert_int_equal(json_read_bool(&b, json_item(list, 0), "l[0]", &err), 0);
    assert_true(b);
    assert_int_equal(json_kind(json_item(list, 1)), JSON_KIND_NULL);

    const char *keys = "zatlo", *key;
    void *at = NULL;
    const struct json *member;
    size_t n = 0;
    while (json_next(v, &at, &key, &member)) assert_int_equal(key[0], keys[n++]);
    assert_int_equal(n, json_length(v));

    assert_int_equal(json_read_int(&i, json_member(v, "q"), 0, 5, "q", &err), -1);
    assert_string_equal(err.msg, "q is missing, wanted a whole number");
    assert_int_equal(json_read_int(&i, json_member(v, "a"), 0, 5, "a", &err), -1);
    assert_string_equal(err.msg, "a is a number, wanted a whole number");
    assert_int_equal(json_read_int(&i, json_member(v, "z"), 2, 5, "z", &err), -1);
    assert_string_equal(err.msg, "z is 1, wanted 2 to 5");
    assert_int_equal(json_read_float(&d, json_member(v, "a"), 0, 1, "a", &err), -1);
    assert_string_equal(err.msg, "a is -2.5, wanted 0 to 1");
    assert_int_equal(json_check_kind(json_member(v, "o"), JSON_KIND_ARRAY, "o", &err), -1);
    assert_string_equal(err.msg, "o is an object, wanted an array");
    json_free(v);
}

static void numbers_are_written_shortest_and_read_back(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0, "0.0"},
        {-0.0, "-0.0"},
        {1, "1"},
        {100, "100"},
        {123456789e10, "1.23456789e+18"},
        {0.1, "0.1"},
        {1e300, "1e+300"},
        {5e-324, "5e-324"},
        {1.0 / 3, "0.3333333333333333"},
        {NAN, "null"},
        {-INFINITY, "null"},
    };
    struct str s;
    str_init(&s, 1000);
    struct json_writer w = {.out = &s};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        str_clear(&s);
        w.after_value = false;
        json_put_float(&w, cases[i].value);
        assert_string_equal(s.data, cases[i].text);
    }
    str_clear(&s);
    w.after_value = false;
    json_put_float32(&w, 0.1f);
    json_put_float32(&w, 16777217.0f);
    json_put_int(&w, INT64_MIN);
    assert_string_equal(s.data, "0.1,16777216,-9223372036854775808");
    for (uint64_t i = 0; i < 20000; i++) {
        const uint64_t bits = i * 0x9e3779b97f4a7c15u;
        const uint32_t half = (uint32_t)(bits >> 32);
        double d;
        float f;
        memcpy(&d, &bits, 8);
        memcpy(&f, &half, 4);
        if (!isfinite(d) || !isfinite(f)) continue;
        str_clear(&s);
        w.after_value = false;
        json_put_float(&w, d);
        assert_true(strtod(s.data, NULL) == d);
        str_clear(&s);
        w.after_value = false;
        json_put_float32(&w, f);
        assert_true(strtof(s.data, NULL) == f);
    }
    str_free(&s);
}

static void written_documents_parse(void **state) {
    (void)state;
    struct str s;
    str_init(&s, 1000);
    struct json_writer w = {.out = &s};
    json_open(&w, '{');
    json_put_key(&w, "a\"");
    json_open(&w, '[');
    json_open(&w, '[');
    json_close(&w, ']');
    json_put_bool(&w, true);
    json_put_null(&w);
    json_close(&w, ']');
    json_put_key(&w, "t");
    json_put_text(&w, "\x01\n\\\xff\xe2\x82z", 7);
    json_close(&w, '}');
    assert_int_equal(json_done(&w), 0);
    assert_string_equal(s.data, "{\"a\\\"\":[[],true,null],\"t\":\"\\u0001\\n\\\\\xef\xbf\xbd\xef"
                                "\xbf\xbd\xef\xbf\xbdz\"}");
    struct error err = {0};
    struct json *v = NULL;
    assert_int_equal(parse(&v, s.data, &err), 0);
    json_free(v);
    str_free(&s);

    str_init(&s, 10);
    w = (struct json_writer){.out = &s};
    json_put_text(&w, "far too long for it", 19);
    assert_int_equal(json_done(&w), -1);
    str_free(&s);
}

static void every_scalar_value_survives_utf8(void **state) {
    (void)state;
    for (uint32_t c = 0; c < 0x110100; c++) {
        char text[4];
        uint32_t back = 0;
        const size_t n = unicode_encode(text, c);
        const bool scalar = c < 0xd800 || (c > 0xdfff && c < 0x110000);
        assert_int_equal(n != 0, scalar);
        if (!n) continue;
        assert_int_equal(unicode_decode(text, n, &back), n);
        assert_int_equal(back, c);
        assert_int_equal(unicode_decode(text, n - 1, NULL), 0);
    }
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_documents_are_refused_by_place),
        cmocka_unit_test(length_and_depth_have_ceilings),
        cmocka_unit_test(values_are_read_with_their_type),
        cmocka_unit_test(numbers_are_written_shortest_and_read_back),
        cmocka_unit_test(written_documents_parse),
        cmocka_unit_test(every_scalar_value_survives_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
