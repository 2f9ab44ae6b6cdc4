// `rwkv convert`: weights from one container or storage type to another, names and shapes
// unchanged.
#include "cli.h"

#include "base/error.h"
#include "base/mem.h"
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

static int run(const struct cli_args *args, struct error *err) {
    const char *in = cli_string(args, "IN"), *out = cli_string(args, "OUT");
    const enum dtype to = dtype_parse(cli_string(args, "dtype")); // DT_NONE: keep
    struct weights *w;
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
    if (rc == 0) rc = weights_write(out, sources, count, err);
    if (rc == 0 && weights_shrank(w)) {
        remove(out);
        rc = fail(err, E_IO, "%s: was cut short while it was being read; %s is not written", in,
                  out);
    }
    if (rc == 0) printf("%s: %zu tensors, %llu bytes of numbers\n", out, count, bytes);
    free(sources);
    weights_close(w);
    return rc;
}

static const struct cli_option options[] = {
    {"IN", .operand = true, .required = true, .help = "a .pth or .safetensors file"},
    {"OUT", .operand = true, .required = true, .help = "what to write, by its extension"},
    {"dtype", "TYPE", .fallback = "keep", .choices = "keep|f32|bf16|f16",
     .help = "how the numbers are stored; rounded to nearest"},
    {0},
};

const struct cli_command cmd_convert = {
    .name = "convert",
    .summary = "weights between .pth and .safetensors",
    .help = "  rwkv convert rwkv7-0.1b.pth rwkv7-0.1b.safetensors\n"
            "  rwkv convert final.safetensors final-bf16.pth --dtype bf16\n"
            "\n"
            "Names and shapes stay as they are; each tensor is read and written once. A .pth\n"
            "is read without running anything in it, and what is written loads with\n"
            "torch.load(…, weights_only=True). IN and OUT may be the same file: it is replaced\n"
            "when the new one is whole.\n",
    .options = options,
    .run = run,
};
