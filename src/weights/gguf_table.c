#include "weights/gguf.h"

#include "backend/quant.h"
#include "base/half.h"

#include <math.h>
#include <string.h>

const struct gguf_name gguf_once[] = {
    {"token_embd.weight", "emb.weight", GGUF_SAME, false},
    {"token_embd_norm.weight", "blocks.0.ln0.weight", GGUF_SAME, true},
    {"token_embd_norm.bias", "blocks.0.ln0.bias", GGUF_SAME, true},
    {"output_norm.weight", "ln_out.weight", GGUF_SAME, true},
    {"output_norm.bias", "ln_out.bias", GGUF_SAME, true},
    {"output.weight", "head.weight", GGUF_SAME, false},
    {0},
};

const struct gguf_name gguf_layer[] = {
    {"attn_norm.weight", "ln1.weight", GGUF_SAME, true},
    {"attn_norm.bias", "ln1.bias", GGUF_SAME, true},
    {"attn_norm_2.weight", "ln2.weight", GGUF_SAME, true},
    {"attn_norm_2.bias", "ln2.bias", GGUF_SAME, true},
    {"time_mix_lerp_fused.weight", "att.x_r", GGUF_FUSED, true},
    {"time_mix_w0.weight", "att.w0", GGUF_ROW, true},
    {"time_mix_w1.weight", "att.w1", GGUF_TURNED, true},
    {"time_mix_w2.weight", "att.w2", GGUF_TURNED, true},
    {"time_mix_a0.weight", "att.a0", GGUF_ROW, true},
    {"time_mix_a1.weight", "att.a1", GGUF_TURNED, false},
    {"time_mix_a2.weight", "att.a2", GGUF_TURNED, false},
    {"time_mix_v0.weight", "att.v0", GGUF_ROW, true},
    {"time_mix_v1.weight", "att.v1", GGUF_TURNED, false},
    {"time_mix_v2.weight", "att.v2", GGUF_TURNED, false},
    {"time_mix_g1.weight", "att.g1", GGUF_TURNED, false},
    {"time_mix_g2.weight", "att.g2", GGUF_TURNED, false},
    {"time_mix_k_k.weight", "att.k_k", GGUF_ROW, true},
    {"time_mix_k_a.weight", "att.k_a", GGUF_ROW, true},
    {"time_mix_r_k.weight", "att.r_k", GGUF_HEADS, true},
    {"time_mix_receptance.weight", "att.receptance.weight", GGUF_SAME, false},
    {"time_mix_key.weight", "att.key.weight", GGUF_SAME, false},
    {"time_mix_value.weight", "att.value.weight", GGUF_SAME, false},
    {"time_mix_output.weight", "att.output.weight", GGUF_SAME, false},
    {"time_mix_ln.weight", "att.ln_x.weight", GGUF_SAME, true},
    {"time_mix_ln.bias", "att.ln_x.bias", GGUF_SAME, true},
    {"channel_mix_lerp_k.weight", "ffn.x_k", GGUF_ROW, true},
    {"channel_mix_key.weight", "ffn.key.weight", GGUF_SAME, false},
    {"channel_mix_value.weight", "ffn.value.weight", GGUF_SAME, false},
    {0},
};

const char *const gguf_mixes[GGUF_MIXES] = {"att.x_r", "att.x_w", "att.x_k",
                                            "att.x_v", "att.x_a", "att.x_g"};

bool gguf_is_dummy(const char *official, int layer) {
    static const char *const dummies[] = {"att.v0", "att.v1", "att.v2"};
    for (size_t i = 0; layer == 0 && i < sizeof dummies / sizeof dummies[0]; i++)
        if (strcmp(official, dummies[i]) == 0) return true;
    return false;
}

const char *gguf_type_name(uint32_t type) {
    static const char *const names[] = {
        [0] = "f32",     [1] = "f16",      [2] = "q4_0",   [3] = "q4_1",    [6] = "q5_0",
        [7] = "q5_1",    [8] = "q8_0",     [9] = "q8_1",   [10] = "q2_K",   [11] = "q3_K",
        [12] = "q4_K",   [13] = "q5_K",    [14] = "q6_K",  [15] = "q8_K",   [16] = "iq2_xxs",
        [17] = "iq2_xs", [18] = "iq3_xxs", [19] = "iq1_s", [20] = "iq4_nl", [21] = "iq3_s",
        [22] = "iq2_s",  [23] = "iq4_xs",  [24] = "i8",    [25] = "i16",    [26] = "i32",
        [27] = "i64",    [28] = "f64",     [29] = "iq1_m", [30] = "bf16",   [34] = "tq1_0",
        [35] = "tq2_0",  [39] = "mxfp4",
    };
    return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}

