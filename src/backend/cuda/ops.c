// The table of ops: tensors to addresses and counts. Shapes were checked by the callers in ops.h.
#include "backend/ops.h"

#include "backend/cuda/internal.h"
#include "backend/dtype.h"

static bool narrow(struct tensor t) {
    return t.dtype == DT_BF16;
}

// ---- rows --------------------------------------------------------------------------------------

static void cuda_embed(struct backend *be, struct tensor y, struct tensor tokens,
                       struct tensor drawn, struct tensor table) {
    // A pass begins here, and has these rows to its end.
    queue_few(cuda_of(be)->queue, y.dim[0] <= SKINNY_ROWS);
    k_embed(queue_of(be), dev(y), dev(tokens), dev(drawn), drawn.dim[0], dev(table),
            (int)table.dtype, y.dim[0], y.dim[1], table.dim[0]);
}

static void cuda_embed_bwd(struct backend *be, struct tensor dtable, struct tensor dy,
                           struct tensor tokens, struct tensor order) {
    const size_t R = dy.dim[0], C = dy.dim[1];
    float *part = cuda_scratch(cuda_of(be), k_embed_strips(R) * C * sizeof *part);
    if (part)
        k_embed_bwd(queue_of(be), dev(dtable), dev(dy), dev(tokens), dev(order), part, R, C,
                    dtable.dim[0]);
}

static void cuda_gather_rows(struct backend *be, struct tensor y, struct tensor x,
                             struct tensor rows) {
    k_gather_rows(queue_of(be), dev(y), dev(x), dev(rows), y.dim[0], x.dim[1]);
}

static void cuda_norm(struct backend *be, struct tensor y, struct tensor x, struct tensor w,
                      struct tensor b, double eps) {
    k_norm(queue_of(be), dev(y), narrow(y), dev(x), dev(w), dev(b), x.dim[0], x.dim[1], (float)eps);
}

static void cuda_norm_bwd(struct backend *be, struct tensor dx, struct tensor dw, struct tensor db,
                          struct tensor dy, struct tensor x, struct tensor w, double eps,
                          struct tensor add) {
    const size_t R = x.dim[0], C = x.dim[1];
    float *part = sums_take(cuda_of(be), k_parts(R) * 2 * C + 2 * R);
    if (!part) return;
    k_norm_bwd(queue_passing(be), dev(dx), dev(dy), dev(x), dev(w), dev(add), part, R, C,
               (float)eps);
    sums_add(cuda_of(be), (struct part_sums){{dev(dw), dev(db)}, {C, C}, part, k_parts(R)});
}

static void cuda_shift_mix(struct backend *be, struct tensor m, struct tensor shift_out,
                           struct tensor z, struct tensor shift_in, struct tensor mix,
                           const struct batch *b) {
    k_shift_mix(queue_of(be), dev(m), narrow(m), dev(shift_out), dev(z), dev(shift_in), dev(mix),
                dev(b->prev), dev(b->last), mix.dim[0], z.dim[0], z.dim[1], b->spans == b->rows);
}

static void cuda_shift_mix_bwd(struct backend *be, struct tensor dz, struct tensor dmix,
                               struct tensor dm, struct tensor z, struct tensor shift_in,
                               struct tensor mix, const struct batch *b) {
    const size_t n = mix.dim[0], R = z.dim[0], C = z.dim[1];
    float *part = sums_take(cuda_of(be), k_parts(R) * n * C);
    if (!part) return;
    k_shift_mix_bwd(queue_passing(be), dev(dz), dev(dm), narrow(dm), dev(z), dev(shift_in),
                    dev(mix), dev(b->prev), dev(b->last), part, n, R, C);
    sums_add(cuda_of(be), (struct part_sums){{dev(dmix)}, {n * C}, part, k_parts(R)});
}

static void cuda_act(struct backend *be, struct tensor y, struct tensor x, enum act f) {
    k_act(queue_of(be), dev(y), dev(x), false, tensor_count(x), (int)f);
}

static void cuda_act_bwd(struct backend *be, struct tensor dx, struct tensor dy, struct tensor y,
                         enum act f) {
    k_act_bwd(queue_passing(be), dev(dx), dev(dy), dev(y), narrow(y), tensor_count(y), (int)f);
}

// ---- time mix ----------------------------------------------------------------------------------

static void cuda_key_prep(struct backend *be, struct tensor u, struct tensor rkv,
                          struct tensor lora, struct tensor v_first, struct tensor vecs, int H) {
    k_key_prep(queue_of(be), &(struct key_args){.u = dev(u),
                                                .rkv = dev(rkv),
                                                .lora = dev(lora),
                                                .v_first = dev(v_first),
                                                .vecs = dev(vecs),
                                                .R = u.dim[1],
                                                .C = u.dim[2],
                                                .H = H,
                                                .narrow = narrow(u)});
}

