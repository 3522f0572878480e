# SPDX-License-Identifier: Apache-2.0
"""A model's tokens as units: single bytes and special tokens.

A matcher over units takes microseconds for a step. The search finds a text in units, which is then split into the
fewest possible tokens of the model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

END = 256
"""The unit that ends a text. Units below are bytes, units above are special tokens."""

_MAX_PIECE = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """The smallest number of tokens for a text in units, and where a token that is not complete yet may begin."""

    open: tuple[tuple[int, int], ...] = ((0, 0),)
    """Each position where an incomplete last token may begin, with the number of tokens before it."""
    whole: int | None = 0
    """Smallest number of tokens that form the text. None: no sequence of whole tokens forms it."""

    @property
    def least(self) -> int:
        """Smallest number of tokens that the text or any continuation of it can take."""
        counts = [before + 1 for _, before in self.open]
        return min(counts if self.whole is None else [*counts, self.whole])


class Units:
    """A model's tokens as units: bytes and special tokens."""

    def __init__(self, tokenizer: LLTokenizer, special: dict[str, int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.special = {name: END + 1 + index for index, name in enumerate(special)}
        """The unit of each special token, by the token's name."""
        self._token_of = {END + 1 + index: token for index, token in enumerate(special.values())}
        self._unit_of = {token: unit for unit, token in self._token_of.items()}
        self._names = {token: name.encode() for name, token in special.items()}
        ends = frozenset(tokenizer.eos_tokens)
        size = tokenizer.vocab_size
        self.pieces = [
            b"" if token in self._unit_of or token in ends else tokenizer.decode_bytes([token]) for token in range(size)
        ]
        """The bytes of each token that is neither special nor an end token."""
        self._tokens: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            if piece and len(piece) <= _MAX_PIECE:
                self._tokens.setdefault(piece, token)
        self._sorted = sorted(self._tokens)
        self.bytes = frozenset(byte for piece in self._tokens for byte in piece)
        """All bytes that occur in tokens."""
        self.before_quote = frozenset(piece[0] for piece in self._tokens if len(piece) == 2 and piece[1] == ord('"'))
        """The bytes that form a token together with a quotation mark after them."""
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(self.special)))

    def piece(self, token: int) -> bytes:
        """Return the token's bytes. For a special token, they are the bytes of its name."""
        return self._names.get(token) or (self.pieces[token] if token < len(self.pieces) else b"")

    def of(self, token: int) -> list[int]:
        """Return the token's units."""
        unit = self._unit_of.get(token)
        return [unit] if unit is not None else list(self.pieces[token])

    def extend(self, cut: Cut, units: Sequence[int], unit: int) -> Cut | None:
        """Return the cut of `units` plus `unit`, given the cut of `units`; None if no tokens form that text."""
        if unit > END:
            return None if cut.whole is None else Cut(((len(units) + 1, cut.whole + 1),), cut.whole + 1)
        whole: int | None = None
        still: list[tuple[int, int]] = []
        for start, before in cut.open:
            piece = bytes((*units[start:], unit))
            if piece in self._tokens and (whole is None or before + 1 < whole):
                whole = before + 1
            at = bisect_left(self._sorted, piece)
            at += at < len(self._sorted) and self._sorted[at] == piece
            if at < len(self._sorted) and self._sorted[at].startswith(piece):
                still.append((start, before))
        if whole is not None:
            still = [one for one in still if one[1] <= whole] + [(len(units) + 1, whole)]
        return Cut(tuple(still), whole) if still else None

    def fewest(self, units: Sequence[int]) -> list[int] | None:
        """Return the fewest tokens that form the units; None if the model has no tokens for them."""
        cut: Cut | None = Cut()
        # The last token of the text up to each unit: where it begins, and its id.
        last_tokens: list[tuple[int, int] | None] = []
        before: list[int] = []
        for end, unit in enumerate(units):
            after = self.extend(cut, before, unit) if cut is not None else None
            if cut is None or after is None:
                return None
            last_tokens.append(self._last(cut, units, end))
            before.append(unit)
            cut = after
        if cut is None or cut.whole is None:
            return None
        tokens: list[int] = []
        at = len(units)
        while at:
            last = last_tokens[at - 1]
            if last is None:
                return None
            tokens.append(last[1])
            at = last[0]
        return tokens[::-1]

    def _last(self, cut: Cut, units: Sequence[int], end: int) -> tuple[int, int] | None:
        """Return the last of the fewest tokens that form the units up to `end`: where it begins, and its id.

        None: no sequence of whole tokens ends there.
        """
        if units[end] > END:
            return end, self._token_of[units[end]]
        found = [
            (before, start, token)
            for start, before in cut.open
            if (token := self._tokens.get(bytes(units[start : end + 1]))) is not None
        ]
        return min(found)[1:] if found else None


class _Bytes:
    """A vocabulary of bytes and special tokens, with the attributes that llguidance's TokenizerWrapper reads."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, special: dict[str, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"\xff<end>"]
        self.tokens += [b"\xff" + name.encode() for name in special]
        self.special_token_ids = list(range(END, len(self.tokens)))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())
