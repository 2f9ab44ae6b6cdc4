// The tokenizer against the official one's recorded answers, and laws: any bytes come back, any cut
// of a UTF-8 stream reads the same, stop strings and thoughts are found across cuts.
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "draw.h"
#include "shared.h"
#include "text/prompt.h"
#include "text/stop.h"
#include "text/think.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
#include <cmocka.h>
// clang-format on

static struct tok *world(void) {
    char path[300];
    struct tok *t;
    struct error err;
    if (!shared_path(path, sizeof path, "data/rwkv_vocab_v20230424.txt")) return NULL;
    if (tok_open(&t, path, &err)) fail_msg("%s", err.msg);
    return t;
}

static void the_official_tokenizers_answers(void **state) {
    (void)state;
    char path[300];
    struct tok *t = world();
    if (!t || !shared_path(path, sizeof path, "vectors/misc.json")) skip();
    struct str text;
    struct json *doc;
    struct error err;
    str_init(&text, 16 << 20);
    assert_int_equal(file_read(&text, path, &err), 0);
    assert_int_equal(json_parse(&doc, text.data, text.len, 16 << 20, path, &err), 0);
    const struct json *cases = json_member(doc, "tokenizer");
    for (size_t i = 0; i < json_length(cases); i++) {
        const struct json *c = json_item(cases, i), *ids = json_member(c, "ids");
        const char *hex;
        size_t len;
        assert_int_equal(json_read_text(&hex, &len, json_member(c, "hex"), "hex", &err), 0);
        char *bytes = mem_alloc(len / 2 + 1);
        for (size_t k = 0; k < len / 2; k++) {
            unsigned b;
            sscanf(hex + 2 * k, "%2x", &b);
            bytes[k] = (char)b;
        }
        int32_t *got = mem_zero(len / 2 + 1, sizeof *got);
        const size_t n = tok_encode(t, bytes, len / 2, got);
        if (n != json_length(ids))
            fail_msg("case %zu: %zu tokens, expected %zu", i, n, json_length(ids));
        for (size_t k = 0; k < n; k++) {
            int64_t want;
            json_read_int(&want, json_item(ids, k), 0, 65535, "id", &err);
            assert_int_equal(got[k], want);
        }
        free(bytes);
        free(got);
    }
    // Fixed points of the vocabulary, SPEC-rwkv7 §7.
    static const struct {
        const char *text;
        int32_t id;
    } fixed[] = {{"\n", 11},      {"\n\n", 261}, {"\r\n", 263}, {" ", 33},
                 {"User", 24281}, {" A", 300},   {" D", 303}};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        int32_t id[8];
        assert_int_equal(tok_encode(t, fixed[i].text, strlen(fixed[i].text), id), 1);
        assert_int_equal(id[0], fixed[i].id);
    }
    printf("  %zu cases; the trie takes %.1f MB\n", json_length(cases),
           (double)tok_memory(t) * 1e-6);
    assert_int_equal(tok_size(t), 65530);
    assert_true(tok_memory(t) < 8 << 20);
    json_free(doc);
    str_free(&text);
    tok_close(t);
}

static void any_bytes_come_back(struct tok *t, uint64_t seed) {
    char bytes[300];
    int32_t tokens[300];
    struct str back;
    str_init(&back, 4096);
    for (uint64_t round = 0; round < 2000; round++) {
        const size_t n = rng_u64(seed, round, 0) % sizeof bytes;
        // From pure noise to text of few letters, where long tokens match.
        const uint64_t range = round % 3 == 0 ? 256 : round % 3 == 1 ? 4 : 96;
        for (size_t i = 0; i < n; i++)
            bytes[i] = (char)(rng_u64(seed, round, i + 1) % range + (range < 256 ? 32 : 0));
        const size_t count = tok_encode(t, bytes, n, tokens);
        str_clear(&back);
        assert_true(count <= n);
        assert_int_equal(tok_decode(t, tokens, count, &back), 0);
        assert_int_equal(back.len, n);
        assert_memory_equal(back.data, bytes, n);
        for (size_t i = 0; i < count; i++) assert_true(tokens[i] > 0);
    }
    str_free(&back);
}

static void every_vocabulary_is_total(void **state) {
    (void)state;
    struct tok *bytes, *file, *t = world();
    struct error err;
    size_t len;
    tok_open_bytes(&bytes);
    any_bytes_come_back(bytes, 1);
    if (tok_open(&file, "config/vocab/bytes.txt", &err)) fail_msg("%s", err.msg);
    assert_int_equal(tok_hash(bytes), tok_hash(file));
    assert_int_equal(tok_size(bytes), 257);
    tok_bytes(bytes, 0, &len);
    assert_int_equal(len, 0);
    tok_bytes(bytes, -1, &len);
    assert_int_equal(len, 0);
    tok_bytes(bytes, 99999, &len);
    assert_int_equal(len, 0);
    tok_close(bytes);
    tok_close(file);
    if (!t) skip();
    any_bytes_come_back(t, 2);
    tok_close(t);
}

