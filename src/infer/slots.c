#include "infer/slots.h"

#include "backend/ops.h"
#include "base/mem.h"
#include "infer/events.h"
#include "infer/logprob.h"
#include "infer/sched.h"
#include "model/forward.h"
#include "text/stop.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct engine_seq {
    struct engine_job *job;
    int slot;
    int read;      // tokens of the prompt
    int generated; // tokens
    int32_t last;  // generated, to be fed next
    bool parked, finished;
    struct utf8 utf8;
    struct stop *stop; // NULL: no stop strings
};

// What a step needs of memory, for so many sequences; replaced as a whole when the limits change.
struct room {
    int slots;
    struct run *run;
    struct feed *feed;
    struct state *state;
    struct buffer *memory;
    struct tensor tokens, rows,
        penalties; // (slots) i32; (slots, sizeof(struct sample_row)); (slots, …)
    bool *taken;   // (slots)
};

struct slots {
    struct model *model;
    const struct tok *tok;
    struct engine_limits limits;
    struct room room;
    struct engine_seq *seqs; // in the order of admission
    int num_seqs;
    // One step's lists, (slots) or (rows) each.
    struct sched_seq *plan;
    int *take;
    struct span *spans;
    struct sampled { // who samples, in the order of rows of logits
        struct engine_seq *seq;
        int row; // of the batch
    } * samplers;
    struct sample_row *sample_rows;
    int32_t *row_tokens, *out_rows, *drawn;
    void *raw;   // (V) logits as the backend stores them
    float *row;  // (V) the same in float
    float *kept; // (slots,V) logits of samplers whose logprobs are wanted; NULL until one is
    struct str piece, text;
};

static int prompt_rows(struct engine_limits l) {
    return l.paragraph_len > SCHED_CELL ? l.paragraph_len : SCHED_CELL;
}

static struct run_limits run_limits_for(struct engine_limits l, int slots) {
    return (struct run_limits){.rows = slots + prompt_rows(l),
                               .spans = slots,
                               .outs = slots + SCHED_CELL,
                               .mode = RUN_INFER};
}

static void carve_room(struct room *r, struct carver *c, size_t V) {
    const size_t n = (size_t)r->slots;
    r->tokens = carve(c, DT_I32, 1, &n);
    r->rows = carve(c, DT_U8, 2, (size_t[]){n, sizeof(struct sample_row)});
    r->penalties = carve(c, DT_U8, 2, (size_t[]){n, sample_penalty_bytes(V)});
}

static void room_free(struct room *r) {
    run_destroy(r->run);
    feed_destroy(r->feed);
    state_destroy(r->state);
    buffer_destroy(r->memory);
    free(r->taken);
    *r = (struct room){0};
}

static int room_create(struct room *r, struct model *m, struct engine_limits l, int slots,
                       struct error *err) {
    const struct run_limits n = run_limits_for(l, slots);
    struct carver plan = {0};
    *r = (struct room){.slots = slots};
    carve_room(r, &plan, (size_t)m->dims.V);
    if (run_create(&r->run, m, n, err) ||
        feed_create(&r->feed, m->be, (struct feed_limits){n.rows, n.spans, n.outs}, err) ||
        state_create(&r->state, m, slots, err) ||
        !(r->memory = buffer_create(m->be, plan.used, err))) {
        room_free(r);
        return -1;
    }
    carve_room(r, &(struct carver){.buf = r->memory}, (size_t)m->dims.V);
    r->taken = mem_zero((size_t)slots, sizeof *r->taken);
    return 0;
}

uint64_t slots_bytes(const struct model *m, struct engine_limits l) {
    struct room r = {.slots = l.max_batch_size};
    struct carver plan = {0};
    carve_room(&r, &plan, (size_t)m->dims.V);
    return run_bytes(m, run_limits_for(l, r.slots)) + state_bytes(m, r.slots) + plan.used;
}

// The lists on the host's side.
static void lists_free(struct slots *s) {
    void *all[] = {s->plan,       s->take,     s->spans, s->samplers, s->sample_rows,
                   s->row_tokens, s->out_rows, s->drawn, s->kept};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    s->kept = NULL;
}

