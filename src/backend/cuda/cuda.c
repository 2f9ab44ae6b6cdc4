#include "backend/cuda/cuda.h"

#include "backend/cuda/internal.h"
#include "backend/ops.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// device.cuh and sample.cu write these down once more.
_Static_assert(DT_F64 == 1 && DT_F32 == 2 && DT_BF16 == 3 && DT_F16 == 4 && DT_INT8 == 9 &&
                   DT_INT4 == 10,
               "types of device.cuh");
_Static_assert(ACT_TANH == 0 && ACT_SIGMOID == 1 && ACT_RELU2 == 2 && ACT_NONE == 3,
               "activations of device.cuh");
_Static_assert(STATE_CELL == 64, "STATE_CELL of device.cuh");
_Static_assert(sizeof(struct sample_row) == 64, "sample_row of sample.cuh");

// ---- trouble -----------------------------------------------------------------------------------

// Ops cannot fail, so the first failure is kept until somebody waits for the device.
int cuda_failed(struct cuda *c, cudaError_t e, const char *doing) {
    if (e == cudaSuccess) return 0;
    if (!c->trouble[0])
        snprintf(c->trouble, sizeof c->trouble, "%s: %s: %s", c->device, doing,
                 cudaGetErrorString(e));
    return -1;
}

cudaError_t cuda_enter(const struct cuda *c) {
    static _Thread_local int entered; // one more than the id; 0: none yet
    const cudaError_t e = entered == c->id + 1 ? cudaSuccess : cudaSetDevice(c->id);
    if (e == cudaSuccess) entered = c->id + 1;
    return e;
}

void cuda_flush(struct cuda *c) {
    sums_settle(c);
    queue_flush(c->queue);
}

int cuda_trouble(struct cuda *c, struct error *err) {
    const char *refused = lt_trouble(c->lt) ? lt_trouble(c->lt) : nccl_trouble(c->nccl);
    if (refused && !c->trouble[0]) snprintf(c->trouble, sizeof c->trouble, "%s", refused);
    return c->trouble[0] ? fail(err, E_DEVICE, "%s", c->trouble) : 0;
}

static int cuda_sync(struct backend *be, struct error *err) {
    struct cuda *c = cuda_of(be);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaGetLastError(), "starting a kernel");
    cuda_failed(c, cudaStreamSynchronize(c->stream), "running kernels");
    return cuda_trouble(c, err);
}

// ---- memory ------------------------------------------------------------------------------------

static int allocate(struct cuda *c, void **out, size_t bytes, struct error *err) {
    cuda_enter(c);
    const cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return 0;
    size_t left = 0, total = 0;
    cudaGetLastError(); // this one has been seen
    cudaMemGetInfo(&left, &total);
    *out = NULL;
    return fail(err, E_LIMIT, "%s: %zu bytes wanted, %zu of %zu are free (%s)", c->device, bytes,
                left, total, cudaGetErrorString(e));
}

void *cuda_scratch(struct cuda *c, size_t bytes) {
    c->rounded_of = NULL;
    if (bytes <= c->scratch_bytes) return c->scratch;
    struct error err;
    void *more;
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaStreamSynchronize(c->stream), "waiting for kernels");
    cudaFree(c->scratch);
    c->scratch = NULL;
    c->scratch_bytes = 0;
    if (allocate(c, &more, bytes + bytes / 4, &err) && allocate(c, &more, bytes, &err)) {
        if (!c->trouble[0]) snprintf(c->trouble, sizeof c->trouble, "%.290s", err.msg);
        return NULL;
    }
    c->scratch = more;
    c->scratch_bytes = bytes;
    return more;
}

static struct buffer *cuda_buffer_create(struct backend *be, size_t bytes, struct error *err) {
    struct cuda *c = cuda_of(be);
    void *data;
    if (allocate(c, &data, bytes, err)) return NULL;
    const cudaError_t e = cudaMemsetAsync(data, 0, bytes, c->stream);
    if (e != cudaSuccess) {
        cudaFree(data);
        fail(err, E_DEVICE, "%s: clearing memory: %s", c->device, cudaGetErrorString(e));
        return NULL;
    }
    struct cuda_buffer *b = mem_zero(1, sizeof *b);
    b->base = (struct buffer){.be = be, .bytes = bytes};
    b->data = data;
    return &b->base;
}

static void cuda_buffer_destroy(struct buffer *b) {
    struct cuda *c = cuda_of(b->be);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaStreamSynchronize(c->stream), "waiting for kernels"); // they may use it
    cuda_failed(c, cudaFree(((struct cuda_buffer *)(void *)b)->data), "freeing memory");
    free(b);
}

