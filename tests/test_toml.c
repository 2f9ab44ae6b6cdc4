// TOML 1.0: the files of toml-test (as Debian's golang-github-burntsushi-toml-dev ships them), and
// what they don't ask: places, byte ranges, ceilings.
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/toml.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const suite = "/usr/share/gocode/src/github.com/BurntSushi/toml/internal/"
                                 "toml-test/tests";

// A value against toml-test's JSON: containers as they are, scalars as {"type", "value"}.

static bool matches(const struct toml_value *v, const struct json *j);

static void format_datetime(char out[64], const struct toml_value *v) {
    const struct toml_datetime *d = &v->datetime;
    int n = 0;
    if (v->type != TOML_LOCAL_TIME)
        n += snprintf(out + n, 20, "%04d-%02d-%02d", d->year, d->month, d->day);
    if (v->type == TOML_DATETIME || v->type == TOML_LOCAL_DATETIME) out[n++] = 'T';
    if (v->type != TOML_LOCAL_DATE) {
        n += snprintf(out + n, 20, "%02d:%02d:%02d", d->hour, d->minute, d->second);
        if (d->nanosecond) n += snprintf(out + n, 20, ".%09d", d->nanosecond);
        while (d->nanosecond && out[n - 1] == '0') n--;
    }
    if (v->type == TOML_DATETIME && !d->offset_minutes)
        out[n++] = 'Z';
    else if (v->type == TOML_DATETIME)
        n += snprintf(out + n, 20, "%c%02d:%02d", d->offset_minutes < 0 ? '-' : '+',
                      abs(d->offset_minutes) / 60, abs(d->offset_minutes) % 60);
    out[n] = 0;
}

// The suite writes fractions of a second with zeros at their end now and then.
static void drop_fraction_zeros(char out[64], const char *text) {
    const char *dot = strchr(text, '.');
    const size_t digits = dot ? strspn(dot + 1, "0123456789") : 0;
    size_t kept = digits;
    while (kept && dot[kept] == '0') kept--;
    if (digits)
        snprintf(out, 64, "%.*s%s", (int)(dot - text + 1 + (int)kept), text, dot + 1 + digits);
    else
        snprintf(out, 64, "%s", text);
}

static bool scalar_matches(const struct toml_value *v, const char *type, const char *text,
                           size_t len) {
    static const char *const types[] = {
        [TOML_STRING] = "string",         [TOML_INT] = "integer",
        [TOML_FLOAT] = "float",           [TOML_BOOL] = "bool",
        [TOML_DATETIME] = "datetime",     [TOML_LOCAL_DATETIME] = "datetime-local",
        [TOML_LOCAL_DATE] = "date-local", [TOML_LOCAL_TIME] = "time-local",
    };
    if (v->type >= TOML_ARRAY || strcmp(types[v->type], type)) return false;
    char got[64], wanted[64];
    double number;
    switch (v->type) {
    case TOML_STRING: return v->string.len == len && !memcmp(v->string.data, text, len);
    case TOML_INT: return v->integer == strtoll(text, NULL, 10);
    case TOML_BOOL: return v->flag == !strcmp(text, "true");
    case TOML_FLOAT:
        number = strtod(text, NULL);
        return v->number == number || (isnan(v->number) && isnan(number));
    default:
        format_datetime(got, v);
        drop_fraction_zeros(wanted, text);
        return !strcmp(got, wanted);
    }
}

static bool table_matches(const struct toml_value *v, const struct json *j) {
    void *at = NULL;
    const char *key;
    const struct json *member;
    if (json_length(j) != v->items.count) return false;
    while (json_next(j, &at, &key, &member)) {
        const struct toml_value *same = toml_get(v, key);
        if (!same || !matches(same, member)) return false;
    }
    return true;
}

