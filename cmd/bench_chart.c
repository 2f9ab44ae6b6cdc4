#include "bench_chart.h"

#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "bench_result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SVG = 16 << 20, CURVE_POINTS = 400, COLUMNS = 48, SLICES = 60 };

// A picture with one frame for data in it.
struct chart {
    struct str svg;
    int width, height, left, right, top, bottom; // the margins of the frame
    double x0, x1, y0, y1;                       // data at the frame's edges
    bool log_x;
};

static const char *const blue = "#2563eb", *const red = "#dc2626", *const green = "#059669",
                         *const grey = "#64748b";

static double px(const struct chart *c, double x) {
    const double share = c->log_x ? (log(x) - log(c->x0)) / (log(c->x1) - log(c->x0))
                                  : (x - c->x0) / (c->x1 - c->x0);
    return c->left + share * (c->width - c->left - c->right);
}

static double py(const struct chart *c, double y) {
    return c->height - c->bottom - (y - c->y0) / (c->y1 - c->y0) * (c->height - c->top - c->bottom);
}

static void put_escaped(struct str *s, const char *text) {
    for (; *text; text++) {
        if (*text == '<')
            str_puts(s, "&lt;");
        else if (*text == '&')
            str_puts(s, "&amp;");
        else
            str_putc(s, *text);
    }
}

// anchor: 's'tart, 'm'iddle, 'e'nd
static void label(struct chart *c, double x, double y, char anchor, const char *class,
                  const char *text) {
    str_printf(&c->svg, "<text x='%.1f' y='%.1f' class='%s' text-anchor='%s'>", x, y, class,
               anchor == 's'   ? "start"
               : anchor == 'm' ? "middle"
                               : "end");
    put_escaped(&c->svg, text);
    str_puts(&c->svg, "</text>\n");
}

// Three digits are what a reader takes in.
static void number(char out[32], double v) {
    const double most = fabs(v);
    if (most >= 1e6)
        snprintf(out, 32, "%.3gM", v / 1e6);
    else if (most >= 1e4)
        snprintf(out, 32, "%.3gk", v / 1e3);
    else if (most >= 100)
        snprintf(out, 32, "%.0f", v);
    else
        snprintf(out, 32, "%.3g", v);
}

static void chart_open(struct chart *c, const char *title, const struct bench_result *a,
                       const struct bench_result *b) {
    char line[400];
    str_init(&c->svg, MAX_SVG);
    str_printf(&c->svg,
               "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' "
               "height='%d'><style>text{font-family:system-ui,sans-serif;font-size:14px;"
               "fill:#475569}.t{font-size:22px;font-weight:600;fill:#0f172a}.v{font-size:26px;"
               "font-weight:600;fill:#0f172a}.s{font-size:13px;fill:#64748b}.h{paint-order:stroke;"
               "stroke:#fff;stroke-width:4px}.g{stroke:#e2e8f0}"
               "</style><rect width='100%%' height='100%%' fill='#fff'/>\n",
               c->width, c->height, c->width, c->height);
    label(c, c->left, 36, 's', "t", title);
    const char *const model = a->config.model ? a->config.model : "?";
    if (b)
        snprintf(line, sizeof line, "A %.60s, %s (solid)  ·  B %.60s, %s (dashed)", model,
                 a->started_at, b->config.model ? b->config.model : "?", b->started_at);
    else
        snprintf(line, sizeof line, "%.60s  ·  %zu of %zu requests completed  ·  %s", model,
                 a->summary.completed, a->summary.completed + a->summary.failed, a->started_at);
    label(c, c->left, 58, 's', "s", line);
}

static int chart_close(struct chart *c, const char *path, struct error *err) {
    str_puts(&c->svg, "</svg>\n");
    const int rc = file_replace(path, c->svg.data, c->svg.len, err);
    str_free(&c->svg);
    return rc;
}

