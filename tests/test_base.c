// Laws of the base library: what every other room takes for granted.
#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/hist.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

// error; fail_set, since `fail` is a macro of cmocka too

static void error_names_its_context(void **state) {
    (void)state;
    struct error err = {0};
    assert_int_equal(fail_set(&err, E_FORMAT, "shape is (%d,%d)", 3, 4), -1);
    assert_int_equal(err.code, E_FORMAT);
    assert_int_equal(fail_in(&err, "%s", "head.weight"), -1);
    assert_string_equal(err.msg, "head.weight: shape is (3,4)");
    assert_int_equal(fail_set(NULL, E_IO, "nobody listens"), -1);
    assert_int_equal(fail_in(NULL, "nobody listens"), -1);
}

// However long the message and the context are, the message survives and nothing overflows.
static void error_keeps_the_message_when_the_context_is_long(void **state) {
    (void)state;
    char text[2000], context[2000];
    memset(context, 'c', sizeof context - 1);
    context[sizeof context - 1] = 0;
    for (size_t len = 0; len < 1100; len++) {
        memset(text, 'm', len);
        text[len] = 0;
        struct error err = {0};
        fail_set(&err, E_IO, "%s", text);
        const size_t kept = strlen(err.msg);
        assert_int_equal(kept, len < sizeof err.msg ? len : sizeof err.msg - 1);
        fail_in(&err, "%s", context);
        const size_t total = strlen(err.msg);
        assert_true(total < sizeof err.msg && total >= kept);
        assert_memory_equal(err.msg + total - kept, text, kept);
    }
}

// str

static void str_grows_to_its_ceiling_and_no_further(void **state) {
    (void)state;
    for (size_t max = 0; max < 300; max += 7) {
        struct str s;
        str_init(&s, max);
        assert_string_equal(s.data, "");
        for (size_t i = 0; i < max; i++) assert_int_equal(str_putc(&s, (char)('a' + i % 26)), 0);
        assert_int_equal(str_putc(&s, '!'), -1);
        assert_int_equal(str_puts(&s, "!"), -1);
        assert_int_equal(str_printf(&s, "%d", 7), -1);
        assert_int_equal(str_append(&s, "!", (size_t)-1), -1);
        assert_int_equal(str_append(&s, NULL, 0), 0);
        assert_int_equal(s.len, max);
        for (size_t i = 0; i < max; i++) assert_int_equal(s.data[i], 'a' + (int)(i % 26));
        assert_int_equal(s.data[max], 0);
        str_clear(&s);
        assert_int_equal(s.len, 0);
        str_free(&s);
        str_free(&s);
        assert_int_equal(s.max, max);
    }
}

static void str_printf_equals_snprintf(void **state) {
    (void)state;
    struct str s;
    char want[4000] = "";
    str_init(&s, sizeof want);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(str_printf(&s, "%*d|%s;", i % 40, i, i % 2 ? "odd" : ""), 0);
        snprintf(want + strlen(want), sizeof want - strlen(want), "%*d|%s;", i % 40, i,
                 i % 2 ? "odd" : "");
    }
    assert_string_equal(s.data, want);
    assert_int_equal(s.len, strlen(want));
    str_free(&s);
}

// arena

static void arena_gives_zeroed_aligned_blocks_that_do_not_overlap(void **state) {
    (void)state;
    struct arena a = {0};
    unsigned char *block[400];
    size_t size[400];
    for (int i = 0; i < 400; i++) {
        size[i] = rng_u64(1, 0, (uint64_t)i) % (i % 50 ? 3000 : 200000);
        block[i] = arena_alloc(&a, size[i]);
        assert_int_equal((uintptr_t)block[i] % 16, 0);
        for (size_t j = 0; j < size[i]; j++) assert_int_equal(block[i][j], 0);
        memset(block[i], i & 255, size[i]);
    }
    for (int i = 0; i < 400; i++)
        for (size_t j = 0; j < size[i]; j++) assert_int_equal(block[i][j], i & 255);
    assert_string_equal(arena_copy(&a, "copied text", 6), "copied");
    arena_free(&a);
    assert_null(a.head);
}

