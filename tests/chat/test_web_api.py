"""/v1 of `mllm chat --web`, asked by OpenAI's own client; answers held against the engine's."""

import base64
import http.client
import http.server
import json
import threading
import time

import httpx
import openai
import pytest

from mllm.chat.conversation import Answer, Conversation, Turn
from mllm.chat.engine import Engine, Request
from mllm.chat.pictures import picture_of
from mllm.chat.sampling import Sampling
from mllm.chat.web import api
from mllm.chat.web.asked import read_asked
from mllm.chat.web.refusal import Refusal
from mllm.chat.web.stops import Stops
from tests.chat.web_server import HTTP, serving, wait_for
from tests.hf.tiny import make_tiny, png

DEFAULTS = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), num_steps=60)


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(tiny.export, max_prefixes=4)


@pytest.fixture(scope="module")
def served(engine):
    with serving(engine, DEFAULTS) as served:
        yield served


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def image(seed):
    data = base64.b64encode(png(seed)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def text(words):
    return {"type": "text", "text": words}


def expected(engine, conversation, sampling=DEFAULTS):
    """The engine's own answer, computed without its caches."""
    request = Request(engine.encode(conversation), sampling, uses_cache=False)
    return "".join(engine.answer(request)), request.stats


def picture(seed):
    return picture_of(png(seed), "x")


def test_models(client, tiny):
    (model,) = client.models.list().data
    assert model.id == "export" and model.object == "model"
    assert client.models.retrieve("export").id == "export"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_texts_and_pictures_in_their_order_over_turns(client, engine):
    content = [text("left"), image(1), text("right"), image(2), text("which is red?")]
    messages = [
        {"role": "system", "content": "Say little."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "left"},
        {"role": "user", "content": "what colour is it?"},
    ]
    completion = client.chat.completions.create(model="export", messages=messages)
    turns = [
        Turn(["left", picture(1), "right", picture(2), "which is red?"], Answer("left")),
        Turn(["what colour is it?"]),
    ]
    answer, stats = expected(engine, Conversation("Say little.", [], turns))
    (choice,) = completion.choices
    assert choice.message.content == answer and answer
    assert choice.message.role == "assistant"
    assert completion.usage.prompt_tokens == stats.num_prompt
    assert completion.usage.completion_tokens == stats.num_new
    assert completion.usage.total_tokens == stats.num_prompt + stats.num_new
    swapped = [*content[:1], image(2), text("right"), image(1), text("which is red?")]
    ids = [engine.encode(read([{"role": "user", "content": c}]).conversation) for c in
           (content, swapped)]  # fmt: skip
    assert [p.sha256 for p in ids[0].pictures] == [p.sha256 for p in reversed(ids[1].pictures)]


def test_a_stream_says_the_same_and_counts(client, engine):
    messages = [{"role": "user", "content": [image(1), text("what colour is it?")]}]
    whole = client.chat.completions.create(model="export", messages=messages)
    stream = client.chat.completions.create(
        model="export", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]


def test_sampling_is_the_engines(client, engine):
    messages = [{"role": "user", "content": "An image of"}]
    settings = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    made = client.chat.completions.create(
        model="export", messages=messages, max_completion_tokens=9, **settings
    )
    sampling = Sampling(max_new_tokens=9, **settings)
    answer, stats = expected(engine, Conversation(turns=[Turn(["An image of"])]), sampling)
    assert made.choices[0].message.content == answer
    assert made.choices[0].finish_reason == ("length" if stats.is_capped else "stop")
    whole = client.chat.completions.create(model="export", messages=messages, temperature=1)
    assert whole.choices[0].finish_reason in ("stop", "length")  # 1, where `generate` needs 1.0
    seeds = {read(messages, temperature=1).sampling.seed for _ in range(4)}
    assert len(seeds) == 4  # a client that names none expects variety


def test_an_answer_ends_at_its_length_or_at_a_stop(client, engine):
    messages = [{"role": "user", "content": "Question: what colour"}]
    make = client.chat.completions.create
    short = make(model="export", messages=messages, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    whole = make(model="export", messages=messages, max_tokens=30).choices[0].message.content
    assert len(whole) > 6
    stop = whole[4:6]
    before = whole[: whole.index(stop)]
    cut = make(model="export", messages=messages, max_tokens=30, stop=["zzz", stop])
    assert cut.choices[0].message.content == before
    assert cut.choices[0].finish_reason == "stop"
    stream = make(model="export", messages=messages, max_tokens=30, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == before


def test_stops_hold_back_what_may_become_one():
    stops = Stops(["END", "\n\n"])
    assert stops.feed("a E") == "a " and stops.feed("N") == "" and stops.feed("X") == "ENX"
    assert stops.feed("y\n") == "y" and stops.feed("z") == "\nz"
    assert stops.feed("bEN") == "b" and stops.feed("D more") == "" and stops.is_over
    assert stops.feed("x") == "" and stops.end() == ""
    unmet = Stops(["END"])
    assert unmet.feed("the EN") == "the " and unmet.end() == "EN"
    # Whatever the cuts, the same text comes out.
    words = "one two EEN END three"
    for size in range(1, 6):
        cut = Stops(["END"])
        pieces = [cut.feed(words[i : i + size]) for i in range(0, len(words), size)]
        assert "".join(pieces) + cut.end() == "one two EEN "


def test_what_does_not_fit_is_refused_with_the_arithmetic(client):
    content = [image(1), text("red " * 200)]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="export", messages=[{"role": "user", "content": content}], max_tokens=5
        )
    assert caught.value.code == "context_length_exceeded"
    assert "128 tokens" in caught.value.message and "5 for the answer" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="export", messages=[{"role": "user", "content": [image(1)] * 30}]
        )
    assert caught.value.code == "context_length_exceeded" and "room for 21" in caught.value.message


def read(messages, **parameters):
    body = json.dumps({"messages": messages, **parameters}).encode()
    return read_asked(body, DEFAULTS, "export", 20)


HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": "gpt-4o"}, "model"),
    ],
)
def test_what_would_change_the_answer_is_refused(parameters, param):
    with pytest.raises(Refusal) as caught:
        read(HELLO, **parameters)
    assert caught.value.param == param
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}


