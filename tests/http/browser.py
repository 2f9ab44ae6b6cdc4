"""A headless Chromium on a leash: the DevTools protocol over a pipe."""
import base64, json, os, shutil, subprocess, tempfile, time


def program():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self, url, width=1280, height=800, phone=False, dark=False):
        self.profile = tempfile.mkdtemp(prefix="rwkv-browser-")
        there, self.to = os.pipe()
        self.back, here = os.pipe()

        def leash():  # the browser reads from 3 and writes to 4
            os.dup2(there, 13), os.dup2(here, 14)
            os.dup2(13, 3), os.dup2(14, 4)
        self.process = subprocess.Popen(
            [program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
             "--disable-dev-shm-usage", "--user-data-dir=" + self.profile, "about:blank"],
            preexec_fn=leash, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there), os.close(here)
        self.rest, self.count, self.session, self.requests = b"", 0, None, []
        target = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"][0]["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable"), self.call("Runtime.enable"), self.call("Network.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def read(self, limit=30):
        end = time.time() + limit
        os.set_blocking(self.back, False)
        while b"\0" not in self.rest:
            assert time.time() < end, "the browser says nothing"
            try:
                piece = os.read(self.back, 1 << 20)
                assert piece, "the browser is gone"
                self.rest += piece
            except BlockingIOError:
                time.sleep(0.005)
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            m = self.read()
            if m.get("method") == "Network.requestWillBeSent":
                self.requests.append(m["params"]["request"]["url"])
            if m.get("method") == "Runtime.exceptionThrown":
                raise AssertionError(json.dumps(m["params"])[:600])
            if m.get("id") == self.count:
                assert "error" not in m, m
                return m["result"]

    def js(self, expression):
        r = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in r, r["exceptionDetails"]
        return r["result"].get("value")

    def wait_for(self, expression, limit=20):
        end = time.time() + limit
        while not self.js(f"!!({expression})"):
            assert time.time() < end, f"waited in vain: {expression}"
            time.sleep(0.02)

    def key(self, key, code, text=""):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def shot(self, path):
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        with open(path, "wb") as f:
            f.write(data)

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to), os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)
