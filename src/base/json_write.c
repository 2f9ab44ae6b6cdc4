#include "base/json.h"
#include "base/str.h"
#include "base/unicode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(struct json_writer *w, const char *text, size_t len) {
    if (!w->failed && str_append(w->out, text, len)) w->failed = true;
}

static void put_value(struct json_writer *w, const char *text, size_t len) {
    if (w->after_value) put(w, ",", 1);
    put(w, text, len);
    w->after_value = true;
}

void json_open(struct json_writer *w, char bracket) {
    put_value(w, &bracket, 1);
    w->after_value = false;
}

void json_close(struct json_writer *w, char bracket) {
    put(w, &bracket, 1);
    w->after_value = true;
}

void json_put_null(struct json_writer *w) {
    put_value(w, "null", 4);
}

void json_put_bool(struct json_writer *w, bool value) {
    put_value(w, value ? "true" : "false", value ? 4 : 5);
}

void json_put_int(struct json_writer *w, int64_t value) {
    char text[24];
    put_value(w, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

static bool reads_back(const char *text, double value, bool single) {
    return single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value;
}

// Once a precision reads back, every longer one does: so the shortest is found by halving.
static void put_shortest(struct json_writer *w, double value, bool single) {
    if (!isfinite(value)) {
        json_put_null(w);
        return;
    }
    char text[32];
    if (value == floor(value) && fabs(value) < 1e15) { // 100 rather than 1e+02
        const int len = snprintf(text, sizeof text, "%.0f%s", value, value ? "" : ".0");
        put_value(w, text, (size_t)len); // the sign of -0.0 would be lost on a whole number
        return;
    }
    int low = 1, high = single ? 9 : 17;
    while (low < high) {
        const int middle = (low + high) / 2;
        snprintf(text, sizeof text, "%.*g", middle, value);
        if (reads_back(text, value, single))
            high = middle;
        else
            low = middle + 1;
    }
    put_value(w, text, (size_t)snprintf(text, sizeof text, "%.*g", low, value));
}

void json_put_float(struct json_writer *w, double value) {
    put_shortest(w, value, false);
}

void json_put_float32(struct json_writer *w, float value) {
    put_shortest(w, (double)value, true);
}

// The escape of one byte that may not stand for itself, or NULL.
static const char *escape_of(unsigned char c, char room[8]) {
    switch (c) {
    case '"': return "\\\"";
    case '\\': return "\\\\";
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    default: break;
    }
    if (c >= 0x20 && c != 0x7f) return NULL;
    snprintf(room, 8, "\\u%04x", c);
    return room;
}

static bool is_plain(char c) {
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

void json_put_text(struct json_writer *w, const char *text, size_t len) {
    put_value(w, "\"", 1);
    size_t plain = 0; // where the run of bytes begins that need no escape
    for (size_t i = 0; i < len;) {
        char room[8];
        if (is_plain(text[i])) { // nearly all
            i++;
            continue;
        }
        const size_t n = unicode_decode(text + i, len - i, NULL);
        const char *instead = n ? escape_of((unsigned char)text[i], room) : "\xef\xbf\xbd";
        if (instead) {
            put(w, text + plain, i - plain);
            put(w, instead, strlen(instead));
            plain = i + (n ? n : 1);
        }
        i += n ? n : 1;
    }
    put(w, text + plain, len - plain);
    put(w, "\"", 1);
}

void json_put_key(struct json_writer *w, const char *key) {
    json_put_text(w, key, strlen(key));
    put(w, ":", 1);
    w->after_value = false;
}

int json_done(const struct json_writer *w) {
    return w->failed ? -1 : 0;
}
