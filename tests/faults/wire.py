"""FAULTS H1 to H15: what is done to a server through its socket. Usage: wire.py [NAME…]"""
import json, os, re, socket, struct, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../http"))
from harness import *

LONG = bool(os.environ.get("FAULTS_LONG"))
server = Server("wire", top="header_timeout_ms = 700\nbody_timeout_ms = 700\nstall_timeout_ms = 2000\n"
                            "request_body_limit_bytes = 100000\n", model="max_context_len = 200000\n")
GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n"


def status(raw):
    found = re.match(rb"HTTP/1\.1 (\d+) ", raw)
    return int(found.group(1)) if found else raw


def healthy():
    same(server.get("/health").status, 200)
    same(server.completion(max_tokens=2).status, 200)


def drip(text, pause=0.05, limit=6):
    """One byte at a time until the server answers; returns the answer and the seconds."""
    s, start, out = server.dial(), time.time(), b""
    s.settimeout(pause)
    for byte in text:
        try:
            s.send(bytes([byte]))
            out += s.recv(4096)
            break
        except socket.timeout:
            pass
        except OSError:
            break
        if time.time() - start > limit:
            break
    s.close()
    return out, time.time() - start


@case
def H1_slow_head_gets_408():
    def slow(i):
        out, seconds = drip(GET + b"X: " + b"a" * 1000)
        same(status(out), 408)
        assert seconds < 3 * SLOW, seconds
    def fast(i):
        start = time.time()
        healthy()
        assert time.time() - start < 1 * SLOW
    parallel(12, lambda i: slow(i) if i < 10 else fast(i))

@case
def H1_slow_body_gets_408():
    out, _ = drip(server.post("/v1/completions", "{" + " " * 500, length=10000))
    same(status(out), 408)

@case
def H2_idle_connections_cost_little():
    n = 10000 if LONG else 1000
    before = server.rss_kb()
    idle = [server.dial() for _ in range(n)]
    server.wait_for(lambda: server.metric("rwkv_connections") >= n, "all are in")
    grown = server.rss_kb() - before
    healthy()
    for s in idle:
        s.close()
    assert grown < 6 * n * (8 if SLOW > 1 else 1), f"{grown} kB for {n} connections"
    server.wait_for(lambda: server.metric("rwkv_connections") < 10, "all are out")
    print(f"    {n} idle connections: {grown} kB")

@case
def H3_too_much_head_gets_431():
    same(status(server.raw(GET + b"X: " + b"a" * 17000 + b"\r\n\r\n")), 431)
    same(status(server.raw(GET + b"X: a\r\n" * 101 + b"\r\n")), 431)
    same(status(server.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")), 414)
    same(status(server.raw(b"GET /" + b"a" * 100000)), 414)

H4 = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "folded header": b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare CR": b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"X: a\nContent-Length: 0\n\n",
    "NUL": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "space before colon": b"Content-Length : 5\r\n\r\nhello",
    "sign": b"Content-Length: +5\r\n\r\nhello",
    "negative": b"Content-Length: -5\r\n\r\nhello",
    "hex length": b"Content-Length: 0x5\r\n\r\nhello",
    "huge length": b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "chunk of -2": b"Transfer-Encoding: chunked\r\n\r\n-2\r\nhello\r\n0\r\n\r\n",
    "chunk of 2^64-1": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "chunk of 17 digits": b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "chunk extension of 1 MB": b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * (1 << 20) + b"\r\nhello\r\n0\r\n\r\n",
    "chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked then gzip": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two Hosts": b"Host: b\r\nContent-Length: 0\r\n\r\n",
}

@case
def H4_broken_framing_gets_400_and_the_end():
    for name, rest in H4.items():
        # A second request behind it must never be answered.
        out = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + rest
                         + b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n", timeout=10)
        assert status(out) in (400, 413) or out == b"", f"{name}: {out[:200]}"
        assert b'"version"' not in out, f"{name}: smuggled"
    healthy()

@case
def H4_no_host_or_a_bad_one():
    same(status(server.raw(b"GET /version HTTP/1.1\r\n\r\n")), 400)
    same(status(server.raw(b"GET /version HTTP/1.1\r\nHost: a b\r\n\r\n")), 400)

@case
def H5_too_much_body_gets_413_early():
    start = time.time()
    out = server.raw(server.post("/v1/completions", "{", length=100001))
    same(status(out), 413)
    assert time.time() - start < 5 * SLOW
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 10
    out = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + chunks)
    same(status(out), 413)

