# SPDX-License-Identifier: Apache-2.0
"""Tool calls as each server numbers them, and calls that cannot be executed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_bridge import GenerateConfig, Request, ServerError, Token, ToolCallCutError, load_model
from inference_bridge.backends.http.protocol.openai_api import ChatReader
from inference_bridge.types import join_tool_calls

from ....parts.servers.fault_server import delta, finish, serving, stream, tokens_of


def piece(arguments: Any = None, *, index: Any = None, id: Any = None, name: str | None = None) -> Any:
    out: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    return out | ({} if index is None else {"index": index}) | ({} if id is None else {"id": id})


def whole(city: str, **fields: Any) -> Any:
    return piece(json.dumps({"city": city}), name="weather", **fields)


def read(*events: Any, reason: str = "tool_calls", **options: Any) -> tuple[list[Token], Request]:
    request = Request("chat", GenerateConfig(**options))
    said = [delta(tool_calls=one if isinstance(one, list) else [one]) for one in events]
    return tokens_of(ChatReader(request), [*said, finish(reason)]), request


HALF, REST, REST_OF_ROME = '{"city"', ': "Paris"}', ': "Rome"}'

PARALLEL = {
    "OpenAI": [
        piece("", index=0, id="a", name="weather"),
        piece(HALF, index=0),
        piece(REST, index=0),
        whole("Rome", index=1, id="b"),
    ],
    "one index": [whole("Paris", index=0, id="a"), whole("Rome", index=0, id="b")],
    "one index, in one event": [[whole("Paris", index=0, id="a"), whole("Rome", index=0, id="b")]],
    "no index": [whole("Paris", id="a"), whole("Rome", id="b")],
    "no index, in one event": [[whole("Paris", id="a"), whole("Rome", id="b")]],
    "no id": [whole("Paris", index=0), whole("Rome", index=1)],
    "one index and no id": [whole("Paris", index=0), whole("Rome", index=0)],
    "neither": [whole("Paris"), whole("Rome")],
    "an empty id": [whole("Paris", index=0, id=""), whole("Rome", index=0, id="")],
    "pieces by id": [piece(HALF, id="a", name="weather"), piece(REST, id="a"), whole("Rome", id="b")],
    "pieces without index": [piece(HALF, id="a", name="weather"), piece(REST), whole("Rome", id="b")],
    "pieces at one index": [
        piece(HALF, index=0, id="a", name="weather"),
        piece(REST, index=0),
        piece(HALF, index=0, id="b", name="weather"),
        piece(REST_OF_ROME, index=0),
    ],
    "id and name in each piece": [
        piece(HALF, index=0, id="a", name="weather"),
        piece(REST, index=0, id="a", name="weather"),
        whole("Rome", index=1, id="b"),
    ],
    "one id at two indices": [whole("Paris", index=0, id="a"), whole("Rome", index=1, id="a")],
    "one id and no index": [whole("Paris", id="a"), whole("Rome", id="a")],
    "numbers as ids": [whole("Paris", index=0, id=1), whole("Rome", index=1, id=2)],
    "texts as indices": [piece(HALF, index="0", id="a", name="weather"), piece(REST, index="0"), whole("Rome", id="b")],
    "indices from 1": [whole("Paris", index=1), whole("Rome", index=2)],
    "empty pieces behind": [
        whole("Paris", index=0, id="a"),
        piece("", index=0, id="", name=""),
        piece(None, index=0),
        whole("Rome", index=1, id="b"),
    ],
    "arguments as an object": [piece({"city": "Paris"}, name="weather"), piece({"city": "Rome"}, name="weather")],
}


@pytest.mark.parametrize("way", PARALLEL)
def test_parallel_calls(way: str) -> None:
    tokens, request = read(*PARALLEL[way])
    calls = join_tool_calls(token.tool_call for token in tokens)
    assert [(call.name, call.arguments["city"]) for call in calls] == [("weather", "Paris"), ("weather", "Rome")]
    assert all(call.id for call in calls)
    assert calls[0].id != calls[1].id
    if '"b"' in json.dumps(PARALLEL[way]):
        assert [call.id for call in calls] == ["a", "b"]
    assert request.finish_reason == "tool_calls"


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    tokens, _ = read(piece(arguments, index=0, id="a", name="weather"))
    (call,) = join_tool_calls(token.tool_call for token in tokens)
    assert (call.id, call.arguments) == ("a", {})


def test_calls_that_each_end_with_the_reason_are_all_read() -> None:
    request = Request("chat", GenerateConfig())
    said = [delta(tool_calls=[whole("Paris", index=0)]), delta(tool_calls=[whole("Rome", index=1)])]
    for one in said:
        one["choices"][0]["finish_reason"] = "tool_calls"
    tokens = tokens_of(ChatReader(request), said)
    assert [token.tool_call.arguments for token in tokens if token.tool_call] == [
        '{"city": "Paris"}',
        '{"city": "Rome"}',
    ]


def test_a_call_as_functions_were_called_first() -> None:
    request = Request("chat", GenerateConfig())
    events = [delta(function_call={"name": "weather", "arguments": '{"city": "Paris"}'}), finish("function_call")]
    (token,) = tokens_of(ChatReader(request), events)
    assert token.tool_call is not None
    assert token.tool_call.name == "weather"
    assert request.finish_reason == "tool_calls"


UNREADABLE = ['"Paris"', "[1]", '{"city": ', "null", "42"]


@pytest.mark.parametrize("arguments", UNREADABLE)
@pytest.mark.parametrize("reason", ["tool_calls", "stop"])
def test_a_call_that_can_not_be_read_is_an_error(arguments: str, reason: str) -> None:
    with pytest.raises(ServerError, match="weather"):
        read(piece(arguments, index=0, id="a", name="weather"), reason=reason)


def test_a_call_without_a_name_is_an_error() -> None:
    with pytest.raises(ServerError, match="no name"):
        read(piece("{}", index=0, id="a"))


def test_calls_that_are_not_there_are_an_error() -> None:
    with pytest.raises(ServerError, match="none that can be read"):
        read()


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_forced_call_that_does_not_come_is_an_error(choice: str) -> None:
    with pytest.raises(ServerError, match="tool_choice"):
        read(reason="stop", tools=[{"name": "weather"}], tool_choice=choice)


def test_a_call_of_another_tool_than_the_forced_one_is_an_error() -> None:
    tools = [{"name": "weather"}, {"name": "clock"}]
    called = whole("Rome", index=0, id="a")
    with pytest.raises(ServerError, match="'clock'.*weather"):
        read(called, tools=tools, tool_choice="clock")
    for choice in ("auto", "required", "weather"):
        tokens, _ = read(called, tools=tools, tool_choice=choice)
        (call,) = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
        assert call.name == "weather"


def test_a_call_cut_off_by_the_limit_ends_by_length() -> None:
    _, request = read(piece('{"city": ', index=0, id="a", name="weather"), reason="length")
    assert request.finish_reason == "length"


@pytest.mark.parametrize("begun", [(), (piece('{"city": ', index=0, id="a", name="weather"),)])
def test_a_forced_call_cut_off_by_the_limit_is_an_error(begun: tuple[Any, ...]) -> None:
    with pytest.raises(ToolCallCutError, match="raise max_tokens"):
        read(*begun, reason="length", tools=[{"name": "weather"}], tool_choice="required")


def test_a_forced_call_before_one_cut_off_by_the_limit_is_kept() -> None:
    begun = piece("{", index=1, id="b", name="weather")
    options = {"tools": [{"name": "weather"}], "tool_choice": "required"}
    tokens, request = read(whole("Rome", index=0, id="a"), begun, reason="length", **options)
    (call,) = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    assert call.arguments == {"city": "Rome"}
    assert request.finish_reason == "length"


def test_text_before_a_faulty_call_is_kept() -> None:
    answer = stream(delta(content="I look."), delta(tool_calls=[piece("[", index=0, id="a", name="weather")]), finish())
    with (
        serving({"/v1/chat/completions": [answer]}, native=False) as server,
        load_model(server.address) as model,
        pytest.raises(ServerError) as caught,
    ):
        model.chat([{"role": "user", "content": "hi"}], tools=[{"name": "weather"}]).result()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "I look."
