// Tokenised documents in the Megatron layout of RWKV-LM: PREFIX.bin holds u16 tokens, document
// after document, each ended by token 0; PREFIX.idx their lengths and offsets (SPEC-rwkv7 §6).
#pragma once
#include "base/file.h"
#include <stdint.h>

// Mapped, read-only: any thread.
struct binidx {
    char *prefix;
    struct file bin, idx;
    const uint16_t *tokens;
    uint64_t num_tokens, num_documents;
};

// Checks the header, all counts against both files' sizes, and that the lengths add up.
int binidx_open(struct binidx **out, const char *prefix, struct error *err);
void binidx_close(struct binidx *b); // NULL is fine

uint64_t binidx_document_start(const struct binidx *b, uint64_t i); // i ≤ num_documents
uint16_t binidx_max_token(const struct binidx *b);                  // reads everything
uint64_t binidx_hash(const struct binidx *b);                       // of all tokens

// Writing: documents one by one, both files beside and renamed at commit. One owner thread.
struct binidx_writer {
    struct file_writer bin;
    char *prefix;
    uint32_t *lengths;
    uint64_t num_documents, cap, num_tokens;
    struct error *err;
};
int binidx_create(struct binidx_writer *w, const char *prefix, struct error *err);
// Ids 0 ≤ id ≤ 65535; token 0 is appended here.
int binidx_add(struct binidx_writer *w, const int32_t *tokens, size_t count);
int binidx_commit(struct binidx_writer *w);
void binidx_abort(struct binidx_writer *w);
