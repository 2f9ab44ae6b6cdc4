// Who does what in decode.cu: a model's matrices are cut into slices of outputs, dealt to as many
// blocks as there are multiprocessors so that at every step each has as much to do as the others,
// and over all steps as much to read. Made once for a model; a step only says where its rows are.
#include "backend/cuda/internal.h"

#include "backend/decoder.h"
#include "base/error.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD = 64, LEAST_SLOTS = 4 };
enum { DENSE = 1024 }; // channels up to which all of ffn.value is read

struct cuda_decoder {
    struct decoder base;
    struct buffer *memory;
    struct tensor words, turns;  // all that blocks hand to each other
    struct decode_args args;     // what all steps have in common
    struct decode_block *blocks; // (grid) host
    struct tensor dealt;         // the same in the device
    int most[DP_COUNT], planes;  // pieces of a part, mixes that a block has at most
    unsigned steps;
};

static struct cuda_decoder *mine(struct decoder *d) {
    return (struct cuda_decoder *)(void *)d;
}

// ---- whether -----------------------------------------------------------------------------------

static bool is_plain(const struct weight *w, size_t K, size_t O) {
    return w && w->in == K && w->out == O && !w->trained && w->precision.stored == DT_BF16 &&
           w->precision.inputs == DT_BF16 && ((const struct cuda_weight *)w)->data;
}

static bool lies_well(struct tensor t) {
    return tensor_is(t) && t.dtype == DT_F32 && (uintptr_t)dev(t) % 16 == 0;
}

enum { VECTORS = 8 };
static void vectors_of(struct tensor (*out)[VECTORS], const struct decoder_layer *l) {
    const struct tensor all[VECTORS] = {l->ln1_w, l->ln1_b,   l->ln2_w,    l->ln2_b,
                                        l->mix,   l->ffn_mix, l->key_vecs, l->read_vecs};
    memcpy(*out, all, sizeof all);
}

// A layer's vectors lie where the first one's do, so many layers further on: an address has not to
// be looked up before a number can be asked for.
static bool vectors_fit(const struct decoder_parts *p, int layer, size_t *stride) {
    struct tensor first[VECTORS], these[VECTORS];
    vectors_of(&first, &p->layers[0]);
    vectors_of(&these, &p->layers[layer]);
    bool fit = true;
    for (int i = 0; i < VECTORS; i++) {
        fit &= lies_well(these[i]) && these[i].buf == first[i].buf;
        if (layer == 1 && i == 0) *stride = these[i].offset - first[i].offset;
        fit &= these[i].offset == first[i].offset + (size_t)layer * *stride;
    }
    return fit;
}

static bool layer_fits(const struct decoder_layer *l, const struct decoder_layer *like, bool first,
                       size_t C) {
    bool fits =
        is_plain(l->output, C, C) && is_plain(l->key, C, 4 * C) && is_plain(l->value, 4 * C, C);
    for (int i = 0; i < RKV_COUNT; i++) fits &= is_plain(l->rkv[i], C, C);
    for (int i = 0; i < LORA_COUNT; i++) {
        const size_t rank = like->lora1[i] ? like->lora1[i]->out : 0;
        if (first && i == LORA_V) continue;
        fits &= rank && rank % 16 == 0 && rank <= DECODE_WIDEST && is_plain(l->lora1[i], C, rank) &&
                is_plain(l->lora2[i], rank, C);
    }
    return fits;
}

static bool model_fits(const struct decoder_parts *p, size_t *stride) {
    const size_t C = (size_t)p->H * HEAD, V = p->embedding.dim[0];
    const struct decoder_layer *last = &p->layers[p->L - 1];
    // A model of one layer has not all LoRAs.
    bool fits = p->L > 1 && p->embedding.dim[1] == C && C <= DECODE_WIDEST &&
                p->embedding.dtype == DT_BF16 && is_plain(p->head, C, V) && lies_well(p->ln0_w) &&
                lies_well(p->ln0_b) && lies_well(p->out_w) && lies_well(p->out_b);
    for (int i = 0; i < p->L && fits; i++)
        fits = layer_fits(&p->layers[i], last, i == 0, C) && vectors_fit(p, i, stride);
    return fits;
}

// ---- dealing -----------------------------------------------------------------------------------

static int slices(int outputs, int width) {
    return (outputs + width - 1) / width;
}