@case
def H6_expect_is_met():
    s = server.dial(server.post("/v1/completions", b"", headers="Expect: 100-continue\r\n", length=42))
    same(s.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
    s.sendall(b'{"model":"tiny","prompt":"x","max_tokens":1}'[:42].ljust(42))
    assert s.recv(4096).startswith(b"HTTP/1.1 ")
    s.close()
    # Who may not, is told before the body.
    out = server.raw(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n", 5)
    same(status(out), 404)
    same(status(server.raw(server.post("/v1/completions", b"{}", headers="Expect: magic\r\n"))), 417)

@case
def H7_pipelined_requests_are_answered_in_order():
    bad = server.post("/v1/completions", "{}")
    good = server.post("/v1/completions", '{"model":"tiny","prompt":"x","max_tokens":2}')
    one = GET + b"\r\n"
    last = GET + b"Connection: close\r\n\r\n"
    out = server.raw(one + bad + good + one + bad + last)
    same([int(x) for x in re.findall(rb"HTTP/1\.1 (\d+) ", out)], [200, 400, 200, 200, 400, 200])

@case
def H7_connection_lives_on_after_an_error():
    s = server.dial()
    for path, wanted in (("/nope", 404), ("/version", 200), ("/v1/chat/completions", 405), ("/version", 200)):
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        out = b""
        while b"\r\n\r\n" not in out:
            out += s.recv(4096)
        length = int(re.search(rb"Content-Length: (\d+)", out).group(1))
        while len(out.split(b"\r\n\r\n", 1)[1]) < length:
            out += s.recv(4096)
        same(status(out), wanted, path)
    s.close()

@case
def H8_other_versions_and_methods():
    out = server.raw(b"GET /version HTTP/1.0\r\n\r\n")
    assert status(out) == 200 and b"Connection: close" in out
    same(status(server.raw(b"GET /version HTTP/2.0\r\nHost: a\r\n\r\n")), 505)
    same(status(server.raw(b"GET /version HTTP/1.2\r\nHost: a\r\n\r\n")), 505)
    same(status(server.raw(b"BREW /version HTTP/1.1\r\nHost: a\r\n\r\n")), 400)
    out = server.raw(b"PROPFIND /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status(out) == 405 and b"Allow: GET, HEAD, OPTIONS" in out
    out = server.raw(b"HEAD /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status(out) == 200 and out.endswith(b"\r\n\r\n")
    assert status(server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) in (400, 505)
    same(status(server.raw(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) in (400, 404, 405), True)
    out = server.raw(b"GET /version HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n\r\n")
    same(status(out), 200)

@case
def H8_stream_to_http_1_0_ends_with_the_connection():
    body = '{"model":"tiny","prompt":"x","max_tokens":3,"stream":true}'
    out = server.raw(server.post("/v1/completions", body, version="1.0"))
    assert status(out) == 200 and b"chunked" not in out and out.endswith(b"data: [DONE]\n\n"), out

@case
def H9_paths_lead_nowhere_else():
    for path in ("/..%2f..%2fetc/passwd", "/%2e%2e/etc/passwd", "/../etc/passwd", "/a/../../etc/passwd", "/%00",
                 "/%zz", "/%", "/v1\\models", "/v1/models/%2e%2e/x", "//etc/passwd", "/./index.html", "/index.html"):
        out = server.raw(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status(out) in (400, 404), (path, out)
        assert b"root:" not in out
    same(status(server.raw(b"GET http://a/version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")), 200)

@case
def H10_nothing_is_injected():
    name = "x\r\nSet-Cookie: a=b\r\n\r\n"
    a = server.completion(model=name)
    same(a.status, 404)
    assert "set-cookie" not in a.headers
    out = server.raw(b"GET /v1/models/a%0d%0aSet-Cookie:%20a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status(out) == 400 and b"Set-Cookie" not in out
    out = server.raw(GET + b"Origin: http://evil\"x\r\nConnection: close\r\n\r\n")
    assert b"evil" not in out
    for line in open(server.log):
        assert re.match(r"\d\d:\d\d:\d\d (debug|info|warn|error) ", line), line

@case
def H11_half_closed_and_reset_clients_free_their_slots():
    def half(s):
        s.shutdown(socket.SHUT_WR)
    def reset(s):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    for leave in (half, reset):
        s = server.stream(100000)
        server.wait_for(lambda: server.metric("rwkv_requests_running") == 1, "it runs")
        leave(s)
        server.wait_idle()
        s.close()

@case
def H11_reset_in_the_body_is_nothing():
    for _ in range(20):
        s = server.dial(server.post("/v1/completions", '{"model":', length=1000))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    healthy()

@case
def H11_reader_that_never_reads_is_bounded_and_dropped():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", server.port))
    before = server.rss_kb()
    s.sendall(server.post("/v1/completions", json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 190000, "stream": True,
                                                         "logit_bias": {"0": -100}, "logprobs": 3})))
    server.wait_for(lambda: server.metric("rwkv_requests_parked") == 1, "it is parked", 60)
    grown = server.rss_kb() - before
    assert grown < 8000 * SLOW, f"{grown} kB"
    healthy()
    server.wait_idle()  # stall_timeout_ms
    s.close()

@case
def H11_slow_reader_gets_every_token():
    slow = Server("slow", model="max_context_len = 200000\n")  # with the usual patience
    s = slow.dial()  # the usual buffer: through one of 4 KB the kernel may come to send 10 KB/s
    def others():
        start = time.time()
        parallel(4, lambda i: slow.completion("y", max_tokens=2000, seed=i, logit_bias={"0": -100}))
        return time.time() - start
    alone = others()
    n = 40000  # with logprobs megabytes, however many go in a chunk: more than is buffered anywhere
    fields = {"model": "tiny", "prompt": "x", "max_tokens": n, "stream": True, "logit_bias": {"0": -100}, "temperature": 0,
              "logprobs": 3}
    s.sendall(slow.post("/v1/completions", json.dumps(fields), headers="Connection: close\r\n"))
    out, parked, beside, start = b"", 0, 0, time.time()
    def slowly():  # for five seconds, and until it shows
        took = time.time() - start
        return took < 5 or (not parked and took < 60 * SLOW)
    while piece := s.recv(1024 if slowly() else 1 << 20):
        out += piece
        assert time.time() - start < 120 * SLOW, f"{len(out)} bytes came in two minutes"
        if slowly():  # 1 KB/s
            time.sleep(0.5)
            out += s.recv(1 << 9)
            parked = max(parked, slow.metric("rwkv_requests_parked"))
            beside = beside or (parked and others())
    s.close()
    print(f"    others took {beside:.2f} s beside a reader of 1 KB/s, {alone:.2f} s without")
    text = "".join(json.loads(l[6:])["choices"][0]["text"] for l in out.decode().split("\n")
                   if l.startswith("data: {"))
    wanted = slow.completion("x", max_tokens=n, temperature=0, logit_bias={"0": -100}).json["choices"][0]["text"]
    same(text, wanted)
    assert b'"finish_reason":"length"' in out and out.rstrip().endswith(b"0") and parked == 1, parked
    slow.stop()

@case
def H12_out_of_files_goes_on():
    small = Server("files", limit_files=100)
    held = []
    for _ in range(150):
        try:
            held.append(small.dial())
        except OSError:
            break
    time.sleep(0.5)
    for s in held:
        s.close()
    def serves():
        try:
            return small.get("/health").status == 200
        except OSError:  # the server has not yet seen that the others are gone
            return False
    small.wait_for(serves, "it serves again")
    same(small.completion(max_tokens=2).status, 200)
    small.stop()

@case
def H13_broken_pipes_kill_nothing():
    for _ in range(30):
        s = server.stream(3000)
        s.recv(10)
        s.close()
    server.wait_idle()
    healthy()

@case
def H14_storm_of_connections():
    def storm(i):
        for _ in range(125):
            s = server.dial(GET + b"Connection: close\r\n\r\n")
            assert s.recv(100).startswith(b"HTTP/1.1 200")
            s.close()
    start = time.time()
    parallel(8, storm)
    print(f"    1000 connections in {time.time() - start:.2f} s")
    healthy()

@case
def H15_admin_refuses_strange_hosts():
    body = b"{}"
    for host, wanted in (("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil", 403),
                         ("localhost", 200), ("127.0.0.1", 200), ("localhost:8080", 200), ("[::1]:80", 200)):
        out = server.raw(b"POST /admin/models/reload HTTP/1.1\r\nHost: " + host.encode() +
                         b"\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n" + body)
        same(status(out), wanted, host)


if __name__ == "__main__":
    run(sys.argv[1:])
