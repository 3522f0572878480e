# SPDX-License-Identifier: Apache-2.0
"""Processes the text of a server's answer, in every protocol: completes characters, and removes stop strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....chat.assembler import TextAssembler
from ....types import Token, TopLogprob

_SURROGATE = re.compile("[\ud800-\udfff]").search


class Text:
    """Makes the Tokens of visible text.

    The stop strings are also sent to the server, but some servers return part of a stop string, or do not find one that
    crosses the border of two pieces. A server that escapes JSON by UTF-16 units may cut a character in two.
    """

    def __init__(self, stops: Sequence[str] = (), assembler: TextAssembler | None = None) -> None:
        """`assembler`: replaces the assembler that only searches for `stops`."""
        self._stops = tuple(stops)
        self._assembler = assembler or (TextAssembler(self._stops) if stops else None)
        self._half = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found. The text after it must not be shown."""
        return self._assembler is not None and self._assembler.stopped

    def push(
        self, text: str, id: int | None = None, logprob: float | None = None, top: tuple[TopLogprob, ...] = ()
    ) -> Sequence[Token]:
        if self._half or not text.isascii():
            text = self._whole(text)
        if self._assembler is None:
            return (Token(text, id, logprob, top),)
        return self._assembler.push(text.encode(), id, logprob, top)

    def finish(self) -> Sequence[Token]:
        """Return the Tokens that were held back. Then a new text may be pushed."""
        half, self._half = self._half, ""
        if self._assembler is None:
            return (Token("\ufffd"),) if half else ()
        tokens = list(self._assembler.push("\ufffd".encode())) if half else []
        tokens += self._assembler.finish()
        if not self._assembler.stopped:
            self._assembler = TextAssembler(self._stops)
        return tokens

    def _whole(self, text: str) -> str:
        text, self._half = self._half + text, ""
        if _SURROGATE(text) is None:
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return whole(text)


def whole(text: str) -> str:
    """Return `text` with pairs of surrogates joined, and lone surrogates replaced by U+FFFD."""
    if text.isascii() or _SURROGATE(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
