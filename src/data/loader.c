#include "data/loader.h"

#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "data/binidx.h"
#include "data/order.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 4 }; // batches ahead: reading the map may wait for the disk

struct slot {
    int32_t *tokens; // (2,B,T): inputs, targets
    bool failed;
    struct error err;
};

struct loader {
    const struct binidx *data;
    struct loader_options o;
    uint64_t prime;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot slots[DEPTH];
    uint64_t filled, taken; // batches, ever
    bool stop;
};

// ctx+1 tokens from `start`, as inputs and targets one apart.
static int read_window(const struct binidx *d, uint64_t start, int ctx, int vocab_size,
                       int32_t *inputs, int32_t *targets, struct error *err) {
    const uint16_t *t = d->tokens + start;
    for (int i = 0; i <= ctx; i++) {
        if (t[i] >= vocab_size)
            return fail(err, E_FORMAT,
                        "%s.bin: token %u at position %llu, but the model's vocabulary has %d; was "
                        "the data built with another vocabulary?",
                        d->prefix, t[i], (unsigned long long)(start + (uint64_t)i), vocab_size);
        if (i < ctx) inputs[i] = t[i];
        if (i > 0) targets[i - 1] = t[i];
    }
    if (file_shrank(&d->bin))
        return fail(err, E_IO, "%s.bin: was cut short while it was being read", d->prefix);
    return 0;
}

static void fill(struct loader *l, struct slot *s, uint64_t batch) {
    const size_t B = (size_t)l->o.batch, T = (size_t)l->o.ctx;
    s->failed = false;
    for (size_t b = 0; b < B && !s->failed; b++) {
        const uint64_t ii = l->o.first_sample + batch * (uint64_t)l->o.stride + b;
        s->failed = read_window(l->data, order_offset(l->prime, T, ii), l->o.ctx, l->o.vocab_size,
                                s->tokens + b * T, s->tokens + (B + b) * T, &s->err) != 0;
    }
}

static void *run(void *arg) {
    struct loader *l = arg;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && l->filled - l->taken == DEPTH) pthread_cond_wait(&l->changed, &l->lock);
        if (l->stop) break;
        const uint64_t batch = l->filled;
        pthread_mutex_unlock(&l->lock);
        fill(l, &l->slots[batch % DEPTH], batch); // nobody else looks at this slot now
        pthread_mutex_lock(&l->lock);
        l->filled++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

int loader_create(struct loader **out, const struct binidx *data, struct loader_options o,
                  struct error *err) {
    const uint64_t prime = order_magic_prime(data->num_tokens, (uint64_t)o.ctx);
    if (!prime)
        return fail(err, E_ARG,
                    "%s: %llu tokens are too few for a context of %d (the order of samples wants a "
                    "prime number of windows); use more text or a shorter context_length",
                    data->prefix, (unsigned long long)data->num_tokens, o.ctx);
    struct loader *l = mem_zero(1, sizeof *l);
    l->data = data;
    l->o = o;
    l->prime = prime;
    for (int i = 0; i < DEPTH; i++)
        l->slots[i].tokens = mem_zero(2 * (size_t)o.batch * (size_t)o.ctx, sizeof(int32_t));
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    if (pthread_create(&l->thread, NULL, run, l)) die("cannot start the loader's thread");
    *out = l;
    return 0;
}

void loader_destroy(struct loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    for (int i = 0; i < DEPTH; i++) free(l->slots[i].tokens);
    free(l);
}

int loader_next(struct loader *l, int32_t *inputs, int32_t *targets, struct error *err) {
    const size_t n = (size_t)l->o.batch * (size_t)l->o.ctx;
    pthread_mutex_lock(&l->lock);
    while (l->filled == l->taken) pthread_cond_wait(&l->changed, &l->lock);
    const struct slot *s = &l->slots[l->taken % DEPTH];
    const int rc = s->failed ? fail(err, s->err.code, "%s", s->err.msg) : 0;
    if (rc == 0) {
        memcpy(inputs, s->tokens, n * sizeof *inputs);
        memcpy(targets, s->tokens + n, n * sizeof *targets);
        l->taken++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

uint64_t loader_magic_prime(const struct loader *l) {
    return l->prime;
}

uint64_t window_count(const struct binidx *data, int ctx) {
    return data->num_tokens ? (data->num_tokens - 1) / (uint64_t)ctx : 0;
}

int window_read(const struct binidx *data, uint64_t i, int ctx, int vocab_size, int32_t *inputs,
                int32_t *targets, struct error *err) {
    if (i >= window_count(data, ctx))
        return fail(err, E_ARG, "%s: has no window %llu of %d tokens", data->prefix,
                    (unsigned long long)i, ctx);
    return read_window(data, i * (uint64_t)ctx, ctx, vocab_size, inputs, targets, err);
}
