# SPDX-License-Identifier: Apache-2.0
"""New inputs out of old ones: of bytes, of lines, of the JSON that a line holds."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

MAX_BYTES = 4 << 10

_NUMBERS = (0, 1, -1, 127, 255, 256, 1024, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "a", "\ud800", "é😀", [], {}, [[]], [{}], {"": None}),
    *(*_NUMBERS, 10**400, 0.5, -1e308, float("nan"), float("inf")),
)
_BYTES = (b"", b"\0", b"\xff", "😀".encode(), b"\xf0\x9f", b"\xed\xa0\x80", b"\r\n", b"\n\n", b"\\", b'"', b"{" * 40)
_TOKENS = re.compile(rb"\w+|\s+|[^\w\s]")


def inputs(corpus: Sequence[bytes], seed: object) -> Iterator[bytes]:
    """The corpus as it is, and then without end what becomes of it; the same for the same seed."""
    yield from corpus
    rng = random.Random(str(seed))
    for _ in count():
        data = rng.choice(corpus)
        for _ in range(min(1 + int(rng.expovariate(0.4)), 10)):
            data = _mutated(rng, data, corpus)[:MAX_BYTES]
        yield data


def _mutated(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    if rng.random() < 0.6 and (changed := _with_other_json(rng, data, corpus)) is not None:
        return changed
    return rng.choice(_CHANGES)(rng, data, corpus)


# ---------------------------------------------------------------- bytes


def _flip(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _number(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A length or a count, of 1 to 8 bytes, becomes another one."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data) + 1)
    return data[:at] + (rng.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _cut(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    start, end = _range(rng, data)
    return data[:start] + data[end:]


def _end(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    start, end = _range(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A word of any input, or something that is often forgotten."""
    word = rng.choice(_TOKENS.findall(rng.choice(corpus)) or [b""]) if rng.random() < 0.8 else rng.choice(_BYTES)
    places = [match.start() for match in _TOKENS.finditer(data)]
    at = rng.choice(places) if places and rng.random() < 0.7 else rng.randrange(len(data) + 1)
    return data[:at] + word + data[at:]


def _splice(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    other = rng.choice(corpus)
    start, end = _range(rng, other)
    at, to = _range(rng, data)
    return data[:at] + other[start:end] + data[to:]


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.expovariate(1 / 12)) + 1)


_CHANGES = (_flip, _number, _cut, _end, _repeat, _insert, _insert, _splice)


# ---------------------------------------------------------------- JSON


def _with_other_json(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes | None:
    """With a change within a line's JSON, or within the whole, if that is JSON."""
    found = _json_in(rng, data)
    if found is None:
        return None
    start, end, value = found
    other = _json_in(rng, rng.choice(corpus))
    donor = rng.choice(list(_nodes(other[2]))) if other is not None else None
    return data[:start] + json.dumps(_changed(rng, value, donor)).encode() + data[end:]


def _json_in(rng: random.Random, data: bytes) -> tuple[int, int, Any] | None:
    whole = (0, len(data))
    lines = [(match.start(), match.end()) for match in re.finditer(rb"[\[{].*", data)]
    for start, end in (whole, *([rng.choice(lines)] if lines else ())):
        try:
            return start, end, json.loads(data[start:end])
        except (ValueError, RecursionError):
            continue
    return None


def _nodes(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner)


def json_changed(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one change in it."""
    return _changed(rng, value, rng.choice(_VALUES))


def _changed(rng: random.Random, value: Any, donor: Any) -> Any:
    """A copy with one node replaced, taken out, put in or doubled; deeper ones as likely as those above."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy: Any = value.copy()
        chance = rng.random()
        if chance < 0.75:
            copy[key] = _changed(rng, value[key], donor)
        elif chance < 0.85:
            del copy[key]
        elif isinstance(copy, list):
            copy.insert(key, rng.choice((value[key], donor, rng.choice(_VALUES))))
        else:
            copy[rng.choice((*map(str, keys), str(donor)[:20]))] = rng.choice((value[key], donor))
        return copy
    if isinstance(value, str) and rng.random() < 0.5:
        return _insert(rng, value.encode("utf-8", "surrogatepass"), [b"a b"]).decode("utf-8", "replace")
    return rng.choice((donor, [value], {"a": value}, str(value), rng.choice(_VALUES), rng.choice(_VALUES)))
