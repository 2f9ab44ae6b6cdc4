#!/bin/bash
# `rwkv train` from outside: a run that is stopped and goes on is the run that was never stopped, in
# every bit; a save that dies anywhere loses nothing; damage, full disks and second trainers are met
# with words.
set -u
rwkv=$PWD/${BUILD:-build}/rwkv
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0

# shellcheck source=tests/tiny.sh
. tests/tiny.sh
cat >>"$dir/config/train/tiny.toml" <<'T'
batch_size_per_device = 4
num_steps = 12
val_every_steps = 6
save_every_steps = 3
keep_checkpoints = 100
T

same() { # test runA runB step: checkpoint and log, bit by bit
    local a=$dir/runs/$2 b=$dir/runs/$3 step
    step=$(printf 'step-%010d.ckpt' "$4")
    if cmp "$a/$step" "$b/$step" && cmp "$a/log.jsonl" "$b/log.jsonl"; then ok; else bad "$1" "$2 and $3 differ"; fi
}

# 12 steps = 6, stop, 6; with one thread and two; with accumulated gradients and recomputed layers.
train whole || bad whole "$(cat "$dir/whole.out")"
train threads --set num_threads=1 || bad threads "$(cat "$dir/threads.out")"
same "two threads = one thread" whole threads 12
cp -r "$dir/runs/whole" "$dir/runs/resumed"
rm "$dir"/runs/resumed/step-*{09,12}.ckpt
sed -i 's/experiment_name = .*/experiment_name = "resumed"/' "$dir/runs/resumed/config.toml"
train resumed --set num_threads=1 || bad resumed "$(cat "$dir/resumed.out")"
grep -q 'going on from .*step-0000000006.ckpt' "$dir/resumed.out" && ok || bad resumed "did not resume"
same "12 steps = 6 + 6" whole resumed 12
train recompute --set grad_checkpoint=true && same "recompute = remember" whole recompute 12
acc="--set batch_size_per_device=2 --set num_accumulation_steps_per_device=2"
# shellcheck disable=SC2086
train acc $acc || bad acc "$(cat "$dir/acc.out")"
cp -r "$dir/runs/acc" "$dir/runs/acc2"
rm "$dir"/runs/acc2/step-*{06,09,12}.ckpt
# shellcheck disable=SC2086
train acc2 $acc --set num_threads=1 && same "accumulated, resumed" acc acc2 12

# Ctrl-C and SIGTERM: a checkpoint, exit 0, and the same end.
for signal in INT TERM; do
    # (`timeout` sends it; a background job of a shell would ignore SIGINT)
    rc=0
    timeout --signal=$signal --preserve-status 0.4 $rwkv train --config-dir "$dir/config" \
        --train-cfg tiny --set experiment_name=$signal --set num_steps=100000 \
        --set val_every_steps=0 >"$dir/$signal.out" 2>&1 || rc=$?
    if [ $rc = 0 ] && grep -q 'stopped after step' "$dir/$signal.out" &&
        ls "$dir"/runs/$signal/step-*.ckpt >/dev/null 2>&1; then
        ok
    else
        bad "SIG$signal" "exit $rc: $(tail -n 3 "$dir/$signal.out")"
    fi
done

# A flipped bit in any section: noticed, and the checkpoint before it is taken.
size=$(stat -c %s "$dir/runs/whole/step-0000000012.ckpt")
for at in 3 40 300 $((size / 6)) $((size / 2)) $((size - 100)); do
    rm -rf "$dir/runs/flipped"
    cp -r "$dir/runs/whole" "$dir/runs/flipped"
    f=$dir/runs/flipped/step-0000000012.ckpt
    byte=$(od -An -tu1 -j "$at" -N 1 "$f")
    printf "\\x$(printf %x $((byte ^ 16)))" | dd of="$f" bs=1 seek="$at" conv=notrunc 2>/dev/null
    if train flipped && grep -q 'trying the one before' "$dir/flipped.out" &&
        grep -q 'going on from .*step-0000000009.ckpt' "$dir/flipped.out" &&
        cmp "$f" "$dir/runs/whole/step-0000000012.ckpt"; then
        ok
    else
        bad "bit flipped at $at" "$(tail -n 3 "$dir/flipped.out")"
    fi
done

