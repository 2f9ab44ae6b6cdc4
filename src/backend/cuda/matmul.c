// Which kernel does which product. Few rows, and all inputs in f32: our own, a row's bits do not
// depend on the batch. Many rows of bf16, and gradients of weights: cuBLASLt. On Hopper not several
// small ones together (many.cu, outer.cu), and not large ones that relu² or its slope comes behind
// (large.cu).
#include "backend/cuda/internal.h"

#include "backend/ops.h"

#include <assert.h>

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

// Pieces of scratch begin where anything may.
static size_t whole(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

// t rounded to bf16: itself, if it is that already, else in scratch, which the next call ends.
static const uint16_t *rounded(struct cuda *c, struct tensor t) {
    if (t.dtype == DT_BF16) return dev(t);
    uint16_t *x = cuda_scratch(c, tensor_count(t) * 2);
    if (x) k_round_bf16(c->queue, x, dev(t), tensor_count(t));
    return x;
}

// Whether rows are few: those of bf16 come from a pass that has found them many (narrow_from).
static bool are_few(struct tensor x) {
    return x.dim[0] <= SKINNY_ROWS && x.dtype != DT_BF16;
}

// y (R,O) = x (R,K) · W through cuBLASLt, whose matrices have contiguous columns: yᵀ = Wᵀ xᵀ.
// What f makes of it, it makes in place.
static bool forward_lt(struct cuda *c, const struct product *p) {
    const struct weight *w = p->w;
    const struct matrix *m = matrix_of(w);
    const size_t R = p->x.dim[0], K = w->in, O = w->out;
    if (!c->lt || are_few(p->x) || !is_narrow(w) || m->type != DT_BF16) return false;
    const bool narrow = p->y.dtype == DT_BF16;
    const uint16_t *x = rounded(c, p->x);
    if (!x) return false;
    const struct lt_out y = {dev(p->y), O, dev(p->add), narrow};
    const struct lt_side a = {m->data, m->so == 1 ? m->sk : m->so, m->so != 1}, b = {x, K, false};
    if (!lt_multiply(c->lt, c->queue, y, a, b, true, O, R, K)) return false;
    if (p->act != ACT_NONE) k_act(c->queue, dev(p->y), y.data, narrow, R * O, (int)p->act);
    return true;
}

static bool in_sixteens(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

// Good until the next call.
static const struct tile_map *map_of(struct cuda *c, struct tensor x, unsigned box) {
    const size_t R = x.dim[0], K = x.dim[1];
    const uintptr_t at = (uintptr_t)dev(x);
    struct mapped *m = &c->mapped[(at / 256 + R + box) % (sizeof c->mapped / sizeof c->mapped[0])];
    if (m->data == dev(x) && m->rows == R && m->cols == K && m->box == box) return &m->map;
    if (!tile_map_make(&m->map, dev(x), R, K, K * sizeof(uint16_t), box)) return NULL;
    m->data = dev(x);
    m->rows = R;
    m->cols = K;
    m->box = box;
    return &m->map;
}

static bool is_slim(const struct weight *w) {
    return w->in <= SLIM || w->out <= SLIM;
}

// What a list of products does together in many.cu: a bit a product. Up to 1,024 rows that is
// faster than one product after the other through cuBLASLt, and activations apart, where several
// are small, or one is that has an activation (measured on an H100: first and second products of a
// time mix, and ffn.key, of 0.1b, 1.5b and 7.2b, 32 to 960 rows). With more rows, where several
// have a short side.
static unsigned many_of(const struct cuda *c, const struct product *products, int n) {
    const size_t R = n ? products[0].x.dim[0] : 0;
    unsigned slim = 0;
    double flops = 0;
    if (!R || are_few(products[0].x)) return 0;
    if (c->large_all && n == 1 && products[0].act == ACT_RELU2) return 0;
    for (int i = 0; i < n; i++) {
        flops += 2.0 * (double)R * (double)products[i].w->in * (double)products[i].w->out;
        if (is_slim(products[i].w)) slim |= 1u << i;
    }
    if (R > 1024) return slim & (slim - 1) ? slim : 0;
    const bool pays =
        n > 1 ? flops < 40e9 : products[0].act != ACT_NONE && (R <= 128 || flops < 5e9);
    return pays ? ~0u : 0;
}

// Whether it is faster than cuBLASLt and a pass behind it, which takes as long as 512 more of k
// (measured on an H100): blocks that stay need tiles that fill their turns.
static bool large_pays(const struct cuda *c, size_t R, size_t K, size_t O) {
    enum { SIDE = 256, PASS = 512 }; // of the tile of two multiprocessors
    const size_t tiles = (R + SIDE - 1) / SIDE * ((O + SIDE - 1) / SIDE);
    const size_t pairs = (size_t)c->processors / 2, turns = (tiles + pairs - 1) / pairs;
    return (double)(R * O) * (double)(K + PASS) >=
           (double)(turns * pairs * SIDE * SIDE) * (double)K;
}

// y = relu²(x · W), or with h (x · Wᵀ) · 2√h, in large.cu, if it can be done so.
static bool run_large(struct cuda *c, struct tensor y, struct tensor x, const struct weight *base,
                      struct tensor h) {
    const struct cuda_weight *w = (const struct cuda_weight *)base;
    const bool slope = tensor_is(h);
    const size_t R = x.dim[0], K = x.dim[1], O = y.dim[1];
    const struct tensor all[3] = {x, y, h};
    struct large_product p = {.w = w->map,
                              .R = (int)R,
                              .K = (int)K,
                              .O = (int)O,
                              .by_output = (w->m.so != 1) != slope,
                              .slope = slope};
    struct tile_map *const map[3] = {&p.x, &p.y, &p.h};
    if (!c->lt || !w->mapped || !is_narrow(base) || (!c->large_all && !large_pays(c, R, K, O)))
        return false;
    for (int i = 0; i < 2 + slope; i++) {
        if (all[i].dtype != DT_BF16) return false;
        const struct tile_map *m = map_of(c, all[i], i == 1 ? STORE_ROWS : BOX_ROWS);
        if (!m) return false;
        *map[i] = *m;
    }
    k_large(c->queue, &p);
    return true;
}

// Adds y = f(add + x · W), or (add + x · Wᵀ) with f's slope at h, to the list, if it can be done
// so.
static bool add_many(struct cuda *c, struct many_list *list, const struct product *p, bool turned,
                     struct tensor h) {
    const struct cuda_weight *w = (const struct cuda_weight *)p->w;
    const size_t R = p->x.dim[0];
    const struct tile_map *x;
    if (!c->lt || !w->mapped || !is_narrow(p->w) || p->x.dtype != DT_BF16 ||
        !in_sixteens(dev(p->y)) || !in_sixteens(dev(p->add)) || !in_sixteens(dev(h)) ||
        (list->n && list->R != (int)R) || !(x = map_of(c, p->x, BOX_ROWS)))
        return false;
    list->R = (int)R;
    list->processors = c->processors;
    list->p[list->n++] = (struct many_product){.x = *x,
                                               .w = w->map,
                                               .y = dev(p->y),
                                               .add = dev(p->add),
                                               .h = dev(h),
                                               .K = (int)(turned ? p->w->out : p->w->in),
                                               .O = (int)(turned ? p->w->in : p->w->out),
                                               .act = (int)p->act,
                                               .narrow = p->y.dtype == DT_BF16,
                                               .by_output = (w->m.so != 1) != turned,
                                               .fixed = !p->w->trained};
    return true;
}

static bool forward_large(struct cuda *c, const struct product *p) {
    return p->act == ACT_RELU2 && !tensor_is(p->add) &&
           run_large(c, p->y, p->x, p->w, tensor_none());
}

// Whether the product of one row is ffn.value's, four times as deep as wide, of more than 6 MB:
// what relu² has left of its row says which weights are wanted. Smaller ones are here before that
// is known (tensor.cu).
static bool listing_pays(const struct cuda *c, const struct product_args *a) {
    return c->lt && a->narrow && a->R == 1 && a->K == 4 * a->O && a->K * a->O > c->listed_from;
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
                                 .narrow = is_narrow(w),
                                 .fixed = !w->trained};
}

// What our own kernels cannot take or give as it is goes through scratch: bf16 inputs become f32
// again, and bf16 results are f32 first: rounded before f, as they are by the library.
static size_t inputs_bytes(const struct product *p) {
    return p->x.dtype == DT_BF16 ? whole(tensor_count(p->x) * 4) : 0;
}

static size_t outputs_bytes(const struct product *p) {
    return p->y.dtype == DT_BF16 ? whole(tensor_count(p->y) * 4) : 0;
}

static size_t own_bytes(const struct product *p) {
    const struct product_args args = args_of(p, NULL);
    return inputs_bytes(p) + outputs_bytes(p) + whole(k_integers_scratch(&args));
}

static const float *own_inputs(struct cuda *c, const struct product *p, char *scratch) {
    if (p->x.dtype != DT_BF16) return dev(p->x);
    float *x = (float *)(void *)scratch;
    k_widen_bf16(c->queue, x, dev(p->x), tensor_count(p->x));
    return x;
}

void cuda_matmul(struct backend *be, const struct product *products, int n) {
    struct cuda *c = cuda_of(be);
    struct product_list list = {.n = 0};
    struct many_list many = {.n = 0};
    bool own[MAX_PRODUCTS];
    c->rounded_of = NULL;
    const unsigned together = many_of(c, products, n);
    size_t bytes = 0, used = 0;
    assert(n <= MAX_PRODUCTS);
    for (int i = 0; i < n; i++) {
        const bool is_many =
            together >> i & 1 && add_many(c, &many, &products[i], false, tensor_none());
        own[i] = products[i].x.dim[0] && !is_many && !forward_large(c, &products[i]) &&
                 !forward_lt(c, &products[i]);
        if (own[i]) bytes += own_bytes(&products[i]);
    }
    if (many.n) k_many(c->queue, &many);
    // Each product's scratch apart, since the launch that reads it comes last.
    char *scratch = bytes ? cuda_scratch(c, bytes) : NULL;
    if (bytes && !scratch) return;
    const float *inputs[MAX_PRODUCTS];
    for (int i = 0; i < n; i++) {
        if (!own[i]) continue;
        inputs[i] = own_inputs(c, &products[i], scratch + used);
        used += own_bytes(&products[i]);
    }
    used = 0;
    for (int i = 0; i < n; i++) {
        const struct product *p = &products[i];
        if (!own[i]) continue;
        struct product_args args = args_of(p, inputs[i]);
        const bool narrow = p->y.dtype == DT_BF16;
        if (narrow) {
            args.y = (float *)(void *)(scratch + used + inputs_bytes(p));
            args.act = ACT_NONE;
        }
        if (k_integers_scratch(&args))
            args.scratch = scratch + used + inputs_bytes(p) + outputs_bytes(p);
        used += own_bytes(p);
        const bool fits = !list.n || list.p[0].R == args.R;
        if (listing_pays(c, &args) && k_listed(c->queue, &args)) {
            // It is done.
        } else if ((args.R <= SKINNY_ROWS || args.w.type == DT_BF16) && args.w.so == 1 &&
                   args.w.sk % 4 == 0 && fits && !p->w->trained && !narrow)
            list.p[list.n++] = args;
        else
            k_product(c->queue, &args);
        if (!narrow) continue;
        k_round_bf16(c->queue, dev(p->y), args.y, args.R * args.O);
        if (p->act != ACT_NONE)
            k_act(c->queue, dev(p->y), dev(p->y), true, args.R * args.O, (int)p->act);
    }
    if (list.n) k_skinny(c->queue, &list);
}

// ---- backward ----------------------------------------------------------------------------------

// dxᵀ (K,R) = W (K,O) dyᵀ
static bool backward_lt(struct cuda *c, struct tensor dx, struct tensor dy, const struct weight *w,
                        struct tensor add) {
    const struct matrix *m = matrix_of(w);
    const size_t R = dy.dim[0], K = w->in, O = w->out;
    if (!c->lt || R <= SKINNY_ROWS || !is_narrow(w) || m->type != DT_BF16) return false;
    const bool again = c->rounded_of == dev(dy) && c->rounded_count == R * O, oi = m->so != 1;
    const uint16_t *g = again ? c->rounded : rounded(c, dy);
    c->rounded_of = NULL;
    if (!g) return false;
    const struct lt_out d = {dev(dx), K, dev(add), dx.dtype == DT_BF16};
    const struct lt_side a = {m->data, oi ? m->so : m->sk, !oi}, b = {g, O, false};
    return lt_multiply(c->lt, c->queue, d, a, b, true, K, R, O);
}

static void input_grad_of(struct cuda *c, const struct input_grad *g) {
    const struct weight *w = g->w;
    const struct tensor dx = g->dx, dy = g->dy, add = g->add;
    const struct matrix *m = matrix_of(w);
    const size_t R = dy.dim[0], K = w->in, O = w->out;
    if (backward_lt(c, dx, dy, w, add)) return;
    const bool wide_in = dy.dtype != DT_BF16, wide_out = dx.dtype != DT_BF16;
    const size_t first = wide_in ? 0 : whole(R * O * 4),
                 bytes = first + (wide_out ? 0 : whole(R * K * 4));
    char *scratch = bytes ? cuda_scratch(c, bytes) : NULL;
    if (bytes && !scratch) return;
    struct matrix turned = *m;
    turned.sk = m->so;
    turned.so = m->sk;
    struct product_args p = {.y = wide_out ? dev(dx) : scratch + first,
                             .x = wide_in ? dev(dy) : scratch,
                             .add = dev(add),
                             .w = turned,
                             .xr = O,
                             .xk = 1,
                             .R = R,
                             .K = O,
                             .O = K,
                             .act = ACT_NONE,
                             .narrow = is_narrow(w)};
    if (!wide_in) k_widen_bf16(c->queue, (float *)(void *)scratch, dev(dy), R * O);
    if (!wide_out && p.add) {
        k_widen_bf16(c->queue, p.y, dev(add), R * K);
        p.add = p.y;
    }
    k_product(c->queue, &p);
    if (!wide_out) k_round_bf16(c->queue, dev(dx), p.y, R * K);
}

// Through cuBLASLt each by itself, but slim ones together, and large ones with a slope in large.cu.
void cuda_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n) {
    struct cuda *c = cuda_of(be);
    struct many_list many = {.n = 0};
    for (int i = 0; i < n; i++) {
        const struct input_grad *g = &grads[i];
        const bool slope = tensor_is(g->y);
        const struct product p = {g->dx, g->dy, g->w, g->add, slope ? g->act : ACT_NONE};
        const bool is_many =
            n > 1 && g->dy.dim[0] && is_slim(g->w) && add_many(c, &many, &p, true, g->y);
        if (is_many || !g->dy.dim[0]) continue;
        if (slope && g->act == ACT_RELU2 && run_large(c, g->dx, g->dy, g->w, g->y)) continue;
        input_grad_of(c, g);
        if (slope)
            k_act_bwd(c->queue, dev(g->dx), dev(g->dx), dev(g->y), g->dx.dtype == DT_BF16,
                      tensor_count(g->dx), (int)g->act);
    }
    if (many.n) k_many(c->queue, &many);
    c->rounded_of = NULL;
}

