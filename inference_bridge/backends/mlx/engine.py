# SPDX-License-Identifier: Apache-2.0
"""The step of MLX: mlx-lm's BatchGenerator prefills and decodes; this says whom, how much, and from what prefix.

mlx-lm computes a step ahead: when a token is handed out, the step that evaluates it is
under way. Every method is called in the one thread that touches MLX.
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
"""Tokens of a common beginning that are worth copying, or waiting for."""

SHORTEST_CHUNK = 4
"""Tokens of each prompt in a chunk that several prompts share, however many they are."""

KEPT_FOR_EACH_SLOT = 4
"""Prefixes that are kept, if there is memory for them."""

_FOREVER = 2**31 - 1
_MODEL = "model"


def memory() -> tuple[int, int]:
    """Bytes in use, and the most since an engine last began when it had nothing to do: of all MLX in this process."""
    return int(mx.get_active_memory()), int(mx.get_peak_memory())


class Float32Logits:
    """A model with float32 logits: those of 16 bits may tie once mlx-lm has normalised them, and the first wins."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._model(*arguments, **named).astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _CacheFile(io.BytesIO):
    """A file in memory that mlx-lm reads as what its name says."""

    name = "prefix.safetensors"


class Prefixes:
    """What prompts and answers leave in memory for others that begin alike: `count` of them, `limit` bytes in all.

    With a `store` they are kept on disk too, in the format of mlx-lm's cache files.
    """

    def __init__(self, limit: int, count: int, store: PrefixStore | None = None) -> None:
        self._limit = limit
        self._caches = LRUPromptCache(max_size=count, max_bytes=limit)
        self._store = store
        self._unsaved: deque[tuple[list[int], Any]] = deque(maxlen=max(count, 1))
        """What is not compared with the disk yet. Nothing changes these memories: `find` gives copies."""

    def find(self, prompt: list[int]) -> tuple[int, Any]:
        """(how many first tokens of the prompt are here, a copy of their memory); the last one is never among them."""
        cache, rest = self._caches.fetch_nearest_cache(_MODEL, prompt[:-1])
        count = len(prompt) - 1 - len(rest)
        if cache is None or count <= 0 or not holds(cache, count):
            count, cache = 0, None
        found = self._store.find(prompt[:-1], count) if self._store is not None else None
        stored = self._read(found) if found is not None else None
        return (count, cache) if found is None or stored is None else (found.count, stored)

    def _read(self, found: Stored) -> Any:
        """The memory of a prefix on disk, cut to what the prompt has of it; None if there is none after all."""
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
        """Whether memory of `size` bytes has room here at all."""
        return size <= max(self._limit, self._store.limit if self._store is not None else 0)

    def put(self, tokens: list[int], cache: Any) -> None:
        if len(tokens) >= MIN_SHARED and holds(cache, len(tokens)):
            mx.eval([part.state for part in cache])  # else it keeps alive what it will be computed from
            if self._store is not None:
                self._unsaved.append((tokens, cache))
            if _size(cache) <= self._limit:
                self._caches.insert_cache(_MODEL, tokens, cache)

    def tidy(self, *, wait: bool = False) -> bool:
        """Write a prefix that is not on disk yet. True: one is written, and there may be more of them."""
        store = self._store
        while store is not None and self._unsaved and (wait or not store.busy):
            tokens, cache = self._unsaved.popleft()
            if store.wants(tokens, _size(cache)):
                file = io.BytesIO()
                save_prompt_cache(file, cache)  # type: ignore[arg-type]  # it takes files too
                store.put(tokens, file.getbuffer(), wait=wait)
                return True
        return False

    def close(self) -> None:
        """Write what is not on disk yet."""
        try:
            while self.tidy(wait=True):
                pass
            if self._store is not None:
                self._store.close()
        except Exception:  # the model is closed all the same
            _log.exception("the prefixes could not be written")

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._caches.nbytes)


def _size(cache: Any) -> int:
    """Bytes."""
    return int(sum(part.nbytes for part in cache))


def holds(cache: Any, count: int) -> bool:
    """Whether the memory is that of `count` tokens, as far as it tells. What was cut too far is not."""
    return all(getattr(part, "offset", count) == count for part in cache)


