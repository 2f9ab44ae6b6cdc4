#include "cli.h"

#include "base/error.h"
#include "base/mem.h"
#include "base/nearest.h"
#include "base/str.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HELP = 1 << 20, HELP_COLUMNS = 80, MAX_NAME_COLUMNS = 26 };

struct given {
    const struct cli_option *option;
    const char *text; // NULL for a flag
};

struct cli_args {
    const struct cli_command *command;
    bool wants_help;
    size_t count;
    struct given given[];
};

static const struct cli_option no_options[1];

static const struct cli_option *options_of(const struct cli_command *command) {
    return command->options ? command->options : no_options;
}

// Values

static int check_number(const struct cli_option *o, const char *text, struct error *err) {
    char *end = NULL;
    errno = 0;
    const double value = o->type == CLI_INT ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    const bool whole = o->type == CLI_INT;
    // strtod also reads hexadecimal, inf and nan, and both skip white space.
    const size_t plain = strspn(text, whole ? "+-0123456789" : "+-.0123456789eE");
    if (end == text || *end || text[plain] || (errno && (whole || fabs(value) > 1)))
        return fail(err, E_ARG, "%s%s is \"%s\", wanted a %s", o->operand ? "" : "--", o->name,
                    text, whole ? "whole number" : "number");
    const bool bounded = o->min != 0 || o->max != 0;
    if (bounded && (value < o->min || value > o->max))
        return fail(err, E_ARG, "%s%s is %s, wanted %.12g to %.12g", o->operand ? "" : "--",
                    o->name, text, o->min, o->max);
    return 0;
}

static int check_value(const struct cli_option *o, const char *text, struct error *err) {
    if (o->type == CLI_INT || o->type == CLI_FLOAT) return check_number(o, text, err);
    if (o->choices && !str_among(o->choices, text))
        return fail(err, E_ARG, "%s%s is \"%s\", wanted one of %s", o->operand ? "" : "--", o->name,
                    text, o->choices);
    return 0;
}

// Parsing

static const struct cli_option *find_option(const struct cli_command *command, const char *name,
                                            size_t len) {
    for (const struct cli_option *o = options_of(command); o->name; o++) {
        if (!o->operand && strlen(o->name) == len && !memcmp(o->name, name, len)) return o;
    }
    return NULL;
}

static int fail_unknown_option(const struct cli_command *command, const char *name, size_t len,
                               struct error *err) {
    char typed[64];
    snprintf(typed, sizeof typed, "%.*s", (int)(len < 63 ? len : 63), name);
    struct nearest near = {.typed = typed};
    for (const struct cli_option *o = options_of(command); o->name; o++) {
        if (!o->operand) nearest_offer(&near, o->name);
    }
    nearest_offer(&near, "help");
    if (near.best) return fail(err, E_ARG, "no option --%s; did you mean --%s?", typed, near.best);
    return fail(err, E_ARG, "no option --%s; --help lists them", typed);
}

static int add(struct cli_args *args, const struct cli_option *o, const char *text,
               struct error *err) {
    if (text && check_value(o, text, err)) return -1;
    if (!o->repeat && cli_given(args, o->name))
        return fail(err, E_ARG, "--%s is given twice", o->name);
    args->given[args->count++] = (struct given){o, text};
    return 0;
}

static int add_operand(struct cli_args *args, const char *text, struct error *err) {
    for (const struct cli_option *o = options_of(args->command); o->name; o++) {
        if (o->operand && (o->repeat || !cli_given(args, o->name))) return add(args, o, text, err);
    }
    return fail(err, E_ARG, "\"%s\" is one word too many; quote a value that has spaces", text);
}

