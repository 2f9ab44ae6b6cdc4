#!/bin/sh
# Installs the Debian packages that are missing. Usage: ./setup.sh demo|dev
#   demo  what `make` and `make demo` need
#   dev   that, and what `make test`, `make check`, `make fuzz`, `make fmt` and `make vocab` need
set -eu

demo="gcc make libc6-dev libjansson-dev libxxhash-dev bible-kjv bible-kjv-text"
dev="$demo git libcmocka-dev clang llvm clang-format libclang-rt-14-dev strace zstd
     golang-github-burntsushi-toml-dev python3 python3-venv"

case "${1-}" in
demo) wanted=$demo ;;
dev) wanted=$dev ;;
*)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086
    echo "setup.sh: this is not a Debian system; install what these packages hold:" $wanted >&2
    exit 1
fi

missing=
for package in $wanted; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=
    [ "$state" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "setup.sh $1: nothing is missing"
    exit 0
fi

as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup.sh: neither root nor sudo; ask for:  apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "setup.sh $1: apt-get update, then apt-get install$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086  # the lists are words on purpose
if ! { $as_root apt-get -q update &&
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "setup.sh: apt-get failed; its last lines are above" >&2
    exit 1
fi
echo "setup.sh $1: done"
