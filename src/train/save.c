#include "train/save.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/sections.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/dist.h"
#include "train/optimizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The sizes of the model, so that a checkpoint is never poured into another one.
struct meta {
    struct progress progress;
    struct dims dims;
    int32_t real; // enum dtype
};

static const char *const names[] = {"master", "moment1", "moment2"};

// The parameters, or one of the moments. All processes ask for the same one.
static struct tensor whole(struct optimizer *o, int i) {
    return i == 0 ? o->model->master : optimizer_gather(o, i == 1 ? o->m : o->v);
}

static struct meta meta_of(const struct optimizer *o, const struct progress *p) {
    struct meta m;
    memset(&m, 0, sizeof m); // padding is written too
    m.progress = *p;
    m.dims = o->model->dims;
    m.real = (int32_t)o->model->be->real;
    return m;
}

int progress_save(const char *path, struct optimizer *o, const struct progress *p,
                  struct error *err) {
    const struct meta meta = meta_of(o, p);
    struct section sections[4] = {{.name = "progress", .data = &meta, .bytes = sizeof meta}};
    struct backend *be = o->model->be;
    void *copies[3] = {0};
    for (int i = 0; i < 3; i++) {
        const struct tensor t = whole(o, i);
        struct section *s = &sections[1 + i];
        snprintf(s->name, sizeof s->name, "%s", names[i]);
        s->bytes = tensor_bytes(t);
        if (dist_rank(o->dist)) continue;
        if (t.buf->host && t.buf != o->model->grad.buf) {
            s->data = tensor_host(t);
        } else {
            copies[i] = mem_alloc(s->bytes);
            be->class->download(be, copies[i], t);
            s->data = copies[i];
        }
    }
    const int rc =
        dist_rank(o->dist) ? 0 : sections_write(path, CHECKPOINT_MAGIC, sections, 4, err);
    for (int i = 0; i < 3; i++) free(copies[i]);
    return rc;
}

static int compare(const struct meta *have, const struct meta *want, const char *path,
                   struct error *err) {
    const struct {
        const char *what;
        uint64_t have, want;
    } rows[] = {
        {"random_seed", have->progress.seed, want->progress.seed},
        {"the data's hash", have->progress.data_hash, want->progress.data_hash},
        {"the vocabulary's hash", have->progress.vocab_hash, want->progress.vocab_hash},
        {"context_length", (uint64_t)have->progress.ctx, (uint64_t)want->progress.ctx},
        {"samples per step", (uint64_t)have->progress.samples_per_step,
         (uint64_t)want->progress.samples_per_step},
        {"layers", (uint64_t)have->dims.L, (uint64_t)want->dims.L},
        {"width", (uint64_t)have->dims.C, (uint64_t)want->dims.C},
        {"heads", (uint64_t)have->dims.H, (uint64_t)want->dims.H},
        {"vocabulary size", (uint64_t)have->dims.V, (uint64_t)want->dims.V},
        {"decay LoRA rank", (uint64_t)have->dims.Dw, (uint64_t)want->dims.Dw},
        {"rate LoRA rank", (uint64_t)have->dims.Da, (uint64_t)want->dims.Da},
        {"value LoRA rank", (uint64_t)have->dims.Dv, (uint64_t)want->dims.Dv},
        {"gate LoRA rank", (uint64_t)have->dims.Dg, (uint64_t)want->dims.Dg},
        {"number format", (uint64_t)have->real, (uint64_t)want->real},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].have != rows[i].want)
            return fail(err, E_CONFIG,
                        "%s: was written with %s %llu, the run now has %llu; go on with what it "
                        "was, or choose another experiment_name",
                        path, rows[i].what, (unsigned long long)rows[i].have,
                        (unsigned long long)rows[i].want);
    return 0;
}

int progress_load(const char *path, struct optimizer *o, struct progress *p, struct error *err) {
    struct sections *c;
    if (sections_open(&c, path, CHECKPOINT_MAGIC, err)) return -1;
    int rc = sections_verify(c, err);
    const struct section *s = sections_find(c, "progress");
    struct meta have, want = meta_of(o, p);
    if (rc == 0 && (!s || s->bytes != sizeof have))
        rc = fail(err, E_FORMAT, "%s: section \"progress\" is missing or of another size", path);
    if (rc == 0) {
        memcpy(&have, s->data, sizeof have);
        rc = compare(&have, &want, path, err);
    }
    for (int i = 0; rc == 0 && i < 3; i++) {
        s = sections_find(c, names[i]);
        if (!s || s->bytes != tensor_bytes(o->model->master))
            rc = fail(err, E_FORMAT, "%s: section \"%s\" is missing or of another size", path,
                      names[i]);
    }
    if (rc == 0) {
        o->model->be->class->upload(o->model->be, o->model->master,
                                    sections_find(c, names[0])->data);
        optimizer_scatter(o, o->m, sections_find(c, names[1])->data);
        optimizer_scatter(o, o->v, sections_find(c, names[2])->data);
        *p = have.progress;
        model_refresh(o->model);
    }
    sections_close(c);
    return rc;
}

enum { MOST = 65536 };

void progress_prune(const char *dir, int keep, int64_t keep_every) {
    int64_t *steps = mem_zero(MOST, sizeof *steps);
    const int n = checkpoint_list(steps, MOST, dir);
    for (int i = keep; i < n; i++) {
        if (keep_every > 0 && steps[i] % keep_every == 0) continue;
        char *path = checkpoint_path(dir, steps[i]);
        unlink(path);
        free(path);
    }
    free(steps);
}
