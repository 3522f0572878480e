# SPDX-License-Identifier: Apache-2.0
"""Values written as JSON in pieces: to write much of it in one call would keep the interpreter's lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_PIECE = 1 << 18
_LEVELS = 3


def json_pieces(value: Any, levels: int = _LEVELS, **how: Any) -> Iterator[str]:
    """The value as JSON, in pieces of which each is written in some milliseconds.

    Long lists, mappings and texts are near the top: messages, and what they say.

    Args:
        value: What JSON can hold.
        levels: How deep long values are looked for.
        how: Options of json.dumps, such as `default` and `allow_nan`.

    Raises:
        TypeError, ValueError: As json.dumps, for what JSON can't hold.
    """
    if isinstance(value, str) and len(value) > _PIECE:
        yield '"'
        for at in range(0, len(value), _PIECE):
            yield json.dumps(value[at : at + _PIECE], ensure_ascii=False)[1:-1]
        yield '"'
    elif levels and isinstance(value, dict) and value:
        start = "{"
        for key, item in value.items():
            # As json.dumps has it, which makes a text of a number.
            name = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else json.dumps({key: 0})[1:-4]
            yield f"{start}{name}: "
            yield from json_pieces(item, levels - 1, **how)
            start = ", "
        yield "}"
    elif levels and isinstance(value, list | tuple) and value:
        start = "["
        for item in value:
            yield start
            yield from json_pieces(item, levels - 1, **how)
            start = ", "
        yield "]"
    elif levels and how.get("default") and not isinstance(value, str | int | float | dict | list | tuple | None):
        yield from json_pieces(how["default"](value), levels, **how)
    else:
        yield json.dumps(value, ensure_ascii=False, **how)
