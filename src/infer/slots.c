#include "infer/slots.h"

#include "backend/ops.h"
#include "base/error.h"
#include "base/mem.h"
#include "infer/events.h"
#include "infer/logprob.h"
#include "infer/room.h"
#include "infer/sched.h"
#include "model/forward.h"
#include "text/stop.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// Steps are written down ahead of what is known: `read` and `asked` count what has been written
// down, `generated` what has come back.
struct engine_seq {
    struct engine_job *job; // NULL: the slot is free
    int slot;
    int read;      // tokens of the prompt
    int asked;     // tokens
    int generated; // tokens, at most one less while a step is under way
    int32_t last;  // generated, to be fed next
    int drawn_at;  // where the token that was asked for last will be among its step's
    bool parked, finished;
    struct utf8 utf8;
    struct stop *stop; // NULL: no stop strings
};

// A step, from when it is written down until its tokens are told. A sequence that ends meanwhile is
// forgotten here (NULL); what the device still does for it is of no use, and done before whoever
// gets its slot next begins.
struct step {
    int rows;
    bool alone; // nothing is written down until it is done
    struct reading {
        struct engine_seq *seq;
        int from, len;  // tokens of its prompt
        int first, out; // row, and row of logits if it wants those of all
    } * readings;       // (slots)
    int num_readings;
    struct engine_seq **samplers; // (slots) who samples, in the order of rows of logits
    int num_samplers;
    int32_t *drawn; // (outs)
    struct tensor logits;
};

struct slots {
    struct model *model;
    const struct tok *tok;
    struct engine_limits limits;
    struct room room;
    struct engine_seq *seqs;   // (slots)
    struct engine_seq **order; // those that there are, in the order of admission
    int num_seqs;
    int depth; // steps under way at a time
    struct step steps[MAX_DEPTH];
    unsigned begun, ended; // steps
    // The lists of a step that is being written down, (slots), (spans), (outs) or (rows).
    struct sched_seq *plan;
    int *take;
    struct span *spans;
    struct sample_row *sample_rows;
    int32_t *row_tokens, *out_rows;
    void *raw;   // (V) logits as the backend stores them
    float *row;  // (V) the same in float
    float *kept; // (slots,V) logits of samplers whose logprobs are wanted; NULL until one is
    struct str piece;
};

// ---- memory ------------------------------------------------------------------------------------

// The lists on the host's side.
static void lists_free(struct slots *s) {
    void *all[] = {s->plan, s->take, s->spans, s->sample_rows, s->row_tokens, s->out_rows, s->kept};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    for (int i = 0; i < MAX_DEPTH; i++) {
        free(s->steps[i].readings);
        free(s->steps[i].samplers);
        free(s->steps[i].drawn);
    }
    s->kept = NULL;
}

static void lists_create(struct slots *s) {
    const size_t n = (size_t)s->room.slots;
    const struct room_limits l = room_limits(s->model->be, s->limits, s->room.slots);
    s->plan = mem_zero(n, sizeof *s->plan);
    s->take = mem_zero(n, sizeof *s->take);
    s->spans = mem_zero((size_t)l.spans, sizeof *s->spans);
    s->sample_rows = mem_zero((size_t)l.outs, sizeof *s->sample_rows);
    s->row_tokens = mem_zero((size_t)l.rows, sizeof *s->row_tokens);
    s->out_rows = mem_zero((size_t)l.outs, sizeof *s->out_rows);
    for (int i = 0; i < MAX_DEPTH; i++) {
        s->steps[i].readings = mem_zero(n, sizeof *s->steps[i].readings);
        s->steps[i].samplers = mem_zero(n, sizeof(struct engine_seq *));
        s->steps[i].drawn = mem_zero((size_t)l.outs, sizeof *s->steps[i].drawn);
    }
}

static void seqs_create(struct engine_seq **seqs, struct engine_seq ***order, int slots) {
    *seqs = mem_zero((size_t)slots, sizeof **seqs);
    *order = mem_zero((size_t)slots, sizeof **order);
    for (int i = 0; i < slots; i++) (*seqs)[i].slot = i;
}

