// Weight files: every spelling of the same tensors reads the same, what we write others read, and
// nothing hostile gets past the door.
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "weights/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURE(name) "tests/fixtures/weights/" name

static struct weights *open_ok(const char *path) {
    struct weights *w = NULL;
    struct error err;
    if (weights_open(&w, path, &err)) fail_msg("%s", err.msg);
    return w;
}

static void expect_values(const struct weights *w) {
    static const float a[] = {0, 1, 2, 3, 4, 5}, b[] = {-1, -0.5f, 0.25f, 8}, c[] = {1.5f};
    const struct {
        const char *name;
        const float *values;
        size_t count;
        int ndim;
    } want[] = {{"a", a, 6, 2}, {"b", b, 4, 1}, {"c", c, 1, 0}};
    assert_int_equal(weights_count(w), 3);
    for (int i = 0; i < 3; i++) {
        const struct weights_tensor *t = weights_find(w, want[i].name);
        float got[6];
        assert_non_null(t);
        assert_int_equal(t->count, want[i].count);
        assert_int_equal(t->ndim, want[i].ndim);
        weights_read(t, DT_F32, got);
        for (size_t k = 0; k < t->count; k++)
            if (got[k] != want[i].values[k])
                fail_msg("%s: %s[%zu] is %g, expected %g", weights_path(w), want[i].name, k,
                         (double)got[k], (double)want[i].values[k]);
    }
    assert_null(weights_find(w, "d"));
}

static void every_spelling_reads_the_same(void **state) {
    (void)state;
    static const char *const paths[] = {FIXTURE("plain.safetensors"), FIXTURE("f32.pth"),
                                        FIXTURE("bf16.pth"),          FIXTURE("f16.pth"),
                                        FIXTURE("f64.pth"),           FIXTURE("prefix.pth"),
                                        FIXTURE("parameter.pth"),     FIXTURE("shared.pth"),
                                        FIXTURE("state_dict.pth")};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        struct weights *w = open_ok(paths[i]);
        expect_values(w);
        weights_close(w);
    }
}

static void strangers_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *path, *says;
    } cases[] = {
        {FIXTURE("evil.pth"), "posix.system"},
        {FIXTURE("not_tensor.pth"), "expected a flat dict of tensors"},
        {FIXTURE("int64.pth"), "torch.LongStorage"},
        {FIXTURE("bare.pth"), "bare pickle"},
        {FIXTURE("deflated.pth"), "compressed"},
        {"tests/fixtures", "is a directory"},
        {"/dev/zero", "not a regular file"},
        {"tests/fixtures/weights/absent.pth", "cannot open"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct weights *w;
        struct error err;
        assert_int_equal(weights_open(&w, cases[i].path, &err), -1);
        if (!strstr(err.msg, cases[i].says) || !strstr(err.msg, cases[i].path))
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].path, err.msg, cases[i].says);
    }
    assert_int_not_equal(access("/tmp/owned", F_OK), 0);
}

