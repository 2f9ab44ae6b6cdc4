#include "train/plot.h"

#include "base/error.h"
#include "base/file.h"
#include "base/str.h"

#include <math.h>

enum { WIDTH = 960, HEIGHT = 540, LEFT = 70, RIGHT = 20, TOP = 48, BOTTOM = 56, MOST = 1000 };

struct frame {
    double x0, x1, y0, y1; // data
};

static double px(const struct frame *f, double x) {
    return LEFT + (x - f->x0) / (f->x1 - f->x0) * (WIDTH - LEFT - RIGHT);
}

static double py(const struct frame *f, double y) {
    return HEIGHT - BOTTOM - (y - f->y0) / (f->y1 - f->y0) * (HEIGHT - TOP - BOTTOM);
}

// 1, 2 or 5 times a power of ten, so that about n of them span the range.
static double tick(double range, int n) {
    const double rough = range / n, unit = pow(10, floor(log10(rough)));
    return rough / unit < 2 ? 2 * unit : rough / unit < 5 ? 5 * unit : 10 * unit;
}

// The first 5 % of a run fall from where nothing is known; what follows sets the scale, and the
// start leaves the picture at its top.
static struct frame frame_of(const struct plot_curve *curves, int count) {
    struct frame f = {0, 1, INFINITY, -INFINITY};
    for (int c = 0; c < count; c++)
        for (size_t i = 0; i < curves[c].count; i++)
            if (curves[c].points[i].x > f.x1) f.x1 = curves[c].points[i].x;
    for (int c = 0; c < count; c++)
        for (size_t i = 0; i < curves[c].count; i++) {
            const struct plot_point p = curves[c].points[i];
            if (!isfinite(p.y) || p.x < 0.05 * f.x1) continue;
            if (p.y < f.y0) f.y0 = p.y;
            if (p.y > f.y1) f.y1 = p.y;
        }
    if (!(f.y1 > f.y0)) return (struct frame){0, f.x1, 0, 1};
    const double margin = 0.05 * (f.y1 - f.y0);
    f.y0 = f.y0 - margin > 0 ? f.y0 - margin : 0;
    f.y1 += margin;
    return f;
}

static void put_text(struct str *s, const char *text) {
    for (; *text; text++) {
        if (*text == '<')
            str_puts(s, "&lt;");
        else if (*text == '&')
            str_puts(s, "&amp;");
        else
            str_putc(s, *text);
    }
}

static void put_axes(struct str *s, const struct frame *f, const char *x_label,
                     const char *y_label) {
    const double dy = tick(f->y1 - f->y0, 8), dx = tick(f->x1 - f->x0, 8);
    for (double y = ceil(f->y0 / dy) * dy; y <= f->y1; y += dy)
        str_printf(s,
                   "<path d='M%d %.1fH%d' class='g'/><text x='%d' y='%.1f' class='n' "
                   "text-anchor='end'>%g</text>\n",
                   LEFT, py(f, y), WIDTH - RIGHT, LEFT - 8, py(f, y) + 4, round(y / dy) * dy);
    for (double x = ceil(f->x0 / dx) * dx; x <= f->x1; x += dx)
        str_printf(s, "<text x='%.1f' y='%d' class='n' text-anchor='middle'>%g</text>\n", px(f, x),
                   HEIGHT - BOTTOM + 18, round(x / dx) * dx);
    str_printf(s, "<text x='%d' y='%d' class='n' text-anchor='middle'>", (LEFT + WIDTH - RIGHT) / 2,
               HEIGHT - 14);
    put_text(s, x_label);
    str_printf(s,
               "</text><text x='16' y='%d' class='n' text-anchor='middle' "
               "transform='rotate(-90 16 %d)'>",
               (TOP + HEIGHT - BOTTOM) / 2, (TOP + HEIGHT - BOTTOM) / 2);
    put_text(s, y_label);
    str_puts(s, "</text>\n");
}

static void put_curve(struct str *s, const struct frame *f, const struct plot_curve *c) {
    const size_t group = c->count / MOST + 1;
    str_printf(s, "<path clip-path='url(#c)' fill='none' stroke='%s' stroke-width='1.6' d='",
               c->color);
    char pen = 'M';
    for (size_t i = 0; i < c->count; i += group) {
        double x = 0, y = 0;
        size_t n = 0;
        for (size_t k = i; k < i + group && k < c->count; k++)
            if (isfinite(c->points[k].y)) {
                x += c->points[k].x;
                y += c->points[k].y;
                n++;
            }
        if (!n) continue;
        str_printf(s, "%c%.1f %.1f", pen, px(f, x / (double)n), py(f, y / (double)n));
        pen = 'L';
    }
    str_puts(s, "'/>\n");
    for (size_t i = 0; c->dots && i < c->count; i += group)
        if (isfinite(c->points[i].y))
            str_printf(s, "<circle clip-path='url(#c)' cx='%.1f' cy='%.1f' r='3.5' fill='%s'/>\n",
                       px(f, c->points[i].x), py(f, c->points[i].y), c->color);
}

int plot_write(const char *path, const char *title, const char *x_label, const char *y_label,
               const struct plot_curve *curves, int count, struct error *err) {
    struct str s;
    str_init(&s, 4 << 20);
    const struct frame f = frame_of(curves, count);
    str_printf(&s,
               "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' height='%d'>"
               "<style>text{font-family:system-ui,sans-serif;fill:#334}.n{font-size:12px;"
               "fill:#667}.g{stroke:#e4e6ee}</style><rect width='100%%' height='100%%' "
               "fill='#fff'/>\n<text x='%d' y='28' font-size='17' font-weight='600'>",
               WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT);
    put_text(&s, title);
    str_printf(&s,
               "</text><clipPath id='c'><rect x='%d' y='%d' width='%d' height='%d'/></clipPath>\n",
               LEFT - 4, TOP, WIDTH - LEFT - RIGHT + 8, HEIGHT - TOP - BOTTOM + 4);
    put_axes(&s, &f, x_label, y_label);
    for (int c = 0; c < count; c++) put_curve(&s, &f, &curves[c]);
    for (int c = 0; c < count; c++) {
        str_printf(&s,
                   "<rect x='%d' y='%d' width='14' height='3' fill='%s'/><text x='%d' y='%d' "
                   "class='n'>",
                   WIDTH - 150, TOP + 8 + 18 * c, curves[c].color, WIDTH - 130, TOP + 14 + 18 * c);
        put_text(&s, curves[c].name);
        str_puts(&s, "</text>\n");
    }
    str_puts(&s, "</svg>\n");
    const int rc = file_replace(path, s.data, s.len, err);
    str_free(&s);
    return rc;
}
