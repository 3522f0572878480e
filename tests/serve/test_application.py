# SPDX-License-Identifier: Apache-2.0
"""The server over HTTP, without an engine: routes, access, clients that disconnect."""

from __future__ import annotations

import json
import math
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

import inference_bridge as ib
from inference_bridge.serve import app

from ..parts.models.tiny import Waits, Words, until
from ..parts.servers.answering import Unlikely
from .conftest import Serving

KEY = "a-key-for-tests"


class Chats(Words):
    capabilities = frozenset({"chat"})


def chat(text: str = "one two", **more: Any) -> dict[str, Any]:
    return {"model": "words", "messages": [{"role": "user", "content": text}], **more}


def test_health_and_models(serving: Serving) -> None:
    address = serving({"words": Chats(), "later": "nowhere:later"})
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
    listed = httpx2.get(f"{address}/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["later", "words"]
    assert httpx2.get(f"{address}/v1/models/words").json()["object"] == "model"
    assert httpx2.get(f"{address}/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": NaN}', 400, None),
        (json.dumps(chat(temperatur=1)).encode(), 400, "temperatur"),
        (json.dumps(chat() | {"model": "word"}).encode(), 404, None),
        (json.dumps(chat(seed=1)).encode(), 400, "seed"),  # `Words` does not support it
        (json.dumps(chat("x" * 3000)).encode(), 413, None),
    ],
)
def test_errors_have_their_status_and_field(serving: Serving, body: bytes, status: int, param: str | None) -> None:
    address = serving({"words": Chats()}, max_body=2000)
    answer = httpx2.post(f"{address}/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"]


def test_unknown_routes_are_errors_of_the_same_shape(serving: Serving) -> None:
    address = serving({"words": Chats()})
    assert httpx2.get(f"{address}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx2.get(f"{address}/v1/chat/completions").status_code == 405


def test_an_error_of_the_model_is_not_quoted(serving: Serving) -> None:
    class Broken(Chats):
        def _run(self, request: ib.Request) -> Any:
            raise RuntimeError("a secret")

    address = serving({"words": Broken()})
    answer = httpx2.post(f"{address}/v1/chat/completions", json=chat())
    assert answer.status_code == 500


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_forced_call_that_does_not_fit_is_an_error_of_the_request(
    serving: Serving, model: ib.TextModel, path: str
) -> None:
    address = serving({"m": model})
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    openai = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Rain?"}], "max_tokens": 3}
    if path == "/v1/chat/completions":
        body |= {"tools": [openai], "tool_choice": "required"}
    elif path == "/v1/messages":
        body |= {"tools": [{"name": "weather", "input_schema": schema}], "tool_choice": {"type": "any"}}
    else:
        tool = {"type": "function", "name": "weather", "parameters": schema}
        body = {"model": "m", "input": "Rain?", "max_output_tokens": 3, "tools": [tool], "tool_choice": "required"}
    answer = httpx2.post(f"{address}{path}", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "max_tokens" in answer.json()["error"]["message"]


def test_an_error_in_a_stream_is_an_event(serving: Serving) -> None:
    class Breaks(Chats):
        def _run(self, request: ib.Request) -> Any:
            yield ib.Token("one")
            raise ib.ServerError("it went away")

    address = serving({"words": Breaks()})
    answer = httpx2.post(f"{address}/v1/chat/completions", json=chat(stream=True))
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert json.loads(events[1])["choices"][0]["delta"] == {"content": "one"}
    assert "it went away" in json.loads(events[-1])["error"]["message"]


LOGPROBS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2)),
    ("/v1/completions", {"model": "words", "prompt": "x", "logprobs": 2}),
    ("/v1/responses", {"model": "words", "input": "x", "top_logprobs": 2}),
    ("/bridge/chat", {**chat(), "config": {"logprobs": 2}}),
]