// `word` is "--name" or "--name=value"; `next` is the word behind it, or NULL.
static int add_option(struct cli_args *args, const char *word, const char *next, bool *used_next,
                      struct error *err) {
    const char *name = word + 2;
    const size_t len = strcspn(name, "=");
    const char *text = name[len] == '=' ? name + len + 1 : NULL;
    const struct cli_option *o = find_option(args->command, name, len);
    if (!o) return fail_unknown_option(args->command, name, len, err);
    if (o->type == CLI_FLAG) {
        if (text) return fail(err, E_ARG, "--%s takes no value, got \"%s\"", o->name, text);
        return add(args, o, NULL, err);
    }
    if (text) return add(args, o, text, err);
    // A forgotten value must not swallow the option behind it.
    if (!next) return fail(err, E_ARG, "--%s wants a value, %s", o->name, o->placeholder);
    if (!strncmp(next, "--", 2))
        return fail(err, E_ARG, "--%s wants a value; one that begins with dashes as --%s=%s",
                    o->name, o->name, o->placeholder);
    *used_next = true;
    return add(args, o, next, err);
}

static int check_required(const struct cli_args *args, struct error *err) {
    for (const struct cli_option *o = options_of(args->command); o->name; o++) {
        if (!o->required || cli_given(args, o->name)) continue;
        if (o->operand) return fail(err, E_ARG, "%s is missing: %s", o->name, o->help);
        return fail(err, E_ARG, "--%s %s is missing: %s", o->name, o->placeholder, o->help);
    }
    return 0;
}

int cli_parse(struct cli_args **out, const struct cli_command *command, int argc,
              char *const argv[], struct error *err) {
    struct cli_args *args = mem_zero(1, sizeof *args + (size_t)argc * sizeof args->given[0]);
    args->command = command;
    *out = args;
    bool only_operands = false;
    for (int i = 0; i < argc && !args->wants_help; i++) {
        if (!strcmp(argv[i], "--")) break;
        args->wants_help = !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");
    }
    if (args->wants_help) return 0;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        bool used_next = false;
        int rc;
        if (!only_operands && !strcmp(word, "--")) {
            only_operands = true;
            continue;
        }
        if (!only_operands && !strncmp(word, "--", 2))
            rc = add_option(args, word, i + 1 < argc ? argv[i + 1] : NULL, &used_next, err);
        else
            rc = add_operand(args, word, err);
        if (rc) goto failed;
        i += used_next;
    }
    if (!check_required(args, err)) return 0;
failed:
    cli_args_free(args);
    *out = NULL;
    return -1;
}

void cli_args_free(struct cli_args *args) {
    free(args);
}

bool cli_wants_help(const struct cli_args *args) {
    return args->wants_help;
}

// Getters

size_t cli_count(const struct cli_args *args, const char *name) {
    size_t count = 0;
    for (size_t i = 0; i < args->count; i++) count += !strcmp(args->given[i].option->name, name);
    return count;
}

bool cli_given(const struct cli_args *args, const char *name) {
    return cli_count(args, name) > 0;
}

static const struct cli_option *row_of(const struct cli_args *args, const char *name) {
    const struct cli_option *o = options_of(args->command);
    while (o->name && strcmp(o->name, name)) o++;
    assert(o->name && "the command's table has no such option");
    return o;
}

const char *cli_string(const struct cli_args *args, const char *name) {
    const struct cli_option *o = row_of(args, name);
    for (size_t i = 0; i < args->count; i++) {
        if (args->given[i].option == o) return args->given[i].text;
    }
    return o->fallback;
}

const char **cli_strings(const struct cli_args *args, const char *name) {
    const struct cli_option *o = row_of(args, name);
    const char **all = mem_zero(args->count + 1, sizeof *all);
    size_t count = 0;
    for (size_t i = 0; i < args->count; i++) {
        if (args->given[i].option == o) all[count++] = args->given[i].text;
    }
    return all;
}

bool cli_flag(const struct cli_args *args, const char *name) {
    assert(row_of(args, name)->type == CLI_FLAG);
    return cli_given(args, name);
}

