// See cuda_emu.h.
#include "cuda_emu.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum { STACK = 256 << 10, WARP = 32, MOST_THREADS = 1024, MOST_BLOCKS = 8 };
enum { MOST = MOST_THREADS * MOST_BLOCKS, SHARED = 232448 };

struct meeting { // of those that have to arrive before any goes on
    int arrived, generation;
    bool any, result;
};

struct late {
    void *to;
    const void *from;
    size_t bytes;
    unsigned group;
};

struct late_work {
    std::function<void()> work;
    unsigned group;
};

struct fiber {
    ucontext_t context;
    jmp_buf at;
    char *stack;
    bool started, done, held; // held: at the beginning of a kernel that has come early
    std::vector<late> copies;
    unsigned group; // of its next copies
    std::vector<late_work> later[EMU_LATE];
    unsigned later_group[EMU_LATE];
    std::vector<const char *> touched; // where copies have come, since it last said so
    // What it waits for, so that it is not woken in vain: a meeting's next generation, or a bit.
    const meeting *met;
    const int *expected;
    const uint64_t *word;
    int generation, bit;
    bool value;
};

struct running { // a block; those of a cluster run at once, one only where there is none
    int alive, alive_in_warp[MOST_THREADS / WARP];
    meeting block, warps[MOST_THREADS / WARP], groups[16];
    uint64_t given[2][MOST_THREADS]; // by the parity of the warp's meetings: nobody is two ahead
    dim3 index;
    char *shared;
    std::vector<std::pair<const char *, size_t>> filled; // where copies have come
};

fiber fibers[MOST];
jmp_buf scheduler;
running blocks[MOST_BLOCKS];
int current, alive; // fiber; fibers left of the cluster
meeting cluster;
std::deque<std::function<void()>> arriving;
const std::function<void()> *job;
bool early; // what runs is a kernel's first blocks, before the kernel ahead of it
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
        fibers[current].copies.clear();
        fibers[current].touched.clear();
        for (const std::vector<late_work> &left : fibers[current].later)
            if (!left.empty()) emu_trap(); // what it reads is gone
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
    fiber &f = fibers[current];
    while (m.generation == generation) {
        if (complete(m, expected)) return;
        f.met = &m, f.expected = &expected, f.generation = generation;
        resume_scheduler();
        f.met = nullptr;
    }
}

bool sleeps(const fiber &f) {
    if (f.met) return f.met->generation == f.generation && f.met->arrived < *f.expected;
    return f.word && (*f.word >> f.bit & 1) != f.value;
}

} // namespace

void emu_yield() {
    resume_scheduler();
}

void emu_begin_kernel() {
    fibers[current].held = early;
    if (early) resume_scheduler();
}

