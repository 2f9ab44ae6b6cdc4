// A stack machine that knows just the pickle opcodes and globals in torch checkpoints. It builds
// plain values; nothing is imported, nothing is called, everything else is refused by name.
#include "weights/internal.h"

#include "base/error.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

// 65536 tensors take some two million values.
enum { MAX_PICKLE = 64 << 20, MAX_THINGS = 1 << 22 };

enum kind { NONE, BOOL, INT, TEXT, TUPLE, DICT, GLOBAL, STORAGE, TENSOR };

static const char *const kind_names[] = {"None",   "a bool",   "an int",    "a text",  "a tuple",
                                         "a dict", "a global", "a storage", "a tensor"};

enum global { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE_TYPE };

static const struct {
    const char *module, *name;
    enum global global;
    enum dtype dtype;
} globals[] = {
    {"collections", "OrderedDict", ORDERED_DICT, DT_NONE},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, DT_NONE},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, DT_NONE},
    {"torch", "BFloat16Storage", STORAGE_TYPE, DT_BF16},
    {"torch", "HalfStorage", STORAGE_TYPE, DT_F16},
    {"torch", "FloatStorage", STORAGE_TYPE, DT_F32},
    {"torch", "DoubleStorage", STORAGE_TYPE, DT_F64},
};

// Values are immutable once made, except that a dict gains pairs; they refer to each other by
// index.
struct value {
    enum kind kind;
    int64_t number;    // INT, BOOL; STORAGE: element count; GLOBAL: index in globals
    const char *text;  // TEXT; STORAGE: its key
    size_t first, len; // TUPLE: items; TEXT and STORAGE: bytes of text; TENSOR: index in tensors
    enum dtype dtype;  // STORAGE
};

struct pair {
    uint32_t dict, key, value;
};

// A growing array of one of the things below.
struct list {
    void *data;
    size_t count, cap, size;
};

struct machine {
    const uint8_t *p, *end;
    struct list values, items, stack, marks, memo, pairs, tensors;
    struct error *err;
};

static void *list_add(struct list *l) {
    if (l->count == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 256;
        l->data = mem_grow(l->data, l->cap, l->size);
    }
    return memset((char *)l->data + l->count++ * l->size, 0, l->size);
}

static uint32_t *index_at(struct list *l, size_t i) {
    return (uint32_t *)l->data + i;
}

static struct value *value_at(struct machine *m, uint32_t i) {
    return (struct value *)m->values.data + i;
}

static void push_index(struct machine *m, uint32_t i) {
    uint32_t *top = list_add(&m->stack);
    *top = i;
}

static struct value *push(struct machine *m, enum kind kind) {
    push_index(m, (uint32_t)m->values.count);
    struct value *v = list_add(&m->values);
    v->kind = kind;
    return v;
}

// The lowest stack position that the current mark leaves to pop.
static size_t floor_of(const struct machine *m) {
    return m->marks.count ? *index_at((struct list *)&m->marks, m->marks.count - 1) : 0;
}

static int pop(struct machine *m, uint32_t *out) {
    if (m->stack.count <= floor_of(m)) return fail(m->err, E_FORMAT, "the pickle's stack ran dry");
    *out = *index_at(&m->stack, --m->stack.count);
    return 0;
}

static int pop_mark(struct machine *m, size_t *first) {
    if (!m->marks.count) return fail(m->err, E_FORMAT, "the pickle closes what it never opened");
    *first = *index_at(&m->marks, --m->marks.count);
    return 0;
}

static int take(struct machine *m, size_t n, const uint8_t **out) {
    if (n > (size_t)(m->end - m->p)) return fail(m->err, E_FORMAT, "the pickle ends too early");
    *out = m->p;
    m->p += n;
    return 0;
}

static int number(struct machine *m, int bytes, uint64_t *out) {
    const uint8_t *p;
    if (take(m, (size_t)bytes, &p)) return -1;
    *out = 0;
    for (int i = 0; i < bytes; i++) *out |= (uint64_t)p[i] << 8 * i;
    return 0;
}

// ---- what values mean --------------------------------------------------------------------------