static double step_of(double range, int n) {
    const double rough = range / n, unit = pow(10, floor(log10(rough)));
    return rough / unit <= 1   ? unit
           : rough / unit <= 2 ? 2 * unit
           : rough / unit <= 5 ? 5 * unit
                               : 10 * unit;
}

static void vertical(struct chart *c, double x, const char *text) {
    str_printf(&c->svg, "<path d='M%.1f %dV%d' class='g'/>\n", px(c, x), c->top,
               c->height - c->bottom);
    if (text) label(c, px(c, x), c->height - c->bottom + 20, 'm', "", text);
}

static void axis_x(struct chart *c, const char *name) {
    char text[32];
    if (c->log_x) {
        for (double unit = pow(10, floor(log10(c->x0))); unit <= c->x1; unit *= 10)
            for (int m = 1; m <= 9; m++) {
                if (m * unit < c->x0 * 0.999 || m * unit > c->x1 * 1.001) continue;
                number(text, m * unit);
                // Over many decades only the powers have room for a number.
                const bool few = c->x1 / c->x0 < 2000;
                vertical(c, m * unit, m == 1 || (few && (m == 2 || m == 5)) ? text : NULL);
            }
    } else {
        const double step = step_of(c->x1 - c->x0, 10);
        for (double x = ceil(c->x0 / step) * step; x <= c->x1 * 1.0001; x += step) {
            number(text, x);
            vertical(c, x, text);
        }
    }
    label(c, (c->left + c->width - c->right) / 2.0, c->height - 14, 'm', "", name);
}

static void axis_y(struct chart *c, const char *name) {
    char text[32];
    const double step = step_of(c->y1 - c->y0, 6);
    for (double y = c->y0; y <= c->y1 * 1.0001; y += step) {
        number(text, y);
        str_printf(&c->svg, "<path d='M%d %.1fH%d' class='g'/>\n", c->left, py(c, y),
                   c->width - c->right);
        label(c, c->left - 8, py(c, y) + 5, 'e', "", text);
    }
    label(c, c->left, c->top - 10, 's', "s", name);
}

// Beside the title, where no curve comes.
static void legend(struct chart *c, int row, const char *color, const char *text) {
    const int x = c->width / 2 + 100, y = 20 + 22 * row;
    str_printf(&c->svg, "<rect x='%d' y='%d' width='18' height='4' rx='2' fill='%s'/>\n", x, y,
               color);
    label(c, x + 26, y + 7, 's', "", text);
}

// ---- how latencies are distributed -------------------------------------------------------------

static const struct {
    enum bench_latency what;
    const char *name, *color;
} curves[] = {{TTFT, "time to first token", blue},
              {ITL, "between tokens", green},
              {E2EL, "whole request", red}};

enum { NUM_CURVES = sizeof curves / sizeof curves[0] };

// Pieces that come in one packet have nothing between them; a logarithm wants something.
static double at_least(double ms) {
    return ms > 0.01 ? ms : 0.01;
}

static void put_cdf(struct chart *c, const double *sorted, size_t count, const char *color,
                    bool dashed) {
    if (!count) return;
    str_printf(&c->svg, "<path fill='none' stroke='%s' stroke-width='2.2'%s d='", color,
               dashed ? " stroke-dasharray='7 5'" : "");
    for (int i = 0; i <= CURVE_POINTS; i++) {
        const double share = (double)i / CURVE_POINTS;
        const double ms = fmax(c->x0, sorted[(size_t)(share * (double)(count - 1))]);
        str_printf(&c->svg, "%c%.1f %.1f", i ? 'L' : 'M', px(c, ms), py(c, 100 * share));
    }
    str_puts(&c->svg, "'/>\n");
}

