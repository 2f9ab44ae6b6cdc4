// What the C files of this backend share.
#pragma once
#include "backend/backend.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/queue.h"

struct lt;
struct nccl;
struct ops;
struct transfer;

// Gradients of vectors are summed over rows in parts, which are added up together (sums.c).
struct sums {
    char *memory; // of the parts
    size_t bytes, used;
    struct part_list list;
};

struct cuda {
    struct backend base;
    cudaStream_t stream; // behind the queue: flush before anything else goes there
    struct queue *queue;
    int id;           // of the device
    char device[160]; // its name, for messages
    bool hopper;      // or later
    char *scratch;    // grows to the largest op's need; one op at a time uses it
    size_t scratch_bytes;
    // The gradient that matmul_bwd_w has just rounded to bf16: matmul_bwd_x often wants it next.
    // Any other op makes it stale.
    const void *rounded_of;
    uint16_t *rounded;
    size_t rounded_count;
    struct sums sums;
    struct lt *lt;      // NULL: our own kernels do all products
    size_t listed_from; // weights from which listed.cu does ffn.value of one row
    struct nccl *nccl;  // NULL: nobody has asked for other devices
    int processors;     // multiprocessors
    bool tiles;         // many.cu, large.cu, outer.cu and decode.cu run here
    bool token;         // a token in one launch: not switched off
    bool large_all;     // large.cu does all that it can
    struct mapped {     // what kernels of tiles want to know of matrices, by address
        const void *data;
        size_t rows, cols;
        unsigned box;
        struct tile_map map;
    } mapped[64];
    struct transfer *transfer;
    char trouble[300]; // the first thing that went wrong in an op; sync says it
};

struct cuda_buffer {
    struct buffer base;
    char *data; // in the device
};

static inline struct cuda *cuda_of(const struct backend *be) {
    return (struct cuda *)(void *)(uintptr_t)be;
}

// The address in the device; NULL if absent.
static inline void *dev(struct tensor t) {
    return t.buf ? ((struct cuda_buffer *)(void *)t.buf)->data + t.offset : NULL;
}

// The runtime's current device is the thread's: a backend may be opened in one, used in another.
cudaError_t cuda_enter(const struct cuda *c);

// sums.c. What is not added yet: settle adds it, before anybody can look; all that waits or
// uploads does so, and most ops.
float *sums_take(struct cuda *c, size_t floats); // memory for parts, until they are settled; NULL
void sums_add(struct cuda *c, struct part_sums s);
void sums_settle(struct cuda *c);

// Every op goes through here, but for gradients on their way down, which leave sums where they are.
static inline struct queue *queue_passing(struct backend *be) {
    struct cuda *c = cuda_of(be);
    cuda_enter(c);
    c->rounded_of = NULL;
    return c->queue;
}
static inline struct queue *queue_of(struct backend *be) {
    sums_settle(cuda_of(be));
    return queue_passing(be);
}
void cuda_flush(struct cuda *c); // all that is written down goes out

// At least so many bytes, contents undefined, valid until the next call. Where there is no memory
// left the op is done on what there is: NULL, and sync says why.
void *cuda_scratch(struct cuda *c, size_t bytes);
int cuda_failed(struct cuda *c, cudaError_t e, const char *doing); // notes it; whether it is one
int cuda_trouble(struct cuda *c, struct error *err); // what has been noted so far; 0: nothing

extern const struct ops cuda_ops; // ops.c

// transfer.c
int transfer_open(struct transfer **out, struct error *err); // *out is to be closed in every case
void transfer_close(struct transfer *t); // NULL is fine; the queue's stream stands still
void cuda_upload(struct backend *be, struct tensor dst, const void *src);
void cuda_fetch(struct backend *be, void *dst, struct tensor src);
int cuda_fetched(struct backend *be, struct error *err);

// weights.c
struct weight *cuda_weight_create(struct backend *be, struct tensor src, struct tensor rounded,
                                  enum weight_layout layout, struct precision p, bool trained);
bool cuda_weight_rounds(const struct backend *be, struct precision p);
void cuda_weight_refresh(struct backend *be, struct weight *w, struct tensor src);
void cuda_weight_destroy(struct weight *w);
size_t cuda_weight_bytes(const struct backend *be, size_t rows, size_t cols, struct precision p,
                         bool trained);

struct cuda_weight {
    struct weight base;
    void *data;    // packed, our own memory; NULL: trained, and read where it is
    float *scales; // of integers, behind them; NULL: there are none
    size_t bytes;
    struct tensor rounded; // trained and bf16: the caller's
    struct matrix m;
    struct tile_map map;
    bool mapped; // many.cu can take it
};

// matmul.c
struct product;
struct input_grad;
struct weight_grad;
void cuda_matmul(struct backend *be, const struct product *products, int n);
void cuda_matmul_bwd_x(struct backend *be, const struct input_grad *grads, int n);
void cuda_matmul_bwd_w(struct backend *be, const struct weight_grad *grads, int n);

// nccl.c: other devices, found at run time.
extern const struct comms cuda_comms;
void nccl_close(struct nccl *n);                   // NULL is fine
const char *nccl_trouble(const struct nccl *nccl); // as lt_trouble

// decode.c
struct decoder;
struct decoder_parts;
struct decode;
int cuda_decoder_create(struct decoder **out, struct backend *be, const struct decoder_parts *p,
                        struct error *err);
void cuda_decoder_destroy(struct decoder *d);
void cuda_decode(struct decoder *d, const struct decode *s);

// lt.c: cuBLASLt, found at run time. D (m,n) = A·B + C with columns contiguous, as cuBLAS has
// matrices; sums in f32. Whether it can be done.
struct lt_out {
    void *data; // D
    size_t ld;
    const void *add; // C, as D lies; NULL or D itself are fine
    bool narrow;     // C and D are bf16
};
struct lt_side {
    const void *data;
    size_t ld;
    bool turned; // the matrix in memory is the transpose
};
int lt_open(struct lt **out, struct error *err);
void lt_close(struct lt *lt);
const char *lt_trouble(const struct lt *lt); // what went wrong in a product so far, or NULL
bool lt_multiply(struct lt *lt, struct queue *q, struct lt_out d, struct lt_side a,
                 struct lt_side b, bool bf16, size_t m, size_t n, size_t k);
