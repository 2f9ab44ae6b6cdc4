// Matrices in the device. What is only read is packed as (K, padded O), which serves few rows and
// many; what is trained keeps its parameter's layout: f32 is read in place, bf16 from the caller's
// copy.
#include "backend/cuda/internal.h"

#include "backend/quant.h"
#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

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
    } else {
        const bool oi = base->layout == WEIGHT_OUT_IN;
        if (t == DT_F32 || t == DT_BF16)
            k_pack(c->queue, w->data, (int)t, w->m.sk, dev(src), (int)src.dtype, base->in,
                   base->out, oi);
        else
            k_quantise(c->queue, w->data, w->scales, (int)t, w->m.sk, dev(src), (int)src.dtype,
                       base->in, base->out, oi);
        queue_settle(c->queue); // products take a weight to be there before they are (fixed)
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
        w->m.scale = w->scales = scales && data ? (float *)(void *)((char *)data + w->bytes) : NULL;
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
