#!/usr/bin/env python3
"""Trains with rwkv7_torch.py over a .bin of uint16 tokens; writes CSV: step,loss,lr,grad_norm."""
import argparse
import time

import numpy as np
import torch

import rwkv7_torch as rwkv7


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--weights", required=True, help="initial weights, .pth or .safetensors")
    p.add_argument("--data", required=True, help="X.bin")
    p.add_argument("--csv", required=True, help="where the curve goes")
    p.add_argument("--save", help="final weights, .safetensors")
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--stop-after", type=int, help="fewer steps of the same schedule")
    p.add_argument("--ctx", type=int, default=128)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--lr-init", type=float, default=6e-4)
    p.add_argument("--lr-final", type=float, default=6e-5)
    p.add_argument("--warmup", type=int, default=10)
    p.add_argument("--weight-decay", type=float, default=0.001)
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    return p.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    params = rwkv7.load_weights(a.weights, getattr(torch, a.dtype))
    optimizer = rwkv7.AdamW(params, (0.9, a.beta2), weight_decay=a.weight_decay, clip=a.clip)
    tokens = np.memmap(a.data, dtype="<u2", mode="r")
    prime = rwkv7.magic_prime(len(tokens), a.ctx)
    tokens_per_step = a.ctx * a.batch
    print(f"{sum(p.numel() for p in params.values())} parameters, {len(tokens)} tokens, "
          f"magic prime {prime}", flush=True)

    with open(a.csv, "w") as csv:
        print("step,loss,lr,grad_norm", file=csv)
        for step in range(min(a.steps, a.stop_after or a.steps)):
            start = time.time()
            at = [rwkv7.sample_offset(step * a.batch + j, prime, a.ctx) for j in range(a.batch)]
            rows = torch.from_numpy(np.stack([tokens[o:o + a.ctx + 1] for o in at]).astype(np.int64))
            lr = rwkv7.learning_rate(step, a.lr_init, a.lr_final, a.warmup,
                                     a.steps * tokens_per_step, tokens_per_step)
            loss, grads = rwkv7.loss_and_grads(params, rows[:, :-1], rows[:, 1:])
            norm = optimizer.step(params, grads, lr)
            print(f"{step},{loss:.7f},{lr:.9e},{norm:.6e}", file=csv, flush=True)
            if step % 10 == 0:
                print(f"step {step}  loss {loss:.4f}  norm {norm:.3f}  {time.time() - start:.2f} s",
                      flush=True)
    if a.save:
        from safetensors.torch import save_file
        save_file({n: p.detach() for n, p in params.items()}, a.save)


if __name__ == "__main__":
    main()
