// Collectives through the memory that a team shares, on any backend: a way for processors, for
// tests and for devices that know no other.
#pragma once
#include "backend/backend.h"

struct team;

void shm_collective(struct team *team, enum collective what, struct tensor t); // done on return