static void cuda_download(struct backend *be, void *dst, struct tensor src) {
    struct cuda *c = cuda_of(be);
    const size_t bytes = tensor_bytes(src);
    cuda_enter(c);
    cuda_flush(c);
    cuda_failed(c, cudaGetLastError(), "starting a kernel");
    if (bytes)
        cuda_failed(c, cudaMemcpyAsync(dst, dev(src), bytes, cudaMemcpyDeviceToHost, c->stream),
                    "copying from the device");
    cuda_failed(c, cudaStreamSynchronize(c->stream), "running kernels");
    if (c->trouble[0] || lt_trouble(c->lt))
        memset(dst, 0xff, bytes); // NaN, or token -1: nobody takes it for a result
}

// What one pass over the device's memory, or a large product of cuBLASLt, comes to: the best of
// three. Integers are multiplied as floats here.
static double cuda_measure(struct backend *be, enum limit what) {
#ifdef CUDA_EMU
    enum { READ_BYTES = 1 << 20, SIDE = 64 };
#else
    enum { READ_BYTES = 512 << 20, SIDE = 4096 };
#endif
    struct cuda *c = cuda_of(be);
    const bool read = what == LIMIT_READ, narrow = what == LIMIT_BF16;
    const size_t side = SIDE, operand = side * side * (narrow ? 2 : 4);
    const size_t bytes = read ? READ_BYTES : side * side * 4 + 2 * operand;
    double best = 0;
    char *memory;
    cuda_enter(c);
    if ((!read && !c->lt) || cudaMalloc((void **)&memory, bytes) != cudaSuccess) return 0;
    cudaMemsetAsync(memory, 0x3c, bytes, c->stream);
    char *a = memory + side * side * 4;
    double *part = cuda_scratch(c, (SUM_PARTS + 1) * sizeof *part);
    for (int i = 0; part && i < 4; i++) {
        cuda_flush(c);
        cudaStreamSynchronize(c->stream);
        const double start = clock_s();
        if (read)
            k_sumsq(c->queue, part + SUM_PARTS, (float *)(void *)memory, bytes / 4, false, part);
        else
            lt_multiply(c->lt, c->queue, (struct lt_out){.data = memory, .ld = side},
                        (struct lt_side){a, side, true}, (struct lt_side){a + operand, side, false},
                        narrow, side, side, side);
        cuda_flush(c);
        cudaStreamSynchronize(c->stream);
        const double work = read ? (double)bytes : 2.0 * SIDE * SIDE * SIDE;
        const double rate = work / (clock_s() - start) * 1e-9;
        if (i && rate > best) best = rate; // the first one warms up
    }
    cudaFree(memory);
    return best;
}

static size_t cuda_wkv7_saved_bytes(const struct backend *be, int rows, int spans, int H, int N) {
    (void)be;
    const size_t C = (size_t)H * (size_t)N, chunk = (size_t)k_wkv7_chunk(N);
    return ((size_t)rows * C + ((size_t)rows / chunk + (size_t)spans) * C * (size_t)N) *
           sizeof(float);
}

// Few rows are products.cu's, which reads f32; where matrices are as large as a 7.2b's, wgmma is
// faster from 8 rows on (an H100, 8 and 16 rows: 10 % and 18 % of a step).
static int cuda_narrow_from(const struct backend *be, struct precision p, int channels) {
    const bool can = cuda_of(be)->lt && p.stored == DT_BF16 && p.inputs == DT_BF16;
    return !can ? 0 : channels >= 4096 ? 8 : SKINNY_ROWS + 1;
}

static int cuda_wkv7_grain(const struct backend *be, int N) {
    (void)be;
    return k_wkv7_grain(N);
}

// cuBLASLt and graphs have to know each number of rows for itself, and a step of serving has
// another one whenever a sequence comes or goes. Our own products of few rows don't mind, and there
// a row more is a larger part of the time.
static int cuda_round_rows(const struct backend *be, int rows) {
    (void)be;
    const int to = rows <= SKINNY_ROWS ? 1
                   : rows <= 64        ? 8
                   : rows <= 256       ? 16
                   : rows <= 512       ? 32
                   : rows <= 1024      ? 64
                                       : 128;
    return (rows + to - 1) / to * to;
}

// ---- the backend -------------------------------------------------------------------------------

