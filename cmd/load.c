#include "load.h"

#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

enum { SWEEP_MS = 20, IDLE_AT_ONCE = 64, MAX_REQUEST_BYTES = 64 << 20 };

enum conn_state { CLOSED, CONNECTING, OPEN, CLOSING };

// One connection, with or without a request. It keeps its memory when it is closed.
struct conn {
    struct load *load;
    struct conn *next_free; // a stack: the connection used last is the one used next
    enum conn_state state;
    struct load_request *request; // NULL: it is free
    bool kept;                    // it carried a request before this one
    bool retried;
    bool sending;         // `out` and `writing` are in use
    uint64_t deadline_ns; // UINT64_MAX: none
    struct load_answer answer;
    struct str out;
    uv_tcp_t tcp;
    uv_connect_t connecting;
    uv_write_t writing;
};

struct idle {
    struct load *load;
    uv_tcp_t tcp;
    uv_connect_t connecting;
};

// All of it belongs to the one thread that runs the loop.
struct load {
    struct load_options options;
    struct sockaddr_storage address;
    uv_loop_t loop;
    uv_timer_t sweep, progress;
    uv_poll_t due; // on `clock`: the loop's own timers are a millisecond coarse
    uv_signal_t interrupt;
    int clock;
    struct conn **conns, *free;
    size_t num_conns, cap_conns;
    struct idle *idle;
    size_t idle_next, idle_waiting, idle_open, idle_closed;
    int idle_fault; // of libuv
    // the run
    const struct load_run *run;
    struct load_cost *cost;
    uint64_t start_ns, end_ns;
    size_t next, done, failed;
    bool pumping;
};

static char input[256 << 10]; // one for all: what is read is consumed before the next read

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)handle, (void)suggested;
    *buf = uv_buf_init(input, sizeof input);
}

static void pump(struct load *l);

// ---- a connection ------------------------------------------------------------------------------

static void conn_connect(struct conn *c);

static void on_closed(uv_handle_t *handle) {
    struct conn *c = handle->data;
    c->state = CLOSED;
    if (c->request) conn_connect(c); // it waited for this
}

