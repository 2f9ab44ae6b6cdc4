// What a reload request makes of the text of an infer TOML, and which requests are refused.
#include "../cmd/config.h"
#include "../cmd/config_patch.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char served[] = "# Two models.\n"
                             "api_key = \"secret\"\n"
                             "\n"
                             "[[models]]\n"
                             "model_name = 'alpha'\n"
                             "model_cfg_path = \"m\"\n"
                             "# where they are\n"
                             "weights_path = \"w.pth\"  # small\n"
                             "tokenizer_vocab_path = \"bytes\"\n"
                             "device_ids = [ 0 ]\n"
                             "max_batch_size = 0x10\n"
                             "\n"
                             "# The other one.\n"
                             "[[models]]\n"
                             "model_name = \"b\"\n"
                             "model_cfg = \"m\"\n"
                             "weights_path = \"v.pth\"\n"
                             "tokenizer_vocab_path = \"bytes\"\n"
                             "decode_first = true\n"
                             "\n"
                             "[ipc]\n"
                             "enabled = false\n";

#define ENTRY_A                                                                                    \
    "\"model_name\":\"alpha\",\"model_cfg\":\"m\",\"weights_path\":\"w.pth\","                     \
    "\"tokenizer_vocab_path\":\"bytes\",\"device_ids\":[0]"

static int patch(struct str *text, const char *request, struct error *err) {
    struct json *root;
    if (json_parse(&root, request, strlen(request), 1 << 20, "request", err))
        fail_msg("%s", err->msg);
    const int rc = config_patch(text, "x.toml", root, err);
    json_free(root);
    return rc;
}

// `before` is in the text once; the request puts `after` there and changes nothing else.
static void expect(const char *request, const char *before, const char *after) {
    struct error err = {0};
    struct str text, wanted;
    str_init(&text, 1 << 16);
    str_init(&wanted, 1 << 16);
    str_puts(&text, served);
    const char *at = strstr(served, before);
    assert_non_null(at);
    str_append(&wanted, served, (size_t)(at - served));
    str_puts(&wanted, after);
    str_puts(&wanted, at + strlen(before));
    if (patch(&text, request, &err)) fail_msg("%s: %s", request, err.msg);
    assert_string_equal(text.data, wanted.data);
    // A second time there is nothing to do, but for names that are no more.
    if (!strstr(request, "remove_model_names")) {
        if (patch(&text, request, &err)) fail_msg("%s", err.msg);
        assert_string_equal(text.data, wanted.data);
    }
    str_free(&text);
    str_free(&wanted);
}

static void what_says_the_same_is_not_touched(void **state) {
    (void)state;
    expect("{}", "", "");
    expect("{\"upsert\":[],\"remove_model_names\":[],\"dry_run\":true,\"force\":false}", "", "");
    expect("{\"upsert\":[{" ENTRY_A ",\"max_batch_size\":16}]}", "", "");
}

static void an_entry_is_replaced_key_by_key(void **state) {
    (void)state;
    expect("{\"upsert\":[{" ENTRY_A ",\"max_batch_size\":8}]}", "0x10", "8");
    expect("{\"upsert\":[{" ENTRY_A "}]}", "max_batch_size = 0x10\n", "");
    expect("{\"upsert\":[{" ENTRY_A ",\"decode_first\":false,\"max_batch_size\":16,"
           "\"paragraph_len\":64}]}",
           "0x10\n", "0x10\ndecode_first = false\nparagraph_len = 64\n");
    expect("{\"upsert\":[{\"model_name\":\"b\",\"model_cfg\":\"m\",\"weights_path\":\"\\\"v\\\"\","
           "\"tokenizer_vocab_path\":\"bytes\",\"device_ids\":[1,2]}]}",
           "\"v.pth\"\ntokenizer_vocab_path = \"bytes\"\ndecode_first = true\n",
           "\"\\\"v\\\"\"\ntokenizer_vocab_path = \"bytes\"\ndevice_ids = [1, 2]\n");
    // Either name of a key is the key.
    expect("{\"upsert\":[{\"model_name\":\"b\",\"model_cfg_path\":\"n\",\"weights_path\":\"v.pth\","
           "\"tokenizer_vocab_path\":\"bytes\",\"decode_first\":true}]}",
           "model_cfg = \"m\"", "model_cfg = \"n\"");
    expect("{\"remove_model_names\":[\"alpha\"],\"upsert\":[{" ENTRY_A ",\"max_batch_size\":1}]}",
           "0x10", "1");
}