int slots_create(struct slots **out, struct model *m, const struct tok *tok,
                 struct engine_limits limits, int depth, struct error *err) {
    struct slots *s = mem_zero(1, sizeof *s);
    *s = (struct slots){.model = m, .tok = tok, .limits = limits};
    s->depth = depth ? depth : m->be->depth;
    assert(s->depth > 0 && s->depth <= MAX_DEPTH);
    if (room_create(&s->room, m, limits, limits.max_batch_size, err)) {
        free(s);
        return -1;
    }
    const size_t V = (size_t)m->dims.V;
    lists_create(s);
    seqs_create(&s->seqs, &s->order, s->room.slots);
    s->raw = mem_alloc(V * dtype_size(m->be->real));
    s->row = mem_alloc(V * sizeof *s->row);
    str_init(&s->piece, TOK_MAX_BYTES * 4);
    *out = s;
    return 0;
}

void slots_destroy(struct slots *s) {
    if (!s) return;
    for (int i = 0; i < s->num_seqs; i++) stop_destroy(s->order[i]->stop);
    room_free(&s->room);
    lists_free(s);
    str_free(&s->piece);
    free(s->seqs);
    free(s->order);
    free(s->raw);
    free(s->row);
    free(s);
}

int slots_resize(struct slots *s, struct engine_limits limits, struct error *err) {
    const struct backend *be = s->model->be;
    const int slots = limits.max_batch_size > s->num_seqs ? limits.max_batch_size : s->num_seqs;
    struct engine_seq *seqs, **order;
    struct room room;
    assert(s->begun == s->ended);
    if (room_create(&room, s->model, limits, slots, err)) return -1;
    room_begin(&s->room);
    seqs_create(&seqs, &order, slots);
    for (int i = 0; i < s->num_seqs; i++) {
        const struct engine_seq *from = s->order[i];
        room_move(&room, i, &s->room, from->slot, from->job);
        seqs[i] = *from;
        seqs[i].slot = i;
        order[i] = seqs[i].job->seq = &seqs[i];
    }
    const int rc = be->class->sync(s->model->be, err);
    room_free(&s->room);
    lists_free(s);
    free(s->seqs);
    free(s->order);
    s->room = room;
    s->seqs = seqs;
    s->order = order;
    s->limits = limits;
    lists_create(s);
    return rc;
}

// ---- sequences ---------------------------------------------------------------------------------

int slots_used(const struct slots *s) {
    return s->num_seqs;
}

int slots_parked(const struct slots *s) {
    int n = 0;
    for (int i = 0; i < s->num_seqs; i++) n += s->order[i]->parked;
    return n;
}

bool slots_full(const struct slots *s) {
    return s->num_seqs >= s->limits.max_batch_size;
}

struct engine_seq *slots_any(const struct slots *s) {
    return s->num_seqs ? s->order[0] : NULL;
}

void slots_admit(struct slots *s, struct engine_job *job) {
    assert(!slots_full(s));
    int slot = 0;
    while (s->seqs[slot].job) slot++;
    struct engine_seq *seq = s->order[s->num_seqs++] = &s->seqs[slot];
    *seq = (struct engine_seq){.job = job, .slot = slot};
    if (job->num_stops) seq->stop = stop_create(job->stops, job->num_stops);
    job->seq = seq;
    str_clear(&s->piece);
    utf8_feed(&seq->utf8, job->held, (size_t)job->num_held, &s->piece); // emits nothing yet
    room_settle(&s->room, slot, job);
}

void slots_park(struct engine_seq *seq, bool parked) {
    seq->parked = parked;
}

