// A loss curve as one self-contained SVG.
#pragma once
#include <stddef.h>

struct error;

struct plot_point {
    double x, y;
};

struct plot_curve {
    const char *name, *color;
    const struct plot_point *points; // ascending x
    size_t count;
    int dots; // mark every point
};

// Written beside and renamed. Curves of more than 1000 points are drawn as means of neighbours.
int plot_write(const char *path, const char *title, const char *x_label, const char *y_label,
               const struct plot_curve *curves, int count, struct error *err);