def test_what_would_not_is_ignored():
    asked = read(
        HELLO, n=1, user="u", store=True, metadata={}, response_format={"type": "text"}, tools=[],
        logprobs=False, presence_penalty=0, seed=-3, some_new_parameter={"x": 1}, stop=None,
    )  # fmt: skip
    assert asked.sampling.max_new_tokens == DEFAULTS.max_new_tokens and asked.sampling.seed >= 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "assistant", "content": "first"}],
        [*HELLO, {"role": "assistant", "content": "the end"}],
        [*HELLO, {"role": "system", "content": "late"}],
        [*HELLO, {"role": "assistant", "content": None, "tool_calls": [TOOL]}],
        [{"role": "system", "content": [image(1)]}, *HELLO],
    ],
)
def test_messages_that_are_no_conversation(messages):
    with pytest.raises(Refusal):
        read(messages)


def test_no_address_is_fetched(served, client, tmp_path):
    """Pictures are data URLs; a listener sees that nobody calls."""
    seen = []
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    listener = httpx_listener(seen)
    urls = [
        f"http://127.0.0.1:{listener}/a.png",
        f"file://{secret}",
        str(secret),
        "ftp://x/a.png",
        "data:image/png,rawbytes",
        "data:image/png;base64,@@",
    ]
    for url in urls:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="export", messages=[{"role": "user", "content": content}]
            )
        assert caught.value.code == "invalid_image_url", url
    assert seen == []
    bad = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
    with pytest.raises(Refusal, match="not a picture"):
        url = {"url": f"data:image/svg+xml;base64,{bad}"}
        read([{"role": "user", "content": [{"type": "image_url", "image_url": url}]}])


def httpx_listener(seen):
    """The port of a server that notes who called."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


class Endless:
    """An engine whose answers end only when they are stopped."""

    def __init__(self, engine):
        self._engine, self.requests = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def answer(self, request):
        self.requests.append(request)
        while not request.stopped.is_set():
            time.sleep(0.02)
            yield "word "


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_ends_its_answer(engine, streams):
    endless = Endless(engine)
    body = {"messages": HELLO, "stream": streams}
    with serving(endless, DEFAULTS) as served:
        address = f"{served.url}{api.COMPLETIONS}"
        if streams:
            with HTTP.stream("POST", address, json=body) as answer:
                lines = answer.iter_lines()  # kept: without it the connection would close
                next(lines)
                assert not endless.requests or not endless.requests[0].stopped.is_set()
        else:
            with pytest.raises(httpx.ReadTimeout):
                HTTP.post(address, json=body, timeout=0.5)
        wait_for(lambda: endless.requests and endless.requests[0].stopped.is_set(), "the end", 10)


def test_bodies_are_limited_and_must_be_json(served):
    address = f"{served.url}{api.COMPLETIONS}"
    headers = {"content-type": "application/json"}
    bad = HTTP.post(address, content=b"{", headers=headers)
    assert bad.status_code == 400 and "not JSON" in bad.json()["error"]["message"]
    deep = HTTP.post(address, content=b"[" * 100_000, headers=headers)
    assert deep.status_code == 400
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", api.COMPLETIONS)
    for name, value in {**headers, "content-length": str(10**9)}.items():
        connection.putheader(name, value)
    connection.endheaders()  # the body is not waited for
    huge = connection.getresponse()
    assert huge.status == 413 and "at most" in json.load(huge)["error"]["message"]
    form = HTTP.post(address, content=b"{}", headers={"content-type": "text/plain"})
    assert form.status_code == 415

    def chunks():
        yield b"{}"

    assert HTTP.post(address, content=chunks(), headers=headers).status_code == 411
