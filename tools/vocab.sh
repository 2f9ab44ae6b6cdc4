#!/bin/sh
# `make vocab`: puts the World vocabulary into assets/, out of the PyPI wheel `rwkv`. It is RWKV's,
# not ours, so it is fetched and never committed. A copy with CRLF line ends is in circulation: the
# checksum is that of the text with LF.
set -eu
cd "$(dirname "$0")/.."
name=rwkv_vocab_v20230424.txt
sha256=e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89

matches() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = $sha256 ]; }

if [ -f assets/$name ] && matches assets/$name; then
    echo "assets/$name is there and right"
    exit 0
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if ! python3 -m venv "$tmp/venv" >"$tmp/log" 2>&1; then
    cat "$tmp/log" >&2
    echo "vocab: needs python3 with venv: ./setup.sh dev" >&2
    exit 1
fi
echo "vocab: downloading the wheel rwkv from PyPI"
"$tmp/venv/bin/python" -m pip -q --disable-pip-version-check download --no-deps --only-binary :all: \
    -d "$tmp" rwkv
"$tmp/venv/bin/python" -m zipfile -e "$tmp"/rwkv-*.whl "$tmp/wheel"
mkdir -p assets
tr -d '\r' <"$(find "$tmp/wheel" -name $name | head -n 1)" >"$tmp/$name"
if ! matches "$tmp/$name"; then
    echo "vocab: the wheel's $name has sha256 $(sha256sum "$tmp/$name" | cut -d' ' -f1), expected $sha256" >&2
    exit 1
fi
cp "$tmp/$name" assets/$name.tmp
mv assets/$name.tmp assets/$name
echo "vocab: assets/$name, sha256 as expected"