static void texts_are_refused_with_advice(void **state) {
    (void)state;
    static const struct {
        const char *name, *text, *says;
    } cases[] = {
        {"x.gguf", "GGUF", "ends too early"},
        {"x.pth", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
        {"x.pth", "<!DOCTYPE html><html>", "web page"},
        {"x.pth", "<!doctype html>", "web page"},
        {"x.bpk", "NRUB\1\0", ".bpk"},
        {"x.pth", "", "empty"},
        {"x.mpk", "\x83whatever", ".mpk"},
        {"x.bin", "hello world", "neither"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[64];
        struct weights *w;
        struct error err;
        snprintf(path, sizeof path, "/tmp/rwkv-test-%d-%s", (int)getpid(), cases[i].name);
        assert_int_equal(file_replace(path, cases[i].text, strlen(cases[i].text), &err), 0);
        assert_int_equal(weights_open(&w, path, &err), -1);
        unlink(path);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("\"%s\" lacks \"%s\"", err.msg, cases[i].says);
    }
}

// A file cut anywhere is an error or, past the last byte that counts, the same tensors.
static void a_file_cut_anywhere_never_crashes(void **state) {
    (void)state;
    static const char *const paths[] = {FIXTURE("plain.safetensors"), FIXTURE("shared.pth")};
    char cut[64];
    snprintf(cut, sizeof cut, "/tmp/rwkv-test-%d-cut", (int)getpid());
    for (int p = 0; p < 2; p++) {
        struct str whole;
        struct error err;
        str_init(&whole, 1 << 20);
        assert_int_equal(file_read(&whole, paths[p], &err), 0);
        for (size_t n = 0; n < whole.len; n++) {
            struct weights *w;
            FILE *f = fopen(cut, "wb");
            assert_non_null(f);
            fwrite(whole.data, 1, n, f);
            fclose(f);
            assert_int_equal(weights_open(&w, cut, &err), -1);
        }
        str_free(&whole);
    }
    unlink(cut);
}

// Opens what a test has made up; the file is gone afterwards.
static int open_bytes(struct weights **w, const void *data, size_t len, struct error *err) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/rwkv-test-%d-made", (int)getpid());
    FILE *f = fopen(path, "wb"); // not file_replace: no need to wait for the disk
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
    const int rc = weights_open(w, path, err);
    unlink(path);
    return rc;
}

// One lie at a time in a file that torch wrote: `value` goes to `offset` behind each `find`.
static void archives_that_lie_are_refused(void **state) {
    (void)state;
#define LOCAL   "PK\3\4"
#define CENTRAL "PK\1\2"
#define END     "PK\5\6"
    static const struct {
        const char *find;
        size_t find_len, offset;
        const char *value;
        size_t value_len;
        const char *says;
    } cases[] = {
        {CENTRAL, 4, 8, "\x09", 1, "encrypted"},
        {CENTRAL, 4, 10, "\x08", 1, "compressed (method 8)"},
        {CENTRAL, 4, 24, "\x01", 1, "two sizes differ"},
        {CENTRAL, 4, 20, "\1\1\1\1\1\1\1\1", 8, "past the end"},
        {CENTRAL, 4, 20, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "zip64 field"},
        {CENTRAL, 4, 42, "\1", 1, "not where the directory says"},
        {CENTRAL, 4, 42, "\xfe\xff\xff\xff", 4, "not where the directory says"},
        {CENTRAL, 4, 46, "../", 3, "has the name \"../"},
        {CENTRAL, 4, 46, "/", 1, "has the name \"/"},
        {CENTRAL, 4, 28, "\xff\xff", 2, "damaged at member 0"},
        {LOCAL, 4, 6, "\0", 1, "disagrees"},
        {LOCAL, 4, 8, "\x08", 1, "disagrees"},
        {LOCAL, 4, 22, "\1", 1, "local header says 1 bytes"},
        {LOCAL, 4, 28, "\xff\xff", 2, "disagrees"},
        {LOCAL, 4, 30, "g", 1, "disagrees"},
        {END, 4, 4, "\1", 1, "several disks"},
        {END, 4, 8, "\xfe\0\xfe\0", 4, "does not fit"},
        {END, 4, 8, "\1\0\1\0", 4, "follow the zip directory's last"},
        {END, 4, 16, "\xfe\xff\xff\xff", 4, "does not fit"},
        {END, 4, 20, "\1", 1, "no end"},
        {"f32/data.pkl", 12, 11, "m", 1, "without data.pkl"},
        {"f32/data/1", 10, 9, "0", 1, "\"f32/data/0\" is there twice"},
        {"f32/data/1", 10, 9, "9", 1, "its storage \"1\" is not in the archive"},
        {"little", 6, 0, "big   ", 6, "byteorder"},
        {"\x80\2", 2, 1, "\7", 1, "protocol 7"},
        {"_rebuild_tensor_v2", 18, 17, "3", 1, "torch._utils._rebuild_tensor_v3"},
        {"K\2K\3\x86", 5, 3, "\xff", 1, "reaches element"},
        {"X\1\0\0\0a", 6, 5, "b", 1, "\"b\" is there twice"},
        {"X\1\0\0\0a", 6, 5, "\n", 1, "printable"},
        {"X\1\0\0\0a", 6, 1, "\xff", 1, "ends too early"},
    };
    struct str whole;
    struct error err;
    str_init(&whole, 1 << 20);
    assert_int_equal(file_read(&whole, FIXTURE("f32.pth"), &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *lie = mem_alloc(whole.len);
        struct weights *w;
        size_t hits = 0;
        memcpy(lie, whole.data, whole.len);
        for (size_t at = 0; at + cases[i].find_len <= whole.len; at++)
            if (memcmp(whole.data + at, cases[i].find, cases[i].find_len) == 0) {
                memcpy(lie + at + cases[i].offset, cases[i].value, cases[i].value_len);
                hits++;
            }
        if (!hits) fail_msg("case %zu: nothing to change", i);
        if (open_bytes(&w, lie, whole.len, &err) == 0) fail_msg("case %zu is accepted", i);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.msg, cases[i].says);
        free(lie);
    }
    str_free(&whole);
#undef LOCAL
#undef CENTRAL
#undef END
}

static void pickles_that_do_more_are_refused(void **state) {
    (void)state;
#define CASE(bytes, says)                                                                          \
    { bytes, sizeof bytes - 1, says }
    static const struct {
        const char *bytes;
        size_t len;
        const char *says;
    } cases[] = {
        CASE("\x80\2cos\nsystem\n(X\2\0\0\0lstR.", "os.system"),
        CASE("\x80\4\x8c\2os\x8c\6system\x93.", "os.system"),
        CASE("ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        CASE("\x80\2ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        CASE("(ios\nsystem\n.", "INST"),
        CASE("(o.", "OBJ"),
        CASE("\x82\1.", "EXT1"),
        CASE("].", "EMPTY_LIST"),
        CASE("\xfe.", "0xfe (unknown)"),
        CASE(".", "ran dry"),
        CASE("N.", "the checkpoint is None, expected a dict"),
        CASE("}", "ends too early"),
        CASE("}K\1K\2s.", "a name in the checkpoint is an int"),
        CASE("}(X\1\0\0\0au.", "half a pair"),
        CASE("NNNs.", "what is set into is None"),
        CASE("u.", "never opened"),
        CASE("h\0.", "recalls what it never stored"),
        CASE("q\0.", "nothing to remember"),
        CASE("}r\xff\xff\xff\xff.", "remembers too much"),
        CASE("\x8a\x09\0\0\0\0\0\0\0\0\0.", "int of 9 bytes"),
        CASE("X\xff\xff\xff\xffz.", "ends too early"),
        CASE("NQ.", "a storage's id is None"),
        CASE("ctorch._utils\n_rebuild_tensor_v2\n)R.", "0 arguments"),
        CASE("ctorch._utils\n_rebuild_parameter\n)R.", "not given a tensor"),
        CASE("ctorch._utils\n_rebuild_tensor_v2\n((X\1\0\0\0sctorch\nFloatStorage\nX\1\0\0\0000"
             "X\1\0\0\0cK\1tQJ\xff\xff\xff\xff))\x89}tR.",
             "negative offset"),
    };
#undef CASE
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pickled_tensor *tensors;
        size_t count;
        struct error err;
        if (pickle_read(&tensors, &count, (const uint8_t *)cases[i].bytes, cases[i].len, &err) == 0)
            fail_msg("case %zu is accepted", i);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.msg, cases[i].says);
    }
}

