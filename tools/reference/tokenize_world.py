#!/usr/bin/env python3
"""Tokenizes JSONL ({"text": …} per line, on stdin) into a .bin of uint16 tokens with a 0 after each
document: greedy longest match over the World vocabulary.
Usage: tokenize_world.py VOCAB.txt OUT.bin <X.jsonl"""
import array
import ast
import json
import sys


def read_vocab(path):
    ids = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            first, last = line.index(" "), line.rindex(" ")
            literal = ast.literal_eval(line[first + 1:last])
            token = literal.encode("utf-8") if isinstance(literal, str) else literal
            assert len(token) == int(line[last:]), line
            ids[token] = int(line[:first])
    return ids


def encode(ids, longest, data):
    at, out = 0, []
    while at < len(data):
        n = next(n for n in range(min(longest, len(data) - at), 0, -1) if data[at:at + n] in ids)
        out.append(ids[data[at:at + n]])
        at += n
    return out


def main():
    ids = read_vocab(sys.argv[1])
    longest = max(map(len, ids))
    tokens = array.array("H")
    for line in sys.stdin:
        if line.strip():
            tokens.extend(encode(ids, longest, json.loads(line)["text"].encode("utf-8")) + [0])
    with open(sys.argv[2], "wb") as f:
        tokens.tofile(f)
    print(len(tokens), "tokens")


if __name__ == "__main__":
    main()
