// Any bytes as a .safetensors or .pth file, by the door that users have: what opens can be read
// whole.
#include "base/error.h"
#include "base/json.h"
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static char path[64];
    if (!path[0]) {
        json_init();
        snprintf(path, sizeof path, "/tmp/fuzz-weights-%d", (int)getpid());
    }
    FILE *f = fopen(path, "wb");
    if (!f) abort();
    fwrite(data, 1, len, f);
    fclose(f);
    struct weights *w;
    struct error err;
    if (weights_open(&w, path, &err) == 0) {
        for (size_t i = 0; i < weights_count(w); i++) {
            const struct weights_tensor *t = weights_at(w, i);
            if (t->count > 1 << 20) continue; // strides of 0 make much of few bytes
            float *out = malloc(t->count * sizeof *out + 1);
            weights_read(t, DT_F32, out);
            free(out);
        }
        weights_close(w);
    }
    unlink(path);
    return 0;
}
