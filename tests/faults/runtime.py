"""FAULTS R6 to R9, R14, R15: reloads, stops and cancels under load. FAULTS_LONG=1: the long versions.
Usage: runtime.py [NAME…]"""
import json, os, random, re, shutil, signal, socket, sys, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../http"))
from harness import *

LONG = bool(os.environ.get("FAULTS_LONG"))
server = Server("runtime", top="max_queue = 5000\n", model="max_batch_size = 32\nmax_context_len = 20000\n", models=["tiny", "other"])
TINY = server.dir + "/weights/tiny.pth"


def entry(name="tiny", **fields):
    return dict({"model_name": name, "model_cfg": "tiny", "weights_path": "../weights/tiny.pth",
                 "tokenizer_vocab_path": "bytes", "max_batch_size": 32, "max_context_len": 20000}, **fields)


def reload(status=200, **request):
    a = server.ask("POST", "/admin/models/reload", request)
    same(a.status, status, a.body)
    return a.json


def expected(i, tokens):
    return server.completion(f"request {i}", max_tokens=tokens, seed=i).json["choices"][0]["text"]


def streamed(i, tokens, name="tiny"):
    """One stream, read to its end: its text."""
    a = server.completion(f"request {i}", max_tokens=tokens, seed=i, stream=True, model=name)
    same(a.status, 200, a.body)
    events = a.events
    same(sum(1 for e in events if e["choices"][0]["finish_reason"]), 1)
    return "".join(e["choices"][0]["text"] for e in events)


@case
def reload_answers_as_it_should():
    same(reload()["changed_model_names"], [])
    text = open(server.toml).read()
    r = reload(upsert=[entry(max_batch_size=16)])
    same((r["changed_model_names"], r["rebuilt_model_names"], r["dry_run"]), (["tiny"], [], False))
    same(r["active_model_names"], ["other", "tiny"])
    same(server.metric("rwkv_slots", model="tiny"), 16)
    now = open(server.toml).read()
    same(now, text.replace("max_batch_size = 32", "max_batch_size = 16", 1))  # comments, order, every key
    reload(upsert=[entry(max_batch_size=32)])
    same(open(server.toml).read(), text)

@case
def reload_dry_run_changes_nothing():
    text = open(server.toml).read()
    r = reload(upsert=[entry(dtype="bf16")], dry_run=True)
    same((r["rebuilt_model_names"], r["dry_run"]), (["tiny"], True))
    assert r["planned_bytes"] > 100000 and "no runtime state changed" in r["message"]
    same(open(server.toml).read(), text)
    same(reload()["changed_model_names"], [])

@case
def reload_sees_new_contents_at_the_same_path():
    same(reload()["rebuilt_model_names"], [])
    stamp = os.stat(TINY)
    shutil.copy(TINY, TINY + ".new")
    os.rename(TINY + ".new", TINY)
    os.utime(TINY, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time
    same(reload()["rebuilt_model_names"], ["other", "tiny"])

@case
def reload_refuses_what_it_does_not_know():
    for request in ({"upsert": 1}, {"upsert": [1]}, {"upsrt": []}, {"remove_model_names": ["nobody"]},
                    {"upsert": [entry(colour="red")]}, {"upsert": [entry(max_batch_size=0)]},
                    {"upsert": [entry(name="")]}, {"remove_model_names": ["tiny", "other"]}, {"dry_run": "yes"},
                    {"upsert": [entry(weights_path="../weights/none.pth")]}, {"upsert": [entry(model_cfg="none")]},
                    {"upsert": [entry(backend="cuda")]}):
        a = server.ask("POST", "/admin/models/reload", request)
        same(a.status, 400, (request, a.body))
    same(reload()["changed_model_names"], [])
    same(server.completion(max_tokens=2).status, 200)

@case
def reload_adds_and_removes():
    text = open(server.toml).read()
    same(reload(upsert=[entry("third")])["changed_model_names"], ["third"])
    same(server.completion(model="third", max_tokens=1).status, 200)
    r = reload(remove_model_names=["third"])
    same((r["removed_model_names"], r["active_model_names"]), (["third"], ["other", "tiny"]))
    same(server.completion(model="third", max_tokens=1).status, 404)
    same(open(server.toml).read(), text)

@case
def hangup_reads_the_file_again():
    text = open(server.toml).read()
    with open(server.toml, "w") as f:
        f.write(text.replace("max_batch_size = 32", "max_batch_size = 7", 1))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric("rwkv_slots", model="tiny") == 7, "the new size")
    with open(server.toml, "w") as f:
        f.write("nonsense")
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    same(server.completion(max_tokens=2).status, 200)
    with open(server.toml, "w") as f:
        f.write(text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric("rwkv_slots", model="tiny") == 32, "the old size")

