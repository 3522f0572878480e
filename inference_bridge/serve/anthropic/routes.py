# SPDX-License-Identifier: Apache-2.0
"""The routes /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import UnsupportedError
from ...interfaces import TokenModel
from ..guard import load_wait
from ..operation import answer, settled
from ..pool import ModelPool
from .answers import MessageFormat
from .requests import messages_request


async def messages(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /v1/messages."""
    asked = messages_request(body)
    return await answer(request, pool, asked.conversation, MessageFormat(asked))


async def count_tokens(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /v1/messages/count_tokens."""
    asked = messages_request(body, counting=True).conversation
    async with pool.use(asked.model, load_wait(request)) as model:
        if not isinstance(model, TokenModel):
            raise UnsupportedError("count_tokens", asked.model, "it does not show its tokens")
        config = await settled(asked.config, model)
        count = await asyncio.to_thread(partial(model.count_chat_tokens, asked.messages, config))
    return JSONResponse({"input_tokens": count})