// However it is done, a pickle cannot make the reader hold more than its ceiling.
static void a_pickle_cannot_eat_memory(void **state) {
    (void)state;
    static const char *const units[] = {"(", "K\1", "Nq\1h\1h\1"};
    const size_t len = 12 << 20;
    char *pickle = mem_alloc(len);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        struct pickled_tensor *tensors;
        size_t count;
        struct error err;
        const size_t n = strlen(units[i]);
        for (size_t at = 0; at < len; at++) pickle[at] = units[i][at % n];
        assert_int_equal(pickle_read(&tensors, &count, (uint8_t *)pickle, len, &err), -1);
        assert_int_equal(err.code, E_LIMIT);
    }
    free(pickle);
}

static void header_lengths_that_lie_are_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {0,
                                       1,
                                       7,
                                       211,
                                       212,
                                       213,
                                       1 << 20,
                                       (uint64_t)1 << 32,
                                       INT64_MAX,
                                       INT64_MAX + 1ull,
                                       UINT64_MAX - 7,
                                       UINT64_MAX};
    struct str whole;
    struct error err;
    str_init(&whole, 1 << 20);
    assert_int_equal(file_read(&whole, FIXTURE("plain.safetensors"), &err), 0);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct weights *w;
        memcpy(whole.data, &lengths[i], 8);
        if (open_bytes(&w, whole.data, whole.len, &err) == 0)
            fail_msg("a header of %llu bytes is accepted", (unsigned long long)lengths[i]);
    }
    str_free(&whole);
}

