# SPDX-License-Identifier: Apache-2.0
"""Reads one value as models write it, piece by piece, and converts it to JSON.

A `ValueScanner` takes text as it arrives and returns the JSON of the part that it has read so far.
It checks the grammar while it reads: a value that is `done` is valid JSON, so a streamed
tool call either becomes a call or is known to be broken.

It also accepts deviations from JSON that models write: a comma after the last item, single quotes,
Python's constants and numbers, keys without quotes, raw line breaks inside strings,
backslashes that do not begin an escape. `Dialect` states the further differences of a notation.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

# json.loads reaches Python's recursion limit at a much greater depth. Real arguments have a much smaller one.
_MAX_DEPTH = 200
# int() refuses a text with more digits (sys.int_info.default_max_str_digits).
_MAX_DIGITS = 4300

BareValue: TypeAlias = Callable[[str | None, str], str]
"""Converts a value without quotes to JSON. Arguments: its key in the outermost object or None, and its text."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a notation differs from JSON.

    Args:
        mark: The text at both ends of a string without escapes; "" if the notation has none.
        brackets: The characters that open an object or a list.
        python: Whether strings have Python's escapes and may have triple quotes.
        colons: The characters that may separate a key from its value.
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
# A key in a notation that marks its strings: the chat templates of these models write keys without marks.
_RAW_KEY = re.compile(r"[^,:{}\[\]\n=<>]{0,1000}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# After one of these values a comma may be followed by any key; after a text, only by a plain one.
_SCALAR = re.compile(rf"\s*(?:{_NUMBER.pattern}|true|false|null)\s*")
_CONSTANTS = {"true": "true", "True": "true", "false": "false", "False": "false", "null": "null", "None": "null"}
# Matches up to the end of the string, an escape, or a character that JSON must escape.
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

    Attributes:
        done: The value is complete.
        broken: The text that follows can't belong to the value.
        wakes: A set of characters: text without any of them can't complete the value. None: any text may.
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
        """Read the next part of the value.

        Args:
            text: The text that the last call left unread, followed by new text.
            at: The offset in `text` at which to begin.
            last: Whether the output ends with `text`.

        Returns:
            The next part of the JSON, and the offset up to which the text was read. The caller
            must pass the text after that offset again, together with the text that follows.
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
        """The characters that may end the current string or begin an escape in it. None: no string is open.

        Text without any of them can't end the string.
        """
        return frozenset((self._quote[0], "\\")) if self._quote else None

    # ------------------------------------------------ between strings

    def _token(self, text: str, at: int, last: bool, out: list[str]) -> tuple[int, bool]:
        """Read one token. Return the offset after it, and whether more text is needed to read it."""
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
        """Return the offset at which a value without quotes ends; -1 if its end has not arrived yet.

        The value may contain balanced brackets. Inside an object, a comma ends the value only if a key follows, and
        after a text only if that key is a plain one.
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
        """Continue inside a string. Return the offset reached: `at` itself if more text is needed."""
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
        """Return the escape at `at` in JSON's notation, and its length in the text; length 0 if more text is needed."""
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
        return "\\\\", 1  # a plain backslash, such as one in a regular expression or a Windows path


# ---------------------------------------------------------------- parts of JSON


def quoted(text: str) -> str:
    """Return the text as JSON writes it between the quotes of a string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def number(word: str) -> str | None:
    """Return a JSON or Python number as JSON. None: `word` is not a number, or a fraction outside a double's range."""
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


_SURROGATE = re.compile("[\ud800-\udfff]")


def as_json(value: Any) -> str:
    """Return the value as JSON.

    Raises:
        ValueError: The value contains a number that JSON doesn't have: NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # A lone surrogate can't be encoded as UTF-8, so it stays an escape.
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value, allow_nan=False)


def beginning(text: str, mark: str, start: int = 0) -> int:
    """Return how many characters at the end of `text[start:]` may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text) - start), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0


# ---------------------------------------------------------------- text that a schema gives a type


_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def property_schema(schema: Any, key: str | None, root: Mapping[str, Any]) -> Any:
    """Return the schema of a property. None: the schema says nothing about it.

    Args:
        schema: The schema of the object, which may be a reference, or consist of several schemas.
        key: The property's name; None if it has none.
        root: The schema in which references are looked up.
    """
    if key is None:
        return None
    parts = _parts(schema, root)
    found = []
    for part in parts:
        properties = part.get("properties")
        if isinstance(properties, Mapping) and properties.get(key) is not None:
            found.append(properties[key])
    if found:
        return found[0] if len(found) == 1 else {"anyOf": found}
    return next((part["additionalProperties"] for part in parts if "additionalProperties" in part), None)


