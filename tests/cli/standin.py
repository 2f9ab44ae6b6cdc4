"""A server that speaks just enough of OpenAI's API to be load-tested, and fails on request: the
model's name says how. Prints its port; ends when its standard input does. Standard library only."""
import asyncio
import json
import os
import sys

SEEN = {"requests": 0, "keys": set(), "prompts": set(), "bodies": []}


def answer(status, body, kind="application/json", more=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{more}\r\n"
    ).encode() + data


def chunked(data):
    return b"%x\r\n" % len(data) + data + b"\r\n"


def event(value):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(chat, text, finish=None):
    inside = {"delta": {"content": text}} if chat else {"text": text}
    return event({"id": "x", "choices": [{"index": 0, **inside, "finish_reason": finish}],
                  "usage": None})


async def stream(w, model, chat, tokens, usage):
    w.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")
    if chat:
        w.write(chunked(event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})))
    w.write(chunked(b": a comment\n\n"))
    for i in range(tokens):
        data = piece(chat, f" t{i}", "length" if i == tokens - 1 else None)
        if model == "pieces":  # events cut anywhere
            for k in range(0, len(data), 7):
                w.write(chunked(data[k:k + 7]))
        else:
            w.write(chunked(data))
        if i == 2 and model == "in-stream":
            w.write(chunked(event({"error": {"message": "out of patience", "code": 1}})))
            break
        if i == 2 and model == "garbage":
            w.write(chunked(b"data: {nonsense\n\n"))
        if i == 2 and model == "cut":
            w.close()
            return
        if model != "fast":
            await w.drain()
            await asyncio.sleep(0.03 if model == "slow" else 0.001)
    if model != "no-usage":
        w.write(chunked(event({"choices": [], "usage": usage})))
    if model not in ("no-done", "in-stream"):
        w.write(chunked(event(b"[DONE]")))
    w.write(b"0\r\n\r\n")


async def respond(w, path, headers, body):
    SEEN["keys"].add(headers.get("authorization"))
    if path == "/seen":
        w.write(answer("200 OK", {**SEEN, "keys": [str(k) for k in SEEN["keys"]],
                                  "prompts": len(SEEN["prompts"])}))
        return
    SEEN["requests"] += 1
    request = json.loads(body)
    SEEN["bodies"] = (SEEN["bodies"] + [request])[-4:]
    chat = path.endswith("/chat/completions")
    prompt = request["messages"][0]["content"] if chat else request["prompt"]
    SEEN["prompts"].add(prompt)
    model, tokens = request["model"], request["max_tokens"]
    usage = {"prompt_tokens": 2 * len(prompt.split()) + 5, "completion_tokens": tokens}
    if path not in ("/v1/completions", "/v1/chat/completions"):
        w.write(answer("404 Not Found", {"error": {"message": f"no {path}"}}))
    elif model == "nowhere":
        w.write(answer("404 Not Found", {"error": {"message": "no model nowhere"}}))
    elif model == "busy" and SEEN["requests"] % 2:
        w.write(answer("429 Too Many Requests", {"error": {"message": "later"}}))
    elif model == "page":
        w.write(answer("200 OK", b"<html>hello</html>", "text/html"))
    elif model == "hang":
        await asyncio.sleep(30)
    elif request["stream"]:
        await stream(w, model, chat, tokens, usage)
    else:
        inside = {"message": {"content": "t"}} if chat else {"text": "t"}
        w.write(answer("200 OK", {"choices": [{"index": 0, **inside}], "usage": usage}))
    if model == "closes":  # without a word: the next request on it meets nobody
        await w.drain()
        w.close()


async def client(r, w):
    try:
        while True:
            head = (await r.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(h.lower().split(": ", 1) if not h.lower().startswith("authorization")
                           else ("authorization", h.split(": ", 1)[1]) for h in head[1:] if h)
            body = await r.readexactly(int(headers.get("content-length", 0)))
            await respond(w, head[0].split(" ")[1], headers, body)
            await w.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        w.close()


async def main():
    server = await asyncio.start_server(client, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # answers that hang would be waited for


asyncio.run(main())