static void bad_vocabularies_are_refused_by_line(void **state) {
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"300 'ab' 3", ":257: token 300 has 2 bytes, the line says 3"},
        {"70000 'ab' 2", ":257: the id"},
        {"0 'ab' 2", ":257: the id"},
        {"-1 'ab' 2", ":257: the id"},
        {"5 'ab' 2", ":257: token 5 is already on line 5"},
        {"300 'a' 1", ":257: token 300 has the same bytes as token 98"},
        {"300 'ab", ":257: expected"},
        {"300 'ab\" 2", ":257: token 300 is not a Python literal"},
        {"300 '\\q' 1", ":257: token 300 is not a Python literal"},
        {"300 b'\\xg0' 1", ":257: token 300 is not a Python literal"},
        {"300 '' 0", ":257: the length"},
        {"300 'ab' 99999", ":257: the length"},
        {"<0x-1>", ":257: expected"},
    };
    struct str whole;
    struct error err;
    struct tok *t;
    str_init(&whole, 1 << 20);
    assert_int_equal(file_read(&whole, "config/vocab/bytes.txt", &err), 0);
    const size_t len = whole.len;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        whole.len = len;
        str_puts(&whole, cases[i].line);
        assert_int_equal(tok_parse(&t, whole.data, whole.len, "v.txt", &err), -1);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("\"%s\" lacks \"%s\"", err.msg, cases[i].says);
    }
    assert_int_equal(tok_parse(&t, whole.data, 200, "v.txt", &err), -1);
    assert_int_equal(tok_parse(&t, "", 0, "v.txt", &err), -1);
    assert_non_null(strstr(err.msg, "single byte 0x00"));
    // Windows line ends and a literal with spaces and escapes of every kind are fine.
    whole.len = len;
    str_puts(&whole, "300 'a b\\t\\u00e9\\x80' 8\r\n301 b'\\xe9\\x80' 2\r\n");
    if (tok_parse(&t, whole.data, whole.len, "v.txt", &err)) fail_msg("%s", err.msg);
    size_t n;
    const char *bytes = tok_bytes(t, 300, &n);
    assert_int_equal(n, 8);
    assert_memory_equal(bytes, "a b\t\xc3\xa9\xc2\x80", 8);
    bytes = tok_bytes(t, 301, &n);
    assert_memory_equal(bytes, "\xe9\x80", 2);
    tok_close(t);
    str_free(&whole);
}

