// The mirror of forward.c: the same names from bottom to top.
#include "model/run.h"

#include <assert.h>

static struct tensor grad_of(const struct model *m, enum param_id id, int layer) {
    return model_grad(m, params_index(id, layer));
}

static struct tensor vector_grad(const struct model *m, enum param_id id, int layer) { // (C)
    const struct param *p = &m->params[params_index(id, layer)];
    return tensor_slice(m->grad, p->offset, p->count);
}

static struct tensor vectors_grad(const struct model *m, enum param_id first, int n,
                                  int layer) { // (n,C)
    const struct param *p = &m->params[params_index(first, layer)];
    const size_t C = (size_t)m->dims.C;
    return tensor_shape(tensor_slice(m->grad, p->offset, (size_t)n * C), 2,
                        (size_t[]){(size_t)n, C});
}

// y = x W: dW = or += , dx = dy Wᵀ
static void linear_bwd(struct model *m, enum param_id id, int layer, struct tensor dx,
                       struct tensor dy, struct tensor x, bool more) {
    const struct weight *w = model_weight(m, id, layer);
    op_matmul_bwd_w(m->be, &(struct weight_grad){grad_of(m, id, layer), dy, x, w, more}, 1);
    op_matmul_bwd_x(m->be, &(struct input_grad){.dx = dx, .dy = dy, .w = w}, 1);
}

// The channel mix's value, y = h W with h = max(…, 0)²: dh is that of what was squared.
static void value_bwd(struct model *m, int layer, struct tensor dh, struct tensor dy,
                      struct tensor h, bool more) {
    const struct weight *w = model_weight(m, P_FFN_VALUE, layer);
    const struct tensor dw = grad_of(m, P_FFN_VALUE, layer);
    op_matmul_bwd_w(m->be, &(struct weight_grad){dw, dy, h, w, more}, 1);
    op_matmul_bwd_x(m->be,
                    &(struct input_grad){.dx = dh, .dy = dy, .w = w, .y = h, .act = ACT_RELU2}, 1);
}

// Through all LoRAs y = f(x W₁) W₂ of a layer, what does not wait for each other together. The
// value's mix feeds the value LoRA too, whose gradient adds to the projection's.
static void loras_bwd(struct model *m, int layer, struct acts *a, struct grads *g) {
    struct input_grad second[LORA_COUNT], first[LORA_COUNT];
    struct weight_grad weights[2 * LORA_COUNT];
    int n = 0;
    for (int i = 0; i < LORA_COUNT; i++) {
        const struct lora_ids *l = &lora_ids[i];
        if (i == LORA_V && layer == 0) continue;
        const struct tensor dy = tensor_at(g->lora, (size_t)i), dh = g->hidden[i],
                            dx = tensor_at(g->m, (size_t)l->mix), none = tensor_none();
        const struct weight *w1 = model_weight(m, l->w1, layer),
                            *w2 = model_weight(m, l->w2, layer);
        second[n] = (struct input_grad){.dx = dh,
                                        .dy = dy,
                                        .w = w2,
                                        .y = l->act == ACT_NONE ? none : a->hidden[i],
                                        .act = l->act};
        first[n] = (struct input_grad){.dx = dx, .dy = dh, .w = w1, .add = i == LORA_V ? dx : none};
        weights[2 * n] =
            (struct weight_grad){grad_of(m, l->w2, layer), dy, a->hidden[i], w2, g->more};
        weights[2 * n + 1] = (struct weight_grad){grad_of(m, l->w1, layer), dh,
                                                  tensor_at(a->m, (size_t)l->mix), w1, g->more};
        n++;
    }
    op_matmul_bwd_x(m->be, second, n);
    op_matmul_bwd_x(m->be, first, n);
    op_matmul_bwd_w(m->be, weights, 2 * n);
}

// A norm of the residual stream and the n mixes of it.
struct mix_ids {
    enum param_id ln_w, ln_b, mix;
    int n;
};
static const struct mix_ids time_mix = {P_LN1_W, P_LN1_B, P_X_R, MIX_COUNT},
                            channel_mix = {P_LN2_W, P_LN2_B, P_FFN_X_K, 1};