static int outputs_of(const struct decode_args *a, int matrix) {
    static const int lora[DM_MIXED] = {
        [DM_V1] = LORA_V, [DM_W1] = LORA_W, [DM_A1] = LORA_A, [DM_G1] = LORA_G};
    return matrix <= DM_V ? a->C : a->rank[lora[matrix]];
}

static int pieces_of(const struct decode_args *a, enum decode_part part, int width) {
    int n = 0;
    switch (part) {
    case DP_PROJECT:
        for (int m = 0; m < DM_MIXED; m++) n += slices(outputs_of(a, m), width);
        return n;
    case DP_RECALL: return a->H;
    case DP_STREAM: return slices(a->C, width);
    case DP_EXPAND: return slices(4 * a->C, width);
    default: return slices(a->V, width);
    }
}

// Wide slices are read in larger pieces; narrow ones where they leave a quarter less to the block
// that has most.
static int width_of(const struct decode_args *a, enum decode_part part) {
    const int wide = slices(pieces_of(a, part, 32), a->grid) * 32,
              narrow = slices(pieces_of(a, part, 16), a->grid) * 16;
    if (part == DP_STREAM && a->lists) return 16; // as listed.cu has it
    return part != DP_LOGITS && 4 * narrow <= 3 * wide ? 16 : 32;
}

// Whether block b is to have a piece rather than another one: heads wait for the projections of all
// blocks, and all blocks for heads, so these go to who has least to project; other pieces to who
// has read least so far.
static bool is_freer(const struct decode_block *blocks, const size_t *load, enum decode_part part,
                     int b, int other) {
    const int more = blocks[b].count[DP_PROJECT] - blocks[other].count[DP_PROJECT];
    return part == DP_RECALL && more ? more < 0 : load[b] < load[other];
}

// n pieces of so many bytes; each block's are neighbours.
static void deal(struct decode_block *blocks, size_t *load, int grid, enum decode_part part, int n,
                 size_t bytes) {
    for (int b = 0; b < grid; b++) {
        blocks[b].count[part] = n / grid;
        load[b] += (size_t)(n / grid) * bytes;
    }
    for (int i = 0; i < n % grid; i++) {
        int freest = -1;
        for (int b = 0; b < grid; b++)
            if (blocks[b].count[part] == n / grid &&
                (freest < 0 || is_freer(blocks, load, part, b, freest)))
                freest = b;
        blocks[freest].count[part]++;
        load[freest] += bytes;
    }
    for (int b = 0, at = 0; b < grid; at += blocks[b++].count[part]) blocks[b].first[part] = at;
}

// The mixes that a block's slices read. False: too many.
static bool find_planes(const struct decode_args *a, struct decode_block *b) {
    static const uint8_t mix[DM_MIXED] = {
        [DM_R] = MIX_R,  [DM_K] = MIX_K,  [DM_V] = MIX_V, [DM_V1] = MIX_V,
        [DM_W1] = MIX_W, [DM_A1] = MIX_A, [DM_G1] = MIX_G};
    const int first = b->first[DP_PROJECT], end = first + b->count[DP_PROJECT];
    for (int m = 0; m < DM_MIXED; m++) {
        if (a->first_slice[m] >= end || a->first_slice[m + 1] <= first) continue;
        int plane = 0;
        while (plane < b->planes && b->mix[plane] != mix[m]) plane++;
        if (plane == DECODE_PLANES) return false;
        if (plane == b->planes) b->mix[b->planes++] = mix[m];
        b->plane_of[m] = (uint8_t)plane;
    }
    return true;
}

// All parts, those first that leave least choice: in each step a block has one piece or none of
// small models, so blocks with the stream have little else.
static bool deal_all(struct cuda_decoder *d) {
    struct decode_args *a = &d->args;
    struct decode_block *blocks = d->blocks;
    const size_t C = (size_t)a->C;
    size_t *load = mem_zero((size_t)a->grid, sizeof *load);
    const size_t bytes[DP_COUNT] = {[DP_PROJECT] = 2 * C * (size_t)a->width[DP_PROJECT],
                                    [DP_RECALL] = 2 * HEAD * ((size_t)a->ranks + 2 * HEAD),
                                    [DP_STREAM] = 2 * 5 * C * (size_t)a->width[DP_STREAM],
                                    [DP_EXPAND] = 2 * C * (size_t)a->width[DP_EXPAND],
                                    [DP_LOGITS] = 0};
    static const enum decode_part order[DP_COUNT] = {DP_STREAM, DP_EXPAND, DP_PROJECT, DP_RECALL,
                                                     DP_LOGITS};
    for (int i = 0; i < DP_COUNT; i++)
        deal(blocks, load, a->grid, order[i], pieces_of(a, order[i], a->width[order[i]]),
             bytes[order[i]]);
    free(load);
    for (int b = 0; b < a->grid; b++) {
        if (!find_planes(a, &blocks[b])) return false;
        if (blocks[b].planes > d->planes) d->planes = blocks[b].planes;
        for (int i = 0; i < DP_COUNT; i++)
            if (blocks[b].count[i] > d->most[i]) d->most[i] = blocks[b].count[i];
    }
    static const enum decode_part norms[2] = {DP_PROJECT, DP_EXPAND};
    for (int i = 0; i < 2; i++) {
        int b = 0;
        while (!blocks[b].count[norms[i]]) b++;
        blocks[b].writes[i] = 1;
    }
    return true;
}

