# SPDX-License-Identifier: Apache-2.0
"""Reads a value as models write it, piece by piece, and writes it as JSON.

A `ValueScanner` takes text as it arrives and returns the JSON of what it has read so far.
It checks the grammar while it reads: a value that is `done` is valid JSON, so a streamed
tool call either becomes a call or is known to be broken.

It accepts what models write instead of JSON: a comma after the last item, single quotes,
Python's constants and numbers, keys without quotes, raw line breaks inside strings,
backslashes that begin no escape. `Dialect` says which notations differ further.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# json.loads reads as deep as Python's recursion limit allows; no real argument comes near.
_MAX_DEPTH = 200
# Python reads no integer of more digits from a text.
_MAX_DIGITS = 4300

BareValue: TypeAlias = Callable[[str | None, str], str]
"""Writes a value without quotes as JSON: (its key in the outermost object, its text)."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a notation differs from JSON.

    Args:
        mark: The text at both ends of a string whose content is taken as it stands.
        brackets: The characters that open a collection.
        python: Strings have Python's escapes and may have triple quotes.
        colons: What may stand between a key and its value.
    """

    mark: str = ""
    brackets: str = "{["
    python: bool = False
    colons: str = ":"


JSON = Dialect()
PYTHON = Dialect(brackets="{[(", python=True)

_CLOSES = {"{": "}", "[": "]", "(": ")"}
_WRITTEN = {"{": "{", "[": "[", "(": "[", "}": "}", "]": "]", ")": "]"}
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[^\s,:{}\[\]()\"'=<>]*")
# A key of a notation with marks around strings, whose templates write keys as they are.
_RAW_KEY = re.compile(r"[^,:{}\[\]\n=<>]{0,1000}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Behind one of these, unlike behind a text, any key may follow a comma.
_SCALAR = re.compile(rf"\s*(?:{_NUMBER.pattern}|true|false|null)\s*")
_CONSTANTS = {"true": "true", "True": "true", "false": "false", "False": "false", "null": "null", "None": "null"}
# Up to the end of the string, an escape, or what JSON writes as an escape.
_INSIDE = {
    '"': re.compile(r'[^"\\\x00-\x1f]*'),
    "'": re.compile(r"[^'\"\\\x00-\x1f]*"),
}
_HEX = {"x": 2, "u": 4, "U": 8}
_PYTHON_ESCAPES = {"a": "\a", "v": "\v", "0": "\0"}
_BARE_STOP = re.compile(r"[,{}\[\]]")
_TO_KEY_END = re.compile(r"[^:=,}\]{\[]*")
_KEY_TEXT = re.compile(r"""\s*(?:[\w.-]+|"[^"]*"|'[^']*'|<\S*>[\w.-]+<\S*>)\s*""")