static void tuple_from(struct machine *m, size_t first) {
    const size_t start = m->items.count, n = m->stack.count - first;
    for (size_t i = 0; i < n; i++) {
        uint32_t *item = list_add(&m->items);
        *item = *index_at(&m->stack, first + i);
    }
    m->stack.count = first;
    struct value *v = push(m, TUPLE);
    v->first = start;
    v->len = n;
}

static struct value *item(struct machine *m, const struct value *tuple, size_t i) {
    return value_at(m, *index_at(&m->items, tuple->first + i));
}

static int want(struct machine *m, const struct value *v, enum kind kind, const char *what) {
    if (v->kind == kind) return 0;
    return fail(m->err, E_FORMAT, "%s is %s, expected %s", what, kind_names[v->kind],
                kind_names[kind]);
}

static int read_sizes(struct machine *m, const struct value *v, size_t *out, int *n,
                      const char *what) {
    if (want(m, v, TUPLE, what)) return -1;
    if (v->len > WEIGHTS_MAX_DIMS)
        return fail(m->err, E_LIMIT, "%s has %zu entries, at most %d are supported", what, v->len,
                    WEIGHTS_MAX_DIMS);
    for (size_t i = 0; i < v->len; i++) {
        const struct value *x = item(m, v, i);
        if (want(m, x, INT, what)) return -1;
        if (x->number < 0) return fail(m->err, E_FORMAT, "%s holds a negative number", what);
        out[i] = (size_t)x->number;
    }
    *n = (int)v->len;
    return 0;
}

// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])
static int rebuild_tensor(struct machine *m, const struct value *args) {
    if (args->len < 6 || args->len > 7)
        return fail(m->err, E_FORMAT, "_rebuild_tensor_v2 has %zu arguments", args->len);
    const struct value *storage = item(m, args, 0), *offset = item(m, args, 1);
    if (want(m, storage, STORAGE, "a tensor's storage") ||
        want(m, offset, INT, "a tensor's offset"))
        return -1;
    if (offset->number < 0) return fail(m->err, E_FORMAT, "a tensor has a negative offset");
    struct pickled_tensor t = {.storage = storage->text,
                               .storage_len = storage->len,
                               .dtype = storage->dtype,
                               .storage_count = (size_t)storage->number,
                               .offset = (size_t)offset->number};
    int strides;
    if (read_sizes(m, item(m, args, 2), t.dim, &t.ndim, "a tensor's size") ||
        read_sizes(m, item(m, args, 3), t.stride, &strides, "a tensor's stride"))
        return -1;
    if (strides != t.ndim)
        return fail(m->err, E_FORMAT, "a tensor has %d sizes but %d strides", t.ndim, strides);
    struct value *v = push(m, TENSOR);
    v->first = m->tensors.count;
    *(struct pickled_tensor *)list_add(&m->tensors) = t;
    return 0;
}

static int reduce(struct machine *m) {
    uint32_t args_i, f_i;
    if (pop(m, &args_i) || pop(m, &f_i)) return -1;
    const struct value args = *value_at(m, args_i), f = *value_at(m, f_i);
    if (want(m, &args, TUPLE, "the arguments of a call") || want(m, &f, GLOBAL, "what is called"))
        return -1;
    switch (globals[f.number].global) {
    case ORDERED_DICT:
        if (args.len) return fail(m->err, E_UNSUPPORTED, "OrderedDict is made with arguments");
        push(m, DICT);
        return 0;
    case REBUILD_TENSOR: return rebuild_tensor(m, &args);
    case REBUILD_PARAMETER:
        if (args.len < 1 || item(m, &args, 0)->kind != TENSOR)
            return fail(m->err, E_FORMAT, "_rebuild_parameter is not given a tensor");
        push_index(m, *index_at(&m->items, args.first));
        return 0;
    case STORAGE_TYPE: break;
    }
    return fail(m->err, E_UNSUPPORTED, "the pickle calls %s.%s", globals[f.number].module,
                globals[f.number].name);
}

