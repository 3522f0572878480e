# SPDX-License-Identifier: Apache-2.0
"""Adds bounds to the numbers in a schema that is sent to a server. In process, `number_limits` limits numbers.

A grammar for a JSON Schema allows any number of digits, and exponents that Python parses as infinity. A server gets
only the schema, so the limits are written into it: `minimum` and `maximum` for the digits before the point,
`multipleOf` for the digits after it. If a number has one of these keywords, llguidance allows no exponent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_INTEGER = 10**18 - 1
"""The largest absolute value of an integer. It has 18 digits 9, and fits into the 64 bits that llguidance supports."""

MAX_NUMBER = (1 << 53) - 1
"""The largest absolute value of a number. Bounds that a schema sets are below 2**53 too (see `json_schema`)."""

STEP = 1e-10
"""Ten digits after the point: the smallest step that llguidance 1.9 supports."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties")
_DEFINED_ELSEWHERE = ("const", "enum", "$ref", "anyOf", "oneOf", "allOf")
_BOUNDS = {"minimum": ("minimum", "exclusiveMinimum"), "maximum": ("maximum", "exclusiveMaximum")}


def with_bounded_numbers(schema: Mapping[str, Any], *, any_type: bool, integers_only: bool = False) -> dict[str, Any]:
    """Return a copy of `schema` in which numbers have bounds. The copy may allow less than `schema`, never more.

    Args:
        schema: The schema, as `json_schema` writes it or as a caller gave it.
        any_type: Whether to bound numbers also where the schema states no type. Set it if llguidance reads the schema:
            llama.cpp's own converter ignores bounds without a type.
        integers_only: Whether to leave numbers that may have a fraction unchanged. Set it for xgrammar, which vLLM and
            SGLang use: it does not support `multipleOf`, and limits bounded numbers to six digits after the point.
    """
    writer = _Writer(any_type, integers_only)
    out: dict[str, Any] = writer.write(dict(schema))
    if writer.any_used:
        out["$defs"] = {**out.get("$defs", {}), _ANY: writer.any_value()}
    return out


_ANY = "any-value-with-bounded-numbers"


class _Writer:
    def __init__(self, any_type: bool, integers_only: bool) -> None:
        self.any_used = False
        self._integers_only = integers_only
        self._any_type = any_type

    def write(self, node: Any, *, combined: bool = False) -> Any:
        """Rewrite one schema. `combined`: other schemas apply to the same value and may restrict its contents."""
        if not isinstance(node, Mapping) or not node:
            return self._any() if self._any_type and node in (True, {}) and not combined else node
        out = dict(node)
        for keyword in _NAMED:
            if isinstance(out.get(keyword), Mapping):
                out[keyword] = {name: self.write(part) for name, part in out[keyword].items()}
        for keyword in _LISTS:
            if isinstance(out.get(keyword), list):
                several = keyword == "allOf"
                out[keyword] = [self.write(part, combined=several) for part in out[keyword]]
        for keyword in _ONE:
            if isinstance(out.get(keyword), Mapping) or out.get(keyword) is True:
                out[keyword] = self.write(out[keyword])
        self._open_parts(out, combined)
        self._numbers(out)
        return out

    def any_value(self) -> dict[str, Any]:
        value: dict[str, Any] = {"items": self._any(), "additionalProperties": self._any()}
        self._numbers(value)
        return value

    def _any(self) -> dict[str, str]:
        self.any_used = True
        return {"$ref": f"#/$defs/{_ANY}"}

    def _open_parts(self, out: dict[str, Any], combined: bool) -> None:
        """Bound the numbers in items and properties that the schema does not describe."""
        if not self._any_type or combined or any(keyword in out for keyword in _DEFINED_ELSEWHERE):
            return
        if _may_be("array", out) and "items" not in out:
            out["items"] = self._any()
        if _may_be("object", out) and not any(key in out for key in ("additionalProperties", "patternProperties")):
            out["additionalProperties"] = self._any()

    def _numbers(self, out: dict[str, Any]) -> None:
        if any(keyword in out for keyword in ("const", "enum")):
            return
        if "type" not in out and (not self._any_type or any(keyword in out for keyword in _DEFINED_ELSEWHERE)):
            return
        any_number = _may_be("number", out)
        if not (any_number or _may_be("integer", out)):
            return
        if any_number and self._integers_only:
            return
        size = MAX_NUMBER if any_number else MAX_INTEGER
        stated = [out[bound] for bounds in _BOUNDS.values() for bound in bounds if bound in out]
        if any(isinstance(bound, int | float) and abs(bound) > size for bound in stated):
            return  # with these bounds, no number would satisfy the schema
        narrow = _is_narrow(out)
        for keyword, sign in (("minimum", -1), ("maximum", 1)):
            if not any(bound in out for bound in _BOUNDS[keyword]):
                out[keyword] = sign * size
        if any_number and "multipleOf" not in out and not narrow:
            out["multipleOf"] = STEP


def _may_be(kind: str, node: Mapping[str, Any]) -> bool:
    types = node.get("type", kind)
    return kind in types if isinstance(types, list | tuple) else bool(types == kind)


def _is_narrow(node: Mapping[str, Any]) -> bool:
    """Return whether the bounds are so close that possibly no multiple of STEP lies between them."""
    bounds = [next((node[bound] for bound in _BOUNDS[keyword] if bound in node), None) for keyword in _BOUNDS]
    low, high = bounds
    return isinstance(low, int | float) and isinstance(high, int | float) and high - low < 10 * STEP
