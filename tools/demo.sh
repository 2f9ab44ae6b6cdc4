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
