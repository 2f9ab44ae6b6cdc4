#!/bin/bash
# Training on several devices of a machine with GPUs, a part of tools/gpu/run.sh. Usage:
#   dist.sh curve   one device and two on the same global batch: losses agree, and the first norms
#   dist.sh speed   0.1b, 512 x 16 a device, one device and two: tok/s, scaling
# RWKV is the program, DEVICES how many there are (2), STEPS how many steps are timed (60).
set -u -o pipefail
rwkv=${RWKV:-./rwkv}
devices=${DEVICES:-2}
steps=${STEPS:-60}
repo=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/config/train" "$dir/data"
cp -r "$repo/config/model" "$dir/config/"

cat >"$dir/config/model/small.toml" <<'T'
num_cells = 6
vocab_size = 257
embedded_dim = 512
num_heads = 8
T
config() { # name model data context
    cat >"$dir/config/train/$1.toml" <<T
model_cfg = "$2"
experiment_log_base_path = "../../runs"
experiment_name = "$1"
dataset_base_path = "../../data"
filename_without_extensions = "$3"
context_length = $4
num_steps = $steps
warmup_steps = 10
learning_rate_start = 4e-4
learning_rate_end = 4e-5
grad_checkpoint = false
save_freq = 0
backend = "cuda"
dtype = "bf16"
use_tui = false
T
}

train() { # name config option…
    local name=$1 config=$2
    shift 2
    "$rwkv" train --config-dir "$dir/config" --train-cfg "$config" --set experiment_name="$name" "$@" \
        >"$dir/$name.out" 2>&1 || { echo "$name: exit $?" && tail -n 20 "$dir/$name.out" && exit 1; }
    rm -f "$dir/runs/$name"/*.ckpt "$dir/runs/$name"/*.pth
}

# Losses of two runs, step by step, in whichever order their fields are. Norms of the first 20: behind them
# rounding alone has grown to per cents, also between one device's batch of 32 and its two of 16, in f32 too.
compare() { # one other
    python3 - "$dir/runs/$1/log.jsonl" "$dir/runs/$2/log.jsonl" "$1" "$2" <<'P'
import json, sys
a, b = ([json.loads(l) for l in open(p)] for p in sys.argv[1:3])
d = [abs(x["loss"] - y["loss"]) for x, y in zip(a, b)]
n = [abs(x["grad_norm"] / y["grad_norm"] - 1) for x, y in zip(a[:20], b)]
good = len(a) == len(b) and max(d) <= 0.01 and max(n) <= 0.05
print("%s and %s: %d steps, loss %.4f to %.4f, differ by %.5f at most (allowed 0.01), first norms by %.2f %% (5): %s"
      % (*sys.argv[3:], len(d), a[0]["loss"], a[-1]["loss"], max(d), 100 * max(n), "equal" if good else "FAILED"))
sys.exit(not good)
P
}

curve() {
    local rc=0
    cat "$repo"/docs/*.md "$repo"/src/*/*.c "$repo"/cmd/*.c >"$dir/text.txt"
    "$rwkv" data build --input "$dir/text.txt" --output "$dir/data/text" --vocab bytes || exit 1
    config curve small text 256
    train one curve --set batch_size_per_device=32
    train two curve --set num_devices_per_node=2 --set batch_size_per_device=16
    train two-again curve --set num_devices_per_node=2 --set batch_size_per_device=16
    train two-accumulated curve --set num_devices_per_node=2 --set batch_size_per_device=8 \
        --set num_accumulation_steps_per_device=2
    train two-whole curve --set num_devices_per_node=2 --set batch_size_per_device=16 \
        --set shard_optimizer=false --set bucket_bytes=1000000
    RWKV_DIST=shm train two-shm curve --set num_devices_per_node=2 --set batch_size_per_device=16
    compare one two-accumulated || rc=1
    compare one two-whole || rc=1
    compare two two-shm || rc=1
    cmp "$dir/runs/two/log.jsonl" "$dir/runs/two-again/log.jsonl" && echo "two again: the same bits" || rc=1
    compare one two || rc=1
    return $rc
}

speed_of() { # name: tok/s, smoothed over the last steps
    tail -n 1 "$dir/runs/$1/speed.jsonl" | sed 's/.*"tokens_per_s":\([0-9]*\).*/\1/'
}

speed() {
    python3 - "$dir/data/random" <<'P'
import random, struct, sys
n = 8 << 20
open(sys.argv[1] + ".bin", "wb").write(random.Random(1).randbytes(2 * n - 2) + b"\0\0")
open(sys.argv[1] + ".idx", "wb").write(b"MMIDIDX\0\0" + struct.pack("<QBQQiqqq", 1, 8, 1, 2, n, 0, 0, 1))
P
    config speed rwkv-lm-0.1b random 512
    local one way n
    train 1 speed --set batch_size_per_device=16
    one=$(speed_of 1)
    echo "1 device: $one tok/s"
    for ((n = 2; n <= devices; n *= 2)); do
        for way in whole-optimizer shards-of-128MB shards; do
            case $way in
            whole-optimizer) set -- --set shard_optimizer=false ;;
            shards-of-128MB) set -- --set bucket_bytes=134217728 ;;
            shards) set -- ;;
            esac
            train "$n-$way" speed --set num_devices_per_node=$n --set batch_size_per_device=16 "$@"
            awk -v one="$one" -v all="$(speed_of "$n-$way")" -v n=$n -v way=$way 'BEGIN {
                e = all / one / n
                printf "%d devices, %s: %d tok/s, %.1f %% of %d times one; %.1f %% of a step is not hidden\n",
                    n, way, all, 100 * e, n, 100 * (1 - e) }'
        done
    done
    grep -h 'memory' "$dir"/{1,2-shards}.out
    echo "1 device: $one tok/s, 2: $(speed_of 2-shards) tok/s"
}

case ${1:-} in
curve | speed) "$1" ;;
*) sed -n '2,6s/^# //p' "$0" && exit 2 ;;
esac