void emu_await_bit(const uint64_t *word, int bit, bool value) {
    fiber &f = fibers[current];
    while ((*word >> bit & 1) != value) {
        f.word = word, f.bit = bit, f.value = value;
        resume_scheduler();
        f.word = nullptr;
    }
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

static_assert((int)EMU_WARPS == (int)MOST / (int)WARP, "warps of all blocks that run");
int emu_warp() {
    return emu_cluster_rank() * (MOST_THREADS / WARP) + (int)threadIdx.x / WARP;
}

static bool large() {
    static const char *const given = std::getenv("CUDA_EMU_DEVICE");
    return given && *given == 'l';
}

size_t emu_most_shared() {
    return large() ? 227 << 10 : 99 << 10;
}

int emu_processors() {
    return large() ? 132 : 3;
}

char *emu_shared() {
    return mine().shared;
}

void *emu_shared_of(const void *p, int rank) {
    if (!blocks[rank].alive) emu_trap();
    return blocks[rank].shared + ((const char *)p - mine().shared);
}

static const char *order() {
    static const char *const given = std::getenv("CUDA_EMU_ORDER");
    return given ? given : "";
}

void emu_async_copy(void *to, const void *from, size_t bytes) {
    fiber &f = fibers[current];
    std::memset(to, 0xff, bytes);
    f.copies.push_back({to, from, bytes, f.group});
}

void emu_async_commit() {
    fibers[current].group++;
}

void emu_async_wait(int left) {
    fiber &f = fibers[current];
    size_t n = 0;
    for (; n < f.copies.size() && (int)(f.group - f.copies[n].group) > left; n++)
        std::memcpy(f.copies[n].to, f.copies[n].from, f.copies[n].bytes);
    f.copies.erase(f.copies.begin(), f.copies.begin() + (std::ptrdiff_t)n);
}

void emu_touch(const void *place) {
    for (const auto &[first, bytes] : mine().filled)
        if ((size_t)((const char *)place - first) < bytes)
            return fibers[current].touched.push_back((const char *)place);
}

void emu_touched() {
    fibers[current].touched.clear();
}

// Nobody's accesses to what lies there may still be on their way.
static void fill_again(const char *to, size_t bytes) {
    int block = 0;
    while ((size_t)(to - blocks[block].shared) >= SHARED) block++;
    for (unsigned i = 0; i < blockDim.x; i++)
        for (const char *place : fibers[(unsigned)block * blockDim.x + i].touched)
            if ((size_t)(place - to) < bytes) {
                std::fprintf(stderr, "a copy comes to where thread %u was, which has not said so\n",
                             i);
                emu_trap();
            }
    auto &filled = blocks[block].filled;
    const std::pair<const char *, size_t> here = {to, bytes};
    if (std::find(filled.begin(), filled.end(), here) == filled.end()) filled.push_back(here);
}

void emu_bulk_load(void *to, size_t bytes, const std::function<void()> &arrive) {
    fill_again((const char *)to, bytes);
    std::memset(to, 0xff, bytes);
    arriving.push_back(arrive);
}

void emu_later(emu_late what, const std::function<void()> &work) {
    fiber &f = fibers[current];
    f.later[what].push_back({work, f.later_group[what]});
}

void emu_later_commit(emu_late what) {
    fibers[current].later_group[what]++;
}

void emu_later_wait(emu_late what, int left) {
    fiber &f = fibers[current];
    std::vector<late_work> &all = f.later[what];
    size_t n = 0;
    for (; n < all.size() && (int)(f.later_group[what] - all[n].group) > left; n++) all[n].work();
    all.erase(all.begin(), all.begin() + (std::ptrdiff_t)n);
}

bool emu_block_or(bool x) {
    running &b = mine();
    b.block.any |= x;
    meet(b.block, b.alive);
    const bool result = b.block.result;
    meet(b.block, b.alive);
    return result;
}

void emu_warp_barrier() {
    running &b = mine();
    const int warp = (int)threadIdx.x / WARP;
    meet(b.warps[warp], b.alive_in_warp[warp]);
}

uint64_t emu_exchange(uint64_t given, int from) {
    running &b = mine();
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    uint64_t *all = b.given[b.warps[warp].generation & 1];
    all[thread] = given;
    emu_warp_barrier();
    return all[warp * WARP + from];
}

uint32_t emu_ballot(bool x) {
    running &b = mine();
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    uint64_t *all = b.given[b.warps[warp].generation & 1];
    all[thread] = x;
    emu_warp_barrier();
    uint32_t votes = 0;
    for (int i = 0; i < WARP; i++) votes |= (uint32_t)(all[warp * WARP + i] & 1) << i;
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
    b.filled.clear();
    for (meeting &m : b.groups) m = {};
    for (int w = 0; w * WARP < n; w++) {
        b.alive_in_warp[w] = n - w * WARP < WARP ? n - w * WARP : WARP;
        b.warps[w] = {};
    }
    if (!b.shared) b.shared = (char *)std::aligned_alloc(1024, SHARED);
}

// Shuffled, a warp may doze for so many rounds, so that others run far ahead of it.
enum { NAP = 1024 };
static bool dozes(int round, int warp) {
    uint64_t x =
        (uint64_t)(round / NAP) * 0x9e3779b97f4a7c15u + (uint64_t)warp * 0xbf58476d1ce4e5b9u;
    x ^= x >> 31, x *= 0x94d049bb133111ebu, x ^= x >> 29;
    return *order() == 's' && x & 1;
}

// A kernel that was launched.
struct launch {
    dim3 grid, threads;
    unsigned together;
    bool overlap; // it may come while the one before it runs
    std::function<void()> kernel;

    int fibers() const { return (int)(threads.x * together); }
    bool possible() const {
        return threads.x <= MOST_THREADS && fibers() && together <= MOST_BLOCKS && grid.x &&
               grid.y && grid.y <= 65535 && grid.x % together == 0;
    }
};

static void begin(const launch &l) {
    if (!l.possible()) emu_trap();
    gridDim = l.grid;
    blockDim = l.threads;
    job = &l.kernel;
}

// Blocks from the b-th on, as many as run at once.
static void start_blocks(const launch &l, unsigned b) {
    for (unsigned i = 0; i < l.together; i++) start_block(blocks[i], b + i, (int)l.threads.x);
    alive = l.fibers();
    cluster = {};
    for (int i = 0; i < alive; i++) fibers[i].done = fibers[i].held = false;
}

// Until they are done; early, until nobody can go on before the kernel has begun.
static void run_started(const launch &l) {
    const int n = l.fibers();
    for (int round = 0, idle = 0; alive && !(early && idle > NAP); round++) {
        if (round > 100000000) emu_trap(); // they wait for each other
        noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
        const int first = *order() == 's' ? (int)(noise % (unsigned)n) : 0;
        bool any = false;
        for (int k = 0; k < n; k++) {
            const int at = (first + k) % n, i = *order() == 'r' ? n - 1 - at : at;
            const fiber &f = fibers[i];
            if (f.done || (early && f.held) || sleeps(f) || dozes(round, i / WARP)) continue;
            any = true;
            run(i);
        }
        // Those who look again and again what is there never sleep.
        if (!arriving.empty() && (!any || round % NAP == NAP - 1)) {
            const std::function<void()> arrive = arriving.front();
            arriving.pop_front();
            arrive();
            any = true;
        }
        idle = any ? 0 : *order() == 's' ? idle + 1 : NAP + 1;
        if (!any && !early) round |= NAP - 1; // whoever could go on dozes
    }
    if (!alive && !arriving.empty()) emu_trap(); // where they go is gone
}

// A kernel whose first blocks have come early lies here until its turn: what it has read by then
// was not to be written by the kernels ahead of it. What is __shared__ without SHARED_BYTES is
// there once for all blocks: a kernel that puts something there before it has begun would lose it.
static fiber set_aside[MOST];
static running blocks_aside[MOST_BLOCKS];
static int alive_aside;
static meeting cluster_aside;
static const launch *is_aside;

static uint64_t chance(uint64_t n) { // below n
    static uint64_t x = 1;
    x = x * 6364136223846793005u + 1442695040888963407u;
    return (x >> 33) % n;
}

static void swap_aside(const launch &l) {
    for (int i = 0; i < l.fibers(); i++) std::swap(fibers[i], set_aside[i]);
    for (unsigned i = 0; i < l.together; i++) std::swap(blocks[i], blocks_aside[i]);
    std::swap(alive, alive_aside);
    std::swap(cluster, cluster_aside);
}

static void come_early(const launch &l) {
    begin(l);
    start_blocks(l, 0);
    early = true;
    run_started(l);
    early = false;
    swap_aside(l);
    is_aside = &l;
}

static void run_kernel(const launch &l) {
    const bool has_come = is_aside == &l;
    begin(l);
    if (has_come) {
        swap_aside(l);
        is_aside = nullptr;
    }
    for (unsigned b = 0; b < l.grid.x * l.grid.y; b += l.together) {
        if (b || !has_come) start_blocks(l, b);
        run_started(l);
    }
}

// What a stream is to do, and how far it is. A captured one only writes down what is launched.
struct node {
    std::function<void()> work;
    std::shared_ptr<const launch> kernel; // or that
};
struct cuda_emu_graph {
    std::vector<node> nodes;
};
struct cuda_emu_stream {
    std::deque<node> waiting;
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

// Of kernels behind the one whose turn it is: each of them may come when the one before it has, so
// any of a chain, or none.
static const launch *some_that_may_come(const cuda_emu_stream *s) {
    enum { MOST_AHEAD = 8 };
    const uint64_t wanted = chance(MOST_AHEAD + 1);
    for (size_t i = 0; i < s->waiting.size() && i < wanted; i++) {
        const launch *l = s->waiting[i].kernel.get();
        if (!l || !l->overlap) return nullptr;
        if (i + 1 == wanted) return l;
    }
    return nullptr;
}

static void run_to(cuda_emu_stream *s, uint64_t at) {
    const bool before = s->running;
    s->running = true;
    while (s->done < at) {
        const node now = std::move(s->waiting.front());
        s->waiting.pop_front();
        s->done++;
        if (!now.kernel) {
            now.work();
            continue;
        }
        const launch *next = is_aside ? nullptr : some_that_may_come(s);
        if (next) come_early(*next);
        run_kernel(*now.kernel);
    }
    s->running = before;
}

static void give(cuda_emu_stream *s, node n) {
    if (s->captured) {
        s->captured->nodes.push_back(std::move(n));
        return;
    }
    s->waiting.push_back(std::move(n));
    s->queued++;
}

static void give(cuda_emu_stream *s, std::function<void()> work) {
    give(s, node{std::move(work), nullptr});
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

void emu_launch(cudaStream_t s, dim3 grid, dim3 threads, unsigned cluster, bool overlap,
                const std::function<void()> &kernel) {
    give(s, node{nullptr,
                 std::make_shared<const launch>(launch{grid, threads, cluster, overlap, kernel})});
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
    for (const node &n : e->nodes) give(s, n);
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