static void utf8_reads_the_same_however_it_is_cut(void **state) {
    (void)state;
    static const char valid[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
    static const struct {
        const char *in, *out;
    } cases[] = {
        {valid, valid},
        {"\xff", "\xef\xbf\xbd"},
        {"\xc3", "\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xe2\x82x", "\xef\xbf\xbdx"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, // a surrogate
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                 // overlong
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf0\x9f\x98\xc3\xa9", "\xef\xbf\xbd\xc3\xa9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t len = strlen(cases[i].in);
        assert_int_equal(utf8_valid(cases[i].in, len), cases[i].in == cases[i].out);
        for (size_t cut = 0; cut <= len; cut++) {
            struct utf8 u = {0};
            struct str out;
            str_init(&out, 256);
            utf8_feed(&u, cases[i].in, cut, &out);
            assert_true(utf8_valid(out.data, out.len)); // never half a code point
            utf8_feed(&u, cases[i].in + cut, len - cut, &out);
            utf8_flush(&u, &out);
            assert_string_equal(out.data, cases[i].out);
            str_free(&out);
        }
    }
}

// ---- stop strings ------------------------------------------------------------------------------

// By definition: the text ends before the string that is complete first, the longest of those.
static size_t naive_stop(const char *text, const char *const *stops, int n, bool *stopped) {
    for (size_t end = 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (int i = 0; i < n; i++) {
            const size_t len = strlen(stops[i]);
            if (len <= end && !memcmp(text + end - len, stops[i], len) && len > longest)
                longest = len;
        }
        *stopped = longest > 0;
        if (longest) return end - longest;
    }
    return strlen(text);
}

static void stops_are_found_however_the_text_is_cut(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        begin_draws(seed);
        char text[64] = {0}, strings[3][8] = {{0}};
        const char *stops[3];
        const int n = draw(4);
        for (int i = 0, len = draw(60); i < len; i++) text[i] = (char)('a' + draw(2));
        for (int k = 0; k < n; k++) {
            for (int i = 0, len = 1 + draw(6); i < len; i++) strings[k][i] = (char)('a' + draw(2));
            stops[k] = strings[k];
        }
        bool wanted_stop = false, stopped = false;
        const size_t wanted = naive_stop(text, stops, n, &wanted_stop);
        struct stop *s = stop_create(stops, n);
        struct str out;
        str_init(&out, 1000);
        for (size_t at = 0; at < strlen(text) && !stopped;) {
            size_t len = (size_t)draw(5);
            if (len > strlen(text) - at) len = strlen(text) - at;
            stopped = stop_feed(s, text + at, len, &out);
            at += len;
        }
        if (!stopped) stop_flush(s, &out);
        if (stopped != wanted_stop || out.len != wanted || memcmp(out.data, text, wanted))
            fail_msg("seed %llu: \"%s\" became \"%s\", wanted %zu bytes", (unsigned long long)seed,
                     text, out.data, wanted);
        stop_destroy(s);
        str_free(&out);
    }
}

// ---- thoughts ----------------------------------------------------------------------------------

static void thoughts_are_split_however_the_text_is_cut(void **state) {
    (void)state;
    static const struct {
        const char *text, *thoughts, *answer;
        bool in_tag;
    } cases[] = {
        {" Hello <think>no</think>", "", "Hello <think>no</think>", false},
        {"<think>\nhm </thin </think>\n\nYes.", "hm </thin ", "Yes.", false},
        {">\nfirst\n</think>\nthen", "first\n", "then", true},
        {"><b></think>", "<b>", "", true},
        {"no tag", "no tag", "", true},
        {"<thin", "", "<thin", false},
        {">never closed </thi", "never closed </thi", "", true},
        {"", "", "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t piece = 1; piece < 9; piece++) {
            struct think t;
            struct str thoughts, answer;
            str_init(&thoughts, 1000);
            str_init(&answer, 1000);
            think_begin(&t, cases[i].in_tag);
            const size_t len = strlen(cases[i].text);
            for (size_t at = 0; at < len; at += piece)
                think_feed(&t, cases[i].text + at, len - at < piece ? len - at : piece, &thoughts,
                           &answer);
            think_flush(&t, &thoughts, &answer);
            assert_string_equal(thoughts.data, cases[i].thoughts);
            assert_string_equal(answer.data, cases[i].answer);
            str_free(&thoughts);
            str_free(&answer);
        }
    }
}

// ---- prompts -----------------------------------------------------------------------------------

static void chat_prompts_are_the_official_ones(void **state) {
    (void)state;
    struct prompt_message m[] = {{PROMPT_SYSTEM, " S\r\n\r\nS2 ", 8},
                                 {PROMPT_USER, "Q\n\n\nUser: x", 11},
                                 {PROMPT_ASSISTANT, "A", 1},
                                 {PROMPT_USER, "Q2\n", 3}};
    static const struct {
        enum prompt_think think;
        const char *end;
    } ends[] = {{PROMPT_PLAIN, "User: Q2\n\nAssistant:"},
                {PROMPT_DONT_THINK, "User: Q2\n\nAssistant: <think></think>"},
                {PROMPT_THINK, "User: Q2 (think)\n\nAssistant: <think"},
                {PROMPT_THINK_A_LOT, "User: Q2 (think a lot)\n\nAssistant: <think"}};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        char wanted[200];
        struct str out;
        str_init(&out, 1000);
        assert_int_equal(prompt_chat(&out, m, 4, ends[i].think), 0);
        snprintf(wanted, sizeof wanted, "System: S\nS2\n\nUser: Q\nUser: x\n\nAssistant: A\n\n%s",
                 ends[i].end);
        assert_string_equal(out.data, wanted);
        str_free(&out);
    }
}

static void no_text_begins_a_turn(void **state) {
    (void)state;
    static const char *const pieces[] = {"\n", "\r", "\r\n", "User:", " ", "Assistant:", "x", "\t"};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        begin_draws(seed);
        struct str text, out;
        str_init(&text, 1000);
        str_init(&out, 4000);
        for (int i = 0, n = draw(12); i < n; i++) str_puts(&text, pieces[draw(8)]);
        struct prompt_message m[2] = {{PROMPT_USER, text.data, text.len},
                                      {PROMPT_ASSISTANT, text.data, text.len}};
        prompt_chat(&out, m, 2, PROMPT_PLAIN);
        int turns = 0;
        for (const char *p = out.data; (p = strstr(p, "\n\n")); p++) turns++;
        if (turns != 2)
            fail_msg("seed %llu: %d empty lines in \"%s\"", (unsigned long long)seed, turns,
                     out.data);
        str_free(&text);
        str_free(&out);
    }
}

int main(void) {
    json_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_official_tokenizers_answers),
        cmocka_unit_test(every_vocabulary_is_total),
        cmocka_unit_test(bad_vocabularies_are_refused_by_line),
        cmocka_unit_test(utf8_reads_the_same_however_it_is_cut),
        cmocka_unit_test(stops_are_found_however_the_text_is_cut),
        cmocka_unit_test(thoughts_are_split_however_the_text_is_cut),
        cmocka_unit_test(chat_prompts_are_the_official_ones),
        cmocka_unit_test(no_text_begins_a_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
