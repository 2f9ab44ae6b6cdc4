"""What clients of OpenAI-compatible servers expect, one case each. Usage: conformance.py [NAME…]"""
import json, os, re, socket, subprocess, sys, time
sys.path.insert(0, os.path.dirname(__file__))
from harness import *

server = Server("conformance", top="sse_keep_alive_ms = 200\n", model="max_context_len = 3000\n")
weights = server.dir + "/weights/tiny.pth"


def refused(answer, param, status=400):
    same(answer.status, status, answer.body)
    same(answer.error["param"], param, answer.body)
    assert set(answer.error) == {"message", "type", "param", "code"}, answer.body
    assert answer.error["message"], answer.body


# -- usage ------------------------------------------------------------------------------------

@case
def usage_is_in_whole_answers():
    u = server.completion("abc", max_tokens=5, logit_bias={"0": -100}).json["usage"]
    same((u["prompt_tokens"], u["completion_tokens"], u["total_tokens"]), (4, 5, 9))
    same(u["prompt_tokens_details"], {"cached_tokens": 0})

@case
def usage_streams_only_when_asked():
    events = server.completion(max_tokens=4, stream=True).events
    assert all("usage" not in e for e in events), events

@case
def usage_streams_as_one_extra_chunk():
    events = server.completion(max_tokens=4, stream=True, stream_options={"include_usage": True},
                               logit_bias={"0": -100}).events
    same(events[-1]["choices"], [])
    same(events[-1]["usage"]["completion_tokens"], 4)
    assert all(e["usage"] is None for e in events[:-1]), events

@case
def usage_is_off_with_empty_stream_options():
    assert all("usage" not in e for e in server.chat(stream=True, stream_options={}).events)

@case
def usage_counts_token_ids_as_they_are():
    same(server.completion([66, 67], max_tokens=1).json["usage"]["prompt_tokens"], 2)

# -- finish_reason ----------------------------------------------------------------------------

@case
def finish_is_length():
    same(server.completion(max_tokens=3, logit_bias={"0": -100}).json["choices"][0]["finish_reason"], "length")

@case
def finish_is_stop_at_the_documents_end():
    c = server.completion(max_tokens=30, logit_bias={"0": 100}, temperature=0).json["choices"][0]
    same((c["finish_reason"], c["text"]), ("stop", ""))

@case
def finish_comes_once_and_alone():
    for kind in (server.chat, server.completion):
        events = kind(stream=True, max_tokens=4, logit_bias={"0": -100}).events
        finished = [e["choices"][0] for e in events if e["choices"][0]["finish_reason"]]
        same(len(finished), 1)
        same(finished[0]["finish_reason"], "length")
        same(finished[0].get("delta", {}), {})
        same(finished[0].get("text", ""), "")

@case
def finish_comes_for_each_choice():
    events = server.completion(["a", "b", "c"], stream=True, max_tokens=4).events
    done = [e["choices"][0]["index"] for e in events if e["choices"][0]["finish_reason"]]
    same(sorted(done), [0, 1, 2])

# -- shapes -----------------------------------------------------------------------------------

@case
def completion_has_its_shape():
    a = server.completion(max_tokens=2).json
    same(a["object"], "text_completion")
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", a["id"]) and abs(a["created"] - time.time()) < 60 and a["model"] == "tiny"
    assert a["system_fingerprint"] and a["choices"][0]["logprobs"] is None and a["choices"][0]["index"] == 0

@case
def chat_has_its_shape():
    a = server.chat().json
    same(a["object"], "chat.completion")
    assert a["id"].startswith("chatcmpl-")
    same(a["choices"][0]["message"]["role"], "assistant")
    assert isinstance(a["choices"][0]["message"]["content"], str)

