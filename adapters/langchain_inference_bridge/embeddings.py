# SPDX-License-Identifier: Apache-2.0
"""An embedding model as LangChain's Embeddings.

from langchain_inference_bridge import InferenceBridgeEmbeddings

embeddings = InferenceBridgeEmbeddings(model="llama_cpp:nomic-embed-text-v1.5.Q8_0")
embeddings.embed_query("Why is the sky blue?")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

from inference_bridge import EmbeddingModel, ServerError, TextModel, UnsupportedError
from inference_bridge.authoring import strings

from .loading import Loading


class InferenceBridgeEmbeddings(Loading, Embeddings):
    """An embedding model on any backend of inference-bridge.

    Create it with `model` and any field of LoadConfig, or with `text_model`. It is loaded, shared and released like a
    ChatInferenceBridge. Errors are those of inference_bridge: UnsupportedError for a model without embeddings,
    ContextLengthExceededError for a text that is longer than the context window.
    """

    query_prefix: str = ""
    """Text before each query. Some models are trained with one, such as "search_query: "."""

    document_prefix: str = ""
    """Text before each document, such as "search_document: "."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents.

        Args:
            texts: The documents. `document_prefix` is put before each.

        Returns:
            One vector for each text, in their order; its length is the model's embedding size.
        """
        return self._embed(_prefixed(self.document_prefix, texts))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query.

        Args:
            text: The query. `query_prefix` is put before it.
        """
        return self._embed(_prefixed(self.query_prefix, [text]))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, asynchronously. Argument and result are the same."""
        return await self._aembed(_prefixed(self.document_prefix, texts))

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, asynchronously. Argument and result are the same."""
        return (await self._aembed(_prefixed(self.query_prefix, [text])))[0]

    def _embed(self, texts: list[str]) -> list[list[float]]:
        model = _embedding(self.load())
        attempt = 0
        while True:
            try:
                return model.embed(texts)
            except ServerError as error:
                time.sleep(self._pause(error, attempt))
            attempt += 1

    async def _aembed(self, texts: list[str]) -> list[list[float]]:
        model = _embedding(await self.aload())
        attempt = 0
        while True:
            try:
                return await model.aembed(texts)
            except ServerError as error:
                await asyncio.sleep(self._pause(error, attempt))
            attempt += 1


def _embedding(model: TextModel) -> EmbeddingModel:
    if not isinstance(model, EmbeddingModel):
        name = model.backend or type(model).__name__
        raise UnsupportedError("embeddings with this model", name, f"{model.model_type} generates text")
    return model


def _prefixed(prefix: str, texts: Sequence[str]) -> list[str]:
    return [prefix + text for text in strings(texts, "texts")]
