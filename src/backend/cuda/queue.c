#include "backend/cuda/queue.h"

#include "base/hash.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Fewer calls are not worth a graph; more bytes go out before they are a whole step. A graph costs
// a hundred launches: where more lists come in turn than there are graphs, those that have one keep
// it as long as they come.
enum { LEAST_CALLS = 8, MOST_BYTES = 8 << 20, GRAPHS = 128, SEEN = 1024, LATELY = 4 * GRAPHS };

struct call {
    void (*play)(const void *payload, cudaStream_t stream);
    size_t bytes; // of the payload, which follows
};

struct graph {
    char *list;
    size_t bytes;
    uint64_t hash, used; // used: the list's number when it was last
    cudaGraphExec_t exec;
};

struct queue {
    cudaStream_t stream, side; // side: NULL until it is wanted
    cudaEvent_t here, there;   // how far the stream, and its side, has come
    char *list;
    size_t bytes, room;
    int calls;
    bool graphs, overlap, few, settles;
    struct graph graph[GRAPHS];
    uint64_t seen[SEEN]; // hashes of lists that came once
    uint64_t now;        // lists so far
};

struct queue *queue_create(cudaStream_t stream, int graphs, int overlap) {
    struct queue *q = mem_zero(1, sizeof *q);
    q->stream = stream;
    q->graphs = graphs;
    q->overlap = overlap;
    q->few = true;
    q->room = (size_t)1 << 16;
    q->list = mem_alloc(q->room);
    return q;
}

int queue_overlaps(struct queue *q) {
    const bool waits = q->settles;
    q->settles = false;
    return q->overlap && q->few && !waits;
}

void queue_settle(struct queue *q) {
    q->settles = true;
}

void queue_few(struct queue *q, int few) {
    q->few = few;
}

static void graph_free(struct graph *g) {
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g->list);
    memset(g, 0, sizeof *g);
}

void queue_destroy(struct queue *q) {
    if (!q) return;
    for (int i = 0; i < GRAPHS; i++) graph_free(&q->graph[i]);
    if (q->here) cudaEventDestroy(q->here);
    if (q->there) cudaEventDestroy(q->there);
    if (q->side) cudaStreamDestroy(q->side);
    free(q->list);
    free(q);
}

void queue_add(struct queue *q, void (*play)(const void *payload, cudaStream_t stream),
               const void *payload, size_t bytes) {
    const struct call c = {play, (bytes + 7) / 8 * 8};
    const size_t size = sizeof c + c.bytes;
    if (q->bytes + size > MOST_BYTES) queue_flush(q);
    if (q->bytes + size > q->room) {
        char *more = mem_alloc(2 * (q->room + size));
        memcpy(more, q->list, q->bytes);
        free(q->list);
        q->list = more;
        q->room = 2 * (q->room + size);
    }
    memcpy(q->list + q->bytes, &c, sizeof c);
    memset(q->list + q->bytes + sizeof c, 0, c.bytes);
    memcpy(q->list + q->bytes + sizeof c, payload, bytes);
    q->bytes += size;
    q->calls++;
}

static void play_all(const struct queue *q) {
    for (size_t at = 0; at < q->bytes;) {
        struct call c;
        memcpy(&c, q->list + at, sizeof c);
        at += sizeof c;
        c.play(q->list + at, q->stream);
        at += c.bytes;
    }
}

static struct graph *find(struct queue *q, uint64_t hash) {
    for (int i = 0; i < GRAPHS; i++) {
        struct graph *g = &q->graph[i];
        if (g->exec && g->hash == hash && g->bytes == q->bytes &&
            memcmp(g->list, q->list, g->bytes) == 0)
            return g;
    }
    return NULL;
}

// What came for the second time is recorded: the first time loaded its kernels, which must not
// happen while a stream is captured.
static struct graph *record(struct queue *q, uint64_t hash) {
    struct graph *g = &q->graph[0];
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    for (int i = 1; i < GRAPHS; i++)
        if (q->graph[i].used < g->used) g = &q->graph[i];
    if (g->exec && q->now - g->used < LATELY) return NULL;
    if (cudaStreamBeginCapture(q->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return NULL;
    play_all(q);
    const bool ok = cudaStreamEndCapture(q->stream, &graph) == cudaSuccess && graph &&
                    cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    if (graph) cudaGraphDestroy(graph);
    if (!ok) {
        cudaGetLastError(); // then it goes out call by call, now and from now on
        q->graphs = false;
        return NULL;
    }
    graph_free(g);
    *g = (struct graph){.list = mem_alloc(q->bytes), .bytes = q->bytes, .hash = hash, .exec = exec};
    memcpy(g->list, q->list, q->bytes);
    return g;
}

void queue_flush(struct queue *q) {
    if (!q->calls) return;
    struct graph *g = NULL;
    if (q->graphs && q->calls >= LEAST_CALLS) {
        const uint64_t hash = hash64(q->list, q->bytes);
        q->now++;
        uint64_t *seen = &q->seen[hash % SEEN];
        g = find(q, hash);
        if (!g && *seen == hash) g = record(q, hash);
        *seen = hash;
    }
    if (g) {
        g->used = q->now;
        cudaGraphLaunch(g->exec, q->stream);
    } else {
        play_all(q);
    }
    q->bytes = 0;
    q->calls = 0;
}

// ---- the side ----------------------------------------------------------------------------------

// Few blocks that wait for other devices: they go before the many that only compute.
cudaError_t queue_open_side(struct queue *q) {
    int least = 0, greatest = 0;
    cudaError_t e = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    if (!e) e = cudaStreamCreateWithPriority(&q->side, cudaStreamNonBlocking, greatest);
    if (!e) e = cudaEventCreateWithFlags(&q->here, cudaEventDisableTiming);
    if (!e) e = cudaEventCreateWithFlags(&q->there, cudaEventDisableTiming);
    return e;
}

static void follow(cudaStream_t behind, cudaStream_t ahead, cudaEvent_t event) {
    cudaEventRecord(event, ahead);
    cudaStreamWaitEvent(behind, event, 0);
}

cudaStream_t queue_aside(struct queue *q) {
    queue_flush(q);
    follow(q->side, q->stream, q->here);
    return q->side;
}

void queue_join(struct queue *q) {
    queue_flush(q);
    follow(q->stream, q->side, q->there);
}