static void entries_come_and_go(void **state) {
    (void)state;
    const char *a = strstr(served, "\n[[models]]\nmodel_name = 'alpha'");
    const char *b = strstr(served, "\n# The other one.");
    const char *ipc = strstr(served, "\n[ipc]");
    char removed[1000];
    snprintf(removed, sizeof removed, "%.*s", (int)(b - a), a);
    expect("{\"remove_model_names\":[\"alpha\",\"alpha\"]}", removed, "");
    snprintf(removed, sizeof removed, "%.*s", (int)(ipc - b), b);
    expect("{\"remove_model_names\":[\"b\"]}", removed, "");
    snprintf(removed, sizeof removed, "%.*s", (int)(ipc - a), a);
    expect("{\"remove_model_names\":[\"b\",\"alpha\"]}", removed, "");
    expect("{\"remove_model_names\":[\"b\",\"alpha\"],\"upsert\":[{\"model_name\":\"c\","
           "\"x\":[0.5,4.0,true,\"\\u00e9\"]}, {\"model_name\":\"d\"}]}",
           removed,
           "\n[[models]]\nmodel_name = \"c\"\nx = [0.5, 4.0, true, \"\xc3\xa9\"]\n"
           "\n[[models]]\nmodel_name = \"d\"\n");
    expect("{\"upsert\":[{\"model_name\":\"c\",\"weights_path\":\"../w\"}]}", "\n[ipc]",
           "\n[[models]]\nmodel_name = \"c\"\nweights_path = \"../w\"\n\n[ipc]");
}

// Whatever a name or key holds, it is that name or key afterwards and nothing else.
static void text_of_a_request_stays_text(void **state) {
    (void)state;
    expect("{\"upsert\":[{\"model_name\":\"\\u0001\\u007f\\\"\\\\\\n[x]\","
           "\"x = 1\\n[evil]\":true,\"\":-0.0}]}",
           "\n[ipc]",
           "\n[[models]]\nmodel_name = \"\\u0001\\u007f\\\"\\\\\\n[x]\"\n"
           "\"x = 1\\n[evil]\" = true\n\"\" = -0.0\n\n[ipc]");
}

static void put(const char *dir, const char *name, const char *text) {
    struct error err = {0};
    char path[100];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_replace(path, text, strlen(text), &err)) fail_msg("%s", err.msg);
}

