#!/bin/bash
# Builds each fuzz target and runs it for FUZZ_SECONDS (60), two at a time. Usage: run.sh [NAME…]
# Seeds come from tests/fuzz/corpus/NAME, what is found goes to $BUILD/corpus/NAME. A crash, a hang
# or a leak fails the run, and its input stays in $BUILD/crash.
set -u
cd "$(dirname "$0")/../.." || exit 1
export BUILD=${FUZZ_BUILD:-build-fuzz} FUZZ_SECONDS=${FUZZ_SECONDS:-60}
CLANG=${CLANG:-clang}

[ $# -gt 0 ] || set -- $(basename -s .c -a tests/fuzz/fuzz_*.c)
if [ "$1" = 'fuzz_*' ]; then
    echo "fuzz: there is no target under tests/fuzz"
    exit 0
fi
if ! command -v "$CLANG" >/dev/null; then
    echo "fuzz: libFuzzer comes with clang, which is missing: ./setup.sh dev" >&2
    exit 1
fi
make -s -j2 CC="$CLANG" BUILD="$BUILD" SAN=fuzzer-no-link,address,undefined OPT='-O1 -g' WERROR=1 \
    "${@/#/$BUILD/fuzz/}" || exit 1

fuzz_one() { # fuzz_NAME
    local name=${1#fuzz_} log=$BUILD/fuzz/$1.log
    local found=$BUILD/corpus/$name seeds=tests/fuzz/corpus/$name
    mkdir -p "$found" "$BUILD/crash"
    [ -d "$seeds" ] || seeds=
    # shellcheck disable=SC2086  # no seeds is no argument
    if "$BUILD/fuzz/$1" -max_total_time="$FUZZ_SECONDS" -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$BUILD/crash/$name-" "$found" $seeds \
        >"$log" 2>&1 </dev/null; then
        printf 'ok   %-20s %9d executions in %d s\n' "$1" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$FUZZ_SECONDS"
    else
        printf 'FAIL %-20s\n' "$1"
        grep -vE '^#[0-9]+.*(NEW|REDUCE|pulse)' "$log" | tail -n 40 | sed 's/^/     | /'
        return 1
    fi
}
export -f fuzz_one

if printf '%s\n' "$@" | xargs -P 2 -I NAME bash -c 'fuzz_one NAME'; then
    echo "fuzz: $# targets, none failed"
else
    echo "fuzz: failed; the inputs are in $BUILD/crash" >&2
    exit 1
fi
