# SPDX-License-Identifier: Apache-2.0
"""Bounds for the integers of a schema, for servers whose grammars let an integer have any number of digits.

A small model that has begun to write zeros goes on until `max_tokens` is reached, so the JSON never ends.
llama-server stops at 16 digits by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .llama_schema import LISTS, ONE, SCHEMAS

LARGEST = 2**53 - 1
"""The largest integer that all readers of JSON agree on (RFC 8259, section 6)."""

_BELOW, _ABOVE = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def bounded(schema: Any) -> Any:
    """Return `schema` with a minimum and a maximum for every integer that has none.

    A schema that states its values (`enum`, `const`), or a bound beyond `LARGEST`, is left as it is, and so are
    the parts of `allOf`, which hold together.
    """
    if isinstance(schema, list):
        return [bounded(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    for keyword in SCHEMAS:
        if isinstance(out.get(keyword), Mapping):
            out[keyword] = {name: bounded(part) for name, part in out[keyword].items()}
    for keyword in (*LISTS, *ONE):
        if keyword in out and keyword != "allOf":
            out[keyword] = bounded(out[keyword])
    types = out.get("type")
    named = types if isinstance(types, list) else [types]
    if "integer" not in named or "number" in named or "enum" in out or "const" in out:
        return out
    stated = [out[name] for name in (*_BELOW, *_ABOVE) if name in out]
    if all(isinstance(one, int | float) and abs(one) <= LARGEST for one in stated):
        if not any(name in out for name in _BELOW):
            out["minimum"] = -LARGEST
        if not any(name in out for name in _ABOVE):
            out["maximum"] = LARGEST
    return out
