# SPDX-License-Identifier: Apache-2.0
"""Schemas that everyday libraries write hold, or are refused by the keyword's place."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from inference_bridge import UnsupportedError
from inference_bridge.grammar.grammar import answer_grammar
from inference_bridge.grammar.json_schema import MAX_PARTS, json_grammar
from tests.parts.models.byte_model import ByteTokens, vocabulary, walk
from tests.parts.schemas.everyday import REFUSED, SCHEMAS

TOKENS = ByteTokens()
VOCABULARY = vocabulary(TOKENS)


def test_there_are_enough_of_them() -> None:
    assert len(SCHEMAS) >= 60
    assert REFUSED.keys() < SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_everyday_schemas_hold_or_are_refused(name: str) -> None:
    schema = SCHEMAS[name]
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=f"{REFUSED[name]!r}: at #"):
            answer_grammar(VOCABULARY, schema, backend="engine")
        return
    rng = random.Random(0)
    validator = jsonschema.Draft202012Validator(schema)
    ended = 0
    for _ in range(8):
        made = answer_grammar(VOCABULARY, schema, backend="engine")
        assert made is not None
        said = walk(made, rng, TOKENS, limit=200)
        if said is None:
            continue
        value = json.loads(TOKENS.read(said))
        if not (value is None and schema.get("nullable")):  # OpenAPI's, which a validator does not know
            validator.validate(value)
        ended += 1
    assert ended


def compiles(schema: Any) -> None:
    json_grammar(schema, what="json_schema", backend="engine")


def test_checking_many_options_does_not_compare_each_with_each() -> None:
    compiles({"oneOf": [{"const": number} for number in range(3000)]})
    thing = {"type": "object", "required": ["k"]}
    compiles({"oneOf": [{**thing, "properties": {"k": {"const": str(number)}}} for number in range(400)]})


def test_a_schema_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        compiles({"enum": [*range(MAX_PARTS + 1)]})
    with pytest.raises(ValueError, match="characters"):
        compiles({"description": "x" * (1 << 21)})


@pytest.mark.parametrize("name", ["unit", "ui:widget", "strict", "order", "group", "widget", "propertyOrdering"])
def test_unknown_keywords_are_annotations(name: str) -> None:
    compiles({"type": "string", name: "x"})


@pytest.mark.parametrize("name", ["minlength", "requried", "additionalproperties", "max_length", "item", "patern"])
def test_near_misses_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        compiles({"type": "object", name: 1})


def test_a_wrapper_is_not_a_schema() -> None:
    with pytest.raises(ValueError, match="wrapper"):
        compiles({"name": "x", "strict": True, "schema": {"type": "string"}})
