// Which kernel does which product. Few rows, and all inputs in f32: our own, a row's bits do not
// depend on the batch. Many rows of bf16, and gradients of weights: cuBLASLt.
#include "backend/cuda/internal.h"

#include "backend/ops.h"
#include "backend/quant.h"

static bool is_integer(const struct weight *w) {
    return w->precision.stored == DT_INT8 || w->precision.stored == DT_INT4;
}

static bool is_narrow(const struct weight *w) {
    return w->precision.inputs == DT_BF16 && !is_integer(w);
}

static const struct matrix *matrix_of(const struct weight *w) {
    return &((const struct cuda_weight *)w)->m;
}

// ---- forward -----------------------------------------------------------------------------------

// y (R,O) = x (R,K) · W through cuBLASLt, whose matrices have contiguous columns: yᵀ = Wᵀ xᵀ.
static bool forward_lt(struct cuda *c, const struct product *p) {
    const struct weight *w = p->w;
    const struct matrix *m = matrix_of(w);
    const size_t R = p->x.dim[0], K = w->in, O = w->out;
    if (!c->lt || R <= SKINNY_ROWS || !is_narrow(w) || m->type != DT_BF16) return false;
    const bool in_place = tensor_is(p->add) && dev(p->add) == dev(p->y);
    uint16_t *x = cuda_scratch(c, R * K * 2);
    if (!x) return false;
    k_round_bf16(c->queue, x, dev(p->x), R * K);
    if (tensor_is(p->add) && !in_place) k_copy_bytes(c->queue, dev(p->y), dev(p->add), R * O * 4);
    const struct lt_side a = {m->data, m->so == 1 ? m->sk : m->so, m->so != 1}, b = {x, K, false};
    if (!lt_multiply(c->lt, c->queue, dev(p->y), O, a, b, true, O, R, K, tensor_is(p->add) ? 1 : 0))
        return false;
    if (p->act != ACT_NONE) k_act(c->queue, dev(p->y), dev(p->y), R * O, (int)p->act);
    return true;
}

static struct product_args args_of(const struct product *p, const float *x) {
    const struct weight *w = p->w;
    return (struct product_args){.y = dev(p->y),
                                 .x = x,
                                 .add = dev(p->add),
                                 .w = *matrix_of(w),
                                 .xr = w->in,
                                 .xk = 1,
                                 .R = p->x.dim[0],
                                 .K = w->in,
                                 .O = w->out,
                                 .act = (int)p->act,
                                 .narrow = is_narrow(w)};
}

static size_t rounded_bytes(const struct product *p) {
    return is_integer(p->w) ? (tensor_bytes(p->x) + 255) / 256 * 256 : 0;
}

void cuda_matmul(struct backend *be, const struct product *products, int n) {
    struct cuda *c = cuda_of(be);
    struct product_list list = {.n = 0};
    c->rounded_of = NULL;
    size_t bytes = 0, used = 0;
    for (int i = 0; i < n; i++) bytes += rounded_bytes(&products[i]);
    for (int i = 0; i < n; i++) {
        const struct product *p = &products[i];
        const size_t R = p->x.dim[0], K = p->w->in;
        if (!R || forward_lt(c, p)) continue;
        const float *x = dev(p->x);
        // Integers: what they are multiplied by is rounded in groups, each product's apart, since
        // the launch that reads them comes last.
        if (is_integer(p->w)) {
            char *scratch = cuda_scratch(c, bytes);
            if (!scratch) return;
            float *rounded = (float *)(void *)(scratch + used);
            k_round_groups(c->queue, rounded, x, R, K, quant_group(p->w->precision.stored));
            used += rounded_bytes(p);
            x = rounded;
        }
        const struct product_args args = args_of(p, x);
        const bool together = !list.n || list.p[0].R == R;
        if (R <= SKINNY_ROWS && args.w.so == 1 && args.w.sk % 4 == 0 && together &&
            list.n < MAX_PRODUCTS && !p->w->trained)
            list.p[list.n++] = args;
        else
            k_product(c->queue, &args);
    }
    if (list.n) k_skinny(c->queue, &list);
}