// ---- blocks ------------------------------------------------------------------------------------

static float scale_of(const uint8_t *block) {
    return f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

static int put_scale(uint8_t *block, float scale) {
    const uint16_t half = f32_to_f16(scale);
    if ((half & 0x7fff) >= 0x7c00) return -1; // infinite, or NaN
    block[0] = (uint8_t)half;
    block[1] = (uint8_t)(half >> 8);
    return 0;
}

static void q8_0_read(float *x, const uint8_t *block) {
    const float scale = scale_of(block);
    for (int k = 0; k < GGUF_BLOCK; k++) x[k] = scale * (float)(int8_t)block[2 + k];
}

// The scale is the largest magnitude / 127, and the numbers are divided by it before it is rounded
// to f16, as llama.cpp does: the same weights give the same file.
static int q8_0_write(uint8_t *block, const float *x) {
    float most = 0;
    for (int k = 0; k < GGUF_BLOCK; k++) {
        if (!isfinite(x[k])) return -1;
        most = fmaxf(most, fabsf(x[k]));
    }
    const float scale = most / 127, inverse = scale > 0 ? 1 / scale : 0;
    if (put_scale(block, scale)) return -1;
    for (int k = 0; k < GGUF_BLOCK; k++)
        block[2 + k] = (uint8_t)(int8_t)(isfinite(inverse) ? roundf(x[k] * inverse) : 0);
    return 0;
}

static void q4_0_read(float *x, const uint8_t *block) {
    const float scale = scale_of(block);
    for (int k = 0; k < GGUF_BLOCK / 2; k++) {
        x[k] = scale * (float)((block[2 + k] & 15) - 8);
        x[k + GGUF_BLOCK / 2] = scale * (float)((block[2 + k] >> 4) - 8);
    }
}

// As our int4 is made, so that `--dtype int4` computes with what the file says.
static int q4_0_write(uint8_t *block, const float *x) {
    uint8_t q[GGUF_BLOCK];
    if (put_scale(block, quant_weights(q, x, GGUF_BLOCK, DT_INT4))) return -1;
    for (int k = 0; k < GGUF_BLOCK / 2; k++)
        block[2 + k] = (uint8_t)(q[k] | q[k + GGUF_BLOCK / 2] << 4);
    return 0;
}

const struct gguf_blocks gguf_blocks[] = {
    [BLOCKS_Q8_0] = {GGUF_TYPE_Q8_0, 7, "q8_0", 2 + GGUF_BLOCK, q8_0_read, q8_0_write},
    [BLOCKS_Q4_0] = {GGUF_TYPE_Q4_0, 2, "q4_0", 2 + GGUF_BLOCK / 2, q4_0_read, q4_0_write},
};

enum weights_blocks gguf_blocks_of(uint32_t type) {
    return type == GGUF_TYPE_Q8_0   ? BLOCKS_Q8_0
           : type == GGUF_TYPE_Q4_0 ? BLOCKS_Q4_0
                                    : BLOCKS_NONE;
}

void blocks_read(enum weights_blocks kind, void *out, enum dtype to, const uint8_t *data,
                 size_t first, size_t count) {
    const struct gguf_blocks *b = &gguf_blocks[kind];
    char *at = out;
    for (size_t i = first, end = first + count; i < end;) {
        float x[GGUF_BLOCK];
        const size_t k = i % GGUF_BLOCK, left = end - i;
        const size_t n = GGUF_BLOCK - k < left ? GGUF_BLOCK - k : left;
        b->read(x, data + i / GGUF_BLOCK * b->bytes);
        dtype_convert(at, to, x + k, DT_F32, n);
        at += n * dtype_size(to);
        i += n;
    }
}

int blocks_write(enum weights_blocks kind, uint8_t *data, const float *x, size_t count) {
    const struct gguf_blocks *b = &gguf_blocks[kind];
    for (size_t i = 0; i < count; i += GGUF_BLOCK, data += b->bytes)
        if (b->write(data, x + i)) return -1;
    return 0;
}
