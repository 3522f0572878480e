# SPDX-License-Identifier: Apache-2.0
"""The shortest completion of a constrained text, in tokens of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .closing_search import Search
from .units import Units

if TYPE_CHECKING:
    from llguidance import LLMatcher

FIRST_STEPS = 20_000
"""Maximum number of steps of the first search for a text. A step is one query to a matcher: a few microseconds."""

TOKEN_STEPS = 1_500
"""Maximum number of steps of all searches for one token. They run between two decoding steps of the engine, so all
other sequences wait for them. If the steps run out, the completion that is already known is used."""


class Closing:
    """Tracks the shortest completion of one constrained text. Not thread-safe.

    Args:
        matcher: A matcher over units, at the beginning of the text.
        units: The model's tokens as units.
        grammar: The source of the matcher. Its patterns show which characters a text may have to contain.
        marks: Texts that end unconstrained text, such as reasoning.
        is_json: Whether the grammar describes JSON.
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
        self._failures = 0
        self._tokens_to_wait = 0
        """Tokens to accept before the next search, after searches that found no completion."""
        self.tokens: list[int] | None = None
        """The fewest tokens found that complete the text; None if no completion was found."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Find a completion of the text, which consists of `tokens` so far."""
        for token in tokens:
            self._matcher.consume_tokens(self._units.of(token))
        self._rest, self.tokens = self._find(self._matcher, 0)
        self._steps = TOKEN_STEPS

    def fits(self, token: int, most: int) -> bool:
        """Return whether at most `most` tokens after `token` can complete the text."""
        units = self._units.of(token)
        trial = self._matcher.deep_copy()
        if not trial.consume_tokens(units):
            return True  # the matcher over tokens reports the error
        if self.tokens and self.tokens[0] == token:  # the known completion begins with this token
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
        """Append a token: one that `fits` returned True for last, or any token if no completion is known."""
        if self._tried is not None and self._tried[0] == token:
            _, self._matcher, self._rest, self.tokens = self._tried
        elif self.tokens is None:
            self._matcher.consume_tokens(self._units.of(token))
            self._try_again()
        self._tried = None
        self._steps = TOKEN_STEPS

    def _try_again(self) -> None:
        """Search for a completion of the text so far, unless a search failed shortly before.

        After each failure, twice as many tokens pass before the next search, up to 256.
        """
        if self._tokens_to_wait > 0:
            self._tokens_to_wait -= 1
            return
        self._steps = TOKEN_STEPS
        self._rest, self.tokens = self._find(self._matcher, 0)
        if self.tokens is None:
            self._failures += 1
            self._tokens_to_wait = 1 << min(self._failures, 8)

    def _find(self, matcher: LLMatcher, enough: int) -> tuple[list[int], list[int] | None]:
        """Search for a completion. Return its units and its tokens, or ([], None). See `Search.find`."""
        found, self._steps = self._search.find(matcher, enough, self._steps)
        return ([], None) if found is None else (found, self._units.fewest(found))
