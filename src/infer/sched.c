#include "infer/sched.h"

static bool reads(const struct sched_seq *s) {
    return !s->parked && s->read < s->prompt;
}

// Tokens up to the next cell's beginning, or to the prompt's end.
static int to_cell_end(const struct sched_seq *s, int taken) {
    const int at = s->read + taken, end = at / SCHED_CELL * SCHED_CELL + SCHED_CELL;
    return (end < s->prompt ? end : s->prompt) - at;
}

int sched_plan(int *take, const struct sched_seq *seqs, int num_seqs, struct sched_limits limits) {
    int sum = 0, budget = limits.paragraph_len, all_rows = limits.all_rows;
    if (budget < SCHED_CELL) budget = SCHED_CELL;
    for (int i = 0; i < num_seqs; i++) take[i] = 0;
    for (bool granted = true; granted;) {
        granted = false;
        for (int i = 0; i < num_seqs; i++) {
            const struct sched_seq *s = &seqs[i];
            if (!reads(s)) continue;
            const int more = to_cell_end(s, take[i]);
            if (!more || more > budget || (s->all_logits && more > all_rows)) continue;
            take[i] += more;
            sum += more;
            budget -= more;
            if (s->all_logits) all_rows -= more;
            granted = true;
        }
    }
    if (sum && !limits.decode_first) return sum;
    for (int i = 0; i < num_seqs; i++) {
        if (seqs[i].parked || seqs[i].read < seqs[i].prompt) continue;
        take[i] = 1;
        sum++;
    }
    return sum;
}
