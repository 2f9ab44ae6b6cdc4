// JSON: strict reading behind a façade (RFC 8259; duplicate keys and lone surrogates are refused),
// and writing straight into a string.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct str;

// A parsed value. Values inside a document belong to it: only the root is freed. One owner thread.
struct json;

enum json_kind {
    JSON_KIND_NULL,
    JSON_KIND_BOOL,
    JSON_KIND_INT, // written without fraction and exponent; fits int64
    JSON_KIND_FLOAT,
    JSON_KIND_TEXT,
    JSON_KIND_ARRAY,
    JSON_KIND_OBJECT,
};

enum { JSON_MAX_DEPTH = 128 };

// Once, before any thread starts: seeds the hash of object keys from the system, so that a chosen
// set of keys cannot make objects slow.
void json_init(void);

// Reads one document of at most max_bytes; what it takes in memory is up to some 30 times that.
// Errors read "name:line:column: what". E_LIMIT: too long or nested deeper than JSON_MAX_DEPTH.
int json_parse(struct json **out, const char *text, size_t len, size_t max_bytes, const char *name,
               struct error *err);
void json_free(struct json *root); // NULL is fine

enum json_kind json_kind(const struct json *v);
const struct json *json_member(const struct json *object, const char *key); // NULL: none
size_t json_length(const struct json *v);                                   // of array or object
const struct json *json_item(const struct json *array, size_t i);           // i < length

// Members in the order of the text: start with *at = NULL; false after the last. The object must
// not be freed meanwhile.
bool json_next(const struct json *object, void **at, const char **key, const struct json **value);

// Checked reads: `what` names the value in the error ("what is missing" when v is NULL; else what
// it is and what was wanted). Text is not copied; it may hold NUL bytes, and has one behind it.
int json_read_bool(bool *out, const struct json *v, const char *what, struct error *err);
int json_read_int(int64_t *out, const struct json *v, int64_t min, int64_t max, const char *what,
                  struct error *err);
int json_read_float(double *out, const struct json *v, double min, double max, const char *what,
                    struct error *err); // a whole number will do
int json_read_text(const char **out, size_t *len, const struct json *v, const char *what,
                   struct error *err);
int json_check_kind(const struct json *v, enum json_kind wanted, const char *what,
                    struct error *err);

// Writing. Commas come by themselves; that brackets match and keys precede values is up to the
// caller. The string's ceiling is remembered: json_done returns -1 if it was in the way.
//     struct json_writer w = {.out = &line};
//     json_open(&w, '{'); json_put_key(&w, "loss"); json_put_float(&w, loss); json_close(&w, '}');
struct json_writer {
    struct str *out;
    bool after_value; // a comma goes before the next key or value
    bool failed;
};

void json_open(struct json_writer *w, char bracket); // '{' or '['
void json_close(struct json_writer *w, char bracket);
void json_put_key(struct json_writer *w, const char *key);
void json_put_null(struct json_writer *w);
void json_put_bool(struct json_writer *w, bool value);
void json_put_int(struct json_writer *w, int64_t value);
// The shortest digits that read back as the same number; null when it is not finite.
void json_put_float(struct json_writer *w, double value);
void json_put_float32(struct json_writer *w, float value); // shortest for a float's reader
// Bytes that are not UTF-8 become U+FFFD.
void json_put_text(struct json_writer *w, const char *text, size_t len);
int json_done(const struct json_writer *w);
