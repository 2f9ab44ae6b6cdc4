// Data-parallel training: what processes that have a device each, and all the same model, say to
// each other. Each call is made by all of them, in the same order. A NULL dist is a process alone,
// for which all of this is nothing.
#pragma once
#include "backend/backend.h"

struct team;
struct dist; // one owner thread

// The devices talk to each other where the backend can (NCCL), else through the team's memory,
// which RWKV_DIST=shm insists on. *out is NULL for a team of NULL.
int dist_open(struct dist **out, struct team *team, struct backend *be, struct error *err);
void dist_close(struct dist *d); // NULL is fine

int dist_rank(const struct dist *d);
int dist_size(const struct dist *d);

// Every x[i] becomes its sum over all, added up in order of rank: the same bits everywhere. Of the
// host; waits for all.
void dist_sum(const struct dist *d, double *x, int n);

// Tensors of f32 or f64. A share of a collective is tensor_count(t) / size elements, no rest.
// Sums have an order that depends on sizes only. Started here; what comes after may run at the same
// time and must leave t alone until dist_wait, and ops after that see the result.
void dist_start(const struct dist *d, enum collective what, struct tensor t);
void dist_wait(const struct dist *d);