// ('storage', type, key, device, count)
static int persistent(struct machine *m) {
    uint32_t id;
    if (pop(m, &id)) return -1;
    const struct value t = *value_at(m, id);
    if (want(m, &t, TUPLE, "a storage's id")) return -1;
    if (t.len != 5) return fail(m->err, E_FORMAT, "a storage's id has %zu parts", t.len);
    const struct value type = *item(m, &t, 1), key = *item(m, &t, 2), count = *item(m, &t, 4);
    if (want(m, &type, GLOBAL, "a storage's type") || want(m, &key, TEXT, "a storage's key") ||
        want(m, &count, INT, "a storage's count"))
        return -1;
    if (globals[type.number].global != STORAGE_TYPE || count.number < 0)
        return fail(m->err, E_FORMAT, "a storage's id is not one");
    struct value *v = push(m, STORAGE);
    v->text = key.text;
    v->len = key.len;
    v->number = count.number;
    v->dtype = globals[type.number].dtype;
    return 0;
}

static int push_global(struct machine *m, const char *module, size_t module_len, const char *name,
                       size_t name_len) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++)
        if (module_len == strlen(globals[i].module) &&
            memcmp(module, globals[i].module, module_len) == 0 &&
            name_len == strlen(globals[i].name) && memcmp(name, globals[i].name, name_len) == 0) {
            push(m, GLOBAL)->number = (int64_t)i;
            return 0;
        }
    return fail(m->err, E_UNSUPPORTED,
                "the pickle asks for %.*s.%.*s; only tensors of f64, f32, f16 and bf16 in a dict "
                "are read, and nothing is ever run",
                module_len > 60 ? 60 : (int)module_len, module, name_len > 60 ? 60 : (int)name_len,
                name);
}

static int line(struct machine *m, const char **out, size_t *len) {
    const uint8_t *nl = memchr(m->p, '\n', (size_t)(m->end - m->p));
    if (!nl) return fail(m->err, E_FORMAT, "the pickle ends too early");
    *out = (const char *)m->p;
    *len = (size_t)(nl - m->p);
    m->p = nl + 1;
    return 0;
}

static int global_by_line(struct machine *m) {
    const char *module, *name;
    size_t module_len, name_len;
    if (line(m, &module, &module_len) || line(m, &name, &name_len)) return -1;
    return push_global(m, module, module_len, name, name_len);
}

static int global_by_stack(struct machine *m) {
    uint32_t name, module;
    if (pop(m, &name) || pop(m, &module)) return -1;
    const struct value n = *value_at(m, name), mod = *value_at(m, module);
    if (want(m, &n, TEXT, "a global's name") || want(m, &mod, TEXT, "a global's module")) return -1;
    return push_global(m, mod.text, mod.len, n.text, n.len);
}

static int push_text(struct machine *m, int length_bytes) {
    uint64_t len;
    const uint8_t *text;
    if (number(m, length_bytes, &len) || take(m, (size_t)len, &text)) return -1;
    struct value *v = push(m, TEXT);
    v->text = (const char *)text;
    v->len = (size_t)len;
    return 0;
}

static int push_int(struct machine *m, int bytes, bool is_signed) {
    uint64_t n;
    if (number(m, bytes, &n)) return -1;
    if (is_signed && bytes < 8 && n >> (8 * bytes - 1)) n |= ~(uint64_t)0 << 8 * bytes;
    push(m, INT)->number = (int64_t)n;
    return 0;
}

static int push_long(struct machine *m) {
    uint64_t len;
    if (number(m, 1, &len)) return -1;
    if (len > 8) return fail(m->err, E_LIMIT, "the pickle holds an int of %d bytes", (int)len);
    if (len == 0) {
        push(m, INT);
        return 0;
    }
    return push_int(m, (int)len, true);
}

static int memo_put(struct machine *m, uint64_t at) {
    if (m->stack.count <= floor_of(m)) return fail(m->err, E_FORMAT, "nothing to remember");
    if (at >= MAX_THINGS) return fail(m->err, E_LIMIT, "the pickle remembers too much");
    while (m->memo.count <= at) *(uint32_t *)list_add(&m->memo) = UINT32_MAX;
    *index_at(&m->memo, at) = *index_at(&m->stack, m->stack.count - 1);
    return 0;
}