static void lists_create(struct slots *s) {
    const size_t n = (size_t)s->room.slots;
    const struct run_limits l = run_limits_for(s->limits, s->room.slots);
    s->plan = mem_zero(n, sizeof *s->plan);
    s->take = mem_zero(n, sizeof *s->take);
    s->spans = mem_zero(n, sizeof *s->spans);
    s->samplers = mem_zero(n, sizeof *s->samplers);
    s->sample_rows = mem_zero(n, sizeof *s->sample_rows);
    s->drawn = mem_zero(n, sizeof *s->drawn);
    s->row_tokens = mem_zero((size_t)l.rows, sizeof *s->row_tokens);
    s->out_rows = mem_zero((size_t)l.outs, sizeof *s->out_rows);
}

int slots_create(struct slots **out, struct model *m, const struct tok *tok,
                 struct engine_limits limits, struct error *err) {
    struct slots *s = mem_zero(1, sizeof *s);
    *s = (struct slots){.model = m, .tok = tok, .limits = limits};
    if (room_create(&s->room, m, limits, limits.max_batch_size, err)) {
        free(s);
        return -1;
    }
    const size_t V = (size_t)m->dims.V;
    lists_create(s);
    s->seqs = mem_zero((size_t)s->room.slots, sizeof *s->seqs);
    s->raw = mem_alloc(V * dtype_size(m->be->real));
    s->row = mem_alloc(V * sizeof *s->row);
    str_init(&s->piece, TOK_MAX_BYTES * 4);
    str_init(&s->text, STOP_MAX_BYTES + TOK_MAX_BYTES * 4);
    *out = s;
    return 0;
}

void slots_destroy(struct slots *s) {
    if (!s) return;
    for (int i = 0; i < s->num_seqs; i++) stop_destroy(s->seqs[i].stop);
    room_free(&s->room);
    lists_free(s);
    str_free(&s->piece);
    str_free(&s->text);
    free(s->seqs);
    free(s->raw);
    free(s->row);
    free(s);
}

int slots_resize(struct slots *s, struct engine_limits limits, struct error *err) {
    struct backend *be = s->model->be;
    const int slots = limits.max_batch_size > s->num_seqs ? limits.max_batch_size : s->num_seqs;
    struct room room;
    if (room_create(&room, s->model, limits, slots, err)) return -1;
    struct engine_seq *seqs = mem_zero((size_t)slots, sizeof *seqs);
    for (int i = 0; i < s->num_seqs; i++) {
        const int from = s->seqs[i].slot;
        seqs[i] = s->seqs[i];
        seqs[i].slot = i;
        seqs[i].job->seq = &seqs[i];
        room.taken[i] = true;
        state_copy(room.state, i, s->room.state, from);
        const size_t bytes = s->room.penalties.dim[1];
        void *penalty = mem_alloc(bytes);
        be->class->download(be, penalty, tensor_slice(s->room.penalties, (size_t)from, 1));
        be->class->upload(be, tensor_slice(room.penalties, (size_t)i, 1), penalty);
        free(penalty);
    }
    const int rc = be->class->sync(be, err);
    room_free(rc ? &room : &s->room);
    free(rc ? seqs : s->seqs);
    if (rc) {
        for (int i = 0; i < s->num_seqs; i++) s->seqs[i].job->seq = &s->seqs[i];
        return -1;
    }
    s->room = room;
    s->seqs = seqs;
    s->limits = limits;
    lists_free(s);
    lists_create(s);
    return 0;
}

int slots_used(const struct slots *s) {
    return s->num_seqs;
}

int slots_parked(const struct slots *s) {
    int n = 0;
    for (int i = 0; i < s->num_seqs; i++) n += s->seqs[i].parked;
    return n;
}

bool slots_full(const struct slots *s) {
    return s->num_seqs >= s->limits.max_batch_size;
}

struct engine_seq *slots_any(const struct slots *s) {
    return s->num_seqs ? &s->seqs[0] : NULL;
}