// dw (M,N) =, or +=, Σ_r a_rm b_rn, with a (R,M) and b (R,N), through cuBLASLt: dwᵀ (N,M) = bᵀ a;
// in memory they are bᵀ and aᵀ.
static bool weights_lt(struct cuda *c, struct tensor dw, struct tensor a, struct tensor b,
                       struct tensor dy, bool narrow, bool more) {
    const size_t R = a.dim[0], M = a.dim[1], N = b.dim[1];
    const void *side[2] = {dev(a), dev(b)};
    if (!c->lt) return false;
    if (narrow) {
        const struct tensor t[2] = {a, b};
        const size_t room[2] = {a.dtype == DT_BF16 ? 0 : whole(R * M * 2),
                                b.dtype == DT_BF16 ? 0 : R * N * 2};
        char *scratch = room[0] + room[1] ? cuda_scratch(c, room[0] + room[1]) : NULL;
        if (room[0] + room[1] && !scratch) return false;
        for (int i = 0; i < 2; i++) {
            if (!room[i]) continue;
            uint16_t *to = (uint16_t *)(void *)(scratch + (i ? room[0] : 0));
            k_round_bf16(c->queue, to, side[i], tensor_count(t[i]));
            if (side[i] == dev(dy)) {
                c->rounded_of = side[i];
                c->rounded = to;
                c->rounded_count = tensor_count(dy);
            }
            side[i] = to;
        }
    }
    const struct lt_out d = {dev(dw), N, more ? dev(dw) : NULL, false};
    const struct lt_side l = {side[1], N, false}, r = {side[0], M, true};
    return lt_multiply(c->lt, c->queue, d, l, r, narrow, N, M, R);
}