static void conn_close(struct conn *c) {
    if (c->state == CLOSED || c->state == CLOSING) return;
    c->state = CLOSING;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

// The request has its verdict; the connection is free for another.
static void conn_finish(struct conn *c) {
    struct load *l = c->load;
    if (!c->answer.reusable || c->sending) conn_close(c);
    l->failed += c->request->fault != LOAD_OK;
    l->done++;
    l->end_ns = uv_hrtime();
    c->request = NULL;
    c->next_free = l->free;
    l->free = c;
    pump(l);
}

static void conn_fail(struct conn *c, enum load_fault fault, const char *what, int uv_fault) {
    struct load_request *r = c->request;
    const double start = (double)c->load->start_ns * 1e-9 + r->start_s;
    c->answer.reusable = false;
    // A server may close a kept connection at any time; the request wasn't read then, and browsers
    // and libraries send it again as well.
    if (fault == LOAD_CONNECTION && c->kept && !c->answer.begun && !c->retried) {
        c->retried = true;
        c->load->cost->retries++;
        if (r->fault > LOAD_UNSENT) {
            free(r->error);
            r->error = NULL;
            r->fault = LOAD_UNSENT;
        }
        load_answer_begin(&c->answer, r, c->answer.wants_stream, c->answer.start_ns);
        conn_close(c);
        return;
    }
    load_request_fail(r, fault, "%s%s%s", what, uv_fault ? ": " : "",
                      uv_fault ? uv_strerror(uv_fault) : "");
    r->e2el_s = (double)uv_hrtime() * 1e-9 - start;
    conn_finish(c);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct conn *c = stream->data;
    if (n == 0 || c->state != OPEN) return;
    if (!c->request) { // the server closes it, or sends what nobody asked for
        conn_close(c);
        return;
    }
    if (n < 0 && n != UV_EOF) {
        conn_fail(c, LOAD_CONNECTION, "while reading", (int)n);
        return;
    }
    const size_t len = n > 0 ? (size_t)n : 0;
    const enum load_progress p = load_answer_feed(&c->answer, buf->base, len, uv_hrtime());
    if (p == LOAD_MORE) return;
    if (p == LOAD_BROKEN && !c->answer.begun)
        conn_fail(c, LOAD_CONNECTION, "the server closed the connection before it answered", 0);
    else
        conn_finish(c);
}

static void on_written(uv_write_t *w, int status) {
    struct conn *c = w->data;
    c->sending = false;
    // A server that refuses without reading to the end has its say: the answer decides.
    if (status && status != UV_ECANCELED && status != UV_EPIPE && status != UV_ECONNRESET &&
        c->state == OPEN && c->request)
        conn_fail(c, LOAD_CONNECTION, "while sending", status);
}

static void conn_send(struct conn *c) {
    uv_buf_t buf = uv_buf_init(c->out.data, (unsigned)c->out.len);
    c->answer.reusable = false;
    c->writing.data = c;
    const int rc = uv_write(&c->writing, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
    c->sending = rc == 0;
    if (rc) conn_fail(c, LOAD_CONNECTION, "while sending", rc);
}

static void on_connect(uv_connect_t *connecting, int status) {
    struct conn *c = connecting->data;
    if (c->state != CONNECTING || !c->request) return;
    if (status) {
        conn_fail(c, LOAD_CONNECTION, "while connecting", status);
        return;
    }
    c->state = OPEN;
    uv_tcp_nodelay(&c->tcp, 1);
    uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    conn_send(c);
}

static void conn_connect(struct conn *c) {
    struct load *l = c->load;
    uv_tcp_init(&l->loop, &c->tcp);
    c->tcp.data = c->connecting.data = c;
    c->state = CONNECTING;
    c->kept = false;
    l->cost->connects++;
    const int rc =
        uv_tcp_connect(&c->connecting, &c->tcp, (const struct sockaddr *)&l->address, on_connect);
    if (rc) conn_fail(c, LOAD_CONNECTION, "while connecting", rc);
}

// ---- the order of requests ---------------------------------------------------------------------

static struct conn *conn_take(struct load *l) {
    struct conn *c = l->free;
    if (c) {
        l->free = c->next_free;
        return c;
    }
    if (l->num_conns == l->cap_conns) {
        l->cap_conns = l->cap_conns ? 2 * l->cap_conns : 64;
        l->conns = mem_grow(l->conns, l->cap_conns, sizeof *l->conns);
    }
    c = mem_zero(1, sizeof *c);
    c->load = l;
    load_answer_init(&c->answer);
    str_init(&c->out, MAX_REQUEST_BYTES);
    l->conns[l->num_conns++] = c;
    return c;
}

static void begin(struct load *l, size_t number) {
    const struct load_run *run = l->run;
    struct load_request *r = &run->requests[number];
    struct load_plan plan = l->options.plan;
    struct conn *c = conn_take(l);
    plan.stream &= !run->whole;
    c->request = r;
    c->retried = false;
    str_clear(&c->out);
    load_request_write(&c->out, &plan, run->first_id + number,
                       run->words ? run->words[number] : run->word_count, run->max_tokens);
    // What it takes to write the request is the client's, and was not there for a real one.
    const uint64_t now = uv_hrtime();
    if (!run->scheduled) r->start_s = (double)(now - l->start_ns) * 1e-9;
    r->lag_s = (double)(now - l->start_ns) * 1e-9 - r->start_s;
    if (r->lag_s < 0) r->lag_s = 0;
    c->deadline_ns =
        l->options.timeout_s > 0 ? now + (uint64_t)(l->options.timeout_s * 1e9) : UINT64_MAX;
    load_answer_begin(&c->answer, r, plan.stream, l->start_ns + (uint64_t)(r->start_s * 1e9));
    if (c->state == CLOSED) {
        conn_connect(c);
    } else if (c->state == OPEN) {
        c->kept = true;
        conn_send(c);
    } // else on_closed connects
}

static void set_clock(struct load *l, double after_s) {
    const double s = after_s > 1e-6 ? after_s : 1e-6;
    const struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)s, .tv_nsec = (long)(fmod(s, 1) * 1e9)}};
    timerfd_settime(l->clock, 0, &when, NULL);
}

