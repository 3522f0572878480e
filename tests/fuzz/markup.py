# SPDX-License-Identifier: Apache-2.0
"""Target: output of chat models. The result does not depend on the split into tokens, and no output is an error."""

from __future__ import annotations

import json
from typing import Any

from inference_bridge.chat.markup import ChatFormat, chat_output, detect_format
from inference_bridge.types import Token, join_tool_calls
from tests.chat.conftest import TOOLS
from tests.parts.chat_forms import FORMS, format_of
from tests.parts.chat_forms import TOOLS as FORM_TOOLS

FORMATS = {
    "qwen": detect_format("<tool_call> <function= <think> </think>"),
    "mistral": detect_format("[TOOL_CALLS] [THINK] [/THINK]"),
    "gemma": detect_format("<|tool_call> <|channel>thought <channel|>"),
    "llama": detect_format("<|start_header_id|> ipython"),
    "harmony": detect_format("<|channel|> <|message|>"),
    "generic": detect_format("{{ messages }}"),
    "lfm": detect_format("<|tool_list_start|> </think>"),
    "plain": ChatFormat(),
    **{name: format_of(form) for name, form in FORMS.items()},
}


def markup(data: bytes) -> None:
    """A line with the name of a format, and the model's output."""
    head, _, output = data.partition(b"\n")
    format = FORMATS.get(head.decode("utf-8", "replace").strip(), FORMATS["generic"])
    for options in ({}, {"stops": ["Done", "\n\n", "<"]}, {"forced_call": True}, {"in_reasoning": True}):
        whole = _read(format, [output], options)
        for size in (1, 3, 11):
            pieces = [output[at : at + size] for at in range(0, len(output), size)]
            assert _read(format, pieces, options) == whole


def _read(format: ChatFormat, pieces: list[bytes], options: dict[str, Any]) -> tuple[Any, ...]:
    """What is said, thought and called, as far as a stop string lets it show."""
    reader = chat_output(format, tools=(*TOOLS, *FORM_TOOLS), **options)
    tokens: list[Token] = []
    for number, piece in enumerate(pieces):
        tokens += reader.push(piece, number)
        assert reader.phase in ("opening", "reasoning", "answer", "call")
        if reader.stopped:
            break
    tokens += reader.finish()
    ids = [token.id for token in tokens if token.id is not None]
    assert ids == list(range(len(ids)))
    if not reader.stopped:
        assert len(ids) == len(pieces)
    text = "".join(token.text for token in tokens if token.kind == "text")
    assert not any(stop in text for stop in options.get("stops", ()))
    calls = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    for call in calls:
        json.dumps(call.arguments)
    if reader.stopped:
        # reasoning and calls that come behind the stop within one piece are not cut off by it
        return text, reader.stopped
    reasoning = "".join(token.text for token in tokens if token.kind == "reasoning")
    return text, reasoning, [(call.name, call.arguments) for call in calls], False
