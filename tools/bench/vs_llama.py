#!/usr/bin/env python3
"""Speed of one GGUF file in llama.cpp and here, in turn, so that both meet the same neighbours.

  vs_llama.py MODEL.gguf [--rwkv ./rwkv] [--threads 2] [--rounds 5] [--make 0.1b]

MODEL.gguf holds f32 or bf16 numbers. llama.cpp runs it as it is and as its own q8_0 and q4_K_M; this
program as bf16, bf16w, int8 and int4. --make writes random weights of a size (LAYERSxCHANNELSxVOCABULARY
or 0.1b, 0.4b) to MODEL.gguf first. Wants llama-cpp-python, built from its source for this machine
(CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python), and numpy.
"""
import argparse, json, os, statistics, struct, subprocess, sys, tempfile, time

try:
    import llama_cpp as ll
    import numpy as np
except ImportError as e:
    print(f"SKIP vs_llama: {e}")
    sys.exit(77)

SIZES = {"0.1b": "12x768x65536", "0.4b": "24x1024x65536"}
CASES = [("decode", 1, 32), ("decode", 8, 16), ("decode", 32, 8), ("prefill", 1, 512)]
QUIET = ll.llama_log_callback(lambda level, text, data: None)


def make(path, size):
    """Random weights under official names, written by numpy as safetensors, converted by rwkv."""
    L, C, V = map(int, SIZES.get(size, size).split("x"))
    rng, tensors, H = np.random.default_rng(1), {}, C // 64
    ranks = {"w": 64, "a": 64, "v": 32, "g": 128}

    def put(name, *shape, scale=0.02, mean=0.0):
        tensors[name] = (rng.standard_normal(shape, dtype=np.float32) * scale + mean).astype(np.float32)

    def norm(name):
        put(name + ".weight", C, mean=1)
        put(name + ".bias", C)

    put("emb.weight", V, C, scale=0.1)
    put("head.weight", V, C, scale=C**-0.5)
    norm("ln_out")
    norm("blocks.0.ln0")
    for i in range(L):
        b = f"blocks.{i}."
        for n in ("ln1", "ln2", "att.ln_x"):
            norm(b + n)
        for m in "rwkvag":
            put(b + "att.x_" + m, 1, 1, C, scale=0.2, mean=0.5)
        for l, r in ranks.items():
            put(b + f"att.{l}1", C, r, scale=C**-0.5)
            put(b + f"att.{l}2", r, C, scale=0.1)
            if l != "g":
                put(b + f"att.{l}0", 1, 1, C)
        for n in ("k_k", "k_a"):
            put(b + "att." + n, 1, 1, C, mean=0.8)
        put(b + "att.r_k", H, 64)
        for n in ("receptance", "key", "value", "output"):
            put(b + f"att.{n}.weight", C, C, scale=C**-0.5)
        put(b + "ffn.x_k", 1, 1, C, scale=0.2, mean=0.5)
        put(b + "ffn.key.weight", 4 * C, C, scale=C**-0.5)
        put(b + "ffn.value.weight", C, 4 * C, scale=(4 * C)**-0.5)
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for t in tensors.values():
            f.write(t.tobytes())
        f.flush()
        subprocess.run([args.rwkv, "convert", f.name, path, "--dtype", "bf16"], check=True,
                       stdout=subprocess.DEVNULL)


class Llama:
    def __init__(self, path):
        mp = ll.llama_model_default_params()
        mp.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), mp)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        cp = ll.llama_context_default_params()
        cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = 1024 * 34, 512, 512, 32
        cp.n_threads = cp.n_threads_batch = args.threads
        self.ctx = ll.llama_init_from_model(self.model, cp)
        self.batch = ll.llama_batch_init(512, 0, 32)

    def step(self, tokens, seqs, pos, last_only):
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, pos[i], 1, seqs[i]
            b.logits[i] = not last_only or i + 1 == len(tokens)
        if ll.llama_decode(self.ctx, b):
            sys.exit("llama_decode failed")

    def speed(self, what, batch, tokens):
        best = 0
        for _ in range(2):  # the first one warms up
            ll.llama_memory_clear(ll.llama_get_memory(self.ctx), True)
            start = time.perf_counter()
            if what == "prefill":
                self.step([i * 7919 % 60000 for i in range(tokens)], [0] * tokens, range(tokens), True)
            else:
                for p in range(tokens):
                    self.step([(7 + p + i * 31) % 60000 for i in range(batch)], range(batch), [p] * batch, False)
            best = batch * tokens / (time.perf_counter() - start)
        return best

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.ctx)
        ll.llama_model_free(self.model)


def ours(dtype, what, batch, tokens):
    out = subprocess.run([args.rwkv, "bench", what, "--weights", args.model, "--dtype", dtype, "--batch", str(batch),
                          "--tokens", str(tokens), "--repeat", "3", "--threads", str(args.threads), "--json"],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def quantise(name, ftype, folder):
    p = ll.llama_model_quantize_default_params()
    p.nthread, p.ftype = args.threads, ftype
    out = os.path.join(folder, name + ".gguf")
    if ll.llama_model_quantize(args.model.encode(), out.encode(), p):
        sys.exit(f"llama.cpp cannot quantise {args.model} to {name}")
    return out


def main():
    ll.llama_backend_init()
    ll.llama_log_set(QUIET, None)
    if args.make:
        make(args.model, args.make)
    with tempfile.TemporaryDirectory() as folder:
        peers = {"as it is": args.model, "q8_0": quantise("q8_0", 7, folder), "q4_K_M": quantise("q4_K_M", 15, folder)}
        ours_like = {"bf16": "as it is", "bf16w": "as it is", "int8": "q8_0", "int4": "q4_K_M"}
        print(f"{'':22}" + "".join(f"{'llama ' + n:>17}" for n in peers) + "".join(f"{d + ' (ratio)':>17}" for d in ours_like))
        for what, batch, tokens in CASES:
            theirs, mine = {n: [] for n in peers}, {d: [] for d in ours_like}
            shares = {d: [] for d in ours_like}
            for _ in range(args.rounds):
                for name, path in peers.items():
                    m = Llama(path)
                    theirs[name].append(m.speed(what, batch, tokens))
                    m.close()
                for dtype in ours_like:
                    r = ours(dtype, what, batch, tokens)
                    mine[dtype].append(r["tok_s"])
                    shares[dtype].append(r["share"])
            peer = {n: statistics.median(v) for n, v in theirs.items()}
            row = f"{what + ' b' + str(batch) + ' ' + str(tokens):22}" + "".join(f"{peer[n]:17.1f}" for n in peers)
            for dtype, like in ours_like.items():
                speed = statistics.median(mine[dtype])
                row += f"{speed:9.1f} ({speed / peer[like]:4.2f})".rjust(17)
            print(row + "   of the limit: " + " ".join(f"{statistics.median(shares[d]):.0%}" for d in ours_like), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rwkv", default="./rwkv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--make", metavar="SIZE")
    args = parser.parse_args()
    main()
