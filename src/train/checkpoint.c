#include "train/checkpoint.h"

#include "base/file.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

char *checkpoint_path(const char *dir, int64_t step) {
    char name[40];
    snprintf(name, sizeof name, "step-%010" PRId64 ".ckpt", step);
    return path_join(dir, name);
}

static int newest_first(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int checkpoint_list(int64_t *steps, int max, const char *dir) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && n < max && (e = readdir(d));) {
        int64_t step;
        int end = 0;
        if (sscanf(e->d_name, "step-%10" SCNd64 ".ckpt%n", &step, &end) == 1 && end && step >= 0 &&
            !e->d_name[end])
            steps[n++] = step;
    }
    if (d) closedir(d);
    if (n) qsort(steps, (size_t)n, sizeof *steps, newest_first);
    return n;
}
