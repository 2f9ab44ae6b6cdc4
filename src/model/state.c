#include "model/state.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void lay_out(struct carver *c, const struct model *m, int slots, struct tensor *shift,
                    struct tensor *wkv) {
    const struct dims *d = &m->dims;
    const enum dtype t = m->be->real;
    const size_t L = (size_t)d->L, S = (size_t)slots, C = (size_t)d->C, H = (size_t)d->H;
    *shift = carve(c, t, 4, (size_t[]){L, 2, S, C});
    *wkv = carve(c, m->options.half_states ? DT_F16 : t, 5, (size_t[]){L, S, H, C / H, C / H});
}

size_t state_bytes(const struct model *m, int slots) {
    struct carver c = {0};
    struct tensor shift, wkv;
    lay_out(&c, m, slots, &shift, &wkv);
    return c.used;
}

int state_create(struct state **out, const struct model *m, int slots, struct error *err) {
    struct buffer *memory = buffer_create(m->be, state_bytes(m, slots), err);
    if (!memory) return fail_in(err, "%d state slots", slots);
    struct state *s = mem_zero(1, sizeof *s);
    *s = (struct state){.be = m->be, .dims = m->dims, .slots = slots, .memory = memory};
    lay_out(&(struct carver){.buf = memory}, m, slots, &s->shift, &s->wkv);
    *out = s;
    return 0;
}

void state_destroy(struct state *s) {
    if (!s) return;
    buffer_destroy(s->memory);
    free(s);
}

// A slot's pieces in the order of state_get: 2L shifts, then L states. NULL tensor past the last.
static struct tensor piece(const struct state *s, int slot, int i) {
    const int L = s->dims.L;
    if (i < 2 * L)
        return tensor_slice(tensor_at(tensor_at(s->shift, (size_t)i / 2), (size_t)i % 2),
                            (size_t)slot, 1);
    if (i < 3 * L) return tensor_slice(tensor_at(s->wkv, (size_t)(i - 2 * L)), (size_t)slot, 1);
    return tensor_none();
}

void state_zero(struct state *s, int slot) {
    state_zero_all(s, &(const int32_t){slot}, 1);
}

void state_zero_all(struct state *s, const int32_t *slots, int count) {
    const size_t L = (size_t)s->dims.L, S = (size_t)s->slots, C = (size_t)s->dims.C;
    const size_t N = C / (size_t)s->dims.H;
    op_clear(s->be, tensor_shape(s->shift, 3, (size_t[]){2 * L, S, C}), slots, count);
    op_clear(s->be, tensor_shape(s->wkv, 3, (size_t[]){L, S, C * N}), slots, count);
}

void state_copy(struct state *to, int to_slot, const struct state *from, int from_slot) {
    for (int i = 0; tensor_is(piece(to, to_slot, i)); i++)
        op_copy(to->be, piece(to, to_slot, i), piece(from, from_slot, i));
}

size_t state_count(const struct dims *d) {
    const size_t C = (size_t)d->C;
    return (size_t)d->L * (2 * C + C * (C / (size_t)d->H));
}

// Between [key][value] in memory and [value][key] outside; one head of N.
static void turn_heads(float *numbers, struct tensor t) {
    if (t.ndim != 4) return;
    const size_t N = t.dim[3];
    for (float *S = numbers; S < numbers + tensor_count(t); S += N * N)
        for (size_t i = 0; i < N; i++)
            for (size_t j = i + 1; j < N; j++) {
                const float x = S[i * N + j];
                S[i * N + j] = S[j * N + i];
                S[j * N + i] = x;
            }
}

void state_get(struct state *s, int slot, float *out) {
    void *raw =
        mem_alloc(tensor_bytes(piece(s, slot, 2 * s->dims.L)) + tensor_bytes(piece(s, slot, 0)));
    for (int i = 0; tensor_is(piece(s, slot, i)); i++) {
        const struct tensor t = piece(s, slot, i);
        s->be->class->download(s->be, raw, t);
        dtype_convert(out, DT_F32, raw, t.dtype, tensor_count(t));
        turn_heads(out, t);
        out += tensor_count(t);
    }
    free(raw);
}

// What f16 cannot hold becomes the largest that it can, as in ops: a file may come from f32 states.
static void fit_half(float *numbers, size_t n) {
    for (size_t i = 0; i < n; i++) numbers[i] = fmaxf(-65504, fminf(numbers[i], 65504));
}

void state_set(struct state *s, int slot, const float *in) {
    const size_t most =
        tensor_count(piece(s, slot, 2 * s->dims.L)) + tensor_count(piece(s, slot, 0));
    void *raw = mem_alloc(most * sizeof(double));
    float *numbers = mem_alloc(most * sizeof *numbers);
    for (int i = 0; tensor_is(piece(s, slot, i)); i++) {
        const struct tensor t = piece(s, slot, i);
        memcpy(numbers, in, tensor_count(t) * sizeof *numbers);
        turn_heads(numbers, t);
        if (t.dtype == DT_F16) fit_half(numbers, tensor_count(t));
        dtype_convert(raw, t.dtype, numbers, DT_F32, tensor_count(t));
        s->be->class->upload(s->be, t, raw);
        in += tensor_count(t);
    }
    free(numbers);
    free(raw);
}
