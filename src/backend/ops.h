// THE vocabulary: every operation of RWKV-7 training and inference, with shapes, formula, source.
//
// Ops cannot fail: memory, shapes and files are settled before the first one. Callers use the op_*
// functions, which check shapes (a wrong one is our fault) and call the backend's table.
//
// Conventions: outputs come first. "=" overwrites, "+=" accumulates into what is there. Tensors are
// in the backend's `real` storage unless said. An output may alias an input only where that is
// said. What a comment marks with ° may be DT_BF16 where the backend's `narrow_from` is not 0: what
// is written is rounded, and products of bf16 inputs take it as it is. Row r of a result depends on
// nothing but row r (and, in shift_mix and wkv7, on its sequence), in a fixed order of operations:
// the same bits in any batch, on any number of threads. Source of formulas: RWKV-7
// (BlinkDL/RWKV-LM, x070); σ is the logistic sigmoid, c₀ = e^(-1/2).
#pragma once
#include "backend/backend.h"

enum act { ACT_TANH, ACT_SIGMOID, ACT_RELU2, ACT_NONE };

// Planes of packed tensors: the token-shift mixes, the LoRA outputs, the inputs of wkv7, the
// parameter vectors of key_prep and of readout.
enum { MIX_R, MIX_W, MIX_K, MIX_V, MIX_A, MIX_G, MIX_COUNT };
enum { RKV_R, RKV_K, RKV_V, RKV_COUNT };
enum { LORA_W, LORA_A, LORA_V, LORA_G, LORA_COUNT };
enum { U_W, U_K, U_V, U_A, U_B, U_COUNT };
enum { STATE_CELL = 64 }; // see wkv7
enum { KEY_W0, KEY_A0, KEY_V0, KEY_KK, KEY_KA, KEY_COUNT };
enum { READ_WEIGHT, READ_BIAS, READ_RK, READ_COUNT };

// How one row is sampled; the order of steps and the penalties are in docs/sampling.md.
struct sample_row {
    float temperature;  // 0: argmax, first index
    float top_p, min_p; // 1 and 0: off
    float presence, repetition, frequency, penalty_decay;
    int32_t top_k;           // 0: off; 1: argmax
    int32_t slot;            // whose penalties; -1: nobody's
    int32_t num_bias;        // so many of a slot's biases, from the first on
    int32_t bias_slot;       // whose
    int32_t reserved;        // 0
    uint64_t seed, position; // the draw is a pure function of both
};

// Added to a logit before anything else.
struct sample_bias {
    int32_t token; // once in a slot
    float value;
};

// Neighbouring parameters with constants in common.
struct adamw_group {
    int64_t first, count;
    double lr_scale, weight_decay; // decoupled, and scaled by lr
};

// One AdamW step over all parameters. What changes from step to step lies in memory.
struct adamw {
    struct tensor p, m, v; // (n) in place
    struct tensor g;       // (n)
    struct tensor rounded; // the last of p in any float storage: = where groups are; may be absent
    struct tensor groups;  // (k) struct adamw_group in u8 (k, sizeof), in order; what lies between
                           // them is left alone
    struct tensor sums;    // (2) f64: Σ g² and the loss; if one is not finite, nothing is done
    struct tensor now;     // (3) f64: lr, 1 - β₁ᵗ, 1 - β₂ᵗ for step t ≥ 1
    double beta1, beta2, eps;
    double clip; // max global norm; 0: no clipping
};

// One of several products that do not wait for each other. No y overlaps another's arguments.
struct product {
    struct tensor y, x; // (R,O), (R,K)
    const struct weight *w;
    struct tensor add; // (R,O), absent, or y itself
    enum act act;      // said each time: 0 is ACT_TANH
};

// The gradient of the input of one of several products. No dx overlaps another's arguments.
struct input_grad {
    struct tensor dx, dy; // ° (R,K), (R,O)
    const struct weight *w;
    struct tensor add; // (R,K) stored like dx, absent, or dx itself
    // Where the input was y = act(…), the gradient of what act had: y (R,K) stored like dx; absent:
    // not wanted. Nothing is added then.
    struct tensor y;
    enum act act;
};

