# Sourced by the scripts of tests/cli that train: counts of passes, and a tiny model on the licence's
# bytes. Wants rwkv, dir, passed and failed; batch, steps and the like are the caller's, in
# $dir/config/train/tiny.toml.
# shellcheck shell=bash
ok() { passed=$((passed + 1)); }
bad() { # name what
    failed=$((failed + 1))
    printf '%s: %s\n' "$1" "$2"
}

mkdir -p "$dir/config/model" "$dir/config/train"
cat >"$dir/config/model/tiny.toml" <<'T'
num_cells = 2
vocab_size = 257
embedded_dim = 32
num_heads = 2
T
cat >"$dir/config/train/tiny.toml" <<'T'
model_cfg = "tiny"
experiment_log_base_path = "../../runs"
experiment_name = "tiny"
dataset_base_path = "../../data"
filename_without_extensions = "licence"
validation_base = "../../data/licence"
validation_tokens = 512
tokenizer_vocab_path = "bytes"
context_length = 32
warmup_steps = 2
learning_rate_start = 1e-3
learning_rate_end = 1e-4
save_freq = 0
T
cp LICENSE "$dir/licence.txt"
$rwkv data build --input "$dir/licence.txt" --output "$dir/data/licence" --vocab bytes >/dev/null ||
    bad data "cannot be built"

train() { # name [option…]
    local name=$1
    shift
    $rwkv train --config-dir "$dir/config" --train-cfg tiny --set experiment_name="$name" "$@" \
        >"$dir/$name.out" 2>&1
}
