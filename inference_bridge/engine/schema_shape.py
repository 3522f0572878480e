# SPDX-License-Identifier: Apache-2.0
"""Checks that a JSON Schema is well formed: the types of its keywords' values, but not whether it can be enforced.

A tool's schema must be well formed even if it is not enforced, because the parser of the model's tool calls reads it.
https://json-schema.org/draft/2020-12/schema
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEMAS = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPPINGS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_MAX_DEPTH = 200


def check_schema(schema: Any, where: str, depth: int = 0) -> None:
    """Check a schema, and the schemas in it.

    Args:
        schema: What should be a JSON Schema.
        where: What to call it in errors.
        depth: How many schemas it is nested in.

    Raises:
        ValueError: It is malformed or nested too deeply. The message names the place.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: a JSON Schema is an object, true or false, not {_short(schema)}")
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where[:200]}: the schema is nested too deeply, or contains itself: use $ref")
    kinds = schema.get("type", "object")
    if not isinstance(kinds, str) and not _is_list(kinds, str):
        raise ValueError(f"{where}: 'type' is the name of a type, or a list of them, not {_short(kinds)}")
    required = schema.get("required", ())
    if not isinstance(required, bool) and not _is_list(required, str):  # draft 3 has booleans
        raise ValueError(f"{where}: 'required' is a list of names, not {_short(required)}")
    if not _is_list(schema.get("enum", ()), object):
        raise ValueError(f"{where}: 'enum' is a list, not {_short(schema['enum'])}")
    if not isinstance(schema.get("$ref", ""), str):
        raise ValueError(f"{where}: '$ref' is a string, not {_short(schema['$ref'])}")
    for keyword in _MAPPINGS_OF_SCHEMAS:
        inner = schema.get(keyword, {})
        if not isinstance(inner, Mapping):
            raise ValueError(f"{where}: {keyword!r} is an object of schemas, not {_short(inner)}")
        for name, part in inner.items():
            check_schema(part, f"{where}, {keyword}/{name}", depth + 1)
    for keyword in _LISTS_OF_SCHEMAS:
        if keyword in schema:
            if not _is_list(schema[keyword], object):
                raise ValueError(f"{where}: {keyword!r} is a list of schemas, not {_short(schema[keyword])}")
            for index, part in enumerate(schema[keyword]):
                check_schema(part, f"{where}, {keyword}/{index}", depth + 1)
    for keyword in _SCHEMAS:
        part = schema.get(keyword, True)
        if keyword == "items" and _is_list(part, object):  # before draft 2020-12
            for index, one in enumerate(part):
                check_schema(one, f"{where}, items/{index}", depth + 1)
        else:
            check_schema(part, f"{where}, {keyword}", depth + 1)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