def break_weights(kind):
    data = open(TINY, "rb").read()
    path = server.dir + "/weights/bad.pth"
    if os.path.exists(path):
        os.unlink(path)
    if kind == "truncated":
        open(path, "wb").write(data[:random.randrange(1, len(data) - 1)])
    elif kind == "shape":
        path = server.dir + "/weights/shape.safetensors"
        shutil.copy(ROOT + "/tests/fixtures/model/n16/w_bf16.safetensors", path)
    return "../weights/" + os.path.basename(path)

@case
def R6_streams_survive_reloads():
    streams, reloads = (1000, 50) if LONG else (100, 12)
    tokens = 60
    wanted = parallel(8, lambda k: [expected(i, tokens) for i in range(k, streams, 8)])
    results, finished = [None] * streams, threading.Event()
    def client(k):
        for i in range(k, streams, 50):
            results[i] = streamed(i, tokens)
    def reloading():
        for n in range(reloads):
            kind = ("good", "good", "good", "truncated", "missing", "good", "shape", "good", "missing", "good")[n % 10]
            if kind == "good":
                reload(upsert=[entry(dtype="f32", decode_first=n % 2 == 0, paragraph_len=64 + n)])
                shutil.copy(TINY, TINY + ".new")
                os.rename(TINY + ".new", TINY)
                same(reload()["rebuilt_model_names"], ["other", "tiny"])
            else:
                a = server.ask("POST", "/admin/models/reload", {"upsert": [entry(weights_path=break_weights(kind))]})
                same(a.status, 400, (kind, a.body))
        finished.set()
    bad = []
    def guarded():
        try:
            reloading()
        except BaseException as e:
            bad.append(e)
    t = threading.Thread(target=guarded)
    t.start()
    parallel(50, client)
    t.join()
    if bad:
        raise bad[0]
    wrong = [i for i in range(streams) if results[i] != wanted[i % 8][i // 8]]
    same(wrong, [], "streams that differ")
    reload(upsert=[entry()])
    print(f"    {streams} streams during {reloads} reloads: none broken, none wrong")

@case
def R6_weights_that_are_cut_while_they_load():
    big = open(TINY, "rb").read()
    path = server.dir + "/weights/cut.pth"
    answers = set()
    for n in range(30):
        open(path, "wb").write(big)
        def cut():
            time.sleep(random.random() * 0.006 * SLOW)
            os.truncate(path, random.randrange(len(big)))
        t = threading.Thread(target=cut)
        t.start()
        answers.add(server.ask("POST", "/admin/models/reload", {"upsert": [entry("cut", weights_path="../weights/cut.pth")]}).status)
        t.join()
        same(server.completion(max_tokens=2).status, 200)
    assert answers <= {200, 400}, answers
    if server.completion(model="cut", max_tokens=1).status == 200:
        reload(remove_model_names=["cut"])

@case
def R7_model_is_removed_while_it_writes():
    reload(upsert=[entry("third")])
    wanted = expected(3, 3000)
    box = []
    t = threading.Thread(target=lambda: box.append(streamed(3, 3000, "third")))
    t.start()
    server.wait_for(lambda: server.metric("rwkv_requests_running", model="third") == 1, "it runs")
    reload(remove_model_names=["third"])
    same(server.completion(model="third").status, 404)
    t.join()
    same(box[0], wanted)

@case
def R8_reloads_leak_nothing():
    count = 200 if LONG else 60
    def one():
        shutil.copy(TINY, TINY + ".new")
        os.rename(TINY + ".new", TINY)
        same(reload()["rebuilt_model_names"], ["other", "tiny"])
    for _ in range(20):
        one()
    time.sleep(0.3)
    before = server.rss_kb(), server.fds(), server.threads()
    for _ in range(count - 20):
        one()
    time.sleep(0.3)
    server.get("/health")
    after = server.rss_kb(), server.fds(), server.threads()
    print(f"    reloads 20 to {count}: RSS {before[0]} to {after[0]} kB, files {before[1]} to {after[1]}, threads {before[2]} to {after[2]}")
    assert SLOW > 1 or after[0] - before[0] <= 2048, (before, after)  # sanitizers keep what is freed
    assert abs(after[1] - before[1]) <= 2, (before, after)  # a connection that is being closed
    same(after[2], before[2])

@case
def R14_cancel_in_every_phase_frees_the_slot_once():
    def gone(fields, when):
        s = server.dial(server.post("/v1/completions", json.dumps(dict({"model": "tiny", "max_tokens": 15000, "logit_bias": {"0": -100}}, **fields))))
        time.sleep(when)
        s.close()
    for stream in (True, False):
        gone({"prompt": "x", "stream": stream}, 0)              # as it comes
        gone({"prompt": "x" * 19000, "stream": stream, "max_tokens": 900}, 0.01)  # in its prompt
        gone({"prompt": "x", "stream": stream}, 0.2)            # while it writes
        gone({"prompt": ["x"] * 200, "stream": stream}, 0.1)    # most of it waits
    server.wait_idle()
    same(server.metric("rwkv_requests_waiting"), 0)
    canceled = server.metric("rwkv_requests_canceled_total")
    assert canceled >= 6, canceled
    # How soon: a step of this model takes well under a millisecond.
    delays = []
    for _ in range(10):
        s = server.stream(19000)
        server.wait_for(lambda: server.metric("rwkv_requests_running") == 1, "it runs")
        steps = server.metric("rwkv_steps_total", model="tiny")
        start = time.time()
        s.close()
        server.wait_idle()
        delays.append((time.time() - start, server.metric("rwkv_steps_total", model="tiny") - steps))
    print(f"    a closed connection frees its slot after {sorted(d for d, _ in delays)[5] * 1e3:.1f} ms (median, with the asking)")

@case
def R14_queue_full_is_429_at_once():
    full = Server("full", top="max_queue = 4\n", model="max_batch_size = 1\nmax_context_len = 20000\n")
    held = [full.stream(19000)]
    full.wait_for(lambda: full.metric("rwkv_requests_running") == 1, "one runs")
    held += [full.stream(19000) for _ in range(4)]
    full.wait_for(lambda: full.metric("rwkv_requests_waiting") == 4, "the queue is full")
    start = time.time()
    a = full.completion()
    took = time.time() - start
    same((a.status, a.error["code"], "retry-after" in a.headers), (429, "rate_limit_exceeded", True))
    print(f"    429 after {took * 1e3:.1f} ms")
    for s in held:
        s.close()
    full.wait_idle()
    same(full.completion(max_tokens=1).status, 200)
    full.stop()

@case
def R15_no_state_bleeds():
    n = 1000 if LONG else 200
    rng = random.Random(5)
    fields = [dict(prompt="".join(chr(97 + rng.randrange(26)) for _ in range(rng.randrange(1, 200))), max_tokens=rng.randrange(1, 60),
                   seed=i, temperature=rng.choice([0, 0.7, 1.0, 1.4]), top_p=rng.choice([1, 0.8]), top_k=rng.choice([0, 5, 40]),
                   presence_penalty=rng.choice([0, 0.5]), frequency_penalty=rng.choice([0, 0.2]), penalty_decay=rng.choice([1, 0.99]),
                   logprobs=rng.choice([None, 1, 3])) for i in range(n)]
    def text(f):
        c = server.completion(**f).json["choices"][0]
        return c["text"], c["logprobs"], c["finish_reason"]
    serial = [text(f) for f in fields]
    leavers = rng.sample(range(n), n // 10)
    def one(i):
        if i in leavers:  # some go away in the middle of it
            s = server.stream(1000, prompt=fields[i]["prompt"])
            time.sleep(rng.random() * 0.1)
            s.close()
        return text(fields[i])
    order = list(range(n))
    rng.shuffle(order)
    together = {}
    def worker(k):
        for i in order[k::200]:
            together[i] = one(i)
    parallel(200, worker)
    wrong = [i for i in range(n) if together[i] != serial[i]]
    same(wrong, [], "sequences that differ in company")
    server.wait_idle()
    print(f"    {n} sequences, 200 at once in 32 slots: each as alone")

@case
def R9_term_drains_and_a_second_one_does_not():
    s = Server("drain", top="drain_timeout_ms = 600000\n", model="max_context_len = 2000000\n")
    stream = s.stream(60000 // min(SLOW, 8))  # a second or more of work, whatever the build
    idle = s.dial()
    s.wait_for(lambda: s.metric("rwkv_requests_running") == 1, "it runs")
    s.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    try:
        s.dial()
        raise AssertionError("it accepts while it drains")
    except ConnectionRefusedError:
        pass
    same(idle.recv(10), b"")
    out = b""
    while piece := stream.recv(1 << 20):
        out += piece
    assert b'"finish_reason":"length"' in out and b"[DONE]" in out
    same(s.process.wait(20), 0)
    s.stop()
    s.start()
    stream = s.stream(1900000)
    s.wait_for(lambda: s.metric("rwkv_requests_running") == 1, "it runs")
    s.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    start = time.time()
    same(s.stop(), 1)
    assert time.time() - start < 2 * SLOW

@case
def R9_term_with_a_deadline():
    s = Server("deadline", top="drain_timeout_ms = 300\n", model="max_context_len = 1000000\n")
    stream = s.stream(900000)
    s.wait_for(lambda: s.metric("rwkv_requests_running") == 1, "it runs")
    start = time.time()
    same(s.stop(), 0)
    assert 0.2 < time.time() - start < 5 * SLOW


if __name__ == "__main__":
    random.seed(1)
    run(sys.argv[1:])
