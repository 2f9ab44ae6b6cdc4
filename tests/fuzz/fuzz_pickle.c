// Any bytes as a pickle: errors, never a crash, and texts lie inside the input.
#include "base/error.h"
#include "weights/internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct pickled_tensor *tensors;
    size_t count;
    struct error err;
    if (pickle_read(&tensors, &count, data, len, &err)) return 0;
    for (size_t i = 0; i < count; i++)
        if ((const uint8_t *)tensors[i].name < data ||
            (const uint8_t *)tensors[i].name + tensors[i].name_len > data + len)
            abort();
    free(tensors);
    return 0;
}
