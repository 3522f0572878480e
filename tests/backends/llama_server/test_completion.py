# SPDX-License-Identifier: Apache-2.0
"""JSON answers of a managed server that max_tokens would cut off."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import GenerateConfig, LoadConfig, ServerError, Token
from inference_bridge.backends.http.model import HttpModel
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.completion import Completion, shortest_rest
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.schemas import ServerSchemas
from inference_bridge.request import Request

from ...parts.servers.managed import REAL, script, short_directory

JOKE = {
    "type": "object",
    "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}},
    "required": ["setup", "punchline"],
}
ASKED = [{"role": "user", "content": "Tell me a joke about cats."}]
SHORTEST = '{"setup":"","punchline":""}'


@pytest.fixture(scope="module", params=["wheel", "binary"])
def model(
    request: pytest.FixtureRequest, demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerModel]:
    """The wheel's server, and the same server as an unknown binary."""
    with short_directory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        settings = LoadConfig(context_length=512, parallel_slots=2, threads=1)
        binary = None
        if request.param == "binary":
            binary = script(tmp_path_factory.mktemp("binary") / "llama-server", REAL)
        with LlamaServerBackend(binary).load_model(str(demo_model_path), settings) as model:
            assert isinstance(model, ServerModel)
            yield model


NESTED = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
    "required": ["items"],
    "$defs": {
        "item": {
            "type": "object",
            "properties": {
                name: {"type": "string"} for name in ("a_long_name", "another_long_name", "yet_another_one")
            },
            "required": ["a_long_name", "another_long_name", "yet_another_one"],
        }
    },
}


def taken(texts: list[str], max_tokens: int, reason: Any = "length", **options: Any) -> tuple[Request, list[str], str]:
    """What is handed out at once of an answer of the tokens `texts`, and the rest. A completion's token is a byte."""
    asked: dict[str, Any] = {"json_schema": JOKE, **options}
    request = Request("generate", GenerateConfig(max_tokens=max_tokens, **asked), prompt="")
    completion = ServerSchemas("llama_server", compiles=True).completion(request, len)
    assert completion is not None
    at_once = [one.text for text in texts for one in completion.take(Token(text))]
    request.finish_reason = reason
    request.measure(generated_tokens=len(texts))
    return request, at_once, "".join(one.text for one in completion.end())


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", SHORTEST),
        ('{"set', 'up":"","punchline":""}'),
        ('{"setup":"Why \\', '"","punchline":""}'),
        ('{"setup":"\\u00', '00","punchline":""}'),
        ('{"setup":"größer', '","punchline":""}'),
        ('{"setup":"","punchline":""}', ""),
    ],
)
def test_the_shortest_rest(text: str, rest: str) -> None:
    request = Request("generate", GenerateConfig(json_schema=JOKE, max_tokens=9), prompt="")
    grammar = ServerSchemas("llama_server", compiles=True)._grammar(request.config)
    found, _ = shortest_rest(grammar, text)
    assert found is not None
    assert len(found) == len(rest)
    assert json.loads(text + found).keys() == {"setup", "punchline"}


def test_only_the_last_tokens_are_held_back_before_the_limit() -> None:
    texts = ['{"setup":"', *["a"] * 199]
    request, at_once, rest = taken(texts, 200)
    text = "".join(at_once) + rest
    assert 100 < len(at_once) < 200
    assert json.loads(text)["punchline"] == ""
    # In bytes here, which are tokens, but for the first token.
    assert len(text) - len('{"setup":"') + 1 == 200 == request.metrics.generated_tokens
    assert (request.finish_reason, request.shortened) == ("stop", True)


def test_members_that_do_not_fit_any_more_are_held_back() -> None:
    item = '{"a_long_name":"x","another_long_name":"y","yet_another_one":"z"}'
    texts = list('{"items":[' + ",".join([item] * 9))
    for limit in range(20, 300, 7):
        request, at_once, rest = taken(texts[:limit], limit, json_schema=NESTED)
        text = "".join(at_once) + rest
        assert len(json.loads(text)["items"]) >= (limit - 11) // (len(item) + 1), limit
        assert request.metrics.generated_tokens <= limit
        assert (request.finish_reason, request.shortened) == ("stop", True)


