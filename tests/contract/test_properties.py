# SPDX-License-Identifier: Apache-2.0
"""Property tests: no part of a conversation, an answer, a configuration file or a server's text is lost.

Properties of one module alone are beside its other tests: text assembly and markup in tests/engine, events in
test_sse, messages in test_types, GGUF in test_gguf.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, message_chunk_to_message

import langchain_inference_bridge.messages as langchain
import llm_inference_bridge.messages as llm
from inference_bridge.backends.http.protocol.text import Text
from inference_bridge.catalog import config
from inference_bridge.options import GenerateConfig, LoadConfig
from inference_bridge.types import Attachment, GenerateResult, Message, Token, ToolCall, ToolCallDelta
from langchain_inference_bridge.answers import Chunks, message

some = settings(max_examples=150)

words = st.text(max_size=8)
names = st.text("abc_é", min_size=1, max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(words, values, max_size=3)

# ---------------------------------------------------------------- conversations

types = st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf"])
attachments = st.builds(Attachment, types, data=st.binary(min_size=1, max_size=9)) | st.builds(
    Attachment, types, url=st.just("https://example.org/a")
)
contents = words | st.lists(st.text(min_size=1, max_size=8) | attachments, min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Questions and answers; each call has its own id, and a result with the name of its tool."""
    turns = [Message("system", draw(words))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(contents)))
        calls = [
            ToolCall(f"call{number}{place}", draw(names), draw(arguments)) for place in range(draw(st.integers(0, 2)))
        ]
        reasoning = draw(st.none() | st.text(min_size=1, max_size=8))
        turns.append(Message("assistant", draw(words), calls, reasoning=reasoning))
        turns += [Message("tool", draw(contents), tool_call_id=call.id, name=call.name) for call in calls]
    return turns


def plain(message: Message) -> tuple[Any, ...]:
    """The content of a message. Plain text may be in one part or in several."""
    content = message.parts if message.attachments else message.text
    return message.role, content, message.tool_calls, message.tool_call_id, message.name, message.reasoning


@some
@given(conversations())
def test_a_conversation_is_unchanged_after_a_round_trip_through_langchain(turns: list[Message]) -> None:
    back = langchain.to_messages(langchain.from_messages(turns))
    assert list(map(plain, back)) == list(map(plain, turns))


@some
@given(conversations())
def test_a_conversation_is_unchanged_after_a_round_trip_through_llm(turns: list[Message]) -> None:
    turns = [_text_first(turn) if turn.role == "tool" else turn for turn in turns]
    back = llm.to_messages(llm.from_messages(turns))
    assert list(map(plain, back)) == list(map(plain, turns))


def _text_first(message: Message) -> Message:
    """A tool result as in llm: text, and attachments."""
    content: list[str | Attachment] = [message.text] if message.text else []
    content += message.attachments
    return replace(message, content=content or "")


# ---------------------------------------------------------------- an answer in LangChain's chunks


@st.composite
def answers(draw: st.DrawFn) -> GenerateResult:
    """Text, reasoning and calls in any order; the last call may break off."""
    tokens: list[Token] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "text", "reasoning", "call"]), max_size=6)):
        if kind == "call":
            tokens += _call(calls, draw(names), draw(arguments), draw(st.lists(st.integers(1, 40), max_size=4)))
            calls += 1
        else:
            tokens.append(Token(draw(words), kind=kind))  # type: ignore[arg-type]
    reason = "tool_calls" if calls else "stop"
    if calls and tokens[-1].tool_call is not None and draw(st.booleans()):
        whole = tokens.pop().tool_call
        assert whole is not None
        cut = ToolCallDelta(whole.index, whole.id, whole.name, whole.arguments[:-1])
        tokens.append(Token("", kind="tool_call", tool_call=cut))
        reason = "length"
    return GenerateResult(tuple(tokens), reason)  # type: ignore[arg-type]


def _call(index: int, name: str, given: dict[str, Any], cuts: Sequence[int]) -> list[Token]:
    text = json.dumps(given)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    deltas = [ToolCallDelta(index, f"id{index}", name, pieces[0])]
    deltas += [ToolCallDelta(index, arguments=piece) for piece in pieces[1:]]
    return [Token("", kind="tool_call", tool_call=delta) for delta in deltas]


@some
@given(answers(), st.booleans())
def test_chunks_add_up_to_the_whole_answer(result: GenerateResult, blocks: bool) -> None:
    chunks = Chunks("m", GenerateConfig(max_tokens=64), blocks=blocks)
    parts = [chunk for chunk in map(chunks.of, result.tokens) if chunk is not None]
    parts += chunks.end(result.finish_reason, result.metrics, result.shortened)
    total = parts[0]
    for part in parts[1:]:
        total += part
    streamed = message_chunk_to_message(total)
    assert isinstance(streamed, AIMessage)
    whole = message(result, "m", GenerateConfig(max_tokens=64))
    assert streamed.text == whole.text
    assert streamed.tool_calls == whole.tool_calls
    assert [call["name"] for call in streamed.invalid_tool_calls] == [call["name"] for call in whole.invalid_tool_calls]
    assert streamed.usage_metadata == whole.usage_metadata
    said = [block.get("reasoning", "") for block in streamed.content_blocks if block["type"] == "reasoning"]
    assert "".join(map(str, said)) == result.reasoning


