// TOML's values of one word: strings with their escapes, booleans, numbers, dates and times.
#include "base/toml_reader.h"

#include "base/error.h"
#include "base/unicode.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Strings

// How many quotes `q` stand at `at`, up to `most`.
static size_t count_quotes(const struct toml_reader *r, size_t at, char q, size_t most) {
    size_t n = 0;
    while (n < most && at + n < r->len && r->text[at + n] == q) n++;
    return n;
}

// Finds where the string's content that begins at `at` ends. An escaped byte cannot close it.
static int find_string_end(struct toml_reader *r, size_t open, size_t at, bool multi, size_t *end) {
    const char q = r->text[open];
    for (; at < r->len; at++) {
        const char c = r->text[at];
        if (c == '\n' && !multi)
            return toml_refuse(r, open, "the string isn't closed before the line ends");
        if (c == '\\' && q == '"') {
            at++;
        } else if (c == q) {
            // Three close a multi-line string; one or two more before them belong to it.
            const size_t n = multi ? count_quotes(r, at, q, 5) : 1;
            if (multi && n < 3) {
                at += n - 1;
                continue;
            }
            *end = multi ? at + n - 3 : at;
            return 0;
        }
    }
    return toml_refuse(r, open, "the string isn't closed before the file ends");
}

// Reads the hexadecimal digits of \u or \U at `at` into UTF-8.
static int unescape_code(struct toml_reader *r, size_t at, size_t digits, size_t end, char *out,
                         size_t *out_len) {
    uint32_t code = 0;
    for (size_t i = 0; i < digits; i++) {
        const char *hex = "0123456789abcdef0123456789ABCDEF";
        const char c = at + i < end ? r->text[at + i] : 0;
        const char *found = c ? strchr(hex, c) : NULL;
        if (!found)
            return toml_refuse(r, at - 2, "an escape \\%c wants %zu hexadecimal digits",
                               r->text[at - 1], digits);
        code = code << 4 | (uint32_t)((found - hex) & 15);
    }
    const size_t n = unicode_encode(out + *out_len, code);
    if (!n) return toml_refuse(r, at - 2, "U+%04X is no Unicode character", (unsigned)code);
    *out_len += n;
    return 0;
}

// A backslash before the line end takes away all white space up to the next visible byte. Returns
// where that is, or `at` when only spaces follow the backslash on its line.
static size_t skip_folded_line(const struct toml_reader *r, size_t at, size_t end) {
    size_t line_end = at;
    while (line_end < end && (r->text[line_end] == ' ' || r->text[line_end] == '\t')) line_end++;
    if (line_end < end && r->text[line_end] == '\r') line_end++;
    if (line_end >= end || r->text[line_end] != '\n') return at;
    while (line_end < end && strchr(" \t\r\n", r->text[line_end])) line_end++;
    return line_end;
}

// The content of a basic string. No escape is shorter than what it stands for, so `out` with
// end - at bytes is large enough.
static int unescape(struct toml_reader *r, size_t at, size_t end, bool multi, char *out,
                    size_t *out_len) {
    // \e is TOML 1.1's; the toml-test files of Debian 12 want it already.
    static const char names[] = "btnfr\"\\e", bytes[] = "\b\t\n\f\r\"\\\x1b";
    *out_len = 0;
    while (at < end) {
        const char c = r->text[at++];
        if (c != '\\') {
            out[(*out_len)++] = c;
            continue;
        }
        const char name = at < end ? r->text[at] : 0;
        const char *known = name ? strchr(names, name) : NULL;
        const size_t folded = multi ? skip_folded_line(r, at, end) : at;
        if (known) {
            out[(*out_len)++] = bytes[known - names];
            at++;
        } else if (name == 'u' || name == 'U') {
            const size_t digits = name == 'u' ? 4 : 8;
            if (unescape_code(r, at + 1, digits, end, out, out_len)) return -1;
            at += 1 + digits;
        } else if (folded > at) {
            at = folded;
        } else {
            return toml_refuse(r, at - 1,
                               "no such escape; a backslash itself is written \\\\, or "
                               "put the string in 'single quotes'");
        }
    }
    return 0;
}