static void cuda_destroy(struct backend *be) {
    struct cuda *c = cuda_of(be);
    cuda_enter(c);
    if (c->stream) cudaStreamSynchronize(c->stream);
    queue_destroy(c->queue);
    nccl_close(c->nccl);
    transfer_close(c->transfer);
    if (c->sums.memory) cudaFree(c->sums.memory);
    lt_close(c->lt);
    if (c->scratch) cudaFree(c->scratch);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

static const struct backend_class cuda_class = {
    .destroy = cuda_destroy,
    .buffer_create = cuda_buffer_create,
    .buffer_destroy = cuda_buffer_destroy,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = cuda_sync,
    .fetch = cuda_fetch,
    .fetched = cuda_fetched,
    .weight_create = cuda_weight_create,
    .weight_rounds = cuda_weight_rounds,
    .weight_refresh = cuda_weight_refresh,
    .weight_destroy = cuda_weight_destroy,
    .weight_bytes = cuda_weight_bytes,
    .measure = cuda_measure,
    .wkv7_saved_bytes = cuda_wkv7_saved_bytes,
    .wkv7_grain = cuda_wkv7_grain,
    .decoder_create = cuda_decoder_create,
    .decoder_destroy = cuda_decoder_destroy,
    .decode = cuda_decode,
    .narrow_from = cuda_narrow_from,
    .half_states = true,
    .head_rows = 4096,
    .prompt_rows = 1024, // some two steps of 256 sequences of 0.1b
    .round_rows = cuda_round_rows,
    .comms = &cuda_comms,
};

static int find_device(struct cuda *c, int id, struct error *err) {
    int driver = 0, count = 0;
    struct cudaDeviceProp prop;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return fail(err, E_DEVICE, "no CUDA device: this machine has no NVIDIA driver (libcuda)");
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return fail(err, E_DEVICE, "no CUDA device: %s (driver for CUDA %d.%d)",
                    e != cudaSuccess ? cudaGetErrorString(e) : "the driver knows none",
                    driver / 1000, driver % 1000 / 10);
    if (id >= count)
        return fail(err, E_DEVICE, "no CUDA device %d: there %s %d, counted from 0", id,
                    count == 1 ? "is" : "are", count);
    c->id = id;
    if ((e = cuda_enter(c)) != cudaSuccess ||
        (e = cudaGetDeviceProperties(&prop, id)) != cudaSuccess ||
        (e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking)) != cudaSuccess)
        return fail(err, E_DEVICE, "CUDA device %d of %d: %s", id, count, cudaGetErrorString(e));
    snprintf(c->device, sizeof c->device, "CUDA device %d (%.100s)", id, prop.name);
    if (prop.major < 8)
        return fail(err, E_UNSUPPORTED, "%s has compute capability %d.%d, expected 8.0 or later",
                    c->device, prop.major, prop.minor);
    c->hopper = prop.major >= 9;
    c->tiles = prop.major == 9; // sm_90a is that and no later one
    c->processors = prop.multiProcessorCount;
    return 0;
}

int cuda_open(struct backend **out, int device, struct error *err) {
    struct cuda *c = mem_zero(1, sizeof *c);
    c->base =
        (struct backend){.name = "cuda", .real = DT_F32, .ops = &cuda_ops, .class = &cuda_class};
    const char *gemm = getenv("RWKV_CUDA_GEMM"), *graphs = getenv("RWKV_CUDA_GRAPHS"),
               *overlap = getenv("RWKV_CUDA_OVERLAP"), *ahead = getenv("RWKV_CUDA_AHEAD"),
               *listed = getenv("RWKV_CUDA_LISTED"), *token = getenv("RWKV_CUDA_TOKEN"),
               *large = getenv("RWKV_CUDA_LARGE");
    c->base.depth = ahead && strcmp(ahead, "off") == 0 ? 1 : 2;
    c->listed_from = listed && strcmp(listed, "all") == 0 ? 0 : 3 << 20;
    c->large_all = large && strcmp(large, "all") == 0;
    c->token = !(token && strcmp(token, "off") == 0);
    int rc = find_device(c, device, err);
    if (!rc) rc = transfer_open(&c->transfer, err);
    if (!rc)
        c->queue = queue_create(c->stream, !(graphs && strcmp(graphs, "off") == 0),
                                c->hopper && !(overlap && strcmp(overlap, "off") == 0));
    if (!rc && !(gemm && strcmp(gemm, "own") == 0)) rc = lt_open(&c->lt, err);
    if (rc) {
        cuda_destroy(&c->base);
        return -1;
    }
    *out = &c->base;
    return 0;
}
