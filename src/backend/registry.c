#include "backend/backend.h"

#include "backend/cpu/cpu.h"
#ifdef HAVE_CUDA
#include "backend/cuda/cuda.h"
#endif
#include "backend/ref/ref.h"
#include "base/error.h"

#include <stdio.h>
#include <string.h>

// Which backends this program was built with; the only place that asks HAVE_CUDA or HAVE_WGPU.
static const struct {
    const char *name;
    int (*open)(struct backend **out, int num_threads, struct error *err);
} table[] = {
    {"cpu", cpu_open},
#ifdef HAVE_CUDA
    {"cuda", cuda_open},
#endif
    {"ref", ref_f32_open},
    {"ref64", ref_f64_open},
};

enum { COUNT = sizeof table / sizeof table[0] };

const char *const *backend_names(void) {
    static const char *names[COUNT + 1];
    for (int i = 0; i < COUNT; i++) names[i] = table[i].name;
    return names;
}

int backend_open(struct backend **out, const char *name, int num_threads, struct error *err) {
    for (int i = 0; i < COUNT; i++)
        if (strcmp(name, table[i].name) == 0) return table[i].open(out, num_threads, err);
    char known[128] = "";
    for (int i = 0; i < COUNT; i++) {
        const size_t len = strlen(known);
        snprintf(known + len, sizeof known - len, "%s%s", i ? ", " : "", table[i].name);
    }
    if (!strcmp(name, "cuda"))
        return fail(err, E_UNSUPPORTED,
                    "backend \"cuda\" is not in this build; `make CUDA=1` builds it; there are: %s",
                    known);
    if (!strcmp(name, "wgpu") || !strcmp(name, "metal"))
        return fail(err, E_UNSUPPORTED, "backend \"%s\" is not in this build; there are: %s", name,
                    known);
    return fail(err, E_ARG, "no backend is named \"%s\"; there are: %s", name, known);
}

void backend_destroy(struct backend *be) {
    if (be) be->class->destroy(be);
}

struct buffer *buffer_create(struct backend *be, size_t bytes, struct error *err) {
    return be->class->buffer_create(be, bytes, err);
}

void buffer_destroy(struct buffer *b) {
    if (b) b->be->class->buffer_destroy(b);
}

enum dtype input_type(const struct backend *be, struct precision precision, int rows) {
    const int from = be->class->narrow_from ? be->class->narrow_from(be, precision) : 0;
    return from && rows >= from ? DT_BF16 : be->real;
}

void weight_destroy(struct weight *w) {
    if (w) w->be->class->weight_destroy(w);
}