int bench_chart_cdf(const char *path, const struct bench_result *a, const struct bench_result *b,
                    struct error *err) {
    struct chart c = {.width = 1200,
                      .height = 720,
                      .left = 76,
                      .right = 64,
                      .top = 96,
                      .bottom = 62,
                      .x0 = INFINITY,
                      .y1 = 100,
                      .log_x = true};
    const struct bench_result *runs[] = {a, b};
    double *values[2][NUM_CURVES] = {{0}};
    size_t counts[2][NUM_CURVES] = {{0}};
    for (int r = 0; r < 2 && runs[r]; r++)
        for (int i = 0; i < NUM_CURVES; i++) {
            values[r][i] = bench_collect(&counts[r][i], runs[r], curves[i].what);
            const struct bench_spread s = bench_spread_of(values[r][i], counts[r][i]);
            if (!s.count) continue;
            // What came in one packet would stretch the axis over decades of nothing.
            c.x0 = fmin(c.x0, at_least(values[r][i][counts[r][i] / 50]));
            c.x1 = fmax(c.x1, at_least(s.max));
        }
    if (!(c.x1 > 0)) c.x0 = 1, c.x1 = 10;
    c.x0 /= 1.15, c.x1 *= 1.15;
    chart_open(&c, "Latency CDF", a, b);
    axis_x(&c, "Latency (ms)");
    axis_y(&c, "Percentile (%)");
    static const int marks[] = {50, 90, 99};
    for (int i = 0; i < 3; i++) {
        char text[8];
        snprintf(text, sizeof text, "p%d", marks[i]);
        str_printf(&c.svg, "<path d='M%d %.1fH%d' stroke='#94a3b8' stroke-dasharray='2 4'/>\n",
                   c.left, py(&c, marks[i]), c.width - c.right);
        label(&c, c.width - c.right + 8, py(&c, marks[i]) + 5, 's', "", text);
    }
    for (int r = 0; r < 2 && runs[r]; r++)
        for (int i = 0; i < NUM_CURVES; i++)
            put_cdf(&c, values[r][i], counts[r][i], curves[i].color, r == 1);
    for (int i = 0, row = 0; i < NUM_CURVES; i++) {
        char text[160], p50[32], p99[32];
        const struct bench_spread *s = &a->summary.ms[curves[i].what];
        if (!s->count) continue;
        number(p50, s->p50);
        number(p99, s->p99);
        int len = snprintf(text, sizeof text, "%s: p50 %s ms, p99 %s ms", curves[i].name, p50, p99);
        if (b) {
            number(p50, b->summary.ms[curves[i].what].p50);
            number(p99, b->summary.ms[curves[i].what].p99);
            snprintf(text + len, sizeof text - (size_t)len, "; B: %s, %s", p50, p99);
        }
        legend(&c, row++, curves[i].color, text);
    }
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < NUM_CURVES; i++) free(values[r][i]);
    return chart_close(&c, path, err);
}

// ---- throughput over time ----------------------------------------------------------------------

struct slices {
    double tokens[SLICES], in_flight[SLICES]; // per second; on average
    double width_s;
};

static void add_tokens(struct slices *s, double at_s, double tokens) {
    const double i = at_s / s->width_s;
    s->tokens[i < 0 ? 0 : i >= SLICES ? SLICES - 1 : (int)i] += tokens / s->width_s;
}

// The tokens of a request are spread evenly over its chunks.
static void slices_fill(struct slices *s, const struct bench_result *r, double span_s) {
    *s = (struct slices){.width_s = span_s / SLICES};
    for (size_t i = 0; i < r->count; i++) {
        const struct load_request *q = &r->requests[i];
        if (q->fault == LOAD_UNSENT) continue;
        for (int k = 0; k < SLICES; k++) {
            const double from = fmax(q->start_s, k * s->width_s);
            const double to = fmin(q->start_s + q->e2el_s, (k + 1) * s->width_s);
            if (to > from) s->in_flight[k] += (to - from) / s->width_s;
        }
        if (q->fault != LOAD_OK || q->output_tokens <= 0) continue;
        if (!q->chunks) {
            add_tokens(s, q->start_s + q->e2el_s, (double)q->output_tokens);
            continue;
        }
        const double each = (double)q->output_tokens / (double)(q->num_itl + 1);
        double at = q->start_s + q->ttft_s;
        add_tokens(s, at, each);
        for (size_t k = 0; k < q->num_itl; k++) add_tokens(s, at += (double)q->itl_s[k], each);
    }
}

