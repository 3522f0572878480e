# SPDX-License-Identifier: Apache-2.0
"""Sampling on MLX: the stages of llama.cpp's sampler chain, in its order, with a random key for each sequence.

mlx-lm calls a `Choice` while it builds a step, before the step is evaluated. So values stay on the device where that is
possible. mlx-lm's own `make_sampler` uses the random state of the process: with other sequences in the batch, a seed
would not repeat.
"""

from __future__ import annotations

import secrets
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from ...engine.scheduler import Sampling, Sequence

PENALTY_WINDOW = 64
"""Number of recent tokens that the penalties apply to: the default of llama.cpp."""


class Choice:
    """Chooses the next token of one sequence: a sampler for mlx-lm, and the logits processor that belongs to it.

    Args:
        sequence: The sequence.
        before: Tokens of the prompt that mlx-lm does not pass to the logits processor.
    """

    def __init__(self, sequence: Sequence, before: list[int] | None = None) -> None:
        self.error: Exception | None = None
        """Why the token that was chosen last is invalid. It is not raised, because that would end the whole batch."""
        self.chosen: Any = None
        self._before = mx.array(before[-PENALTY_WINDOW:], dtype=mx.int32) if before else None
        self._sampling = sampling = sequence.sampling
        self._constraint = sequence.constraint
        self._raw: Any = None
        self._context: Any = None
        self._unaccepted: Any = None
        self._key: Any = None
        if sampling.temperature > 0:
            self._key = mx.random.key(secrets.randbits(64) if sampling.seed is None else sampling.seed)

    def process(self, context: Any, logits: Any) -> Any:
        """Store the arguments for `__call__`, as mlx-lm's logits processor. Return the logits unchanged."""
        self._raw, self._context = logits, context
        return logits

    def __call__(self, logprobs: Any) -> Any:
        """Choose a token, as mlx-lm's sampler: from log probabilities, [1, vocab_size], to a token id, [1]."""
        self.error = None
        try:
            self.chosen = self._choose(logprobs)
        except Exception as error:
            self.error = error
            self.chosen = mx.argmax(logprobs, axis=-1)
        return self.chosen

    def accept(self) -> None:
        """Tell the constraint the token that was chosen last, unless it has been told."""
        token, self._unaccepted = self._unaccepted, None
        if self._constraint is not None and token is not None:
            self._constraint.accept(int(token.item()))

    def logits(self) -> Any:
        """Return the model's logits, float32 [vocab_size], from which the last token was chosen."""
        return np.array(self._raw[0])

    def _choose(self, logprobs: Any) -> Any:
        sampling, constraint = self._sampling, self._constraint
        logits = logprobs
        row: Any = None
        if constraint is not None:
            self.accept()
            if constraint.finished:
                return mx.argmax(logprobs, axis=-1)  # any token: the sequence has ended, and it is not used
            row = self.logits()
            constraint.mask(row)
            logits = mx.array(row)[None]
        elif sampling.penalised:
            logits = self._raw
        token = self._token(logits)
        if constraint is not None:
            while not constraint.fits(int(token.item())):
                constraint.exclude(int(token.item()), row)
                token = self._token(mx.array(row)[None])
            self._unaccepted = token
        return token

    def _token(self, logits: Any) -> Any:
        """Return a token id, [1], chosen from logits, [1, vocab_size]."""
        sampling = self._sampling
        if sampling.penalised:
            logits = penalised(logits, self._recent(), sampling)
        if sampling.temperature <= 0:
            return mx.argmax(logits, axis=-1)
        self._key, key = mx.random.split(self._key)
        return sampled(logits, sampling, key)

    def _recent(self) -> Any:
        context = self._context
        if self._before is not None:
            context = mx.concatenate([self._before, context.astype(mx.int32)])
        return context[-PENALTY_WINDOW:]


def penalised(logits: Any, recent: Any, sampling: Sampling) -> Any:
    """Return logits, [1, n], with the penalties for `recent` tokens as llama.cpp defines them.

    https://github.com/ggml-org/llama.cpp/blob/master/src/llama-sampling.cpp, `llama_sampler_penalties_apply`
    """
    counts = mx.zeros(logits.shape[-1]).at[recent].add(1.0)
    seen = counts > 0
    repeat = sampling.repeat_penalty
    if repeat != 1.0:
        logits = mx.where(seen, mx.where(logits <= 0, logits * repeat, logits / repeat), logits)
    return logits - counts * sampling.frequency_penalty - seen * sampling.presence_penalty


def sampled(logits: Any, sampling: Sampling, key: Any) -> Any:
    """Return a token drawn from logits, [1, n], after top-k, top-p, min-p and temperature."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, sampling.top_k)
    if sampling.top_p < 1:
        logprobs = apply_top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        logprobs = apply_min_p(logprobs, sampling.min_p)
    return mx.random.categorical(logprobs * (1 / sampling.temperature), key=key)