# ---------------------------------------------------------------- a server's text


halves = st.text("ab\né", max_size=12) | st.text("ab😀", max_size=6)
stop_strings = st.lists(st.text("ab\né😀", min_size=1, max_size=4), max_size=4)


def units(text: str) -> list[str]:
    """The text in UTF-16 units, as a server that escapes by those may cut it."""
    data = text.encode("utf-16-le")
    return [data[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(data), 2)]


@settings(max_examples=300)
@given(halves, st.lists(st.integers(1, 4), min_size=1, max_size=8), stop_strings)
@example("a😀b", [1], ["😀"])
def test_a_server_s_pieces_show_whole_characters_and_no_stop_string(
    text: str, sizes: list[int], stops: list[str]
) -> None:
    reader = Text(tuple(stops))
    rest = units(text)
    shown = ""
    number = 0
    while rest and not reader.stopped:
        size = sizes[number % len(sizes)]
        shown += "".join(token.text for token in reader.push("".join(rest[:size]), number))
        assert not any(stop in shown for stop in stops)
        rest = rest[size:]
        number += 1
    shown += "".join(token.text for token in reader.finish())
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    assert shown == (text[: sum(min(ends))] if ends else text)


# ---------------------------------------------------------------- the configuration file

toml_values = st.recursive(
    st.booleans() | st.integers(-5, 70000) | st.floats(-2, 2) | st.text("a./~:é ", max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
keys = st.sampled_from(
    """source backend options api_key_env embeddings context_length gpu_layers threads chat_template adapters
    draft_model headers connect_timeout extra device api_key temperature""".split()
)
options = st.dictionaries(
    st.sampled_from(["temperature", "max_tokens", "stop", "seed", "tools", "top_k", "timeout"]), toml_values, max_size=3
)
models = st.dictionaries(keys, toml_values | options, max_size=4).map(lambda entry: {"source": "a:b", **entry})
tables = st.dictionaries(
    st.sampled_from(["directories", "models", "llama_server", "modles"]),
    toml_values | st.dictionaries(names, models | toml_values, max_size=2) | st.lists(names, max_size=2),
    max_size=3,
)


@settings(max_examples=300)
@given(tables)
def test_any_configuration_is_read_or_refused_with_its_key(tmp_path_factory: Any, table: dict[str, Any]) -> None:
    path = _written(tmp_path_factory, table)
    with mock.patch.dict(os.environ, {"INFERENCE_BRIDGE_CONFIG": str(path)}):
        read = config.load()
    for problem in read.problems:
        assert str(problem).startswith(str(path))
        assert any(problem.key.startswith(key) for key in table)
    if not read.problems:
        assert set(read.models) == set(table.get("models", {}))
    for name, model in read.models.items():
        given = table["models"][name]
        assert model.options.set_fields().keys() == given.get("options", {}).keys()
        assert model.backend == given.get("backend")


loads = st.fixed_dictionaries(
    {},
    optional={
        "context_length": st.integers(0, 1 << 20),
        "gpu_layers": st.integers(-1, 99),
        "device": names,
        "headers": st.dictionaries(st.text("abc-", min_size=1), st.text("abc", min_size=1), max_size=2),
        "connect_timeout": st.floats(0.1, 60),
    },
)
generates = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(1, 999) | st.just(-1),
        "stop": st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
        "seed": st.integers(0, 1 << 31),
        "template_options": st.dictionaries(names, st.booleans() | words, max_size=2),
    },
)


@some
@given(st.dictionaries(names, st.tuples(loads, generates), max_size=3))
def test_settings_written_into_the_file_are_read_back(tmp_path_factory: Any, given_: dict[str, Any]) -> None:
    table = {name: {"source": "http:m", **load, "options": options} for name, (load, options) in given_.items()}
    path = _written(tmp_path_factory, {"models": table})
    with mock.patch.dict(os.environ, {"INFERENCE_BRIDGE_CONFIG": str(path)}):
        read = config.load().models
    assert {name: (model.load, model.options) for name, model in read.items()} == {
        name: (LoadConfig(**load), GenerateConfig(**options)) for name, (load, options) in given_.items()
    }


def _written(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> Path:
    path = tmp_path_factory.getbasetemp() / "properties.toml"
    path.write_text(tomlkit.dumps(table), encoding="utf-8")
    return path