// From g->m to the residual stream, x at that place, whose gradient is added to.
static void norm_mix_bwd(struct model *m, int layer, const struct mix_ids *id, struct acts *a,
                         struct grads *g, struct tensor x, const struct batch *b) {
    const bool apart = g->rounded.dtype != g->x.dtype;
    const struct norm_mix_bwd p = {.dx = g->x,
                                   .rounded = apart ? g->rounded : tensor_none(),
                                   .dw = vector_grad(m, id->ln_w, layer),
                                   .db = vector_grad(m, id->ln_b, layer),
                                   .dmix = vectors_grad(m, id->mix, id->n, layer),
                                   .dm = tensor_slice(g->m, 0, (size_t)id->n),
                                   .x = x,
                                   .w = model_vector(m, id->ln_w, layer),
                                   .b = model_vector(m, id->ln_b, layer),
                                   .mix = model_vectors(m, id->mix, id->n, layer),
                                   .shift_in = tensor_none(),
                                   .add = g->x,
                                   .z = a->z,
                                   .dz = g->z,
                                   .eps = LN_EPS};
    op_norm_mix_bwd(m->be, &p, b);
}

// g->x holds ∂ℓ/∂(the layer's output) on entry and ∂ℓ/∂(its input x) on return, and so does
// g->rounded.
static void layer_backward(struct model *m, int i, struct acts *a, struct grads *g, struct tensor x,
                           struct tensor v_first, const struct batch *b) {
    struct backend *be = m->be;
    const struct tensor none = tensor_none(), r = tensor_at(a->rkv, RKV_R);
    const struct tensor dr = tensor_at(g->rkv, RKV_R);
    const int H = m->dims.H;

    // channel mix
    value_bwd(m, i, g->h, g->rounded, a->h, g->more);
    linear_bwd(m, P_FFN_KEY, i, tensor_at(g->m, 0), g->h, tensor_at(a->m2, 0), g->more);
    norm_mix_bwd(m, i, &channel_mix, a, g, a->x1, b);

    // time mix
    linear_bwd(m, P_OUTPUT, i, g->o, g->rounded, a->o, g->more);
    op_readout_bwd(be, g->y, dr, g->u, tensor_at(g->lora, LORA_G),
                   vectors_grad(m, P_LNX_W, READ_COUNT, i), g->o, a->y, r, a->u,
                   tensor_at(a->lora, LORA_G), model_vectors(m, P_LNX_W, READ_COUNT, i), H);
    op_wkv7_bwd(be, dr, g->u, none, g->y, r, a->u, a->saved, none, b, H);
    // Layer 0's values also serve every layer above.
    if (i == 0) op_add(be, tensor_at(g->u, U_V), g->v_first);
    op_key_prep_bwd(be, g->rkv, g->lora, i > 0 ? g->v_first : none,
                    vectors_grad(m, P_W0, KEY_COUNT, i), g->u, a->rkv, a->lora,
                    i > 0 ? v_first : none, model_vectors(m, P_W0, KEY_COUNT, i), H);
    linear_bwd(m, P_RECEPTANCE, i, tensor_at(g->m, MIX_R), dr, tensor_at(a->m, MIX_R), g->more);
    linear_bwd(m, P_KEY, i, tensor_at(g->m, MIX_K), tensor_at(g->rkv, RKV_K),
               tensor_at(a->m, MIX_K), g->more);
    linear_bwd(m, P_VALUE, i, tensor_at(g->m, MIX_V), tensor_at(g->rkv, RKV_V),
               tensor_at(a->m, MIX_V), g->more);
    loras_bwd(m, i, a, g);
    norm_mix_bwd(m, i, &time_mix, a, g, x, b);
}

