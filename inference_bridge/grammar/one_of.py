# SPDX-License-Identifier: Apache-2.0
"""Whether the options of a `oneOf` exclude each other, so that it can be written as `anyOf`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from .schema_parts import canonical, kinds, object_at, required_names, values

Resolve = Callable[[Any], Any]
"""A function that follows references: it returns the schema to which a schema with only `$ref` refers."""

MAX_PAIRS = 64
"""Maximum number of options that are compared pair by pair. Tags and constants are compared in linear time."""

_MAX_DEPTH = 2


def exclusive(options: list[Any], resolve: Resolve, depth: int = 0) -> bool:
    """Return whether it is certain that no value satisfies two of the options."""
    parts = [option for option in options if option is not False]
    if len(parts) < 2:
        return True
    if depth > _MAX_DEPTH or not all(isinstance(part, dict) for part in parts):
        return False
    listed = [part for part in parts if values(part) is not None]
    open_ended = [part for part in parts if values(part) is None]
    constants = Counter(key for part in listed for key in {canonical(value) for value in values(part) or ()})
    if any(count > 1 for count in constants.values()):
        return False
    taken = Counter(kind for part in open_ended for kind in kinds(part))
    if any(taken[kind] for part in listed for kind in kinds(part)):
        return False
    shared = {kind for kind, count in taken.items() if count > 1}
    if not shared:
        return True
    objects = [part for part in open_ended if "object" in kinds(part)]
    return (
        shared == {"object"}
        and all(kinds(part) == {"object"} for part in objects)
        and _objects(objects, resolve, depth)
    )


def tag(options: list[Any], resolve: Resolve, first: Any = None) -> str | None:
    """Return a property that distinguishes all options, or None; `first` is tried before the others."""
    if not all(isinstance(option, dict) and kinds(option) == {"object"} for option in options):
        return None
    shapes = [object_at(option, "properties") for option in options]
    for name in sorted(shapes[0], key=lambda name: name != first):
        if all(name in shape for shape in shapes) and exclusive([resolve(shape[name]) for shape in shapes], resolve):
            return name
    return None


def _objects(options: list[Any], resolve: Resolve, depth: int) -> bool:
    """Return whether each pair of options is distinguished by a property that at least one of the two requires."""
    shapes = [object_at(option, "properties") for option in options]
    for name in shapes[0]:
        stated = sum(name in required_names(option) for option in options)
        everywhere = stated >= len(options) - 1 and all(name in shape for shape in shapes)
        if everywhere and exclusive([resolve(shape[name]) for shape in shapes], resolve, depth + 1):
            return True
    if len(options) > MAX_PAIRS:
        return False
    return all(_pair(a, b, resolve, depth) for index, a in enumerate(options) for b in options[:index])


def _pair(a: Any, b: Any, resolve: Resolve, depth: int) -> bool:
    """Return whether a property that at least one of two options requires distinguishes them."""
    first, second = object_at(a, "properties"), object_at(b, "properties")
    return any(
        exclusive([resolve(first[name]), resolve(second[name])], resolve, depth + 1)
        for name in dict.fromkeys([*required_names(a), *required_names(b)])
        if name in first and name in second
    )