static void cuda_key_prep_bwd(struct backend *be, struct tensor drkv, struct tensor dlora,
                              struct tensor dv_first, struct tensor dvecs, struct tensor du,
                              struct tensor rkv, struct tensor lora, struct tensor v_first,
                              struct tensor vecs, int H) {
    const size_t R = du.dim[1], C = du.dim[2];
    float *part = sums_take(cuda_of(be), k_parts(R) * KEY_COUNT * C);
    if (!part) return;
    k_key_prep_bwd(queue_passing(be), &(struct key_bwd_args){.drkv = dev(drkv),
                                                             .dlora = dev(dlora),
                                                             .dv_first = dev(dv_first),
                                                             .part = part,
                                                             .du = dev(du),
                                                             .rkv = dev(rkv),
                                                             .lora = dev(lora),
                                                             .v_first = dev(v_first),
                                                             .vecs = dev(vecs),
                                                             .R = R,
                                                             .C = C,
                                                             .H = H,
                                                             .narrow = narrow(du)});
    sums_add(cuda_of(be), (struct part_sums){{dev(dvecs)}, {KEY_COUNT * C}, part, k_parts(R)});
}

static struct wkv7_args wkv7_args(struct tensor r, struct tensor u, struct tensor saved,
                                  const struct batch *b, int H) {
    return (struct wkv7_args){.saved = dev(saved),
                              .r = dev(r),
                              .u = dev(u),
                              .span = dev(b->span),
                              .R = r.dim[0],
                              .C = r.dim[1],
                              .spans = b->spans,
                              .H = H,
                              .singles = b->singles,
                              .longest = b->longest,
                              .remainders = b->remainders,
                              .exact = b->exact,
                              .narrow = narrow(r)};
}

// Tensor cores take what lies at multiples of 16 bytes; buffers do, and slices of the model's.
static bool lies_well(const struct wkv7_args *a) {
    const uintptr_t all = (uintptr_t)a->y | (uintptr_t)a->r | (uintptr_t)a->u |
                          (uintptr_t)a->saved | (uintptr_t)a->dr | (uintptr_t)a->du |
                          (uintptr_t)a->dy | a->R * a->C * 2;
    return all % 16 == 0;
}

static bool give_carry(struct backend *be, struct wkv7_args *a) {
    a->exact |= !lies_well(a);
    const size_t n = k_wkv7_scratch(a);
    if (!n) return true;
    a->carry = cuda_scratch(cuda_of(be), n * sizeof *a->carry);
    return a->carry;
}

static void cuda_wkv7(struct backend *be, struct tensor y, struct tensor state_out,
                      struct tensor saved, struct tensor r, struct tensor u, struct tensor state_in,
                      const struct batch *b, int H) {
    struct wkv7_args a = wkv7_args(r, u, saved, b, H);
    a.y = dev(y);
    a.state_out = dev(state_out);
    a.state_in = dev(state_in);
    a.half = (tensor_is(state_in) ? state_in : state_out).dtype == DT_F16;
    if (give_carry(be, &a)) k_wkv7(queue_of(be), &a);
}

static void cuda_wkv7_bwd(struct backend *be, struct tensor dr, struct tensor du,
                          struct tensor dstate_in, struct tensor dy, struct tensor r,
                          struct tensor u, struct tensor saved, struct tensor dstate_out,
                          const struct batch *b, int H) {
    struct wkv7_args a = wkv7_args(r, u, saved, b, H);
    a.dr = dev(dr);
    a.du = dev(du);
    a.dstate_in = dev(dstate_in);
    a.dy = dev(dy);
    a.dstate_out = dev(dstate_out);
    if (give_carry(be, &a)) k_wkv7_bwd(queue_passing(be), &a);
}

static void cuda_readout(struct backend *be, struct tensor o, struct tensor y, struct tensor r,
                         struct tensor u, struct tensor g, struct tensor vecs, int H) {
    k_readout(queue_of(be), &(struct read_args){.o = dev(o),
                                                .y = dev(y),
                                                .r = dev(r),
                                                .u = dev(u),
                                                .g = dev(g),
                                                .vecs = dev(vecs),
                                                .R = y.dim[0],
                                                .C = y.dim[1],
                                                .H = H,
                                                .narrow = narrow(y)});
}