static void expect_bad_safetensors(const char *header, const char *says) {
    struct str s;
    struct error err;
    struct weights *w;
    str_init(&s, 4096);
    const uint64_t len = strlen(header);
    str_append(&s, &len, 8);
    str_puts(&s, header);
    str_append(&s, "\0\0\0\0\0\0\0\0", 8); // eight bytes of data
    const int rc = open_bytes(&w, s.data, s.len, &err);
    str_free(&s);
    if (rc == 0) fail_msg("accepted: %s", header);
    if (!strstr(err.msg, says)) fail_msg("\"%s\" lacks \"%s\" for %s", err.msg, says, header);
}

static void headers_that_lie_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header, *says;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", "another size"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "follow the last"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", "gap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}",
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}",
         "dimensions"},
        {"{\"a\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype I32"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", "dimension"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype is missing"},
        {"{\"a\":[]}", "entry"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"_forward_module.a\":"
         "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         "\"a\" is there twice"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "0 bytes"},
        {"{\"a\\nb\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "printable"},
        {"{\"__metadata__\":{\"a\":1}}", "__metadata__"},
        {"{\"__metadata__\":[]}", "__metadata__"},
        {"[]", "neither"},
        {"{", "header"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_bad_safetensors(cases[i].header, cases[i].says);
}

// The length that opens a safetensors file can look like any other file's magic.
static void no_header_length_is_taken_for_magic(void **state) {
    (void)state;
    for (size_t len = 2; len < 40000; len += len < 1024 ? 1 : 1237) {
        char *file = mem_alloc(8 + len);
        struct weights *w;
        struct error err;
        for (int i = 0; i < 8; i++) file[i] = (char)(len >> 8 * i);
        memset(file + 8, ' ', len);
        memcpy(file + 8, "{}", 2);
        if (open_bytes(&w, file, 8 + len, &err))
            fail_msg("a header of %zu bytes: %s", len, err.msg);
        weights_close(w);
        free(file);
    }
}

static void metadata_is_read(void **state) {
    (void)state;
    static const char file[] = "\x40\0\0\0\0\0\0\0"
                               "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"a \\u00e9 b\"}}"
                               "                ";
    struct weights *w;
    struct error err;
    size_t count;
    if (open_bytes(&w, file, 8 + 0x40, &err)) fail_msg("%s", err.msg);
    const struct weights_note *notes = weights_notes(w, &count);
    assert_int_equal(weights_count(w), 0);
    assert_int_equal(count, 2);
    assert_string_equal(notes[0].key, "format");
    assert_string_equal(notes[1].value, "a \xc3\xa9 b");
    weights_close(w);
}

// The same numbers in another program's files: other containers, other dtypes, shared storages.
static void vectors_agree_bit_for_bit(void **state) {
    (void)state;
    static const struct {
        const char *first, *second;
        enum dtype dtype; // both hold the same numbers when read as this
    } pairs[] = {
        {"h1-init/w_fp32.pth", "h1-init/w_fp32.safetensors", DT_F32},
        {"h1-init/w_fp32.pth", "h1-init/w_bf16.safetensors", DT_F32},
        {"h1-init/w_fp32.pth", "h1-init/w_bf16.pth", DT_F32},
        {"h1-init/w_fp32.pth", "h1-init/w_bf16_shared.pth", DT_F32},
        {"h1-rand/w_fp32.pth", "h1-rand/w_fp32.safetensors", DT_F32},
        {"h1-rand/w_fp32.pth", "h1-rand/w_bf16.safetensors", DT_F32},
        {"h1-rand/w_fp32.pth", "h1-rand/w_bf16.pth", DT_F32},
        {"h1-rand/w_fp32.pth", "h1-rand/w_bf16_shared.pth", DT_F32},
        {"n16-rand/w_fp32.pth", "n16-rand/w_fp32.safetensors", DT_F32},
        {"n16-rand/w_fp32.pth", "n16-rand/w_bf16.safetensors", DT_F32},
        {"n16-rand/w_fp32.pth", "n16-rand/w_bf16.pth", DT_F32},
        {"n16-rand/w_fp32.pth", "n16-rand/w_bf16_shared.pth", DT_F32},
        {"reverse/reverse_L2_N16_fp32.pth", "reverse/reverse_L2_N16_fp32.safetensors", DT_F32},
        {"reverse/reverse_L2_N16_fp32.pth", "reverse/reverse_L2_N16_bf16.pth", DT_BF16},
    };
    const char *shared = getenv("RWKV_SHARED") ? getenv("RWKV_SHARED") : "../shared";
    char first[512], second[512];
    if (!file_exists(shared)) {
        printf("SKIP vectors: %s is absent\n", shared);
        skip();
    }
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        snprintf(first, sizeof first, "%s/vectors/%s", shared, pairs[i].first);
        snprintf(second, sizeof second, "%s/vectors/%s", shared, pairs[i].second);
        struct weights *a = open_ok(first), *b = open_ok(second);
        assert_int_equal(weights_count(a), weights_count(b));
        for (size_t k = 0; k < weights_count(a); k++) {
            const struct weights_tensor *x = weights_at(a, k), *y = weights_find(b, x->name);
            const size_t bytes = x->count * dtype_size(pairs[i].dtype);
            if (!y || y->ndim != x->ndim || memcmp(y->dim, x->dim, sizeof x->dim))
                fail_msg("%s: %s is missing or has another shape", second, x->name);
            void *p = mem_alloc(bytes), *q = mem_alloc(bytes);
            weights_read(x, pairs[i].dtype, p);
            weights_read(y, pairs[i].dtype, q);
            if (memcmp(p, q, bytes)) fail_msg("%s: %s differs", second, x->name);
            free(p);
            free(q);
        }
        weights_close(a);
        weights_close(b);
    }
}

