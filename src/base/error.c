#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fail_set(struct error *err, enum error_code code, const char *fmt, ...) {
    if (!err) return -1;
    err->code = code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return -1;
}

int fail_context(struct error *err, const char *fmt, ...) {
    if (!err) return -1;
    char context[sizeof err->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(context, sizeof context, fmt, ap);
    va_end(ap);
    // A context long enough to push the message out is cut; the message itself is what matters.
    char inner[sizeof err->msg];
    const size_t inner_len = strlen(err->msg);
    memcpy(inner, err->msg, inner_len + 1);
    const size_t room = sizeof err->msg - 3 - inner_len;
    size_t len = strlen(context);
    if (inner_len + 3 > sizeof err->msg || !room) return -1;
    if (len > room) len = room;
    memcpy(err->msg, context, len);
    memcpy(err->msg + len, ": ", 2);
    memcpy(err->msg + len + 2, inner, inner_len + 1);
    return -1;
}

_Noreturn void die(const char *fmt, ...) {
    va_list ap;
    fputs("rwkv: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}
