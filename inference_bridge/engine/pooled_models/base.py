# SPDX-License-Identifier: Apache-2.0
"""The base class of embedding models and rerankers, and the interface of their engines."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Protocol

from ...errors import GenerationError, UnsupportedError
from ...model import TextModel
from ...options import GenerateConfig
from ...request import Request
from ...stats import GenerateStats, StatsRecorder
from ...types import GenerateMetrics, ModelInfo, Token
from ..worker import Loop, Worker


class PoolingEngine(Protocol):
    """Evaluates texts. Its methods are called in the worker's thread."""

    max_texts: int
    """Maximum number of texts in one call."""
    max_tokens: int
    """Maximum number of tokens of all texts in one call. A single text may have more."""

    def evaluate(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """Return a vector, or the scores, for each text, which is given as token ids."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return the bytes in use and their peak, of the process or of the engine's device."""
        ...


class PooledModel(TextModel):
    """A model that does not generate: `generate` and `chat` raise UnsupportedError."""

    _instead: ClassVar[str]
    """The end of their error message: what to call instead."""

    def __init__(self, info: ModelInfo, engine: PoolingEngine, worker: Worker, resources: Loop) -> None:
        self.model_type = info.architecture
        self.info = info
        self._engine = engine
        self._worker = worker
        self._stats = StatsRecorder()
        self._resources = resources
        worker.add(resources)
        self._release = weakref.finalize(self, worker.remove, resources, wait=False)
        self._release.atexit = False

    def close(self) -> None:
        self._release()
        self._worker.remove(self._resources)

    def stats(self) -> GenerateStats:
        """Return the statistics of every call since loading."""
        return self._stats.stats()

    def _evaluate(self, begun: float, encoded: Sequence[list[int]]) -> list[list[float]]:
        """Return a vector, or the scores, for each text.

        Args:
            begun: When the call began, in seconds of time.monotonic().
            encoded: The token ids of the texts.
        """
        self._worker.check_caller()
        out: list[list[float]] = []
        for batch in self._batches(encoded):
            self._check_open()
            out += self._worker.call(batch)
        self._measure(begun, encoded)
        return out

    async def _aevaluate(self, begun: float, encoded: Sequence[list[int]]) -> list[list[float]]:
        """`_evaluate`, asynchronously."""
        out: list[list[float]] = []
        for batch in self._batches(encoded):
            self._check_open()
            out += await self._worker.acall(batch)
        self._measure(begun, encoded)
        return out

    def _batches(self, encoded: Iterable[list[int]]) -> Iterator[Callable[[], list[list[float]]]]:
        """Split the work into calls of the engine. Between two of them other callers have their turn."""
        engine = self._engine
        batch: list[list[int]] = []
        size = 0
        for tokens in encoded:
            if batch and (size + len(tokens) > engine.max_tokens or len(batch) == engine.max_texts):
                yield partial(self._vectors, batch)
                batch, size = [], 0
            batch.append(tokens)
            size += len(tokens)
        if batch:
            yield partial(self._vectors, batch)

    def _vectors(self, batch: Sequence[list[int]]) -> list[list[float]]:
        vectors = self._engine.evaluate(batch)
        if not all(map(math.isfinite, map(sum, vectors))):
            raise GenerationError("the model computed NaN or infinite values: a number in its files is wrong")
        return vectors

    def _measure(self, begun: float, encoded: Iterable[list[int]]) -> None:
        seconds, (active, peak) = time.monotonic() - begun, self._engine.memory()
        metrics = GenerateMetrics(
            prompt_tokens=sum(map(len, encoded)),
            prefill_seconds=seconds,
            total_seconds=seconds,
            peak_memory_bytes=peak,
            active_memory_bytes=active,
        )
        self._stats.record(metrics, "stop")
        self._measured(metrics)

    # ------------------------------------------------ generation is not supported

    def _config(self, *_: object, **__: object) -> GenerateConfig:
        self._check_open()
        raise UnsupportedError("generating text", self._name, self._instead)

    def _run(self, request: Request) -> Iterator[Token]:  # pragma: no cover - `_config` refuses every request before
        raise UnsupportedError("generate", self._name)