// Slots that a block fills in a layer, at most.
static int layer_slots(const struct cuda_decoder *d) {
    const struct decode_args *a = &d->args;
    int most = 0;
    for (int b = 0; b < a->grid; b++) {
        const int32_t *count = d->blocks[b].count;
        int slots = 0;
        for (int w = 0; w < DW_LOGITS; w++) {
            const struct decode_job *j = &a->jobs[w];
            if (w == DW_RECALL)
                slots += count[j->part] * ((a->ranks + LORA_SLOT - 1) / LORA_SLOT + 1);
            else if (w != DW_VALUE || !a->lists)
                slots += count[j->part] * ((j->len + j->step - 1) / j->step);
        }
        if (slots > most) most = slots;
    }
    return most;
}

// As many as the memory wants for an answer after 0.8 us, 3.3 TB/s: two of each of 132
// multiprocessors are more. What is asked for beyond that waits in line, and what blocks hand to
// each other waits behind it. Where the ring has room for a layer, what is waited for are other
// blocks, not the memory.
static int flight_of(const struct cuda_decoder *d) {
    return layer_slots(d) > d->args.slots ? 2 : 1;
}

// ---- tables ------------------------------------------------------------------------------------

static const uint16_t *data_of(const struct weight *w) {
    return w ? ((const struct cuda_weight *)w)->data : NULL;
}

// Whether slots of the ring can be copied out of w. Whole lines make 0.1b and 0.4b 5 and 3 % faster
// on an H100, and 1.5b 2 % slower.
static bool map_slices(const struct decode_args *a, struct decode_maps *to, const struct weight *w,
                       enum decode_work work) {
    const struct decode_job *j = &a->jobs[work];
    const bool lines = a->C <= DENSE;
    const struct matrix *m = &((const struct cuda_weight *)w)->m;
    const size_t len = (size_t)j->len, pitch = m->sk * sizeof(uint16_t);
    const unsigned width = (unsigned)j->width, box = (unsigned)j->step;
    const uint16_t *data = data_of(w), *rest = data + (size_t)j->whole * len * m->sk;
    return (!j->whole || tile_map_stretches(&to->whole, data, (size_t)j->whole, len, m->sk, pitch,
                                            box, width, lines)) &&
           (!j->rest || tile_map_stretches(&to->rest, rest, 1, w->in - (size_t)j->whole * len,
                                           m->sk, pitch, box, width, lines));
}

static bool map_lora(struct decode_maps *to, const struct weight *w) {
    const size_t pitch = ((const struct cuda_weight *)w)->m.sk * sizeof(uint16_t);
    return tile_map_make(&to->whole, data_of(w), w->in, w->out, pitch, 16);
}

static bool map_layer(const struct decode_args *a, struct decode_maps *to,
                      const struct decoder_layer *l) {
    const struct weight *const mixed[DM_MIXED] = {
        [DM_R] = l->rkv[RKV_R],     [DM_K] = l->rkv[RKV_K],     [DM_V] = l->rkv[RKV_V],
        [DM_V1] = l->lora1[LORA_V], [DM_W1] = l->lora1[LORA_W], [DM_A1] = l->lora1[LORA_A],
        [DM_G1] = l->lora1[LORA_G]};
    bool can = map_slices(a, &to[DM_OUTPUT], l->output, DW_OUTPUT) &&
               map_slices(a, &to[DM_KEY], l->key, DW_EXPAND) &&
               map_slices(a, &to[DM_VALUE], l->value, DW_VALUE);
    for (int i = 0; i < DM_MIXED && can; i++)
        can = !mixed[i] || map_slices(a, &to[i], mixed[i], DW_PROJECT);
    for (int i = 0; i < LORA_COUNT && can; i++)
        can = !l->lora2[i] || map_lora(&to[DM_W2 + i], l->lora2[i]);
    return can;
}

