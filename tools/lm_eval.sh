#!/bin/bash
# EleutherAI's lm-eval, unmodified, against a server of ours: the last words of passages (LAMBADA's
# protocol, but without token 0 in front, which lm-eval doesn't send), next to what `rwkv eval` finds.
# Usage: tools/lm_eval.sh WEIGHTS VOCAB MODEL_TOML FILE.jsonl [PASSAGES]
# FILE has a {"text": …} a line. LM_EVAL names the program if it is installed already; else it goes into
# build/venv-lm-eval, with everything that it needs (gigabytes, for PyTorch is among it).
set -eu
cd "$(dirname "$0")/.."
weights=$(realpath "$1") vocab=$2 shape=$(realpath "$3") data=$(realpath "$4") passages=${5:-100}
[ "$vocab" = bytes ] || vocab=$(realpath "$vocab")

if [ -z "${LM_EVAL-}" ]; then
    LM_EVAL=$PWD/build/venv-lm-eval/bin/lm_eval
    if [ ! -x "$LM_EVAL" ]; then
        python3 -m venv build/venv-lm-eval
        build/venv-lm-eval/bin/pip -q install 'lm-eval[api]' torch
    fi
fi
work=$(mktemp -d)
trap 'kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work/infer" "$work/model" "$work/tasks"
cp "$shape" "$work/model/served.toml"
cat >"$work/infer/served.toml" <<T
http_bind_addr = "127.0.0.1:0"
max_queue = 4096
[[models]]
model_name = "served"
model_cfg = "served"
weights_path = "$weights"
tokenizer_vocab_path = "$vocab"
max_batch_size = 16
max_context_len = 8192
T
head -n "$passages" "$data" >"$work/passages.jsonl"
cat >"$work/tasks/last_word.yaml" <<T
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: $work/passages.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{text.rsplit(' ', 1)[0]}}"
doc_to_target: "{{' ' + text.rsplit(' ', 1)[1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
T
./rwkv serve --config-dir "$work" --infer-cfg served >"$work/log" 2>&1 &
server=$!
for _ in $(seq 300); do
    url=$(sed -n 's/^serving .* at \(http[^ ]*\) .*/\1/p' "$work/log")
    [ -z "$url" ] || break
    kill -0 $server 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$LM_EVAL" --model local-completions --tasks last_word --include_path "$work/tasks" \
    --model_args "model=served,base_url=$url/v1/completions,tokenizer_backend=remote,num_concurrent=8,max_length=8192" \
    --batch_size 4 2>"$work/lm.log" | tee "$work/result" || { tail -n 30 "$work/lm.log" >&2; exit 1; }
grep -q last_word "$work/result" || { tail -n 30 "$work/lm.log" >&2; exit 1; }
echo "rwkv eval --lambada on the same passages (with token 0 in front):"
./rwkv eval --weights "$weights" --vocab "$vocab" --lambada "$work/passages.jsonl"
