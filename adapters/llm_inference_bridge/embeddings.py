# SPDX-License-Identifier: Apache-2.0
"""An embedding model of ours as llm's, for `llm embed`, `embed-multi` and `similar`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from llm.models import EmbeddingModel as LLMEmbeddingModel

from .catalog import Offer
from .errors import ShownError, shown
from .models import Keys


class InferenceBridgeEmbedding(Keys, LLMEmbeddingModel):
    """Vectors of Euclidean norm 1, as llama-server gives them. The model is loaded by the first call."""

    batch_size = 64

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.model_id = offer.model_id
        self._tell_of_key()

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        from inference_bridge import EmbeddingModel

        from . import loaded

        with shown():
            model = loaded.load(self.offer, key or self.get_key(), self)
            if not isinstance(model, EmbeddingModel):
                raise ShownError(f"{self.model_id} generates text, and makes no embeddings")
            yield from model.embed(cast("list[str]", list(items)))