// The gradient of the weight of one of several products. No dw overlaps another's arguments.
struct weight_grad {
    struct tensor dw;    // (O,K) or (K,O): the parameter's own layout
    struct tensor dy, x; // ° (R,O), (R,K)
    const struct weight *w;
    bool more; // +=
};

// key_prep, wkv7 and readout: what comes of the projections.
struct recall {
    struct tensor o, v_out;  // ° (R,C) the gated readout; ° (R,C) the values, may be absent
    struct tensor state;     // (S,H,N,N) as wkv7's, goes on in place; absent: from zero, not kept
    struct tensor saved;     // as wkv7 has it; may be absent
    struct tensor rkv, lora; // ° as key_prep has them, in the storage of o
    struct tensor v_first;   // the same
    struct tensor key_vecs;  // its (5,C)
    struct tensor read_vecs; // readout's (3,C)
    struct tensor u, y;      // ° what key_prep and wkv7 give; undefined afterwards without saved
};

// The gradient of norm_mix.
struct norm_mix_bwd {
    struct tensor dx;           // (R,C) = what comes of dm, and add
    struct tensor rounded;      // ° (R,C) = dx once more, for products; may be absent
    struct tensor dw, db, dmix; // (C), (C), (n,C) +=
    struct tensor dm;           // ° (n,R,C)
    struct tensor x, w, b, mix; // as norm_mix had them
    struct tensor shift_in;     // the same
    struct tensor add;          // (R,C), absent, or dx itself
    struct tensor z, dz;        // (R,C) undefined afterwards
    double eps;
};

struct ops {
    // -- rows ----------------------------------------------------------------------------------
    // y (R,C) = table (V,C)[tokens (R) i32]; the table in any float storage. A token below 0, -1-i,
    // stands for drawn (D) i32 [i], which nobody has to have seen; drawn may be absent if none is.
    void (*embed)(struct backend *, struct tensor y, struct tensor tokens, struct tensor drawn,
                  struct tensor table);
    // dtable (V,C) += dy at each row's token. order (R) i32: the rows by their tokens, those of one
    // token upwards.
    void (*embed_bwd)(struct backend *, struct tensor dtable, struct tensor dy,
                      struct tensor tokens, struct tensor order);

    // y (O,C) = x (R,C)[rows (O) i32].
    void (*gather_rows)(struct backend *, struct tensor y, struct tensor x, struct tensor rows);

    // y° = (x-μ)/√(var+ε) · w + b per row; population variance; w, b (C).
    void (*norm)(struct backend *, struct tensor y, struct tensor x, struct tensor w,
                 struct tensor b, double eps);
    // dx = add + s(e - mean e - x̂ mean(e x̂)), e = dy·w, s = 1/√(var+ε); dw += Σ dy x̂; db += Σ dy.
    // add (R,C) may be absent or dx itself: the gradient that flows past the norm.
    void (*norm_bwd)(struct backend *, struct tensor dx, struct tensor dw, struct tensor db,
                     struct tensor dy, struct tensor x, struct tensor w, double eps,
                     struct tensor add);

    // -- token shift -----------------------------------------------------------------------------
    // d = z[prev] - z; m° (n,R,C) = z + d · mix (n,C). The row before a span's first one is
    // shift_in (S,C)[slot], zeros if absent; shift_out (S,C)[slot], if present, = the span's last
    // z. shift_in and shift_out may be the same tensor.
    void (*shift_mix)(struct backend *, struct tensor m, struct tensor shift_out, struct tensor z,
                      struct tensor shift_in, struct tensor mix, const struct batch *);
    // dz (R,C) = Σ_n dm°_t (1-mix) + dm_{t+1} mix; dmix (n,C) += Σ_t dm_t (z_{t-1} - z_t).
    void (*shift_mix_bwd)(struct backend *, struct tensor dz, struct tensor dmix, struct tensor dm,
                          struct tensor z, struct tensor shift_in, struct tensor mix,
                          const struct batch *);

