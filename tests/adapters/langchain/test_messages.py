# SPDX-License-Identifier: Apache-2.0
"""Conversion between LangChain messages and TextModel messages."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from inference_bridge import Attachment, Message, ToolCall
from langchain_inference_bridge.messages import from_messages, to_messages

PNG = b"\x89PNG\r\n"
PNG64 = base64.b64encode(PNG).decode()
CALL = {"name": "weather", "args": {"city": "Paris"}, "id": "1"}


def ours(message: BaseMessage) -> Message:
    (converted,) = to_messages([message])
    return converted


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SystemMessage("be brief"), Message("system", "be brief")),
        (HumanMessage("hello", name="ann"), Message("user", "hello", name="ann")),
        (AIMessage("hi"), Message("assistant", "hi")),
        (AIMessageChunk(content="hi"), Message("assistant", "hi")),
        (ChatMessage(role="developer", content="x"), Message("developer", "x")),
        (FunctionMessage(name="weather", content="sunny"), Message("tool", "sunny", name="weather")),
        (
            ToolMessage("sunny", tool_call_id="1", name="weather", artifact=object(), status="error"),
            Message("tool", "sunny", tool_call_id="1", name="weather"),
        ),
        (
            AIMessage("", tool_calls=[CALL]),
            Message("assistant", "", [ToolCall("1", "weather", {"city": "Paris"})]),
        ),
        (
            AIMessage("", additional_kwargs={"function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}}),
            Message("assistant", "", [ToolCall("", "weather", {"city": "Paris"})]),
        ),
        (
            AIMessage("42", additional_kwargs={"reasoning_content": "6 times 7"}),
            Message("assistant", "42", reasoning="6 times 7"),
        ),
    ],
)
def test_each_kind_of_message(message: BaseMessage, expected: Message) -> None:
    assert ours(message) == expected


def test_text_in_several_blocks_is_one_text() -> None:
    blocks: list[Any] = ["a", {"type": "text", "text": "b", "cache_control": {}}, {"type": "text", "text": "c"}]
    assert ours(HumanMessage(blocks)) == Message("user", "abc")


def test_a_document_is_its_text_under_its_title() -> None:
    block = {"type": "text-plain", "mime_type": "text/plain", "text": "once", "title": "A tale", "context": "old"}
    assert ours(HumanMessage([block])).text == "A tale\nold\nonce"
    coded = {"type": "text-plain", "mime_type": "text/plain", "base64": base64.b64encode("café".encode()).decode()}
    assert ours(HumanMessage([coded])).text == "café"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"type": "image", "base64": PNG64, "mime_type": "image/png"}, Attachment("image/png", data=PNG)),
        ({"type": "image", "url": "https://x.example/y.png"}, Attachment("image/*", url="https://x.example/y.png")),
        ({"type": "image", "url": f"data:image/png;base64,{PNG64}"}, Attachment("image/png", data=PNG)),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG64}", "detail": "low"}},
            Attachment("image/png", data=PNG),
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}},
            Attachment("image/*", url="https://x.example/y.png"),
        ),
        (
            {"type": "image_url", "image_url": "https://x.example/y.png"},
            Attachment("image/*", url="https://x.example/y.png"),
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG64}},
            Attachment("image/png", data=PNG),
        ),
        (
            {"type": "image", "source_type": "base64", "mime_type": "image/png", "data": PNG64},
            Attachment("image/png", data=PNG),
        ),
        ({"type": "audio", "base64": PNG64, "mime_type": "audio/wav"}, Attachment("audio/wav", data=PNG)),
        ({"type": "input_audio", "input_audio": {"data": PNG64, "format": "wav"}}, Attachment("audio/wav", data=PNG)),
        ({"type": "video", "base64": PNG64}, Attachment("video/*", data=PNG)),
        ({"type": "file", "base64": PNG64, "mime_type": "application/pdf"}, Attachment("application/pdf", data=PNG)),
    ],
)
def test_media_in_every_form(block: dict[str, Any], expected: Attachment) -> None:
    message = ours(HumanMessage([{"type": "text", "text": "see "}, block]))
    assert message.content == ("see ", expected)


def test_a_tool_may_answer_with_an_image() -> None:
    message = ToolMessage([{"type": "image", "base64": PNG64, "mime_type": "image/png"}], tool_call_id="1")
    assert ours(message) == Message("tool", [Attachment("image/png", data=PNG)], tool_call_id="1")


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"type": "image", "file_id": "f1"}, "'image' needs base64 or url"),
        ({"type": "file", "file_id": "f1"}, "'file' needs base64 or url"),
        ({"type": "image", "base64": "%%%", "mime_type": "image/png"}, "not base64"),
        ({"type": "file", "base64": PNG64}, "MIME type"),
        ({"type": "text-plain", "mime_type": "text/plain", "url": "https://x.example"}, "needs text or base64"),
        ({"type": "image", "url": "file:///etc/passwd"}, "http, https or data"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "http, https or data"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "http, https or data"),
        ({"type": "file", "mime_type": "text/plain", "url": "FILE:/etc/passwd"}, "http, https or data"),
        ({"type": "image", "path": "/etc/passwd", "mime_type": "image/png"}, "needs base64 or url"),
        ({"type": "attachment", "path": "/etc/passwd", "mime_type": "image/png"}, "'attachment'"),
        ({"type": "text-plain", "mime_type": "text/plain", "path": "/etc/passwd"}, "needs text or base64"),
        ({"type": "refusal", "refusal": "no"}, "'refusal', which only its provider can read"),
        ({"type": "server_tool_call", "id": "1", "name": "search", "args": {}}, "'server_tool_call'"),
    ],
)
def test_unsupported_content_is_an_error(block: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        to_messages([HumanMessage([block])])


def test_a_command_is_not_a_message() -> None:
    with pytest.raises(ValueError, match="RemoveMessage"):
        to_messages([RemoveMessage(id="1")])


@pytest.mark.parametrize(
    "message",
    [
        AIMessage(
            [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "let me see"}], tool_calls=[CALL]
        ),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, "let me see", {"type": "tool_call", **CALL}]),
        AIMessage(  # Anthropic's blocks, without a known provider
            [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Paris"}},
            ],
            tool_calls=[CALL],
        ),
        AIMessage(
            [{"type": "text", "text": "let me see"}, {"type": "tool_use", "id": "1", "name": "weather", "input": {}}],
            tool_calls=[CALL],
            additional_kwargs={"reasoning_content": "hm"},
        ),
        AIMessage(  # and as its model marks them
            [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Paris"}},
            ],
            tool_calls=[CALL],
            response_metadata={"model_provider": "anthropic"},
        ),
        AIMessage(
            content_blocks=[
                {"type": "reasoning", "reasoning": "hm"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_call", "id": "1", "name": "weather", "args": {"city": "Paris"}},
            ],
            response_metadata={"output_version": "v1"},
        ),
        AIMessageChunk(  # as a stream's pieces add up
            content=[{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "let me see"}],
            tool_call_chunks=[{"id": "1", "name": "weather", "args": '{"city": "Paris"}', "index": 0}],
        ),
    ],
)
def test_earlier_answers_are_converted(message: AIMessage) -> None:
    call = ToolCall("1", "weather", {"city": "Paris"})
    assert ours(message) == Message("assistant", "let me see", [call], reasoning="hm")


def test_a_chunk_of_a_call_among_the_blocks_is_not_a_separate_block() -> None:
    piece = {"type": "tool_call_chunk", "id": "1", "name": "weather", "args": '{"city": "Par', "index": 1}
    content: Any = [{"type": "text", "text": "let me see", "index": 0}, piece]
    message = ours(AIMessage(content=content, response_metadata={"output_version": "v1"}))
    assert message == Message("assistant", "let me see")


def test_a_call_that_was_cut_off_is_seen_as_it_is() -> None:
    broken = {"name": "weather", "args": '{"city": "Par', "id": "1", "error": None}
    message = ours(AIMessage("Well: ", invalid_tool_calls=[broken]))
    assert message == Message("assistant", 'Well: {"name": "weather", "arguments": {"city": "Par')


CONVERSATION = [
    Message("system", "be brief"),
    Message("user", ["look ", Attachment("image/png", data=PNG), Attachment("image/*", url="https://x.example/y.png")]),
    Message("assistant", "", [ToolCall("1", "weather", {"city": "Paris"})], reasoning="hm"),
    Message("tool", "sunny", tool_call_id="1", name="weather"),
    Message("user", "thanks", name="ann"),
    Message("developer", "go on"),
]


def test_there_and_back_again() -> None:
    assert to_messages(from_messages(CONVERSATION)) == CONVERSATION


def test_messages_are_converted_to_standard_langchain_messages() -> None:
    system, user, assistant, tool, _, developer = from_messages(CONVERSATION)
    assert isinstance(system, SystemMessage)
    assert isinstance(user, HumanMessage)
    assert user.content == [
        {"type": "text", "text": "look "},
        {"type": "image", "mime_type": "image/png", "base64": PNG64},
        {"type": "image", "url": "https://x.example/y.png"},
    ]
    assert isinstance(assistant, AIMessage)
    assert assistant.tool_calls == [CALL | {"type": "tool_call"}]
    assert assistant.content_blocks[0] == {"type": "reasoning", "reasoning": "hm"}
    assert isinstance(tool, ToolMessage)
    assert isinstance(developer, ChatMessage)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "y.pdf").write_bytes(PNG)
    (message,) = from_messages([Message("user", [Attachment("application/pdf", path=str(tmp_path / "y.pdf"))])])
    assert message.content == [{"type": "file", "mime_type": "application/pdf", "base64": PNG64}]


def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="not a regular file"):
        from_messages([Message("user", [Attachment("application/pdf", path="/dev/zero")])])