static void cuda_readout_bwd(struct backend *be, struct tensor dy, struct tensor dr,
                             struct tensor du, struct tensor dg, struct tensor dvecs,
                             struct tensor d_o, struct tensor y, struct tensor r, struct tensor u,
                             struct tensor g, struct tensor vecs, int H) {
    const size_t R = y.dim[0], C = y.dim[1];
    float *part = sums_take(cuda_of(be), k_parts(R) * READ_COUNT * C);
    if (!part) return;
    k_readout_bwd(queue_passing(be), &(struct read_bwd_args){.dy = dev(dy),
                                                             .dr = dev(dr),
                                                             .du = dev(du),
                                                             .dg = dev(dg),
                                                             .part = part,
                                                             .d_o = dev(d_o),
                                                             .y = dev(y),
                                                             .r = dev(r),
                                                             .u = dev(u),
                                                             .g = dev(g),
                                                             .vecs = dev(vecs),
                                                             .R = R,
                                                             .C = C,
                                                             .H = H,
                                                             .narrow = narrow(y)});
    sums_add(cuda_of(be), (struct part_sums){{dev(dvecs)}, {READ_COUNT * C}, part, k_parts(R)});
}

// ---- several ops as one ------------------------------------------------------------------------

static void cuda_norm_mix(struct backend *be, struct tensor m, struct tensor shift_out,
                          struct tensor z, struct tensor x, struct tensor w, struct tensor b,
                          double eps, struct tensor shift_in, struct tensor mix,
                          const struct batch *batch) {
    const struct mix_args p = {.m = dev(m),
                               .out = dev(shift_out),
                               .x = dev(x),
                               .w = dev(w),
                               .b = dev(b),
                               .in = dev(shift_in),
                               .mix = dev(mix),
                               .prev = dev(batch->prev),
                               .last = dev(batch->last),
                               .n = mix.dim[0],
                               .R = x.dim[0],
                               .C = x.dim[1],
                               .spans = batch->spans,
                               .eps = (float)eps,
                               .narrow = narrow(m)};
    // With a token of each sequence, kernels stay short however many there are.
    queue_few(cuda_of(be)->queue, batch->longest == 1 || x.dim[0] <= SKINNY_ROWS);
    if (k_norm_mix(queue_of(be), &p)) return;
    cuda_norm(be, z, x, w, b, eps);
    cuda_shift_mix(be, m, shift_out, z, shift_in, mix, batch);
}

static void cuda_norm_mix_bwd(struct backend *be, const struct norm_mix_bwd *t,
                              const struct batch *b) {
    const size_t n = t->mix.dim[0], R = t->x.dim[0], C = t->x.dim[1];
    float *part = sums_take(cuda_of(be), k_parts(R) * (n + 2) * C);
    if (!part) return;
    const struct mix_bwd_args p = {.dx = dev(t->dx),
                                   .rounded = dev(t->rounded),
                                   .dm = dev(t->dm),
                                   .x = dev(t->x),
                                   .w = dev(t->w),
                                   .b = dev(t->b),
                                   .mix = dev(t->mix),
                                   .in = dev(t->shift_in),
                                   .add = dev(t->add),
                                   .prev = dev(b->prev),
                                   .part = part,
                                   .n = n,
                                   .R = R,
                                   .C = C,
                                   .eps = (float)t->eps,
                                   .narrow = narrow(t->dm)};
    const bool fits = !tensor_is(t->rounded) || narrow(t->rounded);
    if (fits && k_norm_mix_bwd(queue_passing(be), &p))
        sums_add(cuda_of(be), (struct part_sums){{dev(t->dmix), dev(t->dw), dev(t->db)},
                                                 {n * C, C, C},
                                                 part,
                                                 k_parts(R)});
    else
        norm_mix_bwd_parts(be, t, b);
}

static void cuda_recall(struct backend *be, const struct recall *t, const struct batch *b, int H) {
    const struct recall_args p = {.o = dev(t->o),
                                  .v_out = dev(t->v_out),
                                  .state = dev(t->state),
                                  .rkv = dev(t->rkv),
                                  .lora = dev(t->lora),
                                  .v_first = dev(t->v_first),
                                  .key_vecs = dev(t->key_vecs),
                                  .read_vecs = dev(t->read_vecs),
                                  .span = dev(b->span),
                                  .R = t->rkv.dim[1],
                                  .C = t->rkv.dim[2],
                                  .H = H,
                                  .narrow = narrow(t->rkv),
                                  .half = t->state.dtype == DT_F16};
    const bool step = b->longest == 1 && tensor_is(t->state) && !tensor_is(t->saved);
    if (!step || !k_recall(queue_of(be), &p)) recall_parts(be, t, b, H);
}

// ---- loss and sampling -------------------------------------------------------------------------

