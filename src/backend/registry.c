#include "backend/backend.h"

#include "backend/cpu/cpu.h"
#ifdef HAVE_CUDA
#include "backend/cuda/cuda.h"
#endif
#include "backend/ref/ref.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int open_cpu(struct backend **out, int device, int num_threads, struct error *err) {
    (void)device;
    return cpu_open(out, num_threads, err);
}

static int open_ref(struct backend **out, int device, int num_threads, struct error *err) {
    (void)device;
    return ref_f32_open(out, num_threads, err);
}

static int open_ref64(struct backend **out, int device, int num_threads, struct error *err) {
    (void)device;
    return ref_f64_open(out, num_threads, err);
}

#ifdef HAVE_CUDA
static int open_cuda(struct backend **out, int device, int num_threads, struct error *err) {
    (void)num_threads;
    return cuda_open(out, device, err);
}
#endif

// Which backends this program was built with; the only place that asks HAVE_CUDA or HAVE_WGPU.
static const struct {
    const char *name;
    int (*open)(struct backend **out, int device, int num_threads, struct error *err);
    bool devices; // there may be several, chosen by id
} table[] = {
    {"cpu", open_cpu, false},
#ifdef HAVE_CUDA
    {"cuda", open_cuda, true},
#endif
    {"ref", open_ref, false},
    {"ref64", open_ref64, false},
};

enum { COUNT = sizeof table / sizeof table[0] };

const char *const *backend_names(void) {
    static const char *names[COUNT + 1];
    for (int i = 0; i < COUNT; i++) names[i] = table[i].name;
    return names;
}

// -1: what follows the colon is no number of a device.
static int device_of(const char *digits) {
    const size_t n = strspn(digits, "0123456789");
    return n > 0 && n < 5 && !digits[n] ? atoi(digits) : -1;
}

int backend_open_device(struct backend **out, const char *name, int device, int num_threads,
                        struct error *err) {
    for (int i = 0; i < COUNT; i++)
        if (strcmp(name, table[i].name) == 0) return table[i].open(out, device, num_threads, err);
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

int backend_open(struct backend **out, const char *name, int num_threads, struct error *err) {
    const char *colon = strchr(name, ':');
    if (!colon) return backend_open_device(out, name, 0, num_threads, err);
    const int device = device_of(colon + 1);
    for (int i = 0; i < COUNT; i++) {
        const size_t len = strlen(table[i].name);
        if ((size_t)(colon - name) != len || strncmp(name, table[i].name, len)) continue;
        if (!table[i].devices)
            return fail(err, E_ARG, "backend \"%s\": %s has no devices to choose from", name,
                        table[i].name);
        if (device < 0)
            return fail(err, E_ARG, "backend \"%s\": wanted the device's number after the colon",
                        name);
        return table[i].open(out, device, num_threads, err);
    }
    return backend_open_device(out, name, 0, num_threads, err); // says which there are
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
