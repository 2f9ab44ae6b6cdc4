// Configuration: defaults, names and paths, what is refused and where the refusal points.
#include "../cmd/config.h"
#include "base/error.h"
#include "base/file.h"
#include "base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/rwkv-test-config-XXXXXX";

static void put(const char *name, const char *text) {
    struct error err = {0};
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_replace(path, text, strlen(text), &err)) fail_msg("%s", err.msg);
}

static const char small_model[] = "num_cells = 2\nvocab_size = 257\nembedded_dim = 128\n"
                                  "num_heads = 2\n";
static const char small_train[] = "model_cfg = \"m\"\nexperiment_name = \"e\"\n"
                                  "dataset_base_path = \"data\"\n"
                                  "filename_without_extensions = \"d\"\n"
                                  "learning_rate_start = 1e-3\nlearning_rate_end = 1e-4\n"
                                  "warmup_steps = 10\n";
static const char small_infer[] = "[[models]]\nmodel_name = \"a\"\nmodel_cfg = \"m\"\n"
                                  "weights_path = \"w.pth\"\n"
                                  "tokenizer_vocab_path = \"bytes\"\n";

static int make_dir(void **state) {
    (void)state;
    struct error err = {0};
    char path[64];
    if (!mkdtemp(dir)) return -1;
    static const char *const folders[] = {"model", "train", "infer"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, folders[i]);
        if (file_mkdirs(path, &err)) return -1;
    }
    put("model/m.toml", small_model);
    put("train/t.toml", small_train);
    put("infer/i.toml", small_infer);
    return 0;
}

static int remove_dir(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    return system(command);
}

static int load(struct train_config *c, const char *name, const char *set, struct error *err) {
    return train_config_load(c, dir, name, &set, set ? 1 : 0, err);
}

static void defaults_are_those_of_the_reference(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    if (load(&c, "t", NULL, &err)) fail_msg("%s", err.msg);
    assert_int_equal(c.context_length, 512);
    assert_int_equal(c.random_seed, 42);
    assert_int_equal(c.save_freq, 1);
    assert_int_equal(c.batch_size_per_device, 1);
    assert_true(c.grad_checkpoint && c.enable_l2wrap && c.use_tui);
    assert_true(c.weight_decay == 1e-3 && c.gradient_clip_val == 1.0);
    assert_true(c.adam_beta1 == 0.9 && c.adam_beta2 == 0.99 && c.adam_eps == 1e-18);
    assert_string_equal(c.optimizer, "adam_w");
    assert_string_equal(c.level, "info");
    assert_null(c.validation_base);
    assert_int_equal(c.model.num_cells, 2);
    assert_int_equal(c.model.channel_mix_dim_scale, 4);
    assert_int_equal(c.model.lora_rank_g, 0);
    train_config_free(&c);

    struct infer_config i;
    if (infer_config_load(&i, dir, "i", NULL, 0, &err)) fail_msg("%s", err.msg);
    assert_string_equal(i.http_bind_addr, "127.0.0.1:8080");
    assert_int_equal(i.request_body_limit_bytes, 52428800);
    assert_int_equal(i.num_models, 1);
    assert_int_equal(i.models[0].device_ids.count, 1);
    assert_int_equal(i.models[0].device_ids.at[0], 0);
    assert_int_equal(i.models[0].max_context_len, 4096);
    assert_int_equal(i.models[0].model.embedded_dim, 128);
    assert_string_equal(i.models[0].tokenizer_vocab_path, "bytes");
    infer_config_free(&i);
}

