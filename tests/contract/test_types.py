# SPDX-License-Identifier: Apache-2.0
"""The contract's value types: validation, and lossless conversion to JSON and back."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge.types import (
    Attachment,
    BatchResult,
    GenerateMetrics,
    GenerateResult,
    Message,
    Token,
    Tool,
    ToolCall,
    ToolCallDelta,
    join_tool_calls,
)

text = st.text(max_size=20)
names = st.text(min_size=1, max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(text, json_values, max_size=4)
mime_types = st.sampled_from(["image/png", "audio/wav", "application/pdf"])
attachments = (
    st.builds(Attachment, mime_types, data=st.binary(max_size=20))
    | st.builds(Attachment, mime_types, path=names)
    | st.builds(Attachment, mime_types, url=names.map("https://example.com/{}".format))
)
tool_calls = st.builds(ToolCall, text, names, json_objects)
messages = st.builds(
    Message,
    role=names,
    content=text | st.lists(text | attachments, max_size=4),
    tool_calls=st.lists(tool_calls, max_size=2),
    tool_call_id=st.none() | text,
    name=st.none() | text,
    reasoning=st.none() | text,
)
tools = st.builds(Tool, names, text, json_objects)


# ---------------------------------------------------------------- round trips


@given(messages)
def test_a_message_survives_json(message: Message) -> None:
    assert Message.from_dict(json.loads(json.dumps(message.to_dict())), local_files=True) == message


@given(tools)
def test_a_tool_survives_json(tool: Tool) -> None:
    assert Tool.from_dict(json.loads(json.dumps(tool.to_dict()))) == tool


@given(messages)
def test_a_message_survives_pickling_and_copying(message: Message) -> None:
    assert pickle.loads(pickle.dumps(message)) == copy.deepcopy(message) == message  # noqa: S301 - our own


@given(messages)
def test_a_message_s_parts_make_its_text(message: Message) -> None:
    assert message.text == "".join(part for part in message.parts if isinstance(part, str))
    assert [part for part in message.parts if not isinstance(part, str)] == list(message.attachments)


@given(st.recursive(json_values, lambda inner: st.dictionaries(st.sampled_from(
    ["role", "content", "tool_calls", "function", "name", "arguments", "type", "text", "image_url", "url",
     "input_audio", "data", "mime_type", "path", "reasoning", "tool_call_id", "parameters"]), inner)
    | st.lists(inner, max_size=3), max_leaves=10))  # fmt: skip
def test_any_input_is_read_or_refused_with_a_type_or_value_error(value: Any) -> None:
    for read in (Message.from_dict, ToolCall.from_dict, Tool.from_dict, Attachment.from_dict):
        try:
            read(value)
        except (TypeError, ValueError):
            pass


# ---------------------------------------------------------------- Message


def test_a_message_s_dict_has_only_the_set_fields() -> None:
    assert Message("user", "hi").to_dict() == {"role": "user", "content": "hi"}
    assert Message("assistant").to_dict() == {"role": "assistant", "content": ""}
    call = ToolCall("c1", "add", {"a": 1, "b": "é"})
    assert Message("assistant", "", [call], reasoning="hm").to_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "é"}'}}
        ],
        "reasoning": "hm",
    }
    assert Message("tool", "3", tool_call_id="c1", name="add").to_dict() == {
        "role": "tool",
        "content": "3",
        "tool_call_id": "c1",
        "name": "add",
    }


def test_messages_as_openai_writes_them() -> None:
    message = Message.from_dict(
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "reasoning_content": "let me see",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "now", "arguments": ""}}],
        }
    )
    assert message == Message("assistant", "", (ToolCall("c", "now", {}),), reasoning="let me see")
    message = Message.from_dict(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look: "},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGk="}},
                {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}},
            ],
        }
    )
    assert message.parts == (
        "look: ",
        Attachment("image/jpeg", data=b"hi"),
        Attachment("image/*", url="https://example.com/cat.png"),
        Attachment("audio/mp3", data=b"hi"),
    )


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({}, ValueError, "needs a role"),
        ({"role": ""}, ValueError, "needs a role"),
        ({"role": 3}, ValueError, "needs a role"),
        ({"role": "user", "contents": "hi"}, ValueError, "no field 'contents'"),
        ({"role": "user", "content": 3}, TypeError, "content is a str"),
        ({"role": "user", "content": {"a": 1}}, TypeError, "content is a str"),
        ({"role": "user", "content": [3]}, TypeError, "content part is a str, an Attachment or a mapping, not int"),
        ({"role": "user", "content": [{"type": "video_url"}]}, ValueError, "'video_url' is not known"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, TypeError, "text part"),
        ({"role": "user", "content": [{"type": "image_url"}]}, ValueError, "image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}, ValueError, "image_url.url"),
        ({"role": "user", "tool_calls": "x"}, TypeError, "tool_calls"),
        ({"role": "user", "tool_calls": [3]}, TypeError, "tool call"),
        ({"role": "user", "tool_calls": [{"name": "f", "arguments": "{"}]}, ValueError, "'f' are not JSON"),
        ({"role": "user", "tool_calls": [{"name": "f", "arguments": "[]"}]}, ValueError, "a JSON object"),
        ({"role": "user", "tool_calls": [{"arguments": {}}]}, ValueError, "needs a name"),
        ({"role": "tool", "tool_call_id": 3}, TypeError, "tool_call_id"),
        ({"role": "user", "name": ["a"]}, TypeError, "name"),
        ("user: hi", TypeError, "mapping"),
    ],
)
def test_a_wrong_message_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Message.from_dict(value)


def test_a_message_is_checked_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="content is a str"):
        Message("user", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="content is a str"):
        Message("user", b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tool_calls"):
        Message("user", "", [{"id": "x"}])  # type: ignore[list-item]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message("user", "hi").role = "system"  # type: ignore[misc]


# ---------------------------------------------------------------- Attachment


def test_an_attachment_is_in_one_place() -> None:
    several: list[dict[str, Any]] = [{}, {"data": b"", "url": "u"}, {"data": b"", "path": "p", "url": "u"}]
    for wrong in several:
        with pytest.raises(ValueError, match="exactly one of data, path and url"):
            Attachment("image/png", **wrong)
    assert Attachment("image/png", data=b"").data == b""


def test_an_attachment_is_checked() -> None:
    for kind in ("png", "", None):
        with pytest.raises(ValueError, match="MIME type"):
            Attachment(kind, data=b"")  # type: ignore[arg-type]
    for wrong in ({"data": "text"}, {"path": 3}, {"url": b"u"}):
        with pytest.raises(TypeError, match="attachment's"):
            Attachment("image/png", **wrong)
    assert Attachment("image/png", path=Path("a.png")).path == "a.png"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not base64"):
        Attachment.from_dict({"type": "attachment", "mime_type": "image/png", "data": "%%%"})


LOCAL_URLS = [
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "/etc/passwd",
    "photo.png",
    "//host/share/photo.png",
    " file:///etc/passwd",
    "fi\nle:///etc/passwd",
    "\x00file:///etc/passwd",
    "C:\\photo.png",
    "",
]


@pytest.mark.parametrize("url", LOCAL_URLS)
def test_an_attachment_s_url_is_not_a_local_file(url: str) -> None:
    with pytest.raises(ValueError, match="path="):
        Attachment("image/png", url=url)


@pytest.mark.parametrize("url", [*LOCAL_URLS, "local:///etc/passwd", "jar:file:///a!/b", "ftp://host/photo.png"])
@pytest.mark.parametrize("form", ["attachment", "image_url", "image_url as a str"])
def test_a_mapping_s_url_is_on_the_web(url: str, form: str) -> None:
    parts: dict[str, dict[str, Any]] = {
        "attachment": {"type": "attachment", "mime_type": "image/png", "url": url},
        "image_url": {"type": "image_url", "image_url": {"url": url}},
        "image_url as a str": {"type": "image_url", "image_url": url},
    }
    with pytest.raises(ValueError, match="http, https or data"):
        Message.from_dict({"role": "user", "content": [parts[form]]})


def test_a_mapping_may_name_a_file_only_if_the_program_created_it(tmp_path: Path) -> None:
    path = str(tmp_path / "photo.png")
    own = Attachment("image/png", path=path)
    told = Message("user", [own]).to_dict()
    with pytest.raises(ValueError, match="local file"):
        Message.from_dict(told)
    with pytest.raises(ValueError, match="local file"):
        Attachment.from_dict(own.to_dict())
    assert Message.from_dict(told, local_files=True).attachments == (own,)
    # One that is made in Python, among the parts of a mapping, is the program's own too.
    assert Message.from_dict({"role": "user", "content": [own]}).attachments == (own,)


def test_an_attachment_s_repr_does_not_show_its_data() -> None:
    assert "secret" not in repr(Attachment("image/png", data=b"secret"))


# ---------------------------------------------------------------- Tool


def test_tools_in_both_forms() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    expected = Tool("f", "does it", schema)
    flat = {"name": "f", "description": "does it", "parameters": schema}
    assert Tool.from_dict(flat) == Tool.from_dict({"type": "function", "function": flat}) == expected
    assert Tool.from_dict({"name": "f", "description": None, "parameters": None}) == Tool("f")
    with pytest.raises(ValueError, match="a tool needs a name"):
        Tool.from_dict({"description": "nameless"})
    with pytest.raises(TypeError, match="parameters of tool 'f'"):
        Tool.from_dict({"name": "f", "parameters": [1]})


# ---------------------------------------------------------------- tool calls from deltas


def _deltas(index: int, arguments: str, cuts: list[int]) -> list[ToolCallDelta]:
    edges = sorted({0, len(arguments), *(min(cut, len(arguments)) for cut in cuts)})
    pieces = [arguments[start:end] for start, end in pairwise(edges)] or [""]
    first = ToolCallDelta(index, f"id{index}", f"f{index}", pieces[0])
    return [first, *(ToolCallDelta(index, arguments=piece) for piece in pieces[1:])]


@given(st.lists(st.tuples(json_objects, st.lists(st.integers(0, 60))), max_size=3), st.randoms(use_true_random=False))
def test_calls_are_joined_however_they_were_cut_and_interleaved(calls: list[Any], random: Any) -> None:
    waiting = [_deltas(i, json.dumps(arguments), cuts) for i, (arguments, cuts) in enumerate(calls)]
    mixed = []
    while any(waiting):
        mixed.append(random.choice([one for one in waiting if one]).pop(0))
    expected = tuple(ToolCall(f"id{i}", f"f{i}", arguments) for i, (arguments, _) in enumerate(calls))
    assert join_tool_calls(mixed) == expected


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "3", "{'a': 1}", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_a_call_without_a_complete_object_is_dropped(arguments: str) -> None:
    good = ToolCallDelta(1, "y", "g", "")
    assert join_tool_calls([ToolCallDelta(0, "x", "f", arguments), good]) == (ToolCall("y", "g", {}),)


def test_a_call_without_a_name_is_left_out() -> None:
    assert join_tool_calls([ToolCallDelta(0, "x", None, "{}")]) == ()


def test_arguments_too_deep_to_read_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="'f' are not JSON"):
        ToolCall.from_dict({"name": "f", "arguments": '{"a":' * sys.getrecursionlimit()})


# ---------------------------------------------------------------- results


def test_a_result_parts_text_from_reasoning_and_calls() -> None:
    result = GenerateResult(
        (
            Token("hm", kind="reasoning"),
            Token("It is "),
            Token("", kind="tool_call", tool_call=ToolCallDelta(0, "c", "f", "{}")),
            Token("12."),
        )
    )
    assert result.text == "It is 12."
    assert result.reasoning == "hm"
    assert result.tool_calls == (ToolCall("c", "f", {}),)


def test_a_batch_result_is_a_result_with_an_error() -> None:
    assert BatchResult().error is None
    failed = BatchResult((Token("a"),), error=ValueError("x"))
    assert failed.text == "a"
    assert failed.finish_reason is None


def test_rates_count_evaluated_and_decoded_tokens() -> None:
    metrics = GenerateMetrics(
        prompt_tokens=100, cached_tokens=60, generated_tokens=11, prefill_seconds=2.0, decode_seconds=4.0
    )
    assert metrics.prefill_tokens_per_second == 20.0
    assert metrics.decode_tokens_per_second == 2.5  # the first token came out of prefill
    assert GenerateMetrics().prefill_tokens_per_second == GenerateMetrics().decode_tokens_per_second == 0.0
    assert GenerateMetrics(decode_seconds=1.0).decode_tokens_per_second == 0.0
    as_dict = metrics.to_dict()
    assert as_dict["decode_tokens_per_second"] == 2.5
    assert set(as_dict) == {
        "prompt_tokens", "cached_tokens", "generated_tokens", "drafted_tokens", "accepted_tokens", "prefill_seconds",
        "decode_seconds", "total_seconds",
        "time_to_first_token", "peak_memory_bytes", "active_memory_bytes", "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }  # fmt: skip
