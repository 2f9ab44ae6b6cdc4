// cuBLASLt, loaded when a device is opened: half a gigabyte that a program without a GPU does not
// need. What it says of a shape is asked once and kept.
#include "backend/cuda/internal.h"

#include "base/error.h"

#ifdef CUDA_EMU
#include "base/half.h"
#include "base/mem.h"

#include <stdlib.h>

// The same products in plain loops: what is asked of the library is checked without it.
struct lt {
    char unused;
};

struct lt_call {
    struct lt_out d;
    struct lt_side a, b;
    size_t m, n, k;
    bool bf16;
};

int lt_open(struct lt **out, struct error *err) {
    (void)err;
    *out = mem_zero(1, sizeof **out);
    return 0;
}

void lt_close(struct lt *lt) {
    free(lt);
}

const char *lt_trouble(const struct lt *lt) {
    (void)lt;
    return NULL;
}

static float element(const struct lt_side *s, size_t row, size_t col, bool bf16) {
    const size_t i = s->turned ? row * s->ld + col : col * s->ld + row;
    return bf16 ? bf16_to_f32(((const uint16_t *)s->data)[i]) : ((const float *)s->data)[i];
}

static void multiply(const void *payload) {
    const struct lt_call *c = payload;
    for (size_t j = 0; j < c->n; j++)
        for (size_t i = 0; i < c->m; i++) {
            const size_t at = j * c->d.ld + i;
            float sum = 0;
            if (c->d.add)
                sum = c->d.narrow ? bf16_to_f32(((const uint16_t *)c->d.add)[at])
                                  : ((const float *)c->d.add)[at];
            for (size_t k = 0; k < c->k; k++)
                sum += element(&c->a, i, k, c->bf16) * element(&c->b, k, j, c->bf16);
            if (c->d.narrow)
                ((uint16_t *)c->d.data)[at] = f32_to_bf16(sum);
            else
                ((float *)c->d.data)[at] = sum;
        }
}

static void play(const void *payload, cudaStream_t stream) {
    cuda_emu_call(stream, multiply, payload, sizeof(struct lt_call));
}

bool lt_multiply(struct lt *lt, struct queue *q, struct lt_out d, struct lt_side a,
                 struct lt_side b, bool bf16, size_t m, size_t n, size_t k) {
    (void)lt;
    queue_add(q, play, &(struct lt_call){d, a, b, m, n, k, bf16}, sizeof(struct lt_call));
    return true;
}
#else
#include "base/hash.h"
#include "base/mem.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                                                               \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtMatmul)                                                                              \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)                                                        \
    X(cublasLtMatmulAlgoGetHeuristic)

struct functions {
#define FIELD(f) __typeof__(&f) f;
    FUNCTIONS(FIELD)
#undef FIELD
};

struct shape {
    size_t m, n, k, lda, ldb, ldd;
    uint32_t align_a, align_b, align_c, align_d;
    int turned_a, turned_b, bf16, narrow, beta;
};

struct plan {
    struct shape shape;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
    bool possible;
};

enum { MAX_PLANS = 512, HINTS = 1024, WORKSPACE = 32 << 20 };

struct lt {
    void *library;
    struct functions f;
    cublasLtHandle_t handle;
    void *workspace;
    struct plan plan[MAX_PLANS]; // a ring once it is full
    int plans, next;
    uint16_t hint[HINTS]; // by a shape's hash: which plan it was
    char trouble[160];
};

const char *lt_trouble(const struct lt *lt) {
    return lt && lt->trouble[0] ? lt->trouble : NULL;
}

static void plan_free(struct lt *lt, struct plan *p) {
    if (p->a) lt->f.cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) lt->f.cublasLtMatrixLayoutDestroy(p->b);
    if (p->d) lt->f.cublasLtMatrixLayoutDestroy(p->d);
    if (p->desc) lt->f.cublasLtMatmulDescDestroy(p->desc);
    memset(p, 0, sizeof *p);
}

static int find_functions(struct lt *lt, struct error *err) {
    static const char *const names[] = {
#define NAME(f) #f,
        FUNCTIONS(NAME)
#undef NAME
    };
    void **at = (void **)&lt->f;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!(at[i] = dlsym(lt->library, names[i])))
            return fail(err, E_DEVICE, "libcublasLt has no %s", names[i]);
    return 0;
}

int lt_open(struct lt **out, struct error *err) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so.13"};
    struct lt *lt = mem_zero(1, sizeof *lt);
    for (int i = 0; i < 3 && !lt->library; i++) lt->library = dlopen(names[i], RTLD_NOW);
    cudaError_t e;
    if (!lt->library) {
        fail(err, E_DEVICE,
             "libcublasLt.so.13 is not to be found (%s); put its folder into LD_LIBRARY_PATH, or "
             "set RWKV_CUDA_GEMM=own to do without it",
             dlerror());
    } else if (find_functions(lt, err)) {
    } else if (lt->f.cublasLtCreate(&lt->handle) != CUBLAS_STATUS_SUCCESS) {
        fail(err, E_DEVICE, "cublasLtCreate refuses this device");
    } else if ((e = cudaMalloc(&lt->workspace, WORKSPACE)) != cudaSuccess) {
        fail(err, E_LIMIT, "cuBLASLt wants %d bytes: %s", WORKSPACE, cudaGetErrorString(e));
    } else {
        *out = lt;
        return 0;
    }
    lt_close(lt);
    return -1;
}

void lt_close(struct lt *lt) {
    if (!lt) return;
    for (int i = 0; i < lt->plans; i++) plan_free(lt, &lt->plan[i]);
    if (lt->handle) lt->f.cublasLtDestroy(lt->handle);
    if (lt->workspace) cudaFree(lt->workspace);
    if (lt->library) dlclose(lt->library);
    free(lt);
}

