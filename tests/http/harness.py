"""A server under test: a tiny model, `rwkv serve` on a free port, raw HTTP, and cases that count."""
import http.client, json, os, re, shutil, signal, socket, subprocess, sys, threading, time, traceback

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
RWKV = os.path.join(BUILD, "rwkv")
SLOW = 20 if "tsan" in BUILD else 8 if "san" in BUILD else 1

CASES = []


def case(function):
    CASES.append(function)
    return function


def run(only=()):
    """Runs every case (or those named); prints failures and the count; exits with 1 if one failed."""
    passed = failed = 0
    for function in CASES:
        name = function.__name__
        if only and not any(o in name for o in only):
            continue
        try:
            function()
            passed += 1
        except BaseException:
            failed += 1
            print(f"FAILED {name}\n" + "".join("    " + line for line in traceback.format_exc().splitlines(True)))
    for server in list(Server.alive):
        server.stop()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


def same(got, wanted, what=""):
    assert got == wanted, f"{what}: got {got!r}, wanted {wanted!r}"


def tiny_model(where):
    """Trains two layers of 64 channels on the licence for a few steps: `where`/tiny.pth, once."""
    path = os.path.join(where, "tiny.pth")
    if os.path.exists(path):
        return path
    work = os.path.join(where, "making")
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("config/model", "config/train"):
        os.makedirs(os.path.join(work, folder))
    with open(os.path.join(work, "config/model/tiny.toml"), "w") as f:
        f.write(MODEL_TOML)
    with open(os.path.join(work, "config/train/tiny.toml"), "w") as f:
        f.write('model_cfg = "tiny"\nexperiment_log_base_path = "../../runs"\nexperiment_name = "tiny"\n'
                'dataset_base_path = "../../data"\nfilename_without_extensions = "licence"\n'
                'tokenizer_vocab_path = "bytes"\ncontext_length = 64\nbatch_size_per_device = 8\n'
                'num_steps = 150\nwarmup_steps = 5\nlearning_rate_start = 6e-3\n'
                'learning_rate_end = 1e-3\nsave_freq = 0\n')
    shutil.copy(os.path.join(ROOT, "LICENSE"), os.path.join(work, "licence.txt"))
    quiet = dict(check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    subprocess.run([RWKV, "data", "build", "--input", f"{work}/licence.txt", "--output",
                    f"{work}/data/licence", "--vocab", "bytes"], **quiet)
    subprocess.run([RWKV, "train", "--config-dir", f"{work}/config", "--train-cfg", "tiny"], **quiet)
    os.rename(f"{work}/runs/tiny/weights.pth", path)
    return path


MODEL_TOML = "num_cells = 2\nvocab_size = 257\nembedded_dim = 64\nnum_heads = 1\n"


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, {k.lower(): v for k, v in headers}, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The JSON of each server-sent event; the last one must be [DONE]."""
        lines = [l[6:] for l in self.body.decode().split("\n") if l.startswith("data: ")]
        same(lines[-1], "[DONE]", "last event")
        return [json.loads(l) for l in lines[:-1]]


class Server:
    alive = set()

    def __init__(self, name, top="", model="", sets=(), models=None, args=(), env=None, limit_files=None):
        """`top`: lines of the infer TOML before the models; `model`: further lines of each model."""
        self.dir = os.path.join(BUILD, "serve-tests", name)
        shutil.rmtree(self.dir, ignore_errors=True)
        for folder in ("model", "infer", "weights"):
            os.makedirs(os.path.join(self.dir, folder))
        os.makedirs(os.path.join(BUILD, "serve-tests"), exist_ok=True)
        shutil.copy(tiny_model(os.path.join(BUILD, "serve-tests")), self.dir + "/weights/tiny.pth")
        with open(self.dir + "/model/tiny.toml", "w") as f:
            f.write(MODEL_TOML)
        self.toml = self.dir + "/infer/test.toml"
        with open(self.toml, "w") as f:
            f.write('# how it is served\nhttp_bind_addr = "127.0.0.1:0" # any port\n' + top + "\n")
            for m in models or ["tiny"]:
                f.write(f'\n# the model {m}\n[[models]]\nmodel_name = "{m}"\nmodel_cfg = "tiny"\n'
                        'weights_path = "../weights/tiny.pth" # small\ntokenizer_vocab_path = "bytes"\n'
                        + (model if "max_batch_size" in model else model + "max_batch_size = 8\n"))
        self.log = self.dir + "/log"
        self.args = [RWKV, "serve", "--config-dir", self.dir, "--infer-cfg", "test", *args]
        for s in sets:
            self.args += ["--set", s]
        self.env, self.limit_files = dict(os.environ, **(env or {})), limit_files
        self.start()

    def start(self):
        def limit():
            import resource
            if self.limit_files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.limit_files, self.limit_files))
        self.process = subprocess.Popen(self.args, stdout=subprocess.PIPE, stderr=open(self.log, "w"),
                                        text=True, env=self.env, preexec_fn=limit)
        line = self.process.stdout.readline()
        found = re.search(r"at http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the server did not start: {line!r}\n{open(self.log).read()}"
        self.port = int(found.group(1))
        Server.alive.add(self)

    def stop(self, number=signal.SIGTERM):
        """Stops it; returns the exit code."""
        Server.alive.discard(self)
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the server did not stop")
        self.process.stdout.close()
        log = open(self.log).read()
        for word in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            assert word not in log, log
        return code

    # -- requests --------------------------------------------------------------------------------

    def ask(self, method, path, body=None, headers=None, timeout=60):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * SLOW)
        all_headers = {"Content-Type": "application/json"} if body is not None else {}
        all_headers.update(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        c.request(method, path, body=body, headers={k: v for k, v in all_headers.items() if v is not None})
        r = c.getresponse()
        answer = Answer(r.status, r.getheaders(), r.read())
        c.close()
        return answer

    def get(self, path, **headers):
        return self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def completion(self, prompt="The ", **fields):
        return self.ask("POST", "/v1/completions", dict({"model": "tiny", "prompt": prompt}, **fields))

    def chat(self, messages="hi", **fields):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.ask("POST", "/v1/chat/completions",
                        dict({"model": "tiny", "messages": messages, "max_tokens": 8}, **fields))

    def dial(self, text=b"", timeout=30):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=timeout * SLOW)
        s.sendall(text if isinstance(text, bytes) else text.encode())
        return s

    def raw(self, text, timeout=30):
        """Sends bytes, and reads until the server closes (or `timeout`)."""
        s = self.dial(text, timeout)
        out = b""
        try:
            while True:
                piece = s.recv(65536)
                if not piece:
                    break
                out += piece
        except (socket.timeout, ConnectionResetError):
            pass
        s.close()
        return out

    def post(self, path, body, headers="", length=None, version="1.1"):
        """The bytes of a request."""
        body = body if isinstance(body, bytes) else body.encode()
        return (f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
                f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body

    def stream(self, max_tokens=5000, **fields):
        """A socket on which an answer is being streamed."""
        body = dict({"model": "tiny", "prompt": "x", "max_tokens": max_tokens, "stream": True,
                     "logit_bias": {"0": -100}}, **fields)
        return self.dial(self.post("/v1/completions", json.dumps(body)))

    # -- looking inside --------------------------------------------------------------------------

    def metric(self, name, **labels):
        """The sum over all lines of the metric that have the labels."""
        total = 0.0
        for line in self.get("/metrics").body.decode().split("\n"):
            found = re.match(r"^(\w+)(?:\{(.*)\})? (\S+)$", line)
            if found and found.group(1) == name and all(f'{k}="{v}"' in (found.group(2) or "")
                                                        for k, v in labels.items()):
                total += float(found.group(3))
        return total

    def wait_for(self, condition, what, limit=20):
        end = time.time() + limit * SLOW
        while not condition():
            assert time.time() < end, f"waited in vain: {what}"
            time.sleep(0.02)

    def wait_idle(self):
        self.wait_for(lambda: self.metric("rwkv_requests_running") + self.metric("rwkv_requests_waiting") == 0,
                      "all slots free")

    def rss_kb(self):
        return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{self.process.pid}/status").read()).group(1))

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


def parallel(n, function):
    """function(i) for i < n at once; returns the results, and raises what one raised."""
    out, bad = [None] * n, []

    def work(i):
        try:
            out[i] = function(i)
        except BaseException as e:
            bad.append(e)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if bad:
        raise bad[0]
    return out
