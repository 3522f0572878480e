# SPDX-License-Identifier: Apache-2.0
"""Bodies of /v1/messages, and the blocks of an answer that has everything."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

import inference_bridge as ib
from inference_bridge.serve.anthropic.requests import messages_request
from inference_bridge.serve.errors import RequestError

from ...parts.servers.answering import Breaks, Everything, events
from ..conftest import Serving

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **more}


def blocks_of(answer: httpx2.Response, stream: bool) -> tuple[list[dict[str, Any]], str | None, str | None]:
    """The blocks of an answer, its stop reason and its stop sequence."""
    if not stream:
        message = answer.json()
        return message["content"], message["stop_reason"], message["stop_sequence"]
    blocks: list[dict[str, Any]] = []
    end: dict[str, Any] = {}
    for event in events(answer.text):
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            name = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}.get(
                delta["type"]
            )
            if name is not None:
                blocks[event["index"]][name.replace("partial_", "")] += delta[name]
        elif event["type"] == "message_delta":
            end = event["delta"]
    for block in blocks:
        if text := block.pop("json"):
            block["input"] = json.loads(text)
    return blocks, end["stop_reason"], end["stop_sequence"]


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_text_and_calls_are_blocks_in_their_order(serving: Serving, stream: bool) -> None:
    address = serving({"m": Everything()})
    answer = httpx2.post(f"{address}/v1/messages", json=body(stream=stream))
    thinking, text, *calls = blocks_of(answer, stream)[0]
    assert (thinking["type"], thinking["thinking"], thinking["signature"]) == ("thinking", "hm…", "")
    assert (text["type"], text["text"]) == ("text", "I look it up. END")
    assert [(call["id"], call["input"]) for call in calls] == [
        ("call_0", {"city": "Paris"}),
        ("call_1", {"city": "Rome"}),
    ]
    assert blocks_of(answer, stream)[1] == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_at_a_stop_sequence_or_the_first_call(serving: Serving, stream: bool) -> None:
    model = Everything()
    address = serving({"m": model})
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    one = body(stream=stream, tools=tools, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    blocks, reason, _ = blocks_of(httpx2.post(f"{address}/v1/messages", json=one), stream)
    assert (blocks[-1]["input"], len(blocks), reason) == ({"city": "Paris"}, 3, "tool_use")
    stopped = body(stream=stream, stop_sequences=["up. EN", "up. END", "up"])
    blocks, reason, stop = blocks_of(httpx2.post(f"{address}/v1/messages", json=stopped), stream)
    assert (blocks[-1]["text"], reason, stop) == ("I look it ", "stop_sequence", "up")


def test_omitted_thinking_is_an_empty_block(serving: Serving) -> None:
    address = serving({"m": Everything()})
    asked = body(thinking={"type": "adaptive", "display": "omitted"})
    for stream in (False, True):
        answer = httpx2.post(f"{address}/v1/messages", json=asked | {"stream": stream})
        assert blocks_of(answer, stream)[0][0]["thinking"] == ""


def test_an_error_in_a_stream_is_an_error_event(serving: Serving) -> None:
    address = serving({"m": Breaks()})
    last = events(httpx2.post(f"{address}/v1/messages", json=body(stream=True)).text)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")


def test_options_are_those_of_the_contract() -> None:
    asked = messages_request(
        body(
            temperature=0.5,
            top_k=3,
            stop_sequences=["x"],
            thinking={"type": "enabled", "budget_tokens": 1024},
            output_config={"effort": "max"},
            tools=[{"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
            tool_choice={"type": "auto"},
            metadata={"user_id": "1"},
        )
    ).conversation
    config = asked.config
    assert (config.temperature, config.top_k, config.max_tokens, config.stop) == (0.5, 3, 9, None)
    assert (config.reasoning, config.tool_choice, asked.stops) == ("high", "auto", ("x",))


def test_messages_are_those_of_the_contract() -> None:
    asked = messages_request(
        body(
            system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "see"}, PNG]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "text", "text": "ok"},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True},
                        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "D"}},
                    ],
                },
            ],
        )
    ).conversation
    assert list(asked.messages) == [
        ib.Message("system", "A\n\nB"),
        ib.Message("user", ["see", ib.Attachment("image/png", data=b"\0\0\0")]),
        ib.Message("assistant", "ok", [ib.ToolCall("1", "f", {})], reasoning="hm"),
        ib.Message("tool", "Error: no", tool_call_id="1"),
        ib.Message("user", "D"),
    ]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "I"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "I"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [PNG | {"source": {"type": "url", "url": "http://x"}}]}]},
            "messages[0].content[0].source.type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "most"}}, "output_config.effort"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"], "tool_choice": {"type": "any"}}, "stop_sequences"),
        ({"container": "x"}, "container"),
    ],
)
def test_errors_name_the_wrong_field(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        messages_request(body(**wrong))
    assert (caught.value.status, caught.value.param) == (400, param)
