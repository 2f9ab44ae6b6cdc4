#!/bin/bash
# `rwkv config` from outside: what is printed, where errors point, which exit code they have.
set -u
rwkv=${BUILD:-build}/rwkv
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
passed=0 failed=0

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

cp -r config/. "$dir"
printf 'contxt_length = 1\n' >>"$dir/train/demo.toml"
line=$(wc -l <"$dir/train/demo.toml")

check version 0 "rwkv " $rwkv --version
check overview 0 "config" $rwkv --help
check lesson 0 "--set context_length=256" $rwkv help config show
check keys 0 "| \`context_length\` (or \`context_len\`)" $rwkv config keys
check show 0 "context_length = 64" $rwkv config show --train-cfg demo --set context_len=64
check infer 0 "max_batch_size = 4" $rwkv config show --infer-cfg rwkv-lm-7.2b
check both 2 "wanted one of" $rwkv config show --infer-cfg a --train-cfg b
check neither 2 "wanted one of" $rwkv config show
check unknown 2 "$dir/train/demo.toml:$line:1: the train configuration has no key contxt_length" \
    $rwkv config show --config-dir "$dir" --train-cfg demo
check command 2 'did you mean "rwkv config"?' $rwkv confg
check option 2 "did you mean --train-cfg?" $rwkv config show --train-cgf demo
check full 1 "standard output" bash -c "$rwkv config keys >/dev/full"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
