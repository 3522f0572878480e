# SPDX-License-Identifier: Apache-2.0
"""The routes /v1/systemone and /v1/decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from ...decisions import Decision, Question
from ...decisions.deciding import State
from ..events import JSONAnswer, on_disconnect
from ..guard import load_wait
from ..pool import ModelPool
from . import openai, systemone

CLIENT_CLOSED_REQUEST = 499
"""The status for a client that has disconnected, as in nginx. Only the log shows it."""


class DecisionRoutes:
    """The routes.

    Args:
        default: The model that answers requests for "jev-latest", the default of the System One API's clients. None:
            the server was started without a model.
    """

    def __init__(self, default: str | None) -> None:
        self._default = default

    async def systemone(self, request: Request, body: object, pool: ModelPool) -> Response:
        """Answer /v1/systemone."""
        asked = systemone.request(body)
        name = asked.model
        if name == systemone.LATEST and self._default is not None and name not in await pool.names():
            name = self._default
        decision = await _decided(request, pool, name, asked.state, asked.questions)
        return (
            Response(status_code=CLIENT_CLOSED_REQUEST)
            if decision is None
            else JSONAnswer(systemone.answer(name, decision))
        )

    async def decisions(self, request: Request, body: object, pool: ModelPool) -> Response:
        """Answer /v1/decisions."""
        asked = openai.request(body)
        questions = {str(place): one.question for place, one in enumerate(asked.questions)}
        decision = await _decided(request, pool, asked.model, asked.state, questions)
        return (
            Response(status_code=CLIENT_CLOSED_REQUEST)
            if decision is None
            else JSONAnswer(openai.answer(asked, decision))
        )


async def _decided(
    request: Request, pool: ModelPool, name: str, state: State, questions: Mapping[str, Question]
) -> Decision | None:
    """Return the decision. None: the client disconnected, and the work was cancelled."""
    async with pool.use(name, load_wait(request)) as model:
        work = asyncio.ensure_future(model.adecide(state, questions))

        def cancel() -> None:
            work.cancel()

        try:
            async with on_disconnect(request, cancel):
                await asyncio.wait([work])
        finally:
            cancel()
        return None if work.cancelled() else work.result()