static void arena_refuses_past_its_ceiling(void **state) {
    (void)state;
    struct arena a = {.max_bytes = 4096};
    size_t got = 0;
    while (arena_alloc(&a, 64)) got += 64;
    assert_int_equal(got, 4096);
    assert_null(arena_alloc(&a, 1));
    arena_free(&a);
    assert_int_equal(a.max_bytes, 4096);
    assert_non_null(arena_alloc(&a, 4096));
    arena_free(&a);
    // A size that would wrap when the block's header is added is refused too.
    struct arena open = {0};
    for (size_t below = 0; below < 64; below++) assert_null(arena_alloc(&open, (size_t)-1 - below));
    arena_free(&open);
}

// mem

static void mem_pages_are_zeroed_and_aligned_at_every_size(void **state) {
    (void)state;
    const size_t sizes[] = {0, 1, 63, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *p = mem_pages(sizes[i]);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t j = 0; j < sizes[i]; j += 61) assert_int_equal(p[j], 0);
        if (sizes[i]) assert_int_equal(p[sizes[i] - 1], 0);
        memset(p, 1, sizes[i]);
        mem_pages_free(p, sizes[i]);
    }
    mem_pages_free(NULL, 1);
    char *s = mem_strdup("text");
    assert_string_equal(s, "text");
    free(s);
    int *grown = mem_grow(NULL, 3, sizeof(int));
    grown[2] = 9;
    grown = mem_grow(grown, 3000, sizeof(int));
    assert_int_equal(grown[2], 9);
    free(grown);
}

// file

static char folder[] = "/tmp/rwkv-test-base-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void expect_text(const char *path, const char *want) {
    struct error err = {0};
    struct str s;
    str_init(&s, 1 << 20);
    if (file_read(&s, path, &err)) fail_msg("%s", err.msg);
    assert_string_equal(s.data, want);
    str_free(&s);
}

static void file_written_is_what_is_read_and_mapped(void **state) {
    (void)state;
    char *path = path_join(folder, "blocks");
    const size_t sizes[] = {0, 1, 4095, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 700001};
    uint8_t *data = mem_alloc(700001);
    for (size_t i = 0; i < 700001; i++) data[i] = (uint8_t)rng_u64(2, 0, i);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t piece = 1000; piece < 400000; piece *= 7) { // from many writes to one
            struct error err = {0};
            struct file_writer w;
            assert_int_equal(file_create(&w, path, &err), 0);
            for (size_t at = 0; at < sizes[i]; at += piece)
                file_write(&w, data + at, sizes[i] - at < piece ? sizes[i] - at : piece);
            assert_int_equal(w.written, sizes[i]);
            if (file_commit(&w)) fail_msg("%s", err.msg);
            struct file f;
            struct str s;
            str_init(&s, sizes[i]);
            assert_int_equal(file_map(&f, path, &err), 0);
            assert_int_equal(file_read(&s, path, &err), 0);
            assert_int_equal(f.len, sizes[i]);
            assert_int_equal(s.len, sizes[i]);
            if (f.len) assert_memory_equal(f.data, data, f.len);
            assert_memory_equal(s.data, data, s.len);
            str_free(&s);
            file_unmap(&f);
            file_unmap(&f);
        }
    }
    free(data);
    free(path);
}

