# SPDX-License-Identifier: Apache-2.0
"""Checks of answers of models that may ignore json_schema and tool_choice."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jsonschema_rs", reason="the extra http has it")

from inference_bridge.authoring import schema_validator, why_not_forced, why_not_satisfied
from inference_bridge.authoring.answer_checks import MAX_DEPTH

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
NUMBERS: dict[str, Any] = {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer"}, "5", "5.5"),
        ({"type": "object", "required": ["a"]}, '{"a": null}', "{}"),
        ({"enum": ["a", {"nullable": True, "type": "x"}]}, '{"nullable": true, "type": "x"}', '"b"'),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"type": "string", "nullable": True}, "null", "1"),
        ({"type": ["string", "null"], "nullable": True}, "null", "1"),
        ({"properties": {"nullable": {"type": "string"}}}, '{"nullable": "x"}', '{"nullable": true}'),
        ({"pattern": "^(?=.*[0-9])[a-z0-9]+$"}, '"a1"', '"a"'),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"const": 1}}}, "1", "2"),
        (NUMBERS, "[1]", "[1, 2]"),
        ({**NUMBERS, "$schema": DRAFT_7}, "[1]", "[1, 2]"),
        ({"$schema": "https://example.com/mine", "type": "string"}, '"a"', "1"),
        ({"unit": "m", "ui:widget": "text", "type": "number"}, "1e3", '"1"'),
        ({"type": "array", "uniqueItems": True}, "[1, 2]", "[1, 1.0]"),
        ({}, " [1] \n", "[1"),
        ({}, "null", "NaN"),
        ({}, "1e300", "1e999"),
        ({"type": "string"}, r'"\ud83d\ude00"', r'"\ud83d"'),
    ],
)
def test_an_answer_is_compared_with_its_schema(schema: dict[str, Any], right: str, wrong: str) -> None:
    assert why_not_satisfied(right, schema) == ""
    assert why_not_satisfied(wrong, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"required": "name"},
        {"pattern": "("},
        {"$ref": "#/$defs/nothing"},
        {"$ref": "https://example.com/other.json"},
        {"$ref": "file:///etc/hostname"},
        {"properties": []},
    ],
)
def test_an_invalid_schema_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a valid JSON Schema"):
        schema_validator(schema)
    with pytest.raises(ValueError, match="not a valid JSON Schema"):
        why_not_satisfied("1", schema)


def test_a_reason_names_the_rule_and_the_place_but_no_value() -> None:
    schema = {"properties": {"a": {"items": {"type": "integer"}}}}
    why = why_not_satisfied('{"a": [1, "secret"]}', schema)
    assert "#/properties/a/items/type" in why
    assert "#/a/1" in why
    assert "secret" not in why


@pytest.mark.parametrize("schema", [{}, {"items": {"$ref": "#"}}, {"enum": [1]}])
def test_an_answer_that_nests_deeply_is_refused_in_place_of_a_crash(schema: dict[str, Any]) -> None:
    for depth in (MAX_DEPTH + 1, 500_000):
        assert str(MAX_DEPTH) in why_not_satisfied("[" * depth + "]" * depth, schema)
    shallow = "[" + ",".join(['{"a": "[[[[\\"[["}'] * 1000) + "]"
    assert why_not_satisfied(shallow, {"type": "array", "items": {"type": "object"}}) == ""
    assert why_not_satisfied("[" * MAX_DEPTH + "]" * MAX_DEPTH, {"items": {"$ref": "#"}}) == ""


def test_a_pattern_that_backtracks_does_not_hold_up_the_process() -> None:
    # Python's `re` would not end.
    assert why_not_satisfied('"' + "a" * 5000 + 'b"', {"pattern": r"^(?=(a+))(a+)+\1$"})


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_an_answer_without_a_forced_call_needs_none(choice: str | None) -> None:
    assert why_not_forced(choice, []) == why_not_forced(choice, ["f"]) == ""


def test_an_answer_with_a_forced_call_needs_a_call_of_that_tool() -> None:
    assert why_not_forced("required", ["f", "g"]) == why_not_forced("f", ["f", "f"]) == ""
    for choice in ("required", "f"):
        assert why_not_forced(choice, [])
    assert "g" in why_not_forced("f", ["f", "g"])
