#!/usr/bin/env python3
"""Writes freshly initialised official weights. Usage: init_torch.py LAYERS WIDTH VOCAB OUT [SEED]
OUT ends in .safetensors or .pth; the head size is 64."""
import math
import sys

import torch

N = 64


def orthogonal(rows, cols, gain):
    q, r = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols)))
    q = q * torch.diagonal(r).sign()
    return gain * (q if rows >= cols else q.T).contiguous()


def rank(C, factor):
    return max(32, 32 * round(factor * math.sqrt(C) / 32))


def lora(C, R):
    return torch.zeros(C, R), orthogonal(R, C, 0.1 * (math.sqrt(R / C) if R > C else 1))


def init_weights(L, C, V):
    n = torch.arange(C, dtype=torch.float32)
    lin = n / (C - 1) - 0.5
    z = (n % N - (N - 1) / 2) / ((N - 1) / 2)
    zig = z * z.abs()
    w = {"emb.weight": torch.empty(V, C).uniform_(-1e-4, 1e-4)}
    w["head.weight"] = orthogonal(V, C, 0.5 * (math.sqrt(V / C) if V > C else 1))
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(L):
        up, down, block = i / (L - 1), 1 - i / L, f"blocks.{i}."
        att, ffn = block + "att.", block + "ffn."
        norms += [block + "ln1", block + "ln2"]
        for s, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            w[f"{att}x_{s}"] = (1 - (n / C) ** (power * down)).view(1, 1, C)
        w[att + "w0"] = (-5.5 + 6 * (n / (C - 1)) ** (1 + up**0.3) + 2.5 * zig).view(1, 1, C)
        w[att + "a0"] = (-0.19 + 0.3 * zig + 0.4 * lin).view(1, 1, C)
        w[att + "v0"] = (0.73 - 0.4 * lin).view(1, 1, C)
        w[att + "k_k"] = (0.71 - 0.1 * lin).view(1, 1, C)
        w[att + "k_a"] = torch.full((1, 1, C), 1.02)
        w[att + "r_k"] = torch.full((C // N, N), -0.04)
        for s, factor in (("w", 2.5), ("a", 2.5), ("v", 1.7), ("g", 5)):
            w[f"{att}{s}1"], w[f"{att}{s}2"] = lora(C, rank(C, factor))
        for name, gain in (("receptance", 1), ("key", 0.1), ("value", 1)):
            w[f"{att}{name}.weight"] = orthogonal(C, C, gain)
        w[att + "output.weight"] = torch.zeros(C, C)
        w[att + "ln_x.weight"] = torch.full((C,), ((1 + i) / L) ** 0.7)
        w[att + "ln_x.bias"] = torch.zeros(C)
        w[ffn + "x_k"] = (1 - (n / C) ** (down**4)).view(1, 1, C)
        w[ffn + "key.weight"] = orthogonal(4 * C, C, 1)
        w[ffn + "value.weight"] = torch.zeros(C, 4 * C)
    for name in norms:
        w[name + ".weight"], w[name + ".bias"] = torch.ones(C), torch.zeros(C)
    return w


def main():
    L, C, V, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.manual_seed(int(sys.argv[5]) if len(sys.argv) > 5 else 0)
    weights = init_weights(L, C, V)
    if out.endswith(".safetensors"):
        from safetensors.torch import save_file
        save_file(weights, out)
    else:
        torch.save(weights, out)


if __name__ == "__main__":
    main()