def test_an_answer_that_ends_before_the_limit_is_not_changed() -> None:
    texts = ['{"setup":"', *["a"] * 30, '","punchline":"b"}']
    request, at_once, rest = taken(texts, len(texts), reason="stop")
    assert "".join(at_once) + rest == "".join(texts)
    assert (request.finish_reason, request.shortened) == ("stop", False)


def test_an_answer_that_cannot_be_completed_within_the_limit_is_cut() -> None:
    texts = list('{"setup":"')
    request, at_once, rest = taken(texts, len(texts))
    assert "".join(at_once) + rest == "".join(texts)
    assert (request.finish_reason, request.shortened) == ("length", False)


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 1},
        {"stop": ["."]},
        {"stop_tokens": [2]},
        {"max_tokens": -1},
        {"json_schema": None},
    ],
    ids=str,
)
def test_answers_are_not_completed_if_that_is_not_possible(options: dict[str, Any]) -> None:
    config = replace(GenerateConfig(json_schema=JOKE, max_tokens=9), **options)
    request = Request("generate", config, prompt="")
    assert ServerSchemas("llama_server", compiles=True).completion(request, len) is None


def test_a_cancelled_answer_is_not_completed() -> None:
    request = Request("generate", GenerateConfig(json_schema=JOKE, max_tokens=3), prompt="")
    completion = ServerSchemas("llama_server", compiles=True).completion(request, len)
    assert isinstance(completion, Completion)
    assert not list(completion.take(Token('{"')))
    request.cancel()
    assert [one.text for one in completion.end()] == ['{"']


# ---------------------------------------------------------------- a real server


@pytest.mark.parametrize("max_tokens", [12, 17, 40])
def test_answers_are_whole_within_their_limit(max_tokens: int, model: ServerModel) -> None:
    stream = model.chat(ASKED, json_schema=JOKE, max_tokens=max_tokens, temperature=0.0)
    text = stream.text()
    assert json.loads(text).keys() == {"setup", "punchline"}
    assert model.count_tokens(text) <= max_tokens
    assert stream.metrics.generated_tokens <= max_tokens
    assert (stream.finish_reason, stream.shortened) == ("stop", True)


async def test_answers_of_tasks_are_whole_within_their_limit(model: ServerModel) -> None:
    result = await model.achat(ASKED, json_schema=JOKE, max_tokens=20, temperature=0.0).result()
    assert json.loads(result.text).keys() == {"setup", "punchline"}
    assert (result.finish_reason, result.shortened) == ("stop", True)


class _BrokenOffError(ServerError):
    """The server disconnects during an answer."""


def test_the_error_of_a_broken_answer_has_the_held_back_tokens(
    model: ServerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: HttpModel, request: Request) -> Iterator[Token]:
        yield Token('{"setup":"')
        yield Token("a cat")
        raise _BrokenOffError("gone")

    monkeypatch.setattr(HttpModel, "_run", half)
    with pytest.raises(_BrokenOffError) as broken:
        model.chat(ASKED, json_schema=JOKE, max_tokens=40).text()
    assert broken.value.partial is not None
    assert broken.value.partial.text == '{"setup":"a cat'


async def test_the_error_of_a_broken_async_answer_has_the_held_back_tokens(
    model: ServerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def half(self: HttpModel, request: Request) -> AsyncGenerator[Token]:
        yield Token('{"setup":"')
        yield Token("a cat")
        raise _BrokenOffError("gone")

    monkeypatch.setattr(HttpModel, "_tokens", half)
    with pytest.raises(_BrokenOffError) as broken:
        await model.achat(ASKED, json_schema=JOKE, max_tokens=40).text()
    assert broken.value.partial is not None
    assert broken.value.partial.text == '{"setup":"a cat'


def test_a_limit_too_small_for_any_answer_cuts_the_answer_off(model: ServerModel) -> None:
    stream = model.chat(ASKED, json_schema=JOKE, max_tokens=5, temperature=0.0)
    assert stream.text()
    assert (stream.finish_reason, stream.shortened) == ("length", False)
