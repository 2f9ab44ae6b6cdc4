#!/bin/sh
# Who may include whom (docs/architecture.md): prints each include that turns an arrow.
cd "$(dirname "$0")/.." || exit 1
grep -rnE '^[ \t]*#[ \t]*include' src cmd --include='*.[ch]' --include='*.cu' --include='*.cuh' |
awk -F: '
function bad(why) { printf "%s:%s: %s: %s\n", $1, $2, header, why; wrong = 1 }
BEGIN {
    may["base"]    = " base "
    may["backend"] = " base backend "
    may["weights"] = " base backend weights "
    may["text"]    = " base text "
    may["data"]    = " base text data "
    may["model"]   = " base backend weights text data model "
    may["train"]   = " base backend weights text data model train "
    may["infer"]   = " base backend weights text data model infer "
    may["serve"]   = " base text serve "
}
{
    split($3, q, /["<>]/); header = q[2]; n = split($1, at, "/"); m = split(header, to, "/")
    room = at[1] == "cmd" ? "cmd" : at[2]
    if (header ~ /\.\./) bad("paths start at src/, without ..")
    if (header ~ /^(cuda|cublas|cudnn|nvrtc|nccl)/ && $1 !~ /^src\/backend\/cuda\//) bad("belongs to backend/cuda")
    if (header ~ /webgpu\.h|wgpu\.h/ && $1 !~ /^src\/backend\/wgpu\//) bad("belongs to backend/wgpu")
    if (header == "jansson.h" && $1 != "src/base/json.c") bad("belongs to base/json.c")
    if (to[m] == "config.h" && room != "cmd") bad("only cmd reads config")
    if ($3 !~ /"/ || room == "cmd" || m == 1 || header == "infer/engine.h" && room == "serve") next
    if (index(may[room], " " to[1] " ") == 0) bad(room " does not know " to[1])
    else if (m > 2 && $1 !~ "^src/" to[1] "/") bad("an inner room of " to[1])
}
END { if (!wrong) print "layering: " NR " includes, no arrow turned"; exit wrong }'
