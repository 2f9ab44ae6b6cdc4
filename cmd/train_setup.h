// Between the configuration and the trainer: what rwkv train says, checks and writes down first.
#pragma once
#include "config.h"

struct backend;
struct cli_args;
struct dist;
struct model;
struct train_options;

// Loads the TOML with --set and --backend applied.
int train_setup_config(struct train_config *out, const struct cli_args *args, struct error *err);

void train_setup_options(struct train_options *out, const struct train_config *c,
                         const struct train_plan *plan, const struct cli_args *args);

// Processor threads for each of the processes that share this machine.
int train_setup_threads(const struct train_config *c);

// Says how large the run is and creates the model, initialised or loaded from init_weights_path.
int train_setup_model(struct model **out, struct backend *be, const struct train_config *c,
                      const struct train_options *options, const struct dist *dist,
                      struct error *err);

// Writes config.toml, as resolved, into the run directory.
int train_setup_record(const struct train_config *c, struct error *err);
