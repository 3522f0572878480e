# SPDX-License-Identifier: Apache-2.0
"""Removes definitions that no finite JSON satisfies, such as an object that requires a property of the same definition.

An answer to such a schema could never be completed: it would continue until a limit ends it, or until the matcher runs
out of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_keywords import TYPES
from .schema_parts import list_at, object_at, required_names


def without_endless(schema: Any, definitions: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Replace each reference to a definition that no finite JSON satisfies with the schema `false`.

    Args:
        schema: A schema as `json_schema` rewrites it. References have the form `#/$defs/name`.
        definitions: The definitions that the references name.

    Returns:
        The schema, and the definitions that finite JSON can satisfy.
    """
    finite: set[str] = set()
    found = True
    while found:  # least fixed point: each round uses only definitions that earlier rounds found to be finite
        new = {name for name, part in definitions.items() if name not in finite and _is_finite(part, finite)}
        finite |= new
        found = bool(new)
    if len(finite) == len(definitions):
        return schema, dict(definitions)
    kept = {name: part for name, part in definitions.items() if name in finite}
    return _pruned(schema, finite), {name: _pruned(part, finite) for name, part in kept.items()}


def _pruned(part: Any, finite: set[str]) -> Any:
    """Return the schema with `false` in place of each reference to a definition that is not in `finite`."""
    if not isinstance(part, Mapping):
        return part
    if "$ref" in part and _name(part) not in finite:
        return False
    out = dict(part)
    for key in ("properties", "patternProperties"):
        if key in part:
            out[key] = {name: _pruned(one, finite) for name, one in part[key].items()}
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        if key in part:
            out[key] = [_pruned(one, finite) for one in part[key]]
    for key in ("additionalProperties", "items"):
        if key in part:
            out[key] = _pruned(part[key], finite)
    return out


def _name(part: Mapping[str, Any]) -> str:
    name: str = part["$ref"].rpartition("/")[2]
    return name


def _is_finite(part: Any, finite: set[str]) -> bool:
    """Return whether finite JSON may satisfy the schema. References to definitions not in `finite` count as `false`."""
    if not isinstance(part, dict):
        return part is not False
    if "const" in part or "enum" in part:
        return True
    if "$ref" in part and _name(part) not in finite:
        return False
    if not all(_is_finite(one, finite) for one in list_at(part, "allOf")):
        return False
    for key in ("anyOf", "oneOf"):
        if key in part and not any(_is_finite(one, finite) for one in list_at(part, key)):
            return False
    stated = part.get("type", TYPES)
    types = {stated} if isinstance(stated, str) else set(stated)
    if types - {"object", "array"}:
        return True
    return ("object" in types and _is_finite_object(part, finite)) or (
        "array" in types and _is_finite_array(part, finite)
    )


def _is_finite_object(part: dict[str, Any], finite: set[str]) -> bool:
    properties = object_at(part, "properties")
    rest = _is_finite(part.get("additionalProperties", True), finite)
    rest = rest or any(_is_finite(one, finite) for one in object_at(part, "patternProperties").values())
    possible = {name for name, one in properties.items() if _is_finite(one, finite)}
    if not all(name in possible or (name not in properties and rest) for name in required_names(part)):
        return False
    return rest or len(possible) >= part.get("minProperties", 0)


def _is_finite_array(part: dict[str, Any], finite: set[str]) -> bool:
    first, least = list_at(part, "prefixItems"), part.get("minItems", 0)
    if not all(_is_finite(one, finite) for one in first[:least]):
        return False
    return least <= len(first) or _is_finite(part.get("items", True), finite)
