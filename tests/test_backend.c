// Backends by name, and devices by id.
#include "backend/backend.h"
#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
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

// A download that is waited for later has what was there when it was asked for, whatever is
// uploaded since; large uploads and small ones.
static void later_downloads_are_of_their_time(void **state) {
    (void)state;
    enum { N = 40000, FEW = 5 };
    static int32_t numbers[N];
    for (const char *const *name = backend_names(); *name; name++) {
        struct backend *be;
        struct error err;
        if (backend_open(&be, *name, 1, &err)) continue;
        struct buffer *b = buffer_create(be, sizeof numbers, &err);
        assert_non_null(b);
        const struct tensor all = {.buf = b, .dtype = DT_I32, .ndim = 1, .dim = {N}};
        const struct tensor few = tensor_slice(all, N - FEW, FEW);
        int32_t got[4][FEW];
        int asked = 0, answered = 0;
        for (int round = 0; round < 8; round++) {
            for (int i = 0; i < N; i++) numbers[i] = i * (round + 1);
            if (round % 3 == 2)
                be->class->upload(be, few, numbers + N - FEW);
            else
                be->class->upload(be, all, numbers);
            be->class->download_later(be, got[asked++ % 4], few);
            for (; asked - answered > (round < 7 ? be->class->ahead : 0); answered++) {
                if (be->class->download_wait(be, &err)) fail_msg("%s: %s", *name, err.msg);
                for (int i = 0; i < FEW; i++)
                    assert_int_equal(got[answered % 4][i], (N - FEW + i) * (answered + 1));
            }
        }
        buffer_destroy(b);
        backend_destroy(be);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_say_what_they_want),
        cmocka_unit_test(a_device_that_is_not_there_is_an_error),
        cmocka_unit_test(backends_without_devices_pay_ids_no_heed),
        cmocka_unit_test(later_downloads_are_of_their_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