void slots_admit(struct slots *s, struct engine_job *job) {
    assert(!slots_full(s));
    struct backend *be = s->model->be;
    int slot = 0;
    while (s->room.taken[slot]) slot++;
    s->room.taken[slot] = true;
    struct engine_seq *seq = &s->seqs[s->num_seqs++];
    *seq = (struct engine_seq){.job = job, .slot = slot};
    if (job->num_stops) seq->stop = stop_create(job->stops, job->num_stops);
    job->seq = seq;
    str_clear(&s->piece);
    utf8_feed(&seq->utf8, job->held, (size_t)job->num_held, &s->piece); // emits nothing yet
    state_zero(s->room.state, slot);
    void *zeros = mem_zero(s->room.penalties.dim[1], 1);
    be->class->upload(be, tensor_slice(s->room.penalties, (size_t)slot, 1), zeros);
    free(zeros);
}

void slots_park(struct engine_seq *seq, bool parked) {
    seq->parked = parked;
}

// Takes the sequence out; the others move up and keep their order.
static void leave(struct slots *s, struct engine_seq *seq) {
    const int at = (int)(seq - s->seqs);
    s->room.taken[seq->slot] = false;
    stop_destroy(seq->stop);
    seq->job->seq = NULL;
    s->num_seqs--;
    memmove(seq, seq + 1, (size_t)(s->num_seqs - at) * sizeof *seq);
    for (int i = at; i < s->num_seqs; i++) s->seqs[i].job->seq = &s->seqs[i];
}

// Whole code points through the stop strings into the last event's text.
static bool put_text(struct slots *s, struct engine_seq *seq, struct events *out) {
    return stop_feed(seq->stop, s->piece.data, s->piece.len, &out->text);
}

static void end_text(struct slots *s, struct engine_seq *seq, struct events *out) {
    str_clear(&s->piece);
    utf8_flush(&seq->utf8, &s->piece);
    if (!put_text(s, seq, out)) stop_flush(seq->stop, &out->text);
}

void slots_finish(struct slots *s, struct engine_seq *seq, enum engine_finish finish,
                  const char *error, struct events *out) {
    struct engine_event *event = events_add(out, seq->job);
    event->finish = finish;
    event->error = error;
    end_text(s, seq, out);
    events_end_text(out);
    leave(s, seq);
}

// ---- a step ------------------------------------------------------------------------------------

static bool penalised(const struct engine_job *j) {
    return j->presence != 0 || j->repetition != 0 || j->frequency != 0;
}

// One step in numbers. Rows of logits stand in this order: samplers with penalties, the other
// samplers, then prompts that want all their logits.
struct step {
    int rows, spans, outs, num_samplers, num_penalised;
};

static void add_sampler(struct slots *s, struct step *step, struct engine_seq *seq, int row) {
    struct sampled *at = &s->samplers[step->num_samplers++];
    if (penalised(seq->job)) { // moves the first of the others to the end
        *at = s->samplers[step->num_penalised];
        at = &s->samplers[step->num_penalised++];
    }
    *at = (struct sampled){seq, row};
}

// Fills spans, tokens and samplers from the plan.
static void gather(struct slots *s, struct step *step) {
    for (int i = 0; i < s->num_seqs; i++) {
        struct engine_seq *seq = &s->seqs[i];
        const struct engine_job *job = seq->job;
        const int len = s->take[i];
        if (!len) continue;
        const bool reads = seq->read < job->num_prompt;
        const int pos = reads ? seq->read : job->num_prompt + seq->generated - 1;
        s->spans[step->spans++] =
            (struct span){.first = step->rows, .len = len, .slot = seq->slot, .pos = pos};
        memcpy(s->row_tokens + step->rows, reads ? job->prompt + seq->read : &seq->last,
               (size_t)len * sizeof *s->row_tokens);
        step->rows += len;
        const bool whole = !reads || seq->read + len == job->num_prompt;
        if (whole && job->max_tokens) add_sampler(s, step, seq, step->rows - 1);
    }
    for (int i = 0; i < step->num_samplers; i++) s->out_rows[step->outs++] = s->samplers[i].row;
    for (int i = 0, span = 0; i < s->num_seqs; i++) {
        const struct engine_seq *seq = &s->seqs[i];
        if (!s->take[i]) continue;
        const struct span *at = &s->spans[span++];
        if (!seq->job->prompt_logprobs || seq->read == seq->job->num_prompt) continue;
        for (int r = 0; r < at->len; r++) s->out_rows[step->outs++] = at->first + r;
    }
}

