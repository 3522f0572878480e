# SPDX-License-Identifier: Apache-2.0
"""Parses a text while it is still being generated.

A parser of a model's output is a generator that yields when it needs more text. So its code is like
that of a parser of a complete string. It uses a `Reader`, which keeps the text that is
not classified yet, and emits classified text.

The result does not depend on how the text is split into pieces: decisions depend only on the text,
not on how much of it has arrived. Each character is read a bounded number of times.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from ..types import TokenKind, Tool, ToolCallDelta
from .assembler import Emit, Matcher, Phase
from .values import JSON, ValueScanner, beginning, quoted

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

ValueStyle: TypeAlias = Literal["", "inline", "lines"]
"""How a family writes a value between tags: directly, or on separate lines. "": the notation's default."""

# Maximum characters that are held back because they may become a tool call. If there are more, they become text.
HOLD_LIMIT = 1 << 18
# Maximum characters of a name, key or tag.
_NAME_LIMIT = 1000

# An output that arrives at once is read in pieces of this many characters, because a search scans all the text.
_PIECE = 4096

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[\w.:/-]*")


class NoCallError(Exception):
    """The text is not a tool call, or the call is incomplete."""


class Reader(ABC):
    """The undecided text, and a parser's position in it. Subclasses supply `read`, the parser.

    `text[:pos]` is decided: it was emitted, or dropped as markup. `at` is the position up to which the parser
    has read; it is never less than `pos`. Positions are valid until `forget` is called. `calls` is the number of
    tool calls begun; `schemas` are the parameters of the tools that may be called.

    Args:
        tools: The tools that may be called.
        make_id: Makes the id of a call without an id.
        values: How the model's template writes values between tags.
    """

    def __init__(
        self, tools: Iterable[Tool] = (), make_id: Callable[[], str] | None = None, values: ValueStyle = ""
    ) -> None:
        self.kind: TokenKind = "text"
        self.phase: Phase = "opening"
        self.calls = 0
        self.quick: frozenset[str] | None = None
        self.trims = False
        self.noticed: frozenset[str] = frozenset()
        self.text = ""
        self.at = 0
        self.pos = 0
        self.ended = False
        self.values = values
        self.schemas: Mapping[str, Mapping[str, Any]] = {tool.name: tool.parameters for tool in tools}
        self._make_id = make_id or call_id
        self._origin = 0
        self._emit: Emit = _discard
        self._wakes: frozenset[str] | None = None
        self._past_space = False
        self._late: list[str] = []
        self._late_size = 0
        self._kept: list[str] | None = None
        self._kept_from = 0
        self._aside: list[str] | None = None
        self._aside_at = 0
        self._aside_from = 0
        self._steps = self.read()

    @abstractmethod
    def read(self) -> Steps[None]:
        """Read the whole output. To the author of a parser: this is the generator that `feed` and `finish` advance."""
        ...

    # ------------------------------------------------ Parser (see assembler.py)

    @property
    def decided(self) -> int:
        """The number of characters that have been emitted or dropped, from the start of the output."""
        return self._origin + self.pos if self._aside is None else self._aside_from

    def feed(self, text: str, emit: Emit) -> None:
        """Read the next piece of the output.

        Args:
            text: The piece.
            emit: Called with each part of the output whose kind is known.
        """
        if len(text) > _PIECE:
            for at in range(0, len(text), _PIECE):
                self.feed(text[at : at + _PIECE], emit)
            return
        self._emit = emit
        if self._past_space and text.isspace():
            self._late.append(text)
            return
        if (
            self._wakes is not None
            and self._wakes.isdisjoint(text)
            and len(self.text) - self.pos + self._late_size + len(text) <= HOLD_LIMIT
        ):
            # Join the pieces later: adding each piece to a long text would copy the text every time.
            self._late.append(text)
            self._late_size += len(text)
            return
        self._join(text)
        self.quick = None
        next(self._steps, None)

    def finish(self, emit: Emit) -> None:
        """Read the rest, because the output has ended.

        Args:
            emit: As in `feed`.
        """
        self._emit = emit
        self._join("")
        self.ended = True
        self.quick = None
        next(self._steps, None)

    def rewind(self) -> None:
        """Drop the decided text, and count `decided` from here."""
        self.forget()
        self._origin = 0

    def _join(self, text: str) -> None:
        self.text = "".join((self.text, *self._late, text)) if self._late else self.text + text
        self._late = []
        self._late_size = 0
        self._wakes = None
        self._past_space = False

    def in_tag(self) -> bool:
        """Return whether the next piece must be fed, even if it has no character of `noticed`."""
        return False

    # ------------------------------------------------ emitting

    def forget(self) -> None:
        """Drop the decided text."""
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.pos])
            self._kept_from = 0
        if self._aside is not None:
            self._aside.append(self.text[self._aside_at : self.pos])
            self._aside_at = 0
        self.text = self.text[self.pos :]
        self._origin += self.pos
        self.at -= self.pos
        self.pos = 0

    def forget_most(self) -> None:
        """Call `forget` only if most of the text is decided, so that a long text is not copied for each call in it."""
        if 2 * self.pos > len(self.text):
            self.forget()

    def give(self, kind: TokenKind, end: int) -> None:
        """Emit the text up to `end` as `kind`."""
        if end > self.pos:
            self._emit(kind, self._origin + self.pos, self.text[self.pos : end])
            self.pos = end

    def drop(self) -> None:
        """Drop the text up to `at`: it is markup, and no Token contains it."""
        self.pos = self.at

    def begin_call(self, name: str, id: str | None = None) -> None:
        """Begin a tool call. Its arguments follow as JSON text, in pieces (`arguments`).

        Args:
            name: The tool's name.
            id: The call's id; None: make one.

        Raises:
            NoCallError: The text since the last decided character is longer than HOLD_LIMIT.
        """
        self._limit()
        delta = ToolCallDelta(self.calls, id or self._make_id(), name)
        self.calls += 1
        self.drop()
        self._send(delta)

    def arguments(self, fragment: str, last: bool = False) -> None:
        """Emit the next piece of the call's arguments.

        Args:
            fragment: JSON text.
            last: Whether the arguments are complete.

        Raises:
            NoCallError: The text since the last decided character is longer than HOLD_LIMIT.
        """
        self._limit()
        self.drop()
        if fragment:
            self._send(ToolCallDelta(self.calls - 1, arguments=fragment))
        if last:
            self.complete()

    def _send(self, delta: ToolCallDelta) -> None:
        if self._aside is None:
            self._emit("tool_call", self._origin + self.at, tool_call=delta)

    def _limit(self) -> None:
        if self.at - self.pos > HOLD_LIMIT:
            self.at = self.pos + HOLD_LIMIT
            raise NoCallError

    # ------------------------------------------------ text that may not be a call

    def keep(self) -> None:
        """Keep the text from here on, for `give_back`."""
        self._kept = []
        self._kept_from = self.pos

    def complete(self) -> None:
        """Accept the text up to `at` as a call or a part of one. Text that follows can't change that."""
        self.drop()
        if self._kept is not None:
            self.keep()

    def give_back(self, kind: TokenKind) -> None:
        """Emit all the text between `keep` and `at` as `kind`, because it is not a call."""
        self.drop()
        text = "".join((*(self._kept or ()), self.text[self._kept_from : self.pos]))
        self._kept = None
        if text.strip(" \t\r\n,;}])"):  # brackets and separators left over after a complete call are not text
            # The tokens at the text's own offset were yielded already, so it is part of the current token.
            self._emit(kind, self._origin + self.pos - len(text), text)

    def message_calls(self, calls: Steps[None]) -> Steps[None]:
        """Read the calls that a message consists of.

        If the text is not valid calls: the text of a call that has begun is emitted as text, and the rest is left to
        be read as a message.

        Args:
            calls: Reads the calls and the marks around them.
        """
        before = self.calls
        self.keep()
        try:
            yield from calls
            yield from self.drop_space()
            self.settle()
        except NoCallError:
            if self.calls > before:
                self.give_back("text")
            else:
                self.settle()
                self.at = self.pos

    def settle(self) -> None:
        """Stop keeping text for `give_back`: the call is complete."""
        self._kept = None

    def set_aside(self) -> None:
        """From here on emit nothing, and keep the text for `take_back`."""
        self.forget_most()
        self._aside = []
        self._aside_at = self.pos
        self._aside_from = self._origin + self.pos
        self._aside_calls = self.calls

    def aside_size(self) -> int:
        """Return the number of characters set aside, up to the end of the text."""
        return self._origin + len(self.text) - self._aside_from

    def take_back(self) -> None:
        """Return to the position at which `set_aside` was called."""
        if self._aside:
            self.text = "".join((*self._aside, self.text))
            self.at += self._origin - self._aside_from
            self._origin = self._aside_from
            self._aside_at = 0
        self.pos = self._aside_at
        self.calls = self._aside_calls
        self._aside = None
        self._kept = None

    # ------------------------------------------------ text

    def region(self, kind: TokenKind, markers: Matcher, trims: bool) -> Steps[str]:
        """Emit text as `kind` up to the first of `markers`.

        The marker itself stays undecided, and with `trims` also the white space before it.

        Returns:
            The marker, or "" at the end of the text.
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
            if not node and not self.text and not self.in_tag():
                self.quick = markers.first | self.noticed
                self.trims = trims
            self._past_space = trims and self.text.isspace()  # all of it is held back until other text follows
            yield

    def drop_space(self) -> Steps[None]:
        """Drop the white space that is next, because it belongs to the markup before it."""
        while True:
            self.skip()
            self.drop()
            if self.at < len(self.text) or self.ended:
                return
            self.forget()
            yield

    # ------------------------------------------------ looking ahead

    def skip(self) -> None:
        """Read past the white space that has arrived."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def more(self, wakes: frozenset[str] | None = None) -> Steps[None]:
        """Wait for more text.

        Args:
            wakes: A set of characters; text without any of them need not be read yet. None: read any text.

        Raises:
            NoCallError: The text has ended, or more than HOLD_LIMIT characters are held back.
        """
        if self.ended or len(self.text) - self.pos > HOLD_LIMIT:
            raise NoCallError
        self._wakes = wakes
        yield

    def space(self) -> Steps[None]:
        """Read past white space, up to another character or the end of the text."""
        while True:
            self.skip()
            if self.at < len(self.text) or self.ended:
                return
            self._past_space = True
            yield

    def peek(self) -> Steps[str]:
        """Return the next character without reading past it.

        Raises:
            NoCallError: The text has ended.
        """
        while self.at == len(self.text):
            yield from self.more()
        return self.text[self.at]

    def option(self, *choices: str) -> Steps[str]:
        """Read past the first of `choices` with which the text continues, and return it; "" if none matches."""
        longest = max(map(len, choices), default=0)
        while True:
            rest = self.text[self.at : self.at + longest]  # a short copy, not one of all the held text
            for choice in choices:
                if rest.startswith(choice):
                    self.at += len(choice)
                    return choice
                if not self.ended and choice.startswith(rest):
                    break
            else:
                return ""
            yield

    def past_cut(self, *marks: str) -> None:
        """If the output ended inside one of `marks`, read past the part of the mark that is there."""
        rest = len(self.text) - self.at
        if self.ended and any(rest < len(mark) and self.text.startswith(mark[:rest], self.at) for mark in marks):
            self.at = len(self.text)

    def expect(self, *choices: str) -> Steps[str]:
        """Read past the first of `choices` with which the text continues, and return it.

        Raises:
            NoCallError: None of them matches.
        """
        found = yield from self.option(*choices)
        if not found:
            raise NoCallError
        return found

    def word(self) -> Steps[str]:
        """Read the name of a tool or parameter, and return it.

        Raises:
            NoCallError: The text does not continue with a name, or the name is longer than 1,000 characters.
        """
        while True:
            end = _WORD.match(self.text, self.at).end()  # type: ignore[union-attr]
            if end - self.at > _NAME_LIMIT:
                raise NoCallError
            if end < len(self.text):
                if end == self.at:
                    raise NoCallError
                word, self.at = self.text[self.at : end], end
                return word
            yield from self.more()

    def until(self, mark: str) -> Steps[str]:
        """Read a name that ends at `mark`, and the mark. Return the name.

        Raises:
            NoCallError: There is no mark within 1,000 characters.
        """
        start = seek = self.at
        while True:
            end = self.text.find(mark, seek, start + _NAME_LIMIT + len(mark))
            if (end if end >= 0 else len(self.text) - len(mark)) - start > _NAME_LIMIT:
                raise NoCallError
            if end >= 0:
                self.at = end + len(mark)
                return self.text[start:end]
            seek = max(start, len(self.text) - len(mark) + 1)
            yield from self.more()

    def argument_until(self, mark: str) -> Steps[str]:
        """Read a value of a call that has begun up to `mark`, and the mark. Return the value.

        Positions in `text` from before this call are no longer valid.

        Raises:
            NoCallError: The text has ended, or the value is longer than HOLD_LIMIT.
        """
        parts: list[str] = []
        size = 0
        while True:
            end = self.text.find(mark, self.at)
            clear = end if end >= 0 else len(self.text) - beginning(self.text, mark, self.at)
            parts.append(self.text[self.at : clear])
            size += clear - self.at
            self.at = clear - max(size - HOLD_LIMIT, 0)  # the same position however the text is split into pieces
            if size > HOLD_LIMIT:
                raise NoCallError
            if end >= 0:
                self.at = end + len(mark)
                self.drop()
                self.forget_most()
                return "".join(parts)
            if self.ended:
                raise NoCallError
            self.drop()
            self.forget()
            yield

    # ------------------------------------------------ values

    def json_value(self) -> Steps[Any]:
        """Read a JSON value, and return it decoded.

        Raises:
            NoCallError: The value is not valid, or too long.
        """
        value = ValueScanner(JSON)
        parts: list[str] = []
        while True:
            fragment, self.at = value.read(self.text, self.at, self.ended)
            parts.append(fragment)
            if value.done:
                return json.loads("".join(parts))
            if value.broken:
                raise NoCallError
            yield from self.more(value.ends_string if self.at == len(self.text) else None)

    def json_string(self) -> Steps[str]:
        """Read a JSON string, and return it decoded.

        Raises:
            NoCallError: The next value is not a valid string, or too long.
        """
        if (yield from self.peek()) not in "\"'":
            raise NoCallError
        return str((yield from self.json_value()))

    def stream_value(self, value: ValueScanner, last: bool = False) -> Steps[None]:
        """Read a value, and emit it in pieces as arguments of the call.

        Args:
            value: The scanner to read it with.
            last: Whether the value is all of the call's arguments.

        Raises:
            NoCallError: The value is not valid, or too long.
        """
        while True:
            fragment, self.at = value.read(self.text, self.at, self.ended)
            self.arguments(fragment, last=last and value.done)
            if value.done:
                return
            if value.broken or self.ended:
                raise NoCallError
            self.forget()
            if len(self.text) > HOLD_LIMIT:  # the value is too long, and no part of it is read again
                self.at = HOLD_LIMIT
                raise NoCallError
            yield from self.more(value.wakes)

    def stream_object(self) -> Steps[None]:
        """Read a JSON object, and emit it in pieces as the call's arguments.

        Raises:
            NoCallError: The object is not valid, or too long.
        """
        yield from self.stream_value(ValueScanner(JSON), last=True)

    def stream_text(self, mark: str, lines: bool = False) -> Steps[None]:
        """Read the text up to `mark`, and emit it in pieces as a JSON string among the call's arguments.

        Args:
            mark: The text after the value.
            lines: Whether to omit a line break before the mark.

        Raises:
            NoCallError: The text ended before the mark.
        """
        quote = '"'
        while True:
            end = self.text.find(mark, self.at)
            clear = end if end >= 0 else len(self.text) - beginning(self.text, mark, self.at)
            if lines and clear > self.at and self.text[clear - 1] == "\n":
                clear -= 1
            fragment = quote + quoted(self.text[self.at : clear]) if clear > self.at or end >= 0 else ""
            quote = "" if fragment else quote
            self.at = clear
            if end >= 0:
                self.at = end + len(mark)
                self.arguments(fragment + '"')
                return
            self.arguments(fragment)
            if self.ended:
                self.at = len(self.text)
                raise NoCallError
            self.forget()
            yield


def call_id() -> str:
    """Return a random id for a tool call, in OpenAI's form."""
    return "call_" + os.urandom(12).hex()


def short_call_id() -> str:
    """Return a random id for a tool call in the form that Mistral's templates demand: nine letters and digits."""
    return os.urandom(5).hex()[:9]


def _discard(kind: TokenKind, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
    """Do nothing. This is the emitter of a parser that has not received text yet."""
