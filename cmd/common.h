// What several doors do in the same way.
#pragma once
#include "cli.h"

#include "backend/backend.h"

struct model;
struct model_options;
struct tok;

// The vocabulary file of that name; "bytes" is the built-in one.
int vocab_open(struct tok **out, const char *name, struct error *err);

// Rows of an options table, for commands that run a model.
#define OPTION_WEIGHTS                                                                             \
    { "weights", "FILE", .required = true, .help = "the model: a .pth, .safetensors or .gguf file" }
#define OPTION_VOCAB                                                                               \
    {                                                                                              \
        "vocab", "FILE",                                                                           \
            .required = true,                                                                      \
            .help = "the vocabulary the model was trained with; \"bytes\" is the built-in one"     \
    }
#define OPTION_BACKEND                                                                             \
    {                                                                                              \
        "backend", "NAME", .fallback = "cpu",                                                      \
                           .help = "what computes: cpu, cuda (cuda:1 is the second device), ref "  \
                                   "(slow, plain), ref64"                                          \
    }
#define OPTION_DTYPE                                                                               \
    {                                                                                              \
        "dtype", "TYPE", .fallback = "f32", .choices = PRECISION_NAMES,                            \
                         .help = "how matrices are stored and multiplied: bf16 rounds weights "    \
                                 "and inputs, bf16w the weights only"                              \
    }
#define OPTION_STATE_DTYPE                                                                         \
    {                                                                                              \
        "state-dtype", "TYPE", .fallback = "f32", .choices = "f32|f16",                            \
                               .help = "how sequences' states are stored; f16, on cuda, is "       \
                                       "faster in large batches and rounds them at each step"      \
    }
#define OPTION_THREADS                                                                             \
    {                                                                                              \
        "threads", "N", .fallback = "0", .type = CLI_INT, .min = 0, .max = 1024,                   \
                        .help = "how many threads; 0 takes all processors"                         \
    }

// What the options above say of a model that is not trained.
struct model_options model_options_args(const struct cli_args *args);

// A model on a backend by the options above. Both are to be closed: model first.
int model_open_args(struct backend **be, struct model **m, const struct cli_args *args,
                    struct error *err);

// What `rwkv data info` and `rwkv info` say of PREFIX.bin and PREFIX.idx.
struct str;
int data_page(struct str *out, const char *prefix, struct error *err);

// Ids of the vocabulary must exist in the model.
int vocab_check(const struct tok *tok, const struct model *m, struct error *err);
