# SPDX-License-Identifier: Apache-2.0
"""Turns the bytes of each generated token into the `Token`s that a caller gets.

The Tokens follow three rules: the text of a Token consists of whole Unicode characters, it contains no
part of a stop string, and each model token becomes one Token. So a token is held back while its text
may still be the beginning of a character, a stop string or markup.

Without a parser, `TextAssembler` is the output of `generate`: everything is text. With a `Parser`
(see `markup`) it is the output of `chat`: the parser decides which text is visible, which is
reasoning and which is a tool call, and only the visible text is searched for stop strings.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

from ..types import Token, TokenKind, ToolCallDelta, TopLogprob

Phase: TypeAlias = Literal["opening", "reasoning", "answer", "call"]


class Output(Protocol):
    """Turns the model tokens of one operation into Tokens; the scheduler passes it one model token after the other.

    `push` takes one model token and returns the Tokens that can be yielded now: none, one or several.
    `finish` returns the Tokens that were held back; call it once, unless a stop string ended the generation.
    `stopped` is True after a stop string was found; no Token follows.
    `phase` is the part of the output that was reached: "opening" (before the answer, where a reasoning tag or a
    header may follow), "reasoning", "answer", or "call" (in a tool call).
    """

    @property
    def stopped(self) -> bool: ...
    @property
    def phase(self) -> Phase: ...
    def push(
        self,
        piece: bytes,
        id: int | None = None,
        logprob: float | None = None,
        top_logprobs: tuple[TopLogprob, ...] = (),
    ) -> list[Token]: ...
    def finish(self) -> list[Token]: ...


class Emit(Protocol):
    """Receives the text that a parser has classified, in order.

    `offset` is the place of the first character for text and reasoning; for a piece of a tool
    call it is the end of the text from which the piece was read.
    """

    def __call__(
        self, kind: TokenKind, offset: int, text: str = "", tool_call: ToolCallDelta | None = None
    ) -> None: ...


class Parser(Protocol):
    """Classifies a model's text as it arrives. Offsets count characters since the last `rewind`.

    `kind`     the kind of text at the point reached
    `phase`    the same as in `Output`
    `decided`  the number of classified characters; those after them may still become markup
    `quick`    a set of characters: a piece without them is all of kind `kind` and need not be fed; None: feed all
    `trims`    whether a piece that ends in white space must be fed, even if it has no character of `quick`
    """

    kind: TokenKind
    phase: Phase
    quick: frozenset[str] | None
    trims: bool

    @property
    def decided(self) -> int: ...
    def feed(self, text: str, emit: Emit) -> None: ...
    def finish(self, emit: Emit) -> None: ...
    def rewind(self) -> None: ...


class Matcher:
    """Finds any of several strings in a text that arrives in pieces, and reads each character once.

    This is the automaton of Aho and Corasick, "Efficient string matching" (CACM 18, 1975).
    A node represents the longest suffix of the text so far that is a prefix of one of the strings;
    `depth[node]` is the length of that prefix, and node 0 is the empty prefix. `first` and `ends` are the
    first and the last characters of the strings.
    """

    __slots__ = ("_fail", "_found", "_next", "_search", "depth", "ends", "first")

    def __init__(self, strings: Iterable[str]) -> None:
        strings = tuple(strings)
        self.ends = frozenset(string[-1] for string in strings if string)
        self._next: list[dict[str, int]] = [{}]
        self._found = [""]
        self._fail = [0]
        self.depth = [0]
        for string in strings:
            node = 0
            for char in string:
                after = self._next[node].get(char)
                if after is None:
                    after = self._next[node][char] = len(self._next)
                    self._next.append({})
                    self._found.append("")
                    self._fail.append(0)
                    self.depth.append(self.depth[node] + 1)
                node = after
            self._found[node] = string
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for char, after in self._next[node].items():
                self._fail[after] = self._step(self._fail[node], char)
                self._found[after] = self._found[after] or self._found[self._fail[after]]
                queue.append(after)
        self.first = frozenset(self._next[0])
        self._search = re.compile("[" + "".join(map(re.escape, self.first)) + "]" if self.first else "(?!)").search

    def _step(self, node: int, char: str) -> int:
        while node and char not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(char, 0)

    def scan(self, node: int, text: str, at: int = 0) -> tuple[int, int, str]:
        """Search the text from `at` for the first string.

        Args:
            node: The node that the last call returned; 0 at the beginning.
            text: The text.
            at: The offset in `text` at which to begin.

        Returns:
            The node reached, the offset up to which the text was read, and the string that ends there; "" if the text
            ended first. If several strings end at the same offset, it is the longest of them.
        """
        length = len(text)
        while at < length:
            if not node:
                near = self._search(text, at)
                if near is None:
                    return 0, length, ""
                at = near.start()
            node = self._step(node, text[at])
            at += 1
            if self._found[node]:
                return node, at, self._found[node]
        return node, length, ""


@lru_cache(maxsize=64)
def matcher(strings: tuple[str, ...]) -> Matcher:
    """Return a cached Matcher: many requests have the same stop strings, and a format always has the same markup."""
    return Matcher(strings)


_NONE: frozenset[str] = frozenset()


class _Held:
    """A model token that has not been yielded yet. Its text ends at offset `end`."""

    __slots__ = ("end", "id", "logprob", "top_logprobs")

    def __init__(self, end: int, id: int | None, logprob: float | None, top_logprobs: tuple[TopLogprob, ...]) -> None:
        self.end = end
        self.id = id
        self.logprob = logprob
        self.top_logprobs = top_logprobs


class _Unit:
    """Classified output that no Token contains yet: text that begins at offset `start`, or a piece of a tool call.

    Earlier Tokens contain `text[:taken]`. That part is not removed, because that would copy a long text for each of
    its tokens.
    """

    __slots__ = ("kind", "start", "taken", "text", "tool_call")

    def __init__(self, kind: TokenKind, start: int, text: str, tool_call: ToolCallDelta | None) -> None:
        self.kind = kind
        self.start = start
        self.text = text
        self.taken = 0
        self.tool_call = tool_call

    @property
    def left(self) -> int:
        return len(self.text) - self.taken

    def joins(self, other: _Unit) -> bool:
        """Return whether one Token can contain both."""
        if self.tool_call is None or other.tool_call is None:
            return self.kind == other.kind
        return self.tool_call.index == other.tool_call.index


class TextAssembler:
    """Makes Tokens from model tokens; see `Output` for how it is used.

    A piece is the token's bytes; special tokens are rendered as text if a parser needs to see them.
    The joined texts of the Tokens are the pieces decoded as UTF-8, with U+FFFD for invalid bytes, up to the
    start of the stop string whose end came first (the longest, if several end there).

    Each model token becomes one Token, whose text may be empty: the bytes of an
    incomplete character belong to the token that completes it, markup is dropped, and text
    after markup in the same token belongs to the next token. If no token follows, an additional
    Token without an id has that text. A Token with neither text nor a piece of a call is of kind
    "reasoning" inside reasoning and "text" elsewhere.

    Args:
        stops: The stop strings.
        parser: Separates reasoning and tool calls from text; None: everything is text.
    """

    def __init__(self, stops: Sequence[str] = (), parser: Parser | None = None) -> None:
        self.stopped = False
        self._parser = parser
        self._stops = matcher(tuple(stops)) if stops else None
        self._stop_node = 0
        self._bytes = b""
        self._received = 0
        self._visible = 0
        self._held: deque[_Held] = deque()
        self._units: deque[_Unit] = deque()
        self._quick: frozenset[str] | None = None
        self._trims = False
        self._kind: TokenKind = "text"
        if parser is not None:
            parser.feed("", self._emit)
        self._restart()

    @property
    def phase(self) -> Phase:
        """The part of the output that was reached.

        A grammar for the answer applies in "answer"; in "opening" reasoning may still follow.
        """
        return "answer" if self._parser is None else self._parser.phase

    def push(
        self,
        piece: bytes,
        id: int | None = None,
        logprob: float | None = None,
        top_logprobs: tuple[TopLogprob, ...] = (),
    ) -> list[Token]:
        """Process one model token, and return the Tokens that can be yielded now.

        Args:
            piece: The token's bytes.
            id: The token's id.
            logprob: The logarithm of the token's probability.
            top_logprobs: The most probable tokens in its place.
        """
        if self._quick is not None:
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                pass
            else:
                if self._quick.isdisjoint(text) and not (self._trims and text[-1:].isspace()):
                    return [Token(text, id, logprob, top_logprobs, self._kind)]
        if self.stopped:
            return []
        data = self._bytes + piece
        text, used = utf_8_decode(data, "replace", False)
        self._bytes = data[used:]
        self._held.append(_Held(self._received + len(text), id, logprob, top_logprobs))
        self._classify(text)
        return self._release()

    def finish(self) -> list[Token]:
        """Return the Tokens that were held back. Call it once, after the last model token."""
        if self.stopped:
            return []
        text = utf_8_decode(self._bytes, "replace", True)[0]
        self._bytes = b""
        if self._held:
            self._held[-1].end += len(text)
        self._classify(text)
        if self._parser is not None:
            self._parser.finish(self._emit)
        return self._release(final=True)

    def _classify(self, text: str) -> None:
        start = self._received
        self._received += len(text)
        if self._parser is not None:
            self._parser.feed(text, self._emit)
        elif text:
            self._emit("text", start, text)

    def _emit(self, kind: TokenKind, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
        if self.stopped:
            return
        stop = ""
        if kind == "text" and self._stops is not None:
            self._stop_node, end, stop = self._stops.scan(self._stop_node, text)
            text = text[:end]
        self._units.append(_Unit(kind, offset, text, tool_call))
        if kind == "text":
            self._visible += len(text)
        if stop:
            self.stopped = True
            self._cut(len(stop))

    def _cut(self, count: int) -> None:
        """Remove the last `count` visible characters. None of them has been yielded, because they were held back."""
        self._stop_node = 0
        for unit in reversed(self._units):
            if unit.kind == "text":
                kept = max(unit.left - count, 0)
                count -= unit.left - kept
                unit.text = unit.text[: unit.taken + kept]

    def _release(self, final: bool = False) -> list[Token]:
        """Remove from the queue the Tokens whose text can't change any more, and return them."""
        out = []
        final = final or self.stopped
        hold = self._stops.depth[self._stop_node] if self._stops is not None and not final else 0
        decided = self._received if self._parser is None else self._parser.decided
        while self._held:
            held = self._held[0]
            if not final and (held.end > decided or (self._bytes and len(self._held) == 1)):
                break
            units = self._within(held.end)
            if hold and units and units[0].kind == "text":
                count = sum(min(unit.left, held.end - unit.start) for unit in units)
                if count > self._visible - hold:
                    break
            self._held.popleft()
            out.append(self._token(held, units))
        if final:
            while self._units:
                without_id = _Held(self._received, None, None, ())
                out.append(self._token(without_id, self._within(without_id.end)))
        self._restart()
        return out

    def _within(self, end: int) -> list[_Unit]:
        """Return the units of the token whose text ends at `end`."""
        units: list[_Unit] = []
        for unit in self._units:
            reached = unit.start <= end if unit.tool_call is not None else unit.start < end
            if not reached or (units and not units[0].joins(unit)):
                break
            units.append(unit)
        return units

    def _token(self, held: _Held, units: list[_Unit]) -> Token:
        kind = units[0].kind if units else self._kind_without_units()
        texts = []
        for unit in units:
            count = held.end - unit.start
            texts.append(unit.text[unit.taken : unit.taken + count])
            if unit.tool_call is None and count < unit.left:
                unit.taken += count
                unit.start = held.end
            else:
                self._units.popleft()
        text = "".join(texts)
        if kind == "text":
            self._visible -= len(text)
        delta = _joined([unit.tool_call for unit in units if unit.tool_call is not None])
        return Token(text, held.id, held.logprob, held.top_logprobs, kind, delta)

    def _kind_without_units(self) -> TokenKind:
        reasoning = self._parser is not None and self._parser.kind == "reasoning"
        return "reasoning" if reasoning else "text"

    def _restart(self) -> None:
        """If nothing is held back, restart the offsets at 0, and set the characters that a piece must be fed for."""
        self._quick = None
        if self._held or self._units or self._bytes or self.stopped:
            return
        quick = _NONE
        if self._parser is not None:
            if self._parser.quick is None:
                return
            self._parser.rewind()
            quick = self._parser.quick
            self._kind = self._parser.kind
            self._trims = self._parser.trims
        self._received = 0
        self._quick = quick if self._stops is None or self._kind != "text" else quick | self._stops.first


def _joined(deltas: list[ToolCallDelta]) -> ToolCallDelta | None:
    if len(deltas) <= 1:
        return deltas[0] if deltas else None
    arguments = "".join(delta.arguments for delta in deltas)
    return ToolCallDelta(deltas[0].index, deltas[0].id, deltas[0].name, arguments)
