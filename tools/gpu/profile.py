#!/usr/bin/env python3
"""Where a program's time on the GPU goes, kernel by kernel, as ncu sees it.

usage: profile.py [--top N] [--skip SHARE] COMMAND [ARGUMENT...]

Kernels run one at a time and come one by one (no graphs), so the sum is more than a pass takes.
--skip leaves out the first SHARE of the launches (0.5 where a pass warms up and another is timed).
"""
import csv
import io
import os
import re
import subprocess
import sys

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum": "bytes",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor",
}


def short(name):
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::", "", name)
    depth, out = 0, ""
    for c in name:  # arguments go, templates stay
        if c == "(" and depth == 0 and not out.endswith("operator"):
            break
        depth += (c == "<") - (c == ">")
        out += c
    return out


def number(text, unit):
    scale = {"second": 1e9, "msecond": 1e6, "usecond": 1e3, "nsecond": 1, "ns": 1, "us": 1e3,
             "ms": 1e6, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "%": 1}
    return float(text.replace(",", "") or 0) * scale.get(unit, 1)


def main():
    args, top, skip = sys.argv[1:], 40, 0.0
    while args and args[0].startswith("--"):
        flag, value = args[0], args[1]
        if flag == "--top":
            top = int(value)
        elif flag == "--skip":
            skip = float(value)
        else:
            sys.exit(__doc__)
        args = args[2:]
    if not args:
        sys.exit(__doc__)
    got = subprocess.run(["ncu", "--csv", "--page", "raw", "--clock-control", "none", "--metrics",
                          ",".join(METRICS)] + args, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True,
                         env=dict(os.environ, RWKV_CUDA_GRAPHS="off")).stdout
    lines = got.splitlines()
    begin = [i for i, l in enumerate(lines) if l.startswith('"ID"')]
    if not begin:
        sys.exit(got)
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[begin[0]:]))))
    units, rows = rows[0], rows[1:]
    rows = rows[int(len(rows) * skip):]
    table = {}
    for row in rows:
        name = short(row["Kernel Name"]) + " " + row["Grid Size"].replace(" ", "")
        sums = table.setdefault(name, [0, 0.0, 0.0, 0.0])
        ns, moved, tensor = (number(row[m], units[m]) for m in METRICS)
        sums[0] += 1
        sums[1] += ns
        sums[2] += moved
        sums[3] += tensor * ns
    all_ns = sum(s[1] for s in table.values())
    print(f"{len(rows)} launches, {all_ns / 1e6:.3f} ms: {' '.join(args[1:])}")
    print("  share   calls    each us   GB/s  tensor%  kernel, grid")
    for name, (n, ns, moved, tensor) in sorted(table.items(), key=lambda x: -x[1][1])[:top]:
        print(f"{100 * ns / all_ns:6.1f}% {n:6d} {ns / n / 1e3:10.2f} {moved / ns:7.0f} "
              f"{tensor / ns:7.1f}  {name[:150]}")


main()
