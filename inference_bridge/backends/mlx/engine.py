# SPDX-License-Identifier: Apache-2.0
"""One step on MLX: mlx-lm's BatchGenerator prefills and decodes, and this module manages its slots and prefixes.

mlx-lm computes one step ahead: when it returns a token, the step that evaluates this token is already running. Every
method is called in the one thread that uses MLX.
"""

from __future__ import annotations

import io
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from ...engine.prefix_cache.common import common_length
from ...engine.prefix_cache.store import PrefixStore, Stored
from ...engine.scheduler import Sampled, Sequence, log_softmax_top
from ...errors import GenerationError
from ...grammar.grammar import Vocabulary
from .sampling import Choice
from .vocabulary import MlxTokenizer

_log = logging.getLogger(__name__)

MIN_SHARED = 16
"""Minimum length of a common prefix that is copied, or for which a prompt waits until another one has evaluated it."""

SHORTEST_CHUNK = 4
"""Minimum number of tokens of each prompt in a step that prefills several prompts."""

KEPT_FOR_EACH_SLOT = 4
"""Maximum number of prefixes in memory for each slot."""

_FOREVER = 2**31 - 1
_MODEL = "model"


def memory() -> tuple[int, int]:
    """Return the bytes that MLX uses in this process, and their peak since an idle engine last admitted a sequence."""
    return int(mx.get_active_memory()), int(mx.get_peak_memory())


class Float32Logits:
    """A model with float32 logits.

    When mlx-lm normalises 16-bit logits, different ones may become equal, and then the first token would be chosen.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._model(*arguments, **named).astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _CacheFile(io.BytesIO):
    """A file in memory. mlx-lm derives the format from its name."""

    name = "prefix.safetensors"


class Prefixes:
    """The prefix cache: KV caches of prompts and answers, for prompts that begin in the same way.

    Args:
        limit: Maximum size of all prefixes in memory, in bytes.
        count: Maximum number of prefixes in memory.
        store: The prefix cache on disk, in the format of mlx-lm's cache files. None: there is none.
    """

    def __init__(self, limit: int, count: int, store: PrefixStore | None = None) -> None:
        self._limit = limit
        self._caches = LRUPromptCache(max_size=count, max_bytes=limit)
        self._store = store
        self._unsaved: deque[tuple[list[int], Any]] = deque(maxlen=max(count, 1))
        """Prefixes that have not been compared with the disk yet. They are never changed: `find` returns copies."""

    def find(self, prompt: list[int]) -> tuple[int, Any]:
        """Return the length of the longest known prefix of the prompt, and a copy of its KV cache.

        The last token of the prompt is never included, because its logits are needed.
        """
        cache, rest = self._caches.fetch_nearest_cache(_MODEL, prompt[:-1])
        count = len(prompt) - 1 - len(rest)
        if cache is None or count <= 0 or not holds(cache, count):
            count, cache = 0, None
        found = self._store.find(prompt[:-1], count) if self._store is not None else None
        stored = self._read(found) if found is not None else None
        return (count, cache) if found is None or stored is None else (found.count, stored)

    def _read(self, found: Stored) -> Any:
        """Return the KV cache of a prefix on disk, cut to the tokens of the prompt. None: it can't be read or cut."""
        assert self._store is not None
        state = self._store.load(found)
        if state is None:
            return None
        load: Any = load_prompt_cache
        cache = load(_CacheFile(state))
        mx.eval([part.state for part in cache])
        trim_prompt_cache(cache, len(found.tokens) - found.count)
        return cache if holds(cache, found.count) else None

    def takes(self, size: int) -> bool:
        """Return whether a KV cache of `size` bytes can be kept, in memory or on disk."""
        return size <= max(self._limit, self._store.limit if self._store is not None else 0)

    def put(self, tokens: list[int], cache: Any) -> None:
        """Keep the KV cache of the tokens, if it is valid and not too short or too large."""
        if len(tokens) >= MIN_SHARED and holds(cache, len(tokens)):
            mx.eval([part.state for part in cache])  # a lazy array would keep its inputs in memory
            if self._store is not None:
                self._unsaved.append((tokens, cache))
            if _size(cache) <= self._limit:
                self._caches.insert_cache(_MODEL, tokens, cache)

    def tidy(self, *, wait: bool = False) -> bool:
        """Write a prefix that is not on disk yet. Return True if one was written, and there may be more."""
        store = self._store
        while store is not None and self._unsaved and (wait or not store.busy):
            tokens, cache = self._unsaved.popleft()
            if store.wants(tokens, _size(cache)):
                file = io.BytesIO()
                save_prompt_cache(file, cache)  # type: ignore[arg-type]  # it accepts files too
                store.put(tokens, file.getbuffer(), wait=wait)
                return True
        return False

    def close(self) -> None:
        """Write the prefixes that are not on disk yet."""
        try:
            while self.tidy(wait=True):
                pass
            if self._store is not None:
                self._store.close()
        except Exception:  # the model must be closed nevertheless
            _log.exception("the prefixes could not be written")

    @property
    def size(self) -> int:
        """Bytes of all prefixes in memory."""
        return int(self._caches.nbytes)


