// The doors between the C side of this backend and its kernels: plain pointers and counts, every
// call goes into the queue. Names follow ops.h; letters as in backend.h. A part (…) is scratch of
// the stated size. All sums over rows have a fixed order that depends on sizes only.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queue; // queue.h

#ifdef __cplusplus
extern "C" {
#endif

// `narrow`: the void pointers before it are bf16, else f32.
// ---- norm.cu
void k_norm(struct queue *s, void *y, bool narrow, const float *x, const float *w, const float *b,
            size_t R, size_t C, float eps);
// part: k_parts(R) · 2C, for dw and db, then 2R floats; 8-byte aligned.
void k_norm_bwd(struct queue *s, float *dx, const float *dy, const float *x, const float *w,
                const float *add, float *part, size_t R, size_t C, float eps);

// ---- embed.cu, rows.cu
// Types are those of backend/dtype.h, as numbers: kernels see no other header of ours.
// D: of drawn, which may be NULL.
void k_embed(struct queue *s, float *y, const int32_t *token, const int32_t *drawn, size_t D,
             const void *table, int type, size_t R, size_t C, size_t V);
size_t k_embed_strips(size_t R);
// part: k_embed_strips(R) · C.
void k_embed_bwd(struct queue *s, float *dtable, const float *dy, const int32_t *token,
                 const int32_t *order, float *part, size_t R, size_t C, size_t V);
void k_gather_rows(struct queue *s, float *y, const float *x, const int32_t *row, size_t O,
                   size_t C);
void k_shift_mix(struct queue *s, void *m, bool narrow, float *out, const float *z, const float *in,
                 const float *mix, const int32_t *prev, const int32_t *last, size_t n, size_t R,
                 size_t C, bool single); // single: every span is one row
// part: k_parts(R) · nC, for dmix.
void k_shift_mix_bwd(struct queue *s, float *dz, const void *dm, bool narrow, const float *z,
                     const float *in, const float *mix, const int32_t *prev, const int32_t *last,
                     float *part, size_t n, size_t R, size_t C);
void k_act(struct queue *s, void *y, const void *x, bool narrow, size_t n, int act);
void k_act_bwd(struct queue *s, void *dx, const void *dy, const void *y, bool narrow, size_t n,
               int act);
size_t k_parts(size_t R); // how many partial sums R rows are cut into
// Each part has n[0] sums for out[0], then n[1] for out[1], …: out += Σ over parts, in order.
enum { SUM_OUTS = 3, MOST_SUMS = 4 };
struct part_sums {
    float *out[SUM_OUTS];
    size_t n[SUM_OUTS];
    const float *part;
    size_t parts;
};
struct part_list {
    struct part_sums of[MOST_SUMS];
    int n;
};
void k_add_parts(struct queue *s, const struct part_list *list); // no two of one out
void k_fill(struct queue *s, void *y, const void *value, size_t size, size_t n);
// A few words of 4 bytes that the host has: they travel with the launch. False: too many, or odd.
enum { PUT_WORDS = 512 };
bool k_put(struct queue *s, void *to, const void *from, size_t bytes);
// y (n,S) stretches of so many bytes: those of the slots become zero.
void k_clear(struct queue *s, void *y, size_t n, size_t S, size_t bytes, const int32_t *slots,
             int count);
void k_copy(struct queue *s, void *y, int to, const void *x, int from, size_t n);
void k_copy_bytes(struct queue *s, void *y, const void *x, size_t bytes);
void k_add(struct queue *s, void *y, const void *x, bool narrow, size_t n);

// ---- heads.cu; `narrow`: all void pointers are bf16, else f32. Names as in ops.h.
struct key_args {
    void *u;
    const void *rkv, *lora, *v_first; // v_first may be NULL
    const float *vecs;
    size_t R, C;
    int H;
    bool narrow;
};
void k_key_prep(struct queue *s, const struct key_args *p);
struct key_bwd_args {
    void *drkv, *dlora, *dv_first; // dv_first may be NULL, with v_first
    float *part;                   // k_parts(R) · 5C, for dvecs
    const void *du, *rkv, *lora, *v_first;
    const float *vecs;
    size_t R, C;
    int H;
    bool narrow;
};
void k_key_prep_bwd(struct queue *s, const struct key_bwd_args *p);
struct read_args {
    void *o;
    const void *y, *r, *u, *g;
    const float *vecs;
    size_t R, C;
    int H;
    bool narrow;
};
void k_readout(struct queue *s, const struct read_args *p);
struct read_bwd_args {
    void *dy, *dr, *du, *dg;
    float *part; // k_parts(R) · 3C, for dvecs
    const void *d_o, *y, *r, *u, *g;
    const float *vecs;
    size_t R, C;
    int H;
    bool narrow;
};
void k_readout_bwd(struct queue *s, const struct read_bwd_args *p);

// ---- norm_mix.cu; step.cu: batches whose spans are one row each. Whether they can be done so; if
// not, nothing has been.
struct mix_args {
    void *m;    // (n,R,C)
    float *out; // may be NULL, or in
    const float *x, *w, *b, *in, *mix;
    const int32_t *prev, *last;
    size_t n, R, C;
    int spans;
    float eps;
    bool narrow; // m is bf16
};
bool k_norm_mix(struct queue *s, const struct mix_args *p);
struct mix_bwd_args {
    float *dx;
    uint16_t *rounded; // dx once more; may be NULL
    float *dmix, *dw, *db;
    const void *dm;                          // (n,R,C)
    const float *x, *w, *b, *mix, *in, *add; // in and add may be NULL, add may be dx
    const int32_t *prev;
    float *part; // k_parts(R) · (n + 2)C, for dmix, dw and db
    size_t n, R, C;
    float eps;
    bool narrow; // dm is bf16
};
bool k_norm_mix_bwd(struct queue *s, const struct mix_bwd_args *p);
struct recall_args {
    void *o, *v_out;                  // v_out may be NULL
    void *state;                      // goes on in place
    const void *rkv, *lora, *v_first; // v_first may be NULL
    const float *key_vecs, *read_vecs;
    const int32_t *span;
    size_t R, C;
    int H;
    bool narrow, half; // all void pointers but the state are bf16; the state is f16
};
bool k_recall(struct queue *s, const struct recall_args *p);

// ---- wkv7.cu
int k_wkv7_chunk(int N); // tokens between the states that training keeps
int k_wkv7_grain(int N); // the backend's wkv7_grain
struct wkv7_args {
    // saved: s = S_{t-1}a (R,C), then the states at chunk starts: a span's begin at slot
    // floor(first/chunk) + span index, which leaves every span room enough. What goes in whole
    // chunks has the chunk's inverse (16,16) where s of its first 16 channels would be, so backward
    // has to go the way forward went: `exact` and where tensors lie are the same for both.
    void *y, *state_out;
    float *saved;
    const void *r, *u, *state_in;
    void *dr, *du; // backward
    float *dstate_in;
    const void *dy;
    const float *dstate_out;
    const int32_t *span; // (spans, 4)
    size_t R, C;
    int spans, H;
    int singles, longest; // as struct batch has them
    uint64_t remainders;
    bool exact;  // token by token, whatever the head size
    bool narrow; // y, r, u and their gradients are bf16: the void pointers
    bool half;   // but the states, which are f16
    // Heads of 64 go through chunks of a span at once, then through the rest, if there is one, token
    // by token. Scratch: the state between the two, or its gradient, (spans,H,N,N); backward, the
    // gradients of states at the ends of segments.
    float *carry;
};
size_t k_wkv7_scratch(const struct wkv7_args *a); // numbers of carry
void k_wkv7(struct queue *s, const struct wkv7_args *a);
void k_wkv7_bwd(struct queue *s, const struct wkv7_args *a);

// ---- loss.cu, sample.cu
void k_xent(struct queue *s, float *loss, void *dlogits, const void *logits, bool narrow,
            const int32_t *target, size_t O, size_t V, float scale, bool l2wrap);
// A slot has so many bytes of penalties and of biases; either may be NULL.
void k_sample(struct queue *s, int32_t *token, float *logits, const void *rows, void *penalties,
              size_t penalty_bytes, const void *biases, size_t bias_bytes, size_t O, size_t V);

// ---- optim.cu
enum { SUM_PARTS = 1024 };
void k_sum(struct queue *s, double *sum, const float *x, size_t n, bool more);
void k_sumsq(struct queue *s, double *sum, const float *x, size_t n, bool more,
             double *part); // SUM_PARTS
struct adamw_args {         // as struct adamw
    float *p, *m, *v;
    uint16_t *rounded; // of p from `from` on; may be NULL
    const float *g;
    const void *groups; // struct adamw_group
    const double *sums, *now;
    size_t n, from;
    int num_groups;
    double clip;
    float b1, b1_rest, b2, b2_rest, eps; // β and 1-β
};
void k_adamw(struct queue *s, const struct adamw_args *a);

// ---- products.cu
// A matrix in device memory: element (k, o) of x (R,K) · W (K,O) lies at k·sk + o·so. Integers lie
// (K,so) with sk = row length; int4 has two k in a byte, the even one low.
struct matrix {
    const void *data;
    const float *scale; // integers: (K/group, sk) f32
    int type;
    size_t sk, so;
};
struct product_args {
    float *y;
    const float *x, *add; // add may be NULL or y
    struct matrix w;
    size_t xr, xk; // strides of x: rows and k
    size_t R, K, O;
    int act;     // enum act
    bool narrow; // x is rounded to bf16 first, and so is w if it is f32
    bool fixed;  // w was there long before: it may be read before the queue comes here
    void *scratch; // k_integers_scratch bytes at 16, or NULL: inputs as integers
};
enum { MAX_PRODUCTS = 8, SKINNY_ROWS = 16 };
struct product_list {
    struct product_args p[MAX_PRODUCTS];
    int n;
};
// Up to SKINNY_ROWS rows, or any number of bf16, any of n products together, all of as many rows; W
// has so = 1 and rows of whole 16 bytes.
void k_skinny(struct queue *s, const struct product_list *list);
// listed.cu: one row that is mostly zero, in an order of its own. Whether it can be done so.
bool k_listed(struct queue *s, const struct product_args *p);
// Bytes that many rows of integers want; 0: they do without.
size_t k_integers_scratch(const struct product_args *p);
// Any number of rows and any strides. The same bits as k_skinny gives.
void k_product(struct queue *s, const struct product_args *p);

// ---- tile_map.c, many.cu: more rows of bf16, on Hopper
// How a matrix of bf16 (rows, cols) in device memory is copied by tiles of `box` rows and 64
// columns: the driver's own words, or those of the emulator.
struct tile_map {
    uint64_t opaque[16];
};
// Whether it can be. pitch: bytes from row to row.
bool tile_map_make(struct tile_map *m, const void *data, size_t rows, size_t cols, size_t pitch,
                   unsigned box);
// The same where rows are cut into n stretches of len, one below the other, and a copy takes `box`
// rows and `width` columns, 16 or 32, of each: in shared memory (n,box,width). lines: whole lines
// of 128 bytes come to the second-level cache, for a neighbour will want the rest.
bool tile_map_stretches(struct tile_map *m, const void *data, size_t n, size_t len, size_t cols,
                        size_t pitch, unsigned box, unsigned width, bool lines);
enum { BOX_ROWS = 64, STORE_ROWS = 16 }; // of what is copied in, and out
enum { SLIM = 256 }; // a side of a matrix up to which moving it is what takes time
struct many_product {
    struct tile_map x, w; // (R,K); (K,O), or (O,K) if by_output
    void *y;              // (R,O)
    const void *add;      // (R,O), stored like y, or NULL
    const void *h;        // the same: y is times act's slope where it gave h, and nothing is added
    int K, O, act;
    int narrow, by_output, fixed; // y is bf16; as said; as above
    uint64_t reserved[2];         // maps lie at multiples of 64, and lists are compared: no gaps
};
struct many_list {
    struct many_product p[MAX_PRODUCTS];
    int n, R;
    int processors; // multiprocessors of the device
};
void k_many(struct queue *s, const struct many_list *list);
// large.cu: one large product, all of bf16: y = relu²(x · W), or (x · W) · 2√h if `slope`.
struct large_product {
    struct tile_map x, w, y, h; // as above, but y in STORE_ROWS; (R,O), if `slope`
    int R, K, O, by_output, slope;
    uint32_t reserved[11]; // as above
};
void k_large(struct queue *s, const struct large_product *p);
// outer.cu: gradients of weights that have a short side, dw = or += wideᵀ · slim, on Hopper.
struct outer {
    struct tile_map wide, slim; // (R,W), (R,S)
    float *dw;                  // (W,S), or (S,W) if slim_first
    int W, S, slim_first, more; // more: +=
    uint64_t reserved[5];       // as above
};
struct outer_list {
    struct outer p[MAX_PRODUCTS];
    int n, R;
};
void k_outer(struct queue *s, const struct outer_list *list);

// ---- decode.c, decode.cu: a token of one sequence in one launch, on Hopper ---------------------
// Channels, at most: wider models lose against op by op, most of all the widest (decode.cu).
enum { DECODE_WIDEST = 2048 };
enum { DECODE_RANKS = 4 }; // LoRAs, in the order of ops.h
// A layer's matrices: first those that read mixes, in the order in which their outputs are dealt.
enum decode_matrix {
    DM_R,
    DM_K,
    DM_V,
    DM_V1,
    DM_W1,
    DM_A1,
    DM_G1,
    DM_MIXED, // so many
    DM_W2 = DM_MIXED,
    DM_A2,
    DM_V2,
    DM_G2,
    DM_OUTPUT,
    DM_KEY,
    DM_VALUE,
    DM_COUNT
};
// What is dealt to the blocks in pieces: slices of outputs of the matrices that read mixes; heads;
// slices of the residual stream, which output and value add to; of key; of the head of the model.
enum decode_part { DP_PROJECT, DP_RECALL, DP_STREAM, DP_EXPAND, DP_LOGITS, DP_COUNT };
// What a block does one after the other: a layer's works; what is after the last layer, and before
// the first.
enum decode_work {
    DW_PROJECT,
    DW_RECALL,
    DW_OUTPUT,
    DW_EXPAND,
    DW_VALUE,
    DW_LOGITS,
    DW_BEGIN,
    DW_COUNT
};
struct decode_job {
    int part, matrix;  // whose outputs; the first matrix
    int K, len, width; // k, all and of a warp's stretch; outputs of a slice
    int step;          // k of each stretch that a slot of the ring takes
    int whole, rest;   // stretches that have all of len; whether one has less
    // The norm before, of layer 0 where there are several: NULL if there is none. mix: NULL, or
    // all.
    const float *w, *b, *mix;
};
enum { DECODE_PLANES = 4 }; // mixes that a block wants, at most
// How slots of the ring are copied out of a matrix, bf16 (K,pitch): the stretches that are whole,
// and what K leaves for one more. Second matrices of LoRAs: 16 rows of 64 outputs, and nothing.
struct decode_maps {
    struct tile_map whole, rest;
};
struct decode_block {
    int32_t first[DP_COUNT], count[DP_COUNT]; // its pieces
    uint8_t planes, mix[DECODE_PLANES];       // how many mixes, and which
    uint8_t plane_of[DM_MIXED];               // which of them a matrix reads
    uint8_t writes[2];                        // whether it leaves LN1, LN2 with the states
};
struct decode_args {
    // Of the model.
    const struct decode_maps *maps;    // (L,DM_COUNT), and one more: the head
    const uint16_t *const *values;     // ffn.value of each layer, bf16 (4C,value_pitch)
    const struct decode_block *blocks; // one a block
    struct decode_job jobs[DW_COUNT];
    // Layer 0's, and how many numbers further on the next one's are: these, and the norms' and
    // mixes.
    const float *key_vecs, *read_vecs;
    size_t layer_stride;
    const uint16_t *embedding;
    // What blocks hand to each other, decode.cuh says how; and how often they have, one a block.
    uint64_t *x, *rkv, *hidden, *o, *h;
    uint32_t *turns;
    // Of the step, as ops.h and decoder.h have it.
    const int32_t *token, *drawn, *slot;
    float *shift;
    size_t norm_stride; // S·C: numbers of shift that are of one norm
    void *wkv;
    float *logits; // NULL: not wanted
    int L, C, H, V, S, num_drawn;
    int rank[DECODE_RANKS], rank_from[DECODE_RANKS], ranks; // LoRAs side by side: begins; all
    int value_pitch;                                        // numbers in a row
    int first_slice[DM_MIXED + 1];
    int width[DP_COUNT]; // outputs of a slice, 16 or 32
    int half;            // the state is f16
    int flight;          // slots that are on their way to a block at a time
    int lists;           // of ffn.value only rows are read that are wanted
    float eps;
    // Shared memory: slots of the ring, and where the rest begins, in bytes; act_pitch: what a warp
    // has of inputs.
    int slots, x_at, act_at, act_pitch, part_at, own_at, first_at, room_at, hidden_at, list_at,
        list_pitch, slices_at, small_at, shared;
    int grid;
};
enum { DECODE_SLOT = 16 << 10, DECODE_SLOTS = 12, DECODE_SHARED = 227 << 10 };
enum { LORA_SLOT = DECODE_SLOT / 128 }; // rows of a LoRA's second matrix in a slot
// Bytes of shared memory that a block wants, and where; the ring takes what is left. most_pieces:
// of each part in a block.
void k_decode_lay_out(struct decode_args *a, const int *most_pieces, int most_planes);
int k_decode_stretch(int K);     // decode_job.len
int k_decode_blocks(int device); // one a multiprocessor, all there at once; 0: they cannot be
void k_decode(struct queue *s, const struct decode_args *a);

// y = bf16(x), and back.
void k_round_bf16(struct queue *s, uint16_t *y, const float *x, size_t n);
void k_widen_bf16(struct queue *s, float *y, const uint16_t *x, size_t n);
// ---- pack.cu
// y (K,ld) of type `to` from x of any float type: (O,K) if oi, else (K,O); the rest of ld is zero.
void k_pack(struct queue *s, void *y, int to, size_t ld, const void *x, int from, size_t K,
            size_t O, bool oi);
// The same as integers (backend/quant.h): y (K,ld), two k a byte for DT_INT4; K is padded to whole
// groups. scales (groups,ld).
void k_quantise(struct queue *s, void *y, float *scales, int to, size_t ld, const void *x, int from,
                size_t K, size_t O, bool oi);

#ifdef __cplusplus
}
#endif
