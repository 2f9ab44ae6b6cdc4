// The server in front of a fake engine: what goes over the wire, without a model.
#include "serve/server.h"

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "fake_engine.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

// ---- the server --------------------------------------------------------------------------------

static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int port, rc;
    const char *api_key, *admin_key;
    struct model_entry entries[2];
    size_t num_entries;
    int commits;
} server = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static const int64_t devices[] = {0, 1};

static struct model_entry entry(const char *name) {
    return (struct model_entry){.name = name,
                                .weights_path = "/dev/null",
                                .vocab_path = "bytes",
                                .shape_path = "x.toml",
                                .backend = "fake",
                                .dtype = "f32",
                                .device_ids = devices,
                                .num_devices = 2,
                                .limits = {8, 64, 1000, 64, true}};
}

static int propose(void *ctx, struct server_plan *plan, const struct json *request,
                   struct error *err) {
    (void)ctx;
    if (request && json_member(request, "bad")) return fail_set(err, E_ARG, "bad is unknown");
    if (request && json_member(request, "batch")) server.entries[0].limits.max_batch_size = 3;
    if (request && json_member(request, "remove")) server.num_entries = 1;
    if (request && json_member(request, "dtype")) server.entries[0].dtype = "bf16";
    *plan = (struct server_plan){.entries = server.entries, .num_entries = server.num_entries};
    return 0;
}

static int commit(void *ctx, struct server_plan *plan, struct error *err) {
    (void)ctx, (void)plan, (void)err;
    server.commits++;
    return 0;
}

static void drop(void *ctx, struct server_plan *plan) {
    (void)ctx, (void)plan;
}

static void ready(void *ctx, const char *url) {
    (void)ctx;
    pthread_mutex_lock(&server.lock);
    server.port = atoi(strrchr(url, ':') + 1);
    pthread_cond_signal(&server.changed);
    pthread_mutex_unlock(&server.lock);
}

static void *serve(void *arg) {
    struct error err;
    (void)arg;
    const struct server_options o = {
        .address = "127.0.0.1:0",
        .max_body = 1 << 20,
        .max_connections = 100,
        .sse_keep_alive_ms = 300,
        .header_timeout_ms = 600,
        .body_timeout_ms = 600,
        .stall_timeout_ms = 3000,
        .idle_timeout_ms = 60000,
        .drain_timeout_ms = 2000,
        .api_key = server.api_key,
        .admin_api_key = server.admin_key,
        .ready = ready,
        .source = {NULL, "test", propose, commit, drop},
    };
    server.rc = server_run(&o, &err);
    return NULL;
}

static void start_server(const char *api_key, const char *admin_key) {
    server.port = 0;
    server.commits = 0;
    server.api_key = api_key;
    server.admin_key = admin_key;
    server.entries[0] = entry("m");
    server.entries[1] = entry("m2");
    server.num_entries = 2;
    fake_step_us = 100;
    fake_open_error = NULL;
    pthread_create(&server.thread, NULL, serve, NULL);
    pthread_mutex_lock(&server.lock);
    while (!server.port) pthread_cond_wait(&server.changed, &server.lock);
    pthread_mutex_unlock(&server.lock);
}

static void stop_server(void) {
    kill(getpid(), SIGTERM);
    pthread_join(server.thread, NULL);
    assert_int_equal(server.rc, 0);
    assert_int_equal(fake_running, 0);
}

