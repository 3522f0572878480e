# SPDX-License-Identifier: Apache-2.0
"""Reading a text that is still being written.

A parser of a model's output is a generator that yields wherever it needs more text, so it
reads like a parser of a whole string. It runs on a `Reader`, which keeps the text that is
not decided yet and hands on what is.

Where the pieces end never changes a reading: no decision depends on how much text is there,
only on the text. Each character is looked at a bounded number of times.
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
"""How a family writes a value between tags: directly, or on lines of its own. "": the notation's usual way."""

# Characters: text that is held back because it may yet become a tool call is released beyond this.
HOLD_LIMIT = 1 << 18
# Characters: the longest name, key or tag that is looked for.
_NAME_LIMIT = 1000

# Characters: an output that arrives at once is read in pieces, because a search scans all the text that is there.
_PIECE = 4096

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[\w.:/-]*")


class NoCallError(Exception):
    """What was taken for a tool call isn't one, or breaks off."""


class Reader(ABC):
    """The undecided text, and a parser's place in it. Subclasses supply `read`, the parser.

    `text[:pos]` is decided: handed on, or dropped as markup. `at`, at or behind `pos`, is
    how far the parser has looked. Places are good until `forget` is called. `calls` counts
    the tool calls begun; `schemas` are the parameters of the tools that may be called.

    Args:
        tools: The tools that may be called.
        make_id: Makes the id of a call for which the model states none.
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
        self._emit: Emit = _nowhere
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
    def read(self) -> Steps[None]: ...

    # ------------------------------------------------ Parser (see assembler.py)

    @property
    def decided(self) -> int:
        return self._origin + self.pos if self._aside is None else self._aside_from

    def feed(self, text: str, emit: Emit) -> None:
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
            # Joined later: adding each piece to a long text that waits would copy it every time.
            self._late.append(text)
            self._late_size += len(text)
            return
        self._join(text)
        self.quick = None
        next(self._steps, None)

    def finish(self, emit: Emit) -> None:
        self._emit = emit
        self._join("")
        self.ended = True
        self.quick = None
        next(self._steps, None)

    def rewind(self) -> None:
        self.forget()
        self._origin = 0

    def _join(self, text: str) -> None:
        self.text = "".join((self.text, *self._late, text)) if self._late else self.text + text
        self._late = []
        self._late_size = 0
        self._wakes = None
        self._past_space = False

    def in_tag(self) -> bool:
        """Whether the parser wants to see the next piece, even without a character in `noticed`."""
        return False

    # ------------------------------------------------ handing on

    def forget(self) -> None:
        """Let go of the text that is decided."""
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
        """`forget`, where most of the text is decided: so a long text is not copied for each call in it."""
        if 2 * self.pos > len(self.text):
            self.forget()

    def give(self, kind: TokenKind, end: int) -> None:
        """Hand on the text up to `end` as `kind`."""
        if end > self.pos:
            self._emit(kind, self._origin + self.pos, self.text[self.pos : end])
            self.pos = end

    def drop(self) -> None:
        """What was looked at is markup, and belongs to no token's text."""
        self.pos = self.at

    def begin_call(self, name: str, id: str | None = None) -> None:
        """A tool call begins here: its arguments follow as JSON text, in pieces."""
        self._limit()
        delta = ToolCallDelta(self.calls, id or self._make_id(), name)
        self.calls += 1
        self.drop()
        self._send(delta)

    def arguments(self, fragment: str, last: bool = False) -> None:
        """More of the call's arguments, as JSON text; `last`: they are complete."""
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

    # ------------------------------------------------ calls that may turn out to be none

    def keep(self) -> None:
        """Remember the text from here on, for `give_back`."""
        self._kept = []
        self._kept_from = self.pos

    def complete(self) -> None:
        """What was read up to `at` is a call, or belongs to one, whatever follows."""
        self.drop()
        if self._kept is not None:
            self.keep()

    def give_back(self, kind: TokenKind) -> None:
        """Hand on all the text since `keep`, up to `at`: what was read in it isn't a call."""
        self.drop()
        text = "".join((*(self._kept or ()), self.text[self._kept_from : self.pos]))
        self._kept = None
        if text.strip(" \t\r\n,;}])"):  # what may be left over behind a call that is complete is no text
            # Its own place is passed already. So it comes with the token that is read now.
            self._emit(kind, self._origin + self.pos - len(text), text)

    def message_calls(self, calls: Steps[None]) -> Steps[None]:
        """Read the calls that a message consists of.

        Where the text can't be read as calls, it is text: what belongs to a call that has begun is handed on, and all
        else is left to be read as a message.

        Args:
            calls: Reads the calls, with the marks around them.
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
        """The call is one: nothing needs to be given back."""
        self._kept = None

    def set_aside(self) -> None:
        """From here on hand on nothing, and remember the text, for `take_back`."""
        self.forget_most()
        self._aside = []
        self._aside_at = self.pos
        self._aside_from = self._origin + self.pos
        self._aside_calls = self.calls

    def aside_size(self) -> int:
        """How many characters are set aside, up to the end of the text."""
        return self._origin + len(self.text) - self._aside_from

    def take_back(self) -> None:
        """Begin again where `set_aside` was called."""
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
        """Hand on text as `kind` until one of `markers`; returns it, or "" at the end of the text.

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
            if not node and not self.text and not self.in_tag():
                self.quick = markers.first | self.noticed
                self.trims = trims
            self._past_space = trims and self.text.isspace()  # all of which is held, until something follows
            yield

    def drop_space(self) -> Steps[None]:
        """White space here belongs to the markup before it."""
        while True:
            self.skip()
            self.drop()
            if self.at < len(self.text) or self.ended:
                return
            self.forget()
            yield

    # ------------------------------------------------ looking ahead

    def skip(self) -> None:
        """Look past the white space that is there."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def more(self, wakes: frozenset[str] | None = None) -> Steps[None]:
        """Wait for more text.

        Args:
            wakes: Text without any of these characters changes nothing.

        Raises:
            NoCallError: The text ended, or too much is waiting already.
        """
        if self.ended or len(self.text) - self.pos > HOLD_LIMIT:
            raise NoCallError
        self._wakes = wakes
        yield

    def space(self) -> Steps[None]:
        """Look past white space, up to something else or the end of the text."""
        while True:
            self.skip()
            if self.at < len(self.text) or self.ended:
                return
            self._past_space = True
            yield

    def peek(self) -> Steps[str]:
        """The next character."""
        while self.at == len(self.text):
            yield from self.more()
        return self.text[self.at]

    def option(self, *choices: str) -> Steps[str]:
        """Look past the first of `choices` that is next, and return it; "" if none is."""
        longest = max(map(len, choices), default=0)
        while True:
            rest = self.text[self.at : self.at + longest]  # not a copy of all that waits
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
        """Look past the beginning of one of `marks`, if the output broke off inside it."""
        rest = len(self.text) - self.at
        if self.ended and any(rest < len(mark) and self.text.startswith(mark[:rest], self.at) for mark in marks):
            self.at = len(self.text)

    def expect(self, *choices: str) -> Steps[str]:
        """Look past the first of `choices` that is next, and return it. NoCallError if none is."""
        found = yield from self.option(*choices)
        if not found:
            raise NoCallError
        return found

    def word(self) -> Steps[str]:
        """A name as tools and parameters have them."""
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
        """A name: the text up to `mark`, and look past it. NoCallError if it is longer than any name."""
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
        """A value of a call that has begun: the text up to `mark`, and look past it. Places before it are not good.

        Raises:
            NoCallError: The text ended, or the value is longer than what is held.
        """
        parts: list[str] = []
        size = 0
        while True:
            end = self.text.find(mark, self.at)
            clear = end if end >= 0 else len(self.text) - beginning(self.text, mark, self.at)
            parts.append(self.text[self.at : clear])
            size += clear - self.at
            self.at = clear - max(size - HOLD_LIMIT, 0)  # the same place wherever the pieces end
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
        """Any JSON value, decoded."""
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
        """A JSON string, decoded."""
        if (yield from self.peek()) not in "\"'":
            raise NoCallError
        return str((yield from self.json_value()))

    def stream_value(self, value: ValueScanner, last: bool = False) -> Steps[None]:
        """Hand on the value that is next as arguments, as it comes; `last`: it is all of them."""
        while True:
            fragment, self.at = value.read(self.text, self.at, self.ended)
            self.arguments(fragment, last=last and value.done)
            if value.done:
                return
            if value.broken or self.ended:
                raise NoCallError
            self.forget()
            if len(self.text) > HOLD_LIMIT:  # no part of the value is read again
                self.at = HOLD_LIMIT
                raise NoCallError
            yield from self.more(value.wakes)

    def stream_object(self) -> Steps[None]:
        """Hand on the JSON object that is next as the call's arguments, as it comes."""
        yield from self.stream_value(ValueScanner(JSON), last=True)

    def stream_text(self, mark: str, lines: bool = False) -> Steps[None]:
        """Hand on the text up to `mark` as a JSON string, as it comes; `lines`: without a last line break."""
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
    """A tool call's id in OpenAI's manner."""
    return "call_" + os.urandom(12).hex()


def short_call_id() -> str:
    """A tool call's id as Mistral's templates demand it: nine letters and digits."""
    return os.urandom(5).hex()[:9]


def _nowhere(kind: TokenKind, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
    """The parser has not been fed yet."""
