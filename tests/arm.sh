#!/bin/bash
# The CPU backend on 64-bit ARM: compiled by a cross compiler, judged by check_ops under qemu. Needs
# gcc-aarch64-linux-gnu and qemu-user; nothing else of the program is built. `tests/arm.sh [words]`
# passes words on to check_ops.
set -eu
cd "$(dirname "$0")/.."
CROSS=${CROSS:-aarch64-linux-gnu-gcc} QEMU=${QEMU:-qemu-aarch64}
for tool in "$CROSS" "$QEMU"; do
    command -v "$tool" >/dev/null || { echo "SKIP arm: $tool is missing"; exit 77; }
done
build=${BUILD:-build}-arm
rm -rf "$build" && mkdir -p "$build"
flags="-Isrc -D_GNU_SOURCE -std=c11 -O2 -Wall -Wextra -Wshadow -Werror -fno-strict-overflow -pthread"
kernel_flags="-O3 -ffp-contract=fast -fno-math-errno -DKERNEL_LEVEL=v1"
compile() { # source object flags…
    source=$1 object=$build/$2
    shift 2
    # shellcheck disable=SC2086
    $CROSS $flags "$@" -c -o "$object.o" "$source"
}
for f in src/backend/*.c src/backend/cpu/*.c src/backend/cpu/kernels/pick.c tests/check_ops*.c \
    src/base/{arena,clock,error,log,mem,pool,rng,str,json_write,unicode}.c; do
    [ -e "$f" ] && compile "$f" "$(echo "$f" | tr / _)"
done
for real in f32 f64; do compile src/backend/ref/ref.c "ref_$real" -ffp-contract=off -DREF_$real; done
for f in gemm integer pack rows wkv7; do
    # shellcheck disable=SC2086
    compile src/backend/cpu/kernels/$f.c "kernel_$f" $kernel_flags
done
$CROSS -static -pthread -o "$build/check_ops" "$build"/*.o -lm
file "$build/check_ops" 2>/dev/null | cut -c1-80 || true
exec $QEMU "$build/check_ops" "$@"
