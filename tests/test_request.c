// What comes in is read strictly: HTTP, the JSON of requests, keys.
#include "base/json.h"
#include "base/str.h"
#include "serve/fault.h"
#include "serve/http.h"
#include "serve/request.h"
#include "serve/secret.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

// ---- HTTP --------------------------------------------------------------------------------------

// What the parser says of a text, fed in pieces; *left: bytes behind the request.
static enum http_stage feed(struct http *h, const char *text, size_t piece, size_t *left) {
    const size_t len = strlen(text);
    size_t at = 0;
    while (at < len && h->stage < HTTP_COMPLETE) {
        const size_t n = len - at < piece ? len - at : piece;
        at += http_feed(h, text + at, n);
    }
    *left = len - at;
    return h->stage;
}

static void requests_are_read_strictly(void **state) {
    (void)state;
#define HOST "Host: x\r\n"
    static const struct {
        const char *text;
        int status; // 0: a complete request
        const char *body;
    } cases[] = {
        {"GET /a?b=c HTTP/1.1\r\n" HOST "\r\n", 0, ""},
        {"\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 0, ""},
        {"GET / HTTP/1.0\r\n\r\n", 0, ""},
        {"GET http://x/y HTTP/1.1\r\n" HOST "\r\n", 0, ""},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc", 0, "abc"},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n"
         "0\r\n\r\n",
         0, "abcde"},
        {"GET / HTTP/1.1\r\n\r\n", 400, NULL},
        {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400, NULL},
        {"GET / HTTP/1.1\nHost: x\n\n", 400, NULL},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, NULL},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, NULL},
        {"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400, NULL},
        {"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400, NULL},
        {"GET / HTTP/2.0\r\n" HOST "\r\n", 505, NULL},
        {"GET  / HTTP/1.1\r\n" HOST "\r\n", 400, NULL},
        {"BREW / HTTP/1.1\r\n" HOST "\r\n", 400, NULL},
        {"GET /%00 HTTP/1.1\r\n" HOST "\r\n", 400, NULL},
        {"GET /a/%2e%2e/b HTTP/1.1\r\n" HOST "\r\n", 400, NULL},
        {"GET /../etc HTTP/1.1\r\n" HOST "\r\n", 400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
         "\r\n",
         400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", 400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1001\r\n\r\n", 413, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n-2\r\n", 400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
         400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n11111111111111111\r\nabc",
         400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip\r\n\r\nabc", 400, NULL},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, NULL},
        {"POST / HTTP/1.1\r\n" HOST "Expect: magic\r\nContent-Length: 1\r\n\r\nx", 417, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t piece = 1; piece < 200; piece = piece * 3 + 1) {
            struct http h;
            size_t left;
            http_init(&h, 1000);
            const enum http_stage stage = feed(&h, cases[i].text, piece, &left);
            const int status = stage == HTTP_BAD ? h.status : stage == HTTP_COMPLETE ? 0 : -1;
            if (status != cases[i].status)
                fail_msg("case %zu in pieces of %zu: %d, wanted %d (%s)", i, piece, status,
                         cases[i].status, h.problem ? h.problem : "");
            if (!status) assert_string_equal(h.request->body.data, cases[i].body);
            if (!status) assert_int_equal(left, 0);
            http_free(&h);
        }
    }
}

static void http_sizes_have_ceilings(void **state) {
    (void)state;
    static const struct {
        const char *head;
        int times;
        const char *piece;
        int status;
    } cases[] = {
        {"GET /", 9000, "a", 414},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: ", 17000, "a", 431},
        {"GET / HTTP/1.1\r\nHost: x\r\n", 120, "A: b\r\n", 431},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", 100000, "x", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 1100, "1\r\na\r\n",
         413},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct str text;
        struct http h;
        size_t left;
        str_init(&text, 1 << 20);
        str_puts(&text, cases[i].head);
        for (int k = 0; k < cases[i].times; k++) str_puts(&text, cases[i].piece);
        str_puts(&text, "\r\n\r\n");
        http_init(&h, 1000);
        feed(&h, text.data, 4096, &left);
        if (h.stage != HTTP_BAD || h.status != cases[i].status)
            fail_msg("case %zu: stage %d, status %d, wanted %d", i, h.stage, h.status,
                     cases[i].status);
        http_free(&h);
        str_free(&text);
    }
}

// ---- requests ----------------------------------------------------------------------------------