// Takes the sequence out; the others move up and keep their order.
static void leave(struct slots *s, struct engine_seq *seq) {
    int at = 0;
    for (unsigned n = s->ended; n != s->begun; n++) {
        struct step *step = &s->steps[n % MAX_DEPTH];
        for (int i = 0; i < step->num_readings; i++)
            if (step->readings[i].seq == seq) step->readings[i].seq = NULL;
        for (int i = 0; i < step->num_samplers; i++)
            if (step->samplers[i] == seq) step->samplers[i] = NULL;
    }
    while (s->order[at] != seq) at++;
    s->num_seqs--;
    memmove(s->order + at, s->order + at + 1, (size_t)(s->num_seqs - at) * sizeof *s->order);
    stop_destroy(seq->stop);
    seq->job->seq = NULL;
    seq->job = NULL;
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

// ---- writing a step down -----------------------------------------------------------------------

static bool has_read(const struct engine_seq *seq) {
    return seq->read == seq->job->num_prompt;
}

// Whether what is under way is all of it, as far as can be known: no more rows for this one.
static bool asked_all(const struct slots *s, const struct engine_seq *seq) {
    const struct engine_job *job = seq->job;
    if (!has_read(seq)) return false;
    if (!job->max_tokens) return true;
    return seq->asked > seq->generated &&
           (seq->asked >= job->max_tokens ||
            job->num_prompt + seq->asked >= s->limits.max_context_len);
}

// How many tokens each sequence has in the next step. Returns the sum.
static int plan(struct slots *s) {
    for (int i = 0; i < s->num_seqs; i++) {
        const struct engine_seq *seq = s->order[i];
        s->plan[i] = (struct sched_seq){.read = seq->read,
                                        .prompt = seq->job->num_prompt,
                                        .parked = seq->parked || asked_all(s, seq),
                                        .all_logits = seq->job->prompt_logprobs};
    }
    const struct sched_limits limits = {room_paragraph(s->model->be, s->limits), SCHED_CELL,
                                        s->limits.decode_first};
    return sched_plan(s->take, s->plan, s->num_seqs, limits);
}

// Logprobs are made by the host, of whole rows of logits that it reads before they are sampled from
// and after: such a step has nothing beside it. Biases and penalties are the device's.
static bool wants_host(const struct slots *s) {
    for (int i = 0; i < s->num_seqs; i++) {
        const struct engine_job *job = s->order[i]->job;
        if (s->take[i] && (job->top >= 0 || job->prompt_logprobs)) return true;
    }
    return false;
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
        .slot = room_penalises(j) ? seq->slot : -1,
        .num_bias = j->num_bias,
        .bias_slot = seq->slot,
        .seed = j->seed,
        .position = (uint64_t)(j->num_prompt + seq->asked),
    };
}

// One step's lists while they fill.
struct lists {
    int rows, spans, outs;
    int samples; // of outs: the first ones
};

// The tokens that the next rows hold: of the prompt, the last one that came, or the one that the
// step under way draws, which only the device will know in time.
static void put_tokens(struct slots *s, struct lists *l, const struct engine_seq *seq, int len) {
    const struct engine_job *job = seq->job;
    int32_t *to = s->row_tokens + l->rows;
    if (!has_read(seq))
        memcpy(to, job->prompt + seq->read, (size_t)len * sizeof *to);
    else
        *to = seq->asked == seq->generated ? seq->last : -1 - seq->drawn_at;
}

// A sequence's rows.
static void put_rows(struct slots *s, struct lists *l, struct step *step, struct engine_seq *seq,
                     int len) {
    const struct engine_job *job = seq->job;
    const bool reads = !has_read(seq);
    const int pos = reads ? seq->read : job->num_prompt + seq->asked - 1;
    assert(seq->asked - seq->generated <= (s->begun != s->ended));
    s->spans[l->spans++] =
        (struct span){.first = l->rows, .len = len, .slot = seq->slot, .pos = pos};
    put_tokens(s, l, seq, len);
    l->rows += len;
    if (reads) {
        step->readings[step->num_readings++] =
            (struct reading){.seq = seq, .from = seq->read, .len = len, .first = l->rows - len};
        seq->read += len;
    }
    if (!has_read(seq) || !job->max_tokens) return;
    s->sample_rows[l->outs] = sample_row_of(seq);
    s->out_rows[l->outs] = l->rows - 1;
    step->samplers[step->num_samplers++] = seq;
    seq->drawn_at = l->outs++;
    seq->asked++;
}

// Rows of nobody, in the slot that is nobody's, in spans of `len`, and their logits, up to so many.
static void fill_up(struct slots *s, struct lists *l, int rows, int len, int outs) {
    for (; l->rows < rows; l->rows += len) {
        s->spans[l->spans++] = (struct span){.first = l->rows, .len = len, .slot = s->room.slots};
        memset(s->row_tokens + l->rows, 0, (size_t)len * sizeof *s->row_tokens);
    }
    for (; l->outs < outs; l->outs++) {
        s->sample_rows[l->outs] = (struct sample_row){.top_p = 1, .slot = -1};
        s->out_rows[l->outs] = 0;
    }
    l->samples = outs;
}