static int memo_get(struct machine *m, uint64_t at) {
    if (at >= m->memo.count || *index_at(&m->memo, at) == UINT32_MAX)
        return fail(m->err, E_FORMAT, "the pickle recalls what it never stored");
    push_index(m, *index_at(&m->memo, at));
    return 0;
}

// Pairs from stack position `first` on go into the dict below them.
static int set_items(struct machine *m, size_t first) {
    const size_t n = m->stack.count - first;
    if (n % 2 || first <= floor_of(m))
        return fail(m->err, E_FORMAT, "a dict is set with half a pair");
    const uint32_t dict = *index_at(&m->stack, first - 1);
    if (want(m, value_at(m, dict), DICT, "what is set into")) return -1;
    for (size_t i = 0; i < n; i += 2) {
        const struct pair pair = {dict, *index_at(&m->stack, first + i),
                                  *index_at(&m->stack, first + i + 1)};
        *(struct pair *)list_add(&m->pairs) = pair;
    }
    m->stack.count = first;
    return 0;
}

// A state dict's attributes (`_metadata`): accepted on dicts and dropped.
static int build(struct machine *m) {
    uint32_t state;
    if (pop(m, &state)) return -1;
    if (m->stack.count <= floor_of(m)) return fail(m->err, E_FORMAT, "nothing to build");
    return want(m, value_at(m, *index_at(&m->stack, m->stack.count - 1)), DICT, "what is built");
}

static int tuple_of_last(struct machine *m, size_t n) {
    if (m->stack.count - floor_of(m) < n)
        return fail(m->err, E_FORMAT, "the pickle's stack ran dry");
    tuple_from(m, m->stack.count - n);
    return 0;
}

// Opcodes that people meet when a checkpoint holds more than tensors, or that run things.
static const struct {
    uint8_t op;
    const char *name;
} refused[] = {
    {'i', "INST"},
    {'o', "OBJ"},
    {0x81, "NEWOBJ"},
    {0x92, "NEWOBJ_EX"},
    {0x82, "EXT1"},
    {0x83, "EXT2"},
    {0x84, "EXT4"},
    {'P', "PERSID"},
    {']', "EMPTY_LIST"},
    {'l', "LIST"},
    {'a', "APPEND"},
    {'e', "APPENDS"},
    {'G', "BINFLOAT"},
    {'F', "FLOAT"},
    {'I', "INT"},
    {'L', "LONG"},
    {0x8b, "LONG4"},
    {'S', "STRING"},
    {'T', "BINSTRING"},
    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},
    {'B', "BINBYTES"},
    {'C', "SHORT_BINBYTES"},
    {0x8d, "BINUNICODE8"},
    {'d', "DICT"},
    {'p', "PUT"},
    {'g', "GET"},
    {0x8f, "EMPTY_SET"},
    {'0', "POP"},
    {'1', "POP_MARK"},
    {'2', "DUP"},
    {0x96, "BYTEARRAY8"},
};

static int refuse_opcode(struct machine *m, uint8_t op) {
    const char *name = "unknown";
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (refused[i].op == op) name = refused[i].name;
    return fail(m->err, E_UNSUPPORTED,
                "pickle opcode 0x%02x (%s): it holds more than a flat dict of tensors; save just "
                "the state dict with torch.save",
                op, name);
}