def strict(answer: httpx2.Response) -> list[Any]:
    """Return the JSON of an answer or of its events. Fail if it has a constant that JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(text, parse_constant=refuse) for text in lines or [answer.text]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), LOGPROBS[:3])
def test_a_log_probability_of_negative_infinity_is_a_number_in_json(
    serving: Serving, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = httpx2.post(serving({"words": Unlikely()}) + path, json=body | {"stream": stream})
    assert answer.status_code == 200, answer.text
    assert strict(answer)
    assert answer.text.count("-9999.0") >= 2  # the token and its alternative
    assert "-0.5" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *LOGPROBS,
        ("/v1/rerank", {"model": "words", "query": "x", "documents": ["y"]}),
        ("/v1/embeddings", {"model": "words", "input": "x"}),
        ("/bridge/embed", {"model": "words", "texts": ["x"]}),
    ],
)
def test_nan_is_an_error_of_the_model(serving: Serving, path: str, body: dict[str, Any]) -> None:
    class Broken(Unlikely):
        number = math.nan

    address = serving({"words": Broken()})
    answer = httpx2.post(f"{address}{path}", json=body)
    if path == "/bridge/chat":  # it always streams
        assert "NaN" in strict(answer)[-1]["error"]["message"]
        return
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    if path in dict(LOGPROBS):
        events = strict(httpx2.post(f"{address}{path}", json=body | {"stream": True}))
        assert "NaN" in json.dumps(events[-1])


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_a_number_that_no_float_holds_is_refused(serving: Serving, number: bytes) -> None:
    tool = b'{"type": "function", "name": "f", "parameters": {"maximum": %s}}' % number
    body = b'{"model": "words", "input": "x", "tool_choice": "none", "tools": [%s], "stream": true}' % tool
    answer = httpx2.post(serving({"words": Chats()}) + "/v1/responses", content=body)
    assert answer.status_code == 400
    assert number.decode() in answer.json()["error"]["message"]


@pytest.mark.parametrize("models", ["llama_cpp:words", {"words": 1}, [Chats()]])
def test_models_of_another_type_are_refused(models: Any) -> None:
    with pytest.raises(TypeError, match="models must"):
        app(models)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"\ud800": 1, **chat()}, 400),
        ("/v1/messages", {"\ud800": 1, **chat(), "max_tokens": 9}, 400),
        ("/v1/systemone", {"model": "words", "state": "x", "questions": {"\ud800": {"type": "noul"}}}, 422),
        ("/v1/responses", {"model": "words", "input": "x", "instructions": "\ud800"}, 200),
        ("/v1/responses", {"model": "words", "input": "x", "instructions": "\ud800", "stream": True}, 200),
    ],
)
def test_a_lone_surrogate_is_repeated_as_an_escape(
    serving: Serving, path: str, body: dict[str, Any], status: int
) -> None:
    answer = httpx2.post(serving({"words": Chats()}) + path, content=json.dumps(body))
    assert answer.status_code == status
    assert r"\ud800" in answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    for text in lines or [answer.text]:
        json.loads(text)


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_of_one_of_several_streams_keeps_its_status_and_code(serving: Serving, n: int) -> None:
    class Breaks(Chats):
        def _run(self, request: ib.Request) -> Any:
            if request.messages[0].text == "long":
                raise ib.ContextLengthExceededError(100, 50)
            yield ib.Token("one")
            raise ib.GenerationTimeoutError("too slow")

    address = serving({"words": Breaks()})
    refused = httpx2.post(f"{address}/v1/chat/completions", json=chat("long", stream=True, n=n))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = httpx2.post(f"{address}/v1/chat/completions", json=chat(stream=True, n=n))
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert json.loads(events[-1])["error"]["code"] == "timeout"


class Known(Chats):
    """Answers with an emoji of two tokens, whose log probabilities are known if they are asked for."""

    capabilities = frozenset({"chat", "logprobs"})

    def _run(self, request: ib.Request) -> Any:
        for text, logprob in (("", -1.0), ("🦄", -2.0)):
            if request.config.logprobs:
                top = [ib.TopLogprob(text, number, logprob) for number in range(request.config.logprobs)]
                yield ib.Token(text, 1, logprob, tuple(top))
            else:
                yield ib.Token(text, 1)


@pytest.mark.parametrize("top", [0, 2])
def test_each_token_has_its_log_probability(serving: Serving, top: int) -> None:
    address = serving({"words": Known()})
    expected = [(-1.0, top), (-2.0, top)]

    def shown(content: list[dict[str, Any]]) -> list[tuple[float, int]]:
        return [(one["logprob"], len(one["top_logprobs"])) for one in content]

    def events(path: str, body: dict[str, Any]) -> list[Any]:
        lines = httpx2.post(f"{address}{path}", json=body | {"stream": True}).text.splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    body = chat(logprobs=True, top_logprobs=top)
    (choice,) = httpx2.post(f"{address}/v1/chat/completions", json=body).json()["choices"]
    assert shown(choice["logprobs"]["content"]) == expected
    chunks = [event["choices"][0]["logprobs"] for event in events("/v1/chat/completions", body)]
    assert [one for chunk in chunks if chunk for one in shown(chunk["content"])] == expected

    body = {"model": "words", "prompt": "x", "logprobs": top}
    (choice,) = httpx2.post(f"{address}/v1/completions", json=body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-1.0, -2.0]
    assert [len(one) for one in choice["logprobs"]["top_logprobs"]] == [min(top, 1)] * 2  # by text: all have one text

    body = {"model": "words", "input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": top}
    (item,) = httpx2.post(f"{address}/v1/responses", json=body).json()["output"]
    assert shown(item["content"][0]["logprobs"]) == expected
    deltas = [one for one in events("/v1/responses", body) if one["type"] == "response.output_text.delta"]
    assert [one for delta in deltas for one in shown(delta["logprobs"])] == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(logprobs=True, top_logprobs=-1)),
        ("/v1/responses", {"model": "words", "input": "x", "top_logprobs": -1}),
        ("/v1/chat/completions", chat(max_completion_tokens=-5)),
    ],
)
def test_a_number_that_is_wrong_is_named_as_the_client_names_it(
    serving: Serving, path: str, body: dict[str, Any]
) -> None:
    answer = httpx2.post(serving({"words": Known()}) + path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, list(body)[-1])


def test_requests_need_the_key(serving: Serving) -> None:
    address = serving({"words": Chats()}, key=KEY)
    assert httpx2.get(f"{address}/health").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"x-api-key": "wrong"}):
        answer = httpx2.get(f"{address}/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert httpx2.get(f"{address}/v1/models", headers=headers).status_code == 200


def test_requests_of_other_host_names_and_web_pages_are_refused(serving: Serving) -> None:
    address = serving({"words": Chats()}, hosts=["127.0.0.1"], origins=["https://mine.example"])
    assert httpx2.get(f"{address}/v1/models").status_code == 200
    assert httpx2.get(f"{address}/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert httpx2.get(f"{address}/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    mine = httpx2.get(f"{address}/v1/models", headers={"origin": "https://mine.example"})
    assert mine.headers["access-control-allow-origin"] == "https://mine.example"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://mine.example/", "https://mine.example"),
        ("HTTPS://Mine.Example:443", "https://mine.example"),
        ("http://my_app:", "http://my_app"),
        ("http://localhost:03000/", "http://localhost:3000"),
        ("http://[0:0::1]:80", "http://[::1]"),
        ("https://mine.example:80", "https://mine.example:80"),
        ("chrome-extension://abcdef/", "chrome-extension://abcdef"),
        ("null", "null"),
    ],
)
def test_an_origin_is_compared_in_the_form_that_browsers_send(serving: Serving, given: str, sent: str) -> None:
    address = serving({"words": Chats()}, origins=[given])
    answer = httpx2.get(f"{address}/v1/models", headers={"origin": sent})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == sent


@pytest.mark.parametrize(
    ("given", "sent"), [("My_Server", "my_server:8090"), ("[0::1]", "[::1]:8090"), ("[::1]", "[0:0::1]"), ("a.", "A.")]
)
def test_a_host_name_is_compared_without_its_port_and_case(serving: Serving, given: str, sent: str) -> None:
    address = serving({"words": Chats()}, hosts=[given])
    assert httpx2.get(f"{address}/v1/models", headers={"host": sent}).status_code == 200
    assert httpx2.get(f"{address}/v1/models", headers={"host": "[::2]"}).status_code == 403


@pytest.mark.parametrize(
    ("option", "given"),
    [
        *[("hosts", name) for name in ("name:80", "[::1]:80", "::1", "[1]", "http://name", "*", "name/", "é", "")],
        *[("origins", name) for name in ("mine.example", "localhost:3000", "*", "", "https://", "http://é.example")],
        *[("origins", f"https://{rest}") for rest in ("a/page", "a?b", "*.a", "a:b", "a:70000", "[1]", "u@a", "a,b")],
    ],
)
def test_hosts_and_origins_that_could_never_match_are_refused(option: str, given: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        app({"words": Chats()}, **{option: [given]})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hosts and origins"):
        app({"words": Chats()}, **{option: "localhost"})  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_ends_its_operation(serving: Serving, stream: bool) -> None:
    class Waiting(Waits):
        capabilities = frozenset({"chat"})

    model = Waiting()
    address = serving({"words": model})
    place = urlsplit(address)
    body = json.dumps(chat(stream=stream)).encode()
    with socket.create_connection((str(place.hostname), int(place.port or 0))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert model.waiting.wait(30)
    assert model.finished.wait(30)
    until(lambda: model.ended == 1)


def test_a_full_queue_is_429(serving: Serving) -> None:
    class Waiting(Waits):
        capabilities = frozenset({"chat"})

    model = Waiting()
    address = serving({"words": model}, max_queue=0)
    with httpx2.stream("POST", f"{address}/v1/chat/completions", json=chat(stream=True)):
        assert model.waiting.wait(30)
        answer = httpx2.post(f"{address}/v1/chat/completions", json=chat())
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_metrics_are_prometheus_text(serving: Serving) -> None:
    address = serving({"words": Chats()})
    answer = httpx2.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE inference_bridge_requests_total counter" in answer.text
