// One list of cases for every op of backend/ops.h, and what is done with it: compare with the
// reference, laws, finite differences, benches, support. A case is data: arguments by name, each
// with its shape, what the op does to it, and a pure function that says its values.
#pragma once
#include "backend/backend.h"
#include "backend/ops.h"

enum { MAX_ARGS = 18, MAX_SPANS = 416, MAX_ROWS = 8192, DRAWN = 7, BIASES = 5, MAX_PLANES = 32 };

// What the values look like. Parameters stay ordinary but for FILL_ZERO.
enum fill { FILL_RANDOM, FILL_TINY, FILL_HUGE, FILL_EQUAL, FILL_ZERO, FILL_COUNT };

// Rows, channels (K of a product), head size, vocabulary (O of a product).
struct size {
    int R, C, N, V;
};

struct call;

struct arg {
    const char *name;
    // "i" input; "=" written; "+" input and output; "." left alone; "~" may change, not judged.
    // More than one letter: one for each plane (dim[0]).
    const char *mode;
    enum dtype dtype; // DT_NONE: the backend's real
    int ndim;
    size_t dim[4];
    int row_axis;       // which dim counts rows; -1: none
    bool slots;         // one dim counts slots: only those of the spans are touched
    int slot_axis;      // which
    bool aligned;       // else placed off the 64-byte grid
    bool narrow;        // bf16 in backends that can (° in ops.h), with values that bf16 can hold
    bool half;          // DT_F16 in backends with half_states, with values that f16 can hold
    double rounding;    // what that costs a result, relative to the largest; 0: 1/256
    const char *shares; // lies where the argument of this name lies (when aliased)
    double (*value)(const struct call *, const struct arg *, size_t i); // NULL: by the fill
    const void *given; // the bytes themselves, in the backend's dtype; wins over value
};

struct op_case;

// One call of an op: a size, a variant and a fill, spelled out.
struct call {
    const struct op_case *op;
    struct size size;
    int variant;
    enum fill fill;
    uint64_t seed;
    bool bare;    // optional arguments are absent
    bool exact;   // the batch's
    bool aliased; // arguments share memory where ops.h allows it
    bool tidy;    // everything on the 64-byte grid, as the model has it: for timing

    struct arg arg[MAX_ARGS];
    int args;
    int H, S, spans;
    struct span span[MAX_SPANS];
    bool used[MAX_SPANS + 8];                                // slots that a span has
    int32_t prev[MAX_ROWS], last[MAX_ROWS], order[MAX_ROWS]; // order: of the rows by their tokens
    struct precision precision; // of the weight made of argument "weight"
    enum weight_layout layout;
    bool trained;

    // A part of a larger call: row r has the values of row row_map[r] of `whole_rows`.
    const int *row_map;
    int whole_rows;
    // One value of one argument moved: finite differences.
    const char *moved;
    size_t moved_at;
    double moved_by;
};

struct op_case {
    const char *name;
    void (*shape)(struct call *c);
    void (*call)(struct backend *be, const struct tensor *t, const struct weight *w,
                 const struct batch *b, const struct call *c);
    // What has to run before: its results are arguments of `call`. NULL: nothing.
    void (*prepare)(struct backend *be, const struct tensor *t, const struct weight *w,
                    const struct batch *b, const struct call *c);
    const struct size *sizes; // ends with R < 0
    // NULL, or more for backends that are devices: as many rows or heads as share or fill theirs.
    const struct size *device_sizes;
    const struct size *bench;
    unsigned bench_variants; // bits; 0: variant 0 only
    int variants;
    unsigned singles; // bits: variants whose spans are one row each
    unsigned narrow;  // bits: variants that are another one where nothing is stored as bf16
    bool can_bare, can_alias;
    bool rowwise; // each row alone gives the same bits
    // How far f32 results may be from the double ones, relative to the largest value of the plane.
    // 0: exactly the same.
    double tolerance, tensor_cores;        // the second where "cuda" may be less exact, else 0
    const char *forward;                   // the op this is the gradient of
    double (*flops)(const struct call *c); // NULL: counted by bytes alone
};

extern const struct op_case op_cases[];
extern const int op_case_count;
const struct op_case *op_case_find(const char *name);

// ---- check_ops_run.c
void call_init(struct call *c, const struct op_case *op, struct size size, int variant,
               enum fill fill, bool bare, bool aliased);
