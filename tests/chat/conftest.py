# SPDX-License-Identifier: Apache-2.0
"""Helpers for the tests of chat templates and parsers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from inference_bridge.chat.markup import ChatFormat, chat_output
from inference_bridge.types import Token, Tool, join_tool_calls

TOOLS = (
    Tool(
        "get_weather",
        "The weather in a city",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "share": {"type": "number"},
                "exact": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object"},
                "linked": {"$ref": "#/$defs/counts"},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            },
            "required": ["city"],
            "$defs": {"counts": {"type": "array", "items": {"type": "integer"}}},
        },
    ),
    Tool("stop"),
)


class Answer(NamedTuple):
    """A model's answer, taken apart."""

    text: str
    reasoning: str
    calls: list[tuple[str, dict[str, Any]]]
    arguments: str
    tokens: list[Token]

    @property
    def content(self) -> tuple[Any, ...]:
        return self[:4]

    @property
    def begun(self) -> int:
        """The number of calls that began, complete or not."""
        return sum(token.tool_call is not None and token.tool_call.name is not None for token in self.tokens)


@pytest.fixture
def tools() -> tuple[Tool, ...]:
    """Two tools, one with a parameter of every type."""
    return TOOLS


@pytest.fixture
def read() -> Callable[..., Answer]:
    """Reads an answer in a format, handed over in pieces of the sizes given (the last one repeats)."""

    def read(
        format: ChatFormat, text: str, sizes: Sequence[int] = (1,), tools: Iterable[Tool] = TOOLS, **options: Any
    ) -> Answer:
        output = chat_output(format, tools=tools, **options)
        data = text.encode()
        tokens: list[Token] = []
        at = number = 0
        while at < len(data) and not output.stopped:
            size = sizes[min(number, len(sizes) - 1)]
            tokens += output.push(data[at : at + size], number)
            at += size
            number += 1
        tokens += output.finish()
        deltas = [token.tool_call for token in tokens if token.tool_call is not None]
        return Answer(
            "".join(token.text for token in tokens if token.kind == "text"),
            "".join(token.text for token in tokens if token.kind == "reasoning"),
            [(call.name, call.arguments) for call in join_tool_calls(deltas)],
            "".join(delta.arguments for delta in deltas),
            tokens,
        )

    return read