def _size(cache: Any) -> int:
    """Return the size of a KV cache in bytes."""
    return int(sum(part.nbytes for part in cache))


def holds(cache: Any, count: int) -> bool:
    """Return whether every layer's KV cache has `count` tokens, if it states a number. A cut may have removed more."""
    return all(getattr(part, "offset", count) == count for part in cache)


@dataclass(eq=False, slots=True)
class _Slot:
    sequence: Sequence
    uid: int
    choice: Choice | None
    """None: the most likely token is chosen, without a processor that mlx-lm would have to call."""
    evaluated: int
    """Number of prompt tokens in the KV cache."""
    begun: bool = False
    """Whether a step has evaluated a part of the prompt."""
    prefilling: bool = True

    @property
    def held(self) -> list[int]:
        """The tokens in the KV cache that can be copied. Before the first step there are none."""
        tokens = self.sequence.tokens if self.begun else []
        return tokens[: self.evaluated] if self.prefilling else tokens


class MlxEngine(ABC):
    """The base class of the StepEngines on MLX.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        slots: Maximum number of sequences that are decoded together.
        context_length: Maximum number of tokens of a sequence.
        chunk: Number of prompt tokens that are evaluated in a step.
        prefix_bytes: Maximum size of the prefixes in memory, in bytes.
        stream: The MLX stream to compute on.
        store: Creates the prefix cache on disk. Its argument `whole` says whether a state can't be cut.
    """

    memory = staticmethod(memory)
    idle = False  # no work runs in other threads

    def __init__(
        self,
        model: Any,
        tokenizer: MlxTokenizer,
        *,
        slots: int,
        context_length: int,
        chunk: int,
        prefix_bytes: int,
        stream: Any,
        store: Callable[..., PrefixStore] | None = None,
    ) -> None:
        self.slots = slots
        self.context_length = context_length
        self.vocabulary: Vocabulary | None = tokenizer.vocabulary()
        self.is_end = tokenizer.is_end
        self.piece = tokenizer.piece
        self._model = model
        self._chunk = chunk
        self._stream = stream
        layers = make_prompt_cache(model)
        self._cuttable = can_trim_prompt_cache(layers)
        self._windowed = any(hasattr(part, "max_size") for part in layers)
        kept = store(whole=self._windowed or not self._cuttable) if store is not None else None
        self._prefixes = Prefixes(prefix_bytes, KEPT_FOR_EACH_SLOT * slots, kept)
        self._interrupted = False

    def interrupt(self) -> None:
        """Make all later steps fail. The current one can't be interrupted."""
        self._interrupted = True

    def tidy(self) -> bool:
        with mx.stream(self._stream):
            return self._prefixes.tidy()

    def close(self) -> None:
        if self.vocabulary is not None:
            self.vocabulary.close()
        with mx.stream(self._stream):
            self._abandon()
            self._prefixes.close()
            self._prefixes = Prefixes(0, 0)
            self._model = None
            mx.clear_cache()

    @abstractmethod
    def _abandon(self) -> None:
        """Free the resources of the running sequences."""


