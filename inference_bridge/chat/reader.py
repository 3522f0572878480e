# SPDX-License-Identifier: Apache-2.0
"""Reading a text that is still being written.

A parser of a model's output is a generator that yields wherever it needs more text, so it
reads like one for a whole string. It runs on a `Reader`, which keeps the text that is not
decided yet, and hands on what is.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from ..types import TokenKind, Tool, ToolCallDelta
from .assembler import Emit, Matcher, Phase

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

# Text that is held back because it may yet be a tool call is let go beyond so many characters.
_HOLD_LIMIT = 1 << 18

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[\w.:/-]*")
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)


class NoCallError(Exception):
    """What was taken for a tool call is none, or breaks off."""


class Reader(ABC):
    """The undecided text, and a parser's place in it. Subclasses supply `read`, the parser.

    `text[:pos]` is decided: handed on, or dropped as markup. `at`, at or behind `pos`, is
    how far the parser has looked. Places are good until `forget` is called. `calls` counts
    the tool calls begun; `calling`: the last one's arguments are not complete.
    """

    def __init__(self, tools: Iterable[Tool] = (), make_id: Callable[[], str] | None = None) -> None:
        self.kind: TokenKind = "text"
        self.phase: Phase = "opening"
        self.calls = 0
        self.calling = False
        self.quick: frozenset[str] | None = None
        self.trims = False
        self.text = ""
        self.at = 0
        self.pos = 0
        self.ended = False
        self.schemas: Mapping[str, Mapping[str, Any]] = {tool.name: tool.parameters for tool in tools}
        self._make_id = make_id or call_id
        self._origin = 0
        self._emit: Emit = _nowhere
        self._steps = self.read()

    @abstractmethod
    def read(self) -> Steps[None]: ...

    # ------------------------------------------------ Parser (see text.py)

    @property
    def decided(self) -> int:
        return self._origin + self.pos

    def feed(self, text: str, emit: Emit) -> None:
        self._emit = emit
        self.text += text
        self.quick = None
        next(self._steps, None)

    def finish(self, emit: Emit) -> None:
        self._emit = emit
        self.ended = True
        self.quick = None
        next(self._steps, None)

    def rewind(self) -> None:
        self.forget()
        self._origin = 0

    # ------------------------------------------------ handing on

    def forget(self) -> None:
        """Let go of the text that is decided."""
        self.text = self.text[self.pos :]
        self._origin += self.pos
        self.at -= self.pos
        self.pos = 0

    def give(self, kind: TokenKind, end: int) -> None:
        """Hand on the text up to `end` as `kind`."""
        if end > self.pos:
            self._emit(kind, self._origin + self.pos, self.text[self.pos : end])
            self.pos = end

    def drop(self) -> None:
        """What was looked at is markup, and belongs to no token's text."""
        self.pos = self.at

    def begin_call(self, name: str, id: str | None = None) -> None:
        """A tool call begins here: from now on this is no text any more."""
        delta = ToolCallDelta(self.calls, id or self._make_id(), name)
        self.calls += 1
        self.calling = True
        self.drop()
        self._emit("tool_call", self._origin + self.at, tool_call=delta)

    def arguments(self, fragment: str, last: bool = False) -> None:
        """More of the call's arguments, as JSON text."""
        self.calling = not last
        self.drop()
        if fragment:
            delta = ToolCallDelta(self.calls - 1, arguments=fragment)
            self._emit("tool_call", self._origin + self.at, tool_call=delta)

    # ------------------------------------------------ text

    def region(self, kind: TokenKind, markers: Matcher, trims: bool) -> Steps[str]:
        """Hand on text as `kind` until one of `markers`; gives it, or "" at the end of the text.

        The marker itself stays undecided, and with `trims` the white space before it too.
        """
        self.kind = kind
        node = 0
        while True:
            node, self.at, found = markers.scan(node, self.text, self.at)
            clear = self.at - len(found)
            if not self.ended:
                clear = self.at - (len(found) or markers.depth[node])
            if trims and (found or not self.ended):
                clear = self.pos + len(self.text[self.pos : clear].rstrip())
            self.give(kind, clear)
            if found or self.ended:
                return found
            self.forget()
            if not node and not self.text:
                self.quick = markers.first
                self.trims = trims
            yield

    def drop_space(self) -> Steps[None]:
        """White space here belongs to the markup before it."""
        while True:
            self.skip()
            self.drop()
            if self.at < len(self.text) or self.ended:
                return
            yield

    # ------------------------------------------------ looking ahead

    def skip(self) -> None:
        """Look past the white space that is there."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def more(self) -> Steps[None]:
        """Wait for more text. NoCallError if there is none, or too much is waiting already."""
        if self.ended or len(self.text) - self.pos > _HOLD_LIMIT:
            raise NoCallError
        yield

    def space(self) -> Steps[None]:
        """Look past white space, up to something else or the end of the text."""
        while True:
            self.skip()
            if self.at < len(self.text) or self.ended:
                return
            yield

    def peek(self) -> Steps[str]:
        """The next character."""
        while self.at == len(self.text):
            yield from self.more()
        return self.text[self.at]

    def option(self, *choices: str) -> Steps[str]:
        """Look past one of `choices`, and give it; "" if none of them is next."""
        while True:
            for choice in choices:
                if self.text.startswith(choice, self.at):
                    self.at += len(choice)
                    return choice
            rest = self.text[self.at :]
            if self.ended or not any(choice.startswith(rest) for choice in choices):
                return ""
            yield

    def expect(self, *choices: str) -> Steps[str]:
        """Look past one of `choices`, and give it. NoCallError if none of them is next."""
        found = yield from self.option(*choices)
        if not found:
            raise NoCallError
        return found

    def word(self) -> Steps[str]:
        """A name as tools and parameters have them."""
        while True:
            end = _WORD.match(self.text, self.at).end()  # type: ignore[union-attr]
            if end < len(self.text):
                if end == self.at:
                    raise NoCallError
                word, self.at = self.text[self.at : end], end
                return word
            yield from self.more()

    def until(self, mark: str) -> Steps[str]:
        """The text up to `mark`, and look past it."""
        start = seek = self.at
        while True:
            end = self.text.find(mark, seek)
            if end >= 0:
                self.at = end + len(mark)
                return self.text[start:end]
            seek = max(start, len(self.text) - len(mark) + 1)
            yield from self.more()

    # ------------------------------------------------ JSON

    def json_string(self) -> Steps[str]:
        yield from self.peek()
        if self.text[self.at] != '"':
            raise NoCallError
        start, end = self.at, self.at + 1
        while True:
            end = _IN_STRING.match(self.text, end).end()  # type: ignore[union-attr]
            if self.text.startswith('"', end):
                self.at = end + 1
                return str(_decoded(self.text[start : self.at]))
            yield from self.more()

    def json_value(self) -> Steps[Any]:
        """Any JSON value, decoded."""
        first = yield from self.peek()
        if first == '"':
            return (yield from self.json_string())
        if first not in "{[":
            return _decoded((yield from self.word()))
        value = JSONValue()
        parts: list[str] = []
        while True:
            fragment, self.at = value.read(self.text, self.at)
            parts.append(fragment)
            if value.done:
                return _decoded("".join(parts))
            if value.broken:
                raise NoCallError
            yield from self.more()

    def stream_object(self) -> Steps[None]:
        """Hand on the JSON object that is next as the call's arguments, as it comes."""
        value = JSONValue()
        while True:
            fragment, self.at = value.read(self.text, self.at)
            self.arguments(fragment, last=value.done)
            if value.done:
                return
            if value.broken or self.ended:
                raise NoCallError
            self.forget()
            yield

    def stream_text(self, mark: str, newline: bool = False) -> Steps[None]:
        """Hand on the text up to `mark` as a JSON string, as it comes; `newline`: without a last line break."""
        quote = '"'
        while True:
            start = self.at
            end = clear = self.text.find(mark, start)
            if end < 0 and self.ended:
                newline, clear = False, len(self.text)
            elif end < 0:
                clear = self.text.find(mark[0], max(start, len(self.text) - len(mark) + 1))
                while clear >= 0 and not mark.startswith(self.text[clear:]):
                    clear = self.text.find(mark[0], clear + 1)
                if clear < 0:
                    clear = len(self.text)
            if newline and clear > start and self.text[clear - 1] == "\n":
                clear -= 1
            self.at = clear
            if clear > start:
                self.arguments(quote + json.dumps(self.text[start:clear], ensure_ascii=False)[1:-1])
                quote = ""
            if end >= 0:
                self.at = end + len(mark)
                self.arguments(quote + '"')
                return
            if self.ended:
                raise NoCallError
            self.forget()
            yield


