# SPDX-License-Identifier: Apache-2.0
"""Operations that only some models have: calling one on another model is refused, as an unsupported option is."""

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
"""For each operation, what to do without it."""


class AbsentOperationError(UnsupportedError, AttributeError):
    """The model does not have the operation.

    It is an AttributeError too, so that hasattr() and isinstance(model, EmbeddingModel) say that there is none.
    """
