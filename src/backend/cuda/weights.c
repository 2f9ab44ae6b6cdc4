// Matrices in the device. What is only read is packed as (K, padded O), which serves few rows and
// many; what is trained keeps its parameter's layout: f32 is read in place, bf16 from the caller's
// copy.
#include "backend/cuda/internal.h"

#include "backend/quant.h"
#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { PAD = 64 }; // outputs: 128 bytes of bf16

static size_t padded(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

static size_t packed_bytes(size_t K, size_t O, enum dtype t, size_t *scales) {
    const size_t ld = padded(O, PAD), group = quant_group(t);
    *scales = 0;
    if (t == DT_F32 || t == DT_BF16) return K * ld * dtype_size(t);
    *scales = padded(K, group) / group * ld * sizeof(float);
    return padded(K, group) * ld / (t == DT_INT4 ? 2 : 1);
}

size_t cuda_weight_bytes(const struct backend *be, size_t rows, size_t cols, struct precision p,
                         bool trained) {
    (void)be;
    size_t scales;
    if (trained) return 0;
    // Whichever side is K: the larger of both, within the padding.
    const size_t a = packed_bytes(rows, cols, p.stored, &scales) + scales;
    const size_t b = packed_bytes(cols, rows, p.stored, &scales) + scales;
    return a > b ? a : b;
}

// ---- integers ----------------------------------------------------------------------------------

// One output's column of K numbers into its place.
static void quantise_column(uint8_t *to, float *scales, const float *x, size_t K, size_t ld,
                            size_t o, enum dtype t) {
    const size_t group = quant_group(t);
    for (size_t k = 0; k < K; k += group) {
        float part[QUANT_MAX_GROUP] = {0};
        uint8_t q[QUANT_MAX_GROUP];
        const size_t n = K - k < group ? K - k : group;
        memcpy(part, x + k, n * sizeof *part);
        scales[k / group * ld + o] = quant_weights(q, part, group, t);
        for (size_t i = 0; i < group; i++)
            if (t == DT_INT8)
                to[(k + i) * ld + o] = q[i];
            else if (i % 2 == 0)
                to[(k + i) / 2 * ld + o] = (uint8_t)(q[i] | q[i + 1] << 4);
    }
}

// Made by the processor, whose integers all backends share.
static void pack_integers(struct cuda *c, struct cuda_weight *w, struct tensor src) {
    const size_t K = w->base.in, O = w->base.out, count = K * O, ld = w->m.sk;
    const bool oi = w->base.layout == WEIGHT_OUT_IN;
    const enum dtype t = w->base.precision.stored;
    size_t scale_bytes;
    const size_t bytes = packed_bytes(K, O, t, &scale_bytes);
    void *raw = mem_alloc(tensor_bytes(src));
    float *x = mem_alloc(count * sizeof *x), *column = mem_alloc(K * sizeof *column);
    char *packed = mem_zero(bytes + scale_bytes, 1);
    c->base.class->download(&c->base, raw, src);
    dtype_convert(x, DT_F32, raw, src.dtype, count);
    for (size_t o = 0; o < O; o++) {
        for (size_t k = 0; k < K; k++) column[k] = oi ? x[o * K + k] : x[k * O + o];
        quantise_column((uint8_t *)packed, (float *)(void *)(packed + bytes), column, K, ld, o, t);
    }
    cuda_failed(c,
                cudaMemcpyAsync(w->data, packed, bytes + scale_bytes, cudaMemcpyHostToDevice,
                                c->stream),
                "copying a weight");
    free(raw);
    free(x);
    free(column);
    free(packed);
}

// ---- the weight --------------------------------------------------------------------------------

void cuda_weight_refresh(struct backend *be, struct weight *base, struct tensor src) {
    struct cuda *c = cuda_of(be);
    struct cuda_weight *w = (struct cuda_weight *)base;
    const enum dtype t = base->precision.stored;
    c->rounded_of = NULL;
    if (base->trained && t == DT_F32) {
        w->m.data = dev(src);
    } else if (base->trained) {
        w->m.data = dev(w->rounded);
        k_copy(c->queue, dev(w->rounded), (int)t, dev(src), (int)src.dtype, tensor_count(src));
    } else if (!w->data) {
        return; // no memory: said at sync
    } else if (t == DT_F32 || t == DT_BF16) {
        k_pack(c->queue, w->data, (int)t, w->m.sk, dev(src), (int)src.dtype, base->in, base->out,
               base->layout == WEIGHT_OUT_IN);
        queue_settle(c->queue); // products take a weight to be there before they are (fixed)
    } else {
        pack_integers(c, w, src);
    }
}

bool cuda_weight_rounds(const struct backend *be, struct precision p) {
    (void)be;
    return p.stored == DT_BF16;
}

struct weight *cuda_weight_create(struct backend *be, struct tensor src, struct tensor rounded,
                                  enum weight_layout layout, struct precision p, bool trained) {
    struct cuda *c = cuda_of(be);
    struct cuda_weight *w = mem_zero(1, sizeof *w);
    const bool oi = layout == WEIGHT_OUT_IN;
    const size_t K = src.dim[oi ? 1 : 0], O = src.dim[oi ? 0 : 1];
    w->base = (struct weight){
        .be = be, .in = K, .out = O, .precision = p, .layout = layout, .trained = trained};
    w->m = (struct matrix){.type = (int)p.stored, .sk = padded(O, PAD), .so = 1};
    if (trained) {
        assert(src.dtype == DT_F32 && (p.stored == DT_F32 || p.stored == DT_BF16));
        assert(p.stored == DT_F32 || (rounded.dtype == DT_BF16 && tensor_is(rounded)));
        w->rounded = rounded;
        w->m.sk = oi ? 1 : O;
        w->m.so = oi ? K : 1;
    }
    size_t scales = 0;
    w->bytes = trained ? 0 : packed_bytes(K, O, p.stored, &scales);
    if (w->bytes) {
        void *data;
        cuda_enter(c);
        if (cuda_failed(c, cudaMalloc(&data, w->bytes + scales), "memory for a weight"))
            data = NULL;
        w->m.data = w->data = data;
        w->m.scale = scales ? (const float *)(const void *)((char *)data + w->bytes) : NULL;
    }
    const size_t rows = w->m.so == 1 ? K : O, cols = w->m.so == 1 ? O : K,
                 ld = w->m.so == 1 ? w->m.sk : w->m.so;
    const void *data = trained ? dev(rounded) : w->data;
    w->mapped = c->tiles && data && p.stored == DT_BF16 &&
                tile_map_make(&w->map, data, rows, cols, ld * sizeof(uint16_t), BOX_ROWS);
    cuda_weight_refresh(be, &w->base, src);
    return &w->base;
}

void cuda_weight_destroy(struct weight *base) {
    struct cuda_weight *w = (struct cuda_weight *)base;
    struct cuda *c = cuda_of(base->be);
    if (w->data) {
        cuda_enter(c);
        cuda_flush(c);
        cuda_failed(c, cudaStreamSynchronize(c->stream), "waiting for kernels");
        cuda_failed(c, cudaFree(w->data), "freeing memory");
    }
    free(w);
}
