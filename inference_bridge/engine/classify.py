# SPDX-License-Identifier: Apache-2.0
"""Classification without generation: one evaluation for each prompt, and the probabilities of labels.

A label's probability is the probability that its text follows the prompt: the product of the probabilities of its
tokens, each given all tokens before it. If a label begins with another label, the longer one's probability is
subtracted from the shorter one's, so that no text counts for both. A label of several tokens needs the logits after
each of them. So each distinct beginning of a label is one more evaluation, of one or two tokens, because the tokens
before it are in the prefix cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ..types import ClassifyResult, Token, TopLogprob
from .prefix_cache.common import common_length

Tokens = tuple[int, ...]
Encode = Callable[[str], list[int]]


@dataclass(eq=False, slots=True)
class Evaluation:
    """The next-token prediction after `tokens`. The engine's worker calls `take` with its logits.

    Attributes:
        tokens: The token ids to evaluate.
        wanted: Token ids whose log probabilities are needed.
        top: Number of most likely tokens whose log probabilities are needed.
        keep: Whether the logits are kept.
        best: The most likely token.
        logprobs: The log probabilities, by token id.
        likeliest: The `top` most likely tokens, the most likely first.
        logits: The logits, float32 [vocab_size], if they are kept.
    """

    tokens: Tokens
    wanted: set[int] = field(default_factory=set)
    top: int = 0
    keep: bool = False
    best: int = -1
    logprobs: dict[int, float] = field(default_factory=dict)
    likeliest: tuple[int, ...] = ()
    logits: Any = None

    def take(self, logits: Any) -> None:
        """Store what is needed of the logits, float32 [vocab_size]. They are a view that is valid during the call."""
        import numpy as np

        self.best = int(logits.argmax())
        if self.keep:
            self.logits = logits.copy()
        if self.top:
            count = min(self.top, len(logits))
            best = np.argpartition(-logits, count - 1)[:count]
            self.likeliest = tuple(int(token) for token in best[np.argsort(-logits[best], kind="stable")])
        needed = self.wanted | set(self.likeliest) | ({self.best} if self.top else set())
        if needed:
            values = logits.astype(np.float64)
            peak = values.max()
            normaliser = peak + np.log(np.exp(values - peak).sum())
            self.logprobs = {token: float(values[token] - normaliser) for token in needed}


@dataclass(frozen=True, slots=True)
class Plan:
    """The evaluations for some prompts, without duplicates, and how results are computed from them.

    Attributes:
        evaluations: The evaluations, by their tokens.
        prompts: The token ids of each prompt.
        labels: For each prompt, a mapping of each label to the token ids of the prompt followed by the label. Without
            labels it is empty.
        shared: For each prompt how many tokens it has in common with all of these.
    """

    evaluations: Mapping[Tokens, Evaluation]
    prompts: Sequence[Tokens]
    labels: Sequence[Mapping[str, Tokens]]
    shared: Sequence[int]

    def order(self) -> list[Evaluation]:
        """Return the evaluations, sorted so that each can reuse the prefix of the previous one."""
        return [self.evaluations[tokens] for tokens in sorted(self.evaluations)]

    def results(self, text: Callable[[int], str]) -> list[ClassifyResult]:
        """Return the result for each prompt, once all evaluations are done.

        Args:
            text: Returns the text of a token.
        """
        return [self._result(index, text) for index in range(len(self.prompts))]

    def _result(self, index: int, text: Callable[[int], str]) -> ClassifyResult:
        at_end = self.evaluations[self.prompts[index]]
        top = tuple(TopLogprob(text(token), token, at_end.logprobs[token]) for token in at_end.likeliest)
        token = Token(text(at_end.best), at_end.best, at_end.logprobs.get(at_end.best) if at_end.top else None, top)
        if not self.labels:
            return ClassifyResult(token, at_end.logits)
        scores, mass = self._scores(index)
        return ClassifyResult(token, at_end.logits, max(scores, key=lambda label: scores[label]), scores, mass)

    def _scores(self, index: int) -> tuple[dict[str, float], float]:
        """Return each label's probability, given that one of the labels follows, and the probability that one does."""
        begin, labels = self.shared[index], self.labels[index]
        sums = {
            full: sum(self.evaluations[full[:end]].logprobs[full[end]] for end in range(begin, len(full)))
            for full in labels.values()
        }
        peak = max(sums.values())
        own: dict[Tokens, float] = {}
        longer = dict.fromkeys(sums, 0.0)  # the probability of longer labels that begin with this one
        for full in sorted(sums, key=len, reverse=True):
            own[full] = max(math.exp(sums[full] - peak) - longer[full], 0.0)
            for end in range(begin + 1, len(full)):
                if full[:end] in longer:
                    longer[full[:end]] += own[full]
        mass = min(sum(own.values()) * math.exp(peak), 1.0)
        total = sum(own[full] for full in labels.values())
        return {label: own[full] / total for label, full in labels.items()}, mass


def plan(
    prompts: Iterable[str], labels: Iterable[Sequence[str]] | None, encode: Encode, *, top: int, keep: bool
) -> Plan:
    """Plan the classification of prompts. Equal prompts, and equal beginnings of labels, are evaluated once.

    A prompt and a label are tokenized together, because a tokenizer may join the end of one with the beginning of the
    other.

    Args:
        prompts: The prompts.
        labels: The labels of each prompt. None: only the next token is predicted.
        encode: Returns the token ids of a prompt, or of a prompt with a label.
        top: Number of most likely tokens whose log probabilities are needed.
        keep: Whether the logits are kept.

    Raises:
        ValueError: A prompt has no token, or a label adds none.
    """
    evaluations: dict[Tokens, Evaluation] = {}

    def at(tokens: Tokens) -> Evaluation:
        return evaluations.setdefault(tokens, Evaluation(tokens))

    ends: list[Tokens] = []
    labelled: list[dict[str, Tokens]] = []
    shared: list[int] = []
    each = repeat(None) if labels is None else labels
    for prompt, own in zip(prompts, each, strict=labels is not None):
        end = tuple(encode(prompt))
        if not end:
            raise ValueError("a prompt is empty, and this model begins a text with no token of its own")
        ends.append(end)
        evaluation = at(end)
        evaluation.top, evaluation.keep = top, keep
        if own is None:
            continue
        fulls = {label: tuple(encode(prompt + label)) for label in own}
        begin = min(common_length(end, full) for full in fulls.values())
        begin = max(min([begin, *(len(full) - 1 for full in fulls.values())]), 1)
        for label, full in fulls.items():
            if len(full) <= begin:
                raise ValueError(f"the label {label!r} adds no token to the prompt")
            for place in range(begin, len(full)):
                at(full[:place]).wanted.add(full[place])
        labelled.append(fulls)
        shared.append(begin)
    return Plan(evaluations, ends, labelled, shared)
