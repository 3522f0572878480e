# SPDX-License-Identifier: Apache-2.0
"""Checks whether a server ranks documents, and reads its rankings.

Source: https://jina.ai/reranker
"""

from __future__ import annotations

import math
from typing import Any

from ....errors import GenerationError, ServerError
from ....request import Request
from ....types import Ranked, ranked
from ..facts import ServerFacts
from ..transport import transfer
from ..transport.call import Call, body
from ..transport.connection import Connection
from ..transport.route import Route


def ranks(connection: Connection, request: Request, facts: ServerFacts) -> bool:
    """Return whether the server ranks documents. No list of models says it, so a document of one letter is ranked."""
    content = body({"query": "a", "documents": ["a"]} | ({"model": facts.model} if facts.model else {}))
    try:
        ranking(
            transfer.fetch(Route(connection), request, Call(facts.api + "/rerank", content), retry_refused=False), 1
        )
    except GenerationError:
        return False
    return True


def ranking(answer: Any, count: int) -> list[Ranked]:
    """Return the indexes and scores of the documents in an answer of /rerank, the best first.

    Raises:
        ServerError: It is not a ranking of exactly `count` documents, or a score is not finite.
    """
    scores: dict[int, float] = {}
    try:
        for one in answer["results"]:
            scores[int(one["index"])] = float(one["relevance_score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ServerError("the server's answer has no ranking in it") from None
    if not all(map(math.isfinite, scores.values())):
        raise ServerError("the server gave scores that are not numbers (NaN, or infinite)")
    if sorted(scores) != list(range(count)):
        raise ServerError(f"the server ranked {len(scores)} of {count} documents")
    return ranked(scores[index] for index in range(count))
