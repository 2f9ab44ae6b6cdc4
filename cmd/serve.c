#include "cli.h"
#include "serve_config.h"

#include "base/error.h"
#include "serve/server.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

// Whoever can reach the address can use the models: other machines are let in with a key only.
static int check_public(const struct infer_config *c, const struct cli_args *args,
                        struct error *err) {
    bool local;
    if (server_address_is_local(c->http_bind_addr, &local, err)) return -1;
    if (local || c->api_key || cli_flag(args, "public-without-key")) return 0;
    return fail(err, E_CONFIG,
                "http_bind_addr %s lets other machines in, and there is no api_key: set one, bind "
                "to 127.0.0.1, or say --public-without-key",
                c->http_bind_addr);
}

static void say_ready(void *ctx, const char *url) {
    const struct infer_config *c = ctx;
    printf("serving %zu model%s at %s (chat page: %s/)\n", c->num_models,
           c->num_models == 1 ? "" : "s", url, url);
    fflush(stdout);
}

static struct server_options options_of(const struct infer_config *c) {
    return (struct server_options){
        .address = c->http_bind_addr,
        .max_body = (size_t)c->request_body_limit_bytes,
        .max_connections = (size_t)c->max_connections,
        .sse_keep_alive_ms = c->sse_keep_alive_ms,
        .header_timeout_ms = c->header_timeout_ms,
        .body_timeout_ms = c->body_timeout_ms,
        .stall_timeout_ms = c->stall_timeout_ms,
        .idle_timeout_ms = c->idle_timeout_ms,
        .drain_timeout_ms = c->drain_timeout_ms,
        .origins = c->allowed_origins.at,
        .num_origins = c->allowed_origins.count,
        .api_key = c->api_key,
        .admin_api_key = c->admin_api_key,
        .ready = say_ready,
        .ready_ctx = (void *)c,
    };
}

static int run(const struct cli_args *args, struct error *err) {
    const size_t num_sets = cli_count(args, "set");
    const char **sets = cli_strings(args, "set");
    const struct infer_config *config;
    struct serve_config *source = NULL;
    int rc = -1;
    // What one version of a model leaves goes back to the system before the next one comes.
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    mallopt(M_ARENA_MAX, 2);
    if (serve_config_open(&source, &config, cli_string(args, "config-dir"),
                          cli_string(args, "infer-cfg"), sets, num_sets, err) ||
        check_public(config, args, err))
        goto out;
    struct server_options options = options_of(config);
    options.source = serve_config_source(source);
    rc = server_run(&options, err);
out:
    serve_config_close(source);
    free(sets);
    return rc;
}

static const struct cli_option options[] = {
    {"config-dir", "DIR", .fallback = "config", .help = "folder with model and infer in it"},
    {"infer-cfg", "NAME", .fallback = "rwkv-lm-7.2b", .help = "the file infer/NAME.toml"},
    {"set", "KEY=VALUE", .repeat = true, .help = "override a key beside the models"},
    {"public-without-key", .type = CLI_FLAG,
     .help = "let other machines in though there is no api_key"},
    {0},
};

const struct cli_command cmd_serve = {
    .name = "serve",
    .summary = "serve models behind an OpenAI-compatible API",
    .help = "Serves the models that infer/NAME.toml names, and a chat page at /:\n"
            "\n"
            "  rwkv serve --infer-cfg demo\n"
            "  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\\n"
            "      -d '{\"model\": \"rwkv-demo\", \"prompt\": \"And it came to pass\"}'\n"
            "\n"
            "SIGTERM finishes the answers in flight and stops; a second one stops at once. SIGHUP\n"
            "reads the file again; POST /admin/models/reload changes models while it runs.\n"
            "docs/serving.md has the whole API.\n",
    .options = options,
    .run = run,
};
