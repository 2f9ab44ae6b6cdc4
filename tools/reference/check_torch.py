#!/usr/bin/env python3
"""Checks rwkv7_torch.py against recorded vectors (logits, every gradient, three AdamW steps, the
learning rate, the data order). Usage: check_torch.py VECTORS_DIR [float32|float64]"""
import json
import os
import sys

import torch
from safetensors.torch import load_file

import rwkv7_torch as rwkv7


def relative(got, want):
    scale = want.norm().item()
    return (got.double() - want).norm().item() / scale if scale else got.double().norm().item()


def check_model(folder, dtype, bound):
    with open(os.path.join(folder, "vectors.json")) as f:
        vectors = json.load(f)
    params = rwkv7.load_weights(os.path.join(folder, "w_fp32.pth"), dtype)
    with torch.no_grad():
        logits = rwkv7.forward(params, torch.tensor([vectors["tokens"]]))[0].double()
    worst = {"logits": (logits - torch.tensor(vectors["logits"], dtype=torch.float64)).abs().max()}

    train = vectors["train"]
    idx, targets = torch.tensor(train["idx"]), torch.tensor(train["targets"])
    loss, grads = rwkv7.loss_and_grads(params, idx, targets)
    worst["loss"] = abs(loss - train["loss"])
    want = load_file(os.path.join(folder, "grads.safetensors"))
    worst["gradient"] = max(relative(grads[n] if grads[n] is not None else torch.zeros(1), w)
                            for n, w in want.items())

    hyper = train["hyper"]
    optimizer = rwkv7.AdamW(params, (hyper["beta1"], hyper["beta2"]), hyper["adam_eps"],
                            hyper["weight_decay"], hyper["grad_clip"])
    worst["step"] = 0.0
    for step in train["steps"]:
        lr = rwkv7.learning_rate(step["step"], hyper["lr_init"], hyper["lr_final"],
                                 hyper["warmup_steps"], hyper["my_exit_tokens"],
                                 hyper["tokens_per_step"])
        loss, grads = rwkv7.loss_and_grads(params, idx, targets)
        norm = optimizer.step(params, grads, lr)
        worst["step"] = max(worst["step"], abs(lr / step["lr"] - 1), abs(loss - step["loss"]),
                            abs(norm / step["grad_norm"] - 1))
    # Not in float32: with eps 1e-18 a tiny gradient whose sign rounding flips moves by 2 lr.
    if dtype == torch.float64:
        want = load_file(os.path.join(folder, "after3.safetensors"))
        worst["after3"] = max(relative(params[n].detach(), w) for n, w in want.items())
    print(os.path.basename(folder), "  ".join(f"{k} {float(v):.1e}" for k, v in worst.items()))
    return max(float(v) for v in worst.values()) <= bound


def check_schedule_and_order(path):
    with open(path) as f:
        misc = json.load(f)
    wrong = 0
    for run in misc["lr"].values():
        a = run["args"]
        for step, lr, _ in run["points"]:
            got = rwkv7.learning_rate(step, a["lr_init"], a["lr_final"], a["warmup"],
                                      a["exit_tokens"], a["tokens_per_step"])
            wrong += abs(got / lr - 1) > 1e-12
    for tokens, ctx, prime in misc["magic_prime"]:
        wrong += rwkv7.magic_prime(tokens, ctx) != prime
    for order in misc["order"]:
        for ii, offset in order["ii_offset"]:
            wrong += rwkv7.sample_offset(ii - 1, order["magic_prime"], order["ctx"]) != offset
    print(f"schedule, primes and order: {wrong} wrong")
    return wrong == 0


def main():
    vectors, dtype = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "float64"
    bound = {"float64": 1e-9, "float32": 5e-6}[dtype]
    good = [check_model(os.path.join(vectors, m), getattr(torch, dtype), bound)
            for m in ("h1-rand", "h1-init", "n16-rand")]
    good.append(check_schedule_and_order(os.path.join(vectors, "misc.json")))
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
