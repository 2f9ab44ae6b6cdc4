#include "common.h"

#include "base/error.h"
#include "model/model.h"
#include "text/tok.h"

#include <string.h>

int vocab_open(struct tok **out, const char *name, struct error *err) {
    if (strcmp(name, "bytes")) return tok_open(out, name, err);
    tok_open_bytes(out);
    return 0;
}

struct model_options model_options_args(const struct cli_args *args) {
    return (struct model_options){
        .precision = precision_parse(cli_string(args, "dtype")),
        .half_states = strcmp(cli_string(args, "state-dtype"), "f16") == 0,
    };
}

int model_open_args(struct backend **be, struct model **m, const struct cli_args *args,
                    struct error *err) {
    const struct model_options options = model_options_args(args);
    if (backend_open(be, cli_string(args, "backend"), (int)cli_int(args, "threads"), err))
        return -1;
    if (model_open(m, *be, cli_string(args, "weights"), options, err)) {
        backend_destroy(*be);
        *be = NULL;
        return -1;
    }
    return 0;
}

int vocab_check(const struct tok *tok, const struct model *m, struct error *err) {
    if (tok_size(tok) <= m->dims.V) return 0;
    return fail(err, E_ARG,
                "the vocabulary has ids up to %d, the model only %d tokens; is it the vocabulary "
                "the model was trained with?",
                tok_size(tok) - 1, m->dims.V);
}
