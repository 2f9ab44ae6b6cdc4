// The command line: what is accepted, what is refused and what the refusal says.
#include "../cmd/cli.h"
#include "base/error.h"
#include "base/nearest.h"
#include "base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ran; // how often the command below ran, and what it is to return
static int run_result;
static enum error_code run_code;

static int run(const struct cli_args *args, struct error *err) {
    ran++;
    assert_non_null(cli_string(args, "IN"));
    return run_result ? fail_set(err, run_code, "the world is at fault") : 0;
}

static const struct cli_option options[] = {
    {"IN", .operand = true, .required = true, .help = "the file to read"},
    {"MORE", .operand = true, .repeat = true, .help = "further files"},
    {"max-tokens", "N", "how many tokens to write", "100", .type = CLI_INT, .min = 1, .max = 1e6},
    {"temperature", "T", "0 is greedy", "1.0", .type = CLI_FLOAT, .min = 0, .max = 100},
    {"seed", "N", "any whole number", .type = CLI_INT},
    {"dtype", "TYPE", "storage", "f32", .choices = "f32|bf16"},
    {"prompt", "TEXT", .help = "what to continue"},
    {"set", "KEY=VALUE", "override a key", .repeat = true},
    {"json", .help = "print JSON", .type = CLI_FLAG},
    {0},
};
static const struct cli_command write_command = {
    "write", "write a text", "Example:\n  rwkv write in.txt --max-tokens 5\n", options, NULL, run};

static const struct cli_command *const below_data[] = {&write_command, NULL};
static const struct cli_command data_command = {"data", "tools for data", NULL,
                                                NULL,   below_data,       NULL};
static const struct cli_command *const below_program[] = {&data_command, &write_command, NULL};
static const struct cli_command program = {"rwkv", "a program", NULL, NULL, below_program, NULL};

enum { MAX_WORDS = 16 };

// Words separated by '|'; "" is no word at all.
static int split(char *line, char *words[MAX_WORDS]) {
    int n = 0;
    while (*line) {
        words[n++] = line;
        line += strcspn(line, "|");
        if (*line) *line++ = 0;
        if (!*line && line[-1] == 0 && n < MAX_WORDS) break;
    }
    return n;
}

static int parse(struct cli_args **args, const char *line, struct error *err) {
    static char copy[256]; // the getters point into it
    char *words[MAX_WORDS];
    snprintf(copy, sizeof copy, "%s", line);
    return cli_parse(args, &write_command, split(copy, words), words, err);
}

static void values_come_from_the_line_or_the_table(void **state) {
    (void)state;
    struct error err = {0};
    struct cli_args *args = NULL;
    assert_int_equal(parse(&args,
                           "a|--max-tokens|7|--prompt=a=b|b|--set|x=1|--set=y=2|--json|--seed|-3",
                           &err),
                     0);
    assert_string_equal(cli_string(args, "IN"), "a");
    assert_int_equal(cli_count(args, "MORE"), 1);
    assert_string_equal(cli_string(args, "MORE"), "b");
    assert_int_equal(cli_int(args, "max-tokens"), 7);
    assert_int_equal(cli_int(args, "seed"), -3);
    assert_true(cli_float(args, "temperature") == 1.0);
    assert_false(cli_given(args, "temperature"));
    assert_string_equal(cli_string(args, "prompt"), "a=b");
    assert_string_equal(cli_string(args, "dtype"), "f32");
    assert_int_equal(cli_count(args, "set"), 2);
    const char **sets = cli_strings(args, "set");
    assert_string_equal(sets[0], "x=1");
    assert_string_equal(sets[1], "y=2");
    free(sets);
    assert_true(cli_flag(args, "json"));
    cli_args_free(args);

    assert_int_equal(parse(&args, "--|--json", &err), 0);
    assert_string_equal(cli_string(args, "IN"), "--json");
    assert_false(cli_flag(args, "json"));
    assert_null(cli_string(args, "prompt"));
    cli_args_free(args);
}