// Starts what may start. A request that fails at once comes back here through conn_finish: then
// the call that is under way goes on for it.
static void pump(struct load *l) {
    if (l->pumping || !l->run) return;
    l->pumping = true;
    const size_t count = l->cost->interrupted ? l->next : l->run->count;
    while (l->next < count) {
        const size_t in_flight = l->next - l->done;
        if (l->options.concurrency && in_flight >= l->options.concurrency) break;
        if (l->run->scheduled) {
            const double now = (double)(uv_hrtime() - l->start_ns) * 1e-9;
            const double due = l->run->requests[l->next].start_s;
            if (due > now) {
                set_clock(l, due - now);
                break;
            }
        }
        begin(l, l->next++);
        if (l->next - l->done > l->cost->peak_in_flight)
            l->cost->peak_in_flight = l->next - l->done;
    }
    l->pumping = false;
    if (l->done == (l->cost->interrupted ? l->next : l->run->count)) uv_stop(&l->loop);
}

static void on_due(uv_poll_t *handle, int status, int events) {
    struct load *l = handle->data;
    uint64_t expirations;
    (void)status, (void)events;
    if (read(l->clock, &expirations, sizeof expirations) > 0) pump(l);
}

static void on_sweep(uv_timer_t *timer) {
    struct load *l = timer->data;
    const uint64_t now = uv_hrtime();
    for (size_t i = 0; i < l->num_conns; i++) {
        struct conn *c = l->conns[i];
        if (c->request && now > c->deadline_ns) {
            load_request_fail(c->request, LOAD_TIMEOUT, "no end within %g s", l->options.timeout_s);
            conn_fail(c, LOAD_TIMEOUT, "", 0);
        }
    }
}

static void on_progress(uv_timer_t *timer) {
    const struct load *l = timer->data;
    if (l->run)
        log_info("%zu of %zu done, %zu in flight, %zu failed", l->done, l->run->count,
                 l->next - l->done, l->failed);
}

static void on_interrupt(uv_signal_t *handle, int number) {
    struct load *l = handle->data;
    (void)number;
    if (!l->run || l->cost->interrupted) return;
    l->cost->interrupted = true;
    for (size_t i = 0; i < l->num_conns; i++)
        if (l->conns[i]->request) conn_fail(l->conns[i], LOAD_CANCEL, "interrupted", 0);
    pump(l);
}

// ---- silent connections ------------------------------------------------------------------------

static void idle_connect(struct load *l);

static void idle_ended(struct idle *i) {
    uv_close((uv_handle_t *)&i->tcp, NULL);
    i->load->idle_closed++;
    i->load->idle_open--;
}

static void on_idle_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    (void)buf;
    if (n < 0 && !uv_is_closing((uv_handle_t *)stream)) idle_ended(stream->data);
}

static void on_idle_connect(uv_connect_t *connecting, int status) {
    struct idle *i = connecting->data;
    struct load *l = i->load;
    l->idle_waiting--;
    if (status == UV_ECANCELED) return; // all of it is being closed
    if (status == 0) {
        l->idle_open++;
        uv_read_start((uv_stream_t *)&i->tcp, on_alloc, on_idle_read);
    } else {
        l->idle_fault = status;
    }
    idle_connect(l);
}

// Some at a time: more than a server's backlog would wait for the kernel to try again.
static void idle_connect(struct load *l) {
    while (!l->idle_fault && l->idle_waiting < IDLE_AT_ONCE &&
           l->idle_next < l->options.idle_connections) {
        struct idle *i = &l->idle[l->idle_next++];
        i->load = l;
        uv_tcp_init(&l->loop, &i->tcp);
        i->tcp.data = i->connecting.data = i;
        l->idle_fault = uv_tcp_connect(&i->connecting, &i->tcp,
                                       (const struct sockaddr *)&l->address, on_idle_connect);
        l->idle_waiting += l->idle_fault == 0;
    }
    if (!l->idle_waiting) uv_stop(&l->loop);
}

static int open_idle(struct load *l, struct error *err) {
    if (!l->options.idle_connections || l->idle) return 0;
    l->idle = mem_zero(l->options.idle_connections, sizeof *l->idle);
    idle_connect(l);
    while (l->idle_waiting) uv_run(&l->loop, UV_RUN_DEFAULT);
    if (!l->idle_fault) return 0;
    return fail(err, E_IO, "idle connection %zu of %zu: %s", l->idle_open + 1,
                l->options.idle_connections, uv_strerror(l->idle_fault));
}

