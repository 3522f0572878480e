# SPDX-License-Identifier: Apache-2.0
"""Completes a constrained answer that max_tokens cuts off, because the server's grammar ignores the limit.

A token is delivered if the answer can still be completed after it within the limit. Otherwise it is held back. If the
answer ends by itself, the tokens that were held back are delivered unchanged. If the limit cuts the answer off, as many
of them as needed are replaced by the shortest text that completes the answer.
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
"""Maximum number of steps of all searches at the end of an answer. A step queries a matcher: a few microseconds."""

TOKEN_STEPS = 1_000
"""Maximum number of steps of a search for one token. It is small, because the search may run in an event loop."""

RESERVE = 1024
"""Tokens are checked from the point where this number of tokens is left, as in the in-process engines."""

UNKNOWN = 64
"""Number of tokens before the limit that are held back if no completion is known."""


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
        self._texts: list[str] = []
        self.held: list[Token] = []
        """Tokens that have been held back."""
        self._is_text = True

    def take(self, token: Token) -> Sequence[Token]:
        """Take a token from the server, and return the tokens that can be delivered now."""
        self._left -= 1
        self._is_text = self._is_text and token.tool_call is None
        self.held.append(token)
        if token.kind == "text":
            self._rest.add(token.text)
        if self._is_text and self._left <= RESERVE and not self._rest.fits(self._left):
            return ()
        out, self.held = self.held, []
        self._texts += [one.text for one in out if one.kind == "text"]
        return out

    def end(self) -> Sequence[Token]:
        """Return the rest of the answer, after the server has ended it. This may ask the server to count tokens."""
        request, held = self._request, self.held
        if request.cancelled or request.finish_reason != "length" or not self._is_text:
            return held
        steps, dropped = STEPS, 0
        while dropped <= len(held) and steps > 0:
            kept = held[: len(held) - dropped]
            text = "".join(self._texts) + "".join(token.text for token in kept if token.kind == "text")
            rest, steps = shortest_rest(self._grammar, text, steps, is_json=self._is_json)
            if rest is None:
                dropped += 1
                continue
            tokens = self._count(rest) if rest else 0
            if tokens <= dropped:
                request.finish_reason = "stop"
                # Whether the model might have continued.
                request.shortened = dropped > 0 or bool(rest) or not self._rest.is_whole
                request.measure(generated_tokens=request.metrics.generated_tokens - dropped + tokens)
                return [*kept, Token(rest)] if rest else kept
            # If more tokens are dropped, the rest hardly ever gets shorter, so their number jumps to that of the rest.
            # After the last jump all are tried, because an earlier text may have a shorter end.
            dropped = tokens if tokens <= len(held) else max(len(held), dropped + 1)
        return held


class _Rest:
    """The shortest known completion of a growing text."""

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
        """Whether the text is complete, and nothing may follow."""
        return self._is_held and bool(self._matcher.is_stopped())

    def fits(self, tokens: int) -> bool:
        """Return whether the text can be completed in `tokens` tokens, each of which has at least one byte."""
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
        """Return whether to skip this search: after a failure, a search for the next token is likely to fail too."""
        self._waits -= 1
        return self._waits >= 0


@lru_cache(maxsize=16)
def _shortest(grammar: str, is_json: bool) -> str | None:
    """Return the shortest answer."""
    return shortest_rest(grammar, "", is_json=is_json)[0]


def shortest_rest(grammar: str, text: str, steps: int = STEPS, *, is_json: bool = True) -> tuple[str | None, int]:
    """Search for the shortest text that completes `text`.

    Args:
        grammar: The answers that are allowed, as a grammar for llguidance.
        text: The beginning of an answer.
        steps: Maximum number of steps.
        is_json: Whether the answer is JSON, which may begin with white space.

    Returns:
        The shortest text that was found, or None; and the number of steps left.
    """
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
    """Return a vocabulary in which each byte is a token, because only the server has the model's vocabulary."""
    from llguidance import LLTokenizer

    from ...grammar.completion.units import Units

    return Units(LLTokenizer("byte"), {})