// A row of logits on the host.
static const float *fetch(struct slots *s, struct tensor logits, int out) {
    struct backend *be = s->model->be;
    be->class->download(be, s->raw, tensor_slice(logits, (size_t)out, 1));
    dtype_convert(s->row, DT_F32, s->raw, be->real, (size_t)s->model->dims.V);
    return s->row;
}

// One number at a time: a row is much longer than any list of biases.
static void apply_bias(struct slots *s, const struct engine_job *job, struct tensor logits,
                       int out) {
    struct backend *be = s->model->be;
    const struct tensor row = tensor_at(logits, (size_t)out);
    for (int i = 0; i < job->num_bias; i++) {
        const struct tensor one = tensor_slice(row, (size_t)job->bias[i].token, 1);
        float value;
        be->class->download(be, s->raw, one);
        dtype_convert(&value, DT_F32, s->raw, be->real, 1);
        value += job->bias[i].value;
        dtype_convert(s->raw, be->real, &value, DT_F32, 1);
        be->class->upload(be, one, s->raw);
    }
}

static struct sample_row sample_row_of(const struct engine_seq *seq) {
    const struct engine_job *j = seq->job;
    return (struct sample_row){
        .temperature = j->temperature,
        .top_p = j->top_p,
        .min_p = j->min_p,
        .presence = j->presence,
        .repetition = j->repetition,
        .frequency = j->frequency,
        .penalty_decay = j->penalty_decay,
        .top_k = j->top_k,
        .slot = seq->slot,
        .seed = j->seed,
        .position = (uint64_t)(j->num_prompt + seq->generated),
    };
}

static void sample(struct slots *s, const struct step *step, struct tensor logits) {
    struct backend *be = s->model->be;
    const size_t n = (size_t)step->num_samplers, p = (size_t)step->num_penalised;
    if (!n) return;
    for (size_t i = 0; i < n; i++) {
        const struct engine_job *job = s->samplers[i].seq->job;
        if (job->num_bias) apply_bias(s, job, logits, (int)i);
        s->sample_rows[i] = sample_row_of(s->samplers[i].seq);
    }
    const struct tensor rows = tensor_slice(s->room.rows, 0, n),
                        tokens = tensor_slice(s->room.tokens, 0, n);
    be->class->upload(be, rows, s->sample_rows);
    if (p)
        op_sample(be, tensor_slice(tokens, 0, p), tensor_slice(logits, 0, p),
                  tensor_slice(rows, 0, p), s->room.penalties);
    if (n > p)
        op_sample(be, tensor_slice(tokens, p, n - p), tensor_slice(logits, p, n - p),
                  tensor_slice(rows, p, n - p), tensor_none());
    be->class->download(be, s->drawn, tokens);
}

// Sampling leaves the logits changed: rows whose logprobs are wanted are kept before.
static void keep_rows(struct slots *s, const struct step *step, struct tensor logits) {
    const size_t V = (size_t)s->model->dims.V;
    for (int i = 0; i < step->num_samplers; i++) {
        if (s->samplers[i].seq->job->top < 0) continue;
        if (!s->kept) s->kept = mem_alloc((size_t)s->room.slots * V * sizeof *s->kept);
        memcpy(s->kept + (size_t)i * V, fetch(s, logits, i), V * sizeof *s->kept);
    }
}

// Of tokens read+1 .. read+len of the prompt, each from the row before it.
static void report_prompt(struct slots *s, const struct engine_seq *seq, int len,
                          struct tensor logits, int out, struct events *events) {
    const struct engine_job *job = seq->job;
    struct engine_event *event = &events->at[events->count - 1];
    event->of_prompt = true;
    for (int r = 0; r < len && seq->read + r + 1 < job->num_prompt; r++) {
        logprob_row(events_add_probs(events, (size_t)logprob_count(job)), fetch(s, logits, out + r),
                    s->model->dims.V, job->prompt[seq->read + r + 1], job);
        event->num_logprobs++;
    }
}