// ---- open, run, close --------------------------------------------------------------------------

static int resolve(struct load *l, struct error *err) {
    const struct load_target *t = &l->options.plan.target;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    const int rc = getaddrinfo(t->host, t->port, &hints, &found);
    if (rc) return fail(err, E_IO, "%s: %s", t->authority, gai_strerror(rc));
    memcpy(&l->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

int load_open(struct load **out, const struct load_options *options, struct error *err) {
    struct load *l = mem_zero(1, sizeof *l);
    l->options = *options;
    *out = NULL;
    if (resolve(l, err)) {
        free(l);
        return -1;
    }
    signal(SIGPIPE, SIG_IGN);
    l->clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (l->clock < 0) {
        free(l);
        return fail(err, E_IO, "timerfd_create: %s", strerror(errno));
    }
    uv_loop_init(&l->loop);
    uv_timer_init(&l->loop, &l->sweep);
    uv_timer_init(&l->loop, &l->progress);
    uv_signal_init(&l->loop, &l->interrupt);
    uv_poll_init(&l->loop, &l->due, l->clock);
    l->sweep.data = l->progress.data = l->interrupt.data = l->due.data = l;
    uv_timer_start(&l->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    if (options->progress_s > 0) {
        const uint64_t ms = (uint64_t)(options->progress_s * 1e3);
        uv_timer_start(&l->progress, on_progress, ms, ms);
    }
    uv_signal_start(&l->interrupt, on_interrupt, SIGINT);
    uv_poll_start(&l->due, UV_READABLE, on_due);
    *out = l;
    return 0;
}

static int raise_files(const struct load *l, size_t count, struct error *err) {
    const size_t most =
        l->options.concurrency && l->options.concurrency < count ? l->options.concurrency : count;
    const rlim_t wanted = most + l->options.idle_connections + 32;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= wanted) return 0;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    // Requests at a rate are rarely all in flight; a ceiling that was asked for is meant.
    if (limit.rlim_max >= wanted || (!l->options.concurrency && !l->options.idle_connections))
        return 0;
    return fail(err, E_LIMIT,
                "%zu connections and %zu idle ones: a process may open %llu files here; take "
                "fewer or raise the hard limit (ulimit -Hn)",
                most, l->options.idle_connections, (unsigned long long)limit.rlim_max);
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

int load_run(struct load *l, const struct load_run *run, struct load_cost *cost,
             struct error *err) {
    *cost = (struct load_cost){0};
    for (size_t i = 0; i < run->count; i++) run->requests[i].fault = LOAD_UNSENT;
    if (raise_files(l, run->count, err) || open_idle(l, err)) return -1;
    l->cost = cost;
    l->run = run;
    l->next = l->done = l->failed = 0;
    const double cpu = cpu_seconds();
    l->start_ns = l->end_ns = uv_hrtime();
    pump(l);
    // uv_stop may have been called before uv_run, which then returns at once.
    while (l->done < (cost->interrupted ? l->next : run->count)) uv_run(&l->loop, UV_RUN_DEFAULT);
    cost->duration_s = (double)(l->end_ns - l->start_ns) * 1e-9;
    cost->cpu_s = cpu_seconds() - cpu;
    cost->idle_open = l->idle_open;
    cost->idle_closed = l->idle_closed;
    l->run = NULL;
    return 0;
}

static void on_walk(uv_handle_t *handle, void *ctx) {
    (void)ctx;
    if (!uv_is_closing(handle)) uv_close(handle, NULL);
}

void load_close(struct load *l) {
    if (!l) return;
    uv_walk(&l->loop, on_walk, NULL);
    while (uv_run(&l->loop, UV_RUN_DEFAULT)) continue;
    uv_loop_close(&l->loop);
    close(l->clock);
    for (size_t i = 0; i < l->num_conns; i++) {
        load_answer_free(&l->conns[i]->answer);
        str_free(&l->conns[i]->out);
        free(l->conns[i]);
    }
    free(l->conns);
    free(l->idle);
    free(l);
}
