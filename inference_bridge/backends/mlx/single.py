# SPDX-License-Identifier: Apache-2.0
"""One step on MLX for one sequence at a time: with a draft model, or for a model whose KV cache mlx-lm can't batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import speculative_generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ...engine.scheduler import Sampled, Sequence
from ...errors import GenerationError
from .engine import Float32Logits, MlxEngine, with_logprobs
from .sampling import Choice
from .vocabulary import MlxTokenizer

_log = logging.getLogger(__name__)

_FOREVER = 2**31 - 1


class SingleEngine(MlxEngine):
    """A StepEngine with one slot.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        draft: A draft model with the same vocabulary, for speculative decoding. None: there is none.
        draft_tokens: Number of tokens that it drafts at once.
        common: The other arguments of MlxEngine.
    """

    def __init__(
        self, model: Any, tokenizer: MlxTokenizer, *, draft: Any = None, draft_tokens: int = 3, **common: Any
    ) -> None:
        super().__init__(Float32Logits(model), tokenizer, slots=1, **common)
        self._draft = None if draft is None else Float32Logits(draft)
        self._draft_tokens = draft_tokens
        self._sequence: Sequence | None = None
        self._choice: Choice | None = None
        self._caches: list[Any] = []
        """The KV caches of the model's layers, followed by those of the draft model's layers."""
        self._done = 0
        self._drafted: Iterator[Any] | None = None
        """The tokens of speculative decoding."""

    # ------------------------------------------------ the slot

    def admit(self, sequence: Sequence) -> bool:
        mx.reset_peak_memory()
        with mx.stream(self._stream):
            self._done, caches = self._prefixes.find(sequence.prompt)
            self._caches = caches or [part for model in self._models() for part in make_prompt_cache(model)]
            self._choice = Choice(sequence)
        self._sequence = sequence
        sequence.cached_tokens = self._done
        return True

    def _models(self) -> list[Float32Logits]:
        return [self._model] if self._draft is None else [self._model, self._draft]

    def _cache_of(self, model: Float32Logits) -> list[Any]:
        own = len(make_prompt_cache(self._model))
        return self._caches[:own] if model is self._model else self._caches[own:]

    def release(self, sequence: Sequence) -> None:
        try:
            with mx.stream(self._stream):
                if self._drafted is not None:
                    self._drafted.close()  # type: ignore[attr-defined]  # removes drafted tokens from the KV caches
                if not self._interrupted:
                    self._keep(sequence.tokens)
        except Exception:  # such as too little memory for the copy
            _log.exception("the prefix of a sequence could not be kept in memory")
        self._sequence = self._choice = self._drafted = None
        self._caches = []

    def _keep(self, tokens: list[int]) -> None:
        """Keep the tokens that all KV caches contain. Those of the two models may differ by some tokens."""
        held = [getattr(part, "offset", None) for part in self._caches]
        known = [count for count in held if isinstance(count, int)]
        if not known or not self._prefixes.takes(sum(part.nbytes for part in self._caches)):
            return
        least = min(known)
        if any(count != least for count in known):
            for part, count in zip(self._caches, held, strict=True):
                trim_prompt_cache([part], (count or 0) - least)
        self._prefixes.put(tokens[:least], self._caches)

    # ------------------------------------------------ the step

    def step(self) -> list[Sampled]:
        if self._interrupted:
            raise GenerationError("the model is being closed")
        sequence, choice = self._sequence, self._choice
        assert sequence is not None
        assert choice is not None
        try:
            with mx.stream(self._stream):
                if self._done < len(sequence.prompt):
                    return self._prefill(sequence, choice)
                if self._draft is None or sequence.constraint is not None or sequence.on_logits is not None:
                    return [self._choose(sequence, choice, self._evaluate(self._model, sequence.tokens[-1:]))]
                return [self._speculate(sequence, self._draft)]
        except GenerationError as error:
            return [Sampled(sequence, error=error)]

    def _prefill(self, sequence: Sequence, choice: Choice) -> list[Sampled]:
        begun = time.monotonic()
        chunk = sequence.prompt[self._done : self._done + self._chunk]
        logits, *_ = [self._evaluate(model, chunk) for model in self._models()]
        mx.eval([part.state for part in self._caches])
        self._done += len(chunk)
        ended = self._done == len(sequence.prompt)
        out = [self._choose(sequence, choice, logits)] if ended else []
        sequence.prefill_seconds += time.monotonic() - begun
        return out

    def _evaluate(self, model: Float32Logits, tokens: list[int]) -> Any:
        """Return the logits after the tokens, [1, vocab_size]. They are lazy: MLX has not computed them yet."""
        return model(mx.array([tokens]), cache=self._cache_of(model))[:, -1, :]

    def _choose(self, sequence: Sequence, choice: Choice, logits: Any) -> Sampled:
        choice.process(mx.array(sequence.tokens, dtype=mx.int32), logits)
        token = int(choice(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).item())
        if choice.error is not None:
            return Sampled(sequence, error=choice.error)
        if sequence.on_logits is not None:
            sequence.on_logits(choice.logits())
        sampled = with_logprobs(sequence, token, logits[0])
        choice.accept()
        return sampled

    def _speculate(self, sequence: Sequence, draft: Float32Logits) -> Sampled:
        """Return the next token of speculative decoding, which verifies several drafted tokens in one evaluation."""
        if self._drafted is None:
            sampler = Choice(sequence, before=sequence.tokens[:-1])
            self._drafted = speculative_generate_step(
                mx.array(sequence.tokens[-1:]),
                self._model,
                draft,
                self._stream,
                num_draft_tokens=self._draft_tokens,
                max_tokens=_FOREVER,
                sampler=sampler,
                logits_processors=[sampler.process] if sequence.sampling.penalised else None,
                prompt_cache=self._caches,
            )
        token, logprobs, _ = next(self._drafted)
        return with_logprobs(sequence, int(token), logprobs)

    def _abandon(self) -> None:
        if self._sequence is not None:
            self.release(self._sequence)
        self._draft = None