// Fills the lists from the plan, sequences of a single row at the end, where they are quickest.
// Rows of logits stand in this order: samplers, then prompts that want all their logits.
static void gather(struct slots *s, struct lists *l, struct step *step) {
    for (int i = 0; i < s->num_seqs; i++)
        if (s->take[i] > 1) put_rows(s, l, step, s->order[i], s->take[i]);
    for (int i = 0; i < s->num_seqs; i++)
        if (s->take[i] == 1) put_rows(s, l, step, s->order[i], 1);
    const int rows = batch_rows(s->model->be, l->rows), outs = batch_rows(s->model->be, l->outs);
    fill_up(s, l, rows, 1, outs);
    for (int i = 0; i < step->num_readings; i++) {
        struct reading *r = &step->readings[i];
        r->out = l->outs;
        if (!r->seq->job->prompt_logprobs) continue;
        for (int k = 0; k < r->len; k++) s->out_rows[l->outs++] = r->first + k;
    }
}

// A row of logits on the host.
static const float *fetch_row(struct slots *s, struct tensor logits, int out) {
    struct backend *be = s->model->be;
    be->class->download(be, s->raw, tensor_slice(logits, (size_t)out, 1));
    dtype_convert(s->row, DT_F32, s->raw, be->real, (size_t)s->model->dims.V);
    return s->row;
}

// Sampling leaves the logits changed: rows whose logprobs are wanted are kept before.
static void keep_rows(struct slots *s, const struct step *step) {
    const size_t V = (size_t)s->model->dims.V;
    for (int i = 0; i < step->num_samplers; i++) {
        if (step->samplers[i]->job->top < 0) continue;
        if (!s->kept) s->kept = mem_alloc((size_t)s->room.slots * V * sizeof *s->kept);
        memcpy(s->kept + (size_t)i * V, fetch_row(s, step->logits, i), V * sizeof *s->kept);
    }
}

static struct step *next_step(struct slots *s, int rows, bool alone) {
    struct step *step = &s->steps[s->begun % MAX_DEPTH];
    step->rows = rows;
    step->alone = alone;
    step->num_readings = step->num_samplers = 0;
    return step;
}

// Hands a step to the device.
static void launch(struct slots *s, struct step *step, const struct lists *l) {
    struct backend *be = s->model->be;
    struct room *room = &s->room;
    const size_t turn = s->begun % MAX_DEPTH, before = (turn + MAX_DEPTH - 1) % MAX_DEPTH;
    const size_t n = (size_t)l->samples;
    const struct tensor sample_rows = tensor_slice(room->rows, 0, n),
                        tokens = tensor_slice(tensor_at(room->tokens, turn), 0, n);
    room_begin(room);
    be->class->upload(be, sample_rows, s->sample_rows); // first: what follows is one list
    feed_set(room->feed, s->spans, l->spans, s->row_tokens, s->out_rows, l->outs, NULL);
    room->feed->drawn = tensor_at(room->tokens, before);
    step->logits = model_forward(s->model, room->run, room->feed, room->state);
    if (step->alone) keep_rows(s, step);
    if (n)
        op_sample(be, tokens, tensor_slice(step->logits, 0, n), sample_rows, room->penalties,
                  room->biases);
    be->class->fetch(be, step->drawn, tokens);
    s->begun++;
}

// Writes the next step down. Returns its rows; 0: there is none for now.
static int write_down(struct slots *s) {
    struct lists l = {0};
    const int rows = plan(s);
    const bool alone = rows && wants_host(s);
    const struct step *last = s->begun != s->ended ? &s->steps[(s->begun - 1) % MAX_DEPTH] : NULL;
    if (!rows || (last && (alone || last->alone))) return 0;
    struct step *step = next_step(s, rows, alone);
    gather(s, &l, step);
    launch(s, step, &l);
    return rows;
}

// ---- telling what came of it -------------------------------------------------------------------

