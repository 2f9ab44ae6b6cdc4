// Any strings and any text: what is emitted ends before the string that is complete first, however
// the text is cut.
#include "base/str.h"
#include "text/stop.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    char strings[4][8];
    const char *stops[4];
    int count = 0;
    size_t at = 1;
    if (len < 2) return 0;
    const size_t piece = 1 + data[0] % 9;
    for (; count < 4 && at + 1 < len && data[at] % 8; count++) {
        size_t n = data[at++] % 8, k = 0;
        for (; k < n && at < len && data[at]; k++) strings[count][k] = (char)data[at++];
        strings[count][k] = 0;
        if (!k) break;
        stops[count] = strings[count];
    }
    const char *text = (const char *)data + at;
    len -= at;
    size_t wanted = len;
    bool wanted_stop = false, stopped = false;
    for (size_t end = 1; end <= len && !wanted_stop; end++) {
        size_t longest = 0;
        for (int i = 0; i < count; i++) {
            const size_t n = strlen(stops[i]);
            if (n <= end && n > longest && !memcmp(text + end - n, stops[i], n)) longest = n;
        }
        if (longest) wanted_stop = true, wanted = end - longest;
    }
    struct stop *s = stop_create(stops, count);
    struct str out;
    str_init(&out, len + 1);
    for (size_t i = 0; i < len && !stopped; i += piece)
        stopped = stop_feed(s, text + i, len - i < piece ? len - i : piece, &out);
    if (!stopped) stop_flush(s, &out);
    if (stopped != wanted_stop || out.len != wanted || memcmp(out.data, text, wanted)) abort();
    stop_destroy(s);
    str_free(&out);
    return 0;
}
