// The command line as tables: a command describes what it takes; parsing, --help and the errors
// follow from that. A command lives in cmd/NAME.c, which exports `const struct cli_command
// cmd_NAME`, and has a line in the table of main.c.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cli_args;
struct error;
struct str;

enum cli_type {
    CLI_STRING,
    CLI_INT,   // a whole number, decimal, within [min, max]
    CLI_FLOAT, // a finite number within [min, max]
    CLI_FLAG,  // takes no value
};

// One row of what a command takes: an option "--name value", or an operand (given by its place,
// in the order of the table). Values are checked while parsing: what the getters return is valid.
//     {"max-tokens", "N", .help = "how many", .fallback = "100", .type = CLI_INT, .min = 1, .max =
//     9},
//     {"FILE", .help = "the weights", .operand = true, .required = true},
struct cli_option {
    const char *name;        // without dashes: "max-tokens"; operands in capitals: "FILE"
    const char *placeholder; // what --help calls the value: "N"; unused by flags and operands
    const char *help;        // one sentence without a final full stop; long ones are wrapped
    const char *fallback;    // the value when not given, as text; NULL: none
    const char *choices;     // the only values allowed, as "cpu|cuda"; NULL: any
    double min, max;         // bounds of CLI_INT and CLI_FLOAT, inclusive; both 0: no bounds
    enum cli_type type;
    bool operand;
    bool required;
    bool repeat; // may be given more than once; as an operand it must be the last one
};

// The commands under a command (`rwkv data build`) come in a list of their own; such a command has
// neither options nor run. Everything is constant and lives as long as the program.
struct cli_command {
    const char *name;
    const char *summary; // one line for lists, without a final full stop
    const char *help;    // paragraphs that teach, with an example; lines ≤ 80 columns
    const struct cli_option *options;          // ended by a row without a name; NULL: none
    const struct cli_command *const *commands; // ended by NULL; NULL: this command does something

    // 0, or -1 with err filled: the program prints "rwkv NAME: message" and exits with 2 for E_ARG
    // and E_CONFIG, else with 1. Options that exclude each other are checked here, with E_ARG.
    int (*run)(const struct cli_args *args, struct error *err);
};

// The getters take a name of the command's own table (asserted, with its type). Strings belong to
// argv or to the table.
bool cli_given(const struct cli_args *args, const char *name);         // not by its fallback
bool cli_flag(const struct cli_args *args, const char *name);          // --name was there
const char *cli_string(const struct cli_args *args, const char *name); // NULL: not given
int64_t cli_int(const struct cli_args *args, const char *name);        // 0: not given, no fallback
double cli_float(const struct cli_args *args, const char *name);       // 0: not given, no fallback
size_t cli_count(const struct cli_args *args, const char *name);       // how often it was given

// All values of a repeated option, cli_count of them. The array is freed by the caller.
const char **cli_strings(const struct cli_args *args, const char *name);

// Parses the words after the command's name. `args` is to be freed with cli_args_free. The words
// --help and -h parse as nothing else: cli_wants_help says so, and nothing was checked then.
int cli_parse(struct cli_args **args, const struct cli_command *command, int argc,
              char *const argv[], struct error *err);
void cli_args_free(struct cli_args *args); // NULL is fine
bool cli_wants_help(const struct cli_args *args);

// Appends the page that --help prints; `path` is how the command is called: "rwkv data build".
void cli_help(struct str *out, const struct cli_command *command, const char *path);

// The whole program: finds the command (or help, --help, --version), runs it, prints its error.
// Returns the exit code: 0 done, 1 failed, 2 bad usage or configuration.
int cli_main(const struct cli_command *program, const char *version, int argc, char *const argv[]);
