// "Did you mean …?": the known name that a mistyped one was probably meant to be.
#pragma once
#include <stddef.h>

// Zero-initialise with the mistyped name, offer each known one, read `best`:
//     struct nearest near = {.typed = "contxt_length"};
//     nearest_offer(&near, "context_length");
struct nearest {
    const char *typed;
    const char *best; // NULL while nothing offered is close enough; not owned
    size_t distance;  // of best, in edits
};

// Keeps the name if it is nearer than the best so far and within a third of the typed name's length
// (at least 2 edits). An edit is one byte inserted, dropped, replaced, or swapped with the next.
void nearest_offer(struct nearest *near, const char *name);
