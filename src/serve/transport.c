#include "serve/transport.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

// What the kernel may hold for a reader, instead of the megabytes that it would grow to: a thousand
// slow ones must not fill the memory.
enum { SEND_BUFFER = 128 << 10 };

// One buffer for all: what is read is consumed before the next read.
static char input[64 << 10];

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)handle, (void)suggested;
    *buf = uv_buf_init(input, sizeof input);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct transport *t = stream->data;
    if (t->closing || n == 0) return;
    if (n > 0) {
        t->events->input(t->owner, buf->base, (size_t)n);
        return;
    }
    uv_read_stop(stream);
    t->events->end(t->owner);
}

int transport_accept(struct transport *t, uv_stream_t *server,
                     const struct transport_events *events, void *owner) {
    *t = (struct transport){.events = events, .owner = owner};
    uv_tcp_init(server->loop, &t->tcp);
    t->tcp.data = t;
    t->progress_ms = (int64_t)uv_now(server->loop);
    if (uv_accept(server, (uv_stream_t *)&t->tcp)) return -1;
    uv_tcp_nodelay(&t->tcp, 1);
    int size = SEND_BUFFER;
    uv_send_buffer_size((uv_handle_t *)&t->tcp, &size);
    transport_read(t, true);
    return 0;
}

void transport_read(struct transport *t, bool on) {
    if (t->closing) return;
    if (on)
        uv_read_start((uv_stream_t *)&t->tcp, on_alloc, on_read);
    else
        uv_read_stop((uv_stream_t *)&t->tcp);
}

size_t transport_queued(const struct transport *t) {
    return t->waiting_len + uv_stream_get_write_queue_size((const uv_stream_t *)&t->tcp);
}

int64_t transport_stalled_ms(struct transport *t) {
    const size_t queued = transport_queued(t);
    const int64_t now = (int64_t)uv_now(t->tcp.loop);
    if (queued < t->queued_before || !queued) t->progress_ms = now;
    t->queued_before = queued;
    return now - t->progress_ms;
}

static void fly(struct transport *t);

static void on_shutdown(uv_shutdown_t *req, int status) {
    (void)status;
    free(req);
}

// libuv takes no more once it has been asked to end, so what waits goes first.
static void end_if_done(struct transport *t) {
    if (!t->ending || t->flying || t->waiting_len) return;
    uv_shutdown_t *req = mem_zero(1, sizeof *req);
    if (uv_shutdown(req, (uv_stream_t *)&t->tcp, on_shutdown)) free(req);
}

static void on_written(uv_write_t *req, int status) {
    struct transport *t = req->data;
    free(t->flying);
    t->flying = NULL;
    t->progress_ms = (int64_t)uv_now(t->tcp.loop);
    if (t->closing) return;
    if (status) {
        t->failed = true;
        free(t->waiting);
        t->waiting = NULL;
        t->waiting_len = t->waiting_cap = 0;
        t->events->end(t->owner);
        return;
    }
    if (t->waiting_len) {
        fly(t);
        return;
    }
    end_if_done(t);
    t->events->drained(t->owner);
}

static void fly(struct transport *t) {
    t->flying = t->waiting;
    const uv_buf_t buf = uv_buf_init(t->waiting, (unsigned)t->waiting_len);
    t->waiting = NULL;
    t->waiting_len = t->waiting_cap = 0;
    t->write.data = t;
    if (uv_write(&t->write, (uv_stream_t *)&t->tcp, &buf, 1, on_written)) {
        free(t->flying);
        t->flying = NULL;
        t->failed = true;
    }
}

void transport_write(struct transport *t, const void *data, size_t len) {
    if (t->closing || t->failed || !len) return;
    if (!t->flying && !t->waiting_len) {
        const uv_buf_t buf = uv_buf_init((char *)data, (unsigned)len);
        const int n = uv_try_write((uv_stream_t *)&t->tcp, &buf, 1);
        if (n > 0) {
            t->progress_ms = (int64_t)uv_now(t->tcp.loop);
            data = (const char *)data + n;
            len -= (size_t)n;
        }
        // A reset shows at the next read or write; there is nothing to do about it here.
        if (!len) return;
    }
    if (t->waiting_len + len > t->waiting_cap) {
        t->waiting_cap = (t->waiting_len + len) * 2;
        t->waiting = mem_grow(t->waiting, t->waiting_cap, 1);
    }
    memcpy(t->waiting + t->waiting_len, data, len);
    t->waiting_len += len;
    if (!t->flying) fly(t);
}

void transport_shutdown(struct transport *t) {
    if (t->closing || t->ending) return;
    t->ending = true;
    end_if_done(t);
}

static void on_closed(uv_handle_t *handle) {
    struct transport *t = handle->data;
    free(t->flying);
    free(t->waiting);
    t->flying = t->waiting = NULL;
    t->events->closed(t->owner);
}

void transport_close(struct transport *t) {
    if (t->closing) return;
    t->closing = true;
    uv_close((uv_handle_t *)&t->tcp, on_closed);
}
