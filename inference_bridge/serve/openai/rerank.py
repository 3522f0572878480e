# SPDX-License-Identifier: Apache-2.0
"""The route /v1/rerank: ranks documents by a query, in the format that Jina, Cohere, vLLM and llama-server share.

Source: https://jina.ai/reranker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...errors import UnsupportedError
from ...interfaces import RankModel
from ...types import Ranked
from ..events import JSONAnswer
from ..fields import Fields
from ..guard import load_wait
from ..pool import ModelPool
from .requests import IGNORED


@dataclass(frozen=True)
class RerankRequest:
    """A request to rank documents.

    Attributes:
        model: The model's name.
        query: The query.
        documents: The texts to rank.
        most: Maximum number of results. None: all documents.
        shown: Whether the results contain the documents' texts.
    """

    model: str
    query: str
    documents: Sequence[str]
    most: int | None
    shown: bool


def rerank_request(body: object) -> RerankRequest:
    """Read a body.

    Raises:
        RequestError: A field is wrong. The error names it.
    """
    fields = Fields(body, IGNORED)
    model, query = fields.require("model", str), fields.require("query", str)
    given = fields.require("documents", list)
    documents = [one["text"] if isinstance(one, dict) and set(one) == {"text"} else one for one in given]
    if not documents or not all(isinstance(one, str) for one in documents):
        raise fields.wrong("documents", 'must be an array of strings or of {"text": …} objects, at least one')
    most = fields.take("top_n", int)
    if most is not None and most < 1:
        raise fields.wrong("top_n", "must be at least 1")
    shown = fields.take("return_documents", bool, False)
    fields.end()
    return RerankRequest(model, query, documents, most, shown)


async def rerank(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /v1/rerank."""
    asked = rerank_request(body)
    async with pool.use(asked.model, load_wait(request)) as model:
        if not isinstance(model, RankModel) or "rerank" not in model.capabilities:
            raise UnsupportedError("rerank", asked.model, "it does not rank documents: load a reranker")
        found = await model.arerank(asked.query, asked.documents)
    results = [_shown(one, asked) for one in found[: asked.most]]
    return JSONAnswer({"object": "list", "model": asked.model, "results": results})


def _shown(one: Ranked, asked: RerankRequest) -> dict[str, Any]:
    document = {"document": {"text": asked.documents[one.index]}} if asked.shown else {}
    return {"index": one.index, "relevance_score": one.score, **document}
