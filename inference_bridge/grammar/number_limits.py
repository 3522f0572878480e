# SPDX-License-Identifier: Apache-2.0
"""Limits the length of numbers in generated JSON.

A grammar for a JSON Schema allows any number of digits, and exponents that Python parses as infinity. This module reads
the text as it is generated, and determines which tokens would make a number too long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

MAX_DIGITS = 20
"""Maximum number of digits before the point, and after it."""

MAX_EXPONENT_DIGITS = 2

_NUMBER = frozenset(b"0123456789+-.eE")
_RUN = re.compile(rb"[-+.eE0-9]*[0-9][-+.eE0-9]*")
_QUOTE, _BACKSLASH = b'"\\'


class NumberLimits:
    """Determines which tokens of a vocabulary would make a number too long."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._words = (len(pieces) + 31) // 32
        found = ((token, _RUN.match(piece)) for token, piece in enumerate(pieces))
        self._runs = [(token, match.group()) for token, match in found if match is not None]
        self._blocked: dict[tuple[int, int, int], Any] = {}

    def blocked(self, state: tuple[int, int, int]) -> Any:
        """Return the tokens that would make a number in this state too long. None: no token would.

        Args:
            state: The number's digits so far, as `_advance` returns them.

        Returns:
            One bit for each token, in 32-bit words: 1 if the token must not follow.
        """
        import numpy as np

        if state not in self._blocked:
            bits = np.zeros(self._words * 32, np.uint8)
            bits[[token for token, run in self._runs if _too_long(state, _advance(state, run))]] = 1
            self._blocked[state] = np.packbits(bits, bitorder="little").view(np.int32) if bits.any() else None
        return self._blocked[state]


def _advance(state: tuple[int, int, int], run: bytes) -> tuple[int, int, int]:
    """Return the state after `run`: the digits before the point, after it, and in the exponent. -1: not begun."""
    whole, fraction, exponent = state
    for byte in run:
        if byte in b"eE":
            exponent = max(exponent, 0)
        elif byte == ord("."):
            fraction = max(fraction, 0)
        elif byte in b"0123456789":
            if exponent >= 0:
                exponent += 1
            elif fraction >= 0:
                fraction += 1
            else:
                whole += 1
    return whole, fraction, exponent


def _too_long(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    """Return whether a part of the number has more digits than allowed, and more than before."""
    limits = (MAX_DIGITS, MAX_DIGITS, MAX_EXPONENT_DIGITS)
    return any(new > max(old, limit) for old, new, limit in zip(before, after, limits, strict=True))


_START = (0, -1, -1)
"""The state before a number."""


class NumberText:
    """Tracks whether a JSON text is inside a number.

    Args:
        limits: The limits for the model's vocabulary.
        piece: Returns the bytes of a token.
        marks: Texts after which the JSON begins, such as the end of reasoning.
    """

    def __init__(self, limits: NumberLimits, piece: Callable[[int], bytes], marks: Sequence[str] = ()) -> None:
        self._limits = limits
        self._piece = piece
        self._marks = [mark.encode() for mark in marks if mark]
        self._tail = b""
        self._in_string = self._escaped = False
        self._state = _START
        self._in_number = False

    def accept(self, token: int) -> None:
        """Append a token to the text."""
        piece = self._piece(token)
        if self._marks:
            tail = self._tail + piece
            for mark in self._marks:
                at = tail.rfind(mark)
                if at >= 0 and at + len(mark) > len(self._tail):
                    piece = tail[at + len(mark) :]
                    self._in_string = self._escaped = self._in_number = False
            self._tail = tail[-64:]
        for byte in piece:
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == _BACKSLASH:
                    self._escaped = True
                elif byte == _QUOTE:
                    self._in_string = False
            elif byte in _NUMBER:
                self._state = _advance(self._state if self._in_number else _START, bytes((byte,)))
                self._in_number = True
            else:
                self._in_number = False
                self._in_string = byte == _QUOTE

    def blocked(self) -> Any:
        """Return the tokens that must not come next, in the form of `NumberLimits.blocked`."""
        if self._in_string:
            return None
        return self._limits.blocked(self._state if self._in_number else _START)