// ---- backward ----------------------------------------------------------------------------------

void cuda_matmul_bwd_x(struct backend *be, struct tensor dx, struct tensor dy,
                       const struct weight *w, struct tensor add) {
    struct cuda *c = cuda_of(be);
    const struct matrix *m = matrix_of(w);
    const size_t R = dy.dim[0], K = w->in, O = w->out;
    if (!R) return;
    if (c->lt && R > SKINNY_ROWS && is_narrow(w) && m->type == DT_BF16) {
        const bool again = c->rounded_of == dev(dy) && c->rounded_count == R * O;
        uint16_t *g = again ? c->rounded : cuda_scratch(c, R * O * 2);
        c->rounded_of = NULL;
        if (g) {
            if (!again) k_round_bf16(c->queue, g, dev(dy), R * O);
            if (tensor_is(add) && dev(add) != dev(dx))
                k_copy_bytes(c->queue, dev(dx), dev(add), R * K * 4);
            // dxᵀ (K,R) = W (K,O) dyᵀ
            const bool oi = m->so != 1;
            const struct lt_side a = {m->data, oi ? m->so : m->sk, !oi}, b = {g, O, false};
            if (lt_multiply(c->lt, c->queue, dev(dx), K, a, b, true, K, R, O,
                            tensor_is(add) ? 1 : 0))
                return;
        }
    }
    struct matrix turned = *m;
    turned.sk = m->so;
    turned.so = m->sk;
    k_product(c->queue, &(struct product_args){.y = dev(dx),
                                               .x = dev(dy),
                                               .add = dev(add),
                                               .w = turned,
                                               .xr = O,
                                               .xk = 1,
                                               .R = R,
                                               .K = O,
                                               .O = K,
                                               .act = ACT_NONE,
                                               .narrow = is_narrow(w)});
}

// dw (M,N) += Σ_r a_rm b_rn, with a (R,M) and b (R,N).
void cuda_matmul_bwd_w(struct backend *be, struct tensor dw, struct tensor dy, struct tensor x,
                       const struct weight *w) {
    struct cuda *c = cuda_of(be);
    const bool oi = w->layout == WEIGHT_OUT_IN, narrow = is_narrow(w);
    const struct tensor a = oi ? dy : x, b = oi ? x : dy;
    const size_t R = x.dim[0], M = a.dim[1], N = b.dim[1];
    c->rounded_of = NULL;
    if (!R) return;
    if (c->lt) {
        const void *left = dev(a), *right = dev(b);
        if (narrow) {
            const size_t first = (R * M * 2 + 255) / 256 * 256;
            char *scratch = cuda_scratch(c, first + R * N * 2);
            if (!scratch) return;
            k_round_bf16(c->queue, (uint16_t *)(void *)scratch, left, R * M);
            k_round_bf16(c->queue, (uint16_t *)(void *)(scratch + first), right, R * N);
            left = scratch;
            right = scratch + first;
            c->rounded_of = dev(dy);
            c->rounded = (uint16_t *)(void *)(oi ? scratch : scratch + first);
            c->rounded_count = R * w->out;
        }
        // dwᵀ (N,M) = bᵀ a; in memory they are bᵀ and aᵀ.
        const struct lt_side l = {right, N, false}, r = {left, M, true};
        if (lt_multiply(c->lt, c->queue, dev(dw), N, l, r, narrow, N, M, R, 1)) return;
    }
    k_product(c->queue,
              &(struct product_args){.y = dev(dw),
                                     .x = dev(a),
                                     .add = dev(dw),
                                     .w = {.data = dev(b), .type = DT_F32, .sk = N, .so = 1},
                                     .xr = 1,
                                     .xk = M,
                                     .R = M,
                                     .K = R,
                                     .O = N,
                                     .act = ACT_NONE,
                                     .narrow = narrow});
}