void call_set_spans(struct call *c, const struct span *spans, int n); // and prev and last
void call_reshape(struct call *c); // the arguments anew, after a change of what they depend on
int call_arg(const struct call *c, const char *name); // index, -1: absent
size_t arg_count(const struct arg *a);
uint64_t call_bits(const struct call *c, const char *name, size_t i); // a pure function of all
double call_draw(const struct call *c, const char *name, size_t i); // mean 0, variance 1, ≤ 2.45
double arg_value(const struct call *c, const struct arg *a, size_t i);
// What the op does to element i: one of the letters of `mode`.
char arg_mode(const struct call *c, const struct arg *a, size_t i);
void call_text(char *out, size_t cap, const struct call *c);

// ---- check_ops_values.c: see there
double value_param(const struct call *c, const struct arg *a, size_t i);
double value_token(const struct call *c, const struct arg *a, size_t i);
double value_token_or_drawn(const struct call *c, const struct arg *a, size_t i); // one of DRAWN
double value_target(const struct call *c, const struct arg *a, size_t i);
double value_any_row(const struct call *c, const struct arg *a, size_t i);
double value_activated(const struct call *c, const struct arg *a, size_t i);
double value_rkv(const struct call *c, const struct arg *a, size_t i);
double value_gate_input(const struct call *c, const struct arg *a, size_t i);
double value_gradient_squared(const struct call *c, const struct arg *a, size_t i);
double value_gradient(const struct call *c, const struct arg *a, size_t i);
double value_wkv_input(const struct call *c, const struct arg *a, size_t i);
double value_sample_rows(const struct call *c, const struct arg *a, size_t i);
double value_sample_penalties(const struct call *c, const struct arg *a, size_t i);
double value_sample_biases(const struct call *c, const struct arg *a, size_t i);
double value_mostly_zero(const struct call *c, const struct arg *a, size_t i);
double value_faint(const struct call *c, const struct arg *a, size_t i);
double flops_matmul(const struct call *c);
double flops_act(const struct call *c);
double flops_key_prep(const struct call *c);
double flops_key_prep_bwd(const struct call *c);
double flops_wkv7(const struct call *c);
double flops_wkv7_bwd(const struct call *c);
double flops_xent(const struct call *c);

// A call bound to a backend: every argument between guard words, everything unwritten poisoned.
struct run {
    const struct call *c;
    struct backend *be;
    struct buffer *buf;
    size_t bytes;
    unsigned char *before, *after; // images of the buffer
    size_t at[MAX_ARGS];
    struct tensor t[MAX_ARGS];
    struct batch batch;
    struct weight *w;
    struct buffer *rounded; // w's copy, where the backend wants one
};
void run_open(struct run *r, const struct call *c, struct backend *be);
void run_go(struct run *r); // the op, then `after`
void run_close(struct run *r);
double run_get(const struct run *r, int arg, size_t i); // from `after`
double run_was(const struct run *r, int arg, size_t i); // from `before`
const void *run_bytes(const struct run *r, int arg);    // of `after`
size_t run_size(const struct run *r, int arg);          // bytes
// 0, or -1 with what is wrong: a touched guard, an unwritten or a wrongly written element.
int run_check_edges(const struct run *r, char *what, size_t cap);

struct backend *open_backend(const char *name, const char *isa, int threads);

// Whom tests judge: "ref", "cpu" at every level of this machine, and every other backend of this
// build; one whose device is absent is skipped, loudly.
enum { MAX_SUBJECTS = 8 };
struct subject {
    struct backend *be;
    const char *backend, *isa; // isa: of cpu
    char name[32];
    double worst;
    bool failed;
};
int subjects_open(struct subject *s, const char *only);
void subjects_close(struct subject *s, int n);

// ---- the verbs; each returns 0 or 1 and counts
struct tally {
    int passed, failed;
    const char *only;    // one op, or NULL
    const char *backend; // one backend, or NULL: all there are
    bool verbose;
};
void tally_one(struct tally *t, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void check_compare(struct tally *t);
void check_laws(struct tally *t);
void check_grad(struct tally *t);
void check_sample(struct tally *t);
int bench_ops(const char *only, const char *backend, int threads, bool json);
int print_support(const char *backend);