static void file_that_cannot_be_finished_leaves_the_old_one(void **state) {
    (void)state;
    char *path = path_join(folder, "old"), *tmp = path_join(folder, "old.tmp");
    struct error err = {0};
    assert_int_equal(file_replace(path, "old", 3, &err), 0);

    // The disk is full at half the way: a limit on file sizes makes write fail even for root.
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){.rlim_cur = 300000, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    uint8_t *data = mem_zero(1, 200000);
    struct file_writer w;
    assert_int_equal(file_create(&w, path, &err), 0);
    int failures = 0;
    for (int i = 0; i < 5; i++) failures += file_write(&w, data, 200000) != 0;
    assert_true(failures > 0);
    const int rc = file_commit(&w);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, E_IO);
    assert_non_null(strstr(err.msg, "old.tmp"));
    expect_text(path, "old");
    assert_false(file_exists(tmp));

    // Given up on purpose, twice.
    assert_int_equal(file_create(&w, path, &err), 0);
    assert_int_equal(file_write(&w, "new", 3), 0);
    file_abort(&w);
    file_abort(&w);
    assert_int_equal(file_write(&w, "x", 1), -1);
    assert_int_equal(file_commit(&w), -1);
    expect_text(path, "old");
    assert_false(file_exists(tmp));

    // The place is taken by a folder: rename fails.
    char *taken = path_join(folder, "taken"), *inside = path_join(folder, "taken/x");
    assert_int_equal(file_mkdirs(taken, &err), 0);
    assert_int_equal(file_replace(inside, "x", 1, &err), 0);
    assert_int_equal(file_replace(taken, "x", 1, &err), -1);
    assert_non_null(strstr(err.msg, "rename"));
    free(tmp);
    tmp = path_join(folder, "taken.tmp");
    assert_false(file_exists(tmp));
    free(data);
    free(path);
    free(tmp);
    free(taken);
    free(inside);
}

static void file_that_is_none_is_refused_by_name(void **state) {
    (void)state;
    struct error err = {0};
    struct file f;
    struct str s;
    char *fifo = path_join(folder, "fifo"), *big = path_join(folder, "big");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    const char *const bad[] = {folder, fifo, "/dev/zero", "/nonexistent/file", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        str_init(&s, 100);
        err = (struct error){0};
        assert_int_equal(file_map(&f, bad[i], &err), -1);
        assert_int_equal(err.code, E_IO);
        assert_non_null(strstr(err.msg, bad[i]));
        assert_int_equal(file_read(&s, bad[i], &err), -1);
        str_free(&s);
    }
    assert_int_equal(file_replace(big, "0123456789", 10, &err), 0);
    str_init(&s, 9);
    assert_int_equal(file_read(&s, big, &err), -1);
    assert_int_equal(err.code, E_LIMIT);
    str_free(&s);
    free(fifo);
    free(big);
}

static void a_file_that_shrinks_reads_as_zeros_and_says_so(void **state) {
    (void)state;
    char path[] = "/tmp/rwkv_shrink_XXXXXX", text[3 * 4096];
    struct file f, whole;
    struct error err;
    const int fd = mkstemp(path);
    memset(text, 'x', sizeof text);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    assert_int_equal(file_map(&whole, "LICENSE", &err), 0);
    assert_int_equal(file_map(&f, path, &err), 0);
    assert_int_equal(f.data[2 * 4096], 'x');
    assert_false(file_shrank(&f));
    assert_int_equal(ftruncate(fd, 100), 0);
    assert_int_equal(f.data[2 * 4096 + 7], 0);
    assert_int_equal(f.data[4096], 0);
    assert_int_equal(f.data[99], 'x');
    assert_true(file_shrank(&f));
    assert_false(file_shrank(&whole));
    file_unmap(&f);
    assert_int_equal(file_map(&f, path, &err), 0);
    assert_false(file_shrank(&f));
    file_unmap(&f);
    file_unmap(&whole);
    close(fd);
    unlink(path);
}

static void folders_are_made_with_their_parents(void **state) {
    (void)state;
    struct error err = {0};
    char *deep = path_join(folder, "a/b//c/"), *file = path_join(folder, "a/file");
    assert_int_equal(file_mkdirs(deep, &err), 0);
    assert_int_equal(file_mkdirs(deep, &err), 0);
    assert_true(file_exists(deep));
    assert_int_equal(file_replace(file, "", 0, &err), 0);
    char *below = path_join(file, "x");
    assert_int_equal(file_mkdirs(below, &err), -1);
    assert_int_equal(file_mkdirs("", &err), -1);
    assert_int_equal(file_mkdirs("/", &err), 0);
    assert_int_equal(file_sync_dir(folder, &err), 0);
    free(deep);
    free(file);
    free(below);
}

