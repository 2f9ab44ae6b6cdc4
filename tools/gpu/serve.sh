#!/bin/bash
# The served engine beside the engine alone, on one machine: random weights of a size, a server, the
# load generator, and a line a case. Usage: tools/gpu/serve.sh [STREAMS:TOKENS:REQUESTS…]
# Answers have TOKENS tokens, prompts 32. RWKV: the program. BACKEND, SIZE, DTYPE: cuda, 0.1b, bf16.
# TEMPERATURE (0) and EXTRA, as ',"top_p":0.9', are of the requests; MODEL, as 'paragraph_len = 512', of the server.
set -eu
rwkv=${RWKV:-build/rwkv} backend=${BACKEND:-cuda} size=${SIZE:-0.1b} dtype=${DTYPE:-bf16}
cases=("$@")
[ $# -gt 0 ] || cases=(1:512:8 8:512:32 32:512:128 128:512:512 256:256:1024 256:1024:512)
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/rwkv-serve.XXXXXX")
port=$((20000 + RANDOM % 10000)) server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$dir"' EXIT

"$rwkv" bench weights --size "$size" "$dir/weights.safetensors"
# layers, width, heads, vocabulary
shape=$("$rwkv" info "$dir/weights.safetensors" |
    sed -nE 's/^RWKV-7: ([0-9]+) layers, width ([0-9]+) \(([0-9]+) heads .*vocabulary ([0-9]+).*/\1 \2 \3 \4/p')
read -r L C H V <<<"$shape"
# Every byte is a token, as tokenizers want it, and the others are words.
{
    cat "$root/config/vocab/bytes.txt"
    awk -v V="$V" 'BEGIN { for (i = 257; i < V; i++) { w = " w" i; printf "%d '\''%s'\'' %d\n", i, w, length(w) } }'
} >"$dir/vocab.txt"
mkdir -p "$dir/model" "$dir/infer"
printf 'num_cells = %d\nembedded_dim = %d\nnum_heads = %d\nvocab_size = %d\n' "$L" "$C" "$H" "$V" >"$dir/model/m.toml"
most=1
for c in "${cases[@]}"; do [ "${c%%:*}" -le $most ] || most=${c%%:*}; done
cat >"$dir/infer/s.toml" <<END
backend = "$backend"
http_bind_addr = "127.0.0.1:$port"
max_queue = $((4 * most))
[[models]]
model_name = "m"
model_cfg = "m"
weights_path = "../weights.safetensors"
tokenizer_vocab_path = "../vocab.txt"
dtype = "$dtype"
max_batch_size = $most
max_context_len = 8192
${MODEL:-}
END

# The engine alone first: one batch, no sampling, no prompts.
declare -A alone
for c in "${cases[@]}"; do
    B=${c%%:*}
    [ -z "${alone[$B]:-}" ] || continue
    alone[$B]=$("$rwkv" bench decode --backend "$backend" --weights "$dir/weights.safetensors" --dtype "$dtype" \
        --batch "$B" --tokens 128 --json | sed -nE 's/.*"tok_s":([0-9.e+]+).*/\1/p')
done

"$rwkv" serve --config-dir "$dir" --infer-cfg s >"$dir/serve.log" 2>&1 &
server=$!
for _ in $(seq 600); do
    ! grep -q "serving at" "$dir/serve.log" || break
    kill -0 $server || { cat "$dir/serve.log" && exit 1; }
    sleep 0.1
done
grep "is loaded" "$dir/serve.log"
for c in "${cases[@]}"; do
    IFS=: read -r B tokens requests <<<"$c"
    # Token 0 ends a document: random weights draw it now and then.
    "$rwkv" bench serve --base-url "http://127.0.0.1:$port" --model m --concurrency "$B" --num-requests "$requests" \
        --warmup "$B" --input-tokens 32 --output-tokens "$tokens" --temperature "${TEMPERATURE:-0}" \
        --extra-body "{\"logit_bias\":{\"0\":-100}${EXTRA:-}}" \
        --output-json "$dir/out.json" --report-dir "$dir/report" >"$dir/bench.log" 2>&1 || { cat "$dir/bench.log" && exit 1; }
    awk -v B="$B" -v tokens="$tokens" -v alone="${alone[$B]}" -v what="$size $dtype" '
        /output tokens\/s/ { for (i = 2; i <= NF; i++) if ($i == "output") out = $(i - 1); else if ($i == "total") all = $(i - 1) }
        /^TTFT/ { first = $3 "/" $7 }
        /^ITL/ { next_one = $3 "/" $7 }
        / failed$/ { failed = $(NF - 1) }
        END {
            printf "served %s, %d streams of %d: %.0f tok/s, %.1f %% of %.0f alone (%.1f %% with prompts), to the first token p50/p99 %s ms, between tokens %s ms, %s failed\n",
                what, B, tokens, out, 100 * out / alone, alone, 100 * all / alone, first, next_one, failed
        }' "$dir/bench.log"
done