// The whole way: read, patch, judge, save, read again.
static void a_saved_text_is_what_was_asked_for(void **state) {
    (void)state;
    struct error err = {0};
    struct infer_config c;
    struct stat st;
    struct str text;
    char dir[] = "/tmp/rwkv-test-patch-XXXXXX", path[100], link[100], command[100];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model", dir);
    assert_int_equal(file_mkdirs(path, &err), 0);
    snprintf(path, sizeof path, "%s/infer", dir);
    assert_int_equal(file_mkdirs(path, &err), 0);
    put(dir, "model/m.toml",
        "num_cells = 2\nvocab_size = 257\nembedded_dim = 128\nnum_heads = 2\n");
    put(dir, "real.toml", served);
    snprintf(path, sizeof path, "%s/real.toml", dir);
    snprintf(link, sizeof link, "%s/infer/i.toml", dir);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(symlink("../real.toml", link), 0);

    str_init(&text, 1 << 16);
    assert_int_equal(file_read(&text, link, &err), 0);
    const char *request = "{\"upsert\":[{" ENTRY_A ",\"max_batch_size\":3,\"max_contxt_len\":9}]}";
    assert_int_equal(patch(&text, request, &err), 0);
    assert_int_equal(infer_config_parse(&c, dir, link, text.data, text.len, NULL, 0, &err), -1);
    assert_non_null(strstr(err.msg, "no key max_contxt_len; did you mean max_context_len?"));
    request = "{\"upsert\":[{" ENTRY_A ",\"max_batch_size\":3}],\"remove_model_names\":[\"b\"]}";
    assert_int_equal(patch(&text, request, &err), 0);
    if (infer_config_parse(&c, dir, link, text.data, text.len, NULL, 0, &err))
        fail_msg("%s", err.msg);
    infer_config_free(&c);
    assert_int_equal(config_save(link, text.data, text.len, &err), 0);
    if (infer_config_load(&c, dir, "i", NULL, 0, &err)) fail_msg("%s", err.msg);
    assert_int_equal(c.num_models, 1);
    assert_int_equal(c.models[0].max_batch_size, 3);
    assert_int_equal(c.models[0].paragraph_len, 0);
    assert_string_equal(c.api_key, "secret");
    infer_config_free(&c);
    assert_true(lstat(link, &st) == 0 && S_ISLNK(st.st_mode));
    assert_true(stat(path, &st) == 0 && (st.st_mode & 0777) == 0640);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(config_save(link, text.data, text.len, &err), -1);
    assert_non_null(strstr(err.msg, "/infer/i.toml: cannot find the file: No such file"));
    str_free(&text);
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    assert_int_equal(system(command), 0);
}