int64_t cli_int(const struct cli_args *args, const char *name) {
    assert(row_of(args, name)->type == CLI_INT);
    const char *text = cli_string(args, name);
    return text ? strtoll(text, NULL, 10) : 0;
}

double cli_float(const struct cli_args *args, const char *name) {
    assert(row_of(args, name)->type == CLI_FLOAT);
    const char *text = cli_string(args, name);
    return text ? strtod(text, NULL) : 0;
}

// Help. Its text is our own and far below the ceiling, so appends are not checked.

// Wraps at the last column that fits, and indents every line after the first.
static void put_wrapped(struct str *out, const char *text, size_t indent) {
    size_t column = indent;
    while (*text) {
        const size_t len = strcspn(text, " \n");
        const bool fits = column == indent || column + 1 + len <= HELP_COLUMNS;
        if (!fits)
            str_printf(out, "\n%*s", (int)indent, "");
        else if (column > indent)
            str_putc(out, ' ');
        column = fits ? column + (column > indent) + len : indent + len;
        str_append(out, text, len);
        text += len;
        while (*text == ' ' || *text == '\n') text++;
    }
    str_putc(out, '\n');
}

// "  name   what it is", the second column at `width`; a long name gets a line for itself.
static void put_row(struct str *out, const char *name, const char *text, size_t width) {
    str_printf(out, "  %-*s", (int)width, name);
    if (strlen(name) > width) str_printf(out, "\n  %*s", (int)width, "");
    str_puts(out, "  ");
    put_wrapped(out, text, width + 4);
}

static void option_label(char *out, size_t size, const struct cli_option *o) {
    if (o->operand)
        snprintf(out, size, "%s%s", o->name, o->repeat ? "..." : "");
    else if (o->type == CLI_FLAG)
        snprintf(out, size, "--%s", o->name);
    else
        snprintf(out, size, "--%s %s", o->name, o->placeholder);
}

static void put_usage(struct str *out, const struct cli_command *command, const char *path) {
    str_printf(out, "usage: %s", path);
    bool has_options = false;
    for (const struct cli_option *o = options_of(command); o->name; o++) {
        char label[128];
        option_label(label, sizeof label, o);
        if (o->required)
            str_printf(out, " %s", label);
        else if (o->operand)
            str_printf(out, " [%s]", label);
        else
            has_options = true;
    }
    str_puts(out, command->commands ? " COMMAND ...\n" : has_options ? " [options]\n" : "\n");
}

static void put_options(struct str *out, const struct cli_command *command) {
    size_t width = strlen("--help");
    char label[128];
    for (const struct cli_option *o = options_of(command); o->name; o++) {
        option_label(label, sizeof label, o);
        const size_t len = strlen(label);
        if (len > width && len <= MAX_NAME_COLUMNS) width = len;
    }
    str_puts(out, "\n");
    for (const struct cli_option *o = options_of(command); o->name; o++) {
        char text[1000];
        size_t n = (size_t)snprintf(text, sizeof text, "%s", o->help);
        if (o->choices && n < sizeof text)
            n += (size_t)snprintf(text + n, sizeof text - n, ": %s", o->choices);
        if (o->fallback && n < sizeof text)
            n += (size_t)snprintf(text + n, sizeof text - n, " (default %s)", o->fallback);
        if (o->repeat && n < sizeof text)
            snprintf(text + n, sizeof text - n, " (may be given several times)");
        option_label(label, sizeof label, o);
        put_row(out, label, text, width);
    }
    put_row(out, "--help", "print this page", width);
}

static void put_commands(struct str *out, const struct cli_command *command) {
    size_t width = 0;
    for (size_t i = 0; command->commands[i]; i++) {
        const size_t len = strlen(command->commands[i]->name);
        width = len > width ? len : width;
    }
    str_puts(out, "\nCommands\n");
    for (size_t i = 0; command->commands[i]; i++)
        put_row(out, command->commands[i]->name, command->commands[i]->summary, width);
}

