// Decoding as one op: a token of one sequence, from its id to logits. It wants to know the whole
// model before, so it is an object and no entry of the table in ops.h; what it computes is what
// those ops would, one by one, with the same bits (forward.c in model/).
#pragma once
#include "backend/ops.h"

// A layer's parameters, as ops.h names and shapes them. The projections read the mixes of their
// names, the LoRAs MIX_W, MIX_A, MIX_V and MIX_G; f is tanh in the decay's LoRA, σ in the gate's.
struct decoder_layer {
    struct tensor ln1_w, ln1_b, ln2_w, ln2_b; // (C)
    struct tensor mix, ffn_mix;               // (6,C), (1,C)
    struct tensor key_vecs, read_vecs;        // (5,C), (3,C)
    const struct weight *rkv[RKV_COUNT];
    const struct weight *lora1[LORA_COUNT], *lora2[LORA_COUNT]; // LORA_V: NULL in layer 0
    const struct weight *output, *key, *value;
};

struct decoder_parts {
    int L, H;
    double eps;              // of the norms
    struct tensor embedding; // (V,C), any float storage
    struct tensor ln0_w, ln0_b, out_w, out_b;
    const struct weight *head;
    const struct decoder_layer *layers; // L
};

// Every decoder begins with this.
struct decoder {
    struct backend *be;
};

// One step of one row.
struct decode {
    struct tensor logits;      // (1,V), or absent: none are wanted
    struct tensor token, slot; // (1) i32
    struct tensor drawn;       // (D) i32, or absent: what a token below 0 stands for (op_embed)
    struct tensor shift;       // (L,2,S,C): what norm_mix takes and leaves, of LN1 and LN2
    struct tensor wkv;         // (L,S,H,N,N): states as recall has them
};
