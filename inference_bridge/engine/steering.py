# SPDX-License-Identifier: Apache-2.0
"""`logit_bias` and `min_tokens`: changes to the logits before a token is chosen, with or without a grammar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .scheduler import Constraint


class EndTokens:
    """The tokens that end a model's text. They are searched for at the first use.

    Args:
        is_end: Whether a token is one of them.
    """

    def __init__(self, is_end: Callable[[int], bool]) -> None:
        self._is_end = is_end
        self._found: list[int] | None = None

    def among(self, count: int) -> list[int]:
        """Return the end tokens. `count` is the number of logits, the same in every call."""
        if self._found is None:
            self._found = [token for token in range(count) if self._is_end(token)]
        return self._found


class Steering:
    """A Constraint that changes logits, in addition to a grammar if there is one.

    Args:
        bias: Numbers that are added to logits, by token id.
        min_tokens: Minimum number of tokens. Before that, no end token and no stop token is chosen.
        ends: The model's end tokens.
        stop_tokens: Further tokens that end the text.
        grammar: The grammar, or None.
    """

    def __init__(
        self,
        bias: Mapping[int, float],
        min_tokens: int,
        ends: EndTokens,
        stop_tokens: frozenset[int],
        grammar: Constraint | None,
    ) -> None:
        self._tokens = list(bias)
        self._values = list(bias.values())
        self._min_tokens = min_tokens
        self._ends = ends
        self._stop_tokens = sorted(stop_tokens)
        self._grammar = grammar
        self._accepted = 0

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return self._grammar is not None and self._grammar.finished

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._grammar is not None and self._grammar.complete

    @property
    def shortened(self) -> bool:
        """See `Constraint`."""
        return self._grammar is not None and self._grammar.shortened

    def mask(self, logits: Any) -> None:
        """See `Constraint`."""
        if self._tokens:
            logits[self._tokens] += self._values
        if self._accepted < self._min_tokens:
            logits[self._ends.among(len(logits))] = -float("inf")
            logits[self._stop_tokens] = -float("inf")
        if self._grammar is not None:
            self._grammar.mask(logits)

    def fits(self, token: int) -> bool:
        """See `Constraint`."""
        return self._grammar is None or self._grammar.fits(token)

    def exclude(self, token: int, logits: Any) -> None:
        """See `Constraint`."""
        if self._grammar is not None:  # without one, every token fits
            self._grammar.exclude(token, logits)

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        self._accepted += 1
        if self._grammar is not None:
            self._grammar.accept(token)
