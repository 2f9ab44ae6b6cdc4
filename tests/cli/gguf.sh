#!/bin/bash
# The same GGUF file here and in llama.cpp: logits and greedy tokens. PYTHON names a python3 that has
# llama_cpp (PyPI llama-cpp-python).
set -u
rwkv=${BUILD:-build}/rwkv
python=${PYTHON:-python3}
shared=${RWKV_SHARED:-../shared}

skip() {
    echo "SKIP gguf: $1"
    exit 77
}
"$python" -c 'import llama_cpp, numpy' 2>/dev/null || skip "$python has no llama_cpp"
[ -d "$shared" ] || skip "$shared is absent"

dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
passed=0 failed=0
agree() { # name weights options…
    local name=$1 in=$2
    shift 2
    if "$rwkv" convert "$in" "$dir/x.gguf" --dtype f32 "$@" >/dev/null &&
        "$python" tools/bench/gguf_agree.py "$dir/x.gguf" --rwkv "$rwkv"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "$name: failed"
    fi
}
agree "no vocabulary" "$shared/vectors/h1-rand/w_fp32.pth"
agree bf16 "$shared/vectors/h1-init/w_bf16.safetensors"
agree "bytes" "$shared/data/bytes28m.pth" --vocab bytes

echo "$passed passed, $failed failed"
[ $failed = 0 ]
