# SPDX-License-Identifier: Apache-2.0
"""A constrained answer that max_tokens cuts off is completed here: the server's grammar does not know the limit.

A token is handed out if the answer can be completed after it within the limit, or else held back. If the answer ends
by itself, the tokens held back are handed out as they are. If the limit cuts it off, as many of them as needed are
replaced by the shortest text that completes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ...request import Request
from ...types import Token

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ...grammar.completion.units import Units

STEPS = 100_000
"""Steps of all searches for one answer. A step is one query to a matcher: a few microseconds."""

TOKEN_STEPS = 1_000
"""Steps of a search for one token, in an event loop perhaps."""

RESERVE = 1024
"""When this many tokens are left, each token is checked, as in process."""

UNKNOWN = 64
"""Tokens held back before the limit if no completion is known."""


class Completion:
    """Completes the answer to one request. Not thread-safe.

    Args:
        request: Its `config` has a constraint and a `max_tokens`.
        grammar: The answers that are allowed, as a grammar for llguidance.
        count: Returns how many of the model's tokens a text has.
        is_json: Whether the answer is JSON, which may begin with white space.
    """

    def __init__(self, request: Request, grammar: str, count: Callable[[str], int], *, is_json: bool = True) -> None:
        self._request = request
        self._grammar = grammar
        self._count = count
        self._is_json = is_json
        self._left = request.config.max_tokens or 0
        self._rest = _Rest(grammar, is_json)
        self._said: list[str] = []
        self.held: list[Token] = []
        """Tokens that are not handed out yet."""
        self._is_text = True

    def take(self, token: Token) -> Sequence[Token]:
        """Take a token from the server, and return those that can be handed out now."""
        self._left -= 1
        self._is_text = self._is_text and token.tool_call is None
        self.held.append(token)
        if token.kind == "text":
            self._rest.add(token.text)
        if self._is_text and self._left <= RESERVE and not self._rest.fits(self._left):
            return ()
        out, self.held = self.held, []
        self._said += [one.text for one in out if one.kind == "text"]
        return out

    def end(self) -> Sequence[Token]:
        """Return the rest of the answer, when the server has ended it. May ask the server to count tokens."""
        request, held = self._request, self.held
        if request.cancelled or request.finish_reason != "length" or not self._is_text:
            return held
        steps, dropped = STEPS, 0
        while dropped <= len(held) and steps > 0:
            kept = held[: len(held) - dropped]
            text = "".join(self._said) + "".join(token.text for token in kept if token.kind == "text")
            rest, steps = shortest_rest(self._grammar, text, steps, is_json=self._is_json)
            if rest is None:
                dropped += 1
                continue
            tokens = self._count(rest) if rest else 0
            if tokens <= dropped:
                request.finish_reason = "stop"
                request.shortened = dropped > 0 or bool(rest) or not self._rest.is_whole  # it might have gone on
                request.measure(generated_tokens=request.metrics.generated_tokens - dropped + tokens)
                return [*kept, Token(rest)] if rest else kept
            # A text that ends earlier hardly ever needs fewer, but it may have had another way to end.
            dropped = tokens if tokens <= len(held) else max(len(held), dropped + 1)
        return held


class _Rest:
    """The shortest known completion of a text that grows."""

    def __init__(self, grammar: str, is_json: bool) -> None:
        from ...grammar.completion.closing_search import Search

        self._matcher = _matcher(grammar)
        self._search = Search(_units(), grammar, (), is_json=is_json)
        first = _shortest(grammar, is_json)
        self._known = None if first is None else list(first.encode())
        self._is_json = is_json
        self._is_held = not self._matcher.is_error()
        """Whether the text follows the grammar."""
        self._begun = False
        self._waits = self._failures = 0

    def add(self, text: str) -> None:
        """Append to the text."""
        if self._is_json and not self._begun:
            text = text.lstrip()
        added = list(text.encode())
        self._begun = self._begun or bool(added)
        if not self._is_held or not added:
            return
        self._is_held = self._matcher.try_consume_tokens(added) == len(added)
        if self._known is not None and self._is_held:
            if self._known[: len(added)] == added:
                del self._known[: len(added)]
            elif not self._search.completes(self._matcher, self._known):
                self._known = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing may follow the text."""
        return self._is_held and bool(self._matcher.is_stopped())

    def fits(self, tokens: int) -> bool:
        """Return whether the text can be completed in `tokens` tokens. A token is at least a byte."""
        if not self._is_held:
            return True  # the answer is checked when it has ended
        if (self._known is None or len(self._known) > tokens) and not self._wait():
            found, _ = self._search.find(self._matcher, tokens, TOKEN_STEPS)
            if found is None or len(found) > tokens:
                self._failures += 1
                self._waits = 1 << min(self._failures, 5)
            if found is not None and (self._known is None or len(found) < len(self._known)):
                self._known = found
        return tokens > UNKNOWN if self._known is None else len(self._known) <= tokens

    def _wait(self) -> bool:
        """Return whether to search later: a search that fails is likely to fail for the next token too."""
        self._waits -= 1
        return self._waits >= 0


@lru_cache(maxsize=16)
def _shortest(grammar: str, is_json: bool) -> str | None:
    """Return the shortest answer."""
    return shortest_rest(grammar, "", is_json=is_json)[0]


def shortest_rest(grammar: str, text: str, steps: int = STEPS, *, is_json: bool = True) -> tuple[str | None, int]:
    """Return the shortest text found that completes `text`, or None, and the number of steps left."""
    from ...grammar.completion.closing_search import Search

    matcher = _matcher(grammar)
    data = list((text.lstrip() if is_json else text).encode())
    if matcher.is_error() or matcher.try_consume_tokens(data) < len(data):
        return None, steps
    found, left = Search(_units(), grammar, (), is_json=is_json).find(matcher, 0, steps)
    return (None if found is None else bytes(found).decode("utf-8", "replace")), left


def _matcher(grammar: str) -> LLMatcher:
    from llguidance import LLMatcher

    return LLMatcher(_units().tokenizer, grammar, log_level=0)


@lru_cache(maxsize=1)
def _units() -> Units:
    """Bytes as tokens: the server has the model's vocabulary."""
    from llguidance import LLTokenizer

    from ...grammar.completion.units import Units

    return Units(LLTokenizer("byte"), {})
