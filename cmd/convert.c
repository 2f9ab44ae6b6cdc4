// `rwkv convert`: weights from one container or storage type to another; names and shapes stay, but
// for GGUF's own.
#include "cli.h"
#include "common.h"

#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "text/tok.h"
#include "weights/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void read_tensor(const struct weights_source *s, void *out) {
    weights_read(s->context, s->dtype, out);
}

// f16 ends at 65504; what lies beyond would become infinite without a word. The ranges of the other
// types are as good as equal.
static int check_range(const struct weights_tensor *t, struct error *err) {
    uint16_t *narrow = mem_alloc(t->count * sizeof *narrow);
    size_t infinite = 0, were = 0;
    weights_read(t, DT_F16, narrow);
    for (size_t i = 0; i < t->count; i++) infinite += (narrow[i] & 0x7fff) == 0x7c00;
    free(narrow);
    if (!infinite) return 0;
    double *wide = mem_alloc(t->count * sizeof *wide);
    weights_read(t, DT_F64, wide);
    for (size_t i = 0; i < t->count; i++) were += isinf(wide[i]) != 0;
    free(wide);
    if (infinite == were) return 0;
    return fail(err, E_FORMAT, "%s holds %zu numbers beyond f16's 65504; bf16 has the range of f32",
                t->name, infinite - were);
}

static const char *token(const void *context, int32_t id, size_t *len) {
    return tok_bytes(context, id, len);
}

// Integers, by either name.
static enum weights_blocks blocks_of(const char *dtype) {
    if (strcmp(dtype, "q8_0") == 0 || strcmp(dtype, "int8") == 0) return BLOCKS_Q8_0;
    if (strcmp(dtype, "q4_0") == 0 || strcmp(dtype, "int4") == 0) return BLOCKS_Q4_0;
    return BLOCKS_NONE;
}

// By the extension of `out`; a vocabulary and integers only go into GGUF.
static int write_all(const char *out, const struct weights_source *sources, size_t count,
                     const struct cli_args *args, struct error *err) {
    struct weights_gguf extra = {.blocks = blocks_of(cli_string(args, "dtype"))};
    struct tok *tok = NULL;
    if (!path_has_ext(out, "gguf")) return weights_write(out, sources, count, err);
    if (cli_given(args, "vocab")) {
        if (vocab_open(&tok, cli_string(args, "vocab"), err)) return -1;
        extra.token = token;
        extra.context = tok;
        extra.tokens = tok_size(tok);
    }
    const int rc = weights_write_gguf(out, sources, count, &extra, err);
    tok_close(tok);
    return rc;
}

// What was written is right, but not everybody computes it rightly.
static void warn_of_heads(const struct weights *w) {
    const struct weights_tensor *t = weights_find(w, "blocks.0.att.r_k");
    if (t && t->ndim == 2 && t->dim[1] % 64)
        fprintf(stderr,
                "note: the heads of this model are %zu wide; llama.cpp takes 32 or 64 numbers at a "
                "time on a CPU and goes wrong where that is no divisor\n",
                t->dim[1]);
}

static int run(const struct cli_args *args, struct error *err) {
    const char *in = cli_string(args, "IN"), *out = cli_string(args, "OUT");
    const char *dtype = cli_string(args, "dtype");
    const enum weights_blocks blocks = blocks_of(dtype);
    const enum dtype to = blocks ? DT_NONE : dtype_parse(dtype); // DT_NONE: keep
    struct weights *w;
    if (!path_has_ext(out, "gguf") && (cli_given(args, "vocab") || blocks))
        return fail(err, E_ARG, "%s: --vocab and --dtype int8 and int4 are for .gguf files", out);
    if (weights_open(&w, in, err)) return -1;
    const size_t count = weights_count(w);
    struct weights_source *sources = mem_zero(count, sizeof *sources);
    unsigned long long bytes = 0;
    int rc = 0;
    for (size_t i = 0; i < count && rc == 0; i++) {
        const struct weights_tensor *t = weights_at(w, i);
        sources[i] = (struct weights_source){.name = t->name,
                                             .dtype = to ? to : t->dtype,
                                             .ndim = t->ndim,
                                             .read = read_tensor,
                                             .context = t};
        memcpy(sources[i].dim, t->dim, sizeof t->dim);
        bytes += t->count * dtype_size(sources[i].dtype);
        if (to == DT_F16 && t->dtype != DT_F16 && check_range(t, err)) rc = fail_in(err, "%s", in);
    }
    if (rc == 0) rc = write_all(out, sources, count, args, err);
    if (rc == 0 && weights_shrank(w)) {
        remove(out);
        rc = fail(err, E_IO, "%s: was cut short while it was being read; %s is not written", in,
                  out);
    }
    if (rc == 0 && path_has_ext(out, "gguf")) {
        printf("%s: %zu tensors\n", out, count);
        warn_of_heads(w);
    } else if (rc == 0) {
        printf("%s: %zu tensors, %llu bytes of numbers\n", out, count, bytes);
    }
    free(sources);
    weights_close(w);
    return rc;
}

static const struct cli_option options[] = {
    {"IN", .operand = true, .required = true, .help = "a .pth, .safetensors or .gguf file"},
    {"OUT", .operand = true, .required = true, .help = "what to write, by its extension"},
    {"dtype", "TYPE", .fallback = "keep", .choices = "keep|f32|bf16|f16|int8|int4|q8_0|q4_0",
     .help = "how the numbers are stored; rounded to nearest. int8 (q8_0) and int4 (q4_0) are for "
             ".gguf"},
    {"vocab", "FILE",
     .help = "for a .gguf: the vocabulary to put into it, which other programs need for text; "
             "\"bytes\" is the built-in one"},
    {0},
};

const struct cli_command cmd_convert = {
    .name = "convert",
    .summary = "weights between .pth, .safetensors and .gguf",
    .help = "  rwkv convert rwkv7-0.1b.pth rwkv7-0.1b.safetensors\n"
            "  rwkv convert final.safetensors final-bf16.pth --dtype bf16\n"
            "\n"
            "  rwkv convert rwkv7-0.1b.pth rwkv7-0.1b.gguf --dtype int8 --vocab world.txt\n"
            "\n"
            "Names and shapes stay as they are; each tensor is read and written once. A .pth\n"
            "is read without running anything in it, and what is written loads with\n"
            "torch.load(…, weights_only=True). IN and OUT may be the same file: it is replaced\n"
            "when the new one is whole.\n"
            "\n"
            "A .gguf is a whole RWKV-7 model as llama.cpp loads it (\"rwkv7\"): vectors and the\n"
            "decay's LoRA are f32, the rest is as TYPE says; int8 and int4 leave all LoRA as\n"
            "they are.\n"
            "Layer 0's value LoRA, which nothing computes with, is not kept.\n",
    .options = options,
    .run = run,
};
