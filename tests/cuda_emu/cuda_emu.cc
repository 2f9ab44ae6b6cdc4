// See cuda_emu.h.
#include "cuda_emu.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <deque>
#include <map>
#include <vector>

#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum { STACK = 256 << 10, WARP = 32, MOST_THREADS = 1024, MOST_BLOCKS = 8 };
enum { MOST = MOST_THREADS * MOST_BLOCKS, SHARED = 232448 };

struct fiber {
    ucontext_t context;
    jmp_buf at;
    char *stack;
    bool started, done;
};

struct meeting { // of those that have to arrive before any goes on
    int arrived, generation;
    bool any, result;
};

struct running { // a block; those of a cluster run at once, one only where there is none
    int alive, alive_in_warp[MOST_THREADS / WARP];
    meeting block, warps[MOST_THREADS / WARP], groups[16];
    uint64_t given[MOST_THREADS];
    dim3 index;
    char *shared;
};

fiber fibers[MOST];
jmp_buf scheduler;
running blocks[MOST_BLOCKS];
int current, alive; // fiber; fibers left of the cluster
meeting cluster;
const std::function<void()> *job;
uint64_t noise = 88172645463325252u;

running &mine() {
    return blocks[current / (int)blockDim.x];
}

void resume_scheduler() {
    if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
}

// A fiber that leaves is missed by nobody who waits.
void leave() {
    alive--;
    mine().alive--;
    mine().alive_in_warp[threadIdx.x / WARP]--;
}

void body() {
    for (;;) {
        (*job)();
        fibers[current].done = true;
        leave();
        resume_scheduler();
    }
}

void run(int i) {
    current = i;
    threadIdx = dim3((unsigned)i % blockDim.x);
    blockIdx = mine().index;
    if (_setjmp(scheduler)) return;
    if (fibers[i].started) _longjmp(fibers[i].at, 1);
    fiber &f = fibers[i];
    f.started = true;
    f.stack = (char *)std::malloc(STACK);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    makecontext(&f.context, body, 0);
    setcontext(&f.context);
}

bool complete(meeting &m, int expected) {
    if (m.arrived < expected) return false;
    m.arrived = 0;
    m.result = m.any;
    m.any = false;
    m.generation++;
    return true;
}

void meet(meeting &m, const int &expected) {
    const int generation = m.generation;
    m.arrived++;
    while (m.generation == generation) {
        if (complete(m, expected)) return;
        resume_scheduler();
    }
}

} // namespace

void emu_yield() {
    resume_scheduler();
}

void emu_block_barrier() {
    meet(mine().block, mine().alive);
}

void emu_group_barrier(int id, int threads) {
    meet(mine().groups[id], threads);
}

void emu_group_arrive(int id, int threads) {
    mine().groups[id].arrived++;
    complete(mine().groups[id], threads);
}

void emu_cluster_barrier() {
    meet(cluster, alive);
}

int emu_cluster_rank() {
    return current / (int)blockDim.x;
}

char *emu_shared() {
    return mine().shared;
}

void *emu_shared_of(const void *p, int rank) {
    return blocks[rank].shared + ((const char *)p - mine().shared);
}

bool emu_block_or(bool x) {
    running &b = mine();
    b.block.any |= x;
    meet(b.block, b.alive);
    const bool result = b.block.result;
    meet(b.block, b.alive);
    return result;
}

uint64_t emu_exchange(uint64_t given, int from) {
    running &b = mine();
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    b.given[thread] = given;
    meet(b.warps[warp], b.alive_in_warp[warp]);
    const uint64_t theirs = b.given[warp * WARP + from];
    meet(b.warps[warp], b.alive_in_warp[warp]);
    return theirs;
}

uint32_t emu_ballot(bool x) {
    running &b = mine();
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    b.given[thread] = x;
    meet(b.warps[warp], b.alive_in_warp[warp]);
    uint32_t votes = 0;
    for (int i = 0; i < WARP; i++) votes |= (uint32_t)(b.given[warp * WARP + i] & 1) << i;
    meet(b.warps[warp], b.alive_in_warp[warp]);
    return votes;
}

void emu_trap() {
    std::fprintf(stderr, "a kernel trapped\n");
    std::abort();
}

static void start_block(running &b, unsigned index, int n) {
    b.index = dim3(index % gridDim.x, index / gridDim.x);
    b.alive = n;
    b.block = {};
    for (meeting &m : b.groups) m = {};
    for (int w = 0; w * WARP < n; w++) {
        b.alive_in_warp[w] = n - w * WARP < WARP ? n - w * WARP : WARP;
        b.warps[w] = {};
    }
    if (!b.shared) b.shared = (char *)std::aligned_alloc(1024, SHARED);
}