    // -- matrices --------------------------------------------------------------------------------
    // For each of n products y° (R,O) = f(add + x° (R,K) · W). Σ runs over k upward, in an order
    // that does not depend on R, over x rounded as the weight says. Terms of x = 0 may be left out.
    // There is no add where y is DT_BF16, and the product may be rounded before f, and f(it) is; y
    // and x may be that only with weights of bf16 inputs.
    void (*matmul)(struct backend *, const struct product *products, int n);
    // For each of n products dx = add + dy · Wᵀ, or with y (dy · Wᵀ) · act'(…) as act_bwd has it,
    // dy rounded likewise. The weights were created with `trained`. A dx of DT_BF16 may have been
    // rounded before act'.
    void (*matmul_bwd_x)(struct backend *, const struct input_grad *grads, int n);
    // For each of n products dw = the sum of the outer products of rows, or += where `more` says
    // so; x and dy rounded as the weight says.
    void (*matmul_bwd_w)(struct backend *, const struct weight_grad *grads, int n);

    // y = f(x): tanh x, σ(x), max(x,0)². y may be x.
    void (*act)(struct backend *, struct tensor y, struct tensor x, enum act f);
    // dx° = dy° · f'(x) from y° = f(x): 1-y², y(1-y), 2√y; all three in one storage. dx may be dy.
    void (*act_bwd)(struct backend *, struct tensor dx, struct tensor dy, struct tensor y,
                    enum act f);

    // -- time mix --------------------------------------------------------------------------------
    // From rkv° (3,R,C), lora° (4,R,C), v_first° (R,C) and vecs (5,C) the inputs of wkv7, u°
    // (5,R,C), all of ° in one storage, per head of N:
    //   U_W ω = w0 + lora_w (the decay logit);  a = σ(a0 + lora_a)
    //   U_V v = v' + (v_first - v') σ(v0 + lora_v), v' = rkv_v; v_first absent: v = v'
    //   κ = k' k_k / max(‖k' k_k‖₂, 1e-12), k' = rkv_k;  U_A = -κ;  U_B = κ a
    //   U_K k = k' (1 + (a-1) k_a)
    void (*key_prep)(struct backend *, struct tensor u, struct tensor rkv, struct tensor lora,
                     struct tensor v_first, struct tensor vecs, int H);
    // drkv°[K], drkv[V] = …; dlora°[W], dlora[A] = …, dlora[V] = … (zeros if v_first is absent),
    // stored like du°, rkv° and lora°. dv_first° (R,C) += if present; dvecs (5,C) +=. drkv[R] and
    // dlora[G] are left alone.
    void (*key_prep_bwd)(struct backend *, struct tensor drkv, struct tensor dlora,
                         struct tensor dv_first, struct tensor dvecs, struct tensor du,
                         struct tensor rkv, struct tensor lora, struct tensor v_first,
                         struct tensor vecs, int H);

    // The recurrence, per head, for value channels i and key channels j. In memory S is [j][i], so
    // that all its sums run along contiguous numbers; fp32 or more.
    //   w = exp(-c₀ σ(ω));  s_i = Σ_j S_ij a_j;  S_ij = S_ij w_j + s_i b_j + v_i k_j;  y_i = Σ_j
    //   S_ij r_j
    // y°, r°, u° (R,C), all in one storage. state_in (S,H,N,N)[slot], zeros if absent; state_out,
    // if present, receives the state after each span; both may be the same tensor. `saved` (bytes,
    // wkv7_saved_bytes; absent in inference) keeps what wkv7_bwd wants.
    // Where the backend has `half_states` both may be DT_F16, if nothing is saved: rounded to the
    // nearest, what f16 cannot hold to the largest that it can, after every STATE_CELL tokens of a
    // span and at its end. So a span cut there has the same bits.
    void (*wkv7)(struct backend *, struct tensor y, struct tensor state_out, struct tensor saved,
                 struct tensor r, struct tensor u, struct tensor state_in, const struct batch *,
                 int H);
    // dr° += ; du°[K], du[V] += ; du[W], du[A], du[B] = ; dy°, r°, u° in the same storage, and so
    // was forward. dstate_out (S,H,N,N) = ∂ℓ/∂(final state), zeros if absent; dstate_in, if
    // present, = ∂ℓ/∂(initial state); neither is DT_F16. Formulas: SPEC §4.1 in docs/math.md.
    void (*wkv7_bwd)(struct backend *, struct tensor dr, struct tensor du, struct tensor dstate_in,
                     struct tensor dy, struct tensor r, struct tensor u, struct tensor saved,
                     struct tensor dstate_out, const struct batch *, int H);

