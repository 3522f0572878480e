# SPDX-License-Identifier: Apache-2.0
"""Targets: outputs of one family each. Any text is read without an exception, however it is cut into tokens."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from inference_bridge.chat.markup import ChatFormat, chat_output
from inference_bridge.types import Token, join_tool_calls
from tests.parts.chat_forms import FORMS, TOOLS, format_of, written

NAMES = {f"family-{re.sub('[^a-z0-9.]+', '-', name)}": name for name in FORMS}
"""The names of the targets, and the forms that they try."""

_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"path": "a.txt", "body": "one\n", "count": 3},
    {"rows": ["a, b", "c"], "options": {"a": 1}, "on": True, "share": 0.5},
    {"path": " \"{[<'é😀\\", "body": ""},
)


def seeds(name: str) -> list[bytes]:
    """Small outputs of the family: calls, reasoning, answers, and calls in places where they do not belong."""
    form = FORMS[NAMES[name]]
    calls = [written(form, arguments) for arguments in _ARGUMENTS]
    opens, closes = form.reasoning
    before, after = form.answer
    texts = [
        *calls,
        calls[1] + calls[2],
        f"{opens}Hm.{closes}{calls[1]}",
        f"{opens}Hm. {calls[1]} Well.{closes}{before}Hello.{after}",
        f"{before}Hello <b>.{after}{calls[2]}",
        f"{opens}Hm.",
        calls[1][: len(calls[1]) // 2],
    ]
    return [text.encode() for text in dict.fromkeys(texts)]


def check(name: str) -> Callable[[bytes], None]:
    def family(data: bytes) -> None:
        format = _format(NAMES[name])
        rng = random.Random(data)
        options = rng.choice(({}, {}, {"in_reasoning": True}, {"in_answer": True}))
        assert _read(format, _cut(rng, data), options) == _read(format, [data], options)

    return family


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The output in tokens: mostly few long ones, since each costs as much as reading hundreds of bytes."""
    if rng.random() < 0.05:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 3, 5))))
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)]) if start < end]


_format = cache(lambda form: format_of(FORMS[form]))


def _read(format: ChatFormat, pieces: list[bytes], options: dict[str, Any]) -> tuple[Any, ...]:
    output = chat_output(format, tools=TOOLS, **options)
    tokens: list[Token] = [token for piece in pieces for token in output.push(piece, 0)]
    assert len(tokens) <= len(pieces)
    tokens += output.finish()
    calls = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    json.dumps([call.arguments for call in calls])
    text, reasoning = ("".join(token.text for token in tokens if token.kind == kind) for kind in ("text", "reasoning"))
    return text, reasoning, [(call.name, call.arguments) for call in calls]