// A matrix that is `turned` lies in memory with its sides swapped.
static bool layout(struct lt *lt, cublasLtMatrixLayout_t *out, bool bf16, bool turned, size_t rows,
                   size_t cols, size_t ld) {
    return lt->f.cublasLtMatrixLayoutCreate(out, bf16 ? CUDA_R_16BF : CUDA_R_32F,
                                            turned ? cols : rows, turned ? rows : cols,
                                            (int64_t)ld) == CUBLAS_STATUS_SUCCESS;
}

static bool ask(struct lt *lt, struct plan *p) {
    const struct shape *s = &p->shape;
    const struct functions *f = &lt->f;
    const int32_t turn[] = {CUBLAS_OP_N, CUBLAS_OP_T};
    const size_t workspace = WORKSPACE;
    // Where k is cut, the parts stay f32 until they are added up: not as the result is stored.
    const uint32_t parts = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    if (f->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        !layout(lt, &p->a, s->bf16, s->turned_a, s->m, s->k, s->lda) ||
        !layout(lt, &p->b, s->bf16, s->turned_b, s->k, s->n, s->ldb) ||
        !layout(lt, &p->d, s->narrow, false, s->m, s->n, s->ldd) ||
        f->cublasLtMatmulPreferenceCreate(&wish))
        return false;
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        const void *value;
        size_t size;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                  {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &parts, sizeof parts},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &s->align_a, 4},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &s->align_b, 4},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &s->align_c, 4},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &s->align_d, 4}};
    bool ok = !f->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                                 &turn[s->turned_a], sizeof turn[0]) &&
              !f->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB,
                                                 &turn[s->turned_b], sizeof turn[0]);
    for (size_t i = 0; ok && i < sizeof wishes / sizeof wishes[0]; i++)
        ok = !f->cublasLtMatmulPreferenceSetAttribute(wish, wishes[i].what, wishes[i].value,
                                                      wishes[i].size);
    ok = ok &&
         !f->cublasLtMatmulAlgoGetHeuristic(lt->handle, p->desc, p->a, p->b, p->d, p->d, wish, 1,
                                            &found, &n) &&
         n > 0;
    if (ok) p->algo = found.algo;
    f->cublasLtMatmulPreferenceDestroy(wish);
    return ok;
}

// Asked for each product of a step when it is written down.
static struct plan *plan_for(struct lt *lt, const struct shape *s) {
    uint16_t *hint = &lt->hint[hash64(s, sizeof *s) % HINTS];
    if (*hint < lt->plans && !memcmp(&lt->plan[*hint].shape, s, sizeof *s)) return &lt->plan[*hint];
    for (int i = 0; i < lt->plans; i++)
        if (!memcmp(&lt->plan[i].shape, s, sizeof *s)) {
            *hint = (uint16_t)i;
            return &lt->plan[i];
        }
    struct plan *p = &lt->plan[lt->next];
    *hint = (uint16_t)lt->next;
    if (lt->plans == MAX_PLANS)
        plan_free(lt, p);
    else
        lt->plans++;
    lt->next = (lt->next + 1) % MAX_PLANS;
    p->shape = *s;
    p->possible = ask(lt, p);
    return p;
}

static uint32_t alignment(const void *p) {
    const uintptr_t u = (uintptr_t)p | 256;
    return (uint32_t)(u & ~(u - 1));
}

// One product, as the queue keeps it.
struct lt_call {
    struct lt *lt;
    struct shape shape;
    const void *a, *b, *c;
    void *d;
};

static void multiply(const void *payload, cudaStream_t stream) {
    const struct lt_call *c = payload;
    struct lt *lt = c->lt;
    const struct plan *p = plan_for(lt, &c->shape);
    const float one = 1, beta = c->shape.beta ? 1 : 0;
    if (lt->f.cublasLtMatmul(lt->handle, p->desc, &one, c->a, p->a, c->b, p->b, &beta, c->c, p->d,
                             c->d, p->d, &p->algo, lt->workspace, WORKSPACE,
                             stream) != CUBLAS_STATUS_SUCCESS)
        snprintf(lt->trouble, sizeof lt->trouble,
                 "cuBLASLt refuses a product that it has planned: m %zu n %zu k %zu, %s",
                 c->shape.m, c->shape.n, c->shape.k, c->shape.bf16 ? "bf16" : "f32");
}

bool lt_multiply(struct lt *lt, struct queue *q, struct lt_out d, struct lt_side a,
                 struct lt_side b, bool bf16, size_t m, size_t n, size_t k) {
    struct lt_call call;
    memset(&call, 0, sizeof call); // compared byte by byte
    call.lt = lt;
    call.a = a.data;
    call.b = b.data;
    call.c = d.add ? d.add : d.data;
    call.d = d.data;
    call.shape.m = m;
    call.shape.n = n;
    call.shape.k = k;
    call.shape.lda = a.ld;
    call.shape.ldb = b.ld;
    call.shape.ldd = d.ld;
    call.shape.align_a = alignment(a.data);
    call.shape.align_b = alignment(b.data);
    call.shape.align_c = alignment(call.c);
    call.shape.align_d = alignment(d.data);
    call.shape.turned_a = a.turned;
    call.shape.turned_b = b.turned;
    call.shape.bf16 = bf16;
    call.shape.narrow = d.narrow;
    call.shape.beta = d.add != NULL;
    if (!plan_for(lt, &call.shape)->possible) return false;
    queue_add(q, multiply, &call, sizeof call);
    return true;
}
#endif
