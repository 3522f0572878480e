# SPDX-License-Identifier: Apache-2.0
"""GGUF embedding models on llama.cpp, in this process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ....catalog import gguf_checks
from ....catalog.headers import gguf
from ....engine.pooled_models.embeddings import PooledEmbeddings
from ....errors import UnsupportedError
from ..threads import Threads
from .base import LlamaPooledModel, PoolingContext
from .rerank import LlamaRankModel

if TYPE_CHECKING:
    from ....options import LoadConfig
    from ..load import Build, Opened, Prepare

_LOAD_OPTIONS = frozenset({"context_length", "gpu_layers", "threads", "vet", "extra"})


def embedding_model(header: gguf.GGUFMetadata, config: LoadConfig) -> Prepare:
    """Check the load options of an embedding model or reranker.

    Args:
        header: The header of the model's file.
        config: The load options.

    Returns:
        The function that creates the model, once its weights are read. It raises UnsupportedError and ModelLoadError.

    Raises:
        UnsupportedError: An option does not apply to such a model.
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
    kind: type[LlamaRankModel | LlamaEmbeddingModel] = LlamaRankModel if context.ranks else LlamaEmbeddingModel
    return partial(kind, header, native, context, length)


class LlamaEmbeddingModel(LlamaPooledModel, PooledEmbeddings):
    """An EmbeddingModel. Its vectors have Euclidean norm 1."""

    def _ids(self, text: str) -> list[int]:
        return self._native.tokenizer.encode(text, add_special=True, parse_special=False, check=self._check_open)

    def _shortened(self, text: str, ids: list[int]) -> list[int]:
        return self._native.tokenizer.truncated(ids, self.info.context_length)
