#include "backend/backend.h"

#include "backend/cpu/cpu.h"
#ifdef HAVE_CUDA
#include "backend/cuda/cuda.h"
#endif
#include "backend/ref/ref.h"
#include "base/error.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Which backends this program was built with; the only place that asks HAVE_CUDA or HAVE_WGPU.
static const struct {
    const char *name;
    int (*open)(struct backend **out, int num_threads, struct error *err);
    int (*open_device)(struct backend **out, int device, struct error *err); // or this
} table[] = {
    {"cpu", cpu_open, NULL},
#ifdef HAVE_CUDA
    {"cuda", NULL, cuda_open},
#endif
    {"ref", ref_f32_open, NULL},
    {"ref64", ref_f64_open, NULL},
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

// Where the first len bytes of name are in the table, -1: nowhere.
static int find(const char *name, size_t len) {
    for (int i = 0; i < COUNT; i++)
        if (strlen(table[i].name) == len && strncmp(name, table[i].name, len) == 0) return i;
    return -1;
}

static int unknown(const char *name, struct error *err) {
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

int backend_open_device(struct backend **out, const char *name, int device, int num_threads,
                        struct error *err) {
    const int i = find(name, strlen(name));
    if (i < 0) return unknown(name, err);
    return table[i].open ? table[i].open(out, num_threads, err)
                         : table[i].open_device(out, device, err);
}

int backend_open(struct backend **out, const char *name, int num_threads, struct error *err) {
    const char *colon = strchr(name, ':');
    if (!colon) return backend_open_device(out, name, 0, num_threads, err);
    const int i = find(name, (size_t)(colon - name)), device = device_of(colon + 1);
    if (i < 0) return unknown(name, err);
    if (!table[i].open_device)
        return fail(err, E_ARG, "backend \"%s\": %s has no devices to choose from", name,
                    table[i].name);
    if (device < 0)
        return fail(err, E_ARG, "backend \"%s\": wanted the device's number after the colon", name);
    return table[i].open_device(out, device, err);
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

enum dtype input_type(const struct backend *be, struct precision precision, int rows,
                      int channels) {
    const int from = be->class->narrow_from ? be->class->narrow_from(be, precision, channels) : 0;
    return from && rows >= from ? DT_BF16 : be->real;
}

bool can_narrow(const struct backend *be) {
    return input_type(be, (struct precision){DT_BF16, DT_BF16}, INT_MAX, 1) != be->real;
}

int batch_rows(const struct backend *be, int rows) {
    return be->class->round_rows ? be->class->round_rows(be, rows) : rows;
}

void weight_destroy(struct weight *w) {
    if (w) w->be->class->weight_destroy(w);
}
