# SPDX-License-Identifier: Apache-2.0
"""Bounds added to numbers of schemas for servers: numbers end, and no further values are allowed."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from inference_bridge.backends.llama_server.schemas import ServerSchemas
from inference_bridge.grammar.number_bounds import with_bounded_numbers
from tests.parts.models.byte_model import ByteTokens, feed, vocabulary, walk
from tests.parts.schemas.everyday import REFUSED, SCHEMAS

VOCABULARY = vocabulary()
EAGER = dict.fromkeys([*b"0123456789"], 60.0) | dict.fromkeys(b"eE.", 20.0)
"""A model that prefers digits, as one that repeats itself does."""

MOST_CHARACTERS = 2 + 18 + 10
"""Of a number: its sign and point, and the digits before and behind it."""

OPEN: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "positive": {"type": "number", "exclusiveMinimum": 0},
    "at least": {"type": "integer", "minimum": 3},
    "optional": {"type": ["number", "null"]},
    "either": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    "no type": {},
    "array of anything": {"type": "array", "maxItems": 3},
    "reference": {"$ref": "#/$defs/price", "$defs": {"price": {"type": "number", "minimum": 1}}},
    "parts": {"allOf": [{"type": "number"}, {"minimum": 2}]},
}


def as_sent(schema: dict[str, Any]) -> Any:
    """The grammar that llama-server makes from the schema in the request."""
    sent = ServerSchemas("llama_server", compiles=True).sent(schema)
    return VOCABULARY.grammar(lambda names: f"start: %json {json.dumps(sent)}")


def numbers_in(text: str) -> list[str]:
    return re.findall(r"-?[0-9][-+.eE0-9]*", re.sub(r'"(\\.|[^"\\])*"', "", text))


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("seed", range(10))
def test_numbers_end_with_any_model(name: str, seed: int) -> None:
    schema = {"type": "array", "items": OPEN[name], "maxItems": 4, "$defs": OPEN[name].get("$defs", {})}
    grammar = as_sent(schema)
    said = walk(grammar, random.Random(f"{name} {seed}"), limit=1500, weights=EAGER | {ord('"'): 0.1})
    assert said is not None
    text = ByteTokens().read(said)
    assert max(map(len, numbers_in(text)), default=0) <= MOST_CHARACTERS
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in REFUSED])
def test_numbers_of_everyday_schemas_end(name: str) -> None:
    said = walk(as_sent(SCHEMAS[name]), random.Random(name), limit=3000, weights=EAGER | {ord('"'): 40.0})
    if said is not None:  # else a string goes on
        assert max(map(len, numbers_in(ByteTokens().read(said))), default=0) <= MOST_CHARACTERS


@pytest.mark.parametrize("name", ["number", "no type", "optional"])
@pytest.mark.parametrize("number", ["0", "-0.5", "3.1415926535", "1700000000000", "-12345.6789", "0.0000000001"])
def test_ordinary_numbers_are_allowed(name: str, number: str) -> None:
    assert feed(as_sent({"type": "array", "items": OPEN[name]}), f"[{number}]").complete


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 1e20},
        {"enum": [1, 2.5]},
        {"type": "integer", "minimum": 0, "maximum": 255},
        {"type": "number", "minimum": 1e-12, "maximum": 2e-12, "multipleOf": 1e-12},
        {"type": "string"},
    ],
)
def test_numbers_with_their_own_limits_are_not_changed(schema: dict[str, Any]) -> None:
    assert with_bounded_numbers(schema, any_type=True) == schema


def test_bounds_that_no_step_lies_between_get_no_step() -> None:
    bounds = {"type": "number", "minimum": 1e-12, "maximum": 2e-12}
    assert with_bounded_numbers(bounds, any_type=True) == bounds


def test_values_of_any_type_stay_as_they_are_for_a_converter_that_knows_no_bounds_without_a_type() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": True, "c": {"type": "array"}}}
    assert with_bounded_numbers(schema, any_type=False) == schema


@pytest.mark.parametrize("text", ["[1e400]", "[-1e999]"])
def test_an_infinite_number_does_not_satisfy_a_schema(text: str) -> None:
    schemas = ServerSchemas("llama_server", compiles=False)
    from inference_bridge.options import GenerateConfig

    schema = {"type": "array", "items": {"type": "number"}}
    assert not schemas._satisfies(text, GenerateConfig(json_schema=schema))
    assert schemas._satisfies("[1e40]", GenerateConfig(json_schema=schema))


def test_integers_alone_may_be_bounded() -> None:
    schema = {"properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "number"}, "c": {"type": "string"}}}
    found = with_bounded_numbers(schema, any_type=False, integers_only=True)["properties"]
    assert found["a"].keys() == {"type", "minimum", "maximum"}
    assert (found["b"], found["c"]) == (schema["properties"]["b"], schema["properties"]["c"])


@pytest.mark.parametrize("bound", [{"minimum": 10**19}, {"exclusiveMaximum": -(10**19)}])
def test_a_bound_beyond_the_largest_integer_stays_alone(bound: dict[str, int]) -> None:
    schema = {"type": "integer", **bound}
    assert with_bounded_numbers(schema, any_type=False, integers_only=True) == schema
