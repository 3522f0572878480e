# SPDX-License-Identifier: Apache-2.0
"""Checks a JSON Schema for llama-server. The keywords that llama-server would silently ignore are refused.

Its converter is common/json-schema-to-grammar.cpp in llama.cpp's repository; grammars/README.md there lists the ignored
keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import UnsupportedError

_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})

_SKIPPED = frozenset(
    """not if then else contains minContains maxContains uniqueItems multipleOf propertyNames patternProperties
    minProperties maxProperties dependentRequired dependentSchemas dependencies unevaluatedProperties
    unevaluatedItems contentEncoding contentMediaType contentSchema""".split()
)

_SCHEMAS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties")


def check_schema(schema: Any, what: str, backend: str) -> None:
    """Raise ValueError if it is not a schema, UnsupportedError for a keyword that would not be enforced."""
    try:
        _check(schema, what, backend)
    except RecursionError:
        raise ValueError(f"{what} is not a JSON Schema: it is nested too deep") from None


def _check(schema: Any, what: str, backend: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{what} is not a JSON Schema: it has {schema!r} where a schema is needed")
    types = schema.get("type", ())
    for one in types if isinstance(types, list | tuple) else [types]:
        if not isinstance(one, str) or one not in _TYPES:
            raise ValueError(f"{what} is not a JSON Schema: {one!r} is not a type")
    for keyword in schema:
        if keyword in _SKIPPED:
            raise UnsupportedError(f"{keyword!r} in {what}", backend, "llama-server would not enforce it")
    for keyword in _SCHEMAS:
        for part in _values(schema.get(keyword, {}), f"{keyword} in {what}"):
            _check(part, what, backend)
    for keyword in _LISTS:
        parts = schema.get(keyword, ())
        if not isinstance(parts, list | tuple):
            raise ValueError(f"{keyword} in {what} must be a list of schemas")
        for part in parts:
            _check(part, what, backend)
    for keyword in _ONE:
        part = schema.get(keyword, True)
        for one in part if isinstance(part, list) else [part]:
            _check(one, what, backend)


def closed(schema: Any) -> Any:
    """Return the schema without additional properties. A small model might add further properties without end."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping) or "x-guidance" in schema:  # the schema was written for llguidance
        return schema
    out = dict(schema)
    for keyword in _SCHEMAS:
        if isinstance(out.get(keyword), Mapping):
            out[keyword] = {name: closed(part) for name, part in out[keyword].items()}
    # Schemas that apply to the same object must allow each other's properties.
    apart = ("items", "additionalProperties", "prefixItems", *(() if "properties" in out else ("anyOf", "oneOf")))
    for keyword in apart:
        if keyword in out:
            out[keyword] = closed(out[keyword])
    if "properties" in out and not any(keyword in out for keyword in (*_LISTS, "$ref")):
        out.setdefault("additionalProperties", False)
    return out


def _values(value: Any, what: str) -> list[Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object of schemas")
    return list(value.values())