static void names_and_paths_resolve_against_their_file(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    char wanted[256];
    if (load(&c, "t", NULL, &err)) fail_msg("%s", err.msg);
    snprintf(wanted, sizeof wanted, "%s/train/data/d", dir);
    assert_string_equal(c.dataset_prefix, wanted);
    snprintf(wanted, sizeof wanted, "%s/train/logs/e", dir);
    assert_string_equal(c.run_dir, wanted);
    train_config_free(&c);
    // A path of --set is relative to where we stand, and a model_cfg with a slash to its file.
    const char *const sets[] = {"dataset_base_path=here", "model_cfg=../model/m.toml",
                                "context_len=64", "model.num_cells=7", "experiment_name=1.5"};
    if (train_config_load(&c, dir, "t", sets, 5, &err)) fail_msg("%s", err.msg);
    assert_string_equal(c.dataset_base_path, "here");
    assert_int_equal(c.context_length, 64);
    assert_int_equal(c.model.num_cells, 7);
    assert_string_equal(c.experiment_name, "1.5");
    train_config_free(&c);
    // The alias of the reference, an absolute path, a way back that leaves no trace.
    put("train/u.toml", "model_cfg_path = \"m\"\nexperiment_name = \"e\"\n"
                        "dataset_base_path = \"/data\"\nfilename_without_extensions = \"d.x\"\n"
                        "learning_rate_start = 1\nlearning_rate_end = 0\nwarmup_steps = 0\n"
                        "validation_base = \"../model/v\"\ncontext_len = 8\n");
    if (load(&c, "u", NULL, &err)) fail_msg("%s", err.msg);
    assert_string_equal(c.dataset_prefix, "/data/d.x");
    snprintf(wanted, sizeof wanted, "%s/model/v", dir);
    assert_string_equal(c.validation_base, wanted);
    assert_int_equal(c.context_length, 8);
    train_config_free(&c);
}

// A line added to the small training file, and what is said of it. "T" stands for that file.
static void mistakes_point_at_their_line(void **state) {
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"contxt_length = 5", "T:8:1: the train configuration has no key contxt_length; did you "
                              "mean context_length?"},
        {"zzz = 5", "T:8:1: the train configuration has no key zzz; docs/config.md lists them"},
        {"\"num_steps\\u0000\" = 5", "T:8:1: the train configuration has no key num_steps"},
        {"context_length = \"5\"", "T:8:1: context_length is a string, wanted an integer"},
        {"context_length = 5.0", "T:8:1: context_length is a float, wanted an integer"},
        {"context_length = 0", "T:8:1: context_length is 0, wanted 1 to 1048576"},
        {"\n  adam_eps = nan", "T:9:3: adam_eps is nan, wanted 0 to 1"},
        {"weight_decay = -1", "T:8:1: weight_decay is -1, wanted 0 to 1"},
        {"use_tui = 1", "T:8:1: use_tui is an integer, wanted true or false"},
        {"dtype = \"f16\"", "T:8:1: dtype is \"f16\", wanted one of f32|bf16"},
        {"dtype = \"f\"", "T:8:1: dtype is \"f\", wanted one of"},
        {"context_len = 4\ncontext_length = 4",
         "T:9:1: context_length and context_len are the same key, and both are set"},
        {"num_nodes = 2", "T:8:1: num_nodes is for training on several machines, which rwkv "
                          "doesn't offer yet; leave it at 1 or remove it"},
        {"wandb_api_key = \"k\"", "T:8:1: wandb_api_key is for uploading to Weights & Biases, "
                                  "which rwkv doesn't offer yet; remove it"},
        {"paragraph_length = 256", "T:8:1: paragraph_length is for the statepass mode"},
        {"device_ids = [0, 1]\nnum_devices_per_node = 3",
         "T:8:1: device_ids names other than num_devices_per_node devices"},
        {"device_ids = [1, 0, 1]", "T:8:1: device_ids names 1 twice"},
        {"device_ids = []", "T:8:1: device_ids cannot be empty"},
        {"batch_size_per_device = 11", "T:8:1: a step takes 11 samples"},
        {"val_every_steps = 5", "T:8:1: val_every_steps wants held-out data"},
        {"sample_every_steps = 5", "T:8:1: sample texts want a vocabulary"},
        {"warmup_steps = 3", "T:8:1: warmup_steps is defined twice"},
        {"x", "T:8:2: the line ends here, wanted = after the key"},
    };
    char text[1000], path[100], wanted[1000];
    snprintf(path, sizeof path, "%s/train/bad.toml", dir);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct train_config c;
        snprintf(text, sizeof text, "%s%s\n", small_train, cases[i].line);
        snprintf(wanted, sizeof wanted, "%s%s", path, cases[i].says + 1);
        put("train/bad.toml", text);
        if (!load(&c, "bad", NULL, &err) || strncmp(err.msg, wanted, strlen(wanted)))
            fail_msg("%s gave \"%s\", wanted \"%s\"", cases[i].line, err.msg, wanted);
        assert_int_equal(err.code, E_CONFIG);
    }
}

