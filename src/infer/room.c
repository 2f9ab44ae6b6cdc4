#include "infer/room.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "infer/sched.h"
#include "model/forward.h"

#include <stddef.h>
#include <stdlib.h>

_Static_assert(SCHED_CELL % STATE_CELL == 0, "cuts of a prompt may not show");
_Static_assert(sizeof(struct engine_bias) == sizeof(struct sample_bias) &&
                   offsetof(struct engine_bias, value) == offsetof(struct sample_bias, value),
               "a job's biases are uploaded as they are");

int room_paragraph(const struct backend *be, struct engine_limits l) {
    const int wanted = l.paragraph_len ? l.paragraph_len : be->class->prompt_rows;
    return wanted > SCHED_CELL ? wanted : SCHED_CELL;
}

struct room_limits room_limits(const struct backend *be, struct engine_limits l, int slots) {
    const int prompts = room_paragraph(be, l);
    const int rows = batch_rows(be, slots + prompts);
    return (struct room_limits){.rows = rows,
                                .spans = rows, // each row of padding is one
                                .outs = batch_rows(be, slots) + SCHED_CELL};
}

static struct run_limits run_limits_of(struct room_limits n) {
    return (struct run_limits){.rows = n.rows, .spans = n.spans, .outs = n.outs, .mode = RUN_INFER};
}

static int state_slots(const struct backend *be, int slots) {
    return slots + (be->class->round_rows ? 1 : 0);
}

static void carve_room(struct room *r, struct carver *c, struct room_limits n, size_t V) {
    const size_t slots = (size_t)r->slots, outs = (size_t)n.outs;
    const size_t biases = V < ENGINE_MAX_BIAS ? V : ENGINE_MAX_BIAS;
    r->rows = carve(c, DT_U8, 2, (size_t[]){outs, sizeof(struct sample_row)});
    r->tokens = carve(c, DT_I32, 2, (size_t[]){MAX_DEPTH, outs});
    r->penalties = carve(c, DT_U8, 2, (size_t[]){slots, sample_penalty_bytes(V)});
    r->biases = carve(c, DT_U8, 2, (size_t[]){slots, biases * sizeof(struct sample_bias)});
}

void room_free(struct room *r) {
    run_destroy(r->run);
    feed_destroy(r->feed);
    state_destroy(r->state);
    buffer_destroy(r->memory);
    free(r->fresh.slot);
    free(r->marked.slot);
    *r = (struct room){0};
}

int room_create(struct room *r, struct model *m, struct engine_limits l, int slots,
                struct error *err) {
    const struct room_limits n = room_limits(m->be, l, slots);
    const size_t V = (size_t)m->dims.V;
    struct carver plan = {0};
    *r = (struct room){.be = m->be, .slots = slots};
    r->fresh.slot = mem_zero((size_t)slots, sizeof(int32_t));
    r->marked.slot = mem_zero((size_t)slots, sizeof(int32_t));
    carve_room(r, &plan, n, V);
    if (run_create(&r->run, m, run_limits_of(n), err) ||
        feed_create(&r->feed, m->be, (struct feed_limits){n.rows, n.spans, n.outs}, err) ||
        state_create(&r->state, m, state_slots(m->be, slots), err) ||
        !(r->memory = buffer_create(m->be, plan.used, err))) {
        room_free(r);
        return -1;
    }
    carve_room(r, &(struct carver){.buf = r->memory}, n, V);
    return 0;
}

uint64_t room_bytes(const struct model *m, struct engine_limits l) {
    struct room r = {.slots = l.max_batch_size};
    const struct room_limits n = room_limits(m->be, l, r.slots);
    struct carver plan = {0};
    carve_room(&r, &plan, n, (size_t)m->dims.V);
    return run_bytes(m, run_limits_of(n)) + state_bytes(m, state_slots(m->be, r.slots)) + plan.used;
}

bool room_penalises(const struct engine_job *job) {
    return job->presence != 0 || job->repetition != 0 || job->frequency != 0;
}

static void put_biases(struct room *r, int slot, const struct engine_job *job) {
    const size_t bytes = (size_t)job->num_bias * sizeof *job->bias;
    if (bytes)
        r->be->class->upload(r->be, tensor_slice(tensor_at(r->biases, (size_t)slot), 0, bytes),
                             job->bias);
}

// Once each: a slot may get another job before it had a step.
static void note_slot(struct slot_list *l, int slot) {
    for (int i = 0; i < l->count; i++)
        if (l->slot[i] == slot) return;
    l->slot[l->count++] = slot;
}

void room_settle(struct room *r, int slot, const struct engine_job *job) {
    note_slot(&r->fresh, slot);
    if (room_penalises(job)) note_slot(&r->marked, slot);
    put_biases(r, slot, job);
}

void room_begin(struct room *r) {
    struct tensor numbers = r->penalties; // accumulators and marks: words that become zero
    numbers.dtype = DT_F32;
    numbers.ndim = 3;
    numbers.dim[0] = 1;
    numbers.dim[1] = (size_t)r->slots;
    numbers.dim[2] = r->penalties.dim[1] / sizeof(float);
    if (r->fresh.count) state_zero_all(r->state, r->fresh.slot, r->fresh.count);
    if (r->marked.count) op_clear(r->be, numbers, r->marked.slot, r->marked.count);
    r->fresh.count = r->marked.count = 0;
}

void room_move(struct room *to, int to_slot, const struct room *from, int from_slot,
               const struct engine_job *job) {
    state_copy(to->state, to_slot, from->state, from_slot);
    op_copy(to->be, tensor_at(to->penalties, (size_t)to_slot),
            tensor_at(from->penalties, (size_t)from_slot));
    put_biases(to, to_slot, job);
}
