// Between the configuration and the server: the infer TOML as a source of model entries, which a
// reload reads, changes and writes back.
#pragma once
#include "config.h"

#include "serve/server.h"

struct serve_config;

// Reads <config_dir>/infer/<name>.toml, whose values beside the models are in *config until
// serve_config_close. `sets` are kept and apply to every later reading too.
int serve_config_open(struct serve_config **out, const struct infer_config **config,
                      const char *config_dir, const char *name, const char *const sets[],
                      size_t num_sets, struct error *err);
void serve_config_close(struct serve_config *c); // NULL is fine
struct server_source serve_config_source(struct serve_config *c);
