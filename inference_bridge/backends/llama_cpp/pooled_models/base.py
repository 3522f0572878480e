# SPDX-License-Identifier: Apache-2.0
"""Code shared by GGUF embedding models and rerankers.

llama.cpp evaluates each text as a whole, and pools the vectors of its tokens into one vector or one score.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....catalog.headers import gguf
from ....engine.hardware import process_memory
from ....engine.pooled_models.base import PooledModel
from ....engine.worker import Worker
from ....errors import GenerationError, ModelClosedError, ModelLoadError, UnsupportedError
from ..context import set_threads
from ..library import attempt, last_of, lib, set_fields
from ..threads import Threads
from ..weights import NativeModel

BATCH_TOKENS = 2048
"""Maximum number of tokens of all texts in a batch. A single text may have more, up to the model's context length."""
BATCH_TEXTS = 64

_POOLED = {"mean": 1, "cls": 2, "last": 3, "rank": 4}


class PoolingContext:
    """A PoolingEngine: evaluates texts, and pools each one's vectors into one. Used by one thread."""

    max_texts = BATCH_TEXTS

    def __init__(
        self, model: NativeModel, *, length: int, threads: Threads | None, extra: Mapping[str, Any], taken: set[str]
    ) -> None:
        params = lib.llama_context_default_params()
        # Without causal attention a text must be evaluated in one batch, so all sizes are equal.
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
            why = f"{model.path} does not say how to pool (pooling_type)"
            raise UnsupportedError("embedding with this model", "llama_cpp", why)
        self.ranks = pooling == _POOLED["rank"]
        """Whether the result for a text is scores instead of a vector."""
        self.max_tokens = size
        width = lib.llama_model_n_cls_out if self.ranks else lib.llama_model_n_embd_out
        self.width = int(width(model.pointer))
        self._path = model.path
        self._batch = lib.llama_batch_init(size, 0, 1)

    def evaluate(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Evaluate texts in one batch.

        Args:
            texts: Token ids of at most BATCH_TEXTS texts, with at most `max_tokens` tokens in total.

        Returns:
            For each text a vector of Euclidean norm 1, as from llama-server; or its scores if `ranks`.

        Raises:
            ModelClosedError: The context is closed.
            GenerationError: llama.cpp failed.
        """
        if not self.pointer:
            raise ModelClosedError("the model is closed: load it again")
        batch, place = self._batch, 0
        assert len(texts) <= BATCH_TEXTS
        assert sum(map(len, texts)) <= self.max_tokens
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

    def memory(self) -> tuple[int, int]:
        used = process_memory()
        return used, used

    def close(self) -> None:
        if self.pointer:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self.pointer)
            self.pointer = None


class LlamaPooledModel(PooledModel):
    """A PooledModel on llama.cpp."""

    backend = "llama_cpp"

    def __init__(
        self, header: gguf.GGUFMetadata, native: NativeModel, context: PoolingContext, length: int, worker: Worker
    ) -> None:
        info = replace(header.info, vocab_size=native.vocab_size, hidden_size=context.width, context_length=length)
        self._native = native
        super().__init__(info, context, worker, _Resources(native, context))

    def close(self) -> None:
        super().close()
        self._native.gate.wait()

    def count_tokens(self, text: str) -> int:
        self._check_text(text)
        return len(self._native.encode(text, special=False, check=self._check_open))


class _Resources:
    """Has the worker free the context and the model, which only the worker's thread may do."""

    def __init__(self, native: NativeModel, context: PoolingContext) -> None:
        self._native = native
        self._context = context

    def turn(self) -> bool:
        return False

    def interrupt(self) -> None:
        pass  # a batch is small, so it is not interrupted

    def close(self, exiting: bool) -> None:
        self._context.close()
        self._native.close()
