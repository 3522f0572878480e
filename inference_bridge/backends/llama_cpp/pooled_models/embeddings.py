# SPDX-License-Identifier: Apache-2.0
"""GGUF embedding models on llama.cpp, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...._calls.arguments import strings
from ...._concurrency.background import off_loop
from ...._concurrency.loops import check_asyncio
from ....catalog import gguf, gguf_checks
from ....errors import ContextLengthExceededError, UnsupportedError
from ..threads import Threads
from .base import PooledModel, PoolingContext
from .rerank import LlamaRankModel

if TYPE_CHECKING:
    from ....options import LoadConfig
    from ..load import Build, Opened, Prepare

_LOAD_OPTIONS = frozenset({"context_length", "gpu_layers", "threads", "vet", "extra"})


def embedding_model(header: gguf.GGUFMetadata, config: LoadConfig) -> Prepare:
    """How to make the model, or one that ranks texts, once it is read.

    Raises:
        UnsupportedError: An option is not for such a model. What is returned may raise it too, and ModelLoadError.
    """
    for name in config.set_fields():
        if name not in _LOAD_OPTIONS:
            raise UnsupportedError(f"{name} for an embedding model", "llama_cpp")
    return partial(_prepare, Threads.of(config))


def _prepare(threads: Threads | None, opened: Opened) -> Build:
    header, config, native, reading = opened.header, opened.config, opened.native, opened.reading
    length = config.context_length or header.info.context_length or gguf_checks.FALLBACK_CONTEXT
    context = PoolingContext(
        native,
        length=length,
        threads=threads,
        extra=reading.extra,
        taken=reading.taken,
    )
    reading.made.callback(context.close)
    kind = LlamaRankModel if context.ranks else LlamaEmbeddingModel
    return partial(kind, header, native, context, length)


class LlamaEmbeddingModel(PooledModel):
    """An EmbeddingModel. It generates nothing: `generate` and `chat` raise UnsupportedError."""

    capabilities = frozenset({"embeddings", "stats"})
    _instead = "this is an embedding model: use embed()"

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """Return one vector for each text, of length `info.hidden_size` and Euclidean norm 1.

        Args:
            texts: The texts.
            truncate: Whether the end of a text that is longer than the context is left out.

        Raises:
            ContextLengthExceededError: A text is longer than the context. It is named, and nothing was evaluated.
        """
        begun = time.monotonic()
        return self._evaluate(begun, self._encode(texts, truncate))

    async def aembed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """`embed`, asynchronously."""
        check_asyncio(self._name)
        self._check_open()
        begun = time.monotonic()
        encoded = await off_loop(partial(self._encode, strings(texts, "texts"), truncate))
        return await self._aevaluate(begun, encoded)

    def _encode(self, texts: Sequence[str], truncate: bool) -> list[list[int]]:
        self._check_open()
        tokenizer, longest = self._native.tokenizer, self.info.context_length
        encode = partial(tokenizer.encode, add_special=True, parse_special=False, check=self._check_open)
        encoded = [encode(text) for text in strings(texts, "texts")]
        for index, tokens in enumerate(encoded):
            if not tokens:
                raise ValueError(f"texts[{index}] is empty, and this model adds no token of its own")
            if len(tokens) > longest and not truncate:
                raise ContextLengthExceededError(len(tokens), longest, what=f"texts[{index}]")
        return [tokenizer.truncated(tokens, longest) for tokens in encoded]