void cli_help(struct str *out, const struct cli_command *command, const char *path) {
    str_printf(out, "%s: %s\n\n", path, command->summary);
    put_usage(out, command, path);
    if (command->commands)
        put_commands(out, command);
    else
        put_options(out, command);
    if (!command->help) return;
    str_printf(out, "\n%s", command->help);
    if (out->data[out->len - 1] != '\n') str_putc(out, '\n');
}

// The program

static const struct cli_command *find_command(const struct cli_command *group, const char *name) {
    for (size_t i = 0; group->commands && group->commands[i]; i++) {
        if (!strcmp(group->commands[i]->name, name)) return group->commands[i];
    }
    return NULL;
}

static int fail_unknown_command(const struct cli_command *group, const char *path, const char *name,
                                struct error *err) {
    struct nearest near = {.typed = name};
    for (size_t i = 0; group->commands[i]; i++) nearest_offer(&near, group->commands[i]->name);
    if (near.best)
        return fail(err, E_ARG, "no command \"%s\"; did you mean \"%s %s\"?", name, path,
                    near.best);
    return fail(err, E_ARG, "no command \"%s\"; \"%s --help\" lists them", name, path);
}

static void print_help(const struct cli_command *command, const char *path) {
    struct str page;
    str_init(&page, MAX_HELP);
    cli_help(&page, command, path);
    fwrite(page.data, 1, page.len, stdout);
    str_free(&page);
}

static int report(const char *path, const struct error *err) {
    fflush(stdout);
    const bool usage = err->code == E_ARG;
    fprintf(stderr, "%s: %s\n", path, err->msg);
    if (usage) fprintf(stderr, "\"%s --help\" explains the usage\n", path);
    return usage || err->code == E_CONFIG ? 2 : 1;
}

static int run_command(const struct cli_command *command, const char *path, int argc,
                       char *const argv[]) {
    struct error err = {0};
    struct cli_args *args = NULL;
    int rc = cli_parse(&args, command, argc, argv, &err);
    if (rc) return report(path, &err);
    if (args->wants_help)
        print_help(command, path);
    else
        rc = command->run(args, &err);
    cli_args_free(args);
    // What was printed may still sit in the buffer: a full disk shows now or never.
    if (!rc && (fflush(stdout) || ferror(stdout)))
        rc = fail(&err, E_IO, "standard output: %s", strerror(errno));
    return rc ? report(path, &err) : 0;
}

int cli_main(const struct cli_command *program, const char *version, int argc, char *const argv[]) {
    char path[128];
    snprintf(path, sizeof path, "%s", program->name);
    int at = 1;
    if (at < argc && (!strcmp(argv[at], "--version") || !strcmp(argv[at], "-V"))) {
        printf("%s %s\n", program->name, version);
        return 0;
    }
    const bool asks_help = at < argc && !strcmp(argv[at], "help");
    at += asks_help;
    const struct cli_command *command = program;
    for (; at < argc && command->commands && argv[at][0] != '-'; at++) {
        const struct cli_command *sub = find_command(command, argv[at]);
        struct error err = {0};
        if (!sub) {
            fail_unknown_command(command, path, argv[at], &err);
            return report(path, &err);
        }
        command = sub;
        const size_t len = strlen(path);
        snprintf(path + len, sizeof path - len, " %s", command->name);
    }
    if (!asks_help && !command->commands) return run_command(command, path, argc - at, argv + at);
    const bool bare = at >= argc && !asks_help;
    if (bare || asks_help || !strcmp(argv[at], "--help") || !strcmp(argv[at], "-h")) {
        print_help(command, path);
        return bare ? 2 : 0;
    }
    struct error err = {0};
    const char *name = argv[at] + strspn(argv[at], "-");
    fail_unknown_option(command, name, strlen(name), &err);
    return report(path, &err);
}