static int dial(void) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server.port)};
    const struct timeval limit = {10, 0};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void say(int fd, const char *text) {
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

// Reads until the text holds `end`, or the connection closes.
static char *hear(int fd, const char *end) {
    static char text[1 << 20];
    size_t len = 0;
    *text = 0;
    while (len + 1 < sizeof text && (!end || !strstr(text, end))) {
        const ssize_t n = recv(fd, text + len, sizeof text - 1 - len, 0);
        if (n <= 0) break;
        len += (size_t)n;
        text[len] = 0;
    }
    return text;
}

static const char *ask(const char *method, const char *path, const char *headers,
                       const char *body) {
    char text[4096];
    const int fd = dial();
    snprintf(text, sizeof text,
             "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n%s%sContent-Length: %zu"
             "\r\n\r\n%s",
             method, path, *body ? "Content-Type: application/json\r\n" : "", headers, strlen(body),
             body);
    say(fd, text);
    const char *answer = hear(fd, NULL);
    close(fd);
    return answer;
}

static void assert_has(const char *answer, const char *part) {
    if (!strstr(answer, part)) fail_msg("\"%s\" is not in: %s", part, answer);
}

static void answers_whole_and_in_pieces(void **state) {
    (void)state;
    start_server(NULL, NULL);
    const char *a =
        ask("POST", "/v1/completions", "", "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":3}");
    assert_has(a, "HTTP/1.1 200 OK\r\n");
    assert_has(a, "\"text\":\"cba\"");
    assert_has(a, "\"finish_reason\":\"length\"");
    assert_has(a, "\"prompt_tokens\":4");
    a = ask("POST", "/v1/completions", "",
            "{\"model\":\"m\",\"prompt\":[\"ab\",[99,98]],\"max_tokens\":2}");
    assert_has(a, "\"index\":0,\"text\":\"ba\"");
    assert_has(a, "\"index\":1,\"text\":\"ab\"");
    a = ask("POST", "/v1/chat/completions", "",
            "{\"model\":\"m2\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
            "\"max_tokens\":4,\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    assert_has(a, "Content-Type: text/event-stream");
    assert_has(a, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    assert_has(a, "\"finish_reason\":\"length\"");
    assert_has(a, "\"choices\":[],\"usage\":{");
    assert_has(a, "data: [DONE]\n\n");
    assert_has(ask("GET", "/", "", ""), "<!doctype html>");
    assert_has(ask("GET", "/v1/models", "", ""), "\"id\":\"m\"");
    assert_has(ask("GET", "/v1/models/nope", "", ""), "model_not_found");
    assert_has(ask("GET", "/metrics", "", ""), "rwkv_requests_total{route=\"/v1/completions\"");
    assert_has(ask("PUT", "/v1/models", "", ""), "Allow: GET, HEAD, OPTIONS");
    assert_has(ask("GET", "/nope", "", ""), "404 Not Found");
    assert_has(ask("POST", "/tokenize", "", "{\"model\":\"m\",\"prompt\":\"a\"}"),
               "\"tokens\":[0,98]");
    assert_has(ask("POST", "/v1/completions", "Content-Type: text/plain\r\n", ""), " 415 ");
    stop_server();
}

static void connections_are_kept_and_closed(void **state) {
    (void)state;
    start_server(NULL, NULL);
    int fd = dial(); // three requests at once, one of them bad in its contents only
    say(fd, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 2\r\n\r\n{}"
            "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    const char *a = hear(fd, "\"ok\"");
    assert_has(a, "\"version\"");
    assert_has(a, " 400 ");
    assert_has(a, "\"param\":\"model\"");
    assert_has(a, "\"ok\"");
    close(fd);
    fd = dial(); // a slow head
    say(fd, "GET / HTTP/1.1\r\nHost:");
    assert_has(hear(fd, NULL), " 408 ");
    close(fd);
    fd = dial();
    say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            "Content-Type: application/json\r\nContent-Length: 44\r\n\r\n");
    assert_has(hear(fd, "\r\n\r\n"), "100 Continue");
    say(fd, "{\"model\":\"m\",\"prompt\":\"xyz\",\"max_tokens\":1}");
    say(fd, " ");
    assert_has(hear(fd, "usage"), "\"text\":\"z\"");
    close(fd);
    stop_server();
}

static void a_client_that_goes_ends_its_job(void **state) {
    (void)state;
    start_server(NULL, NULL);
    fake_step_us = 20000;
    for (int streaming = 0; streaming < 2; streaming++) {
        const int fd = dial();
        char body[200], text[600];
        const int len = snprintf(body, sizeof body,
                                 "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":900,"
                                 "\"stream\":%s}",
                                 streaming ? "true" : "false");
        snprintf(text, sizeof text,
                 "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 "Content-Length: %d\r\n\r\n%s",
                 len, body);
        say(fd, text);
        for (int i = 0; i < 200 && !fake_running; i++) usleep(10000);
        assert_int_equal(fake_running, 1);
        close(fd);
        for (int i = 0; i < 200 && fake_running; i++) usleep(10000);
        assert_int_equal(fake_running, 0);
    }
    stop_server();
}

static void keys_open_doors(void **state) {
    (void)state;
    start_server("secret", "boss");
    static const struct {
        const char *path, *header;
        int status;
    } cases[] = {
        {"/health", "", 200},
        {"/", "", 200},
        {"/v1/models", "", 401},
        {"/v1/models", "Authorization: Bearer secret\r\n", 200},
        {"/v1/models", "Authorization: bearer secret\r\n", 200},
        {"/v1/models", "Authorization: secret\r\n", 200},
        {"/v1/models", "Authorization: Bearer secre\r\n", 401},
        {"/v1/models", "Authorization: Bearer \r\n", 401},
        {"/v1/models", "Authorization: secret\r\nAuthorization: secret\r\n", 400},
        {"/metrics", "", 401},
        {"/tokenizer_info", "", 401},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wanted[20];
        snprintf(wanted, sizeof wanted, "HTTP/1.1 %d ", cases[i].status);
        const char *a = ask("GET", cases[i].path, cases[i].header, "");
        if (strncmp(a, wanted, strlen(wanted))) fail_msg("case %zu: %s", i, a);
        if (strstr(a, "secret")) fail_msg("case %zu tells the key: %s", i, a);
    }
    assert_has(ask("POST", "/admin/models/reload", "Authorization: Bearer secret\r\n", "{}"),
               " 401 ");
    assert_has(ask("POST", "/admin/models/reload", "Authorization: Bearer boss\r\n", "{}"),
               " 200 ");
    stop_server();
}

static void reloads_change_what_they_must(void **state) {
    (void)state;
    start_server(NULL, NULL);
    const char *path = "/admin/models/reload";
    const char *a = ask("POST", path, "", "{}");
    assert_has(a, "\"changed_model_names\":[]");
    assert_has(a, "\"active_model_names\":[\"m\",\"m2\"]");
    a = ask("POST", path, "", "{\"batch\":1}"); // limits only
    assert_has(a, "\"changed_model_names\":[\"m\"],\"rebuilt_model_names\":[]");
    fake_open_error = "broken";
    a = ask("POST", path, "", "{\"dtype\":1}");
    assert_has(a, " 400 ");
    assert_has(a, "broken");
    assert_has(ask("POST", "/v1/completions", "",
                   "{\"model\":\"m\",\"prompt\":\"ab\",\"max_tokens\":2}"),
               "\"text\":\"ba\"");
    fake_open_error = NULL;
    const int before = server.commits;
    a = ask("POST", path, "", "{\"dry_run\":true}");
    assert_has(a, "\"rebuilt_model_names\":[\"m\"]");
    assert_has(a, "no runtime state changed");
    assert_int_equal(server.commits, before);
    a = ask("POST", path, "", "{\"dry_run\":false}");
    assert_has(a, "\"rebuilt_model_names\":[\"m\"]");
    assert_int_equal(server.commits, before + 1);
    assert_has(ask("POST", path, "", "{\"dry_run\":1}"), "\"param\":\"dry_run\"");
    assert_has(ask("POST", path, "", "{\"bad\":1}"), "bad is unknown");
    a = ask("POST", path, "", "{\"remove\":1}");
    assert_has(a, "\"removed_model_names\":[\"m2\"]");
    assert_has(ask("POST", "/v1/completions", "", "{\"model\":\"m2\",\"prompt\":\"ab\"}"), " 404 ");
    // A page elsewhere that has its name point here.
    const int fd = dial();
    say(fd, "POST /admin/models/reload HTTP/1.1\r\nHost: evil.example\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
    assert_has(hear(fd, "}}"), " 403 ");
    close(fd);
    stop_server();
}

// Where two versions don't fit, the old one goes first, but only if that was asked for.
static void a_reload_without_room_is_refused_or_forced(void **state) {
    (void)state;
    const char *path = "/admin/models/reload";
    start_server(NULL, NULL);
    assert_int_equal(fake_open, 4);
    fake_bytes = 1ull << 60;
    const char *a = ask("POST", path, "", "{\"dtype\":1}");
    assert_has(a, "HTTP/1.1 409 ");
    assert_has(a, "insufficient_memory");
    assert_has(a, " MB are free");
    a = ask("POST", path, "", "{\"dtype\":1,\"dry_run\":true}");
    assert_has(a, "\"planned_bytes\":2305843009213693952");
    fake_step_us = 5000;
    const int fd = dial(); // a sequence of the version that must go: it ends first
    say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Connection: close\r\nContent-Length: 44\r\n\r\n"
            "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":50}");
    for (int i = 0; i < 200 && !fake_running; i++) usleep(5000);
    a = ask("POST", path, "", "{\"dtype\":1,\"force\":true}");
    assert_has(a, "\"rebuilt_model_names\":[\"m\"]");
    assert_int_equal(fake_open, 4);
    assert_has(hear(fd, NULL), "\"finish_reason\":\"length\"");
    close(fd);
    fake_bytes = 1000;
    assert_has(ask("POST", "/v1/completions", "",
                   "{\"model\":\"m\",\"prompt\":\"ab\",\"max_tokens\":2}"),
               "\"text\":\"ba\"");
    stop_server();
    assert_int_equal(fake_open, 0);
}

static void a_broken_device_is_said(void **state) {
    (void)state;
    start_server(NULL, NULL);
    fake_fails = true;
    const char *a = ask("POST", "/v1/completions", "",
                        "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":30}");
    assert_has(a, "HTTP/1.1 503 ");
    assert_has(a, "the device is gone");
    a = ask("POST", "/v1/completions", "",
            "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":30,\"stream\":true}");
    assert_has(a, "HTTP/1.1 200 ");
    assert_has(a, "data: {\"error\":{\"message\":\"the device is gone\"");
    assert_null(strstr(a, "[DONE]"));
    assert_null(strstr(a, "\"finish_reason\":\"stop\""));
    fake_fails = false;
    stop_server();
}

static void a_drain_lets_answers_end(void **state) {
    (void)state;
    start_server(NULL, NULL);
    fake_step_us = 5000;
    const int fd = dial();
    say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 58\r\n\r\n"
            "{\"model\":\"m\",\"prompt\":\"abc\",\"max_tokens\":60,\"stream\":true}");
    for (int i = 0; i < 200 && !fake_running; i++) usleep(5000);
    kill(getpid(), SIGTERM);
    const char *a = hear(fd, NULL);
    assert_has(a, "\"finish_reason\":\"length\"");
    assert_has(a, "[DONE]");
    close(fd);
    pthread_join(server.thread, NULL);
    assert_int_equal(server.rc, 0);
}

int main(void) {
    log_set_level(LOG_ERROR);
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_whole_and_in_pieces),
        cmocka_unit_test(connections_are_kept_and_closed),
        cmocka_unit_test(a_client_that_goes_ends_its_job),
        cmocka_unit_test(keys_open_doors),
        cmocka_unit_test(reloads_change_what_they_must),
        cmocka_unit_test(a_reload_without_room_is_refused_or_forced),
        cmocka_unit_test(a_broken_device_is_said),
        cmocka_unit_test(a_drain_lets_answers_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