static bool matches(const struct toml_value *v, const struct json *j) {
    if (json_kind(j) == JSON_KIND_ARRAY) {
        if (v->type != TOML_ARRAY || json_length(j) != v->items.count) return false;
        size_t i = 0;
        for (const struct toml_value *item = v->items.first; item; item = item->next) {
            if (!matches(item, json_item(j, i++))) return false;
        }
        return true;
    }
    if (v->type == TOML_TABLE) return table_matches(v, j);
    struct error err = {0};
    const char *type, *text;
    size_t type_len, len;
    return !json_read_text(&type, &type_len, json_member(j, "type"), "type", &err) &&
           !json_read_text(&text, &len, json_member(j, "value"), "value", &err) &&
           scalar_matches(v, type, text, len);
}

static int valid_files, invalid_files, wrong_files;

static void wrong(const char *path, const char *why) {
    wrong_files++;
    print_error("%s: %s\n", path, why);
}

static void check_valid(const char *path, const struct str *text) {
    struct error err = {0};
    struct toml doc;
    struct json *answer = NULL;
    struct str json;
    str_init(&json, 1 << 20);
    char *json_path = mem_strdup(path);
    strcpy(json_path + strlen(json_path) - 4, "json");
    valid_files++;
    if (toml_parse(&doc, text->data, text->len, path, &err)) {
        wrong(path, err.msg);
    } else {
        if (file_read(&json, json_path, &err) ||
            json_parse(&answer, json.data, json.len, 1 << 20, json_path, &err))
            wrong(path, err.msg);
        else if (!matches(&doc.root, answer))
            wrong(path, "differs from its answer");
        toml_free(&doc);
    }
    json_free(answer);
    str_free(&json);
    free(json_path);
}

static void check_invalid(const char *path, const struct str *text) {
    struct error err = {0};
    struct toml doc;
    char place[400];
    invalid_files++;
    snprintf(place, sizeof place, "%s:", path);
    if (!toml_parse(&doc, text->data, text->len, path, &err)) {
        toml_free(&doc);
        wrong(path, "was accepted");
    } else if (strncmp(err.msg, place, strlen(place)) || err.msg[strlen(place)] < '1' ||
               err.msg[strlen(place)] > '9') {
        wrong(path, err.msg);
    }
}

static int check_file(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
    (void)st, (void)ftw;
    if (kind != FTW_F || !path_has_ext(path, "toml")) return 0;
    struct error err = {0};
    struct str text;
    str_init(&text, 1 << 20);
    if (file_read(&text, path, &err))
        wrong(path, err.msg);
    else if (strstr(path, "/invalid/"))
        check_invalid(path, &text);
    else
        check_valid(path, &text);
    str_free(&text);
    return 0;
}

static void the_suite_agrees(void **state) {
    (void)state;
    if (!file_exists(suite)) {
        print_message("SKIP the toml-test files: golang-github-burntsushi-toml-dev is absent\n");
        skip();
    }
    valid_files = invalid_files = wrong_files = 0;
    assert_int_equal(nftw(suite, check_file, 16, FTW_PHYS), 0);
    assert_int_equal(wrong_files, 0);
    // Fewer would mean that the walk went astray.
    assert_true(valid_files >= 100 && invalid_files >= 234);
}

// Beyond the suite

static int parse(struct toml *doc, const char *text, struct error *err) {
    return toml_parse(doc, text, strlen(text), "x.toml", err);
}