int toml_read_string(struct toml_reader *r, bool is_key, const char **out, size_t *len) {
    const size_t open = r->at;
    const char q = r->text[open];
    const bool multi = count_quotes(r, open, q, 3) == 3;
    if (multi && is_key) return toml_refuse(r, open, "a key cannot span lines, use single quotes");
    size_t at = open + (multi ? 3 : 1), end = 0;
    if (multi && at < r->len && r->text[at] == '\r') at++;
    if (multi && at < r->len && r->text[at] == '\n') at++;
    if (find_string_end(r, open, at, multi, &end)) return -1;
    char *content = toml_new(r, end - at + 1);
    if (!content) return -1;
    if (q == '\'')
        memcpy(content, r->text + at, *len = end - at);
    else if (unescape(r, at, end, multi, content, len))
        return -1;
    *out = content;
    r->at = end + (multi ? 3 : 1);
    return 0;
}

// Numbers. The word is NUL-terminated here.

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_digit_of(char c, int base) {
    const char *digits = "0123456789abcdef";
    const char lower = c >= 'A' && c <= 'F' ? (char)(c - 'A' + 'a') : c;
    const char *found = c ? strchr(digits, lower) : NULL;
    return found && found - digits < base;
}

// Past a run of digits with single underscores between them; NULL when there is none.
static const char *skip_digits(const char *p, int base) {
    if (!is_digit_of(*p, base)) return NULL;
    while (is_digit_of(*p, base) || (*p == '_' && is_digit_of(p[1], base))) p++;
    return p;
}

static void drop_underscores(char *s) {
    char *to = s;
    for (; *s; s++) {
        if (*s != '_') *to++ = *s;
    }
    *to = 0;
}

// The base that a prefix such as "0x" names, or 10.
static int base_of(const char *word) {
    if (word[0] != '0') return 10;
    return word[1] == 'x' ? 16 : word[1] == 'o' ? 8 : word[1] == 'b' ? 2 : 10;
}

static int read_int(struct toml_reader *r, struct toml_value *v, char *digits, int base) {
    drop_underscores(digits);
    errno = 0;
    v->type = TOML_INT;
    v->integer = strtoll(digits, NULL, base);
    return errno ? toml_refuse(r, r->at, "the integer doesn't fit 64 bits") : 0;
}

static int read_float(struct toml_reader *r, struct toml_value *v, char *word) {
    drop_underscores(word);
    v->type = TOML_FLOAT;
    v->number = strtod(word, NULL);
    return isfinite(v->number) ? 0 : toml_refuse(r, r->at, "the number is too large for a double");
}

static const char not_a_value[] =
    "wanted a value: a \"string\" in quotes, a number, true, false, a date, [array] or {table}";

static int read_number(struct toml_reader *r, struct toml_value *v, char *word) {
    const int base = base_of(word);
    if (base != 10) {
        const char *end = skip_digits(word + 2, base);
        if (!end || *end) return toml_refuse_word(r, r->at, "wanted digits of that base");
        return read_int(r, v, word + 2, base);
    }
    const char *whole = word + (*word == '+' || *word == '-');
    if (!strcmp(whole, "inf") || !strcmp(whole, "nan")) {
        v->type = TOML_FLOAT;
        v->number = *whole == 'n' ? NAN : *word == '-' ? -INFINITY : INFINITY;
        return 0;
    }
    const char *end = skip_digits(whole, 10);
    if (!end) return toml_refuse_word(r, r->at, not_a_value);
    if (*whole == '0' && end > whole + 1)
        return toml_refuse_word(r, r->at, "a number cannot begin with a zero");
    if (!*end) return read_int(r, v, word, 10);
    if (*end == '.') end = skip_digits(end + 1, 10);
    if (end && (*end == 'e' || *end == 'E'))
        end = skip_digits(end + 1 + (end[1] == '+' || end[1] == '-'), 10);
    if (!end || *end) return toml_refuse_word(r, r->at, "wanted a number such as 12, -0.5 or 6e-4");
    return read_float(r, v, word);
}

// Dates and times. Each reader moves *p past what it read.

static bool read_digits(const char **p, int count, int *out) {
    *out = 0;
    for (int i = 0; i < count; i++, (*p)++) {
        if (!is_digit(**p)) return false;
        *out = *out * 10 + (**p - '0');
    }
    return true;
}