static void run_blocks(dim3 grid, dim3 threads, unsigned together,
                       const std::function<void()> &kernel) {
    static const char *const order = std::getenv("CUDA_EMU_ORDER");
    const int n = (int)(threads.x * together);
    if (threads.x > MOST_THREADS || !n || together > MOST_BLOCKS || !grid.x || !grid.y ||
        grid.y > 65535 || grid.x % together)
        emu_trap();
    gridDim = grid;
    blockDim = threads;
    job = &kernel;
    for (unsigned b = 0; b < grid.x * grid.y; b += together) {
        for (unsigned i = 0; i < together; i++) start_block(blocks[i], b + i, (int)threads.x);
        alive = n;
        cluster = {};
        for (int i = 0; i < n; i++) fibers[i].done = false;
        for (int round = 0; alive; round++) {
            if (round > 100000000) emu_trap(); // they wait for each other
            noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
            const int first = order && *order == 's' ? (int)(noise % (unsigned)n) : 0;
            for (int k = 0; k < n; k++) {
                const int at = (first + k) % n, i = order && *order == 'r' ? n - 1 - at : at;
                if (!fibers[i].done) run(i);
            }
        }
    }
}

// What a stream is to do, and how far it is. A captured one only writes down what is launched.
struct cuda_emu_graph {
    std::vector<std::function<void()>> nodes;
};
struct cuda_emu_stream {
    std::deque<std::function<void()>> waiting;
    uint64_t queued, done;
    cuda_emu_graph *captured;
    bool late, running;
};
struct cuda_emu_event {
    cuda_emu_stream *stream;
    uint64_t at; // what was queued in the stream when it was recorded
};
static std::vector<cuda_emu_stream *> streams;
static std::map<const char *, size_t> pinned; // and bytes

static void run_to(cuda_emu_stream *s, uint64_t at) {
    const bool before = s->running;
    s->running = true;
    while (s->done < at) {
        const auto work = std::move(s->waiting.front());
        s->waiting.pop_front();
        s->done++;
        work();
    }
    s->running = before;
}

static void give(cuda_emu_stream *s, std::function<void()> work) {
    if (s->captured) {
        s->captured->nodes.push_back(std::move(work));
        return;
    }
    s->waiting.push_back(std::move(work));
    s->queued++;
}

static bool is_pinned(const void *p) {
    const auto after = pinned.upper_bound((const char *)p);
    if (after == pinned.begin()) return false;
    const auto block = std::prev(after);
    return (const char *)p < block->first + block->second;
}

unsigned long cuda_emu_graphs, cuda_emu_graphs_made;
volatile int cuda_emu_broken;

static cudaError_t waited() {
    return cuda_emu_broken ? cudaErrorLaunchFailure : cudaSuccess;
}

void emu_launch(cudaStream_t s, dim3 grid, dim3 threads, unsigned cluster,
                const std::function<void()> &kernel) {
    give(s, [=] { run_blocks(grid, threads, cluster, kernel); });
}

// ---- the runtime -------------------------------------------------------------------------------

extern "C" {
void cuda_emu_call(cudaStream_t s, void (*work)(const void *payload), const void *payload,
                   size_t bytes) {
    const std::vector<char> copy((const char *)payload, (const char *)payload + bytes);
    give(s, [work, copy] { work(copy.data()); });
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int) {
    std::memset(p, 0, sizeof *p);
    std::snprintf(p->name, sizeof p->name, "emulated device");
    p->totalGlobalMem = (size_t)4 << 30;
    p->major = 9;
    p->multiProcessorCount = 132;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return device ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    *s = new cuda_emu_stream();
    streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
    cudaStreamCreateWithFlags(s, flags);
    (*s)->late = true;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, void (*work)(void *data), void *data) {
    give(s, [work, data] { work(data); });
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    run_to(s, s->queued);
    return waited();
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    cudaStreamSynchronize(s);
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;
    return cudaSuccess;
}
// The other stream may have gone on by then, and has, as far as it can; but one that others wait
// for themselves has done what is asked of it and no more.
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    cuda_emu_stream *other = e->stream;
    const uint64_t at = e->at;
    give(s, [=] { run_to(other, other->late || other->running ? at : other->queued); });
    if (other->late) run_to(s, s->queued); // other processes may want its part before they go on
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = new cuda_emu_event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    *e = {s, s->queued};
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->stream) run_to(e->stream, e->at);
    return waited();
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    size_t most, total;
    cudaMemGetInfo(&most, &total);
    *p = bytes > most ? nullptr : std::aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (*p) std::memset(*p, 0x7f, bytes); // what nobody has written
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) {
    for (cuda_emu_stream *s : streams) cudaStreamSynchronize(s);
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = std::malloc(bytes);
    pinned[(const char *)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
    pinned.erase((const char *)p);
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = *total = (size_t)4 << 30;
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
    give(s, [=] { std::memset(p, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    if (kind == cudaMemcpyHostToDevice && !is_pinned(src)) {
        const std::vector<char> staged((const char *)src, (const char *)src + bytes);
        give(s, [=] { std::memcpy(dst, staged.data(), bytes); });
        return cudaSuccess;
    }
    give(s, [=] { std::memcpy(dst, src, bytes); });
    if (kind == cudaMemcpyDeviceToHost && !is_pinned(dst)) cudaStreamSynchronize(s);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode) {
    s->captured = new cuda_emu_graph;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    *g = s->captured;
    s->captured = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long) {
    cuda_emu_graphs_made++;
    *e = new cuda_emu_graph(*g);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    cuda_emu_graphs++;
    for (const auto &work : e->nodes) give(s, work);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorLaunchFailure  ? "unspecified launch failure"
                                          : "no error";
}
}
