// Editing TOML where it stands: what is asked for changes, every other byte stays, and what is
// edited back is as it was.
#include "base/error.h"
#include "base/str.h"
#include "base/toml_edit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// One change in words: "set PATH KEY VALUE", "remove PATH", "append NAME KEY VALUE"; a path is
// names and indices joined by '/', "" the root.
struct change {
    enum { SET, REMOVE, APPEND } what;
    const char *path, *key, *value;
};

static const struct toml_value *walk(const struct toml *doc, const char *path) {
    const struct toml_value *v = &doc->root;
    while (*path && v) {
        char name[64];
        const size_t len = strcspn(path, "/");
        snprintf(name, sizeof name, "%.*s", (int)len, path);
        path += len + (path[len] == '/');
        if (v->type == TOML_ARRAY) {
            size_t i = (size_t)(name[0] - '0');
            for (v = v->items.first; v && i--;) v = v->next;
        } else {
            v = toml_get(v, name);
        }
    }
    if (!v) fail_msg("no such path");
    return v;
}

static void edit(struct str *out, const char *text, size_t len, const struct change *changes,
                 size_t count) {
    struct error err = {0};
    struct toml_edit e;
    if (toml_edit_open(&e, text, len, "x.toml", &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < count; i++) {
        const struct change *c = &changes[i];
        const struct toml_pair pair = {c->key, c->value};
        if (c->what == SET) toml_edit_set(&e, walk(&e.doc, c->path), c->key, c->value);
        if (c->what == REMOVE) toml_edit_remove(&e, walk(&e.doc, c->path));
        if (c->what == APPEND) toml_edit_append(&e, c->path, &pair, c->key ? 1 : 0);
    }
    if (toml_edit_finish(&e, out, &err)) fail_msg("%s", err.msg);
    toml_edit_close(&e);
}

static void expect(const char *text, const struct change *changes, size_t count,
                   const char *wanted) {
    struct str out;
    str_init(&out, 1 << 20);
    edit(&out, text, strlen(text), changes, count);
    assert_string_equal(out.data, wanted);
    str_free(&out);
}

static const char served[] = "# One model.\n"
                             "port = 80   # for all\n"
                             "\n"
                             "# the small one\n"
                             "# (fast)\n"
                             "[[models]]\n"
                             "name = 'a'   # its name\n"
                             "\n"
                             "  size = 1_0\n"
                             "# size = 20\n"
                             "\n"
                             "# the large one\n"
                             "[[models]]\n"
                             "name = \"b\"\n"
                             "ids = [ 1, # one\n"
                             "# two\n"
                             " 2 ]\n"
                             "size = 0x10\n"
                             "# about ipc\n"
                             "[ipc]\n"
                             "on = false\n"
                             "\n"
                             "# The end.\n";

static void a_value_changes_in_its_place(void **state) {
    (void)state;
    const struct change c[] = {{SET, "models/0", "size", "11"}};
    expect("[[models]]\n  size = 1_0\t# x\r\nb=2", c, 1, "[[models]]\n  size = 11\t# x\r\nb=2");
    const struct change many[] = {{SET, "models/1", "ids", "[3]"},
                                  {SET, "", "port", "8080"},
                                  {SET, "models/0", "name", "\"c\""}};
    char wanted[sizeof served + 20];
    snprintf(wanted, sizeof wanted,
             "# One model.\nport = 8080   # for all\n\n# the small one\n# (fast)\n[[models]]\n"
             "name = \"c\"   # its name\n%s",
             strstr(served, "\n  size = 1_0"));
    char *ids = strstr(wanted, "[ 1,");
    memmove(ids + 3, strstr(ids, "\nsize = 0x10"), strlen(strstr(ids, "\nsize = 0x10")) + 1);
    memcpy(ids, "[3]", 3);
    expect(served, many, 3, wanted);
}

static void a_key_goes_below_the_tables_own_lines(void **state) {
    (void)state;
    const struct {
        const char *text, *path, *wanted;
    } cases[] = {
        {"[t]\na = 1\n\n[u]\n", "t", "[t]\na = 1\nk = 9\n\n[u]\n"},
        {"[t]\na = 1 # c\n# d\n[u]\n", "t", "[t]\na = 1 # c\nk = 9\n# d\n[u]\n"},
        {"[t]\n\ta = 1", "t", "[t]\n\ta = 1\n\tk = 9"},
        {"[t]", "t", "[t]\nk = 9"},
        {"  [t]\r\n[u]\r\n", "t", "  [t]\r\n  k = 9\r\n[u]\r\n"},
        {"[t]\na = \"\"\"\n# x\n\"\"\" # y\n", "t", "[t]\na = \"\"\"\n# x\n\"\"\" # y\nk = 9\n"},
        {"[t]\na.b.c = 1\n[t.u]\nx = 1\n", "t", "[t]\na.b.c = 1\nk = 9\n[t.u]\nx = 1\n"},
        {"", "", "k = 9\n"},
        {"\xef\xbb\xbf", "", "\xef\xbb\xbfk = 9"},
        {"\xef\xbb\xbf# c\n[t]\n", "", "\xef\xbb\xbfk = 9\n# c\n[t]\n"},
        {"a = 1\n\n[[t]]\nb = 1\n", "", "a = 1\nk = 9\n\n[[t]]\nb = 1\n"},
        {"a.b = 1\n[a.c]\nd = 1\n", "", "a.b = 1\nk = 9\n[a.c]\nd = 1\n"},
        // Not a value before: what was there goes.
        {"[t]\nk.a = 1\nb = 2\nk.c = 3\n[t.k.d]\n", "t", "[t]\nb = 2\nk = 9\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct change c = {SET, cases[i].path, "k", "9"};
        expect(cases[i].text, &c, 1, cases[i].wanted);
    }
    const struct change odd = {SET, "t", "a b\n", "1"};
    expect("[t]\n", &odd, 1, "[t]\n\"a b\\n\" = 1\n");
}

static void what_is_removed_takes_its_lines(void **state) {
    (void)state;
    const struct {
        const char *text, *path, *wanted;
    } cases[] = {
        {"# x\na = 1 # y\n# z\nb = 2\n", "a", "# x\n# z\nb = 2\n"},
        {"a = 1\nb = 2", "b", "a = 1"},
        {"a = 1\r\nb = 2", "b", "a = 1"},
        {"a = [\n1, # one\n] # end\nb = 2\n", "a", "b = 2\n"},
        {"a.x = 1\nb = 2\na.y.z = 3\n", "a", "b = 2\n"},
        {"a.x = 1\nb = 2\na.y.z = 3\n", "a/y", "a.x = 1\nb = 2\n"},
        // Comments that touch; one blank line, above or else below.
        {"a = 1\n\n# b\n[b]\nc = 1\n\n[d]\n", "b", "a = 1\n\n[d]\n"},
        {"# b\n[b]\nc = 1\n\n[d]\n", "b", "[d]\n"},
        {"a = 1\n\n[b]\nc = 1\n# c = 2\n", "b", "a = 1\n"},
        {"a = 1\n\n[b]\nc = 1\n# d\n[d]\n", "b", "a = 1\n# d\n[d]\n"},
        {"a = 1\n\n[b]\nc = 1\n\n# file\n", "b", "a = 1\n\n# file\n"},
        {"a = '''\n# no comment'''\n[b]\n", "b", "a = '''\n# no comment'''\n"},
        // With the tables below it, wherever they are.
        {"[a]\nx = 1\n[b]\n[a.c]\ny = 1\n[a.c.d]\n", "a", "[b]\n"},
        {"[[m]]\nn = 1\n[m.s]\n[[m]]\nn = 2\n[m.s]\nz = 1\n", "m/0",
         "[[m]]\nn = 2\n[m.s]\nz = 1\n"},
        {"[[m]]\nn = 1\n\n[[m]]\nn = 2\n", "m", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct change c = {.what = REMOVE, .path = cases[i].path};
        expect(cases[i].text, &c, 1, cases[i].wanted);
    }
}

static void a_table_goes_behind_the_last_of_its_name(void **state) {
    (void)state;
    const struct {
        const char *text, *wanted;
    } cases[] = {
        {"", "[[m]]\nk = 9\n"},
        {"a = 1", "a = 1\n\n[[m]]\nk = 9"},
        {"a = 1\r\n", "a = 1\r\n\r\n[[m]]\r\nk = 9\r\n"},
        {"# c\n", "# c\n\n[[m]]\nk = 9\n"},
        {"[[m]]\na = 1\n# a = 2\n\n# end\n", "[[m]]\na = 1\n# a = 2\n\n[[m]]\nk = 9\n\n# end\n"},
        {"[[m]]\na = 1\n# x\n[x]\n", "[[m]]\na = 1\n\n[[m]]\nk = 9\n# x\n[x]\n"},
        // The last one keeps what is its own.
        {"[[m]]\n[x]\n[m.s]\nb = 1\n[y]\n", "[[m]]\n[x]\n[m.s]\nb = 1\n\n[[m]]\nk = 9\n[y]\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct change c = {APPEND, "m", "k", "9"};
        expect(cases[i].text, &c, 1, cases[i].wanted);
    }
    const struct change swap[] = {{.what = REMOVE, .path = "m"},
                                  {APPEND, "m", "k", "1"},
                                  {APPEND, "m", "k", "2"}};
    expect("[[m]]\na = 1\n\n[[m]]\na = 2\n", swap, 3, "[[m]]\nk = 1\n\n[[m]]\nk = 2\n");
    expect("p = 1\n\n[[m]]\na = 1\n\n# x\n[x]\n", swap, 3,
           "p = 1\n\n[[m]]\nk = 1\n\n[[m]]\nk = 2\n\n# x\n[x]\n");
}

// Every prefix of a text, with either line end, so that each kind of end has been there.
static void what_is_edited_back_is_as_it_was(void **state) {
    (void)state;
    char text[2 * sizeof served];
    size_t count = 0;
    for (size_t cut = 0; cut < 2 * sizeof served; cut++) {
        size_t len = 0;
        for (size_t i = 0; i < cut % sizeof served; i++) {
            if (served[i] == '\n' && cut >= sizeof served) text[len++] = '\r';
            text[len++] = served[i];
        }
        struct toml doc;
        if (toml_parse(&doc, text, len, "x", NULL)) continue;
        const struct toml_value *models = toml_get(&doc.root, "models");
        const size_t num_models = models ? models->items.count : 0;
        char last[16];
        snprintf(last, sizeof last, "models/%zu", num_models);
        toml_free(&doc);
        const struct change there[] = {{APPEND, "models", "name", "\"c\""},
                                       {SET, "", "new", "1"},
                                       {SET, "models/0", "new", "[1, 2]"}};
        const struct change back[] = {{.what = REMOVE, .path = last},
                                      {.what = REMOVE, .path = "new"},
                                      {.what = REMOVE, .path = "models/0/new"}};
        const size_t num_changes = num_models ? 3 : 2;
        struct str now, then;
        str_init(&now, 1 << 16);
        str_init(&then, 1 << 16);
        edit(&now, text, len, there, num_changes);
        assert_true(now.len > len);
        edit(&then, now.data, now.len, back, num_changes);
        if (then.len != len || memcmp(then.data, text, len))
            fail_msg("first %zu bytes:\n%.*s\nbecame\n%s", len, (int)len, text, then.data);
        str_free(&now);
        str_free(&then);
        count++;
    }
    assert_true(count > 100);
}

static void a_value_that_is_none_is_refused(void **state) {
    (void)state;
    struct error err = {0};
    struct toml_edit e;
    struct str out;
    str_init(&out, 30);
    str_puts(&out, "before");
    assert_int_equal(toml_edit_open(&e, "a = 1\n", 6, "x.toml", &err), 0);
    toml_edit_set(&e, &e.doc.root, "a", "one");
    assert_int_equal(toml_edit_finish(&e, &out, &err), -1);
    assert_non_null(strstr(err.msg, "x.toml:1:5: got one"));
    assert_string_equal(out.data, "before");
    toml_edit_close(&e);
    assert_int_equal(toml_edit_open(&e, "a = 1\n", 6, "x.toml", &err), 0);
    toml_edit_set(&e, &e.doc.root, "b", "\"and a ceiling in the way\"");
    assert_int_equal(toml_edit_finish(&e, &out, &err), -1);
    assert_int_equal(err.code, E_LIMIT);
    assert_string_equal(out.data, "before");
    toml_edit_close(&e);
    str_free(&out);
    assert_int_equal(toml_edit_open(&e, "a = \n", 5, "x.toml", &err), -1);
    toml_edit_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_value_changes_in_its_place),
        cmocka_unit_test(a_key_goes_below_the_tables_own_lines),
        cmocka_unit_test(what_is_removed_takes_its_lines),
        cmocka_unit_test(a_table_goes_behind_the_last_of_its_name),
        cmocka_unit_test(what_is_edited_back_is_as_it_was),
        cmocka_unit_test(a_value_that_is_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