# What must agree is compared, and the error names both sides.
refuse() { # name text option…
    local name=$1 text=$2 rc=0
    shift 2
    train whole "$@" || rc=$?
    if [ $rc = 2 ] && grep -q "$text" "$dir/whole.out"; then ok; else bad "$name" "exit $rc: $(tail -n 1 "$dir/whole.out")"; fi
}
refuse "another context" "context_length 32, the run now has 16" --set context_length=16
refuse "another seed" "random_seed 42, the run now has 43" --set random_seed=43
refuse "another width" "width 32, the run now has 64" --set model.embedded_dim=64
refuse "a new run over an old one" "holds checkpoints of an earlier run" --resume never

# Two trainers on one directory.
exec 9>"$dir/runs/whole/lock"
flock 9
if train whole; then bad lock "two trainers in one directory"; else
    grep -q 'another rwkv is training' "$dir/whole.out" && ok || bad lock "$(cat "$dir/whole.out")"
fi
exec 9>&-

# A learning rate that explodes: bad steps are skipped and counted, and the run ends with advice.
if train nan --set learning_rate_start=1.0 --set adam_eps=1e-30 --set gradient_clip_val=0 \
    --set num_steps=400 --set save_every_steps=0; then
    ok # it survived: nothing to see
elif grep -q 'no finite loss' "$dir/nan.out"; then
    ok
else
    bad nan "$(tail -n 2 "$dir/nan.out")"
fi

if ! command -v strace >/dev/null || ! strace -o /dev/null true 2>/dev/null; then
    echo "SKIP the save killed before each of its system calls: strace is absent"
    skipped=1
else
    # (the leak checker cannot run under a tracer)
    export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
    # Killed before each system call that touches a file, in the steps 10 to 12 of a run: whatever is
    # left, the run goes on from a whole checkpoint and ends in the same bits.
    calls=openat,write,fsync,rename,unlink,close
    base=$dir/runs/base
    cp -r "$dir/runs/whole" "$base"
    rm "$base/step-0000000012.ckpt"
    prepare() { rm -rf "$dir/runs/kill" && cp -r "$base" "$dir/runs/kill"; }
    prepare
    strace -f -o "$dir/trace" -e trace=$calls $rwkv train --config-dir "$dir/config" \
        --train-cfg tiny --set experiment_name=kill --set num_threads=1 >/dev/null 2>&1
    total=$(grep -cE ' (openat|write|fsync|rename|unlink|close)\(' "$dir/trace")
    first=$(grep -nE 'step-0000000012.ckpt.tmp' "$dir/trace" | head -n 1 | cut -d: -f1)
    broken=0 tried=0
    for call in openat write fsync rename unlink close; do
        # Only those from the first touch of the new checkpoint on.
        before=$(head -n $((first - 1)) "$dir/trace" | grep -cE " $call\(" || true)
        all=$(grep -cE " $call\(" "$dir/trace" || true)
        for ((n = before + 1; n <= all; n++)); do
            prepare
            { strace -f -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$n $rwkv \
                train --config-dir "$dir/config" --train-cfg tiny --set experiment_name=kill \
                --set num_threads=1 >/dev/null 2>&1; } 2>/dev/null
            tried=$((tried + 1))
            if ! train kill || ! cmp -s "$dir/runs/kill/step-0000000012.ckpt" \
                "$dir/runs/whole/step-0000000012.ckpt" ||
                ! cmp -s "$dir/runs/kill/log.jsonl" "$dir/runs/whole/log.jsonl"; then
                broken=$((broken + 1))
                echo "killed before $call number $n: $(tail -n 2 "$dir/kill.out")"
            fi
        done
    done
    echo "killed before each of $tried system calls of $total"
    if [ $broken = 0 ] && [ $tried -gt 10 ]; then ok; else bad kill "$broken of $tried lost the run"; fi

    # The disk is full while saving: said, and the training goes on; what was there stays.
    prepare
    strace -f -o /dev/null -P "$dir/runs/kill/step-0000000012.ckpt.tmp" -e trace=write \
        -e inject=write:error=ENOSPC $rwkv train --config-dir "$dir/config" --train-cfg tiny \
        --set experiment_name=kill --set num_threads=1 --set num_steps=15 >"$dir/full.out" 2>&1
    rc=$?
    if [ $rc = 0 ] && grep -q 'No space left on device.*training goes on' "$dir/full.out" &&
        [ -e "$dir/runs/kill/step-0000000015.ckpt" ] &&
        [ ! -e "$dir/runs/kill/step-0000000012.ckpt.tmp" ]; then
        ok
    else
        bad "disk full" "exit $rc: $(tail -n 3 "$dir/full.out")"
    fi
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
