// RWKV-7 models as GGUF, with the metadata and the tensors that llama.cpp's "rwkv7" asks for.
#include "weights/gguf.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/str.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_HEADER = 256 << 20,
    MAX_LAYERS = 1024,
    TOKEN_NORMAL = 1,
    TOKEN_CONTROL = 3,
    TOKEN_UNUSED = 5
};

// One tensor to write: of one source, or of six.
struct plan {
    char name[64];
    const struct gguf_name *row;
    const struct weights_source *parts[GGUF_MIXES];
    int num_parts, ndim;
    size_t dim[4], count, bytes; // dim: outermost first
    uint32_t type;
};

struct job {
    const char *path;
    const struct weights_source *sources;
    size_t count;
    const struct weights_gguf *extra;
    bool *used;
    struct plan *plans;
    size_t num_plans;
    size_t L, C, N, V, F, rank[4]; // of w, a, v, g
};

// ---- the tensors -------------------------------------------------------------------------------

static const struct weights_source *find(struct job *j, const char *name) {
    for (size_t i = 0; i < j->count; i++)
        if (strcmp(j->sources[i].name, name) == 0) {
            j->used[i] = true;
            return &j->sources[i];
        }
    return NULL;
}

static const struct weights_source *need(struct job *j, int layer, const char *name,
                                         struct error *err) {
    char whole[64];
    if (layer < 0)
        snprintf(whole, sizeof whole, "%s", name);
    else
        snprintf(whole, sizeof whole, "blocks.%d.%s", layer, name);
    const struct weights_source *s = find(j, whole);
    if (!s)
        fail_set(err, E_FORMAT, "has no tensor \"%s\"; a GGUF file holds a whole RWKV-7 model",
                 whole);
    return s;
}

static size_t elements(const struct weights_source *s) {
    size_t n = 1;
    for (int d = 0; d < s->ndim; d++) n *= s->dim[d];
    return n;
}

// Four bits are too few for the embedding, which is read by rows and costs no time.
static bool in_blocks(const struct job *j, const struct plan *p) {
    const bool embedding = strcmp(p->row->official, "emb.weight") == 0;
    if (!j->extra->blocks || p->row->form == GGUF_TURNED) return false;
    return p->dim[p->ndim - 1] % GGUF_BLOCK == 0 && !(embedding && j->extra->blocks == BLOCKS_Q4_0);
}

static uint32_t type_of(const struct job *j, const struct plan *p) {
    const enum dtype t = p->parts[0]->dtype;
    if (p->row->wide) return GGUF_TYPE_F32;
    if (in_blocks(j, p)) return gguf_blocks[j->extra->blocks].type;
    return t == DT_F16 ? GGUF_TYPE_F16 : t == DT_BF16 ? GGUF_TYPE_BF16 : GGUF_TYPE_F32;
}

static int set_shape(struct plan *p, const struct job *j, struct error *err) {
    const struct weights_source *s = p->parts[0];
    bool fine = true;
    p->ndim = 1;
    p->dim[0] = elements(s);
    switch (p->row->form) {
    case GGUF_ROW:
    case GGUF_HEADS: fine = p->dim[0] == j->C; break;
    case GGUF_FUSED:
        for (int m = 0; m < GGUF_MIXES; m++) fine = fine && elements(p->parts[m]) == j->C;
        p->ndim = 4;
        p->dim[0] = GGUF_MIXES;
        p->dim[1] = p->dim[2] = 1;
        p->dim[3] = j->C;
        break;
    case GGUF_SAME:
    case GGUF_TURNED:
        fine = s->ndim == 2 || (s->ndim == 1 && p->row->form == GGUF_SAME);
        p->ndim = s->ndim;
        for (int d = 0; d < s->ndim && fine; d++)
            p->dim[d] = s->dim[p->row->form == GGUF_TURNED ? 1 - d : d];
    }
    if (fine && elements(s)) return 0;
    char shape[80];
    weights_shape_text(shape, sizeof shape, s->ndim, s->dim);
    return fail(err, E_FORMAT, "%s is %s, which is not its shape in a model of width %zu", s->name,
                shape, j->C);
}

