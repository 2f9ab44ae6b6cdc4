#include "model/state_file.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/sections.h"

#include <stdlib.h>
#include <string.h>

static const char magic[] = "RWKVSTAT";

enum { VERSION = 1, VALUE_MAJOR = 1 };

// Section "head". Numbers of the state are f32 whatever the backend computes in.
struct head {
    uint32_t version, orientation; // S is [value][key]
    uint64_t model_hash, vocab_hash, tokens;
    int32_t L, C, H, N, V, dtype;
    int32_t last_token;
    uint32_t pending_bytes;
    struct sample_row sampler;
    char pending[STATE_MAX_PENDING];
};

static struct head head_of(const struct model *m) {
    struct head h;
    const struct dims *d = &m->dims;
    memset(&h, 0, sizeof h); // padding is written too
    h.version = VERSION;
    h.orientation = VALUE_MAJOR;
    h.model_hash = m->hash;
    h.L = d->L;
    h.C = d->C;
    h.H = d->H;
    h.N = d->C / d->H;
    h.V = d->V;
    h.dtype = DT_F32;
    return h;
}

int state_save(const char *path, const struct model *m, struct state *s, int slot,
               const struct state_extra *extra, struct error *err) {
    const size_t n = state_count(&m->dims), V = (size_t)m->dims.V;
    struct head h = head_of(m);
    h.vocab_hash = extra->vocab_hash;
    h.tokens = extra->tokens;
    h.last_token = extra->last_token;
    h.sampler = extra->sampler;
    h.pending_bytes = extra->pending_bytes;
    memcpy(h.pending, extra->pending, extra->pending_bytes);
    float *numbers = mem_alloc(n * sizeof *numbers);
    state_get(s, slot, numbers);
    struct section sections[4] = {{.name = "head", .data = &h, .bytes = sizeof h},
                                  {.name = "state", .data = numbers, .bytes = n * sizeof *numbers}};
    int count = 2;
    if (extra->logits)
        sections[count++] = (struct section){.name = "logits",
                                             .data = extra->logits,
                                             .bytes = V * sizeof *extra->logits};
    if (extra->penalties)
        sections[count++] = (struct section){.name = "penalties",
                                             .data = extra->penalties,
                                             .bytes = sample_penalty_bytes(V)};
    const int rc = sections_write(path, magic, sections, count, err);
    free(numbers);
    return rc;
}

static int check_head(const struct head *have, const struct model *m, uint64_t vocab_hash,
                      struct error *err) {
    const struct head want = head_of(m);
    if (have->version != want.version || have->orientation != want.orientation)
        return fail(err, E_FORMAT, "a state of version %u, expected %u", have->version,
                    want.version);
    if (have->L != want.L || have->C != want.C || have->H != want.H || have->N != want.N ||
        have->V != want.V || have->dtype != want.dtype)
        return fail(err, E_FORMAT,
                    "the state is of a model with %d layers of %d channels, %d heads, vocabulary "
                    "%d; this one has %d, %d, %d, %d",
                    have->L, have->C, have->H, have->V, want.L, want.C, want.H, want.V);
    if (have->model_hash != want.model_hash)
        return fail(err, E_FORMAT,
                    "the state belongs to other weights (hash %016llx, the model's "
                    "is %016llx)",
                    (unsigned long long)have->model_hash, (unsigned long long)want.model_hash);
    if (have->vocab_hash && vocab_hash && have->vocab_hash != vocab_hash)
        return fail(err, E_FORMAT, "the state was made with another vocabulary");
    if (have->pending_bytes > STATE_MAX_PENDING)
        return fail(err, E_FORMAT, "the state holds back %u bytes, at most %d are allowed",
                    have->pending_bytes, STATE_MAX_PENDING);
    return 0;
}

// A section of exactly so many bytes; NULL if it is absent.
static int find(const struct sections *c, const char *name, size_t bytes, const void **out,
                struct error *err) {
    const struct section *s = sections_find(c, name);
    *out = s ? s->data : NULL;
    if (!s || s->bytes == bytes) return 0;
    return fail(err, E_FORMAT, "section \"%s\" has %llu bytes, expected %zu", name,
                (unsigned long long)s->bytes, bytes);
}

static int read_sections(const struct sections *c, const struct model *m, struct state *s, int slot,
                         struct state_extra *extra, uint64_t vocab_hash, float *logits,
                         void *penalties, struct error *err) {
    const size_t n = state_count(&m->dims), V = (size_t)m->dims.V, pen = sample_penalty_bytes(V);
    const void *raw, *numbers, *log, *held;
    struct head h;
    if (sections_verify(c, err) || find(c, "head", sizeof h, &raw, err)) return -1;
    if (!raw) return fail(err, E_FORMAT, "section \"head\" is missing");
    memcpy(&h, raw, sizeof h);
    if (check_head(&h, m, vocab_hash, err) || find(c, "state", n * sizeof(float), &numbers, err) ||
        find(c, "logits", V * sizeof(float), &log, err) || find(c, "penalties", pen, &held, err))
        return -1;
    if (!numbers) return fail(err, E_FORMAT, "section \"state\" is missing");
    state_set(s, slot, numbers);
    if (log && logits) memcpy(logits, log, V * sizeof *logits);
    if (held && penalties) memcpy(penalties, held, pen);
    memset(extra, 0, sizeof *extra);
    extra->vocab_hash = h.vocab_hash;
    extra->tokens = h.tokens;
    extra->last_token = h.last_token;
    extra->sampler = h.sampler;
    extra->logits = log ? logits : NULL;
    extra->penalties = held ? penalties : NULL;
    extra->pending_bytes = h.pending_bytes;
    memcpy(extra->pending, h.pending, h.pending_bytes);
    return 0;
}

int state_load(const char *path, const struct model *m, struct state *s, int slot,
               struct state_extra *extra, uint64_t vocab_hash, float *logits, void *penalties,
               struct error *err) {
    struct sections *c;
    if (sections_open(&c, path, magic, err)) return -1;
    const int rc = read_sections(c, m, s, slot, extra, vocab_hash, logits, penalties, err);
    if (rc) fail_in(err, "%s", path);
    sections_close(c);
    return rc;
}
