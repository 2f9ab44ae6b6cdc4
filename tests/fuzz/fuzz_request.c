// Any body of a request: parsed within the bounds that the engine asserts, or refused with a
// reason.
#include "base/json.h"
#include "serve/fault.h"
#include "serve/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(const struct request *r) {
    if (!r->num_prompts || r->num_prompts > REQUEST_MAX_PROMPTS) abort();
    if (r->num_stops > ENGINE_MAX_STOPS || r->num_bias > ENGINE_MAX_BIAS) abort();
    if (r->num_candidates > ENGINE_MAX_CANDIDATES || r->top > ENGINE_MAX_TOP) abort();
    for (int i = 0; i < r->num_stops; i++)
        if (!*r->stops[i] || strlen(r->stops[i]) > ENGINE_MAX_STOP_BYTES) abort();
    for (size_t i = 0; i < r->num_prompts; i++)
        if (!r->prompts[i].text && r->prompts[i].num_tokens <= 0) abort();
    if (!isfinite(r->temperature) || r->temperature < 0 || r->max_tokens < -1) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static bool begun;
    if (!begun) json_init();
    begun = true;
    for (int kind = 0; kind < 2; kind++) {
        struct request r;
        struct fault f = {0};
        char *copy = malloc(len + 1);
        if (len) memcpy(copy, data, len);
        if (!request_parse(&r, (enum request_kind)kind, copy, len, &f))
            check(&r);
        else if (f.status < 400 || f.status > 499 || !*f.message)
            abort();
        request_free(&r);
        free(copy);
    }
    return 0;
}