_PLAIN = re.compile(r"[\s\w:,.+-]*")
_QUOTED = re.compile(r'[^"\\]*')
_CONTROL = re.compile(r"[\x00-\x1f]")
_CLOSES = {"{": "}", "[": "]"}


class JSONValue:
    """Finds the end of a JSON object or array that arrives in pieces."""

    __slots__ = ("_escaped", "_open", "_quoted", "broken", "done")

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._open: list[str] = []
        self._quoted = False
        self._escaped = False

    def read(self, text: str, at: int) -> tuple[str, int]:
        """Read on from `at`: the value's next piece, and the offset behind it.

        `done` says it is complete, `broken` that what follows can't belong to it. A raw line
        break in a string, a common slip of small models, comes out escaped.
        """
        parts = []
        length = len(text)
        while at < length:
            start = at
            if self._quoted:
                if self._escaped:
                    at += 1
                    self._escaped = False
                    parts.append(text[start:at])
                    continue
                at = _QUOTED.match(text, at).end()  # type: ignore[union-attr]
                parts.append(_CONTROL.sub(_escape, text[start:at]))
                if at == length:
                    break
                self._escaped = text[at] == "\\"
                self._quoted = self._escaped
                parts.append(text[at])
                at += 1
                continue
            at = _PLAIN.match(text, at).end()  # type: ignore[union-attr]
            if at == length:
                parts.append(text[start:at])
                break
            char = text[at]
            if char == '"':
                self._quoted = True
            elif char in _CLOSES:
                self._open.append(_CLOSES[char])
            elif self._open and char == self._open[-1]:
                self._open.pop()
                self.done = not self._open
            else:
                self.broken = True
                parts.append(text[start:at])
                break
            at += 1
            parts.append(text[start:at])
            if self.done:
                break
        return "".join(parts), at


def call_id() -> str:
    """A tool call's id in OpenAI's manner."""
    return "call_" + os.urandom(12).hex()


def short_call_id() -> str:
    """A tool call's id as Mistral's templates demand it: nine letters and digits."""
    return os.urandom(5).hex()[:9]


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def _decoded(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NoCallError from None


def _nowhere(kind: TokenKind, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
    """The parser has not been fed yet."""