@dataclass(eq=False, slots=True)
class _Slot:
    sequence: Sequence
    uid: int
    choice: Choice | None
    """None: the likeliest token, of a batch whose other sequences want the same."""
    evaluated: int
    """Tokens of the prompt that are in memory."""
    begun: bool = False
    prefilling: bool = True

    @property
    def held(self) -> list[int]:
        """The tokens that are in memory, and may be copied: before it has begun, that is another's."""
        tokens = self.sequence.tokens if self.begun else []
        return tokens[: self.evaluated] if self.prefilling else tokens


class MlxEngine(ABC):
    """What the StepEngines of MLX share: all but their step.

    chunk         tokens of prompts evaluated in a step
    prefix_bytes  how much memory what is kept for reuse may take
    stream        the MLX stream all is computed on
    store         makes the prefix cache on disk, told whether its states are `whole`
    """

    memory = staticmethod(memory)
    idle = False  # nothing is ever under way but a step

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
        """A step of MLX can't be interrupted; there will be no other."""
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
        """Let go of what running sequences hold."""


class BatchEngine(MlxEngine):
    """On a model that mlx-lm can batch."""

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
        """Whether another is about to evaluate a beginning that this prompt has too.

        Prompts whose memory can't be cut are evaluated one after the other: not every
        recurrent layer of mlx-lm's leaves out what pads the shorter ones.
        """
        return any(
            not self._cuttable or common_length(slot.sequence.prompt, prompt) - slot.evaluated >= MIN_SHARED
            for slot in self._active.values()
            if slot.prefilling
        )

    def _reusable(self, prompt: list[int]) -> tuple[int, Any]:
        """(how many first tokens need not be evaluated, the memory of those): from one that ended, or that runs."""
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
                # A row of the batch is as long as its longest.
                size = generator.prompt_cache_nbytes // (len(self._active) + 1)
                keep = self._prefixes.takes(size) and not self._interrupted
                found = generator.remove([slot.uid], return_prompt_caches=keep)
                for cache, tokens in found.values():
                    self._prefixes.put(list(tokens), cache)
        except Exception:  # no memory for the copy, say
            _log.exception("a sequence that ended could not be taken out of its batch, which ends with it")
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
        """What a sequence gets: the token that the step before this one chose."""
        sequence = slot.sequence
        if error is not None:
            raise error
        return [with_logprobs(sequence, response.token, response.logprobs)]

    def _prompt_ended(self, slot: _Slot) -> list[Sampled]:
        """The prompt is in memory, and the first token chosen.

        It comes with the next step, which then evaluates it; unless it is the only one that
        is wanted, and need not be evaluated.
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
        """Keep the memory of a prompt by itself, since what follows can't be cut off it, or not for long."""
        if self._prefixes.takes(self._generator.prompt_cache_nbytes // len(self._active)):
            cache, tokens = self._generator.extract_cache([slot.uid])[slot.uid]
            self._prefixes.put(list(tokens), cache)

    def _abandon(self) -> None:
        """Also where a step broke off: what the generator holds is not certain then."""
        generator, self._generator = self._generator, None
        self._active.clear()
        if generator is not None:
            generator.close()


def _alone(slot: _Slot, work: Callable[[], list[Sampled]]) -> list[Sampled]:
    """What came of a sequence; its error ends it and no other."""
    try:
        return work()
    except Exception as error:
        return [Sampled(slot.sequence, error=error)]


def _choice(sequence: Sequence) -> Choice | None:
    sampling = sequence.sampling
    plain = sampling.temperature <= 0 and not sampling.penalised and sequence.constraint is None
    return None if plain and sequence.on_logits is None and sequence.max_tokens != 1 else Choice(sequence)


CHECKED_TOKENS = 32
"""The first of this many tokens is checked, since a check waits for the device. NaN, once there, stays in memory."""


def with_logprobs(sequence: Sequence, token: int, logits: Any) -> Sampled:
    """The token, with log probabilities where they are wanted; all of the `logits` may lack the same constant.

    Raises:
        GenerationError: The model computed NaN.
    """
    if sequence.generated % CHECKED_TOKENS == 0 and math.isnan(logits[token].item()):
        raise GenerationError("the model computed NaN: a number in its files is wrong")
    wanted = sequence.sampling.logprobs
    return Sampled(sequence, token, *(log_softmax_top(np.array(logits), token, wanted) if wanted else (None, ())))
