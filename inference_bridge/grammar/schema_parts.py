# SPDX-License-Identifier: Apache-2.0
"""Reads parts of a JSON Schema that has not been checked yet. An invalid part is treated as absent."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

from .json_keywords import TYPES

_KIND_OF = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def kinds(schema: dict[str, Any]) -> set[str]:
    """Return the JSON types that may satisfy the schema; integers count as numbers."""
    stated = schema.get("type", [])
    names = stated if isinstance(stated, list) else [stated]
    found = {"number" if name == "integer" else name for name in names if name in TYPES} or {*TYPES} - {"integer"}
    listed = values(schema)
    return found if listed is None else found & {_KIND_OF.get(type(value), "null") for value in listed}


def values(schema: dict[str, Any]) -> list[Any] | None:
    """Return the values that may satisfy the schema; None if it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def canonical(value: Any) -> Hashable:
    """Return a key that compares as in JSON Schema: 1 equals 1.0 and differs from true."""
    if isinstance(value, dict):
        return frozenset((name, canonical(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(canonical(part) for part in value)
    return (isinstance(value, bool), value)


def object_at(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object at `key`, or an empty one."""
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def list_at(schema: dict[str, Any], key: str) -> list[Any]:
    """Return the list at `key`, or an empty one."""
    value = schema.get(key)
    return value if isinstance(value, list) else []


def required_names(schema: dict[str, Any]) -> list[str]:
    """Return the names in `required`."""
    return [name for name in list_at(schema, "required") if isinstance(name, str)]


def is_text(value: str) -> bool:
    """Return whether the string is valid Unicode text, without lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in value)


def short(value: Any) -> str:
    """Return the value as JSON, shortened for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
