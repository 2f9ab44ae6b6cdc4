#include "train/dist_shm.h"

#include "base/mem.h"
#include "train/team.h"

#include <assert.h>
#include <stdlib.h>

static struct tensor part(struct tensor t, size_t first, size_t count) {
    return tensor_slice(tensor_shape(t, 1, (size_t[]){tensor_count(t)}), first, count);
}

static void take(void *to, struct tensor t) {
    t.buf->be->class->download(t.buf->be, to, t);
}

static void put(struct tensor t, const void *from) {
    t.buf->be->class->upload(t.buf->be, t, from);
}

// out[i] = Σ over ranks of what lies on their desks, `at` elements behind the edge.
static void add_up(const struct team *team, enum dtype type, void *out, size_t at, size_t n) {
    const int size = team_size(team);
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int r = 0; r < size; r++)
            sum += type == DT_F64 ? ((const double *)team_theirs(team, r))[at + i]
                                  : (double)((const float *)team_theirs(team, r))[at + i];
        if (type == DT_F64)
            ((double *)out)[i] = sum;
        else
            ((float *)out)[i] = (float)sum;
    }
}

// Everybody adds up everything.
static void all_reduce(struct team *team, struct tensor t) {
    const size_t count = tensor_count(t), most = TEAM_DESK / dtype_size(t.dtype);
    void *sums = mem_alloc(TEAM_DESK);
    for (size_t at = 0; at < count; at += most) {
        const size_t n = count - at < most ? count - at : most;
        take(team_mine(team), part(t, at, n));
        team_meet(team);
        add_up(team, t.dtype, sums, 0, n);
        put(part(t, at, n), sums);
    }
    free(sums);
}

// On a desk lies the same stretch of every share.
static void reduce_scatter(struct team *team, struct tensor t) {
    const size_t size = (size_t)team_size(team), rank = (size_t)team_rank(team);
    const size_t share = tensor_count(t) / size, each = dtype_size(t.dtype);
    const size_t most = TEAM_DESK / each / size;
    void *sums = mem_alloc(most * each);
    for (size_t at = 0; at < share; at += most) {
        const size_t n = share - at < most ? share - at : most;
        for (size_t r = 0; r < size; r++)
            take((char *)team_mine(team) + r * n * each, part(t, r * share + at, n));
        team_meet(team);
        add_up(team, t.dtype, sums, rank * n, n);
        put(part(t, rank * share + at, n), sums);
    }
    free(sums);
}

static void all_gather(struct team *team, struct tensor t) {
    const size_t size = (size_t)team_size(team), rank = (size_t)team_rank(team);
    const size_t share = tensor_count(t) / size, most = TEAM_DESK / dtype_size(t.dtype);
    for (size_t at = 0; at < share; at += most) {
        const size_t n = share - at < most ? share - at : most;
        take(team_mine(team), part(t, rank * share + at, n));
        team_meet(team);
        for (size_t r = 0; r < size; r++)
            if (r != rank) put(part(t, r * share + at, n), team_theirs(team, (int)r));
    }
}

static void broadcast(struct team *team, struct tensor t) {
    const size_t count = tensor_count(t), most = TEAM_DESK / dtype_size(t.dtype);
    for (size_t at = 0; at < count; at += most) {
        const size_t n = count - at < most ? count - at : most;
        if (team_rank(team) == 0) take(team_mine(team), part(t, at, n));
        team_meet(team);
        if (team_rank(team)) put(part(t, at, n), team_theirs(team, 0));
    }
}

void shm_collective(struct team *team, enum collective what, struct tensor t) {
    assert(t.dtype == DT_F32 || t.dtype == DT_F64);
    assert(what == ALL_REDUCE || what == BROADCAST ||
           tensor_count(t) % (size_t)team_size(team) == 0);
    switch (what) {
    case ALL_REDUCE: all_reduce(team, t); break;
    case REDUCE_SCATTER: reduce_scatter(team, t); break;
    case ALL_GATHER: all_gather(team, t); break;
    case BROADCAST: broadcast(team, t); break;
    }
}
