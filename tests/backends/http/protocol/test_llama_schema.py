# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from inference_bridge import UnsupportedError
from inference_bridge.backends.http.protocol.llama_schema import check_schema, closed

STRING = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": ["string", "null"]},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": {"type": "integer"}},
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"enum": [1, "not"]}}},
        {"anyOf": [STRING, {"const": {"not": 1}}]},
        {"type": "object", "properties": {"not": STRING, "if": STRING}},  # names, not keywords
    ],
)
def test_supported_schemas_are_accepted(schema: Any) -> None:
    check_schema(schema, "json_schema", "http")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": 3},
        {"properties": []},
        {"properties": {"a": 3}},
        {"items": "string"},
        {"anyOf": [STRING, {"type": "text"}]},
        {"anyOf": STRING},
        {"$defs": {"a": {"type": "text"}}},
    ],
)
def test_invalid_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="json_schema"):
        check_schema(schema, "json_schema", "http")


@pytest.mark.parametrize("keyword", ["not", "if", "uniqueItems", "patternProperties", "multipleOf"])
def test_keywords_that_llama_server_ignores_are_refused(keyword: str) -> None:
    schemas: list[Any] = [{keyword: {}}, {"properties": {"a": {keyword: 2}}}, {"items": {"anyOf": [{keyword: True}]}}]
    for schema in schemas:
        with pytest.raises(UnsupportedError, match=keyword):
            check_schema(schema, "json_schema", "http")


def test_recursive_schemas() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(ValueError, match="nested too deep"):
        check_schema(schema, "json_schema", "http")


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"properties": {"b": STRING}}, "c": {"properties": {}, "additionalProperties": True}},
        "$defs": {"d": {"properties": {"e": STRING}}},
    }
    assert closed(schema) == {
        "type": "object",
        "properties": {
            "a": {"properties": {"b": STRING}, "additionalProperties": False},
            "c": {"properties": {}, "additionalProperties": True},
        },
        "$defs": {"d": {"properties": {"e": STRING}, "additionalProperties": False}},
        "additionalProperties": False,
    }
    assert "additionalProperties" not in schema
    one = {"properties": {"a": STRING}}
    either = {"anyOf": [one, STRING]}
    assert closed(either) == {"anyOf": [one | {"additionalProperties": False}, STRING]}
    for together in ({"allOf": [one, {"properties": {"b": STRING}}]}, one | {"anyOf": [one, one]}):
        assert closed(together) == together  # closing one part would forbid properties that another part requires