static int step(struct machine *m, uint8_t op, bool *stop) {
    uint64_t n;
    size_t first;
    switch (op) {
    case 0x80:
        return number(m, 1, &n) ? -1
               : n > 5          ? fail(m->err, E_UNSUPPORTED, "pickle protocol %d", (int)n)
                                : 0;
    case 0x95: return number(m, 8, &n); // frame: only a hint
    case '.': *stop = true; return 0;
    case '(': *(uint32_t *)list_add(&m->marks) = (uint32_t)m->stack.count; return 0;
    case 'N': push(m, NONE); return 0;
    case 0x88: push(m, BOOL)->number = 1; return 0;
    case 0x89: push(m, BOOL); return 0;
    case 'J': return push_int(m, 4, true);
    case 'K': return push_int(m, 1, false);
    case 'M': return push_int(m, 2, false);
    case 0x8a: return push_long(m);
    case 0x8c: return push_text(m, 1);
    case 'X': return push_text(m, 4);
    case ')': tuple_from(m, m->stack.count); return 0;
    case 0x85: return tuple_of_last(m, 1);
    case 0x86: return tuple_of_last(m, 2);
    case 0x87: return tuple_of_last(m, 3);
    case 't': return pop_mark(m, &first) ? -1 : (tuple_from(m, first), 0);
    case '}': push(m, DICT); return 0;
    case 's':
        return m->stack.count < 2 ? fail(m->err, E_FORMAT, "the pickle's stack ran dry")
                                  : set_items(m, m->stack.count - 2);
    case 'u': return pop_mark(m, &first) ? -1 : set_items(m, first);
    case 'c': return global_by_line(m);
    case 0x93: return global_by_stack(m);
    case 'R': return reduce(m);
    case 'Q': return persistent(m);
    case 'b': return build(m);
    case 'q': return number(m, 1, &n) ? -1 : memo_put(m, n);
    case 'r': return number(m, 4, &n) ? -1 : memo_put(m, n);
    case 0x94: return memo_put(m, m->memo.count);
    case 'h': return number(m, 1, &n) ? -1 : memo_get(m, n);
    case 'j': return number(m, 4, &n) ? -1 : memo_get(m, n);
    default: return refuse_opcode(m, op);
    }
}

// The root dict's pairs, in order: every one must be a text and a tensor.
static int collect(struct machine *m, struct pickled_tensor **tensors, size_t *count) {
    uint32_t root;
    if (pop(m, &root)) return -1;
    if (want(m, value_at(m, root), DICT, "the checkpoint")) return -1;
    struct pickled_tensor *list = mem_zero(m->pairs.count, sizeof *list);
    size_t n = 0;
    for (size_t i = 0; i < m->pairs.count; i++) {
        const struct pair *pair = (const struct pair *)m->pairs.data + i;
        if (pair->dict != root) continue;
        const struct value *key = value_at(m, pair->key), *v = value_at(m, pair->value);
        if (want(m, key, TEXT, "a name in the checkpoint")) goto bad;
        if (v->kind != TENSOR) {
            fail(m->err, E_UNSUPPORTED, "\"%.*s\" is %s; expected a flat dict of tensors",
                 key->len > 60 ? 60 : (int)key->len, key->text, kind_names[v->kind]);
            goto bad;
        }
        list[n] = ((const struct pickled_tensor *)m->tensors.data)[v->first];
        list[n].name = key->text;
        list[n++].name_len = key->len;
    }
    *tensors = list;
    *count = n;
    return 0;
bad:
    free(list);
    return -1;
}

int pickle_read(struct pickled_tensor **tensors, size_t *count, const uint8_t *data, size_t len,
                struct error *err) {
    *tensors = NULL;
    *count = 0;
    if (len > MAX_PICKLE) return fail(err, E_LIMIT, "a pickle of %zu bytes", len);
    struct machine m = {.p = data,
                        .end = data + len,
                        .values.size = sizeof(struct value),
                        .items.size = sizeof(uint32_t),
                        .stack.size = sizeof(uint32_t),
                        .marks.size = sizeof(uint32_t),
                        .memo.size = sizeof(uint32_t),
                        .pairs.size = sizeof(struct pair),
                        .tensors.size = sizeof(struct pickled_tensor),
                        .err = err};
    struct list *lists[] = {&m.values, &m.items, &m.stack, &m.marks, &m.memo, &m.pairs, &m.tensors};
    const size_t num_lists = sizeof lists / sizeof lists[0];
    bool stop = false;
    int rc = 0;
    while (rc == 0 && !stop) {
        const uint8_t *op;
        rc = take(&m, 1, &op);
        if (rc == 0) rc = step(&m, *op, &stop);
        // One step at most doubles a list, so that looking between steps is soon enough.
        for (size_t i = 0; rc == 0 && i < num_lists; i++)
            if (lists[i]->count > MAX_THINGS)
                rc = fail(err, E_LIMIT, "the pickle makes more than %d things", MAX_THINGS);
    }
    if (rc == 0) rc = collect(&m, tensors, count);
    for (size_t i = 0; i < num_lists; i++) free(lists[i]->data);
    return rc;
}
