// The options of sampling, for commands that write text. Semantics: docs/sampling.md.
#pragma once
#include "cli.h"

#include "model/writer.h"

#define SAMPLING_OPTIONS                                                                           \
    {"temperature",                                                                                \
     "T",                                                                                          \
     .fallback = "1",                                                                              \
     .type = CLI_FLOAT,                                                                            \
     .min = 0,                                                                                     \
     .max = 100,                                                                                   \
     .help = "flattens (above 1) or sharpens the distribution; 0 always takes the most probable"}, \
        {"top-p",                                                                                  \
         "P",                                                                                      \
         .fallback = "1",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = 0,                                                                                 \
         .max = 1,                                                                                 \
         .help = "keep the most probable tokens up to this mass"},                                 \
        {"top-k",                                                                                  \
         "K",                                                                                      \
         .fallback = "0",                                                                          \
         .type = CLI_INT,                                                                          \
         .min = 0,                                                                                 \
         .max = 1e9,                                                                               \
         .help = "keep the K most probable tokens; 0 keeps all"},                                  \
        {"min-p",                                                                                  \
         "P",                                                                                      \
         .fallback = "0",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = 0,                                                                                 \
         .max = 1,                                                                                 \
         .help = "drop tokens below this share of the most probable one"},                         \
        {"presence-penalty",                                                                       \
         "X",                                                                                      \
         .fallback = "0",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = -100,                                                                              \
         .max = 100,                                                                               \
         .help = "taken off a token's logit when it first appears"},                               \
        {"repetition-penalty",                                                                     \
         "X",                                                                                      \
         .fallback = "0",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = -100,                                                                              \
         .max = 100,                                                                               \
         .help = "taken off at each further appearance"},                                          \
        {"frequency-penalty",                                                                      \
         "X",                                                                                      \
         .fallback = "0",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = -100,                                                                              \
         .max = 100,                                                                               \
         .help = "taken off at every appearance"},                                                 \
        {"penalty-decay",                                                                          \
         "D",                                                                                      \
         .fallback = "1",                                                                          \
         .type = CLI_FLOAT,                                                                        \
         .min = 0,                                                                                 \
         .max = 1,                                                                                 \
         .help = "penalties shrink by this factor with every token"},                              \
    {                                                                                              \
        "seed", "N", .fallback = "0", .type = CLI_INT, .min = 0, .max = 9e15,                      \
                     .help = "which of the possible texts"                                         \
    }

static inline struct writer_options sampling_from(const struct cli_args *args) {
    return (struct writer_options){
        .temperature = (float)cli_float(args, "temperature"),
        .top_p = (float)cli_float(args, "top-p"),
        .min_p = (float)cli_float(args, "min-p"),
        .presence = (float)cli_float(args, "presence-penalty"),
        .repetition = (float)cli_float(args, "repetition-penalty"),
        .frequency = (float)cli_float(args, "frequency-penalty"),
        .penalty_decay = (float)cli_float(args, "penalty-decay"),
        .top_k = (int)cli_int(args, "top-k"),
        .seed = (uint64_t)cli_int(args, "seed"),
    };
}