class BatchEngine(MlxEngine):
    """A StepEngine for a model that mlx-lm can batch. The arguments are those of MlxEngine."""

    def __init__(self, model: Any, tokenizer: MlxTokenizer, **common: Any) -> None:
        super().__init__(model, tokenizer, **common)
        self._generator: Any = None  # a BatchGenerator, which is not typed
        self._active: dict[int, _Slot] = {}

    # ------------------------------------------------ slots

    def admit(self, sequence: Sequence) -> bool:
        prompt = sequence.prompt
        if self._worth_waiting_for(prompt):
            return False
        if not self._active:
            mx.reset_peak_memory()
        with mx.stream(self._stream):
            count, cache = self._reusable(prompt)
            choice = _choice(sequence)
            if self._generator is None:
                self._generator = BatchGenerator(
                    Float32Logits(self._model),
                    completion_batch_size=self.slots,
                    prefill_batch_size=self.slots,
                    prefill_step_size=self._chunk,
                    stream=self._stream,
                )
            (uid,) = self._generator.insert(
                [prompt[count:]],
                max_tokens=[_FOREVER],
                caches=[cache or make_prompt_cache(self._model)],
                all_tokens=[prompt[:count]],
                samplers=[choice],
                logits_processors=[[choice.process] if choice is not None else []],
            )
        sequence.slot = self._active[uid] = _Slot(sequence, uid, choice, evaluated=count)
        sequence.cached_tokens = count
        return True

    def _worth_waiting_for(self, prompt: list[int]) -> bool:
        """Return whether another sequence is evaluating a prefix that this prompt has too.

        Prompts of a model whose KV cache can't be cut are evaluated one after the other, because some recurrent layers
        of mlx-lm do not ignore the padding of shorter prompts.
        """
        return any(
            not self._cuttable or common_length(slot.sequence.prompt, prompt) - slot.evaluated >= MIN_SHARED
            for slot in self._active.values()
            if slot.prefilling
        )

    def _reusable(self, prompt: list[int]) -> tuple[int, Any]:
        """Return how many first tokens of the prompt can be reused, and their KV cache.

        It is a copy from a sequence that has ended or from one that is running.
        """
        count, cache = self._prefixes.find(prompt)
        if not self._cuttable:
            return count, cache
        shared = {slot.uid: common_length(slot.held, prompt[:-1]) for slot in self._active.values()}
        best = max(shared, key=lambda uid: shared[uid], default=None)
        if best is None or shared[best] < count + MIN_SHARED:
            return count, cache
        live, tokens = self._generator.extract_cache([best])[best]
        if not can_trim_prompt_cache(live):
            return count, cache
        trim_prompt_cache(live, len(tokens) - shared[best])
        return (shared[best], live) if holds(live, shared[best]) else (count, cache)

    def _decoding(self) -> list[_Slot]:
        return [slot for slot in self._active.values() if not slot.prefilling]

    def release(self, sequence: Sequence) -> None:
        slot: _Slot = sequence.slot
        generator = self._generator
        if self._active.pop(slot.uid, None) is None or generator is None:
            return
        try:
            with mx.stream(self._stream):
                # All sequences of a batch take as much memory as the longest one.
                size = generator.prompt_cache_nbytes // (len(self._active) + 1)
                keep = self._prefixes.takes(size) and not self._interrupted
                found = generator.remove([slot.uid], return_prompt_caches=keep)
                for cache, tokens in found.values():
                    self._prefixes.put(list(tokens), cache)
        except Exception:  # such as too little memory for the copy
            _log.exception("a sequence could not be removed from its batch: the other sequences of the batch end too")
            self._abandon()

    # ------------------------------------------------ the step

    def step(self) -> list[Sampled]:
        generator = self._generator
        if self._interrupted or generator is None:
            raise GenerationError("MLX failed in a step before" if generator is None else "the model is being closed")
        prefilling = [slot for slot in self._active.values() if slot.prefilling]
        errors = {slot.uid: slot.choice.error for slot in self._decoding() if slot.choice is not None}
        if prefilling:
            generator.prefill_step_size = max(self._chunk // len(prefilling), SHORTEST_CHUNK)
        begun = time.monotonic()
        try:
            prompts, tokens = generator.next()
        except BaseException:
            self._abandon()
            raise
        out: list[Sampled] = []
        with mx.stream(self._stream):
            for one in tokens:
                slot = self._active[one.uid]
                out += _alone(slot, partial(self._decoded, slot, one, errors.get(one.uid)))
            for one in prompts:
                slot = self._active[one.uid]
                slot.begun, slot.evaluated = True, slot.sequence.cached_tokens + one.progress[0]
                if one.end_of_prompt:
                    out += _alone(slot, partial(self._prompt_ended, slot))
        for slot in prefilling:
            slot.sequence.prefill_seconds += time.monotonic() - begun
        return out

    def _decoded(self, slot: _Slot, response: Any, error: Exception | None) -> list[Sampled]:
        """Return the result for a sequence: the token that the previous step chose."""
        sequence = slot.sequence
        if error is not None:
            raise error
        return [with_logprobs(sequence, response.token, response.logprobs)]

    def _prompt_ended(self, slot: _Slot) -> list[Sampled]:
        """Process the end of a prefill, when the first token has been chosen.

        The next step evaluates this token and returns it. If `max_tokens` is 1, the token is returned now, because it
        need not be evaluated.
        """
        slot.prefilling = False
        sequence, choice = slot.sequence, slot.choice
        if self._windowed or not self._cuttable:
            self._checkpoint(slot)
        if sequence.max_tokens != 1:
            return []
        assert choice is not None
        if choice.error is not None:
            raise choice.error
        logits = choice.logits()
        if sequence.on_logits is not None:
            sequence.on_logits(logits)
        sampled = with_logprobs(sequence, int(choice.chosen.item()), logits)
        choice.accept()
        return [sampled]

    def _checkpoint(self, slot: _Slot) -> None:
        """Keep a copy of the KV cache after the prompt.

        The tokens of the answer can't be cut off later, or not once a sliding window is full.
        """
        if self._prefixes.takes(self._generator.prompt_cache_nbytes // len(self._active)):
            cache, tokens = self._generator.extract_cache([slot.uid])[slot.uid]
            self._prefixes.put(list(tokens), cache)

    def _abandon(self) -> None:
        """End all sequences. After an error in a step the state of the generator is unknown."""
        generator, self._generator = self._generator, None
        self._active.clear()
        if generator is not None:
            generator.close()


def _alone(slot: _Slot, work: Callable[[], list[Sampled]]) -> list[Sampled]:
    """Return the result of `work` for a sequence. If it raises, only this sequence ends."""
    try:
        return work()
    except Exception as error:
        return [Sampled(slot.sequence, error=error)]


def _choice(sequence: Sequence) -> Choice | None:
    sampling = sequence.sampling
    plain = sampling.temperature <= 0 and not sampling.penalised and sequence.constraint is None
    return None if plain and sequence.on_logits is None and sequence.max_tokens != 1 else Choice(sequence)


CHECKED_TOKENS = 32
"""One of this number of tokens is checked for NaN, because a check waits for the device.

That is enough: once the KV cache contains NaN, all later logits are NaN.
"""


def with_logprobs(sequence: Sequence, token: int, logits: Any) -> Sampled:
    """Return the token, with log probabilities if the sequence asks for them.

    Args:
        sequence: The sequence.
        token: Its next token.
        logits: [vocab_size]. They may differ from the model's logits by a constant.

    Raises:
        GenerationError: The model computed NaN.
    """
    if sequence.generated % CHECKED_TOKENS == 0 and math.isnan(logits[token].item()):
        raise GenerationError("the model computed NaN: a number in its files is wrong")
    wanted = sequence.sampling.logprobs
    return Sampled(sequence, token, *(log_softmax_top(np.array(logits), token, wanted) if wanted else (None, ())))
