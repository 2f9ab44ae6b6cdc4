#include "base/nearest.h"

#include <string.h>

enum { MAX_LEN = 63 }; // longer names are not compared: nobody means them by accident

static size_t min2(size_t a, size_t b) {
    return a < b ? a : b;
}

// Optimal string alignment distance (Damerau–Levenshtein without edits inside a swap), by rows.
static size_t edit_distance(const char *a, size_t a_len, const char *b, size_t b_len) {
    size_t before[MAX_LEN + 1] = {0}, above[MAX_LEN + 1], row[MAX_LEN + 1];
    for (size_t j = 0; j <= b_len; j++) above[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            const size_t replaced = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = min2(replaced, min2(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min2(row[j], before[j - 2] + 1);
        }
        memcpy(before, above, sizeof above);
        memcpy(above, row, sizeof row);
    }
    return above[b_len];
}

void nearest_offer(struct nearest *near, const char *name) {
    const size_t typed_len = strlen(near->typed), len = strlen(name);
    if (typed_len > MAX_LEN || len > MAX_LEN) return;
    const size_t allowed = typed_len / 3 > 2 ? typed_len / 3 : 2;
    const size_t distance = edit_distance(near->typed, typed_len, name, len);
    // As many edits as letters would rewrite the name: that is no slip of the finger.
    if (distance > allowed || distance >= len || (near->best && distance >= near->distance)) return;
    near->best = name;
    near->distance = distance;
}