// (L,DM_COUNT) and the head's; NULL if one cannot be described.
static struct decode_maps *map_all(const struct decode_args *a, const struct decoder_parts *p) {
    struct decode_maps *maps = mem_zero((size_t)p->L * DM_COUNT + 1, sizeof *maps);
    bool can = map_slices(a, &maps[p->L * DM_COUNT], p->head, DW_LOGITS);
    for (int i = 0; i < p->L && can; i++) can = map_layer(a, &maps[i * DM_COUNT], &p->layers[i]);
    if (can) return maps;
    free(maps);
    return NULL;
}

static void describe_jobs(struct decode_args *a, const struct decoder_parts *p) {
    const struct decoder_layer *l = &p->layers[0];
    const int C = a->C;
    const struct decode_job jobs[DW_COUNT] = {
        [DW_PROJECT] = {.part = DP_PROJECT,
                        .matrix = DM_R,
                        .K = C,
                        .w = dev(l->ln1_w),
                        .b = dev(l->ln1_b),
                        .mix = dev(l->mix)},
        [DW_RECALL] = {.part = DP_RECALL, .matrix = DM_W2, .K = a->ranks},
        [DW_OUTPUT] = {.part = DP_STREAM, .matrix = DM_OUTPUT, .K = C},
        [DW_EXPAND] = {.part = DP_EXPAND,
                       .matrix = DM_KEY,
                       .K = C,
                       .w = dev(l->ln2_w),
                       .b = dev(l->ln2_b),
                       .mix = dev(l->ffn_mix)},
        [DW_VALUE] = {.part = DP_STREAM, .matrix = DM_VALUE, .K = 4 * C},
        [DW_LOGITS] =
            {.part = DP_LOGITS, .matrix = DM_R, .K = C, .w = dev(p->out_w), .b = dev(p->out_b)},
        [DW_BEGIN] = {
            .part = DP_STREAM, .matrix = DM_R, .K = C, .w = dev(p->ln0_w), .b = dev(p->ln0_b)}};
    for (int i = 0; i < DW_COUNT; i++) {
        a->jobs[i] = jobs[i];
        a->jobs[i].len = k_decode_stretch(jobs[i].K);
        a->jobs[i].width = a->width[jobs[i].part];
        a->jobs[i].step = a->jobs[i].width == 32 ? 16 : 32;
        a->jobs[i].whole = jobs[i].K / a->jobs[i].len;
        a->jobs[i].rest = jobs[i].K % a->jobs[i].len != 0;
    }
}

// Sizes: the last layer has all matrices.
static void describe_model(struct cuda_decoder *d, const struct decoder_parts *p, size_t stride,
                           int blocks) {
    struct decode_args *a = &d->args;
    a->key_vecs = dev(p->layers[0].key_vecs);
    a->read_vecs = dev(p->layers[0].read_vecs);
    a->layer_stride = stride / sizeof(float);
    const struct decoder_layer *l = &p->layers[p->L - 1];
    a->L = p->L;
    a->H = p->H;
    a->C = p->H * HEAD;
    a->V = (int)p->embedding.dim[0];
    a->grid = blocks;
    a->eps = (float)p->eps;
    a->embedding = dev(p->embedding);
    a->value_pitch = (int)((const struct cuda_weight *)l->value)->m.sk;
    for (int i = 0; i < LORA_COUNT; i++) {
        a->rank[i] = (int)l->lora1[i]->out;
        a->rank_from[i] = a->ranks;
        a->ranks += a->rank[i];
    }
    for (int i = 0; i < DP_COUNT; i++) a->width[i] = width_of(a, (enum decode_part)i);
    describe_jobs(a, p);
    for (int m = 0; m < DM_MIXED; m++)
        a->first_slice[m + 1] = a->first_slice[m] + slices(outputs_of(a, m), a->width[DP_PROJECT]);
}

static struct tensor numbers(struct carver *c, enum dtype t, size_t n) {
    return carve(c, t, 1, &n);
}

