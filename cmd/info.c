// `rwkv info`: what is in a file, by looking into it.
#include "cli.h"
#include "common.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/sections.h"
#include "base/str.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "weights/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PAGE = 256 << 20 };

typedef unsigned long long ull;

// ---- weights -----------------------------------------------------------------------------------

// Tensors that make a relative of RWKV-7 out of it.
static const struct {
    const char *part, *what;
} relatives[] = {
    {".ffn.s_emb", "rwkv7a's DeepEmbed"}, {".ffn.s0", "rwkv7a's DeepEmbed"},
    {".ffn.s1", "rwkv7a's DeepEmbed"},    {".ffn.s2", "rwkv7a's DeepEmbed"},
    {".qkv.", "rwkv7b's attention"},
};

static const char *relative_of(const char *name) {
    for (size_t i = 0; i < sizeof relatives / sizeof relatives[0]; i++)
        if (strstr(name, relatives[i].part)) return relatives[i].what;
    return "unknown";
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Which tensors the model lacks, and which it has no use for.
static void put_strangers(struct str *out, const struct weights *w, const struct dims *d) {
    const size_t count = (size_t)params_count(d);
    struct param *params = mem_zero(count, sizeof *params);
    const char **names = mem_zero(count, sizeof *names);
    size_t vectors;
    params_list(params, d, &vectors);
    for (size_t i = 0; i < count; i++) {
        names[i] = params[i].name;
        if (!params[i].unused && !weights_find(w, params[i].name))
            str_printf(out, "missing: %s\n", params[i].name);
    }
    qsort(names, count, sizeof *names, by_text);
    for (size_t i = 0; i < weights_count(w); i++) {
        const char *name = weights_at(w, i)->name;
        if (!bsearch(&name, names, count, sizeof *names, by_text))
            str_printf(out, "extra: %s: %s\n", name, relative_of(name));
    }
    free(names);
    free(params);
}

static void put_model(struct str *out, const struct weights *w) {
    struct dims d;
    struct error why;
    if (model_dims_of(&d, w, &why)) {
        str_printf(out, "no RWKV-7 model: %s\n", why.msg);
        return;
    }
    str_printf(out,
               "RWKV-7: %d layers, width %d (%d heads of %d), vocabulary %d, ranks w %d a %d v %d "
               "g %d\n",
               d.L, d.C, d.H, d.C / d.H, d.V, d.Dw, d.Da, d.Dv, d.Dg);
    put_strangers(out, w, &d);
}

static size_t stored_bytes(const struct weights_tensor *t) {
    return t->blocks ? t->count / 32 * 34 : t->count * dtype_size(t->dtype);
}

static void put_totals(struct str *out, const struct weights *w) {
    struct {
        const char *name;
        ull tensors, numbers, bytes;
    } of[2 * DT_COUNT] = {0}; // by storage: the types, then their blocks
    ull all = 0;
    for (size_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        const int k = (int)t->dtype + (t->blocks ? DT_COUNT : 0);
        of[k].name = weights_storage(t);
        of[k].tensors++;
        of[k].numbers += t->count;
        of[k].bytes += stored_bytes(t);
        all += t->count;
    }
    str_printf(out, "%s: %s, %zu tensors, %llu numbers\n", weights_path(w), weights_format(w),
               weights_count(w), all);
    for (int k = 0; k < 2 * DT_COUNT; k++)
        if (of[k].tensors)
            str_printf(out, "%s: %llu tensors, %llu numbers, %llu bytes\n", of[k].name,
                       of[k].tensors, of[k].numbers, of[k].bytes);
}

// As JSON, so that nothing in a value can be taken for anything else.
static void put_notes(struct str *out, const struct weights *w) {
    size_t count;
    const struct weights_note *notes = weights_notes(w, &count);
    for (size_t i = 0; i < count; i++) {
        struct json_writer key = {.out = out}, value = {.out = out};
        str_puts(out, "metadata: ");
        json_put_text(&key, notes[i].key, strlen(notes[i].key));
        str_puts(out, ": ");
        json_put_text(&value, notes[i].value, strlen(notes[i].value));
        str_putc(out, '\n');
    }
}

static void put_tensors(struct str *out, const struct weights *w) {
    size_t width = strlen("tensor");
    for (size_t i = 0; i < weights_count(w); i++) {
        const size_t len = strlen(weights_at(w, i)->name);
        if (len > width) width = len;
    }
    str_printf(out, "\n%-*s  dtype  shape\n", (int)width, "tensor");
    for (size_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        char shape[200];
        weights_shape_text(shape, sizeof shape, t->ndim, t->dim);
        str_printf(out, "%-*s  %-5s  %s\n", (int)width, t->name, weights_storage(t), shape);
    }
}

// The tensors whose numbers are not all finite; returns how many.
static size_t put_not_finite(struct str *out, const struct weights *w) {
    size_t bad = 0;
    for (size_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        double *x = mem_alloc(t->count * sizeof *x);
        size_t nan = 0, infinite = 0;
        weights_read(t, DT_F64, x);
        for (size_t k = 0; k < t->count; k++) {
            nan += isnan(x[k]) != 0;
            infinite += isinf(x[k]) != 0;
        }
        free(x);
        if (!nan && !infinite) continue;
        str_printf(out, "%s: %zu NaN, %zu infinite of %zu numbers\n", t->name, nan, infinite,
                   t->count);
        bad++;
    }
    return bad;
}

static int put_weights(struct str *out, const char *path, bool check, struct error *err) {
    struct weights *w;
    int rc = 0;
    if (weights_open(&w, path, err)) return -1;
    put_totals(out, w);
    put_model(out, w);
    put_notes(out, w);
    put_tensors(out, w);
    if (check) {
        str_putc(out, '\n');
        const size_t bad = put_not_finite(out, w);
        if (bad)
            rc = fail(err, E_FORMAT, "%s: %zu tensors hold numbers that are not finite", path, bad);
        else
            str_puts(out, "all numbers are finite\n");
    }
    weights_close(w);
    return rc;
}

// ---- checkpoints of a training run -------------------------------------------------------------

static bool is_checkpoint(const char *path) {
    return path_has_ext(path, "ckpt");
}

static int put_checkpoint(struct str *out, const char *path, bool check, struct error *err) {
    struct sections *c;
    if (sections_open(&c, path, CHECKPOINT_MAGIC, err)) return -1;
    str_printf(out, "%s: checkpoint of a training run, %d sections\n\nsection           bytes\n",
               path, sections_count(c));
    for (int i = 0; i < sections_count(c); i++) {
        const struct section *s = sections_at(c, i);
        str_printf(out, "%-*.*s  %llu\n", SECTION_NAME, SECTION_NAME, s->name, (ull)s->bytes);
    }
    const int rc = check ? sections_verify(c, err) : 0;
    if (check && rc == 0) str_puts(out, "\nall checksums are right\n");
    sections_close(c);
    return rc;
}

// ---- tokenised text ----------------------------------------------------------------------------

static bool is_data(const char *path) {
    return path_has_ext(path, "bin") || path_has_ext(path, "idx");
}

static int put_data(struct str *out, const char *path, bool check, struct error *err) {
    (void)check; // both files are always read whole
    char *prefix = mem_strdup(path);
    *strrchr(prefix, '.') = 0;
    const int rc = data_page(out, prefix, err);
    free(prefix);
    return rc;
}

// ---- the door ----------------------------------------------------------------------------------

// The first row that claims a path describes it; what nobody claims is opened as weights, whose
// reader knows many strangers by name. `put` appends a page.
static const struct {
    bool (*claims)(const char *path); // NULL: everything
    int (*put)(struct str *out, const char *path, bool check, struct error *err);
} kinds[] = {
    {is_checkpoint, put_checkpoint},
    {is_data, put_data},
    {NULL, put_weights},
};

static int run(const struct cli_args *args, struct error *err) {
    const char *path = cli_string(args, "FILE");
    struct str page;
    size_t kind = 0;
    str_init(&page, MAX_PAGE);
    while (kinds[kind].claims && !kinds[kind].claims(path)) kind++;
    const int rc = kinds[kind].put(&page, path, cli_flag(args, "check"), err);
    fwrite(page.data, 1, page.len, stdout); // what was found stands before what is wrong with it
    str_free(&page);
    return rc;
}

static const struct cli_option options[] = {
    {"FILE", .operand = true, .required = true,
     .help = "weights (.pth, .safetensors, .gguf), a checkpoint (.ckpt) or tokens (.bin, .idx)"},
    {"check", .type = CLI_FLAG,
     .help = "read everything: NaN and infinite numbers in weights, checksums of a checkpoint"},
    {0},
};

const struct cli_command cmd_info = {
    .name = "info",
    .summary = "what is in a file of weights, tokens or a checkpoint",
    .help = "  rwkv info rwkv7-0.1b.pth\n"
            "  rwkv info --check model.safetensors\n"
            "\n"
            "Prints the sizes of the model, tensors that are missing or one too many, the\n"
            "storage types, and a table of all tensors. Only headers are read, unless --check.\n",
    .options = options,
    .run = run,
};
