// The pictures of a load test, each one a self-contained SVG. `b` may be NULL; else it is drawn
// dashed over a.
#pragma once

struct bench_result;
struct error;

int bench_chart_cdf(const char *path, const struct bench_result *a, const struct bench_result *b,
                    struct error *err);
int bench_chart_throughput(const char *path, const struct bench_result *a,
                           const struct bench_result *b, struct error *err);
int bench_chart_histogram(const char *path, const struct bench_result *a,
                          const struct bench_result *b, struct error *err);