static void tables_are_defined_once(void **state) {
    (void)state;
    static const struct {
        const char *text;
        const char *says; // NULL: it is valid
    } cases[] = {
        {"[a.b.c]\n[a]\nb.d=1", NULL},
        {"[a.b.c]\n[a]\nb.d=1\n[a.b]",
         "x.toml:4:4: b is defined twice; it is a table since line 1"},
        {"[a]\nb.c=1\n[a.b.d]\ne=1", NULL},
        {"[a]\nb.c=1\n[a.b]", "b is defined twice"},
        {"[a.b]\n[a]\nb.c=1", "x.toml:3:1: b cannot be added to by a dotted key"},
        {"a={b=1}\na.c=2", "a cannot be added to"},
        {"a={b.c=1,b.d=2}", NULL},
        {"a={b.c={},b.c.d=2}", "c cannot be added to"},
        {"a={b.c=1}\n[a.b.d]", "a cannot hold a table by header"},
        {"[[a]]\nb=1\n[a.c]\nd=1\n[[a]]\n[a.c]", NULL},
        {"[[a]]\n[a]", "a is defined twice"},
        {"[a]\n[[a]]", "a cannot take another [[table]]"},
        {"a=[]\n[[a]]", "a cannot take another [[table]]"},
        {"a=[{b=1}]\n[a.c]", "a cannot hold a table by header"},
        {"a=1\nb=2\na=3", "x.toml:3:1: a is defined twice; it is an integer since line 1"},
        {"[a]\nb=1\n[c]\nb=1", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct toml doc;
        const int rc = parse(&doc, cases[i].text, &err);
        if (!rc) toml_free(&doc);
        if (!rc != !cases[i].says || (rc && !strstr(err.msg, cases[i].says)))
            fail_msg("case %zu: \"%s\", wanted \"%s\"", i, err.msg,
                     cases[i].says ? cases[i].says : "no error");
    }
}

static void errors_point_and_teach(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"a = fase",
         "x.toml:1:5: got fase, wanted a value: a \"string\" in quotes, a number, true, "
         "false, a date, [array] or {table}"},
        {"a = 1 2", "x.toml:1:7: got 2, wanted the end of the line"},
        {"\n  a 1", "x.toml:2:5: got 1, wanted = after the key"},
        {"a =\n", "x.toml:1:4: the line ends here, wanted a value"},
        {"a = [1,\n2", "x.toml:2:2: the file ends here, wanted , or ] in the array"},
        {"a = \"x\nb\"", "x.toml:1:5: the string isn't closed before the line ends"},
        {"p = \"C:\\dir\"", "x.toml:1:8: no such escape; a backslash itself is written \\\\"},
        {"\xc3\xa9 = 1", "x.toml:1:1: got \xc3\xa9, wanted a key"},
        {"a = \"\xc3\xa9\" x", "x.toml:1:9: got x,"},
        {"a = \"\xff\"", "x.toml:1:6: the bytes are not UTF-8"},
        {"a = 9223372036854775808", "x.toml:1:5: the integer doesn't fit 64 bits"},
        {"a = 1e999", "x.toml:1:5: the number is too large"},
        {"a = 01", "x.toml:1:5: got 01, a number cannot begin with a zero"},
        {"a = 2023-02-29", "x.toml:1:5: got 2023-02-29, wanted a date or time"},
        {"[a", "x.toml:1:3: the file ends here, wanted ]"},
        {"a\rb=1", "x.toml:1:2: a control character, 0x0d"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct toml doc;
        if (!parse(&doc, cases[i].text, &err) ||
            strncmp(err.msg, cases[i].message, strlen(cases[i].message)))
            fail_msg("%s: \"%s\", wanted \"%s\"", cases[i].text, err.msg, cases[i].message);
    }
}

