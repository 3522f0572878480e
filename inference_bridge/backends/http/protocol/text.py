# SPDX-License-Identifier: Apache-2.0
"""What is done with the text of a server's answer, whatever its protocol: whole characters, and no stop strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....chat.assembler import TextAssembler
from ....types import Token, TopLogprob

_SURROGATE = re.compile("[\ud800-\udfff]").search


class Text:
    """Makes the Tokens of visible text.

    Servers are told the stop strings too, but some let part of one through, or see none that
    crosses the border of two pieces. And one that escapes JSON by UTF-16 units may cut a
    character in two.
    """

    def __init__(self, stops: Sequence[str] = (), assembler: TextAssembler | None = None) -> None:
        """`assembler`: another than the one that only looks for `stops`."""
        self._stops = tuple(stops)
        self._assembler = assembler or (TextAssembler(self._stops) if stops else None)
        self._half = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: nothing is to be seen after it."""
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
        """What was held back. More may be pushed afterwards, as a new text."""
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
    """`text` with its UTF-16 halves put together, and those without another half replaced."""
    if text.isascii() or _SURROGATE(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
