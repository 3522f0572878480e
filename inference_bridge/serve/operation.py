# SPDX-License-Identifier: Apache-2.0
"""The answer to one conversation, whole or streamed, in the format of any API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from .. import authoring
from ..model import TextModel
from ..options import GenerateConfig
from ..types import Message, Token
from .cut import CutStream
from .errors import RequestError, as_request_error
from .events import EventStream, JSONAnswer, on_disconnect
from .guard import load_wait
from .pool import ModelPool


@dataclass(frozen=True)
class Conversation:
    """A request for one answer to a conversation.

    Attributes:
        model: The model's name.
        messages: The conversation.
        config: The options. Stop sequences are in `stops`.
        stream: Whether the answer is streamed.
        stops: Stop sequences.
        one_call: Whether the answer may have at most one tool call.
    """

    model: str
    messages: tuple[Message, ...]
    config: GenerateConfig
    stream: bool = False
    stops: tuple[str, ...] = ()
    one_call: bool = False


class AnswerFormat(Protocol):
    """Formats an answer for one API: as events, or as one object."""

    def opening(self, stream: CutStream) -> Iterator[str]:
        """Yield the events before the first token."""
        ...

    def token(self, token: Token) -> Iterator[str]:
        """Yield the events of a token."""
        ...

    def closing(self, stream: CutStream) -> Iterator[str]:
        """Yield the events after the last token."""
        ...

    def failed(self, problem: RequestError) -> Iterator[str]:
        """Yield the events of an error that occurs after the stream has begun."""
        ...

    async def whole(self, stream: CutStream) -> dict[str, Any]:
        """Return an answer that is not streamed."""
        ...


async def settled(config: GenerateConfig, model: TextModel) -> GenerateConfig:
    """Return the options for a call: the client's options, and the model's own defaults for the others.

    A client may turn reasoning off for every model, because a model without reasoning never reasons.
    """
    if config.reasoning is False and "reasoning" not in model.capabilities:
        config = replace(config, reasoning=None)
    return await asyncio.to_thread(authoring.settled, config, model)


async def answer(request: Request, pool: ModelPool, asked: Conversation, format: AnswerFormat) -> Response:
    """Run a conversation and answer it in the format of an API.

    Args:
        request: The request, whose body has been read.
        pool: The models.
        asked: What the client asks for.
        format: Formats the answer.

    Raises:
        Exception: Any error before the first token, so that it can be answered with an HTTP status.
    """
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(pool.use(asked.model, load_wait(request)))
        config = await settled(asked.config, model)
        stream = CutStream(model.achat(asked.messages, config), asked.stops, asked.one_call)
        await stack.enter_async_context(stream)
        async with on_disconnect(request, stream.close):
            if not asked.stream:
                return JSONAnswer(await format.whole(stream))
            first = await anext(stream, None)
        opened = stack.pop_all()
    return EventStream(request, _events(opened, first, stream, format), stream.close)


async def _events(
    opened: AsyncExitStack, first: Token | None, stream: CutStream, format: AnswerFormat
) -> AsyncGenerator[str, None]:
    async with opened:
        try:
            for text in format.opening(stream):
                yield text
            token = first
            while token is not None:
                for text in format.token(token):
                    yield text
                token = await anext(stream, None)
            for text in format.closing(stream):
                yield text
        except Exception as error:  # the status has been sent: the error is an event
            for text in format.failed(as_request_error(error)):
                yield text
