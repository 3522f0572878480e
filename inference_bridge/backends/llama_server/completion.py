# SPDX-License-Identifier: Apache-2.0
"""A JSON answer that max_tokens cuts off is completed here: the server's grammar does not know the limit.

The last tokens before the limit are held back. If the answer ends by itself, they are handed out as they are. If the
limit cuts it off, as many of them as needed are replaced by the shortest text that completes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ...request import Request
from ...types import Token

if TYPE_CHECKING:
    from ...grammar.completion.units import Units

STEPS = 100_000
"""Steps of all searches for one answer. A step is one query to a matcher: a few microseconds."""

MORE_ROOM = 16
"""Tokens held back beyond the bytes of the shortest answer, for members that are not required and may be open."""


class Completion:
    """Completes the answer to one request. Not thread-safe.

    Args:
        request: Its `config` has a `json_schema` and a `max_tokens`.
        grammar: The schema as a grammar for llguidance.
        count: Returns how many of the model's tokens a text has.
    """

    def __init__(self, request: Request, grammar: str, count: Callable[[str], int]) -> None:
        self._request = request
        self._grammar = grammar
        self._count = count
        shortest = _shortest(grammar)
        limit = request.config.max_tokens or 0
        self._free = limit if shortest is None else max(limit - len(shortest.encode()) - MORE_ROOM, 0)
        """Tokens that are handed out at once."""
        self._seen = 0
        self._said: list[str] = []
        self.held: list[Token] = []
        """Tokens that are not handed out yet."""
        self._is_text = True

    def take(self, token: Token) -> Sequence[Token]:
        """Take a token of the server's, and return those that can be handed out now."""
        self._seen += 1
        self._is_text = self._is_text and token.tool_call is None
        if self._seen > self._free:
            self.held.append(token)
            return ()
        self._say(token)
        return (token,)

    def end(self) -> Sequence[Token]:
        """Return the rest of the answer, when the server has ended it. May ask the server to count tokens."""
        request, held = self._request, self.held
        if request.cancelled or request.finish_reason != "length" or not self._is_text:
            return held
        steps, dropped = STEPS, 0
        while dropped <= len(held) and steps > 0:
            kept = held[: len(held) - dropped]
            text = "".join(self._said) + "".join(token.text for token in kept if token.kind == "text")
            rest, steps = shortest_rest(self._grammar, text, steps) if text.strip() else (None, 0)
            if rest is None:
                dropped += 1
                continue
            tokens = self._count(rest) if rest else 0
            if tokens <= dropped:
                request.finish_reason = "stop"
                request.shortened = True
                request.measure(generated_tokens=request.metrics.generated_tokens - dropped + tokens)
                return [*kept, Token(rest)] if rest else kept
            dropped = tokens  # a text that ends earlier hardly ever needs fewer
        return held

    def _say(self, token: Token) -> None:
        if token.kind == "text":
            self._said.append(token.text)


@lru_cache(maxsize=16)
def _shortest(grammar: str) -> str | None:
    """Return the shortest answer."""
    return shortest_rest(grammar, "")[0]


def shortest_rest(grammar: str, text: str, steps: int = STEPS) -> tuple[str | None, int]:
    """Return the shortest text found that completes `text`, or None, and the number of steps left."""
    from llguidance import LLMatcher

    from ...grammar.completion.closing_search import Search

    units = _units()
    matcher = LLMatcher(units.tokenizer, grammar, log_level=0)
    data = list(text.lstrip().encode())
    if matcher.is_error() or matcher.try_consume_tokens(data) < len(data):
        return None, steps
    found, left = Search(units, grammar, (), is_json=True).find(matcher, 0, steps)
    return (None if found is None else bytes(found).decode("utf-8", "replace")), left


@lru_cache(maxsize=1)
def _units() -> Units:
    """Bytes as tokens: the server has the model's vocabulary."""
    from llguidance import LLTokenizer

    from ...grammar.completion.units import Units

    return Units(LLTokenizer("byte"), {})
