# SPDX-License-Identifier: Apache-2.0
"""`uniqueItems` for items from a short list of values, as arrays that llguidance can enforce."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

from .schema_parts import canonical, values

MAX_UNIQUE = 8
"""Maximum number of different values that the items may have: 2**8 arrays."""

_MAX_PERMUTED = 3


def subsets(items: Any, limits: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return a schema for each array of distinct values of `items`, within `minItems` and `maxItems` of `limits`.

    If `items` has up to three values, they may come in any order. More values come in the order of their list, because
    the array represents a set. None: `items` does not list its values, or lists more than MAX_UNIQUE.
    """
    if not isinstance(items, dict):
        return None
    listed = values(items)
    if listed is None and items.get("type") == "boolean":
        listed = [False, True]
    if listed is None:
        return None
    distinct = list({canonical(value): value for value in listed}.values())
    if len(distinct) > MAX_UNIQUE:
        return None
    chosen = permutations if len(distinct) <= _MAX_PERMUTED else combinations
    least, most = limits.get("minItems", 0), min(limits.get("maxItems", len(distinct)), len(distinct))
    return [
        {"prefixItems": [{"const": value} for value in some], "items": False, "minItems": count}
        for count in range(least, most + 1)
        for some in chosen(distinct, count)
    ]
