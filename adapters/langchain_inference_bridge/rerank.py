# SPDX-License-Identifier: Apache-2.0
"""A reranker as LangChain's document compressor and cross encoder.

from langchain_inference_bridge import InferenceBridgeRerank

rerank = InferenceBridgeRerank(model="llama_cpp:bge-reranker-v2-m3-Q8_0", top_n=3)
rerank.compress_documents(documents, "Why is the sky blue?")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document

from inference_bridge import Ranked, RankModel, ServerError, TextModel, UnsupportedError

from .loading import Loading


class InferenceBridgeRerank(Loading, BaseDocumentCompressor, BaseCrossEncoder):
    """A reranker on any backend of inference-bridge.

    Create it with `model` and any field of LoadConfig, or with `text_model`. It is loaded, shared and released like a
    ChatInferenceBridge. Errors are those of inference_bridge: UnsupportedError for a model that does not rank,
    ContextLengthExceededError for a document that is longer than the context window.
    """

    top_n: int | None = None
    """Maximum number of documents that are kept. Default: all of them, the best first."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """Keep the documents that fit a query best.

        Args:
            documents: The documents to choose from.
            query: What is searched for.
            callbacks: Not used.

        Returns:
            Copies of the documents, the best first, with `relevance_score` in their metadata.
        """
        del callbacks
        return self._best(documents, self._rerank(query, [one.page_content for one in documents]))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """`compress_documents`, asynchronously. Arguments and result are the same."""
        del callbacks
        return self._best(documents, await self._arerank(query, [one.page_content for one in documents]))

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs of texts.

        Args:
            text_pairs: Pairs of a query and a document.

        Returns:
            The score of each pair, in their order. A higher score is a better fit.
        """
        scores = [0.0] * len(text_pairs)
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(text_pairs):
            places.setdefault(query, []).append(place)
        for query, group in places.items():
            for one in self._rerank(query, [text_pairs[place][1] for place in group]):
                scores[group[one.index]] = one.score
        return scores

    def _best(self, documents: Sequence[Document], found: Sequence[Ranked]) -> list[Document]:
        kept = []
        for one in found[: self.top_n]:
            document = documents[one.index]
            metadata = {**document.metadata, "relevance_score": one.score}
            kept.append(document.model_copy(update={"metadata": metadata}))
        return kept

    def _rerank(self, query: str, texts: list[str]) -> list[Ranked]:
        model = _ranking(self.load())
        attempt = 0
        while True:
            try:
                return model.rerank(query, texts)
            except ServerError as error:
                time.sleep(self._pause(error, attempt))
            attempt += 1

    async def _arerank(self, query: str, texts: list[str]) -> list[Ranked]:
        model = _ranking(await self.aload())
        attempt = 0
        while True:
            try:
                return await model.arerank(query, texts)
            except ServerError as error:
                await asyncio.sleep(self._pause(error, attempt))
            attempt += 1


def _ranking(model: TextModel) -> RankModel:
    if not isinstance(model, RankModel):
        name = model.backend or type(model).__name__
        raise UnsupportedError("rerank with this model", name, "load a reranker")
    return model