static int plan_tensor(struct job *j, const struct gguf_name *row, int layer, struct error *err) {
    struct plan *p = &j->plans[j->num_plans++];
    const char *official = row->official;
    char dummy[16];
    p->row = row;
    if (layer < 0)
        snprintf(p->name, sizeof p->name, "%s", row->gguf);
    else
        snprintf(p->name, sizeof p->name, "blk.%d.%s", layer, row->gguf);
    if (gguf_is_dummy(official, layer)) { // "att.v1": the copy of "att.a1" that llama.cpp wants
        snprintf(dummy, sizeof dummy, "blocks.0.%.6s", official);
        find(j, dummy);
        snprintf(dummy, sizeof dummy, "att.a%c", official[5]);
        official = dummy;
    }
    p->num_parts = row->form == GGUF_FUSED ? GGUF_MIXES : 1;
    for (int m = 0; m < p->num_parts; m++) {
        p->parts[m] = need(j, layer, row->form == GGUF_FUSED ? gguf_mixes[m] : official, err);
        if (!p->parts[m]) return -1;
    }
    if (set_shape(p, j, err)) return -1;
    p->count = 1;
    for (int d = 0; d < p->ndim; d++) p->count *= p->dim[d];
    p->type = type_of(j, p);
    const enum weights_blocks kind = gguf_blocks_of(p->type);
    p->bytes = kind ? p->count / GGUF_BLOCK * gguf_blocks[kind].bytes
                    : p->count * (p->type == GGUF_TYPE_F32 ? 4 : 2);
    return 0;
}

// The sizes that the metadata states.
static int read_sizes(struct job *j, struct error *err) {
    static const char *const loras[] = {"att.w1", "att.a1", "att.v1", "att.g1"};
    const struct weights_source *emb = need(j, -1, "emb.weight", err);
    const struct weights_source *r_k = emb ? need(j, 0, "att.r_k", err) : NULL;
    const struct weights_source *key = r_k ? need(j, 0, "ffn.key.weight", err) : NULL;
    if (!key) return -1;
    if (emb->ndim != 2 || r_k->ndim != 2 || key->ndim != 2 || !emb->dim[0] || !emb->dim[1])
        return fail(err, E_FORMAT, "emb.weight, att.r_k and ffn.key.weight have 2 dimensions");
    j->V = emb->dim[0];
    j->C = emb->dim[1];
    j->N = r_k->dim[1];
    j->F = key->dim[0];
    char name[48];
    do {
        snprintf(name, sizeof name, "blocks.%zu.ln1.weight", j->L);
    } while (find(j, name) && ++j->L <= MAX_LAYERS);
    if (j->L > MAX_LAYERS) return fail(err, E_LIMIT, "more than %d layers", MAX_LAYERS);
    for (int i = 0; i < 4; i++) { // of the value's LoRA layer 0 carries none
        const bool absent = i == 2 && j->L < 2;
        const struct weights_source *s = absent ? NULL : need(j, i == 2 ? 1 : 0, loras[i], err);
        if (!absent && !s) return -1;
        if (s && s->ndim != 2) return fail(err, E_FORMAT, "%s has 2 dimensions", s->name);
        j->rank[i] = s ? s->dim[1] : j->rank[1];
    }
    return 0;
}

static int plan_all(struct job *j, struct error *err) {
    size_t once = 0, each = 0;
    if (read_sizes(j, err)) return -1;
    while (gguf_once[once].gguf) once++;
    while (gguf_layer[each].gguf) each++;
    j->plans = mem_zero(once + j->L * each, sizeof *j->plans);
    for (size_t i = 0; i < once; i++)
        if (plan_tensor(j, &gguf_once[i], -1, err)) return -1;
    for (size_t l = 0; l < j->L; l++)
        for (size_t i = 0; i < each; i++)
            if (plan_tensor(j, &gguf_layer[i], (int)l, err)) return -1;
    for (size_t i = 0; i < j->count; i++)
        if (!j->used[i])
            return fail(err, E_FORMAT,
                        "tensor \"%s\" is not one of an RWKV-7 model's with %zu layers",
                        j->sources[i].name, j->L);
    return 0;
}

// ---- the header --------------------------------------------------------------------------------

struct head {
    struct str text;
    size_t keys; // of the metadata
    bool full;   // something no longer went in
};

static void put_int(struct head *h, uint64_t n, int bytes) {
    char little[8];
    for (int i = 0; i < bytes; i++) little[i] = (char)(n >> 8 * i);
    if (str_append(&h->text, little, (size_t)bytes)) h->full = true;
}

static void put_text(struct head *h, const char *text, size_t len) {
    put_int(h, len, 8);
    if (str_append(&h->text, text, len)) h->full = true;
}

static void put_key(struct head *h, const char *key, enum gguf_kind kind) {
    put_text(h, key, strlen(key));
    put_int(h, kind, 4);
    h->keys++;
}

static void put_u32(struct head *h, const char *key, size_t n) {
    put_key(h, key, GGUF_U32);
    put_int(h, n, 4);
}

static void put_string(struct head *h, const char *key, const char *text) {
    put_key(h, key, GGUF_STRING);
    put_text(h, text, strlen(text));
}

