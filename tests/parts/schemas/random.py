# SPDX-License-Identifier: Apache-2.0
"""Random JSON Schemas."""

from __future__ import annotations

import random
from typing import Any

KEYS = ("a", "b", "c")


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    """A random schema: some cannot be satisfied, some are refused."""

    def part() -> dict[str, Any]:
        return random_schema(rng, depth - 1)

    def leaf() -> dict[str, Any]:
        low, high = sorted((rng.uniform(-99, 99), rng.uniform(-99, 99)))
        digits = rng.randrange(4)
        return rng.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": "integer", "minimum": int(low), "exclusiveMaximum": int(high) + 2},
                {
                    "type": "number",
                    rng.choice(["minimum", "exclusiveMinimum"]): round(low, digits),
                    rng.choice(["maximum", "exclusiveMaximum"]): round(high + 0.1, digits),
                },
                {"type": ["string", "null"], "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 6)},
                {"enum": rng.sample(["x", "yy", 1, 2.5, None, True, [1], {"a": 1}], rng.randrange(1, 4))},
                {"const": rng.choice(["x", 3, False, {"a": [1, "q"]}])},
                {"type": "string", "pattern": rng.choice(["^[a-c]{1,3}$", "^\\d{2}-\\w$", '^(x|y)[^"a]$', "b"])},
            ]
        )

    def thing() -> dict[str, Any]:
        names = rng.sample(KEYS, rng.randrange(1, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {name: part() for name in names}}
        for key, value in {
            "required": [rng.choice(KEYS)],
            "additionalProperties": rng.choice([False, True, {"type": "null"}]),
            "patternProperties": {"^z": {"type": "boolean"}},
            "minProperties": 1,
            "maxProperties": 2,
        }.items():
            if rng.random() < 0.3:
                schema[key] = value
        return schema

    def many() -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "maxItems": rng.randrange(4), "items": part()}
        return schema | ({"prefixItems": [part()]} if rng.random() < 0.3 else {})

    def combined() -> dict[str, Any]:
        key = rng.choice(["anyOf", "oneOf", "allOf"])
        return (thing() if rng.random() < 0.4 else {}) | {key: [part() for _ in range(rng.randrange(1, 3))]}

    def reference() -> dict[str, Any]:
        return {"$ref": f"#/$defs/{rng.choice('pq')}"} | ({"required": ["a"]} if rng.random() < 0.3 else {})

    if depth == 0 or rng.random() < 0.3:
        return leaf()
    items = list(rng.choice([thing, thing, many, combined, combined, reference])().items())
    rng.shuffle(items)
    return dict(items)
