// check_ops [compare|laws|grad|sampler|bench|support] [OP] [--backend NAME] [--threads N] [--json]
//           [--verbose]
// Without a verb: everything that judges, which is what the tests run; "compare" means the same.
#include "check_ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tally_one(struct tally *t, bool ok, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    t->passed += ok;
    t->failed += !ok;
    if (!ok || t->verbose) {
        printf(ok ? "ok   " : "FAIL ");
        vprintf(fmt, args);
        printf("\n");
    }
    va_end(args);
}

int print_support(const char *backend) {
    printf("%-16s", "op");
    for (const char *const *b = backend_names(); *b; b++)
        if (!backend || strcmp(*b, backend) == 0) printf("%8s", *b);
    printf("\n");
    for (int i = 0; op_name(i); i++) {
        printf("%-16s", op_name(i));
        for (const char *const *b = backend_names(); *b; b++) {
            if (backend && strcmp(*b, backend) != 0) continue;
            struct backend *be = open_backend(*b, NULL, 1);
            void (*f)(void);
            memcpy(&f, (const char *)be->ops + (size_t)i * sizeof f, sizeof f);
            printf("%8s", f ? "yes" : "-");
            backend_destroy(be);
        }
        printf("\n");
    }
    return 0;
}

int main(int argc, char **argv) {
    static const char *const verbs[] = {"compare", "laws", "grad", "sampler", "bench", "support"};
    enum { ALL, LAWS, GRAD, SAMPLE, BENCH, SUPPORT } verb = ALL;
    struct tally t = {0};
    bool json = false;
    int threads = 1; // of a bench
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i] + (strncmp(argv[i], "--", 2) == 0 ? 2 : 0);
        bool known = true;
        if (strcmp(word, "json") == 0)
            json = true;
        else if (strcmp(word, "verbose") == 0)
            t.verbose = true;
        else if (strcmp(word, "threads") == 0 && i + 1 < argc)
            threads = atoi(argv[++i]);
        else if (strcmp(word, "backend") == 0 && i + 1 < argc)
            t.backend = argv[++i];
        else
            known = false;
        for (int v = 0; v < 6 && !known; v++)
            if (strcmp(word, verbs[v]) == 0) verb = v, known = true;
        if (!known) t.only = word;
    }
    if (verb == SUPPORT) return print_support(t.only);
    if (verb == BENCH) return bench_ops(t.only, t.backend ? t.backend : "cpu", threads, json);
    if (verb == ALL) check_compare(&t);
    if (verb == ALL || verb == LAWS) check_laws(&t);
    if (verb == ALL || verb == GRAD) check_grad(&t);
    if (verb == ALL || verb == SAMPLE) check_sample(&t);
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
