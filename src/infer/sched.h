// Which sequences take part in the next step, and with how many tokens. Pure: no memory, no time,
// no model, so that a test can drive it through any story.
#pragma once
#include <stdbool.h>

// Prompts are cut only at multiples of so many tokens, counted from the sequence's beginning: the
// chunk grids of wkv7 (16 or 32) are never split, hence results don't depend on the company.
enum { SCHED_CELL = 64 };

struct sched_limits {
    int paragraph_len; // tokens of prompts in a step; less than a cell counts as a cell
    int all_rows;      // rows of prompts that want logits of every token, in a step; ≥ SCHED_CELL
    bool decode_first;
};

// A sequence that has a slot.
struct sched_seq {
    int read, prompt; // tokens of its prompt: read so far, and all
    bool parked;      // sits the step out
    bool all_logits;  // its prompt's tokens all want logits
};

// Fills take[i] with the number of tokens that sequence i has in the step: of its prompt, or 1 when
// it writes; 0: it waits. Sequences stand in the order in which they were admitted. Returns the
// sum.
//
// With decode_first every writing sequence is in every step, and prompts fill up to paragraph_len
// rows beside them; without it the writing ones wait while a prompt can be read. Prompts are
// granted a cell each in turn, oldest first, so that a long one cannot hold up the short ones
// behind it.
int sched_plan(int *take, const struct sched_seq *seqs, int num_seqs, struct sched_limits limits);