static void paths_join_and_split(void **state) {
    (void)state;
    const char *const joins[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a", "/b", "/b"}, {"", "b", "b"}, {"/", "b", "/b"},
    };
    for (size_t i = 0; i < sizeof joins / sizeof *joins; i++) {
        char *p = path_join(joins[i][0], joins[i][1]);
        assert_string_equal(p, joins[i][2]);
        free(p);
    }
    const char *const dirs[][2] = {
        {"a/b", "a"}, {"b", "."}, {"/b", "/"}, {"a/b/c", "a/b"}, {"", "."}};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        char *p = path_dir(dirs[i][0]);
        assert_string_equal(p, dirs[i][1]);
        free(p);
    }
    assert_true(path_has_ext("dir/x.PTH", "pth"));
    assert_true(path_has_ext("x.safetensors", "safetensors"));
    assert_false(path_has_ext("x.pth/y", "pth/y"));
    assert_false(path_has_ext("x.pth/y", "pth"));
    assert_false(path_has_ext("pth", "pth"));
}

// half

// The value of 16 bits by the formats' definition, independent of the code under test.
static double half_value(uint16_t h, int exp_bits, int man_bits) {
    const int bias = (1 << (exp_bits - 1)) - 1, exp = h >> man_bits & ((1 << exp_bits) - 1);
    const int man = h & ((1 << man_bits) - 1);
    const double sign = h & 0x8000 ? -1 : 1;
    if (exp == (1 << exp_bits) - 1) return man ? NAN : sign * INFINITY;
    if (!exp) return sign * ldexp(man, 1 - bias - man_bits);
    return sign * ldexp(man + (1 << man_bits), exp - bias - man_bits);
}

static bool same_double(double a, double b) {
    return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

static void half_values_are_the_formats(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        if (!same_double(f16_to_f32(h), half_value(h, 5, 10))) fail_msg("f16 %04x", i);
        if (!same_double(bf16_to_f32(h), half_value(h, 8, 7))) fail_msg("bf16 %04x", i);
        const bool nan16 = isnan(half_value(h, 5, 10)), nanb = isnan(half_value(h, 8, 7));
        const uint16_t f = f32_to_f16(f16_to_f32(h)), b = f32_to_bf16(bf16_to_f32(h));
        if (nan16 ? !isnan(f16_to_f32(f)) : f != h) fail_msg("f16 %04x comes back as %04x", i, f);
        if (nanb ? !isnan(bf16_to_f32(b)) : b != h) fail_msg("bf16 %04x comes back as %04x", i, b);
    }
}

// Between each pair of neighbours: below the middle goes down, above goes up, the middle to even.
static void half_rounds_to_nearest_even(void **state) {
    (void)state;
    for (int bf = 0; bf < 2; bf++) {
        uint16_t (*const down)(float) = bf ? f32_to_bf16 : f32_to_f16;
        float (*const up)(uint16_t) = bf ? bf16_to_f32 : f16_to_f32;
        const uint16_t inf = bf ? 0x7f80 : 0x7c00;
        for (uint32_t i = 0; i < inf; i++) {
            const uint16_t even = (uint16_t)(i & 1 ? i + 1 : i);
            // Past the largest finite value its neighbour would be the next power of two.
            const double lo = up((uint16_t)i);
            const double hi = i + 1 < inf ? up((uint16_t)(i + 1)) : ldexp(1, bf ? 128 : 16);
            const float mid = (float)((lo + hi) / 2);
            const float below = nextafterf(mid, 0), above = nextafterf(mid, INFINITY);
            for (int sign = 0; sign < 2; sign++) {
                const uint16_t s = sign ? 0x8000 : 0;
                const float f = sign ? -1.0f : 1.0f;
                if (down(f * mid) != (even | s) || down(f * below) != (i | s) ||
                    down(f * above) != ((i + 1) | s))
                    fail_msg("%s %04x: %04x %04x %04x", bf ? "bf16" : "f16", i, down(f * below),
                             down(f * mid), down(f * above));
            }
        }
    }
}

