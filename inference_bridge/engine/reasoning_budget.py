# SPDX-License-Identifier: Apache-2.0
"""`reasoning_budget`: a maximum number of reasoning tokens. When they are used up, the closing tag is forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..chat.markup import ChatFormat
from .scheduler import Constraint


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The markup of a model's reasoning.

    Attributes:
        opens: The tag that begins it.
        closes: The tag that ends it.
        closing: The text that is forced to end it, after which the model answers.
    """

    opens: str
    closes: str
    closing: str

    @classmethod
    def of(cls, format: ChatFormat) -> ReasoningTags | None:
        """Return the tags of a format. None: the format has no tags for reasoning."""
        if format.harmony:
            answer = "<|end|><|start|>assistant<|channel|>final<|message|>"
            return cls("<|channel|>analysis<|message|>", "<|end|>", answer)
        if format.thinking is None:
            return None
        return cls(format.thinking.opens, format.thinking.closes, format.thinking.closes)


class ReasoningBudget:
    """A Constraint that ends a model's reasoning when a budget is used up. Used by one thread.

    Args:
        budget: Maximum number of reasoning tokens, without the tags.
        tags: How the model marks its reasoning.
        opening: The tokens of `tags.opens`.
        closing: The tokens of `tags.closing`.
        piece: Returns the bytes of a token, those of special tokens too.
        begun: Whether the prompt ends inside reasoning.
        behind: Another constraint on the text, or None.
    """

    def __init__(
        self,
        budget: int,
        tags: ReasoningTags,
        opening: Sequence[int],
        closing: Sequence[int],
        piece: Callable[[int], bytes],
        begun: bool,
        behind: Constraint | None,
    ) -> None:
        self._left = budget
        self._opens, self._closes = tags.opens.strip().encode(), tags.closes.strip().encode()
        self._opening = list(opening)
        self._closing = list(closing)
        self._piece = piece
        self._behind = behind
        self._place: Literal["before", "inside", "ending", "past"] = "inside" if begun else "before"
        self._text = b""
        self._written = 0  # how many tokens of `closing` have been forced

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return self._behind is not None and self._behind.finished

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._behind is not None and self._behind.complete

    @property
    def shortened(self) -> bool:
        """See `Constraint`."""
        return self._behind is not None and self._behind.shortened

    def mask(self, logits: Any) -> None:
        """See `Constraint`."""
        if self._behind is not None:
            self._behind.mask(logits)
        if self._place == "inside" and self._left <= 0:
            self._place = "ending"
        if self._place == "ending":
            token = self._closing[self._written]
            logits[:] = -float("inf")
            logits[token] = 0.0
        elif self._place == "before" and self._left <= 0 and len(self._opening) == 1:
            logits[self._opening] = -float("inf")

    def fits(self, token: int) -> bool:
        """See `Constraint`. The closing tag is always forced, even if the limit of tokens is too low for it."""
        return self._place == "ending" or self._behind is None or self._behind.fits(token)

    def exclude(self, token: int, logits: Any) -> None:
        """See `Constraint`."""
        if self._behind is not None:
            self._behind.exclude(token, logits)

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        if self._behind is not None:
            self._behind.accept(token)
        if self._place == "past":
            return
        if self._place == "ending":
            self._written += 1
            if self._written == len(self._closing):
                self._end()
            return
        self._text += self._piece(token)
        if self._place == "before":
            self._begin()
        else:
            self._go_on()

    def _begin(self) -> None:
        """Detect whether the answer begins with reasoning. If it does not, there is none."""
        said = self._text.lstrip()
        if said.startswith(self._opens):
            self._place, self._text = "inside", said[len(self._opens) :]
        elif not self._opens.startswith(said):
            self._place = "past"

    def _go_on(self) -> None:
        self._left -= 1  # a token of the closing tag counts until the tag is whole
        if self._closes in self._text:
            self._end()
        else:
            self._text = self._text[-len(self._closes) :]

    def _end(self) -> None:
        """End the reasoning. If further reasoning follows, it uses the rest of the budget."""
        self._place, self._text, self._written = "before", b"", 0
