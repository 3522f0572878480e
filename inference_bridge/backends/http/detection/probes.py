# SPDX-License-Identifier: Apache-2.0
"""Detects the capabilities of a vLLM server's model by tokenizing conversations. Nothing is generated."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Post = Callable[[str, Mapping[str, Any]], Any]
"""Posts a body to a path. Returns the answer, or None if the server refuses it."""

_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
"""An image of one pixel."""

_SAMPLES = 1600
"""A tenth of a second of silence, at 16 kHz and 16 bits."""

_THINK = ("<think>", "<|channel|>", "<thought>")
"""Opening tags of reasoning that a template may write at the end of the prompt."""


@dataclass(frozen=True)
class Probed:
    """The result: those of the capabilities "images", "audios" and "reasoning" that the model has, and the options of
    reasoning that its template supports."""

    capabilities: frozenset[str]
    reasons_if_asked: bool
    reasons_by_degree: bool


def probe(post: Post) -> Probed | None:
    """Ask the server's /tokenize. None if it has no such endpoint, or does not render conversations there."""

    def rendered(content: Any, **variables: Any) -> Any:
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "return_token_strs": True}
        if variables:
            fields["chat_template_kwargs"] = variables
        answer = post("/tokenize", fields)
        return answer if isinstance(answer, Mapping) and isinstance(answer.get("tokens"), list) else None

    plain = rendered("a")
    if plain is None:
        return None
    found = set()
    if rendered([{"type": "image_url", "image_url": {"url": _PIXEL}}]) is not None:
        found.add("images")
    sound = {"data": base64.b64encode(_silence()).decode("ascii"), "format": "wav"}
    if rendered([{"type": "input_audio", "input_audio": sound}]) is not None:
        found.add("audios")
    on, off = (rendered("a", enable_thinking=value, thinking=value) for value in (True, False))
    low, high = (rendered("a", reasoning_effort=value) for value in ("low", "high"))
    switched, graded = _differ(on, off), _differ(low, high)
    opened = any(word in json.dumps(plain.get("token_strs") or []) for word in _THINK)
    if switched or graded or opened:
        found.add("reasoning")
    return Probed(frozenset(found), switched, graded)


def _differ(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one["tokens"] != other["tokens"]


def _silence() -> bytes:
    size = 2 * _SAMPLES
    parts = [b"RIFF", (36 + size).to_bytes(4, "little"), b"WAVEfmt ", (16).to_bytes(4, "little"), b"\1\0\1\0"]
    parts += [
        (16000).to_bytes(4, "little"),
        (32000).to_bytes(4, "little"),
        b"\2\0\x10\0data",
        size.to_bytes(4, "little"),
    ]
    return b"".join(parts) + bytes(size)