// hash

static void hash_of_pieces_is_the_hash_of_the_whole(void **state) {
    (void)state;
    assert_true(hash64("", 0) == 0x2d06800538d394c2u); // XXH3's own known answer, seed 0
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)rng_u64(3, 0, i);
    for (size_t piece = 1; piece < sizeof data; piece = piece * 3 + 1) {
        struct hasher *h = hasher_create();
        for (size_t at = 0; at < sizeof data; at += piece)
            hasher_add(h, data + at, sizeof data - at < piece ? sizeof data - at : piece);
        assert_true(hasher_digest(h) == hash64(data, sizeof data));
        hasher_destroy(h);
    }
    const uint64_t whole = hash64(data, sizeof data);
    for (size_t bit = 0; bit < 8 * sizeof data; bit += 97) {
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(hash64(data, sizeof data) != whole);
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

// hist

static int compare_u64(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void hist_quantiles_are_within_one_percent(void **state) {
    (void)state;
    enum { COUNT = 2000 };
    static uint64_t v[COUNT];
    struct hist *all = mem_zero(1, sizeof *all), *half[2];
    assert_true(hist_quantile(all, 0.5) == 0);
    for (int range = 1; range <= 64; range++) {
        memset(all, 0, sizeof *all);
        for (int i = 0; i < 2; i++) half[i] = mem_zero(1, sizeof *half[i]);
        double sum = 0;
        for (int i = 0; i < COUNT; i++) {
            v[i] = rng_u64(4, (uint64_t)range, (uint64_t)i) >> (64 - range);
            sum += (double)v[i];
            hist_add(all, v[i]);
            hist_add(half[i % 2], v[i]);
        }
        hist_merge(half[0], half[1]);
        qsort(v, COUNT, sizeof *v, compare_u64);
        for (int i = 0; i <= 100; i++) {
            const double q = i / 100.0, got = hist_quantile(all, q);
            const double want = (double)v[(size_t)(q * (COUNT - 1))];
            if (fabs(got - want) > 0.01 * want)
                fail_msg("range 2^%d, q %.2f: %g, expected %g", range, q, got, want);
            assert_true(got == hist_quantile(half[0], q));
        }
        assert_true(all->min == (double)v[0] && all->max == (double)v[COUNT - 1]);
        assert_true(half[0]->min == all->min && half[0]->max == all->max);
        assert_true(all->count == COUNT && half[0]->count == COUNT && all->sum == sum);
        for (int i = 0; i < 2; i++) free(half[i]);
    }
    free(all);
}

// rng

static void rng_is_philox(void **state) {
    (void)state;
    // Known answers of the authors' Random123 (kat_vectors, philox4x32 10).
    const struct {
        uint64_t seed, stream, index;
        uint32_t want[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x0370734413198a2e,
         0x85a308d3243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        rng_block(out, cases[i].seed, cases[i].stream, cases[i].index);
        assert_memory_equal(out, cases[i].want, sizeof out);
    }
}

static void rng_is_uniform_and_normal(void **state) {
    (void)state;
    enum { COUNT = 100000, BINS = 64 };
    double mean = 0, normal[5] = {0};
    int bin[BINS] = {0};
    for (uint64_t i = 0; i < COUNT; i++) {
        const double u = rng_uniform(5, 1, i), z = rng_normal(5, 2, i);
        assert_true(u >= 0 && u < 1 && isfinite(z));
        mean += u / COUNT;
        bin[(int)(u * BINS)]++;
        for (int p = 1; p < 5; p++) normal[p] += pow(z, p) / COUNT;
    }
    // Five standard deviations of each estimate.
    assert_true(fabs(mean - 0.5) < 5 * sqrt(1.0 / 12 / COUNT));
    double chi2 = 0;
    for (int b = 0; b < BINS; b++)
        chi2 += pow(bin[b] - (double)COUNT / BINS, 2) / ((double)COUNT / BINS);
    assert_true(fabs(chi2 - (BINS - 1)) < 5 * sqrt(2.0 * (BINS - 1)));
    const double moment[] = {0, 0, 1, 0, 3}, deviation[] = {0, 1, 2, 15, 96}; // E zᵖ, var zᵖ
    for (int p = 1; p < 5; p++)
        if (fabs(normal[p] - moment[p]) > 5 * sqrt(deviation[p] / COUNT))
            fail_msg("moment %d of the normal: %g", p, normal[p]);
}

// clock and log

static void clock_never_goes_back(void **state) {
    (void)state;
    int64_t last = clock_ns();
    for (int i = 0; i < 10000; i++) {
        const int64_t now = clock_ns();
        assert_true(now >= last);
        last = now;
    }
    assert_true(fabs(clock_s() - (double)clock_ns() * 1e-9) < 60);
    assert_true(clock_unix_ms() > 1600000000000); // later than 2020
}

static void log_line_is_one_line(void **state) {
    (void)state;
    enum log_level level;
    assert_int_equal(log_level_parse(&level, "warn"), 0);
    assert_int_equal(level, LOG_WARN);
    assert_int_equal(log_level_parse(&level, "loud"), -1);

    char *path = path_join(folder, "log"), forged[4000];
    memset(forged, 'x', sizeof forged - 1);
    forged[sizeof forged - 1] = 0;
    memcpy(forged, "a\nb\rc\x1b[31m", 10);
    const int fd = open(path, O_CREAT | O_WRONLY, 0600), saved = dup(2);
    dup2(fd, 2);
    log_info("%s", forged);
    log_debug("not shown");
    log_warn("short");
    dup2(saved, 2);
    close(fd);
    close(saved);
    struct str s;
    str_init(&s, 10000);
    assert_int_equal(file_read(&s, path, NULL), 0);
    int lines = 0;
    for (size_t i = 0; i < s.len; i++) {
        lines += s.data[i] == '\n';
        assert_true(s.data[i] == '\n' || (unsigned char)s.data[i] >= 0x20);
    }
    assert_int_equal(lines, 2);
    assert_non_null(strstr(s.data, " info a b c [31m"));
    assert_non_null(strstr(s.data, " warn short\n"));
    str_free(&s);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_names_its_context),
        cmocka_unit_test(error_keeps_the_message_when_the_context_is_long),
        cmocka_unit_test(str_grows_to_its_ceiling_and_no_further),
        cmocka_unit_test(str_printf_equals_snprintf),
        cmocka_unit_test(arena_gives_zeroed_aligned_blocks_that_do_not_overlap),
        cmocka_unit_test(arena_refuses_past_its_ceiling),
        cmocka_unit_test(mem_pages_are_zeroed_and_aligned_at_every_size),
        cmocka_unit_test(file_written_is_what_is_read_and_mapped),
        cmocka_unit_test(file_that_cannot_be_finished_leaves_the_old_one),
        cmocka_unit_test(file_that_is_none_is_refused_by_name),
        cmocka_unit_test(folders_are_made_with_their_parents),
        cmocka_unit_test(paths_join_and_split),
        cmocka_unit_test(half_values_are_the_formats),
        cmocka_unit_test(half_rounds_to_nearest_even),
        cmocka_unit_test(hash_of_pieces_is_the_hash_of_the_whole),
        cmocka_unit_test(hist_quantiles_are_within_one_percent),
        cmocka_unit_test(rng_is_philox),
        cmocka_unit_test(rng_is_uniform_and_normal),
        cmocka_unit_test(clock_never_goes_back),
        cmocka_unit_test(a_file_that_shrinks_reads_as_zeros_and_says_so),
        cmocka_unit_test(log_line_is_one_line),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
