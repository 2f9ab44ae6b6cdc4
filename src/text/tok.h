// The RWKV World tokenizer: greedy longest match on bytes over a vocabulary file (SPEC-rwkv7 §7).
// Token 0 is the end of a document; it has no bytes and no text encodes to it.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct error;
struct str;

enum { TOK_MAX_ID = 65535, TOK_MAX_BYTES = 1024 };

// Immutable once open: any thread may use it.
struct tok;

// Lines of "<id> <python literal> <byte length>". Every single byte must be a token, so that any
// text can be encoded. Errors name file and line.
int tok_open(struct tok **out, const char *path, struct error *err);
int tok_parse(struct tok **out, const char *text, size_t len, const char *name, struct error *err);
// The built-in vocabulary of 256 tokens: byte b is token b + 1, as in World
// (config/vocab/bytes.txt).
void tok_open_bytes(struct tok **out);
void tok_close(struct tok *t); // NULL is fine

int tok_size(const struct tok *t);      // highest id + 1
uint64_t tok_hash(const struct tok *t); // of ids and bytes, not of how they are written
size_t tok_memory(const struct tok *t); // bytes it takes

// `out` has room for len tokens. Returns how many there are. Always succeeds.
size_t tok_encode(const struct tok *t, const void *text, size_t len, int32_t *out);

// The same, but no more than max tokens; *used: bytes of the text that they stand for.
size_t tok_encode_some(const struct tok *t, const void *text, size_t len, int32_t *out, size_t max,
                       size_t *used);

// A token's bytes; *len 0 for token 0 and ids that the vocabulary lacks.
const char *tok_bytes(const struct tok *t, int32_t id, size_t *len);

// Appends the bytes of all tokens. -1: the string's ceiling.
int tok_decode(const struct tok *t, const int32_t *tokens, size_t count, struct str *out);
