"""The PyPI client `openai`, unmodified: sync, async, streaming helpers, typed errors, abort."""
import asyncio, os, sys, time
sys.path.insert(0, os.path.dirname(__file__))
import openai
from harness import *

server = Server("openai", top='api_key = "k"\n', model="max_context_len = 20000\n")
URL = f"http://127.0.0.1:{server.port}/v1"
client = openai.OpenAI(base_url=URL, api_key="k", max_retries=0)
HI = [{"role": "user", "content": "hi"}]
NO_END = {"0": -100}


def metric(name):
    import http.client, re
    c = http.client.HTTPConnection("127.0.0.1", server.port)
    c.request("GET", "/metrics", headers={"Authorization": "Bearer k"})
    text = c.getresponse().read().decode()
    c.close()
    return sum(float(x) for x in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.M))


def expect(kind, function):
    try:
        function()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was expected")


@case
def models_list_and_retrieve():
    same([m.id for m in client.models.list()], ["tiny"])
    same(client.models.retrieve("tiny").owned_by, "rwkv")

@case
def chat_whole():
    a = client.chat.completions.create(model="tiny", messages=HI, max_tokens=5, logit_bias=NO_END, logprobs=True, top_logprobs=2)
    same((a.choices[0].finish_reason, a.usage.completion_tokens, a.choices[0].message.role), ("length", 5, "assistant"))
    same(len(a.choices[0].logprobs.content), 5)
    same(len(a.choices[0].logprobs.content[0].top_logprobs), 2)

@case
def chat_stream():
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=50, seed=4).choices[0].message.content
    text, finish, usage = "", [], None
    for chunk in client.chat.completions.create(model="tiny", messages=HI, max_tokens=50, seed=4, stream=True,
                                                stream_options={"include_usage": True}):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
        else:
            usage = chunk.usage
    same(text, whole)
    same(len(finish), 1)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

@case
def chat_streaming_helper():
    stream = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    with stream(model="tiny", messages=HI, max_tokens=20, seed=2) as s:
        pieces = [e.delta for e in s if e.type == "content.delta"]
        final = s.current_completion_snapshot
    same("".join(pieces), final.choices[0].message.content)

@case
def completions_whole_and_stream():
    a = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=6, seed=1, logprobs=1)
    same([c.index for c in a.choices], [0, 1])
    text = {0: "", 1: ""}
    for chunk in client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=6, seed=1, stream=True):
        text[chunk.choices[0].index] += chunk.choices[0].text
    same(list(text.values()), [c.text for c in a.choices])
    same(client.completions.create(model="tiny", prompt=[66, 67], max_tokens=1, echo=True).choices[0].text[:2], "AB")

@case
def reasoning_effort_is_taken():
    a = client.chat.completions.create(model="tiny", messages=HI, max_tokens=40, reasoning_effort="high", seed=1, logit_bias=NO_END)
    assert a.choices[0].message.reasoning_content

@case
def errors_have_types():
    e = expect(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4", messages=HI))
    same((e.code, e.param), ("model_not_found", "model"))
    e = expect(openai.BadRequestError, lambda: client.chat.completions.create(model="tiny", messages=HI, temperature=-1))
    same(e.param, "temperature")
    e = expect(openai.BadRequestError, lambda: client.chat.completions.create(model="tiny", messages=HI, n=2))
    same(e.param, "n")
    e = expect(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="x" * 30000))
    same(e.code, "context_length_exceeded")
    other = openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0)
    same(expect(openai.AuthenticationError, lambda: other.models.list()).code, "invalid_api_key")
    expect(openai.NotFoundError, lambda: client.embeddings.create(model="tiny", input="x"))

@case
def abort_frees_the_slot():
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=19000, stream=True, logit_bias=NO_END)
    next(iter(stream))
    stream.close()
    server.wait_for(lambda: metric("rwkv_requests_running") == 0, "the slot is free")
    expect(openai.APITimeoutError, lambda: client.with_options(timeout=0.05).completions.create(
        model="tiny", prompt="x" * 15000, max_tokens=4000, logit_bias=NO_END))
    server.wait_for(lambda: metric("rwkv_requests_running") == 0, "the slot is free")

@case
def async_many_at_once():
    async def main():
        async with openai.AsyncOpenAI(base_url=URL, api_key="k", max_retries=0) as c:
            async def one(i):
                text = ""
                async for chunk in await c.chat.completions.create(model="tiny", messages=HI, max_tokens=30, seed=i, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text
            return await asyncio.gather(*[one(i % 5) for i in range(30)])
    texts = asyncio.run(main())
    for i in range(5):
        same(len(set(texts[i::5])), 1)

@case
def raw_response_headers():
    r = client.models.with_raw_response.list()
    same(r.headers["content-type"], "application/json")


if __name__ == "__main__":
    run(sys.argv[1:])
