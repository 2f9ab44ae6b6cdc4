// Backends by name, devices by id, and what goes there and back.
#include "backend/backend.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void refused(const char *name, int device, enum error_code code, const char *words) {
    struct backend *be;
    struct error err;
    if (!(device < 0 ? backend_open(&be, name, 1, &err)
                     : backend_open_device(&be, name, device, 1, &err)))
        fail_msg("%s, device %d: opened", name, device);
    if (!strstr(err.msg, words)) fail_msg("%s, device %d: %s", name, device, err.msg);
    assert_int_equal(err.code, code);
}

static void names_say_what_they_want(void **state) {
    (void)state;
    refused("cqu", -1, E_ARG, "no backend is named \"cqu\"; there are: cpu, ");
    refused("cqu:1", -1, E_ARG, "no backend is named \"cqu:1\"");
    refused(":1", -1, E_ARG, "no backend is named \":1\"");
    refused("cpu:1", -1, E_ARG, "cpu has no devices to choose from");
    refused("cpu:", -1, E_ARG, "cpu has no devices to choose from");
}

// Where there is one, or none.
static void a_device_that_is_not_there_is_an_error(void **state) {
    (void)state;
    const char *const *names = backend_names();
    while (*names && strcmp(*names, "cuda")) names++;
    if (!*names) {
        refused("cuda", 9999, E_UNSUPPORTED, "\"cuda\" is not in this build");
        return;
    }
    const char *const bad[] = {"cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:99999"};
    for (int i = 0; i < 5; i++) refused(bad[i], -1, E_ARG, "wanted the device's number");
    refused("cuda:9999", -1, E_DEVICE, "no CUDA device");
    refused("cuda", 9999, E_DEVICE, "no CUDA device");
#ifdef CUDA_EMU
    refused("cuda:1", -1, E_DEVICE, "no CUDA device 1: there is 1, counted from 0");
    struct backend *be;
    struct error err;
    assert_int_equal(backend_open(&be, "cuda:0", 1, &err), 0);
    backend_destroy(be);
#endif
}

static void backends_without_devices_pay_ids_no_heed(void **state) {
    (void)state;
    struct backend *be;
    struct error err;
    assert_int_equal(backend_open_device(&be, "cpu", 3, 1, &err), 0);
    assert_string_equal(be->name, "cpu");
    backend_destroy(be);
}

static struct tensor bytes_of(struct buffer *b, size_t at, size_t len) {
    return (struct tensor){.buf = b, .offset = at, .dtype = DT_U8, .ndim = 1, .dim = {len}};
}

// Uploads of all sizes, past what a backend may keep aside, whose source changes at once, and
// fetches that are waited for only when others are under way.
static void transfers_keep_their_order(void **state) {
    enum { MOST = 3 << 19, ROUNDS = 20, UPLOADS = 40 };
    (void)state;
    unsigned char *src = mem_alloc(MOST), *dst[MAX_FETCHES];
    for (int i = 0; i < MAX_FETCHES; i++) dst[i] = mem_alloc(MOST);
    for (const char *const *name = backend_names(); *name; name++) {
        struct backend *be;
        struct error err;
        if (backend_open(&be, *name, 1, &err)) {
            print_message("SKIP backend %s: %s\n", *name, err.msg);
            continue;
        }
        struct buffer *b = buffer_create(be, (size_t)MAX_FETCHES * MOST, &err);
        size_t lens[MAX_FETCHES];
        assert_non_null(b);
        for (int round = 0, fetched = 0; fetched < ROUNDS; round++) {
            const int place = round % MAX_FETCHES;
            if (round >= MAX_FETCHES) {
                const int at = fetched % MAX_FETCHES;
                assert_int_equal(be->class->fetched(be, &err), 0);
                for (size_t i = 0; i < lens[at]; i++)
                    if (dst[at][i] != (unsigned char)(fetched + 1))
                        fail_msg("%s, fetch %d, byte %zu of %zu: %d", *name, fetched, i, lens[at],
                                 dst[at][i]);
                fetched++;
            }
            if (round >= ROUNDS) continue;
            const size_t len = rng_u64(3, 0, (uint64_t)round) % (round % 8 ? 300000 : MOST);
            lens[place] = len;
            const struct tensor t = bytes_of(b, (size_t)place * MOST, len);
            for (int n = 0; n < UPLOADS; n++) { // the last one counts
                memset(src, n == UPLOADS - 1 ? round + 1 : 0, len);
                be->class->upload(be, t, src);
            }
            memset(src, 0, len);
            be->class->fetch(be, dst[place], t);
        }
        buffer_destroy(b);
        backend_destroy(be);
    }
    for (int i = 0; i < MAX_FETCHES; i++) free(dst[i]);
    free(src);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_say_what_they_want),
        cmocka_unit_test(a_device_that_is_not_there_is_an_error),
        cmocka_unit_test(backends_without_devices_pay_ids_no_heed),
        cmocka_unit_test(transfers_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
