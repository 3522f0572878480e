# SPDX-License-Identifier: Apache-2.0
"""The shortest way to complete a text that a grammar binds, in bytes and in tokens.

A second matcher runs on a vocabulary of single bytes and special tokens, where a step
costs microseconds. A search by length finds the fewest bytes after which the text may end,
and those bytes are cut into the fewest tokens of the model. The result is always a
completion that the grammar allows; that no other needs fewer tokens is certain only where
fewer bytes are fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

END = 256
"""The unit that ends a text. Units below are bytes, units above are special tokens."""

MAX_UNITS = 8192
"""Bytes of a completion that are searched for, at most."""

FIRST_STEPS = 20_000
"""Steps of the first search, which is made once for a text."""

TOKEN_STEPS = 1_500
"""Steps of all searches for one token. Searches run between two decoding steps of an engine, which every other
sequence waits for. If they are not enough, the known completion is followed."""

DIVERSE_STEPS = 3_000
"""Steps of a second search, where the first one finds nothing."""

_WIDTH = 24
_WIDE = 24
_MAX_PIECE = 64


class Units:
    """A model's tokens as units: bytes and special tokens."""

    def __init__(self, tokenizer: LLTokenizer, special: dict[str, int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.special = {name: END + 1 + index for index, name in enumerate(special)}
        """The unit of each special token, by its name."""
        self._token_of = {END + 1 + index: token for index, token in enumerate(special.values())}
        self._unit_of = {token: unit for unit, token in self._token_of.items()}
        self._names = {token: name.encode() for name, token in special.items()}
        ends = frozenset(tokenizer.eos_tokens)
        size = tokenizer.vocab_size
        self.pieces = [
            b"" if token in self._unit_of or token in ends else tokenizer.decode_bytes([token]) for token in range(size)
        ]
        """The bytes of each token that is neither special nor an end."""
        self._tokens: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            if piece and len(piece) <= _MAX_PIECE:
                self._tokens.setdefault(piece, token)
        self._longest = max(map(len, self._tokens), default=1)
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(self.special)))

    def piece(self, token: int) -> bytes:
        """The token's bytes; those of its name if it is special."""
        return self._names.get(token) or (self.pieces[token] if token < len(self.pieces) else b"")

    def of(self, token: int) -> list[int]:
        """The token's units."""
        unit = self._unit_of.get(token)
        return [unit] if unit is not None else list(self.pieces[token])

    def fewest(self, units: Sequence[int]) -> list[int] | None:
        """The fewest tokens that make up the units, or None if the model has no tokens for them."""
        best: list[tuple[int, int, int] | None] = [(0, 0, 0)]  # (how many tokens, the last one, where it begins)
        for end in range(1, len(units) + 1):
            found: tuple[int, int, int] | None = None
            if units[end - 1] > END:
                before = best[end - 1]
                found = before and (before[0] + 1, self._token_of[units[end - 1]], end - 1)
            else:
                for start in range(end - 1, max(end - self._longest, 0) - 1, -1):
                    if units[start] >= END:
                        break
                    before, token = best[start], self._tokens.get(bytes(units[start:end]))
                    if before is not None and token is not None and (found is None or before[0] + 1 < found[0]):
                        found = (before[0] + 1, token, start)
            best.append(found)
        tokens: list[int] = []
        at = len(units)
        while at:
            step = best[at]
            if step is None:
                return None
            tokens.append(step[1])
            at = step[2]
        return tokens[::-1]


