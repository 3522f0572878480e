# SPDX-License-Identifier: Apache-2.0
"""Chats sent through llama-server's native endpoints, and the requests made to them."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import GenerateConfig, Message, Request, ServerError, Tool
from inference_bridge.backends.http.facts import ServerFacts
from inference_bridge.backends.http.protocol.rendered_chat import RenderedChat

from ....parts.servers.fault_server import last, piece, tokens_of

USER = [Message("user", "hi")]
KNOWS = ServerFacts("llama.cpp", native=True, renders=True)
KNOWS_NONE = ServerFacts("llama.cpp", native=True, renders=True, knows_tools=False)


def tool(name: str, **definitions: Any) -> Tool:
    return Tool(name, "", {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": definitions})


def chat(facts: ServerFacts, *tools: Tool, choice: str | None = None, **options: Any) -> RenderedChat | None:
    return RenderedChat.of(facts, USER, GenerateConfig(tools=tools, tool_choice=choice, **options))


def schema(chat: RenderedChat | None) -> Any:
    assert chat is not None
    return chat.completion_fields("<rendered>")["json_schema"]


WEATHER = tool("weather", a={"type": "string"})
CLOCK = tool("clock", a={"type": "string"})
COUNT = tool("count", a={"type": "integer"})


def test_tool_calls_are_parsed_by_the_server_if_the_template_supports_tools() -> None:
    assert chat(KNOWS) is not None
    assert chat(KNOWS, WEATHER) is None
    assert chat(KNOWS, WEATHER, choice="none") is not None


def test_forced_calls_are_rendered_with_their_tools() -> None:
    forced = chat(KNOWS, WEATHER, choice="required", template_options={"date": "today"})
    assert forced is not None
    assert forced.template_fields() == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER.to_dict()],
        "chat_template_kwargs": {"date": "today"},
    }


def test_a_forced_call_that_does_not_come_is_an_error() -> None:
    """llama-server ignores a schema that it can't compile, and answers with text."""
    forced = chat(KNOWS, WEATHER, choice="required")
    assert forced is not None
    request = Request("chat", GenerateConfig(tools=[WEATHER], tool_choice="required"))
    with pytest.raises(ServerError, match="tool_choice"):
        tokens_of(forced.reader(request), [piece("Sure.", 5, 0), last(1)])
    called = '{"name": "weather", "arguments": {"a": "Rome"}}'
    tokens = tokens_of(forced.reader(request), [piece(called, 5, 0), last(1)])
    assert [token.tool_call.name for token in tokens if token.tool_call is not None][:1] == ["weather"]


def test_tools_are_described_in_the_conversation_if_the_template_does_not_support_them() -> None:
    for choice in (None, "required"):
        told = chat(KNOWS_NONE, WEATHER, choice=choice)
        assert told is not None
        fields = told.template_fields()
        assert "tools" not in fields
        assert fields["messages"][0]["role"] == "system"
        assert "weather" in fields["messages"][0]["content"]
    untold = chat(KNOWS_NONE, WEATHER, choice="none")
    assert untold is not None
    assert untold.template_fields()["messages"] == [{"role": "user", "content": "hi"}]


def test_definitions_of_tools_are_moved_to_the_root_of_one_schema() -> None:
    one = schema(chat(KNOWS, WEATHER, COUNT, choice="count"))
    assert one["properties"]["name"] == {"const": "count"}
    assert one["$defs"] == {"a": {"type": "integer"}}
    assert "$defs" not in one["properties"]["arguments"]
    both = schema(chat(KNOWS, WEATHER, CLOCK, choice="required"))
    assert [part["properties"]["name"]["const"] for part in both["anyOf"]] == ["weather", "clock"]
    assert both["$defs"] == {"a": {"type": "string"}}


def test_definitions_of_one_name_that_differ_are_left_to_the_server() -> None:
    assert chat(KNOWS, WEATHER, COUNT, choice="required") is None
