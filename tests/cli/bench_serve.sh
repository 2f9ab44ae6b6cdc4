#!/bin/bash
# `rwkv bench serve` and `report` against a stand-in server: what is counted, and what is an error.
set -u
rwkv=$PWD/${BUILD:-build}/rwkv
if ! command -v python3 >/dev/null; then
    echo "SKIP bench_serve: python3 plays the server, and is missing"
    exit 77
fi
dir=$(mktemp -d)
mkfifo "$dir/stay"
python3 tests/cli/standin.py <"$dir/stay" >"$dir/port" &
server=$!
exec 9>"$dir/stay" # the server ends when this is closed
trap 'exec 9>&-; wait $server; rm -r "$dir"' EXIT
for ((i = 0; i < 100; i++)); do [ -s "$dir/port" ] && break; sleep 0.1; done
url=http://127.0.0.1:$(cat "$dir/port")
passed=0 failed=0

verdict() { # name ok-or-not what-was-seen
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        printf '%s:\n%s\n' "$1" "${3:0:3000}"
    fi
}

check() { # name exit-code text command…
    local name=$1 want=$2 text=$3 out rc=0
    shift 3
    out=$("$@" 2>&1 9>&-) || rc=$?
    [ $rc = "$want" ] && [[ $out == *"$text"* ]]
    verdict "$name" $? "exit $rc, wanted $want and \"$text\" in: $out"
}

serve() { # model option… : figures go to $dir/MODEL.json
    local model=$1
    shift
    timeout 60 "$rwkv" bench serve --base-url "$url" --model "$model" --num-requests 20 \
        --concurrency "${in_flight:-5}" --output-tokens 8 --input-tokens 50 --warmup "${warmup:-2}" \
        --output-json "$dir/$model.json" --report-dir "$dir/$model" "$@"
}

