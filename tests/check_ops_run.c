// Calls and their memory: every argument lies between guard words in one buffer, and whatever the
// op has to write is poisoned before.
#include "check_ops.h"

#include "backend/cpu/kernels/kernels.h"
#include "base/error.h"
#include "base/half.h"
#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// As a float of any kind this is NaN, as an index it is -1.
enum { POISON = 0xFF, GUARD_BYTES = 64 };

// ---- calls -------------------------------------------------------------------------------------

void call_set_spans(struct call *c, const struct span *spans, int n) {
    assert(n <= MAX_SPANS && c->size.R <= MAX_ROWS);
    c->spans = n;
    memset(c->used, 0, sizeof c->used);
    for (int i = 0; i < n; i++) {
        c->span[i] = spans[i];
        c->used[spans[i].slot] = true;
        for (int r = spans[i].first; r < spans[i].first + spans[i].len; r++) {
            c->prev[r] = r == spans[i].first ? -1 - spans[i].slot : r - 1;
            const int left = spans[i].first + spans[i].len - 1 - r;
            c->last[r] = left ? -left : spans[i].slot;
        }
    }
}

// Spans of uneven lengths and, up to 128 rows, at last some of one row; or all of one row, if there
// is room for so many. In mixed-up slots, more slots than spans.
static void cut_spans(struct call *c) {
    static const int lengths[] = {1, 17, 2, 16, 3, 33, 5, 64};
    const int R = c->size.R, ends = R > 128 ? R : R - (R < 16 ? R / 4 : 4); // the uneven ones
    const bool single = (c->op->singles >> c->variant & 1) && R <= MAX_SPANS;
    struct span spans[MAX_SPANS];
    int n = 0;
    for (int first = 0; first < R; n++) {
        int len = single || first >= ends ? 1 : R > 128 ? 128 : lengths[n % 8];
        if (first < ends && len > ends - first) len = ends - first;
        spans[n] = (struct span){.first = first, .len = len};
        first += len;
    }
    c->S = n + 2;
    if (c->S % 5 == 0) c->S++;
    for (int i = 0; i < n; i++) spans[i].slot = (5 * i + 3) % c->S;
    call_set_spans(c, spans, n);
}

void call_init(struct call *c, const struct op_case *op, struct size size, int variant,
               enum fill fill, bool bare, bool aliased) {
    *c = (struct call){.op = op,
                       .size = size,
                       .variant = variant,
                       .fill = fill,
                       .bare = bare,
                       .aliased = aliased,
                       .H = size.N ? size.C / size.N : 1};
    c->seed = (uint64_t)(size.R * 1000 + size.C) * 100 + (uint64_t)(variant * 10 + (int)fill);
    if (size.R <= MAX_ROWS) cut_spans(c);
    c->tidy = fill == FILL_TINY || fill == FILL_HUGE; // as the model has it
    call_reshape(c);
}

void call_reshape(struct call *c) {
    c->args = 0;
    c->op->shape(c);
    for (int i = 0; i < c->args; i++)
        if (!c->aliased || (c->arg[i].shares && call_arg(c, c->arg[i].shares) < 0))
            c->arg[i].shares = NULL;
}

int call_arg(const struct call *c, const char *name) {
    for (int i = 0; i < c->args; i++)
        if (strcmp(c->arg[i].name, name) == 0) return c->arg[i].ndim ? i : -1;
    return -1;
}

void call_text(char *out, size_t cap, const struct call *c) {
    static const char *const fills[] = {"random", "tiny", "huge", "equal", "zero"};
    snprintf(out, cap, "%s R=%d C=%d N=%d V=%d variant %d, %s%s%s, seed %llu", c->op->name,
             c->size.R, c->size.C, c->size.N, c->size.V, c->variant, fills[c->fill],
             c->bare ? ", bare" : "", c->aliased ? ", aliased" : "", (unsigned long long)c->seed);
}

