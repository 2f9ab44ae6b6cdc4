#!/bin/bash
# `rwkv convert` and `rwkv info` from outside; what is written loads with torch where that is there.
set -u
rwkv=${BUILD:-build}/rwkv
files=tests/fixtures/weights
model=tests/fixtures/model/n16/w_bf16.safetensors
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
passed=0 failed=0 skipped=0

check() { # name exit-code text command…
    local name=$1 want=$2 text=$3 out rc=0
    shift 3
    out=$("$@" 2>&1) || rc=$?
    if [ $rc = "$want" ] && [[ $out == *"$text"* ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s: exit %d, wanted %d and "%s" in:\n%s\n' "$name" $rc "$want" "$text" "$out"
    fi
}

# There and back through both containers and a wider type: the same bytes.
check safetensors 0 "3 tensors, 44 bytes" $rwkv convert $files/shared.pth "$dir/1.safetensors"
check pth 0 "3 tensors, 44 bytes" $rwkv convert "$dir/1.safetensors" "$dir/2.pth"
check back 0 "3 tensors" $rwkv convert "$dir/2.pth" "$dir/3.safetensors"
check again 0 "" cmp "$dir/1.safetensors" "$dir/3.safetensors"
check bf16 0 "22 bytes" $rwkv convert "$dir/2.pth" "$dir/4.pth" --dtype bf16
check f32 0 "44 bytes" $rwkv convert "$dir/4.pth" "$dir/4.pth" --dtype f32
check in-place 0 "" cmp "$dir/2.pth" "$dir/4.pth"

check extension 2 "written as .pth, .safetensors or .gguf" $rwkv convert "$dir/2.pth" "$dir/5.bin"
check "no model" 1 'has no tensor "emb.weight"' $rwkv convert "$dir/2.pth" "$dir/5.gguf"
check "q8_0 elsewhere" 2 "are for .gguf files" $rwkv convert "$dir/2.pth" "$dir/5.pth" --dtype q8_0
check "vocabulary elsewhere" 2 "are for .gguf files" \
    $rwkv convert "$dir/2.pth" "$dir/5.pth" --vocab bytes
check "vocabulary too large" 2 "ids up to 256, the model only 12 embeddings" \
    $rwkv convert $model "$dir/5.gguf" --vocab bytes
check dtype 2 "keep|f32|bf16|f16|int8|int4|q8_0|q4_0" $rwkv convert "$dir/2.pth" "$dir/5.pth" --dtype int3
check range 1 "emb.weight holds 1 numbers beyond f16's 65504" \
    $rwkv convert $files/rwkv7a.safetensors "$dir/5.pth" --dtype f16
check evil 1 "posix.system" $rwkv convert $files/evil.pth "$dir/5.pth"
check nothing 0 "" test ! -e "$dir/5.pth" -a ! -e "$dir/5.pth.tmp" -a ! -e "$dir/5.gguf"
check folder 1 "cannot create" $rwkv convert "$dir/2.pth" "$dir/absent/5.pth"

# GGUF holds the same model: the same logits to the last digit, by way of both and back.
logits() {
    $rwkv verify logits --weights "$1" --tokens "1 2 3 4 5 11 0" --threads 1
}
check gguf 0 "the heads of this model are 16 wide" $rwkv convert $model "$dir/6.gguf"
check "gguf back" 0 "69 tensors" $rwkv convert "$dir/6.gguf" "$dir/7.pth"
check "gguf logits" 0 "$(logits $model)" logits "$dir/6.gguf"
check "gguf's pth" 0 "$(logits $model)" logits "$dir/7.pth"
check "logits are logits" 0 "[" logits $model
check q8_0 0 "72 tensors" $rwkv convert $model "$dir/8.gguf" --dtype q8_0
check "q8_0 inside" 0 "q8_0: 14 tensors, 25344 numbers, 26928 bytes" $rwkv info "$dir/8.gguf"
check "q8_0 logits" 0 "[" logits "$dir/8.gguf"
check int8 0 "" $rwkv convert $model "$dir/8b.gguf" --dtype int8
check "int8 is q8_0" 0 "" cmp "$dir/8.gguf" "$dir/8b.gguf"
check int4 0 "72 tensors" $rwkv convert $model "$dir/9.gguf" --dtype int4
check "int4 inside" 0 "q4_0: 13 tensors" $rwkv info "$dir/9.gguf"
# Made once, computed with as it is: the same as when the original is turned into int4 at load.
int4() {
    $rwkv verify logits --weights "$1" --tokens "1 2 3 4 5 11 0" --threads 1 --dtype int4
}
check "int4 logits" 0 "$(int4 "$dir/9.gguf")" int4 $model
check "gguf's metadata" 0 '"general.architecture": "rwkv7"' $rwkv info "$dir/8.gguf"
check "gguf's model" 0 "2 layers, width 32 (2 heads of 16), vocabulary 12" $rwkv info "$dir/8.gguf"

check table 0 "a       f32    (2,3)" $rwkv info "$dir/2.pth"
check model 0 "1 layers, width 16 (1 heads of 16), vocabulary 4, ranks w 1 a 1 v 1 g 1" \
    $rwkv info $files/rwkv7a.safetensors
check extra 0 "extra: blocks.0.ffn.s0: rwkv7a's DeepEmbed" $rwkv info $files/rwkv7a.safetensors
check stranger 0 'no RWKV-7 model' $rwkv info $files/plain.safetensors
check finite 0 "all numbers are finite" $rwkv info --check $files/rwkv7a.safetensors
check nan 1 "emb.weight: 1 NaN, 0 infinite of 64 numbers" $rwkv info --check $files/nan.safetensors
check absent 1 "cannot open" $rwkv info "$dir/absent.ckpt"

if python3 -c 'import torch' 2>/dev/null; then
    check torch 0 "[-1.0, -0.5, 0.25, 8.0]" python3 -c \
        "import torch; print(torch.load('$dir/2.pth', weights_only=True)['b'].tolist())"
else
    echo "SKIP torch.load of what rwkv convert writes: python3 has no torch"
    skipped=1
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
