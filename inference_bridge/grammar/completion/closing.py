# SPDX-License-Identifier: Apache-2.0
"""The shortest way to complete a text that a grammar binds, in tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .closing_search import Search
from .units import Units

if TYPE_CHECKING:
    from llguidance import LLMatcher

FIRST_STEPS = 20_000
"""Steps of the first search, which is made once for a text. A step is one question to a matcher, some microseconds."""

TOKEN_STEPS = 1_500
"""Steps of all searches for one token. Searches run between two decoding steps of an engine, which every other
sequence waits for. If they are not enough, the known completion is followed."""


class Closing:
    """How a text can be completed from where it is. Used by one thread.

    Args:
        matcher: On a vocabulary of units, at the beginning of the text.
        units: The model's tokens.
        grammar: What the matcher was made from: its patterns say what a text may have to contain.
        marks: Texts that end free text, such as reasoning.
        is_json: The grammar is one of JSON.
    """

    def __init__(
        self, matcher: LLMatcher, units: Units, grammar: str = "", marks: Sequence[str] = (), *, is_json: bool = False
    ) -> None:
        self._matcher = matcher
        self._units = units
        self._search = Search(units, grammar, marks, is_json=is_json)
        self._tried: tuple[int, LLMatcher, list[int], list[int]] | None = None
        self._rest: list[int] = []
        self._steps = FIRST_STEPS
        self._waits = self._unlucky = 0
        self.tokens: list[int] | None = None
        """The fewest tokens found that complete the text; None if no completion was found."""

    def begin(self, said: Sequence[int]) -> None:
        """Find a completion of the text that consists of these tokens so far."""
        for token in said:
            self._matcher.consume_tokens(self._units.of(token))
        self._rest, self.tokens = self._find(self._matcher, 0)
        self._steps = TOKEN_STEPS

    def fits(self, token: int, most: int) -> bool:
        """Whether at most `most` tokens behind `token` can complete the text."""
        units = self._units.of(token)
        trial = self._matcher.deep_copy()
        if not trial.consume_tokens(units):
            return True  # to say what is wrong with it is for the model's own matcher
        if self.tokens and self.tokens[0] == token:  # the way out, which is never closed
            rest: list[int] = self._rest[len(units) :]
            tokens: list[int] | None = self.tokens[1:]
        else:
            rest = self._rest[len(units) :] if self._rest[: len(units)] == units else self._rest
            tokens = self._units.fewest(rest) if self._search.completes(trial, rest) else None
        if tokens is None or len(tokens) > most:
            rest, tokens = self._find(trial, most)
        if tokens is None or len(tokens) > most:
            return False
        self._tried = (token, trial, rest, tokens)
        return True

    def accept(self, token: int) -> None:
        """Go on with a token that fits, or with any where no completion is known."""
        if self._tried is not None and self._tried[0] == token:
            _, self._matcher, self._rest, self.tokens = self._tried
        elif self.tokens is None:
            self._matcher.consume_tokens(self._units.of(token))
            self._try_again()
        self._tried = None
        self._steps = TOKEN_STEPS

    def _try_again(self) -> None:
        """Look for a completion from here, ever less often if none is found."""
        if self._waits > 0:
            self._waits -= 1
            return
        self._steps = TOKEN_STEPS
        self._rest, self.tokens = self._find(self._matcher, 0)
        if self.tokens is None:
            self._unlucky += 1
            self._waits = 1 << min(self._unlucky, 8)

    def _find(self, matcher: LLMatcher, enough: int) -> tuple[list[int], list[int] | None]:
        found, self._steps = self._search.find(matcher, enough, self._steps)
        return ([], None) if found is None else (found, self._units.fewest(found))