class ValueScanner:
    """Reads one value that arrives in pieces.

    `done`: the value is complete. `broken`: what follows can't belong to it. `wakes`: None,
    or the characters without which more text changes nothing.
    """

    def __init__(self, dialect: Dialect = JSON, bare: BareValue | None = None) -> None:
        self.done = False
        self.broken = False
        self.wakes: frozenset[str] | None = None
        self._dialect = dialect
        self._bare = bare
        self._open: list[str] = []
        self._next = "value"
        self._comma = False
        self._quote = ""
        self._is_key = False
        self._key: str | None = None
        self._key_parts: list[str] = []
        self._seek = 0
        self._depth = 0

    def read(self, text: str, at: int = 0, last: bool = False) -> tuple[str, int]:
        """Read on.

        Args:
            text: What was left over at the last call, and more.
            at: Where to begin in it.
            last: Nothing follows `text`.

        Returns:
            More of the JSON, and the offset up to which the text was read. What lies behind it
            must be handed over again, with what follows.
        """
        out: list[str] = []
        self.wakes = None
        while not (self.done or self.broken):
            before = at
            if self._quote:
                at = self._string(text, at, last, out)
            else:
                at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
                if at == len(text):
                    break
                at, waits = self._token(text, at, last, out)
                if waits:
                    break
                continue
            if at == before:
                break
        return "".join(out), at

    @property
    def ends_string(self) -> frozenset[str] | None:
        """Inside a string, the characters without which it does not end; None elsewhere."""
        return frozenset((self._quote[0], "\\")) if self._quote else None

    # ------------------------------------------------ between strings

    def _token(self, text: str, at: int, last: bool, out: list[str]) -> tuple[int, bool]:
        """Past one token: the offset behind it, and whether it needs more text to be read."""
        char = text[at]
        if self._open and char == self._open[-1] and self._next in ("first key", "first value", "key", "item", "comma"):
            self._comma = False
            self._open.pop()
            out.append(_WRITTEN[char])
            self._after_value()
            return at + 1, False
        if self._next == "comma":
            self.broken = char != ","
            self._comma = True
            self._next = "key" if self._open[-1] == "}" else "item"
            return at + (not self.broken), False
        if self._next == "colon":
            if char not in self._dialect.colons:
                self.broken = True
                return at, False
            out.append(": ")
            self._next = "value"
            return at + 1, False
        is_key = "key" in self._next
        return self._value(text, at, last, out, is_key)

    def _value(self, text: str, at: int, last: bool, out: list[str], is_key: bool) -> tuple[int, bool]:
        char = text[at]
        quote = ""
        mark = self._dialect.mark
        if mark and char == mark[0]:
            if text.startswith(mark, at):
                quote = mark
            elif not last and mark.startswith(text[at : at + len(mark)]):
                return at, True
        if not quote and char in "\"'":
            quote = char
            if self._dialect.python:
                triple = text[at : at + 3]
                if not last and len(triple) < 3 and triple == char * len(triple):
                    return at, True
                quote = char * 3 if triple == char * 3 else char
        if quote:
            self._before_item(out)
            self._begin_string(quote, is_key, out)
            return at + len(quote), False
        if not is_key and char in self._dialect.brackets:
            if len(self._open) >= _MAX_DEPTH:
                self.broken = True
                return at, False
            self._before_item(out)
            self._open.append(_CLOSES[char])
            out.append(_WRITTEN[char])
            self._next = "first key" if char == "{" else "first value"
            return at + 1, False
        if self._bare is not None and not is_key:
            end = self._bare_end(text, at, last)
        elif is_key and mark:
            end = _RAW_KEY.match(text, at).end()  # type: ignore[union-attr]
        else:
            end = _WORD.match(text, at).end()  # type: ignore[union-attr]
        if end < 0 or (end == len(text) and not last):
            return at, True
        word = text[at:end].strip()
        written = self._word(word, is_key)
        if written is None:
            self.broken = True
            return at, False
        self._before_item(out)
        out.append(written)
        if is_key:
            if len(self._open) == 1:
                self._key = word
            self._next = "colon"
        else:
            self._after_value()
        return end, False

    def _before_item(self, out: list[str]) -> None:
        if self._comma:
            out.append(", ")
        self._comma = False

    def _after_value(self) -> None:
        self._seek = self._depth = 0
        self.done = not self._open
        self._next = "comma"

    def _word(self, word: str, is_key: bool) -> str | None:
        if is_key:
            known = bool(word) if self._dialect.mark else re.fullmatch(r"[\w.$-]+", word) is not None
            return json.dumps(word, ensure_ascii=False) if known else None
        if self._bare is not None:
            return self._bare(self._key if len(self._open) == 1 else None, word) if word else None
        return _CONSTANTS.get(word) or number(word)

    def _bare_end(self, text: str, at: int, last: bool) -> int:
        """Where a value without quotes ends; -1: not within the text yet.

        It may contain balanced brackets. A comma inside an object ends it only before a key: a plain one, where the
        value is a text.
        """
        seek = at + self._seek
        while match := _BARE_STOP.search(text, seek):
            char, seek = match[0], match.end()
            if char in "{[":
                self._depth += 1
            elif char in "}]":
                if not self._depth:
                    return match.start()
                self._depth -= 1
            elif not self._depth:
                if self._open and self._open[-1] == "]":
                    return match.start()
                end = _TO_KEY_END.match(text, seek).end()  # type: ignore[union-attr]
                if end == len(text) and not last:
                    self._seek = match.start() - at
                    self.wakes = frozenset(":=,}]{[")
                    return -1
                if text[end : end + 1] in (":", "=") and (
                    _KEY_TEXT.fullmatch(text, seek, end) or _SCALAR.fullmatch(text, at, match.start())
                ):
                    return match.start()
            self._seek = seek - at
        self._seek = len(text) - at
        self.wakes = frozenset(",}]{[")
        return len(text) if last else -1

    # ------------------------------------------------ strings

    def _begin_string(self, quote: str, is_key: bool, out: list[str]) -> None:
        self._quote = quote
        self._is_key = is_key
        self._key_parts = []
        out.append('"')

    def _inside(self, piece: str, out: list[str]) -> None:
        out.append(piece)
        if self._is_key:
            self._key_parts.append(piece)

    def _end_string(self, out: list[str]) -> None:
        self._quote = ""
        out.append('"')
        if self._is_key:
            if len(self._open) == 1:
                self._key = str(json.loads(f'"{"".join(self._key_parts)}"'))
            self._next = "colon"
        else:
            self._after_value()

    def _string(self, text: str, at: int, last: bool, out: list[str]) -> int:
        """On inside a string: the offset reached, which is `at` where more text is needed."""
        if self._quote == self._dialect.mark:
            return self._raw(text, at, last, out)
        return self._quoted(text, at, last, out)

    def _raw(self, text: str, at: int, last: bool, out: list[str]) -> int:
        mark = self._quote
        end = text.find(mark, at)
        stop = end if end >= 0 else len(text) if last else len(text) - beginning(text, mark, at)
        self._inside(quoted(text[at:stop]), out)
        if end < 0:
            return stop
        self._end_string(out)
        return end + len(mark)

    def _quoted(self, text: str, at: int, last: bool, out: list[str]) -> int:
        quote = self._quote
        inside = _INSIDE[quote[0]]
        while True:
            end = inside.match(text, at).end()  # type: ignore[union-attr]
            self._inside(text[at:end], out)
            at = end
            if at == len(text):
                return at
            char = text[at]
            if char == quote[0]:
                if text.startswith(quote, at):
                    self._end_string(out)
                    return at + len(quote)
                if not last and quote.startswith(text[at : at + len(quote)]):
                    return at
                self._inside(quoted(char), out)
                at += 1
            elif char == "\\":
                written, length = self._escape(text, at, last)
                if not length:
                    return at
                self._inside(written, out)
                at += length
            else:
                self._inside(quoted(char), out)
                at += 1

    def _escape(self, text: str, at: int, last: bool) -> tuple[str, int]:
        """The escape at `at` as JSON has it, and its length; 0 where more text is needed."""
        char = text[at + 1 : at + 2]
        if not char:
            return ("\\\\", 1) if last else ("", 0)
        if char in '"\\/bfnrt':
            return text[at : at + 2], 2
        if char == "'":
            return "'", 2
        python = self._dialect.python
        if char == "\n" and python:
            return "", 2
        size = _HEX.get(char, 0) if python or char == "u" else 0
        if size:
            digits = text[at + 2 : at + 2 + size]
            if re.fullmatch("[0-9a-fA-F]*", digits):
                if len(digits) < size:
                    return ("\\\\", 1) if last else ("", 0)
                if char == "u":
                    return text[at : at + 6], 6
                if int(digits, 16) <= 0x10FFFF:
                    return json.dumps(chr(int(digits, 16)))[1:-1], 2 + size
        if python and char in _PYTHON_ESCAPES:
            return quoted(_PYTHON_ESCAPES[char]), 2
        return "\\\\", 1  # no escape at all: a regular expression, or a path