// Either key says what the other one is; what was resolved reads back.
static void devices_are_counted_or_named(void **state) {
    (void)state;
    static const struct {
        const char *set;
        int64_t count, first, last;
    } cases[] = {{NULL, 1, 0, 0},
                 {"num_devices_per_node=3", 3, 0, 2},
                 {"device_ids=[5, 2]", 2, 5, 2},
                 {"device_ids=[4]", 1, 4, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct train_config c;
        if (load(&c, "t", cases[i].set, &err)) fail_msg("%s", err.msg);
        assert_int_equal(c.num_devices_per_node, cases[i].count);
        assert_int_equal(c.device_ids.count, cases[i].count);
        assert_int_equal(c.device_ids.at[0], cases[i].first);
        assert_int_equal(c.device_ids.at[cases[i].count - 1], cases[i].last);
        assert_int_equal(c.samples_per_step, cases[i].count);
        train_config_free(&c);
    }
}

static void defaults_of_later_keys_may_be_set(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    char text[1000];
    snprintf(text, sizeof text, "%s%s", small_train,
             "num_nodes = 1\nparagraph_length = 512\nupload_to_wandb = false\n"
             "dataset_format = \"rwkv_legacy\"\nbackend = 'cpu'\n");
    put("train/later.toml", text);
    if (load(&c, "later", NULL, &err)) fail_msg("%s", err.msg);
    train_config_free(&c);
}

static void overrides_are_checked_like_lines(void **state) {
    (void)state;
    static const struct {
        const char *set, *says;
    } cases[] = {
        {"contxt_length=5", "--set contxt_length: the train configuration has no key"},
        {"context_length", "--set context_length: wanted --set KEY=VALUE"},
        {"context_length=many", "--set context_length: context_length is a string, wanted an"},
        {"context_length=5\nnum_nodes=1", "--set context_length: context_length is a string"},
        {"model.num_heads=3", "--set model.num_heads: num_heads is 3, which doesn't divide"},
        {"model.heads=3", "--set model.heads: the model configuration has no key heads"},
        {"experiment_name=", "--set experiment_name: experiment_name cannot be empty"},
        {"experiment_name=a/b", "--set experiment_name: experiment_name names one folder"},
        {"experiment_name=..", "--set experiment_name: experiment_name names one folder"},
        {"model_cfg=n", "/model/n.toml: there is no such file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct train_config c;
        if (!load(&c, "t", cases[i].set, &err) || !strstr(err.msg, cases[i].says))
            fail_msg("%s gave \"%s\", wanted \"%s\"", cases[i].set, err.msg, cases[i].says);
        assert_int_equal(err.code, E_CONFIG);
    }
}

static void missing_things_are_named(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    struct infer_config i;
    put("train/empty.toml", "");
    assert_int_equal(load(&c, "empty", NULL, &err), -1);
    assert_non_null(strstr(err.msg, "/train/empty.toml:1:1: model_cfg is missing: The model"));
    assert_int_equal(load(&c, "empti", NULL, &err), -1);
    assert_non_null(
        strstr(err.msg, "/train/empti.toml: there is no such file; did you mean empty?"));
    assert_int_equal(load(&c, "t.toml", NULL, &err), -1);
    assert_non_null(strstr(err.msg, "names are given without .toml"));
    assert_int_equal(train_config_load(&c, "/nowhere", "t", NULL, 0, &err), -1);
    assert_string_equal(err.msg,
                        "/nowhere/train: there is no such folder; --config-dir names its parent");

    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "/infer/bad.toml:1:1: models is missing"},
        {"models = []", ":1:1: infer config requires at least one model"},
        {"models = [1]", ":1:11: a model is an integer, wanted a table"},
        {"[[models]]\nmodel_name = \" \"", ":2:1: model_name cannot be empty"},
        {"[[models]]\nmodel_name = \"a\"", ":1:1: model_cfg is missing"},
        {"http_bind_addr = \"8080\"\n", ":1:1: http_bind_addr is \"8080\", wanted ADDRESS:PORT"},
        {"http_bind_addr = \"a:65536\"\n", ":1:1: http_bind_addr is"},
        {"api_key = \"\"\n", ":1:1: api_key cannot be empty; remove it where no key is wanted"},
        {"admin_api_key = \" \\t\"\n", ":1:1: admin_api_key cannot be empty"},
        {"[ipc]\nenabled = true\n", ":2:1: ipc.enabled is for shared-memory IPC"},
        {"[ipc]\nenable = true\n", ":2:1: the infer configuration has no key ipc.enable; did you"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        char text[1000];
        const bool whole = strstr(cases[k].text, "models") || !*cases[k].text;
        snprintf(text, sizeof text, "%s%s", cases[k].text, whole ? "" : small_infer);
        put("infer/bad.toml", text);
        if (!infer_config_load(&i, dir, "bad", NULL, 0, &err) || !strstr(err.msg, cases[k].says))
            fail_msg("%s gave \"%s\", wanted \"%s\"", text, err.msg, cases[k].says);
    }
    char twice[1000];
    snprintf(twice, sizeof twice, "%s%s", small_infer, small_infer);
    put("infer/bad.toml", twice);
    assert_int_equal(infer_config_load(&i, dir, "bad", NULL, 0, &err), -1);
    assert_non_null(strstr(err.msg, ":7:1: duplicated model_name: a"));
    snprintf(twice, sizeof twice, "%sdevice_ids = [1, 0, 1]\n", small_infer);
    put("infer/bad.toml", twice);
    assert_int_equal(infer_config_load(&i, dir, "bad", NULL, 0, &err), -1);
    assert_non_null(strstr(err.msg, ":6:1: device_ids names 1 twice for model a"));
}

// A text that no file holds yet is read as if it stood there.
static void a_text_is_read_as_its_file_would_be(void **state) {
    (void)state;
    struct error err = {0};
    struct infer_config i;
    char path[100], wanted[100], text[1000];
    snprintf(path, sizeof path, "%s/infer/next.toml", dir);
    snprintf(wanted, sizeof wanted, "%s/infer/w.pth", dir);
    snprintf(text, sizeof text, "%s", small_infer);
    const char *set = "max_queue=7";
    if (infer_config_parse(&i, dir, path, text, strlen(text), &set, 1, &err))
        fail_msg("%s", err.msg);
    memset(text, 0, sizeof text);
    assert_string_equal(i.path, path);
    assert_string_equal(i.models[0].weights_path, wanted);
    assert_int_equal(i.models[0].model.embedded_dim, 128);
    assert_int_equal(i.max_queue, 7);
    infer_config_free(&i);
    assert_int_equal(infer_config_parse(&i, dir, path, "x = 1", 5, NULL, 0, &err), -1);
    assert_int_equal(err.code, E_CONFIG);
    assert_non_null(strstr(err.msg, "/infer/next.toml:1:1: the infer configuration has no key x"));
    infer_config_free(&i);
    // Before its paths are found good, no file that it names is opened.
    put("secret", "root:x:0\n");
    snprintf(text, sizeof text,
             "[[models]]\nmodel_name = \"a\"\nmodel_cfg = \"%s/secret\"\n"
             "weights_path = \"w\"\ntokenizer_vocab_path = \"bytes\"\n",
             dir);
    if (infer_config_outline(&i, dir, path, text, strlen(text), NULL, 0, &err))
        fail_msg("%s", err.msg);
    snprintf(wanted, sizeof wanted, "%s/secret", dir);
    assert_string_equal(i.models[0].model_cfg, wanted);
    assert_int_equal(i.models[0].model.embedded_dim, 0);
    assert_int_equal(infer_config_shapes(&i, &err), -1);
    assert_non_null(strstr(err.msg, "/secret:1:5: got :x:0"));
    infer_config_free(&i);
    set = "api_key=";
    assert_int_equal(infer_config_load(&i, dir, "i", &set, 1, &err), -1);
    assert_string_equal(err.msg, "--set api_key: api_key cannot be empty; remove it where no key "
                                 "is wanted");
}

// Written, read and written again is the same text; secrets are not in it.
static void resolved_text_reads_back(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    struct infer_config i;
    struct str once, twice;
    str_init(&once, 1 << 20);
    str_init(&twice, 1 << 20);
    const char *const sets[] = {"sample_prompt=a \"b\"\\n", "adam_eps=1e-18", "seed=7",
                                "tokenizer_vocab_path=bytes", "init_weights_path=w.pth"};
    if (train_config_load(&c, dir, "t", sets, 5, &err)) fail_msg("%s", err.msg);
    train_config_write(&once, &c);
    train_config_free(&c);
    put("train/again.toml", once.data);
    if (load(&c, "again", NULL, &err)) fail_msg("%s", err.msg);
    train_config_write(&twice, &c);
    assert_string_equal(once.data, twice.data);
    assert_int_equal(c.random_seed, 7);
    assert_true(c.adam_eps == 1e-18);
    str_clear(&once);
    model_config_write(&once, &c.model);
    train_config_free(&c);
    put("model/again.toml", once.data);

    char text[1000];
    snprintf(text, sizeof text,
             "api_key = \"hush\"\nallowed_origins = [\"a\", 'b']\nipc.enabled = false\n%s"
             "device_ids = [2, 1]\n",
             small_infer);
    put("infer/keys.toml", text);
    const char *set = "admin_api_key=hush";
    if (infer_config_load(&i, dir, "keys", &set, 1, &err)) fail_msg("%s", err.msg);
    assert_string_equal(i.api_key, "hush");
    assert_string_equal(i.admin_api_key, "hush");
    str_clear(&once);
    str_clear(&twice);
    infer_config_write(&once, &i);
    infer_config_free(&i);
    assert_null(strstr(once.data, "hush"));
    put("infer/again.toml", once.data);
    if (infer_config_load(&i, dir, "again", NULL, 0, &err)) fail_msg("%s", err.msg);
    infer_config_write(&twice, &i);
    infer_config_free(&i);
    assert_string_equal(once.data, twice.data);
    str_free(&once);
    str_free(&twice);
}

static void plan_counts_the_official_steps(void **state) {
    (void)state;
    struct error err = {0};
    struct train_config c;
    struct train_plan plan;
    if (train_config_load(&c, "config", "rwkv-lm-0.1b", NULL, 0, &err)) fail_msg("%s", err.msg);
    if (train_config_plan(&plan, &c, 1498226207, &err)) fail_msg("%s", err.msg);
    assert_int_equal(plan.tokens_per_step, 8192);
    assert_int_equal(plan.exit_tokens, 1498226207);
    assert_int_equal(plan.num_steps, 182889);
    assert_int_equal(plan.steps_per_mini_epoch, 2520);
    assert_int_equal(train_config_plan(&plan, &c, 10 * 8192, &err), -1);
    assert_non_null(strstr(err.msg, "within the warmup_steps 10"));
    assert_int_equal(train_config_plan(&plan, &c, 10 * 8192 + 1, &err), 0);
    assert_int_equal(plan.num_steps, 11);
    c.num_dataset_repeats = 1000000;
    assert_int_equal(train_config_plan(&plan, &c, INT64_MAX / 1000, &err), -1);
    c.num_steps = 500;
    assert_int_equal(train_config_plan(&plan, &c, 1, &err), 0);
    assert_int_equal(plan.num_steps, 500);
    assert_int_equal(plan.exit_tokens, 500 * 8192);
    train_config_free(&c);
}

// The shipped files load; the sizes are the official ones, with heads of 64.
static void shipped_files_load(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t layers, width;
    } sizes[] = {
        {"0.1b", 12, 768},  {"0.4b", 24, 1024}, {"1.5b", 24, 2048},
        {"2.9b", 32, 2560}, {"7.2b", 32, 4096}, {"13.3b", 61, 4096},
    };
    struct error err = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct arena arena = {0};
        struct model_config m;
        char path[100];
        snprintf(path, sizeof path, "config/model/rwkv-lm-%s.toml", sizes[i].name);
        if (model_config_load(&m, &arena, path, NULL, 0, &err)) fail_msg("%s", err.msg);
        assert_int_equal(m.num_cells, sizes[i].layers);
        assert_int_equal(m.embedded_dim, sizes[i].width);
        assert_int_equal(m.embedded_dim / m.num_heads, 64);
        assert_int_equal(m.vocab_size, 65536);
        arena_free(&arena);
    }
    struct train_config c;
    struct infer_config s;
    if (train_config_load(&c, "config", "demo", NULL, 0, &err)) fail_msg("%s", err.msg);
    assert_string_equal(c.run_dir, "runs/demo");
    train_config_free(&c);
    if (infer_config_load(&s, "config", "rwkv-lm-7.2b", NULL, 0, &err)) fail_msg("%s", err.msg);
    infer_config_free(&s);
}

