# SPDX-License-Identifier: Apache-2.0
"""Schemas that refer to themselves without end: what nothing finite satisfies is refused, or is not begun."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from inference_bridge.grammar.grammar import AnswerConstraint, answer_grammar, check_answer

from ..parts.models.byte_model import ByteTokens, vocabulary, walk

ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#/$defs/endless"}}, "required": ["next"]}
REF = {"$ref": "#/$defs/endless"}


def with_endless(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "$defs": {"endless": ENDLESS}}


REFUSED: dict[str, dict[str, Any]] = {
    "a reference": with_endless(REF),
    "a required property": with_endless({"type": "object", "properties": {"a": REF}, "required": ["a"]}),
    "items": with_endless({"type": "array", "items": REF, "minItems": 1}),
    "a first item": with_endless({"type": "array", "prefixItems": [REF], "minItems": 1}),
    "all alternatives": with_endless({"anyOf": [REF, {"type": "array", "items": REF, "minItems": 2}]}),
    "one of all": with_endless({"allOf": [{"type": "object"}, REF]}),
    "the document": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "other properties": {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1},
    "two that refer to each other": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 2},
        },
    },
}

HELD: dict[str, dict[str, Any]] = {
    "an optional property": with_endless(
        {"type": "object", "properties": {"a": {"type": "boolean"}, "b": REF}, "required": ["a"]}
    ),
    "an optional property that needs it": with_endless(
        {
            "type": "object",
            "properties": {"a": {"type": "object", "properties": {"b": REF}, "required": ["b"]}},
        }
    ),
    "an alternative": with_endless({"anyOf": [REF, {"type": "null"}]}),
    "another type": with_endless({"type": ["object", "null"], "properties": {"a": REF}, "required": ["a"]}),
    "an empty array": with_endless({"type": "array", "items": REF}),
    "a pattern's properties": with_endless({"type": "object", "patternProperties": {"^x": REF}}),
    "a tree": {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
        "required": ["children"],
    },
    "a list": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
    "a list within another definition": {
        "$ref": "#/$defs/b",
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"anyOf": [{"const": 1}, {"$ref": "#/$defs/a"}]},
        },
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_endless_schema_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="nothing satisfies"):
        check_answer(REFUSED[name], backend="test")


@pytest.mark.parametrize("name", HELD)
def test_endless_part_is_never_begun(name: str) -> None:
    """Every answer of a model that says anything can end."""
    tokens = vocabulary()
    ended = 0
    for seed in range(30):
        grammar = answer_grammar(tokens, AnswerConstraint(json_schema=HELD[name]), backend="test")
        assert grammar is not None
        said = walk(grammar, random.Random(seed), limit=200)
        if said is not None:
            jsonschema.validate(json.loads(ByteTokens().read(said)), HELD[name])
            ended += 1
    assert ended > 10
