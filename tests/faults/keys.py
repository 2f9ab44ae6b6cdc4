"""FAULTS A1 to A5: who may do what. Usage: keys.py [NAME…]"""
import json, os, subprocess, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../http"))
from harness import *

server = Server("keys", top='api_key = "inference-key"\nadmin_api_key = "admin-key"\n')
ROUTES = {("GET", "/"): "open", ("GET", "/health"): "open", ("GET", "/health/ready"): "open", ("GET", "/version"): "open",
          ("GET", "/v1/models"): "key", ("GET", "/v1/models/tiny"): "key", ("GET", "/metrics"): "key",
          ("GET", "/tokenizer_info"): "key", ("POST", "/tokenize"): "key", ("POST", "/detokenize"): "key",
          ("POST", "/v1/completions"): "key", ("POST", "/v1/chat/completions"): "key",
          ("POST", "/admin/models/reload"): "admin"}


def ask(method, path, key=None):
    return server.ask(method, path, {} if method == "POST" else None,
                      {"Authorization": f"Bearer {key}"} if key else {})


@case
def A1_every_route_has_its_policy():
    for (method, path), policy in ROUTES.items():
        for key in (None, "wrong", "inference-key", "admin-key"):
            may = policy == "open" or (policy == "key" and key == "inference-key") or (policy == "admin" and key == "admin-key")
            status = ask(method, path, key).status
            assert (status == 401) == (not may), (method, path, key, status)

@case
def A1_refusals_have_openais_shape():
    a = ask("GET", "/v1/models")
    same((a.status, a.error["code"], a.headers["www-authenticate"]), (401, "invalid_api_key", "Bearer"))

@case
def A2_forms_of_the_header():
    def status(*values):
        head = "".join(f"Authorization: {v}\r\n" for v in values)
        return int(server.raw(f"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{head}\r\n")[9:12])
    for value in ("Bearer inference-key", "bearer inference-key", "BEARER  inference-key", "inference-key"):
        same(status(value), 200, value)
    for value in ("Bearer inference-ke", "Bearer inference-keyx", "Bearer", "Bearer ", "Basic inference-key", "",
                  "Bearer inference-key, Bearer x", "Bearer inference-key\x00"):
        assert status(value) in (400, 401), value
    same(status("Bearer inference-key", "Bearer inference-key"), 400)

@case
def A2_comparison_takes_no_tell_tale_time():
    def median(key):
        times = []
        for _ in range(60):
            start = time.perf_counter()
            ask("GET", "/v1/models", key)
            times.append(time.perf_counter() - start)
        return sorted(times)[30]
    assert abs(median("x" * 13) - median("inference-kex")) < 0.002 * SLOW

@case
def A2_empty_and_missing_keys_are_refused_at_the_start():
    def start(*sets):
        args = [RWKV, "serve", "--config-dir", server.dir, "--infer-cfg", "test"]
        for s in sets:
            args += ["--set", s]
        r = subprocess.run(args, capture_output=True, text=True, timeout=60)
        return r.returncode, r.stderr
    code, text = start('api_key=""')
    assert code == 2 and "api_key" in text, text
    open_dir = os.path.join(BUILD, "serve-tests", "keys-open")
    subprocess.run(["rm", "-rf", open_dir], check=True)
    subprocess.run(["cp", "-r", server.dir, open_dir], check=True)
    toml = open(open_dir + "/infer/test.toml").read().replace('api_key = "inference-key"\nadmin_api_key = "admin-key"\n', "")
    open(open_dir + "/infer/test.toml", "w").write(toml)
    for address in ("0.0.0.0:0", "[::]:0"):
        r = subprocess.run([RWKV, "serve", "--config-dir", open_dir, "--infer-cfg", "test", "--set", f"http_bind_addr={address}"],
                           capture_output=True, text=True, timeout=60)
        assert r.returncode == 2 and "--public-without-key" in r.stderr, (address, r.stderr)

@case
def A3_the_keys_are_apart():
    same(ask("POST", "/admin/models/reload", "inference-key").status, 401)
    same(ask("GET", "/v1/models", "admin-key").status, 401)
    same(ask("POST", "/admin/models/reload", "admin-key").status, 200)

@case
def A4_reload_stays_in_the_models_folders():
    outside = os.path.join(BUILD, "serve-tests", "outside")
    os.makedirs(outside, exist_ok=True)
    subprocess.run(["cp", server.dir + "/weights/tiny.pth", outside + "/tiny.pth"], check=True)
    link = server.dir + "/weights/link.pth"
    if not os.path.islink(link):
        os.symlink(outside + "/tiny.pth", link)
    before = open(server.toml).read()
    for field, path in (("weights_path", outside + "/tiny.pth"), ("weights_path", "../../outside/tiny.pth"),
                        ("weights_path", "../weights/../../outside/tiny.pth"), ("weights_path", "../weights/link.pth"),
                        ("weights_path", "/etc/passwd"), ("tokenizer_vocab_path", "/etc/passwd"), ("model_cfg", "/etc/passwd"),
                        ("model_cfg", "../../../../../../etc/passwd")):
        entry = {"model_name": "evil", "model_cfg": "tiny", "weights_path": "../weights/tiny.pth",
                 "tokenizer_vocab_path": "bytes", field: path}
        a = server.ask("POST", "/admin/models/reload", {"upsert": [entry]}, {"Authorization": "Bearer admin-key"})
        same(a.status, 400, (field, path, a.body))
        assert "root:" not in a.body.decode() and "daemon" not in a.body.decode(), a.body
    same(open(server.toml).read(), before)

@case
def A5_keys_are_told_nowhere():
    for (method, path) in ROUTES:
        for key in (None, "inference-key", "admin-key"):
            a = ask(method, path, key)
            assert b"inference-key" not in a.body and b"admin-key" not in a.body, (path, a.body)
    server.raw(b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer inference-key\r\nX: \x01\r\n\r\n")
    assert "-key" not in open(server.log).read()
    shown = subprocess.run([RWKV, "config", "show", "--config-dir", server.dir, "--infer-cfg", "test"], capture_output=True, text=True)
    assert shown.returncode == 0 and "-key" not in shown.stdout


if __name__ == "__main__":
    run(sys.argv[1:])