static void cuda_xent(struct backend *be, struct tensor loss, struct tensor dlogits,
                      struct tensor logits, struct tensor target, float scale, bool l2wrap) {
    k_xent(queue_of(be), dev(loss), dev(dlogits), dev(logits), narrow(logits), dev(target),
           logits.dim[0], logits.dim[1], scale, l2wrap);
}

static void cuda_sample(struct backend *be, struct tensor token, struct tensor logits,
                        struct tensor rows, struct tensor penalties, struct tensor biases) {
    const size_t V = logits.dim[1];
    k_sample(queue_of(be), dev(token), dev(logits), dev(rows), dev(penalties),
             sample_penalty_bytes(V), dev(biases), biases.dim[1], logits.dim[0], V);
}

// ---- optimizer and memory ----------------------------------------------------------------------

static void cuda_sum(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    k_sum(queue_of(be), dev(sum), dev(x), tensor_count(x), more);
}

static void cuda_sumsq(struct backend *be, struct tensor sum, struct tensor x, bool more) {
    double *part = cuda_scratch(cuda_of(be), SUM_PARTS * sizeof *part);
    if (part) k_sumsq(queue_of(be), dev(sum), dev(x), tensor_count(x), more, part);
}

static void cuda_adamw(struct backend *be, const struct adamw *t) {
    const bool copied = tensor_is(t->rounded), fits = copied && narrow(t->rounded);
    const size_t n = t->p.dim[0], from = n - (copied ? t->rounded.dim[0] : 0);
    k_adamw(queue_of(be), &(struct adamw_args){.p = dev(t->p),
                                               .m = dev(t->m),
                                               .v = dev(t->v),
                                               .rounded = fits ? dev(t->rounded) : NULL,
                                               .g = dev(t->g),
                                               .groups = dev(t->groups),
                                               .sums = dev(t->sums),
                                               .now = dev(t->now),
                                               .n = n,
                                               .from = from,
                                               .num_groups = (int)t->groups.dim[0],
                                               .clip = t->clip,
                                               .b1 = (float)t->beta1,
                                               .b1_rest = (float)(1 - t->beta1),
                                               .b2 = (float)t->beta2,
                                               .b2_rest = (float)(1 - t->beta2),
                                               .eps = (float)t->eps});
    if (copied && !fits) op_copy(be, t->rounded, tensor_slice(t->p, from, n - from));
}

static void cuda_fill(struct backend *be, struct tensor y, double value) {
    uint64_t bits = 0;
    dtype_convert(&bits, y.dtype, &value, DT_F64, 1);
    k_fill(queue_of(be), dev(y), &bits, dtype_size(y.dtype), tensor_count(y));
}

static void cuda_clear(struct backend *be, struct tensor y, const int32_t *slots, int count) {
    const size_t bytes = y.dim[2] * dtype_size(y.dtype);
    k_clear(queue_of(be), dev(y), y.dim[0], y.dim[1], bytes, slots, count);
}

static void cuda_copy(struct backend *be, struct tensor y, struct tensor x) {
    if (y.dtype == x.dtype)
        k_copy_bytes(queue_of(be), dev(y), dev(x), tensor_bytes(y));
    else
        k_copy(queue_of(be), dev(y), (int)y.dtype, dev(x), (int)x.dtype, tensor_count(y));
}

static void cuda_add(struct backend *be, struct tensor y, struct tensor x) {
    k_add(queue_of(be), dev(y), dev(x), narrow(y), tensor_count(y));
}

const struct ops cuda_ops = {
    .embed = cuda_embed,
    .embed_bwd = cuda_embed_bwd,
    .gather_rows = cuda_gather_rows,
    .norm = cuda_norm,
    .norm_bwd = cuda_norm_bwd,
    .shift_mix = cuda_shift_mix,
    .shift_mix_bwd = cuda_shift_mix_bwd,
    .matmul = cuda_matmul,
    .matmul_bwd_x = cuda_matmul_bwd_x,
    .matmul_bwd_w = cuda_matmul_bwd_w,
    .act = cuda_act,
    .act_bwd = cuda_act_bwd,
    .key_prep = cuda_key_prep,
    .key_prep_bwd = cuda_key_prep_bwd,
    .wkv7 = cuda_wkv7,
    .wkv7_bwd = cuda_wkv7_bwd,
    .readout = cuda_readout,
    .readout_bwd = cuda_readout_bwd,
    .norm_mix = cuda_norm_mix,
    .norm_mix_bwd = cuda_norm_mix_bwd,
    .recall = cuda_recall,
    .clear = cuda_clear,
    .xent = cuda_xent,
    .sample = cuda_sample,
    .sum = cuda_sum,
    .sumsq = cuda_sumsq,
    .adamw = cuda_adamw,
    .fill = cuda_fill,
    .copy = cuda_copy,
    .add = cuda_add,
};