static void put_slices(struct chart *c, const double *values, int count, double width_s,
                       double scale, const char *style, bool area) {
    str_printf(&c->svg, "<path %s d='M%.1f %.1f", style, px(c, 0), py(c, 0));
    for (int i = 0; i < count; i++)
        str_printf(&c->svg, "%c%.1f %.1f", i || area ? 'L' : 'M', px(c, (i + 0.5) * width_s),
                   py(c, values[i] * scale));
    if (area) str_printf(&c->svg, "L%.1f %.1fZ", px(c, count * width_s), py(c, 0));
    str_puts(&c->svg, "'/>\n");
}

static void tile(struct chart *c, int column, const char *name, double a, const double *b) {
    const double x = c->left + column * (c->width - c->left - c->right) / 4.0;
    char text[80], before[32], now[32];
    number(now, a);
    label(c, x, 96, 's', "s", name);
    label(c, x, 126, 's', "v", now);
    if (!b) return;
    number(before, *b);
    snprintf(text, sizeof text, "B %s (%+.1f %%)", before, a > 0 ? 100 * (*b / a - 1) : 0);
    label(c, x, 148, 's', "s", text);
}

int bench_chart_throughput(const char *path, const struct bench_result *a,
                           const struct bench_result *b, struct error *err) {
    struct chart c = {
        .width = 1000, .height = 640, .left = 76, .right = 60, .top = 206, .bottom = 62};
    const struct bench_summary *s = &a->summary, *t = b ? &b->summary : NULL;
    chart_open(&c, "Throughput", a, b);
    tile(&c, 0, "requests / s", s->request_throughput, t ? &t->request_throughput : NULL);
    tile(&c, 1, "output tokens / s", s->output_token_throughput,
         t ? &t->output_token_throughput : NULL);
    tile(&c, 2, "total tokens / s", s->total_token_throughput,
         t ? &t->total_token_throughput : NULL);
    tile(&c, 3, "chunks / s", s->chunk_throughput, t ? &t->chunk_throughput : NULL);
    if (!a->timed || (b && !b->timed)) {
        label(&c, c.left, c.top + 20, 's', "s",
              "When requests started was not recorded: there is no course to draw.");
        return chart_close(&c, path, err);
    }
    static struct slices slices[2];
    const double span = fmax(1e-3, fmax(a->cost.duration_s, b ? b->cost.duration_s : 0));
    slices_fill(&slices[0], a, span);
    slices_fill(&slices[1], b ? b : a, span);
    int count[2]; // each as far as it went
    for (int i = 0; i < 2; i++)
        count[i] = (int)fmin(SLICES, ceil((i && b ? b : a)->cost.duration_s / slices[i].width_s));
    double most = 0;
    for (int i = 0; i < SLICES; i++) {
        c.y1 = fmax(c.y1, fmax(slices[0].tokens[i], slices[1].tokens[i]));
        most = fmax(most, fmax(slices[0].in_flight[i], slices[1].in_flight[i]));
    }
    c.x1 = span;
    c.y1 = c.y1 > 0 ? 1.08 * c.y1 : 1;
    most = fmax(most, 1);
    axis_x(&c, "Time (s)");
    axis_y(&c, "output tokens / s");
    put_slices(&c, slices[0].tokens, count[0], slices[0].width_s, 1,
               "fill='#2563eb' fill-opacity='.15' stroke='#2563eb' stroke-width='1.8'", true);
    if (b)
        put_slices(&c, slices[1].tokens, count[1], slices[1].width_s, 1,
                   "fill='none' stroke='#dc2626' stroke-width='1.8' stroke-dasharray='6 4'", false);
    // Those in flight have a scale of their own, at the right.
    const double scale = c.y1 / (1.08 * most);
    put_slices(&c, slices[0].in_flight, count[0], slices[0].width_s, scale,
               "fill='none' stroke='#64748b' stroke-width='1.2'", false);
    for (int i = 0; i <= 4; i++) {
        char text[32];
        number(text, most * i / 4);
        label(&c, c.width - c.right + 8, py(&c, most * i / 4 * scale) + 5, 's', "s", text);
    }
    label(&c, c.width - c.right, c.top - 10, 'e', "s", "requests in flight (grey)");
    return chart_close(&c, path, err);
}