static void weight_grad_of(struct cuda *c, const struct weight_grad *g) {
    const bool oi = g->w->layout == WEIGHT_OUT_IN, narrow = is_narrow(g->w), more = g->more;
    const struct tensor dw = g->dw, a = oi ? g->dy : g->x, b = oi ? g->x : g->dy;
    const size_t R = a.dim[0], M = a.dim[1], N = b.dim[1];
    c->rounded_of = NULL;
    if (!R && !more) op_fill(&c->base, dw, 0);
    if (!R || weights_lt(c, dw, a, b, g->dy, narrow, more)) return;
    const struct tensor t[2] = {a, b};
    const float *side[2] = {dev(a), dev(b)};
    size_t bytes = 0, at[2];
    for (int i = 0; i < 2; i++)
        at[i] = bytes, bytes += t[i].dtype == DT_BF16 ? whole(tensor_count(t[i]) * 4) : 0;
    char *scratch = bytes ? cuda_scratch(c, bytes) : NULL;
    if (bytes && !scratch) return;
    for (int i = 0; i < 2; i++)
        if (t[i].dtype == DT_BF16) {
            k_widen_bf16(c->queue, (float *)(void *)(scratch + at[i]), dev(t[i]),
                         tensor_count(t[i]));
            side[i] = (const float *)(void *)(scratch + at[i]);
        }
    k_product(c->queue,
              &(struct product_args){.y = dev(dw),
                                     .x = side[0],
                                     .add = more ? dev(dw) : NULL,
                                     .w = {.data = side[1], .type = DT_F32, .sk = N, .so = 1},
                                     .xr = 1,
                                     .xk = M,
                                     .R = M,
                                     .K = R,
                                     .O = N,
                                     .act = ACT_NONE,
                                     .narrow = narrow});
}