    // o° (R,C) = (GN(y) · weight + bias + (Σ_{j in head} r_j k_j r_k_j) v) · g; GN per head,
    // population variance, ε = 64e-5. u° supplies k and v; g° (R,C) is lora[G]; vecs (3,C). y°, r°,
    // u and g in the storage of o.
    void (*readout)(struct backend *, struct tensor o, struct tensor y, struct tensor r,
                    struct tensor u, struct tensor g, struct tensor vecs, int H);
    // dy°, dr°, du°[K], du[V], dg° = …; dvecs (3,C) +=. The other planes of du are left alone. All
    // but dvecs and vecs in one storage.
    void (*readout_bwd)(struct backend *, struct tensor dy, struct tensor dr, struct tensor du,
                        struct tensor dg, struct tensor dvecs, struct tensor d_o, struct tensor y,
                        struct tensor r, struct tensor u, struct tensor g, struct tensor vecs,
                        int H);

    // -- several ops as one ----------------------------------------------------------------------
    // Where a launch costs more than the work, or what lies between would go through memory for
    // nothing. The ops they stand for serve where a backend has NULL here, and give the same bits;
    // those of gradients may be others.
    //
    // z = norm(x), then shift_mix of it. z (R,C) is undefined afterwards.
    void (*norm_mix)(struct backend *, struct tensor m, struct tensor shift_out, struct tensor z,
                     struct tensor x, struct tensor w, struct tensor b, double eps,
                     struct tensor shift_in, struct tensor mix, const struct batch *);
    // z = norm(x) again, its gradient by shift_mix_bwd, and norm_bwd of that.
    void (*norm_mix_bwd)(struct backend *, const struct norm_mix_bwd *, const struct batch *);
    // What struct recall says.
    void (*recall)(struct backend *, const struct recall *, const struct batch *, int H);
    // y (n,S,M)[i][slots[j]] = 0 for every i and j < count, in any float storage: fill of each. The
    // list is the host's.
    void (*clear)(struct backend *, struct tensor y, const int32_t *slots, int count);

    // -- loss and sampling -----------------------------------------------------------------------
    // loss (O) = -log softmax(logits° (O,V))[target (O) i32]; a target < 0 gives 0 and no gradient.
    // dlogits (O,V), stored alike, absent or logits itself, = (softmax - onehot) · scale, plus,
    // with l2wrap, 1e-4 · max · scale at the first argmax of the row.
    void (*xent)(struct backend *, struct tensor loss, struct tensor dlogits, struct tensor logits,
                 struct tensor target, float scale, bool l2wrap);
    // token (O) i32, drawn from logits (O,V) (left changed) as rows (O) struct sample_row in u8
    // (O, sizeof) say. penalties (S, sample_penalty_bytes(V)) u8, or absent; updated with the
    // token: V f32 accumulators, then V bits, whose token has been generated; no other's
    // accumulator is anything but 0. biases (S,B) struct sample_bias in u8 (S, B sizeof), or absent where no row has any.
    void (*sample)(struct backend *, struct tensor token, struct tensor logits, struct tensor rows,
                   struct tensor penalties, struct tensor biases);

    // -- optimizer -------------------------------------------------------------------------------
    // sum (1) f64 = Σ x, or += where `more` says so; the same of x². In a fixed order.
    void (*sum)(struct backend *, struct tensor sum, struct tensor x, bool more);
    void (*sumsq)(struct backend *, struct tensor sum, struct tensor x, bool more);
    // g' = g · min(1, clip/(√Σg² + 1e-6)); m = β₁m + (1-β₁)g'; v = β₂v + (1-β₂)g'²;
    // p -= lr ( (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε) + wd p ), lr scaled for its group.
    void (*adamw)(struct backend *, const struct adamw *);

    // -- memory ----------------------------------------------------------------------------------
    void (*fill)(struct backend *, struct tensor y, double value);    // any float storage
    void (*copy)(struct backend *, struct tensor y, struct tensor x); // converts between floats
    // y° += x, stored alike.
    void (*add)(struct backend *, struct tensor y, struct tensor x);
};

// Penalties of one slot: V f32 accumulators, then one bit per token that was generated.
size_t sample_penalty_bytes(size_t V);

// The checked callers: one per op, same arguments.
void op_embed(struct backend *, struct tensor y, struct tensor tokens, struct tensor drawn,
              struct tensor table);