def item_schema(schema: Any, root: Mapping[str, Any]) -> Any:
    """Return the schema of a list's items. None: the schema says nothing about them."""
    return next((part["items"] for part in _parts(schema, root) if isinstance(part.get("items"), Mapping)), None)


def schema_types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """Return the JSON types that a schema allows; an empty set if it states none."""
    types: set[str] = set()
    for part in _parts(schema, root):
        stated = part.get("type")
        own = {stated} if isinstance(stated, str) else set(stated) if isinstance(stated, list) else set()
        if not own and isinstance(part.get("enum"), list):
            own = {_TYPES.get(type(value), "null") for value in part["enum"]}
        if not own and "const" in part:
            own = {_TYPES.get(type(part["const"]), "null")}
        types |= own
    return types


def _parts(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schema, and the schemas to which it refers or of which it consists, each once."""
    found: list[Mapping[str, Any]] = []
    seen: set[int] = set()
    left = [schema]
    while left:
        part = left.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        found.append(part)
        inner = [one for choice in ("allOf", "anyOf", "oneOf") for one in part.get(choice) or ()]
        left += reversed([*inner, _referenced(part, root)])
    return found


def _referenced(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Return the schema to which `$ref` refers: a JSON Pointer as a URI fragment (RFC 6901, section 6).

    None: there is no `$ref`, or the root has nothing at that place.
    """
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return None
    address = root.get("$id")
    pointer = reference.removeprefix(address.rstrip("#")) if isinstance(address, str) else reference
    if pointer in ("", "#"):
        return root
    if not pointer.startswith("#/"):
        return None
    target: Any = root
    for step in unquote(pointer[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list | tuple):
            target = target[int(name)] if re.fullmatch("[0-9]{1,6}", name) and int(name) < len(target) else None
        else:
            target = target.get(name) if isinstance(target, Mapping) else None
    return target


def typed(text: str, types: set[str], loose: bool) -> str:
    """Return plain text as JSON: a value of one of `types` if the text can be read as one, otherwise a string.

    Args:
        text: The value as the model wrote it between its tags.
        types: The JSON types that its schema allows; empty if the schema states none.
        loose: If the schema states no type: whether every text that is valid JSON is read as JSON.
            Without it, only objects and arrays are.
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
    """Return the value of a JSON text, or of a Python literal that JSON can express; otherwise _UNREADABLE."""
    try:
        value = json.loads(text, strict=False)
        as_json(value)  # refuses NaN and infinities, which json.loads accepts
        return value
    except (ValueError, RecursionError):
        pass
    python = _without_warnings(text)
    if python is None:
        return _UNREADABLE
    try:
        return json.loads(as_json(ast.literal_eval(python)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNREADABLE


# The parts of a Python literal: a string, a comment, a constant, brackets and separators, a number.
_PART = re.compile(
    r"""(?P<prefix>[a-zA-Z]{0,2})(?P<quote>\'{3}|"{3}|'|")(?:[^\\"']++|\\.|(?!(?P=quote))["'])*+(?P=quote)?"""
    r"""|\#[^\n]*|True|False|None|[\s\[\](){},:]+|[0-9a-fA-FxobXOB_.+-]+""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"""\\(?:(?P<octal>[4-7][0-7]{2})|(?P<unknown>[^\n\r\\'"abfnrtv0-7NuUx])|.)""", re.DOTALL)


def _without_warnings(text: str) -> str | None:
    """Return a Python literal with the same value, for which Python's parser writes no warning to stderr.

    The parser warns about unknown escapes ("C:\\dir") and keywords after a number (`2or 3`). A filter of warnings can't
    be used, because it applies to all threads. None: the text is not a literal that JSON can express.
    """
    parts: list[str] = []
    at = 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        at = part.end()
        if not part["quote"] or part["prefix"] in ("r", "R"):
            parts.append(part[0])
        elif part["prefix"] in ("", "u", "U"):
            parts.append(_ESCAPE.sub(_known_escape, part[0]))
        else:  # bytes, or a string with expressions in it
            return None
    return "".join(parts)


def _known_escape(escape: re.Match[str]) -> str:
    if escape["octal"]:
        return f"\\u{int(escape['octal'], 8):04x}"
    return f"\\{escape[0]}" if escape["unknown"] else escape[0]
