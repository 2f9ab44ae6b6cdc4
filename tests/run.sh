#!/bin/bash
# Runs every test program of $BUILD and every script of tests/{cli,http,faults}, and ends with
# the line "N passed, N failed, N skipped". Usage: [BUILD=dir] tests/run.sh [NAME…]
# No name: all. -NAME: all but this one.
#
# A cmocka program counts its tests. Any other counts by a line "N passed, N failed[, N skipped]" of
# its own, else as one test by its exit code (77: skipped). What a program prints is shown when it
# fails, and its lines that begin with SKIP always: a missing input is never silent.
# CHECK_OPS_BACKEND: check_ops judges this backend alone.
set -u
cd "$(dirname "$0")/.." || exit 1
export BUILD=${BUILD:-build}
limit_s=${TEST_LIMIT_S:-300}
passed=0 failed=0 skipped=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# The last number that the sed expression finds in the output, 0 when there is none.
number() { sed -nE "s/$1/\\1/p" "$out" | tail -n 1 | grep . || echo 0; }

# How many tests a cmocka program marked so. Its closing figures are not read: it prints them to
# stderr, which a test of messages may have turned away; a failed test's name comes twice.
marked() { grep -aF "[$1]" "$out" | grep -av 'test(s)' | sort -u | grep -c . || true; }

run() { # name command…
    local name=$1 start=$EPOCHREALTIME rc=0 p f s verdict=ok
    shift
    # The outer redirection hides what bash says of a crash: the verdict says it.
    { timeout -k 5 "$limit_s" "$@" >"$out" 2>&1 </dev/null; } 2>/dev/null || rc=$?
    if grep -aq '^\[=*\].*test(s) run\.' "$out"; then
        p=$(marked '       OK ') f=$(marked '  FAILED  ') s=$(marked '  SKIPPED ')
    elif grep -aqE '^[0-9]+ passed, [0-9]+ failed' "$out"; then
        p=$(number '^([0-9]+) passed, [0-9]+ failed.*')
        f=$(number '^[0-9]+ passed, ([0-9]+) failed.*')
        s=$(number '^[0-9]+ passed, [0-9]+ failed, ([0-9]+) skipped.*')
    else
        p=$((rc == 0)) f=0 s=$((rc == 77))
    fi
    # A crash or a sanitizer's report after the last test is a failure that no count shows.
    [ $rc = 0 ] || [ $rc = 77 ] || [ "$f" -gt 0 ] || f=1
    [ "$f" = 0 ] || verdict=FAIL
    [ "$verdict$p" != ok0 ] || verdict=skip
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-4s %-28s %5d passed' "$verdict" "$name" "$p"
    [ "$f" = 0 ] || printf ', %d failed (exit %d%s)' "$f" $rc "$([ $rc = 124 ] && echo ", over $limit_s s")"
    [ "$s" = 0 ] || printf ', %d skipped' "$s"
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "  %.2f s\n", b - a }'
    if [ $verdict = FAIL ]; then sed 's/^/     | /' "$out"; else grep -a '^SKIP' "$out" | sort -u; fi
}

wanted() { # name: whether it was asked for
    local name=$1 want
    shift
    [ $# = 0 ] && return 0
    for want; do [ "$want" = "$name" ] && return 0; done
    [ "${1#-}" != "$1" ] && [ "$1" != "-$name" ]
}

for source in tests/test_*.c; do
    name=$(basename "$source" .c)
    wanted "$name" "$@" && run "$name" "$BUILD/tests/$name"
done
if [ -x "$BUILD/tests/check_ops" ] && wanted check_ops "$@"; then
    run check_ops "$BUILD/tests/check_ops" compare ${CHECK_OPS_BACKEND:+--backend "$CHECK_OPS_BACKEND"}
fi
for script in tests/cli/*.sh tests/http/*.sh tests/http/conformance.py tests/http/page.py tests/faults/*.py; do
    [ -e "$script" ] || continue
    name=${script#tests/}
    name=${name%.*}
    case $script in
    *.sh) wanted "$name" "$@" && run "$name" bash "$script" ;;
    *.py) wanted "$name" "$@" && run "$name" python3 "$script" ;;
    esac
done

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $((passed + skipped)) -gt 0 ]
