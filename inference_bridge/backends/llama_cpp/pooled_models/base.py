# SPDX-License-Identifier: Apache-2.0
"""What GGUF models that make embeddings and those that rank texts have in common: each text is evaluated as a whole,
and what comes of its tokens is pooled into one vector, or one score."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ....catalog import gguf
from ....engine.hardware import process_memory
from ....engine.worker import Worker
from ....errors import (
    GenerationError,
    ModelClosedError,
    ModelLoadError,
    UnsupportedError,
)
from ....model import TextModel
from ....options import GenerateConfig
from ....request import Request
from ....stats import GenerateStats, StatsRecorder
from ....types import GenerateMetrics, Token
from ..context import set_threads
from ..library import attempt, last_of, lib, set_fields
from ..threads import Threads
from ..weights import NativeModel

BATCH_TOKENS = 2048
"""Tokens evaluated at once, of as many texts as fit; a single text may be longer if the model's context is."""
BATCH_TEXTS = 64

_LOAD_OPTIONS = frozenset({"context_length", "gpu_layers", "threads", "vet", "extra"})
_POOLED = {"mean": 1, "cls": 2, "last": 3, "rank": 4}


class PoolingContext:
    """Evaluates texts, and pools each one's vectors into one. Used by one thread."""

    def __init__(
        self, model: NativeModel, *, length: int, threads: Threads | None, extra: Mapping[str, Any], taken: set[str]
    ) -> None:
        params = lib.llama_context_default_params()
        # Without causal attention a text must be evaluated in one piece, so all sizes are one.
        size = max(length, BATCH_TOKENS)
        params.n_ctx = params.n_batch = params.n_ubatch = size
        params.n_seq_max = BATCH_TEXTS
        params.kv_unified = True
        params.embeddings = True
        params.no_perf = True
        set_fields(params, extra, taken)
        self._threads = threads
        self.pointer, reasons = attempt(lambda: lib.llama_init_from_model(model.pointer, params))
        if not self.pointer:
            raise ModelLoadError(
                f"llama.cpp can't make a context of {length} tokens for {model.path}: {last_of(reasons)}"
            )
        pooling = int(lib.llama_pooling_type(self.pointer))
        if pooling not in _POOLED.values():
            lib.llama_free(self.pointer)
            why = f"{model.path} does not say how to pool"
            raise UnsupportedError("embedding with this model", "llama_cpp", why)
        self.ranks = pooling == _POOLED["rank"]
        """Whether a text has scores, and not a vector."""
        self.size = size
        width = lib.llama_model_n_cls_out if self.ranks else lib.llama_model_n_embd_out
        self.width = int(width(model.pointer))
        self._path = model.path
        self._batch = lib.llama_batch_init(size, 0, 1)

    def evaluate(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector a text, of length 1 by the Euclidean norm, as llama-server gives them; or its scores.

        At most BATCH_TEXTS texts, of at most `size` tokens in all.
        """
        if not self.pointer:
            raise ModelClosedError("the model is closed: load it again")
        batch, place = self._batch, 0
        assert len(texts) <= BATCH_TEXTS
        assert sum(map(len, texts)) <= self.size
        for slot, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, slot
                batch.logits[place] = True
                place += 1
        batch.n_tokens = place
        memory = lib.llama_get_memory(self.pointer)
        if memory:
            lib.llama_memory_clear(memory, False)
        set_threads(self.pointer, self._threads)
        code = int(lib.llama_decode(self.pointer, batch))
        if code != 0:
            raise GenerationError(f"evaluating {self._path} failed (llama_decode returned {code})")
        return [self._vector(slot) for slot in range(len(texts))]

    def _vector(self, slot: int) -> list[float]:
        values = lib.llama_get_embeddings_seq(self.pointer, slot)
        if not values:
            raise GenerationError(f"evaluating {self._path} gave no vector")
        vector = np.array(ctypes.cast(values, ctypes.POINTER(ctypes.c_float * self.width)).contents, dtype=np.float64)
        norm = 1.0 if self.ranks else float(np.linalg.norm(vector))
        unit: list[float] = (vector / norm if norm else vector).tolist()
        return unit

    def close(self) -> None:
        if self.pointer:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self.pointer)
            self.pointer = None


class PooledModel(TextModel):
    """It generates nothing: `generate` and `chat` raise UnsupportedError."""

    backend = "llama_cpp"

    _instead: ClassVar[str]
    """What it does instead."""

    def __init__(
        self, header: gguf.GGUFMetadata, native: NativeModel, context: PoolingContext, length: int, worker: Worker
    ) -> None:
        self.model_type = header.architecture
        self.info = replace(header.info, vocab_size=native.vocab_size, hidden_size=context.width, context_length=length)
        self._native = native
        self._context = context
        self._worker = worker
        self._stats = StatsRecorder()
        self._resources = _Resources(native, context)
        worker.add(self._resources)
        self._release = weakref.finalize(self, worker.remove, self._resources, wait=False)
        self._release.atexit = False

    def close(self) -> None:
        self._release()
        self._worker.remove(self._resources)
        self._native.gate.wait()

    def count_tokens(self, text: str) -> int:
        self._check_text(text)
        return len(self._native.encode(text, special=False, check=self._check_open))

    def stats(self) -> GenerateStats:
        """Of every call since loading."""
        return self._stats.stats()

    def _evaluate(self, begun: float, encoded: Sequence[list[int]]) -> list[list[float]]:
        """One vector a text, or its scores. `begun` is when the call began, by time.monotonic()."""
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
        """The work in pieces that the context takes at once: callers take turns between them."""
        batch: list[list[int]] = []
        size = 0
        for tokens in encoded:
            if batch and (size + len(tokens) > self._context.size or len(batch) == BATCH_TEXTS):
                yield partial(self._context.evaluate, batch)
                batch, size = [], 0
            batch.append(tokens)
            size += len(tokens)
        if batch:
            yield partial(self._context.evaluate, batch)

    def _measure(self, begun: float, encoded: Iterable[list[int]]) -> None:
        seconds, memory = time.monotonic() - begun, process_memory()
        metrics = GenerateMetrics(
            prompt_tokens=sum(map(len, encoded)),
            prefill_seconds=seconds,
            total_seconds=seconds,
            peak_memory_bytes=memory,
            active_memory_bytes=memory,
        )
        self._stats.record(metrics, "stop")
        self._measured(metrics)

    # ------------------------------------------------ generation, refused

    def _config(self, *_: object, **__: object) -> GenerateConfig:
        self._check_open()
        raise UnsupportedError("generating text", self._name, self._instead)

    def _run(self, request: Request) -> Iterator[Token]:  # pragma: no cover - `_config` refuses every request before
        raise UnsupportedError("generate", self._name)


class _Resources:
    """Lets the worker free what it alone may touch."""

    def __init__(self, native: NativeModel, context: PoolingContext) -> None:
        self._native = native
        self._context = context

    def turn(self) -> bool:
        return False

    def interrupt(self) -> None:
        pass  # a batch is bounded, and llama.cpp ends it by itself

    def close(self, exiting: bool) -> None:
        self._context.close()
        self._native.close()
