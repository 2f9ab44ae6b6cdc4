// The server: an OpenAI-compatible API in front of engines. One thread owns sockets and bytes (the
// loop), each engine has one of its own, and models are opened on others.
#pragma once
#include "serve/models.h"

struct error;
struct json;

// A configuration of models as it is, or as it would be after a change.
struct server_plan {
    struct model_entry *entries;
    size_t num_entries;
    void *owner; // the source's
};

// Who reads and writes the configuration. Every call comes from one thread at a time.
struct server_source {
    void *ctx;
    const char *name; // of the configuration, for messages
    // The file as it stands now with a reload's changes applied ("upsert", "remove_model_names";
    // NULL: none). Fills `plan` on success.
    int (*propose)(void *ctx, struct server_plan *plan, const struct json *request,
                   struct error *err);
    // Writes the changed file, atomically. Nothing, if it wouldn't change.
    int (*commit)(void *ctx, struct server_plan *plan, struct error *err);
    void (*drop)(void *ctx, struct server_plan *plan);
};

struct server_options {
    const char *address; // "127.0.0.1:8080", "[::1]:0": port 0 takes a free one
    size_t max_body, max_connections;
    int64_t sse_keep_alive_ms, header_timeout_ms, body_timeout_ms, stall_timeout_ms,
        idle_timeout_ms;
    int64_t drain_timeout_ms;                  // for answers in flight, when told to stop
    const char *const *origins;                // that browsers may call from
    size_t num_origins;                        // 0: all
    const char *api_key;                       // NULL: none wanted
    const char *admin_api_key;                 // NULL: api_key
    void (*ready)(void *ctx, const char *url); // listening; may be NULL
    void *ready_ctx;
    struct server_source source;
};

// Whether an address can be reached from this machine only. -1: it is no address.
int server_address_is_local(const char *address, bool *local, struct error *err);

// Opens the models, serves until SIGTERM or SIGINT, and drains. SIGHUP reads the configuration
// again.
int server_run(const struct server_options *options, struct error *err);