// ---- how long requests took --------------------------------------------------------------------

static void columns(struct chart *c, const double *share, double width, const char *style) {
    for (int i = 0; i < COLUMNS; i++) {
        if (share[i] <= 0) continue;
        const double x = px(c, c->x0 + i * width), y = py(c, share[i]);
        str_printf(&c->svg, "<rect x='%.1f' y='%.1f' width='%.1f' height='%.1f' %s/>\n", x + 1, y,
                   px(c, c->x0 + (i + 1) * width) - x - 2, py(c, 0) - y, style);
    }
}

int bench_chart_histogram(const char *path, const struct bench_result *a,
                          const struct bench_result *b, struct error *err) {
    struct chart c = {.width = 1000,
                      .height = 640,
                      .left = 76,
                      .right = 40,
                      .top = 116,
                      .bottom = 62,
                      .x0 = INFINITY};
    const struct bench_result *runs[] = {a, b};
    double share[2][COLUMNS] = {{0}}, *values[2] = {0};
    size_t counts[2] = {0};
    for (int r = 0; r < 2 && runs[r]; r++) {
        values[r] = bench_collect(&counts[r], runs[r], E2EL);
        const struct bench_spread s = bench_spread_of(values[r], counts[r]);
        if (!s.count) continue;
        c.x0 = fmin(c.x0, values[r][0]);
        c.x1 = fmax(c.x1, s.max);
    }
    if (!(c.x1 >= c.x0)) c.x0 = 0, c.x1 = 1;
    if (c.x1 - c.x0 < 0.02 * c.x1 + 1e-6) c.x0 = 0.98 * c.x0, c.x1 = 1.02 * c.x1 + 1e-6;
    const double width = (c.x1 - c.x0) / COLUMNS;
    for (int r = 0; r < 2; r++) {
        for (size_t i = 0; i < counts[r]; i++) {
            const int k = (int)((values[r][i] - c.x0) / width);
            share[r][k < COLUMNS ? k : COLUMNS - 1] += 100 / (double)counts[r];
        }
        for (int i = 0; i < COLUMNS; i++) c.y1 = fmax(c.y1, share[r][i]);
        free(values[r]);
    }
    c.y1 = c.y1 > 0 ? 1.1 * c.y1 : 1;
    chart_open(&c, "Whole requests (E2EL)", a, b);
    axis_x(&c, "Latency (ms)");
    axis_y(&c, "Share of requests (%)");
    columns(&c, share[0], width, "fill='#2563eb' fill-opacity='.75'");
    if (b) columns(&c, share[1], width, "fill='none' stroke='#dc2626' stroke-dasharray='4 3'");
    const struct bench_spread *s = &a->summary.ms[E2EL];
    const struct {
        const char *name;
        double ms;
    } marks[] = {{"p50", s->p50}, {"p90", s->p90}, {"p99", s->p99}};
    for (int i = 0; s->count && i < 3; i++) {
        char text[64], ms[32];
        number(ms, marks[i].ms);
        snprintf(text, sizeof text, "%s %s", marks[i].name, ms);
        str_printf(&c.svg, "<path d='M%.1f %dV%d' stroke='%s' stroke-dasharray='4 4'/>\n",
                   px(&c, marks[i].ms), c.top, c.height - c.bottom, grey);
        // One under the other, as they may lie close together, and inside the frame.
        const double x = px(&c, marks[i].ms);
        const bool left = x < c.width / 2.0;
        label(&c, x + (left ? 6 : -6), c.top + 18 + 20 * i, left ? 's' : 'e', "h", text);
    }
    return chart_close(&c, path, err);
}
