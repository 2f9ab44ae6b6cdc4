#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"debug", "info", "warn", "error"};
static atomic_int threshold = LOG_INFO;

void log_set_level(enum log_level level) {
    atomic_store(&threshold, (int)level);
}

int log_level_parse(enum log_level *out, const char *name) {
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i])) continue;
        *out = (enum log_level)i;
        return 0;
    }
    return -1;
}

void log_line(enum log_level level, const char *fmt, ...) {
    if ((int)level < atomic_load(&threshold)) return;
    char line[2048];
    const time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    int n = (int)strftime(line, sizeof line, "%H:%M:%S ", &tm);
    n += snprintf(line + n, sizeof line - (size_t)n, "%s ", names[level]);
    va_list ap;
    va_start(ap, fmt);
    const int m = vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    va_end(ap);
    n = m < (int)sizeof line - n ? n + (m > 0 ? m : 0) : (int)sizeof line - 1;
    // Text from outside must not forge lines of its own.
    for (int i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = ' ';
    line[n++] = '\n';
    if (write(2, line, (size_t)n) < 0) return; // nowhere left to complain
}