static void a_request_at_fault_changes_nothing(void **state) {
    (void)state;
    const struct {
        const char *request, *says;
    } cases[] = {
        {"[]", "the request is an array, wanted an object"},
        {"{\"upserts\":[]}", "a reload has no field \"upserts\"; did you mean upsert?"},
        {"{\"remove\":[\"a\"]}", "a reload has no field \"remove\"; it takes upsert"},
        {"{\"upsert\":{}}", "upsert is an object, wanted an array"},
        {"{\"upsert\":null}", "upsert is null, wanted an array"},
        {"{\"upsert\":[1]}", "upsert[0] is a whole number, wanted an object"},
        {"{\"upsert\":[{}]}", "upsert[0].model_name is missing"},
        {"{\"upsert\":[{\"model_name\":1}]}", "upsert[0].model_name is a whole number"},
        {"{\"upsert\":[{\"model_name\":\" \"}]}", "upsert[0].model_name cannot be empty"},
        {"{\"upsert\":[{\"model_name\":\"a\\u0000\"}]}", "upsert[0].model_name holds a NUL byte"},
        {"{\"upsert\":[{\"model_name\":\"a\"},{\"model_name\":\"a\"}]}",
         "upsert[1]: duplicated model_name: a"},
        {"{\"upsert\":[{\"model_name\":\"a\",\"model_cfg\":\"m\",\"model_cfg_path\":\"m\"}]}",
         "upsert[0]: model_cfg and model_cfg_path are the same key"},
        {"{\"upsert\":[{\"model_name\":\"a\",\"dtype\":null}]}", "upsert[0].dtype is null; leave"},
        {"{\"upsert\":[{\"model_name\":\"a\",\"x\":{}}]}", "upsert[0].x is an object, wanted"},
        {"{\"upsert\":[{\"model_name\":\"a\",\"x\":[[]]}]}",
         "upsert[0].x has an item that is an array, wanted"},
        {"{\"remove_model_names\":\"a\"}", "remove_model_names is a string, wanted an array"},
        {"{\"remove_model_names\":[\"a\",\"\"]}", "remove_model_names[1] cannot be empty"},
        {"{\"remove_model_names\":[\"a\",2]}", "remove_model_names[1] is a whole number"},
        {"{\"remove_model_names\":[\"alpah\"]}",
         "remove_model_names: there is no model \"alpah\"; did you mean alpha?"},
        {"{\"remove_model_names\":[\"c\"],\"upsert\":[{\"model_name\":\"c\"}]}",
         "remove_model_names: there is no model \"c\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {0};
        struct str text;
        str_init(&text, 1 << 16);
        str_puts(&text, served);
        assert_int_equal(patch(&text, cases[i].request, &err), -1);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("%s: got \"%s\", wanted \"%s\"", cases[i].request, err.msg, cases[i].says);
        assert_int_equal(err.code, E_ARG);
        assert_string_equal(text.data, served);
        str_free(&text);
    }
}

static void a_list_has_a_ceiling(void **state) {
    (void)state;
    struct error err = {0};
    struct str text, request;
    str_init(&text, 1 << 16);
    str_init(&request, 1 << 16);
    str_puts(&text, served);
    str_puts(&request, "{\"remove_model_names\":[\"a\"");
    for (int i = 0; i < CONFIG_PATCH_MAX_NAMES; i++) str_puts(&request, ",\"a\"");
    str_puts(&request, "]}");
    assert_int_equal(patch(&text, request.data, &err), -1);
    assert_non_null(strstr(err.msg, "1025 items, at most 1024"));
    str_clear(&request);
    str_puts(&request, "{\"upsert\":[{\"model_name\":\"a\"");
    for (int i = 0; i < 200; i++) str_printf(&request, ",\"k%d\":1", i);
    str_puts(&request, "}]}");
    assert_int_equal(patch(&text, request.data, &err), -1);
    assert_non_null(strstr(err.msg, "upsert[0] has more than 128 keys"));
    assert_string_equal(text.data, served);
    text.max = text.len + 10;
    assert_int_equal(patch(&text, "{\"upsert\":[{\"model_name\":\"c\"}]}", &err), -1);
    assert_int_equal(err.code, E_LIMIT);
    assert_string_equal(text.data, served);
    str_free(&text);
    str_free(&request);
}

static void a_text_at_fault_is_said(void **state) {
    (void)state;
    const struct {
        const char *text, *says;
    } cases[] = {
        {"a = ", "x.toml:1:5: the file ends here"},
        {"\nmodels = [{}]", "x.toml:2:1: a reload changes models that are tables [[models]]"},
        {"models = 1", "x.toml:1:1: a reload changes models that are tables"},
        {"[models]", "here models is a table"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {0};
        struct str text;
        str_init(&text, 1 << 16);
        str_puts(&text, cases[i].text);
        assert_int_equal(patch(&text, "{\"upsert\":[{\"model_name\":\"c\"}]}", &err), -1);
        if (!strstr(err.msg, cases[i].says)) fail_msg("%s", err.msg);
        assert_int_equal(err.code, E_CONFIG);
        assert_string_equal(text.data, cases[i].text);
        str_free(&text);
    }
    // A text without models takes them as well.
    struct error err = {0};
    struct str text;
    str_init(&text, 1 << 16);
    assert_int_equal(patch(&text, "{\"upsert\":[{\"model_name\":\"c\"}]}", &err), 0);
    assert_string_equal(text.data, "[[models]]\nmodel_name = \"c\"\n");
    str_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_says_the_same_is_not_touched),
        cmocka_unit_test(an_entry_is_replaced_key_by_key),
        cmocka_unit_test(entries_come_and_go),
        cmocka_unit_test(text_of_a_request_stays_text),
        cmocka_unit_test(a_saved_text_is_what_was_asked_for),
        cmocka_unit_test(a_request_at_fault_changes_nothing),
        cmocka_unit_test(a_list_has_a_ceiling),
        cmocka_unit_test(a_text_at_fault_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