// Every value's range of bytes, put into a text of its own, means the same value again.
static void values_know_their_place(void **state) {
    (void)state;
    static const char text[] = "# first\n"
                               "a = 1 # one\r\n"
                               "  \"b\" = [1, 'two', {c = 3}]   \n"
                               "[t]  # head\n"
                               "x.y = \"\"\"\nm\"\"\"\"\n"
                               "# own comment\n"
                               "z = 07:00:00\n"
                               "\n"
                               "[[l]]\n"
                               "m = true";
    struct error err = {0};
    struct toml doc;
    assert_int_equal(parse(&doc, text, &err), 0);
    const struct toml_value *t = toml_get(&doc.root, "t"), *l = toml_get(&doc.root, "l");
    const struct {
        const struct toml_value *v;
        const char *range;
        int key_line, key_column, line, column;
    } cases[] = {
        {toml_get(&doc.root, "a"), "1", 2, 1, 2, 5},
        {toml_get(&doc.root, "b"), "[1, 'two', {c = 3}]", 3, 3, 3, 9},
        {toml_get(&doc.root, "b")->items.last, "{c = 3}", 3, 20, 3, 20},
        {toml_get(toml_get(t, "x"), "y"), "\"\"\"\nm\"\"\"\"", 5, 3, 5, 7},
        {toml_get(t, "z"), "07:00:00", 8, 1, 8, 5},
        {t, "[t]  # head\nx.y = \"\"\"\nm\"\"\"\"\n# own comment\nz = 07:00:00", 4, 1, 4, 1},
        {l->items.first, "[[l]]\nm = true", 10, 1, 10, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct toml_value *v = cases[i].v;
        const size_t len = strlen(cases[i].range);
        if (v->end - v->begin != len || memcmp(text + v->begin, cases[i].range, len))
            fail_msg("case %zu: \"%.*s\"", i, (int)(v->end - v->begin), text + v->begin);
        assert_int_equal(v->key_line, cases[i].key_line);
        assert_int_equal(v->key_column, cases[i].key_column);
        assert_int_equal(v->line, cases[i].line);
        assert_int_equal(v->column, cases[i].column);
    }
    assert_int_equal(toml_fail(&doc, toml_get(t, "z"), &err, "z is %d", 3), -1);
    assert_string_equal(err.msg, "x.toml:8:1: z is 3");
    toml_free(&doc);
}

static void depth_and_length_have_ceilings(void **state) {
    (void)state;
    struct str s;
    str_init(&s, TOML_MAX_BYTES + 1);
    for (int braces = 0; braces < 3; braces++) {
        for (int depth = TOML_MAX_DEPTH; depth <= TOML_MAX_DEPTH + 1; depth++) {
            static const char *const open[] = {"[", "{a=", "a."}, *const close[] = {"]", "}", ""};
            str_clear(&s);
            if (braces < 2) str_puts(&s, "a=");
            for (int i = 1; i < depth; i++) str_puts(&s, open[braces]);
            str_puts(&s, braces == 0 ? "" : braces == 1 ? "1" : "a=1");
            for (int i = 1; i < depth; i++) str_puts(&s, close[braces]);
            struct error err = {0};
            struct toml doc;
            const int rc = parse(&doc, s.data, &err);
            // An empty array is one level less than one with an item.
            const bool fits = depth <= TOML_MAX_DEPTH + (braces == 0);
            if (rc == (fits ? -1 : 0)) fail_msg("%s at depth %d: %s", open[braces], depth, err.msg);
            if (!rc) toml_free(&doc);
        }
    }
    str_clear(&s);
    while (!str_append(&s, "                ", 16)) continue;
    str_putc(&s, '\n');
    struct error err = {0};
    struct toml doc;
    assert_int_equal(toml_parse(&doc, s.data, s.len, "x.toml", &err), -1);
    assert_int_equal(err.code, E_LIMIT);
    str_free(&s);
}

// A hundred thousand keys and headers take moments: nothing searches from the start.
static void many_keys_are_read_in_linear_time(void **state) {
    (void)state;
    struct str s;
    str_init(&s, TOML_MAX_BYTES);
    for (int i = 0; i < 100000; i++) str_printf(&s, "k%d=%d\n", i, i);
    for (int i = 0; i < 100000; i++) str_printf(&s, "[[t]]\n");
    struct error err = {0};
    struct toml doc;
    assert_int_equal(parse(&doc, s.data, &err), 0);
    assert_int_equal(doc.root.items.count, 100001);
    assert_int_equal(toml_get(&doc.root, "t")->items.last->line, 200000);
    toml_free(&doc);
    str_puts(&s, "k5=1");
    assert_int_equal(parse(&doc, s.data, &err), 0); // it belongs to the last [[t]]
    toml_free(&doc);
    str_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_suite_agrees),
        cmocka_unit_test(tables_are_defined_once),
        cmocka_unit_test(errors_point_and_teach),
        cmocka_unit_test(values_know_their_place),
        cmocka_unit_test(depth_and_length_have_ceilings),
        cmocka_unit_test(many_keys_are_read_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
