#!/usr/bin/env python3
"""Compares the losses of two runs at every 50th step and at the last. Each file is CSV with a header
(step,loss,…), steps counted from 0, or rwkv's log.jsonl, which counts the steps taken (from 1); other
lines and keys are ignored.
Usage: compare_curves.py A B [--every 50] [--bound 0.002]      exit 1: further apart than the bound"""
import argparse
import csv
import json
import math
import sys


def read_curve(path):
    with open(path) as f:
        lines = f.read().splitlines()
    if lines and lines[0].lstrip().startswith("{"):
        rows, first = [json.loads(line) for line in lines if line.strip()], 1
    else:
        rows, first = csv.DictReader(lines), 0
    return {int(r["step"]) - first: float(r["loss"]) for r in rows if "step" in r and "loss" in r}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("a")
    p.add_argument("b")
    p.add_argument("--every", type=int, default=50)
    p.add_argument("--bound", type=float, default=0.002)
    o = p.parse_args()
    a, b = read_curve(o.a), read_curve(o.b)
    both = sorted(a.keys() & b.keys())
    if not both:
        sys.exit(f"no step is in both {o.a} ({len(a)} steps) and {o.b} ({len(b)} steps)")
    steps = [s for s in both if s % o.every == 0 or s == both[-1]]
    for s in steps:
        print(f"step {s:6d}  {a[s]:.6f}  {b[s]:.6f}  {b[s] - a[s]:+.6f}")
    far = {s: abs(a[s] - b[s]) for s in steps}
    # A NaN is further than any bound; max alone would pass over it.
    worst = max(steps, key=lambda s: math.inf if math.isnan(far[s]) else far[s])
    print(f"max |difference| {far[worst]:.6f} at step {worst}, bound {o.bound}, "
          f"{len(a)} and {len(b)} steps")
    sys.exit(not (far[worst] <= o.bound and len(a) == len(b)))



if __name__ == "__main__":
    main()
