# SPDX-License-Identifier: Apache-2.0
"""Models on a server that rank documents: /v1/rerank, in the shape that Jina, Cohere, vLLM and llama-server share."""

from __future__ import annotations

from collections.abc import Sequence

from ..._calls.arguments import strings
from ...types import Ranked
from .model import HttpModel
from .scoring.ranking import ranking


class HttpRankModel(HttpModel):
    """A RankModel on a server."""

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Return the documents' places and scores as the server gives them, the best first."""
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
