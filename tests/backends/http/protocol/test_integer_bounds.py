# SPDX-License-Identifier: Apache-2.0
"""Bounds of integers in schemas that are sent to servers whose grammars have none."""

from __future__ import annotations

from typing import Any

import pytest

from inference_bridge.backends.http.protocol.integer_bounds import LARGEST, bounded

BOTH = {"minimum": -LARGEST, "maximum": LARGEST}
INTEGER = {"type": "integer"}


def test_every_integer_has_both_bounds() -> None:
    plain = {
        "type": "object",
        "properties": {
            "a": INTEGER,
            "b": {"type": ["integer", "null"]},
            "c": {"items": INTEGER},
            "d": {"type": "string"},
        },
        "$defs": {"e": {"anyOf": [INTEGER, {"type": "null"}]}},
        "additionalProperties": INTEGER,
        "prefixItems": [INTEGER],
    }
    found = bounded(plain)
    assert found["properties"]["a"] == INTEGER | BOTH
    assert found["properties"]["b"] == {"type": ["integer", "null"]} | BOTH
    assert found["properties"]["c"]["items"] == INTEGER | BOTH
    assert found["properties"]["d"] == {"type": "string"}
    assert found["$defs"]["e"]["anyOf"] == [INTEGER | BOTH, {"type": "null"}]
    assert found["additionalProperties"] == INTEGER | BOTH
    assert found["prefixItems"] == [INTEGER | BOTH]
    assert plain["properties"]["a"] == {"type": "integer"}, "the caller's schema is left alone"  # type: ignore[index]


def test_a_bound_that_is_stated_stays() -> None:
    assert bounded(INTEGER | {"minimum": 3}) == INTEGER | {"minimum": 3, "maximum": LARGEST}
    assert bounded(INTEGER | {"exclusiveMaximum": 9}) == INTEGER | {"minimum": -LARGEST, "exclusiveMaximum": 9}
    assert bounded(INTEGER | {"minimum": 0, "maximum": 9}) == INTEGER | {"minimum": 0, "maximum": 9}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "number"},
        {"type": ["integer", "number"]},
        INTEGER | {"enum": [1, 2]},
        INTEGER | {"const": 1},
        INTEGER | {"minimum": LARGEST + 1},
        {"allOf": [INTEGER, {"minimum": LARGEST + 1}]},
        {"properties": {"type": {"type": "string"}}, "type": "object"},
        {"properties": {"minimum": {"enum": ["integer"]}}},
    ],
)
def test_what_needs_none_or_would_contradict_is_left(schema: Any) -> None:
    assert bounded(schema) == schema