// Part of a prompt was read. Returns the rows of logits that it had for itself.
static int advance_prompt(struct slots *s, struct engine_seq *seq, int len, struct tensor logits,
                          int out, struct events *events) {
    struct engine_event *event = events_add(events, seq->job);
    event->prompt_tokens = len;
    if (seq->job->prompt_logprobs) report_prompt(s, seq, len, logits, out, events);
    seq->read += len;
    seq->finished = seq->read == seq->job->num_prompt && !seq->job->max_tokens;
    event->finish = seq->finished ? ENGINE_LENGTH : ENGINE_NOT_YET;
    if (seq->finished) end_text(s, seq, events);
    events_end_text(events);
    return seq->job->prompt_logprobs ? len : 0;
}

static enum engine_finish finish_of(const struct slots *s, const struct engine_seq *seq,
                                    int32_t token, bool stopped) {
    const struct engine_job *job = seq->job;
    if (stopped || (token == 0 && !job->ignore_end)) return ENGINE_STOP;
    const bool full = job->num_prompt + seq->generated >= s->limits.max_context_len;
    return seq->generated >= job->max_tokens || full ? ENGINE_LENGTH : ENGINE_NOT_YET;
}

// A token came: its text and its event.
static void advance(struct slots *s, struct engine_seq *seq, int32_t token, const float *logits,
                    struct events *out) {
    const struct engine_job *job = seq->job;
    struct engine_event *event = events_add(out, seq->job);
    size_t len;
    const char *bytes = tok_bytes(s->tok, token, &len);
    seq->last = token;
    seq->generated++;
    event->generated_tokens = 1;
    event->token = token;
    if (job->top >= 0 && (token || job->ignore_end)) {
        logprob_row(events_add_probs(out, (size_t)logprob_count(job)), logits, s->model->dims.V,
                    token, job);
        event->num_logprobs = 1;
    }
    str_clear(&s->piece);
    utf8_feed(&seq->utf8, bytes, len, &s->piece);
    const bool stopped = put_text(s, seq, out);
    event->finish = finish_of(s, seq, token, stopped);
    seq->finished = event->finish != ENGINE_NOT_YET;
    if (seq->finished && !stopped) end_text(s, seq, out);
    events_end_text(out);
}

// What the step brought, as events; those that are done go.
static void advance_all(struct slots *s, const struct step *step, struct tensor logits,
                        struct events *out) {
    int row_out = step->num_samplers; // prompts' own rows of logits come after the samplers'
    for (int i = 0; i < s->num_seqs; i++) {
        struct engine_seq *seq = &s->seqs[i];
        if (s->take[i] && seq->read < seq->job->num_prompt)
            row_out += advance_prompt(s, seq, s->take[i], logits, row_out, out);
    }
    for (int i = 0; i < step->num_samplers; i++)
        advance(s, s->samplers[i].seq, s->drawn[i], s->kept + (size_t)i * (size_t)s->model->dims.V,
                out);
    for (int i = s->num_seqs; i-- > 0;)
        if (s->seqs[i].finished) leave(s, &s->seqs[i]);
}

int slots_step(struct slots *s, struct events *out, struct error *err) {
    for (int i = 0; i < s->num_seqs; i++) {
        const struct engine_seq *seq = &s->seqs[i];
        s->plan[i] = (struct sched_seq){.read = seq->read,
                                        .prompt = seq->job->num_prompt,
                                        .parked = seq->parked,
                                        .all_logits = seq->job->prompt_logprobs};
    }
    const struct sched_limits limits = {s->limits.paragraph_len, SCHED_CELL,
                                        s->limits.decode_first};
    if (!sched_plan(s->take, s->plan, s->num_seqs, limits)) return 0;
    struct step step = {0};
    gather(s, &step);
    feed_set(s->room.feed, s->spans, step.spans, s->row_tokens, s->out_rows, step.outs, NULL);
    const struct tensor logits = model_forward(s->model, s->room.run, s->room.feed, s->room.state);
    keep_rows(s, &step, logits);
    sample(s, &step, logits);
    if (s->model->be->class->sync(s->model->be, err)) return -1;
    advance_all(s, &step, logits, out);
    return step.rows;
}
