#!/usr/bin/env python3
"""The same GGUF file in rwkv and in llama.cpp: do the logits agree, and 64 greedy tokens?

    tools/bench/gguf_agree.py MODEL.gguf [--prompt "1 2 3"] [--rwkv ./rwkv]

llama.cpp (PyPI llama-cpp-python) reads the prompt and continues it greedily; rwkv then says, with
`rwkv verify logits`, what it makes of prompt and continuation. Where the most probable next token is
the same at every position, rwkv would have written the same text. Prints a line of figures; exits
with 1 where they disagree and with 77 where llama_cpp is missing.
"""
import argparse
import ctypes
import json
import subprocess
import sys

try:
    import llama_cpp as llama
    import numpy as np
except ImportError as why:
    print(f"SKIP gguf_agree: {why}: pip install llama-cpp-python")
    sys.exit(77)


@llama.llama_log_callback
def _quiet(level, text, data):
    if level == 4:  # an error
        sys.stderr.write(text.decode("utf-8", "replace"))


class Llama:
    """One sequence from a zero state, a batch at a time."""

    def __init__(self, path, threads):
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp does not load it")
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 4096, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"{path}: llama.cpp makes no context for it")
        vocab = llama.llama_model_get_vocab(self.model)
        self.size = llama.llama_vocab_n_tokens(vocab)
        self.batch = llama.llama_batch_init(512, 0, 1)
        self.position = 0

    def feed(self, tokens):
        """The logits behind each of the tokens."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self.position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if llama.llama_decode(self.context, batch):
            sys.exit("llama_decode failed")
        self.position += len(tokens)
        rows = [llama.llama_get_logits_ith(self.context, i) for i in range(len(tokens))]
        return [np.ctypeslib.as_array(row, (self.size,)).astype(np.float64) for row in rows]

    def text(self, tokens):
        vocab = llama.llama_model_get_vocab(self.model)
        if llama.llama_vocab_type(vocab) == 0:  # the file carries no vocabulary
            return None
        out, buffer = b"", ctypes.create_string_buffer(4096)
        for token in tokens:
            n = llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
            out += buffer.raw[: max(n, 0)]
        return out.decode("utf-8", "replace")


def rwkv_logits(args, tokens):
    command = [args.rwkv, "verify", "logits", "--weights", args.model, "--threads",
               str(args.threads), "--tokens", " ".join(map(str, tokens))]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return np.array([json.loads(line) for line in lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompt", default="1 2 3 5 8 13 21 34",
                        help="token ids, modulo the size of the vocabulary")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rwkv", default="./rwkv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4,
                        help="of the largest difference, as a share of the largest logit")
    args = parser.parse_args()
    other = Llama(args.model, args.threads)
    prompt = [int(token) % other.size for token in args.prompt.split()]
    if not 0 < len(prompt) <= 512:
        parser.error("1 to 512 tokens of prompt")

    rows = other.feed(prompt)
    tokens = list(prompt)
    for _ in range(args.tokens):
        tokens.append(int(rows[-1].argmax()))
        rows += other.feed(tokens[-1:])
    theirs, ours = np.array(rows), rwkv_logits(args, tokens)
    if ours.shape != theirs.shape:
        sys.exit(f"rwkv gives {ours.shape} logits, llama.cpp {theirs.shape}")

    continued = slice(len(prompt) - 1, len(tokens) - 1)
    same = int((ours[continued].argmax(1) == np.array(tokens[len(prompt):])).sum())
    best = np.sort(theirs[continued], axis=1)
    worst, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    text = other.text(tokens[len(prompt):])
    if text is not None:
        print(f"text: {json.dumps(text)}")
    print(f"{args.model}: {len(tokens)} positions of {ours.shape[1]} logits; largest difference "
          f"{worst:.2e}, largest logit {largest:.2f}, share {worst / largest:.2e}, root mean square "
          f"{np.sqrt(((ours - theirs) ** 2).mean()):.2e}; greedy tokens equal: {same} of "
          f"{args.tokens}, least lead of a best token {(best[:, -1] - best[:, -2]).min():.2e}")
    if worst > args.tolerance * largest or same != args.tokens or not np.isfinite(worst):
        sys.exit("they disagree")


if __name__ == "__main__":
    main()
