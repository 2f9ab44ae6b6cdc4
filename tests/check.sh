#!/bin/bash
# `make check`: all tests under ASan and UBSan, those that start threads under TSan, the layering.
set -eu
cd "$(dirname "$0")/.."
threaded=$(grep -lE '"(base/pool|data/loader|train/trainer|infer/engine|serve/server)\.h"|<pthread\.h>' tests/test_*.c |
    xargs -r -n 1 basename -s .c)

# TSan wants its shadow at fixed places, which address randomisation on newer kernels takes.
no_aslr=
setarch -R true 2>/dev/null && no_aslr="setarch -R"

tools/layering.sh

# Instrumented code confuses gcc's warnings; the plain builds with gcc and clang are their judge.
# There are two lanes, for both are one thread most of the time; check_ops, a third of what ASan
# takes, goes in TSan's. The reference in f32 is not judged again: in double, from the same source,
# it says what is right.
asan_log=$(mktemp)
under_asan() { # names for tests/run.sh
    TEST_LIMIT_S=900 CHECK_OPS_BACKEND=cpu \
        make -s -j2 BUILD=build-san SAN=address,undefined OPT='-O1 -g' WARN= run-tests NAMES="$*"
}
under_asan -check_ops >"$asan_log" 2>&1 &
asan=$!
trap 'kill $asan 2>/dev/null || true; rm -f "$asan_log"' EXIT

served="http/conformance faults/runtime"
echo "== TSan:" $threaded $served
# shellcheck disable=SC2086  # the lists are words on purpose
{
    make -s -j2 BUILD=build-tsan SAN=thread OPT='-O1 -g' WARN= all \
        $(printf 'build-tsan/tests/%s ' $threaded)
    BUILD=build-tsan TSAN_OPTIONS=halt_on_error=1 $no_aslr tests/run.sh $threaded $served
}

echo "== ASan and UBSan: check_ops"
under_asan check_ops
echo "== ASan and UBSan: the rest"
wait $asan || { cat "$asan_log" && exit 1; }
cat "$asan_log"