// Where everything lies; the tables go to the device.
static void lay_out(struct cuda_decoder *d, struct carver *c, const struct decoder_parts *p,
                    const struct decode_maps *maps) {
    struct decode_args *a = &d->args;
    const size_t C = (size_t)a->C, grid = (size_t)a->grid, L = (size_t)p->L;
    const struct tensor mapped = numbers(c, DT_U8, (L * DM_COUNT + 1) * sizeof *maps);
    const struct tensor values = numbers(c, DT_U8, L * sizeof(uint16_t *));
    d->dealt = numbers(c, DT_U8, grid * sizeof(struct decode_block));
    d->turns = numbers(c, DT_I32, grid);
    const size_t parts[] = {C, RKV_COUNT * C, (size_t)a->ranks / 2, C / 2, 2 * C};
    uint64_t **const to[] = {&a->x, &a->rkv, &a->hidden, &a->o, &a->h};
    size_t words = 0;
    for (int i = 0; i < 5; i++) words += (parts[i] + 15) / 16 * 16;
    d->words = numbers(c, DT_I64, words);
    if (!c->buf) return;
    uint64_t *at = dev(d->words);
    for (int i = 0; i < 5; i++) {
        *to[i] = at;
        at += (parts[i] + 15) / 16 * 16;
    }
    a->maps = dev(mapped);
    a->values = dev(values);
    a->blocks = dev(d->dealt);
    a->turns = dev(d->turns);
    const uint16_t **table = mem_zero(L, sizeof *table);
    for (size_t i = 0; i < L; i++) table[i] = data_of(p->layers[i].value);
    const struct backend_class *class = d->base.be->class;
    class->upload(d->base.be, mapped, maps);
    class->upload(d->base.be, values, table);
    class->upload(d->base.be, d->dealt, d->blocks);
    free(table);
}

// ---- doors -------------------------------------------------------------------------------------

void cuda_decoder_destroy(struct decoder *base) {
    struct cuda_decoder *d = mine(base);
    if (!d) return;
    buffer_destroy(d->memory);
    free(d->blocks);
    free(d);
}

int cuda_decoder_create(struct decoder **out, struct backend *be, const struct decoder_parts *p,
                        struct error *err) {
    struct cuda *c = cuda_of(be);
    *out = NULL;
    size_t stride = 0; // bytes
    if (!c->tiles || !c->token || !model_fits(p, &stride) || cuda_enter(c) != cudaSuccess) return 0;
    const int blocks = k_decode_blocks(c->id);
    if (!blocks) return 0;
    int rc = 0;
    struct decode_maps *maps = NULL;
    struct cuda_decoder *d = mem_zero(1, sizeof *d);
    d->base.be = be;
    d->args.lists = c->lt && (p->H * HEAD > DENSE || !c->listed_from);
    describe_model(d, p, stride, blocks);
    d->blocks = mem_zero((size_t)d->args.grid, sizeof *d->blocks);
    if (!deal_all(d)) goto out;
    k_decode_lay_out(&d->args, d->most, d->planes);
    if (d->args.slots < LEAST_SLOTS || !(maps = map_all(&d->args, p))) goto out;
    d->args.flight = flight_of(d);
    struct carver plan = {0};
    lay_out(d, &plan, p, maps);
    rc = -1;
    if (!(d->memory = buffer_create(be, plan.used, err))) goto out;
    lay_out(d, &(struct carver){.buf = d->memory}, p, maps);
    free(maps);
    *out = &d->base;
    return 0;
out:
    free(maps);
    cuda_decoder_destroy(&d->base);
    return rc;
}

void cuda_decode(struct decoder *base, const struct decode *s) {
    struct cuda_decoder *d = mine(base);
    struct decode_args a = d->args;
    a.token = dev(s->token);
    a.drawn = dev(s->drawn);
    a.num_drawn = tensor_is(s->drawn) ? (int)s->drawn.dim[0] : 0;
    a.slot = dev(s->slot);
    a.shift = dev(s->shift);
    a.wkv = dev(s->wkv);
    a.logits = dev(s->logits);
    a.S = (int)s->shift.dim[2];
    a.norm_stride = s->shift.dim[2] * s->shift.dim[3];
    a.half = s->wkv.dtype == DT_F16;
    struct queue *q = queue_of(base->be);
    queue_few(q, true);
    // Tags are 32 bits: before they come again, none is left.
    if (++d->steps > UINT32_MAX / (2 * (unsigned)a.L + 2)) {
        const uint64_t nothing = 0;
        k_fill(q, dev(d->words), &nothing, 8, tensor_count(d->words));
        k_fill(q, dev(d->turns), &nothing, 4, tensor_count(d->turns));
        d->steps = 1;
    }
    k_decode(q, &a);
}