// llama.cpp takes the texts of its "rwkv" tokenizer apart as Python writes bytes.
static void put_escaped(struct str *s, const char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c == '\\')
            str_puts(s, "\\\\");
        else if (c == '\t' || c == '\n' || c == '\r')
            str_puts(s, c == '\t' ? "\\t" : c == '\n' ? "\\n" : "\\r");
        else if (c < ' ' || c > '~')
            str_printf(s, "\\x%02x", c);
        else
            str_putc(s, (char)c);
    }
}

// Texts of tokens must differ, those of the fillers included.
static bool is_filler(const char *text, size_t len) {
    if (len == 3 && memcmp(text, "<s>", 3) == 0) return true;
    if (len < 6 || memcmp(text, "[PAD", 4) || text[len - 1] != ']') return false;
    for (size_t i = 4; i < len - 1; i++)
        if (text[i] < '0' || text[i] > '9') return false;
    return true;
}

static const char *token(const struct job *j, size_t id, size_t *len) {
    *len = 0;
    return id < (size_t)j->extra->tokens ? j->extra->token(j->extra->context, (int32_t)id, len)
                                         : NULL;
}

// Every embedding is a token there: ids without bytes get a text of their own.
static int put_tokens(struct head *h, const struct job *j, struct error *err) {
    struct str text;
    size_t len, blank_line = 0;
    str_init(&text, 1 << 16);
    put_key(h, "tokenizer.ggml.tokens", GGUF_ARRAY);
    put_int(h, GGUF_STRING, 4);
    put_int(h, j->V, 8);
    int rc = 0;
    for (size_t id = 0; id < j->V && rc == 0; id++) {
        const char *bytes = token(j, id, &len);
        str_clear(&text);
        if (len)
            put_escaped(&text, bytes, len);
        else if (id)
            str_printf(&text, "[PAD%zu]", id);
        else
            str_puts(&text, "<s>");
        put_text(h, text.data, text.len);
        if (len && is_filler(bytes, len))
            rc = fail(err, E_UNSUPPORTED,
                      "token %zu of the vocabulary is \"%.*s\", which stands for ids without a "
                      "text in GGUF",
                      id, (int)len, bytes);
        if (len == 2 && memcmp(bytes, "\n\n", 2) == 0) blank_line = id;
    }
    str_free(&text);
    put_key(h, "tokenizer.ggml.token_type", GGUF_ARRAY);
    put_int(h, GGUF_I32, 4);
    put_int(h, j->V, 8);
    for (size_t id = 0; id < j->V; id++) {
        token(j, id, &len);
        put_int(h, len ? TOKEN_NORMAL : id ? TOKEN_UNUSED : TOKEN_CONTROL, 4);
    }
    put_u32(h, "tokenizer.ggml.bos_token_id", 0);
    put_u32(h, "tokenizer.ggml.eos_token_id", 0);
    if (blank_line) { // as in other files of the World models: an empty line ends a turn
        put_u32(h, "tokenizer.ggml.eot_token_id", blank_line);
        put_string(h, "tokenizer.chat_template", "rwkv-world");
    }
    return rc;
}

// What llama.cpp calls the storage as a whole: LLAMA_FTYPE.
static size_t file_type(const struct job *j) {
    const enum dtype t = j->plans[0].parts[0]->dtype; // of the embedding
    if (j->extra->blocks) return gguf_blocks[j->extra->blocks].file_type;
    return t == DT_F16 ? 1 : t == DT_BF16 ? 32 : 0;
}

static int put_values(struct head *h, const struct job *j, struct error *err) {
    const struct {
        const char *key;
        size_t n;
    } sizes[] = {
        {"general.file_type", file_type(j)},
        {"general.quantization_version", 2},
        {"rwkv7.context_length", 1 << 20}, // there is no limit; as other files have it
        {"rwkv7.embedding_length", j->C},
        {"rwkv7.block_count", j->L},
        {"rwkv7.feed_forward_length", j->F},
        {"rwkv7.wkv.head_size", j->N},
        {"rwkv7.attention.decay_lora_rank", j->rank[0]},
        {"rwkv7.attention.iclr_lora_rank", j->rank[1]},
        {"rwkv7.attention.value_residual_mix_lora_rank", j->rank[2]},
        {"rwkv7.attention.gate_lora_rank", j->rank[3]},
        {"rwkv7.attention.head_count", 0},
    };
    const float eps = 1e-5f;
    uint32_t bits;
    put_string(h, "general.architecture", "rwkv7");
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        put_u32(h, sizes[i].key, sizes[i].n);
    memcpy(&bits, &eps, 4);
    put_key(h, "rwkv7.attention.layer_norm_epsilon", GGUF_F32);
    put_int(h, bits, 4);
    put_string(h, "tokenizer.ggml.model", j->extra->token ? "rwkv" : "no_vocab");
    if (j->extra->token) return put_tokens(h, j, err);
    put_u32(h, "rwkv7.vocab_size", j->V);
    return 0;
}

