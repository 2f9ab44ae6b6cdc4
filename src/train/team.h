// Processes of this machine that do one piece of work together, with some memory in common: how
// training on several devices starts, meets and ends. A member that fails or dies ends them all.
#pragma once
#include <stddef.h>

struct error;
struct team; // one member's view of it, of one thread; NULL: alone

enum { TEAM_MOST = 64, TEAM_DESK = 1 << 20 };

// Calls work(ctx, team, err) in `size` new processes, ranks 0 to size-1, and waits for all of them.
// Each goes on with a copy of what is here, so neither threads nor devices may be at work yet.
// SIGINT and SIGTERM are handed on to the members. -1: what the member that failed said, or how it
// died; the others have been killed. Size 1: called here and now, with NULL for the team.
int team_run(int size, int (*work)(void *ctx, struct team *team, struct error *err), void *ctx,
             struct error *err);

int team_rank(const struct team *t); // 0 when alone
int team_size(const struct team *t); // 1 when alone

// In a member that has failed: tells the others why and ends at once, for tidying up could wait for
// a device that waits for the others. Returns when alone.
void team_leave(struct team *t, const struct error *err);

// What members tell each other: each lays bytes on its desk, all meet, each reads the others'.
void *team_mine(struct team *t);                         // TEAM_DESK bytes, for the next meeting
void team_meet(struct team *t);                          // waits for all
const void *team_theirs(const struct team *t, int rank); // as of the last meeting, until the next
