# SPDX-License-Identifier: Apache-2.0
"""Operations that only some models have. On the other models, a call of them raises an UnsupportedError."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedError

_EMBEDDING = "load an embedding model, whose capabilities include 'embeddings'"
_RANKING = "load a reranker, whose capabilities include 'rerank'"

OPTIONAL: Mapping[str, str] = {
    "embed": _EMBEDDING,
    "aembed": _EMBEDDING,
    "rerank": _RANKING,
    "arerank": _RANKING,
    "stats": "it keeps no statistics over its operations",
}
"""For each operation, the end of the message for a model that does not have it."""


class AbsentOperationError(UnsupportedError, AttributeError):
    """The model does not have the operation.

    It is an AttributeError too, so that hasattr(model, "embed") and isinstance(model, EmbeddingModel) return False.
    """