static void checksum_is_that_of_zip(void **state) {
    (void)state;
    char text[] = "0123456789";
    assert_int_equal(hash_crc32("", 0), 0);
    assert_int_equal(hash_crc32("123456789", 9), 0xcbf43926); // the polynomial's known answer
    assert_int_equal(hash_crc32(text + 1, 9), 0xcbf43926);    // wherever it lies in memory
}

static void read_from(const struct weights_source *s, void *out) {
    weights_read(s->context, s->dtype, out);
}

static void what_is_written_reads_back(void **state) {
    (void)state;
    struct weights *from = open_ok(FIXTURE("shared.pth"));
    struct weights_source sources[3];
    for (size_t i = 0; i < 3; i++) {
        const struct weights_tensor *t = weights_at(from, i);
        sources[i] = (struct weights_source){
            .name = t->name, .dtype = DT_BF16, .ndim = t->ndim, .read = read_from, .context = t};
        memcpy(sources[i].dim, t->dim, sizeof sources[i].dim);
    }
    char names[2][64];
    snprintf(names[0], sizeof names[0], "/tmp/rwkv-test-%d-out.pth", (int)getpid());
    snprintf(names[1], sizeof names[1], "/tmp/rwkv-test-%d-out.safetensors", (int)getpid());
    for (int i = 0; i < 3; i++) {
        struct error err;
        pth_zip64_from = i == 2 ? 1 : 0xffffffff; // the third time every field is wide
        if (weights_write(names[i % 2], sources, 3, &err)) fail_msg("%s", err.msg);
        struct weights *back = open_ok(names[i % 2]);
        expect_values(back);
        for (size_t k = 0; k < 3 && i != 1; k++) // files are mapped at whole pages
            assert_int_equal((uintptr_t)weights_at(back, k)->data % 64, 0);
        weights_close(back);
        unlink(names[i % 2]);
    }
    pth_zip64_from = 0xffffffff;
    weights_close(from);
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spelling_reads_the_same),
        cmocka_unit_test(strangers_are_refused_by_name),
        cmocka_unit_test(texts_are_refused_with_advice),
        cmocka_unit_test(a_file_cut_anywhere_never_crashes),
        cmocka_unit_test(archives_that_lie_are_refused),
        cmocka_unit_test(pickles_that_do_more_are_refused),
        cmocka_unit_test(a_pickle_cannot_eat_memory),
        cmocka_unit_test(header_lengths_that_lie_are_refused),
        cmocka_unit_test(headers_that_lie_are_refused),
        cmocka_unit_test(no_header_length_is_taken_for_magic),
        cmocka_unit_test(metadata_is_read),
        cmocka_unit_test(vectors_agree_bit_for_bit),
        cmocka_unit_test(checksum_is_that_of_zip),
        cmocka_unit_test(what_is_written_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
