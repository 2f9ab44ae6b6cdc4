#!/bin/bash
# The doors that use a model, from outside: generate, chat, eval, verify, bench, data.
set -u
rwkv=${BUILD:-build}/rwkv
fixture=tests/fixtures/model/n16
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
passed=0 failed=0

check() { # name exit-code text command…
    local name=$1 want=$2 text=$3 out rc=0
    shift 3
    out=$("$@" 2>&1 </dev/null) || rc=$?
    if [ $rc = "$want" ] && [[ $out == *"$text"* ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s: exit %d, wanted %d and "%s" in:\n%s\n' "$name" $rc "$want" "$text" "${out:0:2000}"
    fi
}

equal() { # name a b
    if [ "$2" = "$3" ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        printf '%s: these differ:\n%s\n%s\n' "$1" "${2:0:500}" "${3:0:500}"
    fi
}

# A model with a byte vocabulary: two steps of training on the licence.
mkdir -p "$dir/config/model" "$dir/config/train"
printf 'num_cells = 2\nvocab_size = 257\nembedded_dim = 32\nnum_heads = 2\n' >"$dir/config/model/tiny.toml"
cat >"$dir/config/train/tiny.toml" <<'T'
model_cfg = "tiny"
experiment_log_base_path = "../../runs"
experiment_name = "tiny"
dataset_base_path = "../.."
filename_without_extensions = "licence"
tokenizer_vocab_path = "bytes"
context_length = 64
batch_size_per_device = 8
num_steps = 40
warmup_steps = 4
learning_rate_start = 1e-2
learning_rate_end = 1e-3
sample_every_steps = 20
sample_prompt = "The Licen"
T
cp LICENSE "$dir/licence.txt"
check build 0 "1 documents, 11359 tokens" $rwkv data build --input "$dir/licence.txt" --output "$dir/licence" --vocab bytes
check info 0 "magic prime" $rwkv data info "$dir/licence"
check data-check 0 "all in the vocabulary" $rwkv data check "$dir/licence" --vocab bytes
check train 0 "sample after step 40" $rwkv train --config-dir "$dir/config" --train-cfg tiny
model="--weights $dir/runs/tiny/weights.pth"
for file in log.jsonl speed.jsonl loss.svg samples.txt config.toml step-0000000040.ckpt; do
    check $file 0 "" test -s "$dir/runs/tiny/$file"
done

# The same seed gives the same text, whatever the threads and wherever the sequence was put down.
# shellcheck disable=SC2086
{
    text() { $rwkv generate $model --vocab bytes --max-tokens 60 --ignore-end --seed 5 "$@" 2>&1; }
    whole=$(text --prompt "Licen" --temperature 0.9 --top-p 0.9 --presence-penalty 0.2)
    equal threads "$whole" "$(text --prompt Licen --temperature 0.9 --top-p 0.9 --presence-penalty 0.2 --threads 1)"
    half=$($rwkv generate $model --vocab bytes --prompt Licen --max-tokens 25 --ignore-end --seed 5 \
        --temperature 0.9 --top-p 0.9 --presence-penalty 0.2 --state-out "$dir/state" | head -c -1; echo x)
    rest=$($rwkv generate $model --vocab bytes --max-tokens 35 --ignore-end --seed 5 --temperature 0.9 \
        --top-p 0.9 --presence-penalty 0.2 --state-in "$dir/state")
    equal "state out and in" "$whole" "${half%x}$rest"
    greedy=$(text --prompt "The" --temperature 0)
    equal "top-k 1 is greedy" "$greedy" "$(text --prompt The --top-k 1 --temperature 2)"
    equal "bf16 weights run" "$($rwkv generate $model --vocab bytes --prompt a --max-tokens 3 --dtype bf16 >/dev/null && echo fine)" fine
    check chat 0 "" bash -c "printf 'hello\n/quit\n' | $rwkv chat $model --vocab bytes --max-tokens 5"
    check eval 0 "bits per byte" $rwkv eval $model --vocab bytes --data "$dir/licence" --context 64
    check order2 0 "order-2 count table" $rwkv eval --order2 "$dir/licence" --data "$dir/licence"
    printf '{"text": "The License is the best license"}\n' >"$dir/lambada.jsonl"
    check lambada 0 "passages 1, perplexity" $rwkv eval $model --vocab bytes --lambada "$dir/lambada.jsonl"
    check "wrong vocabulary" 2 "the vocabulary has ids up to 256, the model only 12" \
        $rwkv generate --weights $fixture/w_bf16.safetensors --vocab bytes --prompt a
    check "no prompt" 2 "wanted one of --prompt" $rwkv generate $model --vocab bytes
    check "not a state" 1 "not a file of rwkv" $rwkv generate $model --vocab bytes --state-in "$dir/licence.txt"
}

# verify: one array a position that reads back; gradients by name; the loss printed.
fix="--weights $fixture/w_bf16.safetensors"
# shellcheck disable=SC2086
{
    equal "one line a token" "$($rwkv verify logits $fix --tokens "1 2 3" | wc -l)" 3
    equal "commas and spaces" "$($rwkv verify logits $fix --tokens "1,2, 3")" "$($rwkv verify logits $fix --tokens "1 2 3")"
    check "token out of range" 2 "outside the model's vocabulary of 12" $rwkv verify logits $fix --tokens "12"
    check "not a token" 2 "is not a token id" $rwkv verify logits $fix --tokens "1 x"
    echo '{"idx":[[1,2,3]],"targets":[[2,3,-1]]}' >"$dir/batch.json"
    check grads 0 '{"loss":' $rwkv verify grads $fix --batch "$dir/batch.json" --out "$dir/g.safetensors"
    check "grads inside" 0 "blocks.1.ffn.value.weight" $rwkv info "$dir/g.safetensors"
    echo '{"idx":[[1,2,3],[1]],"targets":[[2,3,1],[1]]}' >"$dir/batch.json"
    check "ragged batch" 1 "idx[1] has 1 tokens, the first row has 3" \
        $rwkv verify grads $fix --batch "$dir/batch.json" --out "$dir/g.safetensors"
    check "the same gradients" 0 "5 passes are alike: loss " $rwkv verify repeat $fix --times 5 --batch 2 --tokens 20
    check "the same gradients, bf16" 0 "5 passes are alike: loss " $rwkv verify repeat $fix --times 5 --dtype bf16
    check "once is no repetition" 2 "times" $rwkv verify repeat $fix --times 1
    check "another backend" 1 'backend "cuda" is not in this build' $rwkv verify logits $fix --tokens 1 --backend cuda
    check "unknown backend" 2 'there are: cpu, ref, ref64' $rwkv verify logits $fix --tokens 1 --backend cup
}

for what in decode prefill train; do
    check "bench $what" 0 '"tok_s":' $rwkv bench $what --size demo --tokens 8 --repeat 1 --json
done

check "bench of random weights of any size" 0 '"share":' $rwkv bench decode --size 1x64x100 --dtype int4 --tokens 2 \
    --repeat 1 --json
check "bench of prompts beside writers" 0 '"writers":3' $rwkv bench prefill --size 1x64x100 --tokens 9 --writers 3 \
    --repeat 1 --json
check "bench of several batches" 0 '"batch":3' $rwkv bench decode --size 1x64x100 --batch 1 --batch 3 --tokens 2 \
    --repeat 1 --json
check "bench of a size that is none" 2 "LAYERSxCHANNELSxVOCABULARY" $rwkv bench decode --size 1x64
for kernel in wkv7_pretrain_forward wkv7_pretrain_backward wkv7_statepass_forward wkv7_statepass_backward \
    wkv7_statetune_forward wkv7_statetune_backward wkv7_infer_forward; do
    check "bench $kernel" 0 "\"kernel\":\"$kernel\"" $rwkv bench kernels --kernel $kernel --case b2_t20_h3 --repeat 1 --json
done
check "bench rapid_sample_forward" 0 '"error":0' $rwkv bench kernels --case b4_v4096_k50 --repeat 1 --json
check "bench of a shape that is none" 2 "expected a shape such as" $rwkv bench kernels --case b1

echo "$passed passed, $failed failed"
[ $failed = 0 ]
