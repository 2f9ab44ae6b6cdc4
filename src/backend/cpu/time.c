// wkv7 on threads: a task is one head of one span.
#include "backend/cpu/internal.h"

#include "backend/ops.h"

#include <assert.h>
#include <string.h>

// `saved` holds s = S_{t-1} a for every row, (R,C), then the states at the chunk starts. A span's
// chunks begin at floor(first/16) + span index, which leaves every span room enough.
static size_t chunk_slots(size_t rows, size_t spans) {
    return rows / WKV_CHUNK + spans;
}

size_t cpu_wkv7_saved_bytes(const struct backend *be, int rows, int spans, int H, int N) {
    (void)be;
    const size_t C = (size_t)H * (size_t)N;
    return ((size_t)rows * C + chunk_slots((size_t)rows, (size_t)spans) * C * (size_t)N) *
           sizeof(float);
}

struct wkv_job {
    const struct wkv7_kernels *k;
    const struct span *span;
    size_t R, C, N, H, scratch_step;
    float *y, *state_out, *saved, *scratch;
    const float *r, *u, *state_in;
    // backward only
    float *dr, *du, *dstate_in;
    const float *dy, *dstate_out;
};

struct place {
    const struct span *span;
    size_t row;    // offset of the span's first row at this head, in floats
    size_t state;  // offset of the slot's state of this head
    float *chunks; // this head's, NULL without `saved`
    float *s;
    float *scratch, *local; // local: a state (N,N) of our own
};

static struct place place_of(const struct wkv_job *j, int task) {
    const size_t i = (size_t)task / j->H, h = (size_t)task % j->H;
    const struct span *span = &j->span[i];
    const size_t base = (size_t)span->first / WKV_CHUNK + i, NN = j->N * j->N;
    const size_t most = ((size_t)span->len + WKV_CHUNK - 1) / WKV_CHUNK;
    struct place p = {.span = span,
                      .row = (size_t)span->first * j->C + h * j->N,
                      .state = ((size_t)span->slot * j->H + h) * NN,
                      .scratch = j->scratch + (size_t)pool_thread() * j->scratch_step};
    p.local = p.scratch + j->scratch_step - NN;
    if (j->saved) {
        p.s = j->saved + p.row;
        // Within a span: head by head, each with all its chunks in a row.
        p.chunks = j->saved + j->R * j->C + (base * j->H + h * most) * NN;
    }
    return p;
}

static void forward_task(void *ctx, int task) {
    const struct wkv_job *j = ctx;
    const struct place p = place_of(j, task);
    const size_t bytes = j->N * j->N * sizeof(float);
    float *T = j->state_out ? j->state_out + p.state : p.local; // updated in place
    if (!j->state_in)
        memset(T, 0, bytes);
    else if (j->state_in + p.state != T)
        memcpy(T, j->state_in + p.state, bytes);
    j->k->forward(j->y + p.row, T, p.chunks, p.s, j->r + p.row, j->u + p.row, j->R * j->C, j->C,
                  (size_t)p.span->len, j->N, p.scratch);
}

static void backward_task(void *ctx, int task) {
    const struct wkv_job *j = ctx;
    const struct place p = place_of(j, task);
    const size_t bytes = j->N * j->N * sizeof(float);
    if (j->dstate_out)
        memcpy(p.local, j->dstate_out + p.state, bytes);
    else
        memset(p.local, 0, bytes);
    j->k->backward(j->dr + p.row, j->du + p.row, p.local, j->dy + p.row, p.chunks, p.s,
                   j->r + p.row, j->u + p.row, j->R * j->C, j->C, (size_t)p.span->len, j->N,
                   p.scratch);
    if (j->dstate_in) memcpy(j->dstate_in + p.state, p.local, bytes);
}

static struct wkv_job job_of(struct cpu *cpu, struct tensor r, struct tensor u,
                             const struct batch *b, int H) {
    const size_t C = r.dim[1], N = C / (size_t)H;
    assert(N % 16 == 0); // the vectors of every level; models are checked when they are opened
    struct wkv_job j = {.k = cpu->k->wkv7,
                        .span = tensor_host(b->span),
                        .R = r.dim[0],
                        .C = C,
                        .N = N,
                        .H = (size_t)H,
                        .scratch_step = wkv7_scratch(N) + N * N,
                        .r = f32(r),
                        .u = f32(u)};
    j.scratch = cpu_scratch_each(cpu, j.scratch_step);
    return j;
}

void cpu_wkv7(struct backend *be, struct tensor y, struct tensor state_out, struct tensor saved,
              struct tensor r, struct tensor u, struct tensor state_in, const struct batch *b,
              int H) {
    struct cpu *cpu = cpu_of(be);
    struct wkv_job j = job_of(cpu, r, u, b, H);
    j.y = f32(y);
    j.state_in = f32(state_in);
    j.state_out = f32(state_out);
    j.saved = f32(saved);
    pool_run(cpu->pool, b->spans * H, forward_task, &j);
}

void cpu_wkv7_bwd(struct backend *be, struct tensor dr, struct tensor du, struct tensor dstate_in,
                  struct tensor dy, struct tensor r, struct tensor u, struct tensor saved,
                  struct tensor dstate_out, const struct batch *b, int H) {
    struct cpu *cpu = cpu_of(be);
    struct wkv_job j = job_of(cpu, r, u, b, H);
    j.dr = f32(dr);
    j.du = f32(du);
    j.dstate_in = f32(dstate_in);
    j.dy = f32(dy);
    j.saved = f32(saved);
    j.dstate_out = f32(dstate_out);
    pool_run(cpu->pool, b->spans * H, backward_task, &j);
}
