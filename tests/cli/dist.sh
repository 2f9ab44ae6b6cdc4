#!/bin/bash
# `rwkv train` in several processes, from outside: how it starts, who talks, and that all of it ends
# when one ends, whichever way: nobody is left behind, nobody waits for a dead one.
set -u
rwkv=$PWD/${BUILD:-build}/rwkv
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0

# shellcheck source=tests/tiny.sh
. tests/tiny.sh
cat >>"$dir/config/train/tiny.toml" <<'T'
num_devices_per_node = 2
batch_size_per_device = 2
num_steps = 6
val_every_steps = 3
sample_every_steps = 6
sample_tokens = 8
save_every_steps = 2
bucket_bytes = 4096
T

check() { # name what command…
    local name=$1 what=$2
    shift 2
    if "$@"; then ok; else bad "$name" "$what: $(tail -n 3 "$dir/$name.out")"; fi
}

# Losses of two logs, line by line.
same_losses() {
    paste "$dir/runs/$1/log.jsonl" "$dir/runs/$2/log.jsonl" | sed 's/[^0-9.e-]\+/ /g' |
        awk '{ n = NF / 2; for (i = 1; i <= n; i++) { a = $i; b = $(i + n); d = a - b
               if (d < 0) d = -d; if (d > 1e-4 * (a < 0 ? -a : a)) wrong = 1 } }
             END { exit wrong || NR < 8 }'
}

# One run, two processes or none of that: one voice, one checkpoint, the same losses.
train two || bad two "$(cat "$dir/two.out")"
train one --set num_devices_per_node=1 --set batch_size_per_device=4 || bad one "$(cat "$dir/one.out")"
check two "another curve than alone" same_losses one two
check two "talks twice" test "$(grep -cE 'step 6/6|checkpoint .*006|^--- sample' "$dir/two.out")" = 3
check two "does not tell the shares" grep -q 'devices: 2, each with its share' "$dir/two.out"
check two "config.toml does not name the devices" grep -q 'device_ids = \[0,1\]' "$dir/runs/two/config.toml"
check two "checkpoint of another size" test "$(stat -c %s "$dir/runs/two/step-0000000006.ckpt")" = \
    "$(stat -c %s "$dir/runs/one/step-0000000006.ckpt")"
train two --set num_steps=8 --set device_ids=[0] --set num_devices_per_node=1 --set batch_size_per_device=4
check two "does not go on alone" grep -q 'going on from .*step-0000000006.ckpt' "$dir/two.out"

# What every process would say is said once, with the exit code of one.
train wrong --set model.vocab_size=64
[ $? = 1 ] && [ "$(grep -c 'rwkv train: rank . of 2: .*vocabulary has 64' "$dir/wrong.out")" = 1 ] &&
    [ "$(grep -c vocabulary "$dir/wrong.out")" -le 2 ] && ok || bad wrong "$(cat "$dir/wrong.out")"
train one --set context_length=16
[ $? = 2 ] && [ "$(grep -c 'context_length 32, the run now has 16' "$dir/one.out")" = 1 ] && ok ||
    bad other "$(cat "$dir/one.out")"

# Steps whose numbers are none are skipped by all together, until that is no accident.
train nan --set learning_rate_start=1 --set learning_rate_end=1 --set adam_beta1=0 --set adam_beta2=0 \
    --set adam_eps=0 --set gradient_clip_val=0 --set num_steps=40 --set val_every_steps=0
check nan "ends otherwise" grep -q 'rank . of 2: 10 steps in a row' "$dir/nan.out"

# A long run in the background: $job in the shell's eyes, $main, its processes ${member[@]}.
begin() { # name
    set -m # a group of its own, in which SIGINT is not ignored
    train "$1" --set num_steps=1000000 --set val_every_steps=0 --set save_every_steps=0 &
    job=$!
    set +m
    for ((i = 0; i < 500; i++)); do
        [ "$(wc -l 2>/dev/null <"$dir/runs/$1/log.jsonl")" -ge 3 ] 2>/dev/null && break
        sleep 0.02
    done
    main=$(pgrep -P $job -x rwkv || echo $job)
    mapfile -t member < <(pgrep -P "$main")
    [ ${#member[@]} = 2 ] || bad "$1" "has ${#member[@]} processes"
}
ended() { # name wanted-code
    local rc=0
    wait $job 2>/dev/null || rc=$?
    [ $rc = "$2" ] && ok || bad "$1" "exit $rc: $(tail -n 3 "$dir/$1.out")"
    for ((i = 0; i < 100; i++)); do kill -0 "${member[@]}" 2>/dev/null || break; sleep 0.02; done
    check "$1" "processes are left" test "$i" -lt 100
}
begin kill
kill -KILL "${member[1]}"
ended kill 1
check kill "says something else" grep -q "rank 1 of 2: process ${member[1]} was killed by signal 9" "$dir/kill.out"
begin parent
kill -KILL "$main"
ended parent 137
for who in main member group; do
    begin $who
    case $who in
    main) kill -TERM "$main" ;;
    member) kill -TERM "${member[1]}" ;;
    group) kill -INT -- "-$(ps -o pgid= -p "$main" | tr -d ' ')" ;;
    esac
    ended $who 0
    check $who "does not stop in order" grep -q 'stopped after step' "$dir/$who.out"
done
# It goes on from there, with one process more.
steps=$(sed -n 's/.*stopped after step \([0-9]*\) .*/\1/p' "$dir/group.out")
train group --set num_steps=$((steps + 2)) --set num_devices_per_node=4 --set batch_size_per_device=1
check group "does not go on" grep -q "step $((steps + 2))/$((steps + 2))" "$dir/group.out"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