static void docs_are_those_of_the_table(void **state) {
    (void)state;
    struct error err = {0};
    struct str page, file;
    str_init(&page, 1 << 20);
    str_init(&file, 1 << 20);
    config_write_docs(&page);
    if (file_read(&file, "docs/config.md", &err)) fail_msg("%s", err.msg);
    if (strcmp(page.data, file.data)) fail_msg("stale: ./rwkv config keys > docs/config.md");
    str_free(&page);
    str_free(&file);
}

static void tidy_paths_name_the_same_thing(void **state) {
    (void)state;
    static const struct {
        const char *path, *wanted; // relative to the test's folder, which holds model and train
    } cases[] = {
        {"model/../train/x", "train/x"},
        {"./model/./m.toml", "model/m.toml"},
        {"model//m.toml", "model/m.toml"},
        {"link/../x", "link/../x"},
        {"none/../x", "none/../x"},
        {"../x", "../x"},
        {"../../x", "../../x"},
        {"model/..", "."},
        {"model/../..", ".."},
        {"", ""},
        {"/", "/"},
        {"/../x", "/../x"},
        {"/tmp/../x/", "/x"},
    };
    char before[1000];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(dir), 0);
    assert_int_equal(symlink("/tmp", "link"), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[100];
        snprintf(path, sizeof path, "%s", cases[i].path);
        path_tidy(path);
        assert_string_equal(path, cases[i].wanted);
    }
    assert_int_equal(unlink("link"), 0);
    assert_int_equal(chdir(before), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_reference),
        cmocka_unit_test(names_and_paths_resolve_against_their_file),
        cmocka_unit_test(mistakes_point_at_their_line),
        cmocka_unit_test(devices_are_counted_or_named),
        cmocka_unit_test(defaults_of_later_keys_may_be_set),
        cmocka_unit_test(overrides_are_checked_like_lines),
        cmocka_unit_test(missing_things_are_named),
        cmocka_unit_test(a_text_is_read_as_its_file_would_be),
        cmocka_unit_test(resolved_text_reads_back),
        cmocka_unit_test(plan_counts_the_official_steps),
        cmocka_unit_test(shipped_files_load),
        cmocka_unit_test(docs_are_those_of_the_table),
        cmocka_unit_test(tidy_paths_name_the_same_thing),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