// Of tokens from+1 .. from+len of the prompt, each from the row before it.
static void report_prompt(struct slots *s, const struct reading *r, struct tensor logits,
                          struct events *events) {
    const struct engine_job *job = r->seq->job;
    struct engine_event *event = &events->at[events->count - 1];
    event->of_prompt = true;
    for (int k = 0; k < r->len && r->from + k + 1 < job->num_prompt; k++) {
        logprob_row(events_add_probs(events, (size_t)logprob_count(job)),
                    fetch_row(s, logits, r->out + k), s->model->dims.V,
                    job->prompt[r->from + k + 1], job);
        event->num_logprobs++;
    }
}

// Part of a prompt was read.
static void advance_prompt(struct slots *s, const struct reading *r, struct tensor logits,
                           struct events *events) {
    struct engine_seq *seq = r->seq;
    struct engine_event *event = events_add(events, seq->job);
    event->prompt_tokens = r->len;
    if (seq->job->prompt_logprobs) report_prompt(s, r, logits, events);
    seq->finished = r->from + r->len == seq->job->num_prompt && !seq->job->max_tokens;
    event->finish = seq->finished ? ENGINE_LENGTH : ENGINE_NOT_YET;
    if (seq->finished) end_text(s, seq, events);
    events_end_text(events);
}

static enum engine_finish finish_of(const struct slots *s, const struct engine_seq *seq,
                                    int32_t token, bool stopped) {
    const struct engine_job *job = seq->job;
    if (stopped || (token == 0 && !job->ignore_end)) return ENGINE_STOP;
    const bool full = job->num_prompt + seq->generated >= s->limits.max_context_len;
    return seq->generated >= job->max_tokens || full ? ENGINE_LENGTH : ENGINE_NOT_YET;
}

// A token came: its text and its event. logits: the row it was drawn from, if that was kept.
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

// Waits for the oldest step under way. What it brought becomes events; those that are done go.
static int collect(struct slots *s, struct events *out, struct error *err) {
    struct backend *be = s->model->be;
    const struct step *step = &s->steps[s->ended % MAX_DEPTH];
    const size_t V = (size_t)s->model->dims.V;
    s->ended++;
    if (be->class->fetched(be, err)) {
        struct error again; // of those behind it
        for (; s->ended != s->begun; s->ended++) be->class->fetched(be, &again);
        return -1;
    }
    for (int i = 0; i < step->num_readings; i++)
        if (step->readings[i].seq) advance_prompt(s, &step->readings[i], step->logits, out);
    for (int i = 0; i < step->num_samplers; i++)
        if (step->samplers[i])
            advance(s, step->samplers[i], step->drawn[i], s->kept ? s->kept + (size_t)i * V : NULL,
                    out);
    for (int i = s->num_seqs; i-- > 0;)
        if (s->order[i]->finished) leave(s, s->order[i]);
    return step->rows;
}

int slots_step(struct slots *s, struct events *out, struct error *err) {
    while ((int)(s->begun - s->ended) < s->depth && write_down(s)) continue;
    return s->begun != s->ended ? collect(s, out, err) : 0;
}

int slots_settle(struct slots *s, struct events *out, struct error *err) {
    while (s->begun != s->ended)
        if (collect(s, out, err) < 0) return -1;
    return 0;
}

int slots_warm(struct slots *s, struct error *err) {
    enum { MOST = 2048, TIMES = 2 * MAX_DEPTH }; // in each turn twice: a graph is what comes again
    const struct backend *be = s->model->be;
    const struct room_limits most = room_limits(be, s->limits, s->room.slots);
    if (!be->class->round_rows) return 0;
    for (int n = 1; n <= MOST && n <= most.rows; n = batch_rows(be, n + 1)) {
        const bool single = n <= batch_rows(be, s->room.slots);
        for (int i = 0; i < (single ? TIMES : 2); i++) {
            struct lists l = {0};
            if (!single) fill_up(s, &l, n - 2 * i, n - 2 * i, 1); // then some rows that write
            fill_up(s, &l, n, 1, single ? n : 1);
            launch(s, next_step(s, n, false), &l);
            if (slots_settle(s, NULL, err)) return -1; // nobody's tokens make no events
        }
    }
    return 0;
}
