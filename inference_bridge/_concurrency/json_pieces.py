# SPDX-License-Identifier: Apache-2.0
"""Writes values as JSON in pieces, because one call for a large value would hold the interpreter's lock too long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_PIECE = 1 << 18
_LEVELS = 3


def json_pieces(value: Any, levels: int = _LEVELS, **how: Any) -> Iterator[str]:
    """Yield the value as JSON, in pieces. Each piece takes a few milliseconds.

    Only lists, mappings and texts near the top are split, because the long ones are there: messages and their contents.

    Args:
        value: A value that JSON can represent.
        levels: The depth down to which values are split.
        how: Options of json.dumps, such as `default` and `allow_nan`.

    Raises:
        TypeError, ValueError: JSON can't represent the value, as in json.dumps.
    """
    if isinstance(value, str) and len(value) > _PIECE:
        yield '"'
        for at in range(0, len(value), _PIECE):
            yield json.dumps(value[at : at + _PIECE], ensure_ascii=False)[1:-1]
        yield '"'
    elif levels and isinstance(value, dict) and value:
        start = "{"
        for key, item in value.items():
            # As json.dumps does, which converts a number to text.
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
