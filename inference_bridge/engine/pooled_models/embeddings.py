# SPDX-License-Identifier: Apache-2.0
"""Embedding models in this process."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

from ..._calls.arguments import strings
from ..._concurrency.background import off_loop
from ..._concurrency.loops import check_asyncio
from ...errors import ContextLengthExceededError
from .base import PooledModel


class PooledEmbeddings(PooledModel):
    """An EmbeddingModel."""

    capabilities = frozenset({"embeddings", "stats"})
    _instead = "this is an embedding model: use embed()"

    @abstractmethod
    def _ids(self, text: str) -> list[int]:
        """Return the token ids of a text, with those that the model expects around it."""

    @abstractmethod
    def _shortened(self, text: str, ids: list[int]) -> list[int]:
        """Return the first token ids of a text, with those around it: as many as the context holds."""

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """Return one vector for each text, of length `info.hidden_size`.

        Args:
            texts: The texts.
            truncate: Whether to leave out the end of a text that is longer than the context.

        Raises:
            ContextLengthExceededError: A text is longer than the context. The error names it, and nothing was
                evaluated.
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
        longest = self.info.context_length
        texts = strings(texts, "texts")
        encoded = [self._ids(text) for text in texts]
        for index, ids in enumerate(encoded):
            if not ids:
                raise ValueError(f"texts[{index}] is empty, and this model adds no token of its own")
            if len(ids) > longest:
                if not truncate:
                    raise ContextLengthExceededError(len(ids), longest, what=f"texts[{index}]")
                encoded[index] = self._shortened(texts[index], ids)
        return encoded
