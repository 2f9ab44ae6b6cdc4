// The parameter table: one row per tensor of the official model. It feeds loading, initialisation,
// the optimizer's groups, checkpoints and tests.
#pragma once
#include "backend/backend.h"

// Sizes of a model. F = 4C. D*: widths of the LoRA matrices (decay, in-context rate, value, gate).
struct dims {
    int L, C, H, V;
    int Dw, Da, Dv, Dg;
};

// Once per model, then once per layer.
enum param_id {
    P_EMB,
    P_LN0_W,
    P_LN0_B,
    P_OUT_W,
    P_OUT_B,
    P_HEAD,
    P_ONCE,
    P_LN1_W = P_ONCE,
    P_LN1_B,
    P_LN2_W,
    P_LN2_B,
    P_X_R,
    P_X_W,
    P_X_K,
    P_X_V,
    P_X_A,
    P_X_G, // in the order of MIX_*, adjacent in memory
    P_W0,
    P_A0,
    P_V0,
    P_K_K,
    P_K_A, // KEY_*, adjacent
    P_LNX_W,
    P_LNX_B,
    P_R_K, // READ_*, adjacent
    P_W1,
    P_W2,
    P_A1,
    P_A2,
    P_V1,
    P_V2,
    P_G1,
    P_G2,
    P_RECEPTANCE,
    P_KEY,
    P_VALUE,
    P_OUTPUT,
    P_FFN_X_K,
    P_FFN_KEY,
    P_FFN_VALUE,
    P_END,
};

enum { PARAMS_PER_LAYER = P_END - P_ONCE };

// One tensor of one model.
struct param {
    char name[48]; // "blocks.0.att.w0"
    enum param_id id;
    int layer; // 0 for those that exist once
    int ndim;  // as in official files
    size_t dim[3];
    size_t count;
    size_t offset; // elements from the start of the model's parameters, see params_layout
    bool matrix;   // goes through weight_create
    enum weight_layout layout; // matrices only
    bool unused;               // layer 0's value LoRA: carried, never computed with
    double lr_scale;
    bool decay; // in the optimizer's weight-decay group
};

int params_count(const struct dims *d);
// Fills params_count(d) entries. Offsets: vectors first, then the embedding, then matrices, each
// group of adjacent vectors starting at a multiple of 16. *vectors: elements before the embedding.
// Returns the elements in all.
size_t params_list(struct param *out, const struct dims *d, size_t *vectors);
// Where a parameter is in the list; layer is ignored for those that exist once.
int params_index(enum param_id id, int layer);

// The official trainer's LoRA widths for a model of this width: max(32, 32·round(f·√C/32)·N/64).
void dims_default_ranks(struct dims *d);

// Parameters of the whole model, layer 0's unused ones included.
size_t dims_param_count(const struct dims *d);

// -1 with the reason if a model of these sizes cannot be computed.
int dims_check(const struct dims *d, struct error *err);