void op_embed_bwd(struct backend *, struct tensor dtable, struct tensor dy, struct tensor tokens,
                  struct tensor order);
void op_gather_rows(struct backend *, struct tensor y, struct tensor x, struct tensor rows);
void op_norm(struct backend *, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
             double eps);
void op_norm_bwd(struct backend *, struct tensor dx, struct tensor dw, struct tensor db,
                 struct tensor dy, struct tensor x, struct tensor w, double eps, struct tensor add);
void op_shift_mix(struct backend *, struct tensor m, struct tensor shift_out, struct tensor z,
                  struct tensor shift_in, struct tensor mix, const struct batch *);
void op_shift_mix_bwd(struct backend *, struct tensor dz, struct tensor dmix, struct tensor dm,
                      struct tensor z, struct tensor shift_in, struct tensor mix,
                      const struct batch *);
void op_matmul(struct backend *, const struct product *products, int n);
void op_matmul_bwd_x(struct backend *, const struct input_grad *grads, int n);
void op_matmul_bwd_w(struct backend *, const struct weight_grad *grads, int n);
void op_act(struct backend *, struct tensor y, struct tensor x, enum act f);
void op_act_bwd(struct backend *, struct tensor dx, struct tensor dy, struct tensor y, enum act f);
void op_key_prep(struct backend *, struct tensor u, struct tensor rkv, struct tensor lora,
                 struct tensor v_first, struct tensor vecs, int H);
void op_key_prep_bwd(struct backend *, struct tensor drkv, struct tensor dlora,
                     struct tensor dv_first, struct tensor dvecs, struct tensor du,
                     struct tensor rkv, struct tensor lora, struct tensor v_first,
                     struct tensor vecs, int H);
void op_wkv7(struct backend *, struct tensor y, struct tensor state_out, struct tensor saved,
             struct tensor r, struct tensor u, struct tensor state_in, const struct batch *, int H);
void op_wkv7_bwd(struct backend *, struct tensor dr, struct tensor du, struct tensor dstate_in,
                 struct tensor dy, struct tensor r, struct tensor u, struct tensor saved,
                 struct tensor dstate_out, const struct batch *, int H);
void op_readout(struct backend *, struct tensor o, struct tensor y, struct tensor r,
                struct tensor u, struct tensor g, struct tensor vecs, int H);
void op_readout_bwd(struct backend *, struct tensor dy, struct tensor dr, struct tensor du,
                    struct tensor dg, struct tensor dvecs, struct tensor d_o, struct tensor y,
                    struct tensor r, struct tensor u, struct tensor g, struct tensor vecs, int H);
void op_norm_mix(struct backend *, struct tensor m, struct tensor shift_out, struct tensor z,
                 struct tensor x, struct tensor w, struct tensor b, double eps,
                 struct tensor shift_in, struct tensor mix, const struct batch *);
void op_norm_mix_bwd(struct backend *, const struct norm_mix_bwd *, const struct batch *);
void op_recall(struct backend *, const struct recall *, const struct batch *, int H);
// As the ops they stand for.
void norm_mix_bwd_parts(struct backend *, const struct norm_mix_bwd *, const struct batch *);
void recall_parts(struct backend *, const struct recall *, const struct batch *, int H);
void op_clear(struct backend *, struct tensor y, const int32_t *slots, int count);
void op_xent(struct backend *, struct tensor loss, struct tensor dlogits, struct tensor logits,
             struct tensor target, float scale, bool l2wrap);
void op_sample(struct backend *, struct tensor token, struct tensor logits, struct tensor rows,
               struct tensor penalties, struct tensor biases);
void op_sum(struct backend *, struct tensor sum, struct tensor x, bool more);
void op_sumsq(struct backend *, struct tensor sum, struct tensor x, bool more);
void op_adamw(struct backend *, const struct adamw *);
void op_fill(struct backend *, struct tensor y, double value);
void op_copy(struct backend *, struct tensor y, struct tensor x);
void op_add(struct backend *, struct tensor y, struct tensor x);

// Names of the ops in table order, and how many a backend lacks (the first one's name in *missing);
// several ops as one are not missed.
const char *op_name(int i); // NULL past the last
int ops_missing(const struct ops *ops, const char **missing);