// Adds a slim weight's to the list, if it can be done so.
static bool add_outer(struct cuda *c, struct outer_list *list, const struct weight_grad *g) {
    const struct weight *w = g->w;
    const bool out_is_slim = w->out <= w->in;
    const struct tensor wide = out_is_slim ? g->x : g->dy, slim = out_is_slim ? g->dy : g->x;
    const struct tile_map *map;
    if (!c->lt || !c->tiles || !is_narrow(w) || !is_slim(w) || !g->x.dim[0] ||
        g->x.dtype != DT_BF16 || g->dy.dtype != DT_BF16 ||
        (list->n && list->R != (int)g->x.dim[0]) || list->n == MAX_PRODUCTS)
        return false;
    struct outer o = {.dw = dev(g->dw),
                      .W = (int)wide.dim[1],
                      .S = (int)slim.dim[1],
                      .slim_first = out_is_slim == (w->layout == WEIGHT_OUT_IN),
                      .more = g->more};
    if (!(map = map_of(c, wide, BOX_ROWS))) return false;
    o.wide = *map;
    if (!(map = map_of(c, slim, BOX_ROWS))) return false;
    o.slim = *map;
    list->R = (int)g->x.dim[0];
    list->p[list->n++] = o;
    return true;
}

void cuda_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n) {
    struct cuda *c = cuda_of(be);
    struct outer_list outer = {.n = 0};
    for (int i = 0; i < n; i++)
        if (n == 1 || !add_outer(c, &outer, &grads[i])) weight_grad_of(c, &grads[i]);
    if (outer.n) k_outer(c->queue, &outer);
}
