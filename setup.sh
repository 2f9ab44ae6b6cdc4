#!/bin/sh
# Installs the Debian packages that are missing. Usage: ./setup.sh demo|test|dev
#   demo  what `make` and `make demo` need
#   test  that, and what `make test` needs
#   dev   that, and what `make check`, `make fuzz`, `make fmt`, `make vocab` and .ci/run need
set -eu

demo="gcc make libc6-dev libjansson-dev libxxhash-dev libuv1-dev curl bible-kjv
      bible-kjv-text"
test="$demo pkg-config libcmocka-dev strace zstd golang-github-burntsushi-toml-dev python3
      python3-venv chromium"
dev="$test git clang g++ llvm clang-format libclang-rt-14-dev gcc-aarch64-linux-gnu
     libc6-dev-arm64-cross qemu-user"

case "${1-}" in
demo) wanted=$demo ;;
test) wanted=$test ;;
dev) wanted=$dev ;;
*)
    sed -n '2,5s/^# //p' "$0" >&2
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

# llhttp's C sources; installing their package would bring Node.js along, so it is only unpacked.
llhttp=deps/llhttp
cd "$(dirname "$0")"
if pkg-config --exists libllhttp 2>/dev/null || [ -e $llhttp/llhttp.c ]; then
    llhttp=
fi

if [ -z "$missing$llhttp" ]; then
    echo "setup.sh $1: nothing is missing"
    exit 0
fi

log=$(mktemp)
trap 'rm -rf "$log" deps/unpack' EXIT

stop() { # what failed
    tail -n 30 "$log" >&2
    echo "setup.sh: $1 failed; its last lines are above" >&2
    exit 1
}

as_root=
if [ "$(id -u)" != 0 ]; then
    if [ -n "$missing" ] && ! command -v sudo >/dev/null; then
        echo "setup.sh: neither root nor sudo; ask for:  apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
if [ -n "$missing" ]; then
    echo "setup.sh $1: apt-get update, then apt-get install$missing"
    # shellcheck disable=SC2086  # the lists are words on purpose
    { $as_root apt-get -q update &&
        $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1 || stop apt-get
fi
if [ -n "$llhttp" ]; then
    echo "setup.sh $1: llhttp, out of Debian's package node-llhttp, into $llhttp"
    mkdir -p deps/unpack $llhttp
    download() { (cd deps/unpack && apt-get -q download node-llhttp) >"$log" 2>&1; }
    # Lists that are missing or old name no file to download.
    download || { $as_root apt-get -q update >"$log" 2>&1 && download; } || stop "apt-get download"
    dpkg -x deps/unpack/node-llhttp_*.deb deps/unpack/tree >"$log" 2>&1 || stop "dpkg -x"
    for file in usr/share/include/llhttp/llhttp.h usr/share/llhttp/api.c \
        usr/share/llhttp/http.c usr/share/llhttp/llhttp.c; do
        cp deps/unpack/tree/$file $llhttp/ || stop "unpacking node-llhttp"
    done
fi
echo "setup.sh $1: done"