# ---------------------------------------------------------------- parts of JSON


def quoted(text: str) -> str:
    """The text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def number(word: str) -> str | None:
    """A number as JSON, from JSON or Python; None if the word isn't one that a double or an integer holds."""
    if len(word) > _MAX_DIGITS:
        return None
    if _NUMBER.fullmatch(word):
        return word if math.isfinite(float(word)) or _is_integer(word) else None
    if not re.fullmatch(r"[+-]?[0-9.][0-9a-fA-FxobXOB_.eE+-]*", word):
        return None
    try:
        value = ast.literal_eval(word)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return json.dumps(value)


def _is_integer(word: str) -> bool:
    return word.lstrip("-").isdigit()


_HALF = re.compile("[\ud800-\udfff]")


def as_json(value: Any) -> str:
    """The value as JSON.

    Raises:
        ValueError: It holds a number that JSON doesn't have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Half a character, which only an escape can write, stays an escape.
    return text if text.isascii() or not _HALF.search(text) else json.dumps(value, allow_nan=False)


def beginning(text: str, mark: str, start: int = 0) -> int:
    """How many characters at the end of `text`, from `start` on, begin `mark`."""
    for length in range(min(len(mark) - 1, len(text) - start), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0


# ---------------------------------------------------------------- text that a schema gives a type


_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def property_schema(schema: Any, key: str | None) -> Any:
    """The schema of a property; None where the schema says nothing about it."""
    if not isinstance(schema, Mapping) or key is None:
        return None
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return schema.get("additionalProperties") if found is None else found


def schema_types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema allows; empty if it doesn't say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return set()
    stated = schema.get("type")
    types = {stated} if isinstance(stated, str) else set(stated) if isinstance(stated, list) else set()
    if not types and isinstance(schema.get("enum"), list):
        types = {_TYPES.get(type(value), "null") for value in schema["enum"]}
    if not types and "const" in schema:
        types = {_TYPES.get(type(schema["const"]), "null")}
    for choice in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(choice) or ():
            types |= schema_types(part, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        types |= schema_types(target, root, depth + 1)
    return types


def typed(text: str, types: set[str], loose: bool) -> str:
    """Plain text as JSON of one of `types`, where it can be read as one; otherwise as a string.

    Args:
        text: The value as it stands between its tags.
        types: The JSON types its schema allows; empty if the schema doesn't say.
        loose: A value whose schema says no type is JSON if it reads as JSON; without it, only
            an object or an array is.
    """
    if types == {"string"}:
        return as_json(text)
    value = _literal(text.strip())
    if value is _UNREADABLE:
        value = text
    elif isinstance(value, bool):
        value = value if (loose and not types) or "boolean" in types else text
    elif isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        value = int(value)
    elif types and value is not None:
        kind = _TYPES[type(value)]
        value = value if kind in types or (kind == "integer" and "number" in types) else text
    elif not loose and not isinstance(value, dict | list | None):
        value = text
    return as_json(value)


_UNREADABLE = object()


def _literal(text: str) -> Any:
    """JSON, or else a Python literal that is JSON's equal."""
    try:
        value = json.loads(text, strict=False)
        as_json(value)  # which refuses what only Python reads, and numbers beyond a double
        return value
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(as_json(ast.literal_eval(text)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNREADABLE
