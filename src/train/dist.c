#include "train/dist.h"

#include "base/error.h"
#include "base/mem.h"
#include "train/dist_shm.h"
#include "train/team.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct dist {
    struct team *team;
    struct backend *be;
    const struct comms *comms; // NULL: through the team's memory
};

// The first makes the id, the others find it on its desk.
static int open_comms(struct dist *d, struct error *err) {
    struct team *t = d->team;
    assert(d->comms->id_bytes <= TEAM_DESK);
    if (team_rank(t) == 0 && d->comms->make_id(d->be, team_mine(t), err)) return -1;
    team_meet(t);
    return d->comms->open(d->be, team_theirs(t, 0), team_rank(t), team_size(t), err);
}

int dist_open(struct dist **out, struct team *team, struct backend *be, struct error *err) {
    const char *way = getenv("RWKV_DIST");
    *out = NULL;
    if (!team) return 0;
    if (way && strcmp(way, "shm"))
        return fail(err, E_ARG, "RWKV_DIST is \"%s\", wanted shm or nothing", way);
    struct dist *d = mem_zero(1, sizeof *d);
    *d = (struct dist){.team = team, .be = be, .comms = way ? NULL : be->class->comms};
    if (d->comms && open_comms(d, err)) {
        dist_close(d);
        return -1;
    }
    *out = d;
    return 0;
}

void dist_close(struct dist *d) {
    free(d);
}

int dist_rank(const struct dist *d) {
    return d ? team_rank(d->team) : 0;
}

int dist_size(const struct dist *d) {
    return d ? team_size(d->team) : 1;
}

void dist_sum(const struct dist *d, double *x, int n) {
    const size_t bytes = (size_t)n * sizeof *x;
    if (!d) return;
    assert(bytes <= TEAM_DESK);
    memcpy(team_mine(d->team), x, bytes);
    team_meet(d->team);
    memset(x, 0, bytes);
    for (int r = 0; r < team_size(d->team); r++)
        for (int i = 0; i < n; i++) x[i] += ((const double *)team_theirs(d->team, r))[i];
}

void dist_start(const struct dist *d, enum collective what, struct tensor t) {
    if (!d || !tensor_count(t)) return;
    if (d->comms)
        d->comms->start(d->be, what, t);
    else
        shm_collective(d->team, what, t);
}

void dist_wait(const struct dist *d) {
    if (d && d->comms) d->comms->wait(d->be);
}
