// How a function tells its caller what went wrong in the world (a file, a request, a device).
// Our own mistakes are asserts; running out of host memory ends the program plainly.
#pragma once

enum error_code {
    E_NONE = 0,
    E_IO,          // the operating system refused
    E_FORMAT,      // bytes from outside don't say what they must
    E_LIMIT,       // larger than its ceiling
    E_ARG,         // a bad command line or parameter
    E_CONFIG,      // a bad configuration file
    E_UNSUPPORTED, // understood, but not offered
    E_DEVICE,      // a backend or its device failed
    E_CANCELED,    // somebody asked us to stop
};

// Owned by the caller, on its stack; `msg` is one line without a final full stop or newline.
struct error {
    enum error_code code;
    char msg[1000];
};

// Fills `err` (which may be NULL) and returns -1, so that `return fail(err, …);` reads as it acts.
#define fail(...) fail_minus_one(fail_set(__VA_ARGS__))
int fail_set(struct error *err, enum error_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

// Puts "context: " in front of the message; each caller adds what only it knows, once. Returns -1.
#define fail_in(...) fail_minus_one(fail_context(__VA_ARGS__))
int fail_context(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// The compiler sees the -1, hence that nothing after a failed call is read uninitialised.
static inline int fail_minus_one(int rc) {
    (void)rc;
    return -1;
}

// The program cannot go on and has nothing to save: prints one line on stderr and exits with 1.
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
