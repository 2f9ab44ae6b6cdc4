#!/bin/sh
# `make demo`: from nothing to a small model that writes. Installs what is missing, builds, takes the
# King James Bible out of Debian's bible-kjv-text, holds whole books out, trains for at most two
# minutes (config/train/demo.toml), and shows what came of it. Everything it makes lies in data/demo
# and runs/demo; a second run starts over.
set -eu
cd "$(dirname "$0")/.."
data=data/demo run=runs/demo vocab=bytes
start=$(date +%s)

say() { printf '\n== %s\n' "$*"; }

say "packages"
./setup.sh demo

say "build"
make -s -j"$(nproc)"

say "text: the King James Bible, whole books held out"
mkdir -p $data
tools/kjv.sh $data
for part in train val; do
    ./rwkv data build --input $data/$part.jsonl --output $data/$part --vocab $vocab
done

say "training; the curve will be $run/loss.svg"
rm -rf $run
./rwkv train --config-dir config --train-cfg demo

say "what counting alone can do: an order-2 byte table"
./rwkv eval --order2 $data/train --data $data/val | tee $run/order2.txt

say "the model continues a text (it has no other trick: it is a base model)"
./rwkv generate --weights $run/weights.pth --vocab $vocab --max-tokens 400 \
    --temperature 0.8 --prompt "And it came to pass in those days, that "
echo

say "serving it"
# 127.0.0.1:8080, or a free port where somebody listens there already.
taken=0
curl -s -o /dev/null --max-time 2 http://127.0.0.1:8080/health || taken=$?
address=127.0.0.1:8080
[ $taken = 7 ] || address=127.0.0.1:0
./rwkv serve --config-dir config --infer-cfg demo --set http_bind_addr=$address >$run/serve.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    url=$(sed -n 's/^serving .* at \(http[^ ]*\) .*/\1/p' $run/serve.log)
    [ -z "$url" ] || break
    kill -0 $server 2>/dev/null || { cat $run/serve.log >&2; exit 1; }
    sleep 0.1
done

echo "curl $url/v1/chat/completions …"
curl -sS --fail-with-body $url/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "rwkv-demo",
    "messages": [{"role": "User", "content": "Who made the heaven and the earth?"}],
    "max_tokens": 60, "temperature": 0.8, "seed": 1, "stop": ["\nUser:"]
}'
echo

# The server and the command line must write the same.
prompt="In the beginning "
wanted=$(./rwkv generate --weights $run/weights.pth --vocab $vocab --only-new --max-tokens 64 \
    --temperature 0.8 --seed 7 --prompt "$prompt" | tr '\n' ' ')
got=$(curl -sS $url/v1/completions -H 'Content-Type: application/json' -d '{
    "model": "rwkv-demo", "prompt": "'"$prompt"'", "max_tokens": 64, "temperature": 0.8, "seed": 7
}' | sed -e 's/.*"text":"\(.*\)","logprobs".*/\1 /' -e 's/\\n/ /g' -e 's/\\"/"/g')
if [ "$wanted" != "$got" ]; then
    printf 'demo: the server wrote\n%s\nrwkv generate wrote\n%s\n' "$got" "$wanted" >&2
    exit 1
fi
echo "the server and rwkv generate continue \"$prompt\" alike: $got"

# Of the validation losses in the log: the last one, and the one nearest to the middle of the run.
losses=$(sed -nE 's/.*"step": *([0-9]+).*"val_loss": *([0-9.]+).*/\1 \2/p' $run/log.jsonl | awk '
    { step[NR] = $1; loss[NR] = $2 }
    function off(i) { return step[i] * 2 > step[NR] ? step[i] * 2 - step[NR] : step[NR] - step[i] * 2 }
    END {
        for (i = 1; i <= NR; i++) if (!half || off(i) < off(half)) half = i
        print loss[NR], loss[half]
    }')
held_out=${losses% *} half_way=${losses#* }
order2=$(grep -oE '[0-9]+\.[0-9]+' $run/order2.txt | head -n 1)
printf '\ndemo: held-out %.3f nats/byte, half-way %.3f, order-2 table %.3f, %d s\n' \
    "$held_out" "$half_way" "$order2" $(($(date +%s) - start))
if ! awk "BEGIN { exit !($held_out < $order2 && $held_out < $half_way) }"; then
    echo "demo: the model must beat the table and its own half-way loss" >&2
    exit 1
fi

if [ "${CI-}" = true ] || [ "${DEMO_EXIT-}" = 1 ]; then
    kill $server
    wait $server
    exit 0
fi
say "serving at $url/ : open it in a browser; interrupt (Ctrl-C) to stop"
trap 'kill $server 2>/dev/null || true; wait $server || true; exit 0' INT TERM
wait $server