class _Bytes:
    """A vocabulary of bytes and special tokens, as llguidance asks for one."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, special: dict[str, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"\xff<end>"]
        self.tokens += [b"\xff" + name.encode() for name in special]
        self.special_token_ids = list(range(END, len(self.tokens)))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


class Closing:
    """How a text can be completed from where it is. Used by one thread.

    `marks` are texts that end free text, such as reasoning.
    """

    def __init__(self, matcher: LLMatcher, units: Units, marks: Sequence[str] = ()) -> None:
        import numpy as np

        self._matcher = matcher
        self._units = units
        self._marks = [mark.encode() for mark in marks if mark]
        self._bits = np.zeros((units.tokenizer.vocab_size + 31) // 32, np.int32)
        self._choices: dict[tuple[bytes, bool], list[int]] = {}
        self._tried: tuple[int, LLMatcher, list[int], list[int]] | None = None
        self.rest: list[int] = []
        """The units of a completion."""
        self._steps = FIRST_STEPS
        self.tokens: list[int] | None = None
        """The same as tokens; None if no completion was found."""

    def begin(self, said: Sequence[int]) -> None:
        """Find a completion of the text that consists of these tokens so far."""
        for token in said:
            self._matcher.consume_tokens(self._units.of(token))
        self.rest, self.tokens = self._find(self._matcher)
        self._steps = TOKEN_STEPS

    def fits(self, token: int, most: int) -> bool:
        """Whether at most `most` tokens behind `token` can complete the text."""
        units = self._units.of(token)
        trial = self._matcher.deep_copy()
        if not trial.consume_tokens(units):
            return True  # to say what is wrong with it is for the model's own matcher
        rest = self.rest[len(units) :] if self.rest[: len(units)] == units else self.rest
        tokens = self._units.fewest(rest) if _completes(trial, rest) else None
        if tokens is None or len(tokens) > most:
            rest, tokens = self._find(trial)
        if tokens is None or len(tokens) > most:
            return False
        self._tried = (token, trial, rest, tokens)
        return True

    def accept(self, token: int) -> None:
        """Go on with a token that fits."""
        if self._tried is not None and self._tried[0] == token:
            _, self._matcher, self.rest, self.tokens = self._tried
        self._tried = None
        self._steps = TOKEN_STEPS

    # ------------------------------------------------ the search

    def _find(self, matcher: LLMatcher) -> tuple[list[int], list[int] | None]:
        found = self._search(matcher, diverse=False)
        if found[1] is None and not self._marks:
            # A pattern may ask for a digit, or a letter, that is yet to come. States in which one is missing look
            # like those in which it is there: the same units may come next. So the kinds of units count too.
            before, self._steps = self._steps, DIVERSE_STEPS
            found = self._search(matcher, diverse=True)
            self._steps = before
        return found

    def _search(self, matcher: LLMatcher, *, diverse: bool) -> tuple[list[int], list[int] | None]:
        layer: list[tuple[LLMatcher, list[int], int]] = [(matcher.deep_copy(), [], 0)]
        layer += self._past_marks(matcher)
        for _ in range(MAX_UNITS):
            ended = [(path, self._units.fewest(path)) for state, path, _ in layer if state.is_accepting()]
            whole = [(path, tokens) for path, tokens in ended if tokens is not None]
            if whole:
                return min(whole, key=lambda one: len(one[1]))
            if not layer or self._steps <= 0:
                break
            following: dict[tuple[bytes, int], tuple[LLMatcher, list[int], int]] = {}
            for state, path, kinds in layer:
                for unit in self._next(state, diverse):
                    self._steps -= 1
                    after = state.deep_copy()
                    if not after.consume_token(unit):
                        continue
                    seen = kinds | _kind(unit) if diverse else 0
                    following.setdefault((self._mask(after), seen), (after, [*path, unit], seen))
                    if len(following) >= _WIDTH and not diverse:
                        break
            layer = list(following.values())
        return [], None

    def _past_marks(self, matcher: LLMatcher) -> list[tuple[LLMatcher, list[int], int]]:
        before = self._mask(matcher)
        found = []
        for mark in self._marks:
            state = matcher.deep_copy()
            if state.try_consume_tokens(list(mark)) == len(mark) and self._mask(state) != before:
                found.append((state, list(mark), 0))
        return found

    def _mask(self, state: LLMatcher) -> bytes:
        """What may come next, and whether nothing need."""
        state.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return bytes([state.is_accepting()]) + self._bits.tobytes()

    def _next(self, state: LLMatcher, diverse: bool = False) -> list[int]:
        """Units that stand for all that may come next: of those with the same consequences the first one."""
        import numpy as np

        mask = self._mask(state)
        known = self._choices.get((mask, diverse))
        if known is not None:
            return known
        allowed = np.flatnonzero(np.unpackbits(self._bits.view("u1"), bitorder="little")).tolist()
        special = [unit for unit in allowed if unit > END]
        plain = [unit for unit in allowed if unit < 0x80] or [unit for unit in allowed if unit < END]
        if len(plain) <= _WIDE:
            return special + _by_closing(plain)
        if ord('"') in plain:
            plain = [ord('"')]  # the end of a string, which costs least of all that may stand in it
        else:
            apart: dict[tuple[bytes, int], int] = {}
            for unit in _by_closing(plain):
                after = state.deep_copy()
                if after.consume_token(unit):
                    apart.setdefault((self._mask(after), _kind(unit) if diverse else 0), unit)
            plain = list(apart.values())
        self._choices[mask, diverse] = special + plain
        return self._choices[mask, diverse]


def _kind(unit: int) -> int:
    """A bit for the kind of character that a unit is, as patterns tell them apart."""
    if unit >= 0x80:
        return 1
    char = chr(unit)
    return 2 if char.isdigit() else 4 if char.isupper() else 8 if char.islower() else 16


_FIRST = {byte: place for place, byte in enumerate(b'"}],:0')}


def _by_closing(units: list[int]) -> list[int]:
    return sorted(units, key=lambda unit: _FIRST.get(unit, len(_FIRST)))


def _completes(matcher: LLMatcher, units: Sequence[int]) -> bool:
    state = matcher.deep_copy()
    return state.try_consume_tokens(list(units)) == len(units) and state.is_accepting()
