#include "infer/logprob.h"

#include <math.h>

int logprob_count(const struct engine_job *job) {
    return 1 + (job->top > 0 ? job->top : 0) + job->num_candidates;
}

void logprob_row(struct engine_logprob *out, const float *logits, int V, int32_t token,
                 const struct engine_job *job) {
    struct engine_logprob *best = out + 1;
    const int top = job->top > 0 ? job->top : 0;
    int found = 0;
    float max = -INFINITY;
    for (int i = 0; i < V; i++) {
        if (logits[i] > max) max = logits[i];
        if (!top || (found == top && !(logits[i] > best[found - 1].logprob))) continue;
        int at = found < top ? found++ : found - 1;
        for (; at > 0 && logits[i] > best[at - 1].logprob; at--) best[at] = best[at - 1];
        best[at] = (struct engine_logprob){i, logits[i]};
    }
    double sum = 0;
    for (int i = 0; i < V; i++) sum += (double)expf(logits[i] - max);
    const double log_sum = (double)max + log(sum);
    out[0] = (struct engine_logprob){token, (float)((double)logits[token] - log_sum)};
    for (int i = 0; i < found; i++) best[i].logprob = (float)((double)best[i].logprob - log_sum);
    for (int i = found; i < top; i++) best[i] = (struct engine_logprob){-1, -INFINITY};
    for (int i = 0; i < job->num_candidates; i++) {
        const int32_t id = job->candidates[i];
        best[top + i] = (struct engine_logprob){id, (float)((double)logits[id] - log_sum)};
    }
}
