// A byte stream to a client: plain TCP. Another kind (TLS) would be another file behind this page.
// Everything on the loop's thread.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

// Called by the transport; any of them may call transport_close.
struct transport_events {
    void (*input)(void *owner, const char *data, size_t len);
    void (*end)(void *owner);     // the client sends no more, or is gone
    void (*drained)(void *owner); // everything that was written is with the kernel
    void (*closed)(void *owner);  // after transport_close: nothing is called any more
};

// Part of its owner's struct. Bytes that the kernel doesn't take at once are copied and wait.
struct transport {
    uv_tcp_t tcp;
    uv_write_t write;
    const struct transport_events *events;
    void *owner;
    char *flying;  // being written; NULL: nothing is
    char *waiting; // to be written next
    size_t waiting_len, waiting_cap;
    size_t queued_before; // at the last transport_stalled_ms
    int64_t progress_ms;  // loop time when the kernel last took bytes
    bool ending;          // transport_shutdown was called
    bool closing, failed;
};

int transport_accept(struct transport *t, uv_stream_t *server,
                     const struct transport_events *events, void *owner);
void transport_write(struct transport *t, const void *data, size_t len);
size_t transport_queued(const struct transport *t); // bytes not yet with the kernel
// For how long the kernel has taken nothing of what is queued; to be called now and then.
int64_t transport_stalled_ms(struct transport *t);
void transport_read(struct transport *t, bool on);
void transport_shutdown(struct transport *t); // we send no more; what is queued must be drained
void transport_close(struct transport *t);    // harmless a second time