@case
def chat_chunks_have_their_shape():
    events = server.chat(stream=True).events
    same(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
    assert all(e["object"] == "chat.completion.chunk" and e["id"] == events[0]["id"] for e in events)
    assert all("role" not in e["choices"][0]["delta"] for e in events[1:])

@case
def streams_say_what_they_are():
    a = server.chat(stream=True)
    assert a.headers["content-type"].startswith("text/event-stream") and a.headers["cache-control"] == "no-cache"

@case
def stream_and_whole_are_the_same_text():
    whole = server.completion(seed=5, max_tokens=200).json["choices"][0]["text"]
    pieces = "".join(e["choices"][0]["text"] for e in server.completion(seed=5, max_tokens=200, stream=True).events)
    same(pieces, whole)

@case
def ids_are_unique():
    same(len({server.completion(max_tokens=1).json["id"] for _ in range(20)}), 20)

# -- prompts ----------------------------------------------------------------------------------

@case
def prompt_may_be_a_list_of_texts():
    c = server.completion(["a", "b"], max_tokens=3, temperature=0).json["choices"]
    same([x["index"] for x in c], [0, 1])
    same([x["text"] for x in c], [server.completion(p, max_tokens=3, temperature=0).json["choices"][0]["text"] for p in "ab"])

@case
def prompt_may_be_tokens():
    text = server.completion("ab", max_tokens=9, seed=1).json["choices"][0]["text"]
    same(server.completion([0, 98, 99], max_tokens=9, seed=1).json["choices"][0]["text"], text)

@case
def prompt_may_be_lists_of_tokens():
    same(len(server.completion([[66], [67, 68]], max_tokens=2).json["choices"]), 2)

@case
def prompt_may_be_empty():
    same(server.completion("", max_tokens=2).json["usage"]["prompt_tokens"], 1)

@case
def prompt_of_no_tokens_is_refused():
    refused(server.completion([]), "prompt")

@case
def prompt_with_unknown_token_is_refused():
    refused(server.completion([257]), "prompt")
    refused(server.completion([-1]), "prompt")

@case
def prompt_is_required():
    refused(server.ask("POST", "/v1/completions", {"model": "tiny"}), "prompt")

@case
def prompt_too_long_is_named():
    a = server.completion("x" * 5000)
    refused(a, "prompt")
    same(a.error["code"], "context_length_exceeded")

@case
def text_ends_at_the_context():
    u = server.completion("x" * 2990, max_tokens=500, logit_bias={"0": -100})
    same((u.json["usage"]["total_tokens"], u.json["choices"][0]["finish_reason"]), (3000, "length"))

@case
def text_equals_rwkv_generate():
    wanted = subprocess.run([RWKV, "generate", "--weights", weights, "--vocab", "bytes", "--only-new", "--prompt",
                             "You may ", "--max-tokens", "80", "--temperature", "0.9", "--top-p", "0.9", "--seed", "11"],
                            check=True, capture_output=True).stdout.decode()
    got = server.completion("You may ", max_tokens=80, temperature=0.9, top_p=0.9, seed=11).json["choices"][0]["text"]
    same(got + "\n", wanted)

# -- messages ---------------------------------------------------------------------------------

def prompt_tokens(messages, **fields):
    a = server.chat(messages, **fields)
    same(a.status, 200, a.body)
    return a.json["usage"]["prompt_tokens"]

@case
def roles_have_no_case():
    same(prompt_tokens([{"role": "User", "content": "hi"}]), prompt_tokens([{"role": "user", "content": "hi"}]))

@case
def developer_is_system():
    user = {"role": "user", "content": "hi"}
    same(prompt_tokens([{"role": "developer", "content": "s"}, user]), prompt_tokens([{"role": "system", "content": "s"}, user]))

@case
def template_is_the_official_one():
    same(prompt_tokens([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]),
         1 + len("System: S\n\nUser: Q\n\nAssistant:"))

@case
def content_may_be_parts():
    parts = [{"type": "text", "text": "h"}, {"type": "input_text", "text": "i"}]
    same(prompt_tokens([{"role": "user", "content": parts}]), prompt_tokens("hi"))

@case
def content_may_be_null_with_tool_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    prompt_tokens([{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                   {"role": "tool", "tool_call_id": "c1", "content": "4"}])

@case
def content_may_be_absent_for_the_assistant():
    prompt_tokens([{"role": "user", "content": "q"}, {"role": "assistant"}, {"role": "user", "content": "r"}])

@case
def content_that_is_no_text_is_refused():
    refused(server.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "messages[0].content")
    refused(server.chat([{"role": "user", "content": 5}]), "messages[0].content")

@case
def content_cannot_begin_a_turn():
    one = prompt_tokens("a\n\nUser: b\n\nAssistant: c")
    same(one, 1 + len("User: a\nUser: b\nAssistant: c\n\nAssistant:"))

@case
def unknown_role_is_refused():
    refused(server.chat([{"role": "wizard", "content": "x"}]), "messages[0].role")

@case
def messages_are_required():
    refused(server.ask("POST", "/v1/chat/completions", {"model": "tiny"}), "messages")
    refused(server.chat([]), "messages")

@case
def message_extras_are_ignored():
    same(prompt_tokens([{"role": "user", "content": "hi", "name": "bob", "x": [1]}]), prompt_tokens("hi"))

# -- limits of tokens -------------------------------------------------------------------------

@case
def max_completion_tokens_wins():
    same(server.chat(max_tokens=9, max_completion_tokens=2, logit_bias={"0": -100}).json["usage"]["completion_tokens"], 2)

@case
def max_tokens_below_one_is_refused():
    refused(server.chat(max_tokens=0), "max_tokens")
    refused(server.chat(max_tokens=-1), "max_tokens")
    refused(server.chat(max_completion_tokens=0), "max_completion_tokens")

@case
def max_tokens_default_is_256():
    same(server.completion(logit_bias={"0": -100}).json["usage"]["completion_tokens"], 256)

# -- fields -----------------------------------------------------------------------------------

@case
def unknown_fields_are_ignored():
    same(server.chat(metadata={"a": 1}, store=False, service_tier="auto", made_up=[1, {}]).status, 200)

@case
def null_is_absent():
    same(server.chat(temperature=None, stop=None, seed=None, stream=None, logit_bias=None, tools=None, n=None).status, 200)

@case
def wrong_types_are_named():
    for field, values in {"temperature": ["1", True, [], {}], "top_p": ["x"], "max_tokens": [1.5, "3"], "stream": [1, "true"],
                          "seed": ["1", 0.5], "stop": [1, {}], "logit_bias": [[], 1], "user": [1], "top_k": [1.5],
                          "presence_penalty": ["0"], "stream_options": [1]}.items():
        for value in values:
            refused(server.completion(**{field: value}), field)

@case
def numbers_out_of_range_are_named():
    for field, values in {"temperature": [-1, 1001], "top_p": [-0.1, 1.1], "min_p": [-1, 2], "top_k": [-1, 2**31],
                          "presence_penalty": [101, -101], "frequency_penalty": [101], "repetition_penalty": [-101],
                          "penalty_decay": [-1, 1.1], "max_tokens": [2**31, 2**62]}.items():
        for value in values:
            refused(server.completion(**{field: value}), field)

@case
def n_of_one_is_fine():
    same(server.chat(n=1).status, 200)
    same(server.completion(n=1, best_of=1).status, 200)

@case
def n_is_refused():
    refused(server.chat(n=2), "n")
    refused(server.completion(n=10**9), "n")

@case
def best_of_is_refused():
    refused(server.completion(best_of=2), "best_of")

@case
def suffix_is_refused():
    refused(server.completion(suffix="x"), "suffix")

@case
def tools_are_refused():
    refused(server.chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools")

@case
def tool_choice_none_is_fine():
    same(server.chat(tool_choice="none").status, 200)

@case
def response_format_text_is_fine():
    same(server.chat(response_format={"type": "text"}).status, 200)

@case
def response_format_json_is_refused():
    refused(server.chat(response_format={"type": "json_object"}), "response_format")

@case
def guided_decoding_is_refused():
    for field in ("guided_regex", "guided_grammar"):
        refused(server.completion(**{field: "a"}), field)
    refused(server.completion(guided_choice=["a"]), "guided_choice")
    refused(server.completion(guided_json={"type": "object"}), "guided_json")

@case
def states_are_refused():
    refused(server.completion(state="x"), "state")
    refused(server.completion(return_state=True), "return_state")

@case
def model_is_required():
    refused(server.ask("POST", "/v1/completions", {"prompt": "x"}), "model")
    refused(server.completion(model=""), "model")

@case
def unknown_model_is_404():
    a = server.completion(model="gpt-4")
    refused(a, "model", 404)
    same(a.error["code"], "model_not_found")

# -- logprobs ---------------------------------------------------------------------------------

@case
def chat_logprobs_have_their_shape():
    c = server.chat(logprobs=True, top_logprobs=3, logit_bias={"0": -100}).json["choices"][0]["logprobs"]["content"]
    same(len(c), 8)
    for entry in c:
        same(set(entry), {"token", "logprob", "bytes", "top_logprobs"})
        same(len(entry["top_logprobs"]), 3)
        same(entry["top_logprobs"], sorted(entry["top_logprobs"], key=lambda e: -e["logprob"]))
        assert entry["logprob"] <= 0 and isinstance(entry["bytes"], list)

@case
def chat_logprobs_without_top():
    c = server.chat(logprobs=True, logit_bias={"0": -100}).json["choices"][0]["logprobs"]["content"]
    same(c[0]["top_logprobs"], [])

@case
def chat_logprobs_are_null_unless_asked():
    assert server.chat().json["choices"][0]["logprobs"] is None
    assert server.chat(logprobs=False).json["choices"][0]["logprobs"] is None

@case
def chat_top_logprobs_want_logprobs():
    refused(server.chat(top_logprobs=3), "top_logprobs")
    refused(server.chat(logprobs=True, top_logprobs=21), "top_logprobs")

@case
def chat_logprobs_stream():
    events = server.chat(logprobs=True, top_logprobs=1, stream=True, logit_bias={"0": -100}).events
    whole = server.chat(logprobs=True, top_logprobs=1, logit_bias={"0": -100})
    got = [x for e in events if e["choices"][0]["logprobs"] for x in e["choices"][0]["logprobs"]["content"]]
    same(len(got), len(whole.json["choices"][0]["logprobs"]["content"]))

@case
def completion_logprobs_have_their_shape():
    c = server.completion(max_tokens=5, logprobs=2, logit_bias={"0": -100}).json["choices"][0]
    l = c["logprobs"]
    same({k: len(v) for k, v in l.items()}, {"tokens": 5, "token_logprobs": 5, "top_logprobs": 5, "text_offset": 5})
    same("".join(l["tokens"]), c["text"])
    same(l["text_offset"], list(range(5)))
    for token, value, top in zip(l["tokens"], l["token_logprobs"], l["top_logprobs"]):
        assert abs(top[token] - value) < 1e-6 and 2 <= len(top) <= 3

@case
def greedy_takes_the_top_logprob():
    l = server.completion(max_tokens=20, logprobs=1, temperature=0, logit_bias={"0": -100}).json["choices"][0]["logprobs"]
    for value, top in zip(l["token_logprobs"], l["top_logprobs"]):
        assert abs(value - max(top.values())) < 1e-5

@case
def logprobs_are_the_models_own():
    a = server.completion("The", max_tokens=1, logprobs=20, temperature=0).json["choices"][0]["logprobs"]
    b = server.completion("The", max_tokens=1, logprobs=20, temperature=0, logit_bias={"70": 50}).json["choices"][0]["logprobs"]
    assert len(set(a["top_logprobs"][0]) & set(b["top_logprobs"][0])) >= 19
    same({k: v for k, v in a["top_logprobs"][0].items() if k in b["top_logprobs"][0]},
         {k: v for k, v in b["top_logprobs"][0].items() if k in a["top_logprobs"][0]})

@case
def candidates_are_reported():
    l = server.completion("The", max_tokens=1, logprobs=1, candidate_token_texts=["x", "y"]).json["choices"][0]["logprobs"]
    assert {"x", "y"} <= set(l["top_logprobs"][0]), l
    refused(server.completion(logprobs=1, candidate_token_texts=["xy"]), "candidate_token_texts")

@case
def echo_gives_the_prompt_back():
    a = server.completion("The end", max_tokens=3, echo=True, temperature=0).json["choices"][0]["text"]
    b = server.completion("The end", max_tokens=3, temperature=0).json["choices"][0]["text"]
    same(a, "The end" + b)

@case
def echo_streams_too():
    text = "".join(e["choices"][0]["text"] for e in server.completion("The", max_tokens=3, echo=True, stream=True).events)
    assert text.startswith("The")

@case
def echo_with_logprobs_tells_the_prompts():
    l = server.completion([66, 67, 68], max_tokens=1, echo=True, logprobs=1, logit_bias={"0": -100}).json["choices"][0]["logprobs"]
    same(l["tokens"][:3], ["A", "B", "C"])
    assert l["token_logprobs"][0] is None and l["top_logprobs"][0] is None
    assert all(x < 0 for x in l["token_logprobs"][1:]) and len(l["tokens"]) == 4

@case
def echo_with_no_tokens_scores_a_text():
    c = server.completion("The licence", max_tokens=0, echo=True, logprobs=0).json["choices"][0]
    same((c["text"], len(c["logprobs"]["tokens"])), ("The licence", 11))
    assert all(x <= 0 for x in c["logprobs"]["token_logprobs"])

@case
def prompt_logprobs_agree_with_rwkv_verify():
    ids = [0] + [b + 1 for b in b"Licence of this"]
    l = server.completion(ids, max_tokens=0, echo=True, logprobs=1).json["choices"][0]["logprobs"]["token_logprobs"]
    rows = subprocess.run([RWKV, "verify", "logits", "--weights", weights, "--tokens", " ".join(map(str, ids))],
                          check=True, capture_output=True, text=True).stdout.strip().split("\n")
    import math
    for i, row in enumerate(rows[:-1]):
        x = json.loads(row)
        wanted = x[ids[i + 1]] - max(x) - math.log(sum(math.exp(v - max(x)) for v in x))
        assert abs(wanted - l[i + 1]) < 1e-4, (i, wanted, l[i + 1])

# -- text -------------------------------------------------------------------------------------

@case
def invalid_utf8_never_gets_out():
    bias = {str(0xC3 + 1): 100}  # the first half of a letter, for ever
    a = server.completion(max_tokens=5, logit_bias=bias, temperature=0)
    same(a.json["choices"][0]["text"], "\ufffd" * 5)
    events = server.completion(max_tokens=5, logit_bias=bias, temperature=0, stream=True).events
    same("".join(e["choices"][0]["text"] for e in events), "\ufffd" * 5)

@case
def half_a_letter_waits_for_its_end():
    # 0xE2 0x82 0xAC is one sign: a bias ranks these three, and each pays the penalty once it is out.
    bias = {str(0xE2 + 1): 100, str(0x82 + 1): 90, str(0xAC + 1): 80}
    events = server.completion(max_tokens=3, logit_bias=bias, temperature=0, presence_penalty=100, stream=True).events
    same([e["choices"][0]["text"] for e in events if e["choices"][0]["text"]], ["\u20ac"])

@case
def half_a_letter_of_the_prompt_is_completed():
    euro = [0, 0xE3, 0x83]  # the first two bytes of a sign
    fields = dict(echo=True, temperature=0)
    a = server.completion(euro, max_tokens=1, logit_bias={str(0xAC + 1): 100}, **fields)
    same(a.json["choices"][0]["text"], "\u20ac")
    a = server.completion(euro, max_tokens=1, logit_bias={str(ord("x") + 1): 100}, **fields)
    same(a.json["choices"][0]["text"], "\ufffdx")
    same(server.completion(euro, max_tokens=0, **fields).json["choices"][0]["text"], "\ufffd")

@case
def logprobs_of_half_letters_have_bytes():
    c = server.chat(max_tokens=1, logit_bias={str(0xC3 + 1): 100}, temperature=0, logprobs=True)
    entry = c.json["choices"][0]["logprobs"]["content"][0]
    same((entry["bytes"], entry["token"]), ([0xC3], "bytes:\\xc3"))

@case
def prompts_keep_their_letters():
    a = server.completion("é€😀", max_tokens=1, echo=True, logit_bias={"66": 100}, temperature=0)
    same(a.json["choices"][0]["text"], "é€😀A")

def greedy(n=60, **fields):
    return server.completion("You ", max_tokens=n, temperature=0, logit_bias={"0": -100}, **fields).json["choices"][0]

@case
def stop_is_not_emitted():
    text = greedy()["text"]
    stop = text[20:25]
    c = greedy(stop=stop)
    same((c["text"], c["finish_reason"]), (text[:text.index(stop)], "stop"))

@case
def stop_matches_across_chunks():
    text = greedy()["text"]
    stop = text[20:25]
    events = server.completion("You ", max_tokens=60, temperature=0, logit_bias={"0": -100}, stop=[stop], stream=True).events
    same("".join(e["choices"][0]["text"] for e in events), text[:text.index(stop)])

@case
def stop_takes_the_earliest():
    text = greedy()["text"]
    first, second = text[10:13], text[30:33]
    same(greedy(stop=[second, first])["text"], text[:min(text.index(first), text.index(second))])

@case
def stop_half_matched_is_emitted_at_the_end():
    text = greedy()["text"]
    same(greedy(stop=text[-3:] + "\x01never")["text"], text)

@case
def stop_takes_sixteen():
    same(server.completion(max_tokens=2, stop=[str(i) for i in range(16)]).status, 200)
    refused(server.completion(max_tokens=2, stop=[str(i) for i in range(17)]), "stop")

@case
def stop_cannot_be_empty():
    refused(server.completion(stop=""), "stop")
    refused(server.completion(stop=["a", ""]), "stop")

@case
def chat_stops_at_the_next_turn():
    bias = {str(ord("\n") + 1): 30}
    c = server.chat(max_tokens=50, temperature=0, logit_bias=bias).json["choices"][0]
    assert "User:" not in c["message"]["content"]

@case
def reasoning_is_split():
    c = server.chat(reasoning_effort="high", max_tokens=30, logit_bias={"0": -100}).json["choices"][0]["message"]
    assert c["content"] == "" and c["reasoning_content"], c

@case
def reasoning_streams_apart():
    events = server.chat(reasoning_effort="low", max_tokens=30, stream=True, logit_bias={"0": -100}).events
    assert any(e["choices"][0]["delta"].get("reasoning_content") for e in events)
    assert not any(e["choices"][0]["delta"].get("content") for e in events)

@case
def reasoning_changes_the_prompt():
    plain = prompt_tokens("q")
    same(prompt_tokens("q", reasoning_effort="none"), plain + len(" <think></think>"))
    same(prompt_tokens("q", reasoning_effort="medium"), plain + len(" (think) <think"))
    same(prompt_tokens("q", reasoning_effort="minimal"), plain + len(" (think a bit) <think"))
    refused(server.chat(reasoning_effort="extreme"), "reasoning_effort")

@case
def reasoning_tokens_are_counted():
    u = server.chat(reasoning_effort="high", max_tokens=10, logit_bias={"0": -100}).json["usage"]
    same(u["completion_tokens_details"]["reasoning_tokens"], 10)

# -- sampling ---------------------------------------------------------------------------------

@case
def temperature_zero_is_greedy():
    same(len({server.completion(max_tokens=30, temperature=0, seed=i).json["choices"][0]["text"] for i in range(3)}), 1)

@case
def top_k_one_is_greedy():
    same(server.completion(max_tokens=30, top_k=1, seed=3).json["choices"][0]["text"],
         server.completion(max_tokens=30, temperature=0).json["choices"][0]["text"])

@case
def seeds_repeat_and_differ():
    text = [server.completion(max_tokens=40, seed=s, temperature=1.2).json["choices"][0]["text"] for s in (1, 1, 2)]
    assert text[0] == text[1] != text[2]

@case
def no_seed_differs():
    assert len({server.completion(max_tokens=40, temperature=1.2).json["choices"][0]["text"] for _ in range(3)}) == 3

@case
def negative_seeds_work():
    same(server.completion(max_tokens=9, seed=-7).json["choices"][0]["text"],
         server.completion(max_tokens=9, seed=-7).json["choices"][0]["text"])

@case
def company_does_not_change_a_seed():
    alone = server.completion(max_tokens=60, seed=9, temperature=1.1).json["choices"][0]["text"]
    texts = parallel(12, lambda i: server.completion("x" * (i * 37) if i % 2 else "The ", max_tokens=60, seed=9,
                                                     temperature=1.1).json["choices"][0]["text"])
    same(set(texts[0::2]), {alone})

@case
def logit_bias_decides():
    same(server.completion(max_tokens=4, logit_bias={"66": 100}).json["choices"][0]["text"], "AAAA")
    refused(server.completion(logit_bias={"257": 1}), "logit_bias")
    refused(server.completion(logit_bias={"x": 1}), "logit_bias")
    refused(server.completion(logit_bias={"1": 101}), "logit_bias")

@case
def penalties_spread():
    c = server.completion(max_tokens=30, temperature=0, presence_penalty=100, logit_bias={"0": -100}, logprobs=0).json["choices"][0]
    same(len(set(c["logprobs"]["tokens"])), 30)

# -- the other routes -------------------------------------------------------------------------

@case
def models_are_listed():
    a = server.get("/v1/models").json
    same((a["object"], a["data"][0]["id"], a["data"][0]["object"]), ("list", "tiny", "model"))
    assert a["data"][0]["owned_by"] and abs(a["data"][0]["created"] - time.time()) < 600

@case
def model_has_its_page():
    same(server.get("/v1/models/tiny").json["id"], "tiny")
    refused(server.get("/v1/models/none"), "model", 404)

@case
def tokenize_has_vllms_shape():
    a = server.ask("POST", "/tokenize", {"model": "tiny", "prompt": "AB"}).json
    same(a, {"count": 3, "max_model_len": 3000, "tokens": [0, 66, 67]})
    same(server.ask("POST", "/tokenize", {"prompt": "AB", "add_special_tokens": False}).json["tokens"], [66, 67])

@case
def detokenize_is_its_mirror():
    same(server.ask("POST", "/detokenize", {"model": "tiny", "tokens": [0, 66, 67]}).json, {"prompt": "AB"})
    refused(server.ask("POST", "/detokenize", {"tokens": "x"}), "tokens")

@case
def tokenizer_info_names_the_ends():
    same(server.get("/tokenizer_info").json["eos_token_id"], 0)

@case
def health_is_ok():
    same(server.get("/health").json["status"], "ok")
    same(server.get("/health/ready").status, 200)

@case
def version_is_told():
    assert re.match(r"\d+\.\d+", server.get("/version").json["version"])

@case
def metrics_are_prometheus():
    a = server.get("/metrics")
    assert a.headers["content-type"].startswith("text/plain")
    seen = set()
    for line in a.body.decode().strip().split("\n"):
        if line.startswith("# TYPE"):
            assert line.split()[2] not in seen, line
            seen.add(line.split()[2])
        else:
            assert line.startswith("# HELP") or re.match(r'^[a-z_]+(\{[^{}]*\})? [-+0-9.eE]+$', line), line
    if shutil.which("promtool"):
        r = subprocess.run(["promtool", "check", "metrics"], input=a.body, capture_output=True)
        same((r.returncode, r.stdout + r.stderr), (0, b""))
    else:
        print("SKIP promtool: it is not installed (package prometheus)")

@case
def the_page_is_there():
    a = server.get("/")
    assert a.headers["content-type"].startswith("text/html") and b"<!doctype html>" in a.body.lower()
    assert "default-src 'none'" in a.headers["content-security-policy"]

@case
def routes_of_later_are_404():
    for path in ("/v1/embeddings", "/v1/responses", "/v1/states", "/v1/images/generations"):
        same(server.ask("POST", path, {}).status, 404)

@case
def wrong_method_names_the_right_ones():
    a = server.get("/v1/chat/completions")
    same((a.status, a.headers["allow"]), (405, "POST, OPTIONS"))
    same(server.ask("DELETE", "/v1/models").headers["allow"], "GET, HEAD, OPTIONS")

@case
def head_is_get_without_a_body():
    a = server.ask("HEAD", "/v1/models")
    same((a.status, a.body), (200, b""))
    assert int(a.headers["content-length"]) > 10

@case
def wrong_content_type_is_415():
    same(server.ask("POST", "/v1/completions", "{}", {"Content-Type": "text/plain"}).status, 415)
    same(server.ask("POST", "/v1/completions", b"{}", {"Content-Type": None}).status, 415)
    same(server.completion().status, 200)

@case
def content_type_may_have_a_charset():
    same(server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1},
                    {"Content-Type": "application/json; charset=utf-8"}).status, 200)

@case
def broken_json_is_400_with_a_place():
    a = server.ask("POST", "/v1/completions", "{\"model\":")
    same(a.status, 400)
    assert re.search(r":\d+:\d+:", a.error["message"]), a.error

@case
def browsers_may_ask():
    a = server.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"})
    same((a.status, a.headers["access-control-allow-origin"]), (204, "*"))
    assert "authorization" in a.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in a.headers

@case
def origins_may_be_listed():
    listed = Server("origins", top='allowed_origins = ["https://a.example", "https://b.example"]\n')
    a = listed.get("/v1/models", Origin="https://b.example")
    same((a.headers["access-control-allow-origin"], a.headers["vary"]), ("https://b.example", "Origin"))
    for origin in ("https://c.example", "https://a.example.evil", "null", "https://b.example\tx"):
        assert "access-control-allow-origin" not in listed.get("/v1/models", Origin=origin).headers, origin
    assert "access-control-allow-origin" not in listed.ask("POST", "/admin/models/reload", {}, {"Origin": "https://a.example"}).headers
    listed.stop()

@case
def replicas_share_the_work():
    two = Server("replicas", model="device_ids = [0, 1]\nmax_batch_size = 2\n")
    texts = parallel(8, lambda i: two.completion("x", max_tokens=200, seed=3).json["choices"][0]["text"])
    same(len(set(texts)), 1)
    assert all(two.metric("rwkv_steps_total", device=d) > 10 for d in "01")
    two.stop()

@case
def streams_are_kept_alive():
    # A prompt that must wait for slots: silence, with comments in it.
    holders = [server.stream(2900) for _ in range(64)]
    s = server.stream(1)
    s.settimeout(20 * SLOW)
    out = b""
    while b": keep-alive\n\n" not in out and b"data: " not in out:
        out += s.recv(4096)
    for h in holders:  # the slots are free
        h.close()
    while b"[DONE]" not in out:
        out += s.recv(4096)
    s.close()
    server.wait_idle()
    assert b": keep-alive\n\n" in out[:out.index(b"data: ")], out

@case
def gone_clients_free_their_slots():
    for fields in ({"stream": True}, {"stream": False}):
        s = server.dial(server.post("/v1/completions", json.dumps(dict(
            {"model": "tiny", "prompt": "x", "max_tokens": 2900, "logit_bias": {"0": -100}}, **fields))))
        server.wait_for(lambda: server.metric("rwkv_requests_running") == 1, "it runs")
        s.close()
        server.wait_idle()


if __name__ == "__main__":
    run(sys.argv[1:])
