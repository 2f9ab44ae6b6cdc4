"""FAULTS J1 to J7: what is done to a server through the bodies of its requests. Usage: params.py [NAME…]"""
import json, os, sys, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../http"))
from harness import *

server = Server("params", model="max_context_len = 3000\n")


def post(body, path="/v1/completions"):
    return server.ask("POST", path, body)


def refused(body, limit=10, path="/v1/completions"):
    """400 with a message, in time, while others are served; returns the error."""
    start = time.time()
    a = post(body, path)
    took = time.time() - start
    same(a.status, 400, a.body[:300])
    assert a.error["message"] and len(a.body) < 3000 and took < limit * SLOW, took
    same(server.get("/health").status, 200)
    return a.error


def with_field(field, value):
    return '{"model":"tiny","prompt":"x","max_tokens":2,"%s":%s}' % (field, value)


@case
def J1_deep_nesting():
    for field in ("prompt", "ignored", "messages", "logit_bias"):
        refused('{"model":"tiny","%s":' % field + "[" * 100000 + "]" * 100000 + "}")
        refused('{"model":"tiny","%s":' % field + '{"a":' * 100000 + "1" + "}" * 100000 + "}")

@case
def J2_huge_strings_and_many_keys():
    same(post('{"model":"tiny","prompt":"' + "x" * (60 << 20) + '"}').status, 413)
    same(refused('{"model":"tiny","prompt":"' + "x" * (40 << 20) + '"}', 30)["code"], "context_length_exceeded")
    keys = ",".join('"k%d":1' % i for i in range(1000000))
    same(post('{"model":"tiny","prompt":"x","max_tokens":1,' + keys + "}").status, 200)

@case
def J2_others_are_served_meanwhile():
    worst = [0]
    done = threading.Event()
    def watch():
        while not done.is_set():
            start = time.time()
            server.get("/health")
            worst[0] = max(worst[0], time.time() - start)
    t = threading.Thread(target=watch)
    t.start()
    body = '{"model":"tiny","prompt":"' + "x" * (40 << 20) + '",' + ",".join('"k%d":1' % i for i in range(300000)) + "}"
    refused(body, 30)
    done.set()
    t.join()
    print(f"    worst delay of others beside a body of {len(body) >> 20} MB: {worst[0] * 1e3:.0f} ms")
    assert worst[0] < 2 * SLOW, worst[0]

@case
def J2_duplicate_keys():
    refused('{"model":"tiny","model":"tiny","prompt":"x"}')

@case
def J3_bad_text():
    for text in (b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\\x"', b'"a', b'"\x01"'):
        refused(b'{"model":"tiny","prompt":' + text + b"}")
    same(post(b'{"model":"tiny","prompt":"a\\u0000b","max_tokens":1}').json["usage"]["prompt_tokens"], 4)
    refused(b'{"model":"ti\\u0000ny","prompt":"x","stop":"a\\u0000"}')

@case
def J4_strange_numbers():
    for number in ("1e999", "-1e999", "NaN", "Infinity", "0x10", "01", "1.", ".5", "+1", "1e", "9223372036854775808"):
        refused(with_field("temperature", number))
    for number in ("-0", "1e-400", "0.0", "-0.0"):
        same(post(with_field("temperature", number)).status, 200, number)
    same(post(with_field("seed", "9223372036854775807")).status, 200)

@case
def J5_every_number_with_everything():
    fields = ["temperature", "top_p", "min_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty",
              "penalty_decay", "max_tokens", "max_completion_tokens", "seed", "logprobs", "top_logprobs", "n", "best_of"]
    bad = ['"1"', "true", "[]", "{}", "[1]", '"x"']
    for field in fields:
        for path, base in (("/v1/completions", '"prompt":"x"'), ("/v1/chat/completions", '"messages":[{"role":"user","content":"x"}]')):
            for value in bad:
                if (field, value) in (("logprobs", "true"), ("n", "[]"), ("best_of", "[]")) or field == "top_logprobs":
                    continue
                same(refused('{"model":"tiny",%s,"%s":%s}' % (base, field, value), path=path)["param"], field)
            for value in ("-1", "0", "1", "null", "2147483647", "-2147483648", "1e308", "-1e308", "0.5"):
                a = post('{"model":"tiny",%s,"max_tokens":2,"%s":%s}' % (base, field, value), path) if "max" not in field \
                    else post('{"model":"tiny",%s,"%s":%s,"stop":"e"}' % (base, field, value), path)
                assert a.status in (200, 400), (field, value, a.body)
                if a.status == 400:
                    same(a.error["param"], field, a.body)

@case
def J6_absurd_sizes():
    same(refused(with_field("n", "1000000000"))["param"], "n")
    same(refused(with_field("logprobs", "1000000"))["param"], "logprobs")
    same(refused('{"model":"tiny","prompt":"x","max_tokens":2147483648}')["param"], "max_tokens")
    same(refused(with_field("stop", json.dumps(["a"] * 100000)))["param"], "stop")
    same(refused(with_field("stop", json.dumps("a" * 100000)))["param"], "stop")
    for key in ("-1", "65536", "abc", "", "1.5", "99999999999999999999"):
        same(refused(with_field("logit_bias", json.dumps({key: 1})))["param"], "logit_bias")
    same(refused(with_field("logit_bias", json.dumps({str(i): 1 for i in range(65000)})))["param"], "logit_bias")
    same(refused('{"model":"tiny","prompt":' + json.dumps(["x"] * 2000) + "}")["param"], "prompt")
    same(refused('{"model":"tiny","prompt":' + json.dumps([1] * 5000) + "}")["param"], "prompt")

@case
def J7_empty_and_endless():
    refused('{"model":"tiny","messages":[]}', path="/v1/chat/completions")
    refused('{"model":"tiny","prompt":[]}')
    refused("")
    refused("[]")
    refused("null")
    same(post('{"model":"tiny","prompt":"","max_tokens":1}').status, 200)
    same(post('{"model":"tiny","prompt":[0,66,0,67],"max_tokens":1}').json["usage"]["prompt_tokens"], 4)
    same(refused('{"model":"tiny","prompt":"' + "x" * 10000000 + '"}')["code"], "context_length_exceeded")
    a = post(json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "y" * 10000000}]}), "/v1/chat/completions")
    same((a.status, a.error["code"]), (400, "context_length_exceeded"))
    same(post(json.dumps({"model": "tiny", "prompt": "z" * 10000000}), "/tokenize").json["count"], 10000001)


if __name__ == "__main__":
    run(sys.argv[1:])
