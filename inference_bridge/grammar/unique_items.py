# SPDX-License-Identifier: Apache-2.0
"""`uniqueItems`: arrays that llguidance can hold, where the items come from a short list of values."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

from .schema_parts import canonical, values

MAX_UNIQUE = 8
"""Values that the items may have, at most: 2**8 arrays."""

_MAX_PERMUTED = 3


def subsets(items: Any, limits: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The arrays of distinct values of `items`, within `minItems` and `maxItems` of `limits`, each as a schema.

    Up to three values come in any order, more of them in the order of the list, since they
    stand for a set. None where the values are not listed, or too many.
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