static void mistakes_are_named(void **state) {
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"--json", "IN is missing"},
        {"a|--max-token|3", "no option --max-token; did you mean --max-tokens?"},
        {"a|--zzzzzzzz", "no option --zzzzzzzz; --help lists them"},
        {"a|--tmeperature=3", "did you mean --temperature?"},
        {"a|--max-tokens", "--max-tokens wants a value, N"},
        {"a|--prompt|--json", "dashes as --prompt=TEXT"},
        {"a|--max-tokens|x", "--max-tokens is \"x\", wanted a whole number"},
        {"a|--max-tokens|1.5", "wanted a whole number"},
        {"a|--max-tokens=", "wanted a whole number"},
        {"a|--max-tokens|0", "--max-tokens is 0, wanted 1 to 1000000"},
        {"a|--max-tokens|99999999999999999999", "wanted a whole number"},
        {"a|--temperature|nan", "wanted a number"},
        {"a|--temperature|0x1p3", "wanted a number"},
        {"a|--temperature| 1", "wanted a number"},
        {"a|--temperature|1e999", "wanted a number"},
        {"a|--temperature|-0.1", "wanted 0 to 100"},
        {"a|--dtype|f16", "--dtype is \"f16\", wanted one of f32|bf16"},
        {"a|--dtype|f32|--dtype|f32", "--dtype is given twice"},
        {"a|--dtype|f3", "wanted one of"},
        {"a|--json=yes", "--json takes no value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct cli_args *args = NULL;
        if (!parse(&args, cases[i].line, &err) || !strstr(err.msg, cases[i].says))
            fail_msg("\"%s\" gave \"%s\", wanted \"%s\"", cases[i].line, err.msg, cases[i].says);
        assert_null(args);
        assert_int_equal(err.code, E_ARG);
    }
}

static void help_wins_over_mistakes(void **state) {
    (void)state;
    struct error err = {0};
    struct cli_args *args = NULL;
    assert_int_equal(parse(&args, "--nonsense|-h", &err), 0);
    assert_true(cli_wants_help(args));
    cli_args_free(args);
}

static void help_page_has_every_row_within_the_columns(void **state) {
    (void)state;
    struct str page;
    str_init(&page, 1 << 20);
    cli_help(&page, &write_command, "rwkv write");
    assert_non_null(strstr(page.data, "usage: rwkv write IN [MORE...] [options]"));
    assert_non_null(strstr(page.data, "  --max-tokens N   how many tokens to write (default 100)"));
    assert_non_null(strstr(page.data, "storage: f32|bf16 (default f32)"));
    assert_non_null(strstr(page.data, "rwkv write in.txt --max-tokens 5\n"));
    for (const struct cli_option *o = options; o->name; o++)
        assert_non_null(strstr(page.data, o->name));
    for (char *line = page.data; line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
        assert_true(strcspn(line, "\n") <= 82);
    str_free(&page);
}

static int main_with(const char *line) {
    char copy[256], *words[MAX_WORDS];
    snprintf(copy, sizeof copy, "rwkv|%s", line);
    return cli_main(&program, "1.2.3", split(copy, words), words);
}

static void exit_codes_tell_failure_from_misuse(void **state) {
    (void)state;
    // What it prints belongs to the terminal, not to the test's report.
    FILE *sink = freopen("/dev/null", "w", stderr);
    assert_non_null(sink);
    ran = 0;
    assert_int_equal(main_with("write|a"), 0);
    assert_int_equal(main_with("data|write|a"), 0);
    assert_int_equal(ran, 2);
    run_result = -1;
    run_code = E_IO;
    assert_int_equal(main_with("write|a"), 1);
    run_code = E_CONFIG;
    assert_int_equal(main_with("write|a"), 2);
    run_code = E_ARG;
    assert_int_equal(main_with("write|a"), 2);
    run_result = 0;
    ran = 0;
    static const struct {
        const char *line;
        int code;
    } cases[] = {
        {"", 2},
        {"help", 0},
        {"--help", 0},
        {"--version", 0},
        {"help|write", 0},
        {"write|-h", 0},
        {"data|--help", 0},
        {"data", 2},
        {"help|data|write", 0},
        {"wriet", 2},
        {"help|wriet", 2},
        {"data|x", 2},
        {"--verbose", 2},
        {"write", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (main_with(cases[i].line) != cases[i].code)
            fail_msg("\"%s\" did not exit with %d", cases[i].line, cases[i].code);
    }
    assert_int_equal(ran, 0);
}

static void nearest_name_is_within_a_third(void **state) {
    (void)state;
    static const struct {
        const char *typed, *name;
        size_t distance; // 99: not offered
    } cases[] = {
        {"context_length", "context_length", 0},
        {"contxt_length", "context_length", 1},
        {"ocntext_length", "context_length", 1},
        {"context_len", "context_length", 3},
        {"tarin", "train", 1},
        {"x", "y", 99},
        {"", "a", 99},
        {"abc", "xyz", 99},
        {"ab", "abcd", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nearest near = {.typed = cases[i].typed};
        nearest_offer(&near, cases[i].name);
        const size_t distance = near.best ? near.distance : 99;
        if (distance != cases[i].distance)
            fail_msg("%s, %s: %zu, wanted %zu", cases[i].typed, cases[i].name, distance,
                     cases[i].distance);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_from_the_line_or_the_table),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(help_wins_over_mistakes),
        cmocka_unit_test(help_page_has_every_row_within_the_columns),
        cmocka_unit_test(exit_codes_tell_failure_from_misuse),
        cmocka_unit_test(nearest_name_is_within_a_third),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
