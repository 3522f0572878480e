# SPDX-License-Identifier: Apache-2.0
"""Embedding models and rerankers on a server. /v1/rerank has the same form in Jina, Cohere, vLLM and llama-server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..._calls.arguments import strings
from ...errors import UnsupportedError
from ...options import GenerateConfig
from ...types import Ranked
from .detection import server_info
from .model import HttpModel
from .protocol import ollama_api
from .scoring.ranking import ranking
from .servers import SERVERS

_POOLED = frozenset({"embeddings", "rerank", "stats"})
"""The capabilities of a model that does not generate text."""


class _PooledModel(HttpModel):
    """A model that may not be able to generate text. Then `generate` and `chat` raise UnsupportedError."""

    _instead: ClassVar[str]
    """For the error message: the method to call instead."""

    def _config(self, *args: Any, **kwargs: Any) -> GenerateConfig:
        self._check_open()
        if self.capabilities <= _POOLED:
            raise UnsupportedError("generating text", self._name, self._instead)
        return super()._config(*args, **kwargs)


class HttpEmbeddingModel(_PooledModel):
    """An HttpModel on a server that computes embeddings."""

    _instead = "this is an embedding model: use embed()"

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """Return one vector for each text, of length `info.hidden_size`, unchanged from the server.

        Args:
            texts: The texts.
            truncate: Whether the server should cut off the end of a text that is longer than its context.

        Raises:
            UnsupportedError: The server does not support truncation.
        """
        given = self._embeddable(texts, truncate)
        if not given:
            return []
        answer = self._fetch(*self._embedding(given, truncate), *given, counts=True)
        return server_info.vectors(answer, len(given))

    async def aembed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """`embed`, asynchronously."""
        given = self._embeddable(texts, truncate)
        if not given:
            return []
        answer = await self._afetch(*self._embedding(given, truncate), *given)
        return server_info.vectors(answer, len(given))

    def _embeddable(self, texts: Sequence[str], truncate: bool) -> list[str]:
        self._check_open()
        kind = SERVERS[self.facts.server]
        if truncate and not kind.truncates:
            why = f"{kind.title} can't be asked to cut texts: shorten them first"
            raise UnsupportedError("embed(truncate=True)", self._name, why)
        return strings(texts, "texts")

    def _embedding(self, texts: Sequence[str], truncate: bool) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request for vectors."""
        if self.facts.server == "ollama":
            return "/api/embed", ollama_api.embedding(texts, truncate)
        fields: dict[str, Any] = {"input": list(texts)}
        if truncate and self.facts.server == "vllm":
            fields["truncate_prompt_tokens"] = -1  # as many as the model takes
        return self.facts.api + "/embeddings", fields


class HttpRankModel(_PooledModel):
    """A RankModel on a server."""

    _instead = "this model ranks documents: use rerank()"

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Return the indexes and scores of the documents, the best first. The scores are those of the server."""
        given = self._rankable(query, documents)
        if not given:
            return []
        fields = {"query": query, "documents": given}
        answer = self._fetch(self.facts.api + "/rerank", fields, query, *given, counts=True)
        return ranking(answer, len(given))

    async def arerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """`rerank`, asynchronously."""
        given = self._rankable(query, documents)
        if not given:
            return []
        answer = await self._afetch(self.facts.api + "/rerank", {"query": query, "documents": given}, query, *given)
        return ranking(answer, len(given))

    def _rankable(self, query: str, documents: Sequence[str]) -> list[str]:
        self._check_text(query)
        return strings(documents, "documents")
