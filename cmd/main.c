// The doors of the house. A new one: write cmd/NAME.c, declare and list it here.
#include "cli.h"

#include "base/json.h"
#include "base/version.h"

extern const struct cli_command cmd_bench, cmd_chat, cmd_config, cmd_convert, cmd_data, cmd_eval,
    cmd_generate, cmd_info, cmd_serve, cmd_train, cmd_verify;

static const struct cli_command *const commands[] = {
    &cmd_data,   &cmd_train,   &cmd_serve, &cmd_generate, &cmd_chat,   &cmd_eval,
    &cmd_verify, &cmd_convert, &cmd_info,  &cmd_bench,    &cmd_config, NULL,
};

static const struct cli_command program = {
    .name = "rwkv",
    .summary = "pretrain RWKV-7 language models and write with them",
    .help = "`rwkv help COMMAND` explains one of them, with examples.\n",
    .commands = commands,
};

int main(int argc, char **argv) {
    json_init();
    return cli_main(&program, RWKV_VERSION, argc, argv);
}
