// An RWKV-7 model: parameters on a backend, and the one forward pass that training, prefill and
// decoding share. Formulas: docs/math.md (SPEC-rwkv7 §3 and §4).
#pragma once
#include "backend/backend.h"
#include "model/params.h"

struct weights; // weights/weights.h

struct model_options {
    struct precision precision; // of the large matrices; int8 and int4 leave the LoRA matrices and
                                // the embedding in bf16; trained: DT_F32 or DT_BF16
    bool trained;               // keeps master parameters and gradients
    bool half_states; // states of sequences are f16 and not the backend's own; not every one can
};

// Owner: one thread at a time. Read-only after loading unless trained.
struct model {
    struct backend *be;
    struct dims dims;
    struct model_options options;
    int num_params;
    struct param *params; // params_list
    size_t num_vectors;   // elements of vectors at the front of `master`
    struct buffer *memory, *table_memory, *grad_memory, *rounded_memory;
    struct tensor master;    // (elements): all parameters when trained, else the vectors
    struct tensor grad;      // the same layout; trained only
    struct tensor rounded;   // (elements) of the matrices, the last of master, as products read
                             // them; absent where they read master or pack it themselves
    struct tensor embedding; // (V,C)
    struct weight **weights; // one per parameter, NULL for vectors and unused ones
    uint64_t hash;           // of sizes and numbers as loaded; 0: changed or never loaded
};

// All parameters zero; dims checked.
int model_create(struct model **out, struct backend *be, const struct dims *d,
                 struct model_options options, struct error *err);
void model_destroy(struct model *m); // NULL is fine

// Sizes from the shapes in a file: L, C, H, V and the LoRA ranks.
int model_dims_of(struct dims *out, const struct weights *w, struct error *err);

// Every parameter by name, strictly: missing, unknown and misshapen ones are errors that name both
// sides. Layer 0's value LoRA may be absent; variants with further tensors are refused by name.
int model_load(struct model *m, const struct weights *w, struct error *err);

// Opens a weight file with the sizes it has.
int model_open(struct model **out, struct backend *be, const char *path,
               struct model_options options, struct error *err);

// Official names and shapes, .pth, .safetensors or .gguf by extension. Trained models only.
int model_save(const struct model *m, const char *path, enum dtype stored, struct error *err);

// The gradients, by the same names and shapes, in the backend's storage.
int model_save_grads(const struct model *m, const char *path, struct error *err);

// The official initialisation (SPEC-rwkv7 §5.1), a pure function of the seed. Trained models only.
void model_init(struct model *m, uint64_t seed);
// Random numbers of a sensible size everywhere, quickly: for measuring speed. Any model. sparse:
// most of relu² comes out zero, as in trained models.
int model_randomise(struct model *m, uint64_t seed, bool sparse, struct error *err);
// One parameter of the initialisation; the matrices are not packed again.
struct pool;
void model_init_param(struct model *m, int param, uint64_t seed, struct pool *pool);

// After master changed: packs the matrices again. Trained models only.
void model_refresh(struct model *m);
// The same after op_adamw, which has written `rounded` itself.
void model_changed(struct model *m);

// How a parameter's matrix is held.
struct precision model_precision(struct model_options options, const struct param *p);

// Views by parameter, in master or grad.
struct tensor model_vector(const struct model *m, enum param_id id, int layer);            // (C)
struct tensor model_vectors(const struct model *m, enum param_id first, int n, int layer); // (n,C)
struct tensor model_master(const struct model *m, int param); // (rows, cols) or (count)
struct tensor model_grad(const struct model *m, int param);
const struct weight *model_weight(const struct model *m, enum param_id id, int layer);

// Bytes that model_create takes, for the plan before it: parameters, packed matrices, gradients.
size_t model_bytes(const struct backend *be, const struct dims *d, struct model_options options);