static bool read_byte(const char **p, const char *allowed) {
    if (!**p || !strchr(allowed, **p)) return false;
    (*p)++;
    return true;
}

static bool read_date(const char **p, struct toml_datetime *d) {
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (!read_digits(p, 4, &d->year) || !read_byte(p, "-") || !read_digits(p, 2, &d->month) ||
        !read_byte(p, "-") || !read_digits(p, 2, &d->day))
        return false;
    if (d->month < 1 || d->month > 12) return false;
    const bool leap = d->year % 4 == 0 && (d->year % 100 != 0 || d->year % 400 == 0);
    return d->day >= 1 && d->day <= days[d->month - 1] + (d->month == 2 && leap);
}

static bool read_time(const char **p, struct toml_datetime *d) {
    if (!read_digits(p, 2, &d->hour) || !read_byte(p, ":") || !read_digits(p, 2, &d->minute) ||
        !read_byte(p, ":") || !read_digits(p, 2, &d->second))
        return false;
    if (d->hour > 23 || d->minute > 59 || d->second > 60) return false;
    if (!read_byte(p, ".")) return true;
    if (!is_digit(**p)) return false;
    for (int unit = 100000000; is_digit(**p); unit /= 10, (*p)++)
        d->nanosecond += (**p - '0') * unit;
    return true;
}

static bool read_offset(const char **p, struct toml_datetime *d) {
    if (read_byte(p, "Zz")) return true;
    const int sign = **p == '-' ? -1 : 1;
    int hours = 0, minutes = 0;
    if (!read_byte(p, "+-") || !read_digits(p, 2, &hours) || !read_byte(p, ":") ||
        !read_digits(p, 2, &minutes))
        return false;
    d->offset_minutes = sign * (hours * 60 + minutes);
    return hours < 24 && minutes < 60;
}

static bool read_datetime(const char *p, struct toml_value *v) {
    struct toml_datetime *d = &v->datetime;
    *d = (struct toml_datetime){0};
    if (p[2] == ':') {
        v->type = TOML_LOCAL_TIME;
        return read_time(&p, d) && !*p;
    }
    if (!read_date(&p, d)) return false;
    v->type = TOML_LOCAL_DATE;
    if (!*p) return true;
    if (!read_byte(&p, "Tt ") || !read_time(&p, d)) return false;
    v->type = TOML_LOCAL_DATETIME;
    if (!*p) return true;
    v->type = TOML_DATETIME;
    return read_offset(&p, d) && !*p;
}

// Whether a word begins as dates (1979-) or times (07:) do.
static bool looks_like_datetime(const char *word) {
    size_t n = 0;
    while (is_digit(word[n])) n++;
    return (n == 4 && word[n] == '-') || (n == 2 && word[n] == ':');
}

static bool is_bare_byte(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("+-._:", c));
}

// The length of the bare word at `at`; a date takes the time behind a space with it.
static size_t bare_len(const struct toml_reader *r, size_t at) {
    const size_t begin = at;
    while (at < r->len && is_bare_byte(r->text[at])) at++;
    const bool date = at - begin == 10 && r->text[begin + 4] == '-';
    if (date && r->len - at > 3 && r->text[at] == ' ' && is_digit(r->text[at + 1]) &&
        is_digit(r->text[at + 2]) && r->text[at + 3] == ':') {
        at++;
        while (at < r->len && is_bare_byte(r->text[at])) at++;
    }
    return at - begin;
}

int toml_read_bare(struct toml_reader *r, struct toml_value *v) {
    char word[1024];
    const size_t len = bare_len(r, r->at);
    if (len == 0) return toml_refuse_word(r, r->at, not_a_value);
    if (len >= sizeof word) return toml_refuse(r, r->at, "a value of %zu characters", len);
    memcpy(word, r->text + r->at, len);
    word[len] = 0;
    int rc = 0;
    if (!strcmp(word, "true") || !strcmp(word, "false")) {
        v->type = TOML_BOOL;
        v->flag = word[0] == 't';
    } else if (looks_like_datetime(word)) {
        if (!read_datetime(word, v))
            rc = toml_refuse_word(r, r->at, "wanted a date or time as 1979-05-27T07:32:00Z");
    } else {
        rc = read_number(r, v, word);
    }
    r->at += len;
    return rc;
}
