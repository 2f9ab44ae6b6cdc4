#!/bin/bash
# On a machine with a GPU: everything that build-gpu/ (tools/gpu/pack.sh) can say of the CUDA
# backend, in one call and one table. A part that fails is named at the end; the others go on.
# Logs go to $OUT (build-gpu/out). Usage: tools/gpu/run.sh [--quick|--sanitize|--bench] [PART…]
#   --quick     no benches        --bench     benches only
#   --sanitize  the model tests under compute-sanitizer: memcheck, racecheck
#   PART…       only parts whose name contains one of these words
set -u
cd "$(dirname "$0")/../.." || exit 1
here=$PWD/build-gpu
OUT=${OUT:-$here/out}
mkdir -p "$OUT"
mode=all
case ${1:-} in --quick | --bench | --sanitize) mode=${1#--} && shift ;; esac
wanted=("$@")
export RWKV_SHARED=$here/shared
[ -d "$here/bin" ] || tar -C "$here" -xJf "$here/bin.tar.xz" || python3 -c 'import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$here/bin.tar.xz" "$here" || exit 1

# cuBLASLt and NCCL come with the toolkit, or with PyTorch.
find_library() { # name
    ls "/usr/local/cuda/lib64/$1" 2>/dev/null || python3 -c 'import glob, sys
for p in sys.path:
    for f in glob.glob(p + "/nvidia/**/" + sys.argv[1], recursive=True): print(f)' "$1" 2>/dev/null | head -n 1
}
lt=$(find_library libcublasLt.so.13)
nccl=$(find_library libnccl.so.2)
export LD_LIBRARY_PATH=$here/lib${lt:+:$(dirname "$lt")}${nccl:+:$(dirname "$nccl")}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
rwkv=$here/bin/rwkv
model=$here/model.pth
[ -e "$model" ] || xz -dkc "$here/shared/data/bytes28m.pth.xz" >"$model" 2>/dev/null ||
    python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$here/shared/data/bytes28m.pth.xz" "$model" ||
    rm -f "$model"
[ -e "$model" ] && ln -sf "$model" "$here/shared/data/bytes28m.pth"
reverse=$here/shared/vectors/reverse/reverse_L2_N16_fp32.safetensors

rows=() failed=()
part() { # name limit_s command…
    local name=$1 limit=$2 start=$EPOCHREALTIME rc=0 word hit=
    shift 2
    for word in ${wanted[@]+"${wanted[@]}"}; do case $name in *"$word"*) hit=1 ;; esac; done
    [ ${#wanted[@]} = 0 ] || [ -n "$hit" ] || return 0
    timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1 </dev/null || rc=$?
    # Of several figures each has a line.
    local line few=1
    ! grep -qa ' limit' "$OUT/$name.log" || few=8
    line=$(grep -aE '[0-9]+ passed|tok/s|GFLOP/s|equal|alike|differ|PASSED|FAILED|ERROR SUMMARY|RACECHECK' "$OUT/$name.log" |
        tail -n $few | cut -c1-170 | sed '2,$s/^/                                              /')
    [ $rc = 0 ] || { failed+=("$name") && line="exit $rc: ${line:-$(tail -n 1 "$OUT/$name.log" | cut -c1-150)}"; }
    rows+=("$(printf '%-4s %-28s %6.1f s  %s' "$([ $rc = 0 ] && echo ok || echo FAIL)" "$name" \
        "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')" "$line")")
    echo "${rows[-1]}"
    [ $rc = 0 ] || grep -aE 'FAIL|ERROR|error|bug|differ|trouble' "$OUT/$name.log" | head -n 12 | sed 's/^/     | /'
}

# The two programs' outputs are byte-equal.
same_text() { # options…
    "$rwkv" generate "$@" --temperature 0 --dtype f32 --backend cpu >"$OUT/cpu.txt" || return 1
    "$rwkv" generate "$@" --temperature 0 --dtype f32 --backend cuda >"$OUT/cuda.txt" || return 1
    cmp "$OUT/cpu.txt" "$OUT/cuda.txt" && echo "$(wc -c <"$OUT/cuda.txt") bytes, equal to the CPU's"
}

# Numbers of two outputs, the largest difference at most $1.
close_logits() { # bound options…
    local bound=$1
    shift
    "$rwkv" verify logits "$@" --backend cpu >"$OUT/cpu.txt" || return 1
    "$rwkv" verify logits "$@" --backend cuda >"$OUT/cuda.txt" || return 1
    paste -d' ' <(tr -s '[], \n' '\n' <"$OUT/cpu.txt") <(tr -s '[], \n' '\n' <"$OUT/cuda.txt") |
        awk -v bound="$bound" 'NF == 2 { d = $1 - $2; if (d < 0) d = -d; if (d > most) most = d; n++ }
            END { printf "%d logits differ by %.3g at most (allowed %g)\n", n, most, bound
                  exit !(n > 0 && most <= bound) }'
}

bench() { # kind options…
    local kind=$1
    shift
    "$rwkv" bench "$kind" --backend cuda "$@"
}

# The gradients of a step of 0.1b, so many times, by so many programs at once: they interrupt each
# other, so that what is late comes later still.
same_gradients() { # times programs
    local w=$OUT/weights.safetensors rc=0 i jobs=()
    "$rwkv" bench weights --size 0.1b "$w" || return 1
    for ((i = 0; i < $2; i++)); do
        "$rwkv" verify repeat --weights "$w" --backend cuda --dtype bf16 --batch 16 --tokens 512 --times "$1" &
        jobs+=($!)
    done
    for i in "${jobs[@]}"; do wait "$i" || rc=1; done
    rm "$w"
    return $rc
}

export -f same_text close_logits bench same_gradients
export rwkv OUT
function=(bash -c '"$@"' -) # what timeout can start

nvidia-smi | tee "$OUT/nvidia-smi.log"
echo "cuBLASLt: ${lt:-not found: own kernels}"
DEVICES=$(nvidia-smi -L | grep -c '^GPU')
export DEVICES
[ "$DEVICES" -ge 2 ] && echo "NCCL: ${nccl:-not found}" || echo "SKIP dist: $DEVICES GPU"
[ -n "$lt" ] || export RWKV_CUDA_GEMM=own

if [ $mode = sanitize ]; then
    export RWKV_TEST_BACKEND=cuda
    for tool in memcheck racecheck; do
        part "$tool-vectors" 280 compute-sanitizer --tool $tool --error-exitcode 9 "$here/bin/test_vectors_ops"
        part "$tool-ops" 280 compute-sanitizer --tool $tool --error-exitcode 9 "$here/bin/check_ops" laws --backend cuda
    done
else
    if [ $mode != bench ]; then
        part check_ops 240 "$here/bin/check_ops" --backend cuda --verbose
        part check_ops-own 200 env RWKV_CUDA_GEMM=own "$here/bin/check_ops" --backend cuda --verbose
        part vectors_ops 60 env RWKV_TEST_BACKEND=cuda "$here/bin/test_vectors_ops"
        part init 60 env RWKV_TEST_BACKEND=cuda "$here/bin/test_init"
        part model 120 env RWKV_TEST_BACKEND=cuda "$here/bin/test_model"
        part backend 60 "$here/bin/test_backend"
        part decoder 60 env RWKV_TEST_BACKEND=cuda "$here/bin/test_decoder"
        part decoder-0.4b 60 env RWKV_CUDA_GEMM=own RWKV_TEST_BACKEND=cuda "$here/bin/test_decoder" 24 1024 65536
        part decoder-1.5b 60 env RWKV_TEST_BACKEND=cuda "$here/bin/test_decoder" 4 2048 65536
        part infer 120 env RWKV_TEST_BACKEND=cuda "$here/bin/test_infer"
        part model-no-overlap 120 env RWKV_CUDA_OVERLAP=off RWKV_TEST_BACKEND=cuda "$here/bin/test_model"
        # Large products of all sizes that the cases have.
        part large-matmul 60 env RWKV_CUDA_LARGE=all "$here/bin/check_ops" compare matmul --backend cuda --verbose
        part large-matmul_bwd_x 60 env RWKV_CUDA_LARGE=all "$here/bin/check_ops" compare matmul_bwd_x --backend cuda --verbose
        part large-model 120 env RWKV_CUDA_LARGE=all RWKV_TEST_BACKEND=cuda "$here/bin/test_model"
        part repeat 150 "${function[@]}" same_gradients 1000 2
        part logits-reverse 30 "${function[@]}" close_logits 1e-3 --weights "$reverse" --tokens "11 1 2 3 4 10 4 3 2 1"
        part logits-bytes28m 60 "${function[@]}" close_logits 1e-3 --weights "$model" --tokens "85 115 105 110 103 33 117 104 102"
        if [ "$DEVICES" -ge 2 ]; then
            part dist-test 180 env RWKV_TEST_BACKEND=cuda RWKV_TEST_DEVICES="$DEVICES" "$here/bin/test_dist"
            part dist-curve 240 env RWKV="$rwkv" tools/gpu/dist.sh curve
        fi
        part greedy-bytes28m 120 "${function[@]}" same_text --weights "$model" --vocab bytes --prompt "The " --max-tokens 256 --ignore-end
    fi
    if [ $mode != quick ]; then
        # The cells of the peers' table: f16 states where theirs are, f32 at 256 and at 1.
        for size in 0.1b 1.5b 7.2b; do
            batches=(--batch 8 --batch 32 --batch 128 --batch 256)
            [ $size = 7.2b ] || batches+=(--batch 960)
            part "decode-$size" 90 "${function[@]}" bench decode --size $size --dtype bf16 --batch 1 --batch 256 --tokens 32 --repeat 3
            part "decode-$size-f16-states" 90 "${function[@]}" bench decode --size $size --dtype bf16 --state-dtype f16 "${batches[@]}" --tokens 24 --repeat 3
            [ $size = 0.1b ] || part "decode-$size-sparse" 90 "${function[@]}" bench decode --size $size --sparse --dtype bf16 --tokens 32 --repeat 3
            for t in 512 1024 4096; do
                part "prefill-$size-1x$t" 90 "${function[@]}" bench prefill --size $size --dtype bf16 --tokens $t
            done
            part "prefill-$size-16x512" 90 "${function[@]}" bench prefill --size $size --dtype bf16 --tokens 512 --batch 16
        done
        part decode-0.1b-int8 60 "${function[@]}" bench decode --size 0.1b --dtype int8 --tokens 64
        part decode-0.1b-no-graphs 60 env RWKV_CUDA_GRAPHS=off "${function[@]}" bench decode --size 0.1b --dtype bf16 --tokens 64
        for b in 16 64; do
            part "train-0.1b-${b}x512" 90 "${function[@]}" bench train --size 0.1b --dtype bf16 --batch $b --tokens 512 --repeat 3 --steps 10
        done
        part train-0.1b-4x4096 90 "${function[@]}" bench train --size 0.1b --dtype bf16 --batch 4 --tokens 4096 --repeat 3 --steps 5
        [ "$DEVICES" -lt 2 ] || part dist-speed 400 env RWKV="$rwkv" tools/gpu/dist.sh speed
        part train-28m-64x512 60 "${function[@]}" bench train --size 28m --dtype bf16 --batch 64 --tokens 512 --repeat 3 --steps 10
        for kernel in forward backward; do
            part "wkv7-$kernel" 60 "${function[@]}" bench kernels --kernel wkv7_pretrain_$kernel --dtype bf16 --case b16_t512_h12 --repeat 20
        done
        part serve 240 env RWKV="$rwkv" "$here/../tools/gpu/serve.sh"
        part kernels 120 "$here/bin/check_ops" bench --backend cuda
    fi
fi

echo
printf '%s\n' "${rows[@]}" | tee "$OUT/table.txt"
for log in "$OUT"/dist-{curve,speed}.log; do [ ! -e "$log" ] || { echo && cat "$log"; }; done
for log in serve kernels; do [ ! -e "$OUT/$log.log" ] || { echo && cat "$OUT/$log.log"; }; done
echo
if [ ${#failed[@]} = 0 ]; then echo "all ${#rows[@]} parts are well"; else
    echo "${#failed[@]} of ${#rows[@]} parts failed: ${failed[*]}"
    exit 1
fi