size_t arg_count(const struct arg *a) {
    size_t n = a->ndim ? 1 : 0;
    for (int d = 0; d < a->ndim; d++) n *= a->dim[d];
    return n;
}

// The row that element i belongs to, and the elements of one row.
static size_t row_of(const struct arg *a, size_t i, size_t *inner) {
    *inner = 1;
    for (int d = a->row_axis + 1; d < a->ndim; d++) *inner *= a->dim[d];
    return i / *inner % a->dim[a->row_axis];
}

// SplitMix64 (Steele, Lea, Flood): good enough, and cheap enough for millions of values.
uint64_t call_bits(const struct call *c, const char *name, size_t i) {
    uint64_t x = c->seed;
    for (; *name; name++) x = x * 131 + (unsigned char)*name;
    x = x * 0xD1342543DE82EF95u + (uint64_t)i * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

double call_draw(const struct call *c, const char *name, size_t i) {
    const uint64_t x = call_bits(c, name, i);
    return ((double)(uint32_t)x + (double)(x >> 32) - 0x1p32) * 0x1p-32 * 2.449489742783178;
}

static double plain_value(const struct call *c, const struct arg *a, size_t i) {
    static const double scale[] = {1, 1e-20, 1e4, 0, 0};
    if (c->fill == FILL_EQUAL) return 0.7;
    if (c->fill == FILL_ZERO) return 0;
    return scale[c->fill] * call_draw(c, a->name, i);
}

double arg_value(const struct call *c, const struct arg *a, size_t i) {
    const size_t own = i;
    if (c->row_map && a->row_axis >= 0) {
        size_t inner;
        const size_t row = row_of(a, i, &inner), outer = i / (inner * a->dim[a->row_axis]);
        i = (outer * (size_t)c->whole_rows + (size_t)c->row_map[row]) * inner + i % inner;
    }
    double x = a->value ? a->value(c, a, i) : plain_value(c, a, i);
    x = (double)(float)x; // what every backend can hold
    if (a->narrow) x = (double)bf16_to_f32(f32_to_bf16((float)x));
    if (a->half) x = (double)f16_to_f32(f32_to_f16((float)x));
    if (c->moved && own == c->moved_at && strcmp(c->moved, a->name) == 0) x += c->moved_by;
    return x;
}

char arg_mode(const struct call *c, const struct arg *a, size_t i) {
    char mode = a->mode[0];
    if (a->mode[1]) mode = a->mode[i / (arg_count(a) / a->dim[0])];
    size_t inner = 1;
    for (int d = a->slot_axis + 1; d < a->ndim; d++) inner *= a->dim[d];
    if (a->slots && mode != 'i' && !c->used[i / inner % a->dim[a->slot_axis]]) return '.';
    return mode;
}

// ---- runs --------------------------------------------------------------------------------------

static enum dtype type_of(const struct run *r, int i) {
    const struct arg *a = &r->c->arg[i];
    if (a->narrow && can_narrow(r->be)) return DT_BF16;
    if (a->half && r->be->class->half_states) return DT_F16;
    return a->dtype == DT_NONE ? r->be->real : a->dtype;
}

static double load(const unsigned char *p, enum dtype t) {
    if (t == DT_U8) return *p;
    int32_t n;
    double d;
    if (t == DT_I32) {
        memcpy(&n, p, 4);
        return n;
    }
    dtype_convert(&d, DT_F64, p, t, 1);
    return d;
}

static void store(unsigned char *p, enum dtype t, double x) {
    const int32_t n = (int32_t)(t == DT_I32 ? x : 0);
    if (t == DT_U8)
        *p = (unsigned char)x;
    else if (t == DT_I32)
        memcpy(p, &n, 4);
    else
        dtype_convert(p, t, &x, DT_F64, 1);
}

double run_get(const struct run *r, int arg, size_t i) {
    const enum dtype t = type_of(r, arg);
    return load(r->after + r->at[arg] + i * dtype_size(t), t);
}

double run_was(const struct run *r, int arg, size_t i) {
    const enum dtype t = type_of(r, arg);
    return load(r->before + r->at[arg] + i * dtype_size(t), t);
}

const void *run_bytes(const struct run *r, int arg) {
    return r->after + r->at[arg];
}

size_t run_size(const struct run *r, int arg) {
    return r->c->arg[arg].ndim ? tensor_bytes(r->t[arg]) : 0;
}

// Puts every argument at its place; off the 64-byte grid where a tensor may be a slice.
static void lay_out(struct run *r) {
    const struct call *c = r->c;
    size_t at = GUARD_BYTES;
    const bool tensor_cores = c->op->tensor_cores > 0 && strcmp(r->be->name, "cuda") == 0;
    for (int i = 0; i < c->args; i++) {
        const struct arg *a = &c->arg[i];
        if (!a->ndim) continue;
        struct tensor *t = &r->t[i];
        *t = (struct tensor){.dtype = type_of(r, i), .ndim = a->ndim};
        for (int d = 0; d < a->ndim; d++) t->dim[d] = a->dim[d];
        if (strcmp(a->name, "saved") == 0)
            t->dim[0] = r->be->class->wkv7_saved_bytes(r->be, c->size.R, c->spans, c->H, c->size.N);
        const int share = a->shares ? call_arg(c, a->shares) : -1;
        if (share >= 0) {
            r->at[i] = r->at[share];
        } else {
            r->at[i] = at + (a->aligned || c->tidy || tensor_cores
                                 ? 0
                                 : (size_t)(i % 5) * dtype_size(t->dtype));
            at = (r->at[i] + tensor_bytes(*t) + 2 * GUARD_BYTES) & ~(size_t)63;
        }
        t->offset = r->at[i];
    }
    r->bytes = at;
}

static void fill_in(struct run *r, int i) {
    const struct call *c = r->c;
    const struct arg *a = &c->arg[i];
    if (!a->ndim || a->shares || strcmp(a->name, "saved") == 0) return;
    unsigned char *p = r->before + r->at[i];
    const enum dtype t = type_of(r, i);
    if (a->given) {
        memcpy(p, a->given, tensor_bytes(r->t[i]));
        return;
    }
    for (size_t n = 0; n < arg_count(a); n++) {
        const char mode = arg_mode(c, a, n);
        if (mode == 'i' || mode == '+' || mode == '~')
            store(p + n * dtype_size(t), t, arg_value(c, a, n));
    }
}

void run_open(struct run *r, const struct call *c, struct backend *be) {
    *r = (struct run){.c = c, .be = be};
    struct error err;
    lay_out(r);
    r->buf = buffer_create(be, r->bytes, &err);
    if (!r->buf) die("%s", err.msg);
    r->before = mem_alloc(r->bytes);
    r->after = mem_alloc(r->bytes);
    memset(r->before, POISON, r->bytes);
    for (int i = 0; i < c->args; i++) fill_in(r, i);
    for (int i = 0; i < c->args; i++)
        if (c->arg[i].ndim) r->t[i].buf = r->buf;
    const struct tensor all = {.buf = r->buf, .dtype = DT_U8, .ndim = 1, .dim = {r->bytes}};
    be->class->upload(be, all, r->before);
    const int span = call_arg(c, "span"), weight = call_arg(c, "weight");
    if (span >= 0) {
        r->batch = (struct batch){.rows = c->size.R,
                                  .span = r->t[span],
                                  .prev = r->t[span + 1],
                                  .last = r->t[span + 2]};
        r->batch.exact = c->exact;
        batch_count(&r->batch, c->span, c->spans);
    }
    if (weight < 0) return;
    struct tensor rounded = tensor_none();
    if (c->trained && be->class->weight_rounds && be->class->weight_rounds(be, c->precision)) {
        rounded = r->t[weight];
        rounded.dtype = c->precision.stored;
        rounded.offset = 0;
        rounded.buf = r->rounded = buffer_create(be, tensor_bytes(rounded), &err);
        if (!r->rounded) die("%s", err.msg);
    }
    r->w = be->class->weight_create(be, r->t[weight], rounded, c->layout, c->precision, c->trained);
}

void run_go(struct run *r) {
    struct error err;
    if (r->c->op->prepare) r->c->op->prepare(r->be, r->t, r->w, &r->batch, r->c);
    r->c->op->call(r->be, r->t, r->w, &r->batch, r->c);
    if (r->be->class->sync(r->be, &err)) die("%s", err.msg);
    const struct tensor all = {.buf = r->buf, .dtype = DT_U8, .ndim = 1, .dim = {r->bytes}};
    r->be->class->download(r->be, r->after, all);
}

void run_close(struct run *r) {
    weight_destroy(r->w);
    buffer_destroy(r->rounded);
    buffer_destroy(r->buf);
    free(r->before);
    free(r->after);
}

// Bytes that belong to no argument, inputs, and planes and slots that the op has to leave alone.
int run_check_edges(const struct run *r, char *what, size_t cap) {
    const struct call *c = r->c;
    unsigned char *may = mem_zero(r->bytes, 1); // 1: the op may write here
    for (int i = 0; i < c->args; i++) {
        const struct arg *a = &c->arg[i];
        const size_t size = dtype_size(type_of(r, i));
        const bool whole = strcmp(a->name, "saved") == 0;
        for (size_t n = 0; a->ndim && !whole && n < arg_count(a); n++) {
            const char mode = arg_mode(c, a, n);
            if (mode != 'i' && mode != '.') memset(may + r->at[i] + n * size, 1, size);
        }
        if (whole) memset(may + r->at[i], 1, tensor_bytes(r->t[i]));
    }
    int rc = 0;
    for (size_t at = 0; at < r->bytes && !rc; at++) {
        if (may[at] || r->before[at] == r->after[at]) continue;
        const char *name = "memory before the first argument";
        size_t from = 0;
        for (int i = 0; i < c->args; i++)
            if (c->arg[i].ndim && r->at[i] <= at && r->at[i] >= from) {
                name = c->arg[i].name;
                from = r->at[i];
            }
        snprintf(what, cap, "byte %zu from the start of %s was changed and must not be", at - from,
                 name);
        rc = -1;
    }
    free(may);
    return rc;
}

struct backend *open_backend(const char *name, const char *isa, int threads) {
    struct backend *be;
    struct error err;
    if (isa) setenv("RWKV_ISA", isa, 1);
    if (backend_open(&be, name, threads, &err)) die("%s", err.msg);
    if (isa) unsetenv("RWKV_ISA");
    return be;
}

static void add_subject(struct subject *s, int *n, const char *backend, const char *isa) {
    struct error err;
    struct subject *to = &s[*n];
    *to = (struct subject){.backend = backend, .isa = isa};
    snprintf(to->name, sizeof to->name, "%s%s%s", backend, isa ? " " : "", isa ? isa : "");
    if (isa)
        to->be = open_backend(backend, isa, 2);
    else if (backend_open(&to->be, backend, 2, &err)) {
        printf("SKIP backend %s: %s\n", backend, err.msg);
        return;
    }
    ++*n;
}

int subjects_open(struct subject *s, const char *only) {
    int n = 0;
    for (const char *const *b = backend_names(); *b; b++) {
        if (strcmp(*b, "ref64") == 0 || (only && strcmp(*b, only) != 0)) continue;
        if (strcmp(*b, "cpu") != 0) add_subject(s, &n, *b, NULL);
        for (int i = 0; strcmp(*b, "cpu") == 0 && kernels_level(i); i++)
            add_subject(s, &n, *b, kernels_level(i)->isa);
    }
    assert(n <= MAX_SUBJECTS);
    return n;
}

void subjects_close(struct subject *s, int n) {
    for (int i = 0; i < n; i++) backend_destroy(s[i].be);
}
