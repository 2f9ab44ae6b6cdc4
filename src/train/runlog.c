#include "train/runlog.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "train/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE = 4096, MAX_LOG = 1 << 30 };

struct points {
    struct plot_point *at;
    size_t count, cap;
};

struct runlog {
    char *dir;
    int log, speed;
    uint64_t log_bytes;
    struct points train, validation;
    bool complained;
};

static void add_point(struct points *p, double x, double y) {
    if (p->count == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 1024;
        p->at = mem_grow(p->at, p->cap, sizeof *p->at);
    }
    p->at[p->count++] = (struct plot_point){x, y};
}

static int open_append(const char *dir, const char *name, struct error *err) {
    char *path = path_join(dir, name);
    const int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) fail(err, E_IO, "%s: cannot open: %s", path, strerror(errno));
    free(path);
    return fd;
}

// A resumed run's curve goes on from the lines that are already there.
static void recall(struct runlog *l, const char *text, size_t len) {
    for (const char *p = text, *end = text + len; p < end;) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        if (!nl) return;
        struct json *line;
        int64_t step;
        double y;
        if (json_parse(&line, p, (size_t)(nl - p), MAX_LINE, "log.jsonl", NULL) == 0) {
            if (json_read_int(&step, json_member(line, "step"), 0, INT64_MAX, "step", NULL) == 0) {
                if (json_member(line, "loss") &&
                    json_read_float(&y, json_member(line, "loss"), -1e300, 1e300, "", NULL) == 0)
                    add_point(&l->train, (double)step, y);
                if (json_member(line, "val_loss") &&
                    json_read_float(&y, json_member(line, "val_loss"), -1e300, 1e300, "", NULL) ==
                        0)
                    add_point(&l->validation, (double)step, y);
            }
            json_free(line);
        }
        p = nl + 1;
    }
}

int runlog_open(struct runlog **out, const char *dir, uint64_t log_bytes, struct error *err) {
    struct runlog *l = mem_zero(1, sizeof *l);
    char *path = path_join(dir, "log.jsonl");
    struct str text;
    int rc = -1;
    l->dir = mem_strdup(dir);
    l->speed = -1;
    l->log = open_append(dir, "log.jsonl", err);
    if (l->log < 0) goto out;
    l->speed = open_append(dir, "speed.jsonl", err);
    if (l->speed < 0) goto out;
    const off_t size = lseek(l->log, 0, SEEK_END);
    if (size < 0 || (uint64_t)size < log_bytes) {
        fail(err, E_FORMAT, "%s: has %lld bytes, the checkpoint remembers %llu", path,
             (long long)size, (unsigned long long)log_bytes);
        goto out;
    }
    if (ftruncate(l->log, (off_t)log_bytes) || (!log_bytes && ftruncate(l->speed, 0))) {
        fail(err, E_IO, "%s: cannot cut back: %s", path, strerror(errno));
        goto out;
    }
    l->log_bytes = log_bytes;
    str_init(&text, MAX_LOG);
    if (log_bytes && file_read(&text, path, NULL) == 0) recall(l, text.data, text.len);
    str_free(&text);
    rc = 0;
out:
    free(path);
    if (rc)
        runlog_close(l);
    else
        *out = l;
    return rc;
}

void runlog_close(struct runlog *l) {
    if (!l) return;
    if (l->log >= 0) close(l->log);
    if (l->speed >= 0) close(l->speed);
    free(l->train.at);
    free(l->validation.at);
    free(l->dir);
    free(l);
}

uint64_t runlog_bytes(const struct runlog *l) {
    return l ? l->log_bytes : 0;
}

// One line, one write. A full disk must not stop the training: it is said once.
static void write_line(struct runlog *l, int fd, struct json_writer *w) {
    json_close(w, '}');
    str_putc(w->out, '\n');
    const ssize_t n = write(fd, w->out->data, w->out->len);
    if (n == (ssize_t)w->out->len) {
        if (fd == l->log) l->log_bytes += (uint64_t)n;
        l->complained = false;
    } else if (!l->complained) {
        log_error("%s: the log cannot be written (%s); training goes on without it", l->dir,
                  n < 0 ? strerror(errno) : "disk full");
        l->complained = true;
        if (n > 0 && fd == l->log && ftruncate(fd, (off_t)l->log_bytes))
            log_error("%s/log.jsonl ends in half a line", l->dir);
    }
    str_free(w->out);
}

static struct json_writer line(struct str *s, int64_t step) {
    str_init(s, MAX_LINE);
    struct json_writer w = {.out = s};
    json_open(&w, '{');
    json_put_key(&w, "step");
    json_put_int(&w, step);
    return w;
}

static void number(struct json_writer *w, const char *key, double value) {
    json_put_key(w, key);
    json_put_float(w, value);
}

void runlog_step(struct runlog *l, int64_t step, int64_t tokens, double loss, double lr,
                 double grad_norm) {
    if (!l) return;
    struct str s;
    struct json_writer w = line(&s, step);
    json_put_key(&w, "tokens");
    json_put_int(&w, tokens);
    number(&w, "loss", loss);
    number(&w, "lr", lr);
    number(&w, "grad_norm", grad_norm);
    write_line(l, l->log, &w);
    add_point(&l->train, (double)step, loss);
}

void runlog_skipped(struct runlog *l, int64_t step, uint64_t first_sample, double loss,
                    double grad_norm) {
    if (!l) return;
    struct str s;
    struct json_writer w = line(&s, step);
    json_put_key(&w, "skipped");
    json_put_bool(&w, true);
    json_put_key(&w, "first_sample");
    json_put_int(&w, (int64_t)first_sample);
    number(&w, "bad_loss", loss);
    number(&w, "grad_norm", grad_norm);
    write_line(l, l->log, &w);
}

void runlog_validation(struct runlog *l, int64_t step, double loss, double bits_per_byte) {
    if (!l) return;
    struct str s;
    struct json_writer w = line(&s, step);
    number(&w, "val_loss", loss);
    number(&w, "val_bits_per_byte", bits_per_byte);
    write_line(l, l->log, &w);
    add_point(&l->validation, (double)step, loss);
}

void runlog_speed(struct runlog *l, int64_t step, double tokens_per_s, double elapsed_s) {
    if (!l) return;
    struct str s;
    struct json_writer w = line(&s, step);
    number(&w, "tokens_per_s", tokens_per_s);
    number(&w, "elapsed_s", elapsed_s);
    write_line(l, l->speed, &w);
}

int runlog_plot(const struct runlog *l, const char *title, struct error *err) {
    const struct plot_curve curves[] = {
        {"training", "#7a8fd8", l->train.at, l->train.count, 0},
        {"validation", "#d8583a", l->validation.at, l->validation.count, 1},
    };
    char *path = path_join(l->dir, "loss.svg");
    const int rc = plot_write(path, title, "step", "loss, nats per token", curves, 2, err);
    free(path);
    return rc;
}