// The whole header, padded up to the data.
static int put_header(struct head *h, const struct job *j, struct error *err) {
    struct head values = {0};
    size_t offset = 0;
    str_init(&values.text, MAX_HEADER);
    int rc = put_values(&values, j, err);
    if (str_puts(&h->text, "GGUF")) h->full = true;
    put_int(h, 3, 4);
    put_int(h, j->num_plans, 8);
    put_int(h, values.keys, 8);
    if (values.full || str_append(&h->text, values.text.data, values.text.len)) h->full = true;
    str_free(&values.text);
    for (size_t i = 0; i < j->num_plans; i++) {
        const struct plan *p = &j->plans[i];
        put_text(h, p->name, strlen(p->name));
        put_int(h, (uint64_t)p->ndim, 4);
        for (int d = p->ndim; d-- > 0;) put_int(h, p->dim[d], 8);
        put_int(h, p->type, 4);
        put_int(h, offset, 8);
        offset += (p->bytes + GGUF_ALIGNMENT - 1) & ~(size_t)(GGUF_ALIGNMENT - 1);
    }
    while (h->text.len % GGUF_ALIGNMENT && !h->full) put_int(h, 0, 1);
    if (rc == 0 && h->full) rc = fail(err, E_LIMIT, "the header would pass %d bytes", MAX_HEADER);
    return rc;
}

// ---- the data ----------------------------------------------------------------------------------

// The numbers of one source as `to`, row-major.
static void *numbers(const struct weights_source *source, enum dtype to) {
    struct weights_source s = *source;
    s.dtype = to;
    void *x = mem_alloc(elements(&s) * dtype_size(to));
    s.read(&s, x);
    return x;
}

static void *turned(void *x, size_t size, size_t rows, size_t cols) {
    char *from = x, *to = mem_alloc(rows * cols * size);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            memcpy(to + (c * rows + r) * size, from + (r * cols + c) * size, size);
    free(x);
    return to;
}

static int write_tensor(struct file_writer *f, const struct plan *p, struct error *err) {
    static const uint8_t zeros[GGUF_ALIGNMENT] = {0};
    const enum dtype to = p->type == GGUF_TYPE_F16    ? DT_F16
                          : p->type == GGUF_TYPE_BF16 ? DT_BF16
                                                      : DT_F32;
    int rc = 0;
    for (int m = 0; m < p->num_parts && rc == 0; m++) {
        void *x = numbers(p->parts[m], to);
        if (p->row->form == GGUF_TURNED) x = turned(x, dtype_size(to), p->dim[1], p->dim[0]);
        const enum weights_blocks kind = gguf_blocks_of(p->type);
        if (kind) {
            uint8_t *blocks = mem_alloc(p->bytes);
            if (blocks_write(kind, blocks, x, p->count))
                rc = fail(err, E_FORMAT, "%s holds numbers that %s cannot", p->parts[m]->name,
                          gguf_blocks[kind].name);
            free(x);
            x = blocks;
        }
        if (rc == 0) file_write(f, x, p->bytes / (size_t)p->num_parts);
        free(x);
    }
    const size_t over = p->bytes % GGUF_ALIGNMENT;
    if (rc == 0 && over) file_write(f, zeros, GGUF_ALIGNMENT - over);
    return rc;
}

static int write_file(const struct job *j, struct error *err) {
    struct file_writer f;
    struct head header = {0};
    str_init(&header.text, MAX_HEADER);
    int rc = put_header(&header, j, err);
    if (rc) {
        fail_in(err, "%s", j->path);
    } else {
        rc = file_create(&f, j->path, err);
        if (rc == 0) {
            file_write(&f, header.text.data, header.text.len);
            for (size_t i = 0; i < j->num_plans && rc == 0 && !f.failed; i++)
                rc = write_tensor(&f, &j->plans[i], err);
            if (rc)
                file_abort(&f);
            else
                rc = file_commit(&f);
        }
    }
    str_free(&header.text);
    return rc;
}

int weights_write_gguf(const char *path, const struct weights_source *sources, size_t count,
                       const struct weights_gguf *extra, struct error *err) {
    struct job j = {.path = path, .sources = sources, .count = count, .extra = extra};
    j.used = mem_zero(count, sizeof *j.used);
    int rc = plan_all(&j, err);
    if (rc == 0 && extra->token && (size_t)extra->tokens > j.V)
        rc = fail(err, E_ARG, "the vocabulary has ids up to %d, the model only %zu embeddings",
                  extra->tokens - 1, j.V);
    if (rc)
        fail_in(err, "%s", path);
    else
        rc = write_file(&j, err);
    free(j.plans);
    free(j.used);
    return rc;
}
