// A libnccl.so.2 for emulated devices, which are processes of this machine: `make CUDA=emu` puts it
// into $(BUILD). What a stream is given is done as late as the stream's followers allow
// (cuda_emu.cc), so a result that is read, or an argument that is changed too soon, shows.
#include "cuda_runtime_api.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 64, DESK = 16384 }; // numbers of a desk

struct shared {
    _Atomic int arrived, meetings;
    double desk[MOST][DESK];
};

typedef struct {
    char name[128];
} ncclUniqueId;
typedef struct ncclComm {
    struct shared *shared;
    int rank, size;
} * ncclComm_t;

struct work {
    enum { REDUCE, SCATTER, GATHER, CAST } what;
    const void *from;
    void *to;
    size_t count; // of all shares
    ncclComm_t comm;
    int wide; // f64
};

static void meet(ncclComm_t c) {
    const int before = atomic_load(&c->shared->meetings);
    if (atomic_fetch_add(&c->shared->arrived, 1) + 1 == c->size) {
        atomic_store(&c->shared->arrived, 0);
        atomic_fetch_add(&c->shared->meetings, 1);
        syscall(SYS_futex, &c->shared->meetings, FUTEX_WAKE, MOST, NULL, NULL, 0);
    }
    while (atomic_load(&c->shared->meetings) == before)
        syscall(SYS_futex, &c->shared->meetings, FUTEX_WAIT, before, NULL, NULL, 0);
}

static double get(const struct work *w, size_t i) {
    return w->wide ? ((const double *)w->from)[i] : (double)((const float *)w->from)[i];
}

static void put(const struct work *w, size_t i, double x) {
    if (w->wide)
        ((double *)w->to)[i] = x;
    else
        ((float *)w->to)[i] = (float)x;
}

// Element i: what the sum goes to, or where a share's owner has it.
static void do_work(void *data) {
    const struct work *w = data;
    const ncclComm_t c = w->comm;
    const size_t share = w->count / (size_t)c->size, mine = share * (size_t)c->rank;
    for (size_t at = 0; at < w->count; at += DESK) {
        const size_t n = w->count - at < DESK ? w->count - at : DESK;
        for (size_t i = at; i < at + n; i++)
            if (w->what != GATHER)
                c->shared->desk[c->rank][i - at] = get(w, i);
            else if (i >= mine && i < mine + share)
                c->shared->desk[c->rank][i - at] = get(w, i - mine);
        meet(c);
        for (size_t i = at; i < at + n; i++) {
            double sum = 0;
            for (int r = 0; r < c->size; r++) sum += c->shared->desk[r][i - at];
            if (w->what == REDUCE)
                put(w, i, sum);
            else if (w->what == CAST)
                put(w, i, c->shared->desk[0][i - at]);
            else if (w->what == GATHER)
                put(w, i, c->shared->desk[i / share][i - at]);
            else if (i >= mine && i < mine + share)
                put(w, i - mine, sum);
        }
        meet(c);
    }
}

static int later(struct work w, int type, int op, cudaStream_t stream) {
    if ((type != 7 && type != 8) || op != 0) return 4; // f32, f64; sums, or of the first
    struct work *copy = malloc(sizeof *copy);          // for as long as a graph may want it
    *copy = w;
    copy->wide = type == 8;
    return cudaLaunchHostFunc(stream, do_work, copy) ? 1 : 0;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, ncclComm_t c,
                  cudaStream_t stream) {
    return later((struct work){REDUCE, from, to, count, c, 0}, type, op, stream);
}

int ncclReduceScatter(const void *from, void *to, size_t share, int type, int op, ncclComm_t c,
                      cudaStream_t stream) {
    return later((struct work){SCATTER, from, to, share * (size_t)c->size, c, 0}, type, op, stream);
}

int ncclAllGather(const void *from, void *to, size_t share, int type, ncclComm_t c,
                  cudaStream_t stream) {
    return later((struct work){GATHER, from, to, share * (size_t)c->size, c, 0}, type, 0, stream);
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int rank, ncclComm_t c,
                  cudaStream_t stream) {
    return later((struct work){CAST, from, to, count, c, 0}, type, rank, stream);
}

int ncclGetUniqueId(ncclUniqueId *id) {
    snprintf(id->name, sizeof id->name, "/rwkv-nccl-%d", (int)getpid());
    const int fd = shm_open(id->name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct shared))) return 2;
    close(fd);
    return 0;
}

int ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank) {
    const int fd = shm_open(id.name, O_RDWR, 0600);
    if (fd < 0 || size > MOST) return 2;
    struct ncclComm *c = calloc(1, sizeof *c);
    c->shared = mmap(NULL, sizeof *c->shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    c->rank = rank;
    c->size = size;
    close(fd);
    meet(c);
    if (rank == 0) shm_unlink(id.name);
    *out = c;
    return 0;
}

int ncclCommDestroy(ncclComm_t c) {
    munmap(c->shared, sizeof *c->shared);
    free(c);
    return 0;
}

const char *ncclGetErrorString(int result) {
    return result ? "an error" : "no error";
}

const char *ncclGetLastError(ncclComm_t c) {
    (void)c;
    return "";
}