static void fields_are_checked_by_name(void **state) {
    (void)state;
    static const struct {
        const char *fields, *param; // param NULL: fine
    } cases[] = {
        {"\"temperature\":0", NULL},
        {"\"temperature\":-1", "temperature"},
        {"\"temperature\":\"1\"", "temperature"},
        {"\"temperature\":true", "temperature"},
        {"\"temperature\":null", NULL},
        {"\"temperature\":1e999", ""},
        {"\"top_p\":1.5", "top_p"},
        {"\"top_k\":-1", "top_k"},
        {"\"top_k\":1.5", "top_k"},
        {"\"max_tokens\":0", "max_tokens"},
        {"\"max_tokens\":0,\"echo\":true", NULL},
        {"\"max_tokens\":2147483648", "max_tokens"},
        {"\"max_completion_tokens\":0", "max_completion_tokens"},
        {"\"seed\":-5", NULL},
        {"\"seed\":1.5", "seed"},
        {"\"n\":1", NULL},
        {"\"n\":2", "n"},
        {"\"best_of\":3", "best_of"},
        {"\"suffix\":\"x\"", "suffix"},
        {"\"tools\":[]", NULL},
        {"\"tools\":[{}]", "tools"},
        {"\"response_format\":{\"type\":\"text\"}", NULL},
        {"\"response_format\":{\"type\":\"json_object\"}", "response_format"},
        {"\"guided_regex\":\"a\"", "guided_regex"},
        {"\"stop\":\"\"", "stop"},
        {"\"stop\":[\"a\",\"b\"]", NULL},
        {"\"stop\":[1]", "stop"},
        {"\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"0\",\"1\",\"2\",\"3\","
         "\"4\",\"5\",\"6\",\"7\"]",
         "stop"},
        {"\"logit_bias\":{\"5\":-100}", NULL},
        {"\"logit_bias\":{\"-1\":1}", "logit_bias"},
        {"\"logit_bias\":{\"abc\":1}", "logit_bias"},
        {"\"logit_bias\":{\"05\":1}", "logit_bias"},
        {"\"logit_bias\":{\"1\":101}", "logit_bias"},
        {"\"logprobs\":21", "logprobs"},
        {"\"logprobs\":true", "logprobs"},
        {"\"stream\":1", "stream"},
        {"\"stream_options\":[]", "stream_options"},
        {"\"stream_options\":{}", NULL},
        {"\"candidate_token_texts\":[\"a\"]", "candidate_token_texts"},
        {"\"unknown\":{\"a\":[1,2]}", NULL},
        {"\"model\":\"b\"", ""}, // twice
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[600];
        struct request r;
        struct fault f = {0};
        const int len =
            snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"p\",%s}", cases[i].fields);
        const int rc = request_parse(&r, REQUEST_COMPLETION, body, (size_t)len, &f);
        if ((rc != 0) != (cases[i].param != NULL) || (rc && strcmp(f.param, cases[i].param)) ||
            (rc && f.status != 400))
            fail_msg("%s: %d, %s: %s", cases[i].fields, rc, f.param, f.message);
        request_free(&r);
    }
}

static void chats_become_prompts(void **state) {
    (void)state;
    static const struct {
        const char *messages, *prompt; // NULL: refused
    } cases[] = {
        {"[{\"role\":\"User\",\"content\":\"hi\"}]", "User: hi\n\nAssistant:"},
        {"[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\"type\":"
         "\"text\",\"text\":\"a\"},{\"type\":\"input_text\",\"text\":\"b\"}]}]",
         "System: s\n\nUser: ab\n\nAssistant:"},
        {"[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":null,"
         "\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
         "\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"4\"}]",
         "User: q\n\nAssistant: ```json\n{\"name\":\"f\",\"arguments\":{}}\n```\n\n"
         "User: Function output:\n4\n\nAssistant:"},
        {"[]", NULL},
        {"[1]", NULL},
        {"{}", NULL},
        {"[{\"role\":\"wizard\",\"content\":\"x\"}]", NULL},
        {"[{\"role\":\"user\"}]", NULL},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[1000];
        struct request r;
        struct fault f = {0};
        const int len =
            snprintf(body, sizeof body, "{\"model\":\"m\",\"messages\":%s}", cases[i].messages);
        const int rc = request_parse(&r, REQUEST_CHAT, body, (size_t)len, &f);
        assert_int_equal(rc, cases[i].prompt ? 0 : -1);
        if (!rc) assert_string_equal(r.prompts[0].text, cases[i].prompt);
        request_free(&r);
    }
}

static void keys_are_compared_whole(void **state) {
    (void)state;
    assert_true(secret_equal("key", "key"));
    assert_false(secret_equal("ke", "key"));
    assert_false(secret_equal("keykey", "key"));
    assert_false(secret_equal("kez", "key"));
    assert_false(secret_equal("", "key"));
    assert_false(secret_equal("", ""));
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_read_strictly), cmocka_unit_test(http_sizes_have_ceilings),
        cmocka_unit_test(fields_are_checked_by_name), cmocka_unit_test(chats_become_prompts),
        cmocka_unit_test(keys_are_compared_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
