// Any bytes as a .gguf file, by the door that users have: what opens can be read whole and written
// again, or is refused.
#include "base/error.h"
#include "base/json.h"
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void read_from(const struct weights_source *s, void *out) {
    weights_read(s->context, s->dtype, out);
}

static void write_again(const struct weights *w, const char *path) {
    const size_t count = weights_count(w);
    struct weights_source *s = calloc(count + 1, sizeof *s);
    struct error err;
    for (size_t i = 0; i < count; i++) {
        const struct weights_tensor *t = weights_at(w, i);
        s[i] = (struct weights_source){
            .name = t->name, .dtype = t->dtype, .ndim = t->ndim, .read = read_from, .context = t};
        memcpy(s[i].dim, t->dim, sizeof t->dim);
    }
    weights_write_gguf(path, s, count,
                       &(struct weights_gguf){.blocks = (enum weights_blocks)(count % 3)}, &err);
    unlink(path);
    free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static char path[2][64];
    if (!path[0][0]) {
        json_init();
        for (int i = 0; i < 2; i++)
            snprintf(path[i], sizeof path[i], "/tmp/fuzz-gguf-%d-%d.gguf", i, (int)getpid());
    }
    FILE *f = fopen(path[0], "wb");
    if (!f) abort();
    fwrite("GGUF", 1, 4, f);
    fwrite(data, 1, len, f);
    fclose(f);
    struct weights *w;
    struct error err;
    if (weights_open(&w, path[0], &err) == 0) {
        for (size_t i = 0; i < weights_count(w); i++) {
            const struct weights_tensor *t = weights_at(w, i);
            float *out = malloc(t->count * sizeof *out + 1);
            weights_read(t, DT_F32, out);
            free(out);
        }
        write_again(w, path[1]);
        weights_close(w);
    }
    unlink(path[0]);
    return 0;
}
