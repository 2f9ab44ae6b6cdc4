// Any bytes as a zip archive: errors, never a crash, and every member lies inside the input.
#include "base/error.h"
#include "weights/internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct zip_member *members;
    size_t count;
    struct error err;
    if (zip_read(&members, &count, data, len, &err)) return 0;
    for (size_t i = 0; i < count; i++)
        if (members[i].data < data || members[i].len > (size_t)(data + len - members[i].data))
            abort();
    free(members);
    return 0;
}