says() { # name model expression: over d (the JSON), s (its summary) and q (its requests)
    local out
    out=$(python3 -c "
import json, sys
d = json.load(open('$dir/$2.json'))
s, q = d['summary'], d['requests']
ok = $3
if not ok: print({k: d[k] for k in d if k != 'requests'}, q[:2])
sys.exit(not ok)" 2>&1)
    verdict "$1" $? "$3: $out"
}

all() { # fault-of-all-20 model
    says "$2" "$2" "s['completed'] == 0 and s['failed'] == 20 and s['error_buckets']['$1'] == 20 and all(r['error'] for r in q) and s['e2el_ms']['count'] == 0 and s['error_rate'] == 1"
}

check closed 0 "serve json: $dir/good.json" serve good --api-key sk-secret-1 --metadata commit=abc \
    --slo-ttft-ms 30000 --slo-tpot-ms 30000 --extra-body '{"top_p": 0.5, "x": {"y": "}"}}'
says keys good "set('started_at_utc finished_at_utc config duration_s summary requests'.split()) <= set(d) and set('base_url model endpoint num_requests concurrency request_rate input_tokens output_tokens stream temperature timeout_secs metadata'.split()) <= set(d['config']) and set('completed failed duration_s request_throughput output_token_throughput total_token_throughput mean_ttft_ms mean_itl_ms mean_tpot_ms mean_e2el_ms ttft_ms itl_ms tpot_ms e2el_ms'.split()) <= set(s) and set('request_id success error prompt_tokens output_tokens ttft_s itl_s tpot_s e2el_s'.split()) <= set(q[0])"
says tokens good "s['token_source'] == 'usage' and s['output_tokens'] == 160 and s['completed'] == 20 and all(r['output_tokens'] == 8 and len(r['itl_s']) == 7 for r in q)"
says calibration good "all(abs(r['prompt_tokens'] - 50) <= 1 for r in q)"
says order good "all(0 < r['ttft_s'] <= r['e2el_s'] for r in q) and s['ttft_ms']['p50'] <= s['ttft_ms']['p99'] <= s['e2el_ms']['max']"
says goodput good "s['goodput']['good_requests'] == 20 and s['goodput']['good_share'] == 1"
says metadata good "d['config']['metadata'] == {'commit': 'abc'} and d['config']['concurrency'] == 5"
says ceiling good "s['client']['peak_in_flight'] == 5 and s['client']['connects'] <= 5"
! grep -rq sk-secret "$dir/good.json" "$dir/good"
verdict "no key on disk" $? "the api key was written"

seen=$(python3 -c "
import json, urllib.request
d = json.load(urllib.request.urlopen('$url/seen'))
b = d['bodies'][-1]
print(d['requests'], d['prompts'], 'Bearer sk-secret-1' in d['keys'], b['stream_options'], b['top_p'], b['max_tokens'])")
[ "$seen" = "24 24 True {'include_usage': True} 0.5 8" ]
verdict "what the server saw" $? "$seen"

check chat 0 "20 of 20" serve pieces --endpoint chat-completions --seed 5
says chat pieces "d['config']['endpoint'] == 'chat_completions' and s['output_tokens'] == 160 and s['chunks'] == 160"
check "no usage" 0 "20 of 20" serve no-usage
says "no usage" no-usage "s['token_source'] == 'chunks' and s['output_tokens'] == 160 and q[0]['token_source'] == 'chunks'"
grep -q "output tokens are the chunks" "$dir/no-usage/report.md"
verdict "the report says so" $? "$(cat "$dir/no-usage/report.md")"
check "not streamed" 0 "20 of 20" serve whole --no-stream
says "not streamed" whole "s['output_tokens'] == 160 and s['tpot_ms']['count'] == 0 and q[0]['ttft_s'] == q[0]['e2el_s'] and not d['config']['stream']"
check "closes each time" 0 "20 of 20" serve closes
says "closes each time" closes "s['failed'] == 0 and s['client']['connects'] >= 15"
check "half are refused" 0 "10 failed" serve busy --no-calibration
says "half are refused" busy "s['error_buckets']['rejected'] == 10 and s['completed'] == 10"

check no-done 1 "without [DONE]" serve no-done && all bad_stream no-done
check in-stream 1 "out of patience" serve in-stream && all backend_error in-stream
check garbage 1 "no JSON object" serve garbage && all bad_stream garbage
check cut 1 "within the answer" serve cut && all connection cut
check page 1 "text/html" serve page && all bad_stream page
in_flight=20 warmup=0 check timeout 1 "no end within 0.3 s" serve hang --timeout-secs 0.3
all timeout hang
check nowhere 1 "HTTP 404: no model nowhere" serve nowhere
check nobody 1 "connection refused" "$rwkv" bench serve --base-url http://127.0.0.1:1 --model x
check https 1 "https is not offered" "$rwkv" bench serve --base-url https://127.0.0.1 --model x
check "two wishes" 2 "exclude" serve x --stream --no-stream
check "no rate" 2 "wants a --request-rate" serve x --poisson
check "our members" 2 "an option of its own" serve x --extra-body '{"model": "y"}'
check "no object" 2 "wanted an object" serve x --extra-body '[1]'

# Eight tokens take a slow server a quarter of a second: five at a time can do 20 requests a second,
# and 60 are due. What waits for its turn waits visibly.
check "open loop" 0 "20 of 20" serve slow --request-rate 60 --no-calibration
says "no coordinated omission" slow "abs(q[19]['start_s'] - 19 / 60) < 1e-4 and q[19]['start_lag_s'] > 0.3 and q[19]['e2el_s'] > q[19]['start_lag_s'] + 0.2 and q[0]['e2el_s'] < q[19]['e2el_s']"
check poisson 0 "20 of 20" serve fast --request-rate 200 --poisson --connections-idle 50
says poisson fast "s['client']['idle_connections_open'] == 50 and len({round(b['start_s'] - a['start_s'], 5) for a, b in zip(q, q[1:])}) > 15 and s['client']['peak_in_flight'] >= 1"

check report 0 "report markdown: $dir/r/report.md" \
    "$rwkv" bench report --input-json "$dir/good.json" --output-dir "$dir/r"
# The file keeps microseconds: the last digit of a latency may differ, and nothing else.
difference=$(diff <(grep -v '^| [TEI]' "$dir/r/report.md") <(grep -v '^| [TEI]' "$dir/good/report.md"))
verdict "the same report" $? "$difference"
check compare 0 "chart: $dir/ab/throughput.svg" "$rwkv" bench report --input-json "$dir/good.json" \
    --compare "$dir/slow.json" --output-dir "$dir/ab"
grep -q "% worse" "$dir/ab/report.md"
verdict "slow is worse" $? "$(cat "$dir/ab/report.md")"
python3 -c "
import glob, sys, xml.dom.minidom
files = glob.glob('$dir/*/*.svg')
for f in files: xml.dom.minidom.parse(f)
sys.exit(any('nan' in open(f).read() or 'inf' in open(f).read() for f in files) or len(files) < 30)"
verdict "pictures" $? "an SVG is missing, no XML, or draws nan"
python3 -c "
import json
gaps = [0.01] * 4
spread = {'p50': 1, 'p90': 1, 'p95': 1, 'p99': 1}
json.dump({'started_at_utc': '2025-01-01T00:00:00Z', 'finished_at_utc': '2025-01-01T00:00:01Z',
    'config': {'base_url': 'http://x', 'model': 'm', 'endpoint': 'completions', 'num_requests': 3,
        'concurrency': 2, 'request_rate': 0.0, 'input_tokens': 9, 'output_tokens': 5,
        'stream': True, 'temperature': 0.0, 'timeout_secs': 120, 'api_key': 'k', 'metadata': {}},
    'duration_s': 1.0, 'summary': {'completed': 2, 'failed': 1, 'ttft_ms': spread},
    'requests': [{'request_id': i, 'success': i < 2, 'error': None if i < 2 else 'no | <b>',
        'prompt_tokens': 9, 'output_tokens': 5, 'ttft_s': 0.1, 'itl_s': gaps, 'tpot_s': 0.01,
        'e2el_s': 0.14} for i in range(3)]}, open('$dir/theirs.json', 'w'))"
check "the reference's file" 0 "chart: " "$rwkv" bench report --input-json "$dir/theirs.json" \
    --output-dir "$dir/theirs"
grep -q "Output tokens / s | 10.00" "$dir/theirs/report.md" && ! grep -q "<b>" "$dir/theirs/report.md"
verdict "the reference's figures" $? "$(cat "$dir/theirs/report.md")"
printf '{"requests": 1}' >"$dir/wrong.json"
check "no result" 1 "not what" "$rwkv" bench report --input-json "$dir/wrong.json" --output-dir "$dir/x"

"$rwkv" bench serve --base-url "$url" --model hang --num-requests 5 --warmup 0 --no-calibration \
    --output-json "$dir/int.json" --report-dir "$dir/int" >"$dir/out" 2>&1 9>&- &
bench=$!
python3 -c "
import json, time, urllib.request
for i in range(200):
    bodies = json.load(urllib.request.urlopen('$url/seen'))['bodies']
    if all(b['model'] == 'hang' and b['stream'] for b in bodies): break
    time.sleep(0.05)"
kill -INT $bench
wait $bench
says interrupted int "s['error_buckets']['cancel'] == 5 and s['client']['interrupted']"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