// Head and loss in chunks of rows, so that logits never exist for all rows at once. Leaves
// ∂ℓ/∂(normed) in g->z.
static void head_loss(struct model *m, struct run *r, const struct feed *f, bool gradient,
                      double scale, bool l2wrap) {
    struct backend *be = m->be;
    const size_t R = (size_t)f->batch.rows, chunk = (size_t)r->limits.head_rows;
    for (size_t at = 0; at < R; at += chunk) {
        const size_t n = R - at < chunk ? R - at : chunk;
        const struct tensor x = tensor_slice(r->normed, at, n);
        const struct tensor logits = tensor_slice(r->logits, 0, n);
        op_matmul(be,
                  &(struct product){logits, x, model_weight(m, P_HEAD, 0), tensor_none(), ACT_NONE},
                  1);
        op_xent(be, tensor_slice(r->losses, at, n), gradient ? logits : tensor_none(), logits,
                tensor_slice(f->targets, at, n), (float)scale, l2wrap);
        if (gradient)
            linear_bwd(m, P_HEAD, 0, tensor_slice(r->grads.z, at, n), logits, x,
                       r->grads.more || at > 0);
    }
}

static void backward(struct model *m, struct run *r, const struct feed *f) {
    struct backend *be = m->be;
    struct grads *g = &r->grads;
    const int L = m->dims.L;
    op_norm_bwd(be, g->x, vector_grad(m, P_OUT_W, 0), vector_grad(m, P_OUT_B, 0), g->z, run_x(r, L),
                model_vector(m, P_OUT_W, 0), LN_EPS, tensor_none());
    if (g->rounded.dtype != g->x.dtype) op_copy(be, g->rounded, g->x);
    op_fill(be, g->v_first, 0);
    run_reached(r, L);
    for (int i = L - 1; i >= 0; i--) {
        // Checkpointing: what the layer computed on the way up is computed once more.
        if (r->limits.mode == RUN_CHECKPOINT && i < L - 1)
            layer_forward(m, i, run_acts(r, i), run_x(r, i + 1), run_x(r, i), r->v_first, &r->batch,
                          NULL);
        layer_backward(m, i, run_acts(r, i), g, run_x(r, i), r->v_first, &r->batch);
        run_reached(r, i);
    }
    op_norm_bwd(be, g->z, vector_grad(m, P_LN0_W, 0), vector_grad(m, P_LN0_B, 0), g->x, r->e,
                model_vector(m, P_LN0_W, 0), LN_EPS, tensor_none());
    op_embed_bwd(be, grad_of(m, P_EMB, 0), g->z, f->tokens, f->order);
    run_reached(r, -1);
}

// Of vectors and of the embedding, which are summed over rows; those of matrices are written by the
// first product.
static void clear_sums(struct model *m) {
    const struct param *last = &m->params[P_EMB];
    op_fill(m->be, tensor_slice(m->grad, 0, last->offset + last->count), 0);
}

void model_pass(struct model *m, struct run *r, const struct feed *f, enum gradient gradient,
                double scale, bool l2wrap) {
    const int L = m->dims.L;
    assert(r->limits.mode != RUN_INFER && tensor_is(f->targets));
    run_set(r, m, f);
    r->grads.more = gradient == GRADIENT_MORE;
    if (gradient == GRADIENT_NEW) clear_sums(m);
    embed_forward(m, r, f);
    for (int i = 0; i < L; i++)
        layer_forward(m, i, run_acts(r, i), run_x(r, i + 1), run_x(r, i), r->v_first, &r->batch,
                      NULL);
    op_norm(m->be, r->normed, run_x(r, L), model_vector(m, P_OUT_W, 0), model_vector(m, P_OUT_B, 0),
            LN_EPS);
    head_loss(m, r, f, gradient != GRADIENT_NONE, scale, l2wrap);
    if (gradient != GRADIENT_NONE) backward(m, r, f);
}

double model_loss(struct model *m, struct run *r, const struct feed *f, enum gradient gradient,
                  double scale, bool l2wrap) {
    const size_t R = (size_t)f->batch.rows;
    model_pass(m, r, f, gradient, scale, l2wrap);
    m->be->class->download(m->be, r->host_losses, r->losses);
    double sum = 0;
    for (size_t i = 0; i < R; i++)
        sum += m->be->real == DT_F64 ? ((const double *)r->host_losses)[i]
                                     : (double)((const float *)r->host_losses)[i];
    return sum;
}
