// `rwkv config`: what can be configured, and what a configuration comes to.
#include "cli.h"
#include "config.h"

#include "base/error.h"
#include "base/str.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_PAGE = 16 << 20 };

static void print(struct str *page) {
    fwrite(page->data, 1, page->len, stdout);
    str_free(page);
}

static int run_keys(const struct cli_args *args, struct error *err) {
    (void)args, (void)err;
    struct str page;
    str_init(&page, MAX_PAGE);
    config_write_docs(&page);
    print(&page);
    return 0;
}

static int show_train(const struct cli_args *args, const char *const sets[], size_t num_sets,
                      struct error *err) {
    struct train_config c;
    if (train_config_load(&c, cli_string(args, "config-dir"), cli_string(args, "train-cfg"), sets,
                          num_sets, err))
        return -1;
    struct str page;
    str_init(&page, MAX_PAGE);
    str_printf(&page, "# %s\n", c.path);
    train_config_write(&page, &c);
    str_printf(&page, "\n# %s\n", c.model.path);
    model_config_write(&page, &c.model);
    print(&page);
    train_config_free(&c);
    return 0;
}

static int show_infer(const struct cli_args *args, const char *const sets[], size_t num_sets,
                      struct error *err) {
    struct infer_config c;
    if (infer_config_load(&c, cli_string(args, "config-dir"), cli_string(args, "infer-cfg"), sets,
                          num_sets, err))
        return -1;
    struct str page;
    str_init(&page, MAX_PAGE);
    str_printf(&page, "# %s\n", c.path);
    infer_config_write(&page, &c);
    print(&page);
    infer_config_free(&c);
    return 0;
}

static int run_show(const struct cli_args *args, struct error *err) {
    if (cli_given(args, "train-cfg") == cli_given(args, "infer-cfg"))
        return fail(err, E_ARG, "wanted one of --train-cfg NAME and --infer-cfg NAME");
    const size_t num_sets = cli_count(args, "set");
    const char **sets = cli_strings(args, "set");
    const int rc = cli_given(args, "train-cfg") ? show_train(args, sets, num_sets, err)
                                                : show_infer(args, sets, num_sets, err);
    free(sets);
    return rc;
}

static const struct cli_option show_options[] = {
    {"config-dir", "DIR", .fallback = "config", .help = "folder with model, train and infer in it"},
    {"train-cfg", "NAME", .help = "the file train/NAME.toml and the model it names"},
    {"infer-cfg", "NAME", .help = "the file infer/NAME.toml"},
    {"set", "KEY=VALUE", .repeat = true, .help = "override a key"},
    {0},
};

static const struct cli_command keys = {
    .name = "keys",
    .summary = "print every key of the configuration files (docs/config.md)",
    .run = run_keys,
};

static const struct cli_command show = {
    .name = "show",
    .summary = "check a configuration and print it with its defaults filled in",
    .help = "Shows what a run would use, without running:\n\n"
            "  rwkv config show --train-cfg demo --set context_length=256\n\n"
            "A key that is unknown or out of its bounds is named with its file and line.\n",
    .options = show_options,
    .run = run_show,
};

static const struct cli_command *const below[] = {&keys, &show, NULL};

const struct cli_command cmd_config = {
    .name = "config",
    .summary = "explain, check and print configuration files",
    .help = "`rwkv config keys` is the reference of all keys, `rwkv config show` checks a file.\n",
    .commands = below,
};
