// NCCL, loaded when a second device is to be reached: programs with one, or none, do without it.
// Its part of the interface that is used here is written down below; it has been the same since
// 2.13.
#include "backend/cuda/internal.h"

#include "base/error.h"
#include "base/mem.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct nccl_id {
    char bytes[128];
};
typedef struct ncclComm *comm_t;
enum { OK, FLOAT32 = 7, FLOAT64 = 8, SUM = 0 };

struct functions {
    int (*GetUniqueId)(struct nccl_id *id);
    int (*CommInitRank)(comm_t *comm, int size, struct nccl_id id, int rank);
    int (*CommDestroy)(comm_t comm);
    int (*AllReduce)(const void *from, void *to, size_t count, int type, int op, comm_t,
                     cudaStream_t);
    int (*ReduceScatter)(const void *from, void *to, size_t share, int type, int op, comm_t,
                         cudaStream_t);
    int (*AllGather)(const void *from, void *to, size_t share, int type, comm_t, cudaStream_t);
    int (*Broadcast)(const void *from, void *to, size_t count, int type, int rank, comm_t,
                     cudaStream_t);
    const char *(*GetErrorString)(int result);
    const char *(*GetLastError)(comm_t comm); // in words; of the process where comm is NULL
};

struct nccl {
    void *library;
    struct functions f;
    comm_t comm;
    int rank, size;
    char trouble[300];
};

const char *nccl_trouble(const struct nccl *n) {
    return n && n->trouble[0] ? n->trouble : NULL;
}

// ---- opening -----------------------------------------------------------------------------------

static int find_functions(struct nccl *n, struct error *err) {
    const struct {
        const char *name;
        void *at;
    } wanted[] = {
        {"ncclGetUniqueId", &n->f.GetUniqueId},     {"ncclCommInitRank", &n->f.CommInitRank},
        {"ncclCommDestroy", &n->f.CommDestroy},     {"ncclAllReduce", &n->f.AllReduce},
        {"ncclReduceScatter", &n->f.ReduceScatter}, {"ncclAllGather", &n->f.AllGather},
        {"ncclBroadcast", &n->f.Broadcast},         {"ncclGetErrorString", &n->f.GetErrorString},
        {"ncclGetLastError", &n->f.GetLastError},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *f = dlsym(n->library, wanted[i].name);
        if (!f) return fail(err, E_DEVICE, "libnccl.so.2 has no %s", wanted[i].name);
        memcpy(wanted[i].at, &f, sizeof f);
    }
    return 0;
}

static int load(struct cuda *c, struct error *err) {
    static const char *const names[] = {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"};
    if (c->nccl) return 0;
    c->nccl = mem_zero(1, sizeof *c->nccl);
    for (int i = 0; i < 2 && !c->nccl->library; i++)
        c->nccl->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!c->nccl->library)
        return fail(err, E_DEVICE,
                    "libnccl.so.2 is not to be found (%s); put its folder into LD_LIBRARY_PATH, or "
                    "set RWKV_DIST=shm to go through the machine's memory instead",
                    dlerror());
    return find_functions(c->nccl, err);
}

static int refused(const struct nccl *n, int result, const char *doing, struct error *err) {
    const char *more = n->f.GetLastError(n->comm);
    return fail(err, E_DEVICE, "NCCL, %s: %s%s%.200s", doing, n->f.GetErrorString(result),
                more && *more ? ": " : "", more ? more : "");
}

static int nccl_make_id(struct backend *be, void *id, struct error *err) {
    struct cuda *c = cuda_of(be);
    cuda_enter(c);
    if (load(c, err)) return -1;
    const int r = c->nccl->f.GetUniqueId(id);
    return r == OK ? 0 : refused(c->nccl, r, "making an id", err);
}

static int nccl_open(struct backend *be, const void *id, int rank, int size, struct error *err) {
    struct cuda *c = cuda_of(be);
    struct nccl_id copy;
    cuda_enter(c);
    if (load(c, err)) return -1;
    memcpy(&copy, id, sizeof copy);
    c->nccl->rank = rank;
    c->nccl->size = size;
    const int r = c->nccl->f.CommInitRank(&c->nccl->comm, size, copy, rank);
    if (r != OK) return refused(c->nccl, r, "reaching the other devices", err);
    const cudaError_t e = queue_open_side(c->queue);
    if (e == cudaSuccess) return 0;
    return fail(err, E_DEVICE, "%s: a second stream: %s", c->device, cudaGetErrorString(e));
}

// The library stays: threads of it may be on their way out.
void nccl_close(struct nccl *n) {
    if (!n) return;
    if (n->comm) n->f.CommDestroy(n->comm);
    free(n);
}

// ---- collectives -------------------------------------------------------------------------------

// They go out at once and never into a graph: processes would have to record the same ones at the
// same time, and what lists come again is different where one writes samples.
static void nccl_start(struct backend *be, enum collective what, struct tensor t) {
    struct cuda *c = cuda_of(be);
    struct nccl *n = c->nccl;
    const cudaStream_t side = queue_aside(queue_of(be));
    const size_t count = tensor_count(t), share = count / (size_t)n->size;
    const int type = t.dtype == DT_F64 ? FLOAT64 : FLOAT32;
    char *all = dev(t), *own = all + (size_t)n->rank * share * dtype_size(t.dtype);
    struct error err;
    int r = OK;
    switch (what) {
    case ALL_REDUCE: r = n->f.AllReduce(all, all, count, type, SUM, n->comm, side); break;
    case REDUCE_SCATTER: r = n->f.ReduceScatter(all, own, share, type, SUM, n->comm, side); break;
    case ALL_GATHER: r = n->f.AllGather(own, all, share, type, n->comm, side); break;
    case BROADCAST: r = n->f.Broadcast(all, all, count, type, 0, n->comm, side); break;
    }
    if (r == OK || n->trouble[0]) return;
    refused(n, r, "a collective", &err);
    snprintf(n->trouble, sizeof n->trouble, "%.299s", err.msg);
}

static void nccl_wait(struct backend *be) {
    queue_join(queue_of(be));
}

const struct comms cuda_comms = {.id_bytes = sizeof(struct nccl_id),
                                 .make_id = nccl_make_id,
                                 .open = nccl_open,
                                 .start = nccl_start,
                                 .wait = nccl_wait};
