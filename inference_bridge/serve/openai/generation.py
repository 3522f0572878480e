# SPDX-License-Identifier: Apache-2.0
"""The routes /v1/chat/completions and /v1/completions, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..._calls.choices import of_choice
from ...model import TextModel
from ...options import GenerateConfig
from ...streams import AsyncTokenStream
from ...types import GenerateResult, Token
from ..cut import CutStream
from ..errors import as_request_error
from ..events import DONE, EventStream, JSONAnswer, event, on_disconnect
from ..guard import load_wait
from ..operation import settled
from ..pool import ModelPool
from .answers import CommonFields, chat_choice, chat_chunk, chat_delta, logprobs, text_choice, usage
from .requests import GenerationRequest, chat_request, text_request

Stream = AsyncTokenStream | CutStream
Start = Callable[[TextModel, GenerateConfig], Stream]
Shown = Callable[[int, Token], dict[str, Any] | None]


async def chat(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /v1/chat/completions."""
    asked = chat_request(body)
    top = asked.top_logprobs

    def start(model: TextModel, config: GenerateConfig) -> Stream:
        stream = model.achat(asked.messages, config)
        return CutStream(stream, one_call=True) if asked.one_call else stream

    def shown(index: int, token: Token) -> dict[str, Any] | None:
        delta = chat_delta(token)
        known = [] if top is None or token.kind != "text" else logprobs([token], top)
        # A token without text, such as the first one of an emoji, has a log probability too.
        if delta is None and known:
            delta = {"content": ""}
        return None if delta is None else chat_chunk(index, delta, known)

    answer = _Answer(
        asked,
        [start],
        CommonFields(asked.model, "chat.completion.chunk" if asked.stream else "chat.completion", "chatcmpl"),
        opening=lambda index: chat_chunk(index, {"role": "assistant", "content": ""}),
        shown=shown,
        closing=lambda index, reason: chat_chunk(index, {}, finish_reason=reason),
        whole=lambda index, result: chat_choice(index, result, top),
    )
    return await answer.respond(request, pool)


async def text(request: Request, body: object, pool: ModelPool) -> Response:
    """Answer /v1/completions."""
    asked = text_request(body)
    top = asked.top_logprobs

    def starting(prompt: str) -> Start:
        return lambda model, config: model.agenerate(prompt, config)

    lengths: dict[int, int] = {}

    def shown(index: int, token: Token) -> dict[str, Any] | None:
        if not token.text and top is None:
            return None
        offset = lengths.get(index, 0)
        lengths[index] = offset + len(token.text)
        return text_choice(index, token.text, [token], None, top, offset)

    answer = _Answer(
        asked,
        [starting(prompt) for prompt in asked.prompts],
        CommonFields(asked.model, "text_completion", "cmpl"),
        opening=None,
        shown=shown,
        closing=lambda index, reason: text_choice(index, "", [], reason, None),
        whole=lambda index, result: text_choice(index, result.text, result.tokens, result.finish_reason, top),
    )
    return await answer.respond(request, pool)


class _Answer:
    """The streams of one request, and the functions that make an answer from their tokens.

    Args:
        asked: The request.
        starts: For each prompt, a function that starts a stream.
        common: The fields that the answer's objects have in common.
        opening: Makes the first chunk of a choice. None: the API has no such chunk.
        shown: Makes the chunk of a token. It returns None if the token shows nothing.
        closing: Makes the last chunk of a choice from its finish reason.
        whole: Makes a choice of an answer that is not streamed.
    """

    def __init__(
        self,
        asked: GenerationRequest,
        starts: Sequence[Start],
        common: CommonFields,
        *,
        opening: Callable[[int], dict[str, Any]] | None,
        shown: Shown,
        closing: Callable[[int, str | None], dict[str, Any]],
        whole: Callable[[int, GenerateResult], dict[str, Any]],
    ) -> None:
        self._asked = asked
        self._starts = starts
        self._common = common
        self._opening = opening
        self._shown = shown
        self._closing = closing
        self._whole = whole
        self._streams: list[Stream] = []

    async def respond(self, request: Request, pool: ModelPool) -> Response:
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(pool.use(self._asked.model, load_wait(request)))
            config = await settled(self._asked.config, model)
            for start in self._starts:
                for choice in range(self._asked.choices):
                    stream = start(model, of_choice(config, choice))
                    self._streams.append(await stack.enter_async_context(stream))
            if not self._asked.stream:
                async with on_disconnect(request, self._close_streams):
                    results = await asyncio.gather(*(stream.result() for stream in self._streams))
                choices = [self._whole(index, result) for index, result in enumerate(results)]
                return JSONAnswer(self._common.with_choices(choices, usage=self._usage(results)))
            # Wait for the first token here, so that an error before it is answered with an HTTP status.
            tokens = _merged(self._streams)
            async with on_disconnect(request, self._close_streams):
                first = await anext(tokens, None)
            opened = stack.pop_all()
        return EventStream(request, self._events(opened, first, tokens), self._close_streams)

    def _close_streams(self) -> None:
        for stream in self._streams:
            stream.close()

    def _usage(self, results: Sequence[GenerateResult]) -> dict[str, Any]:
        many = self._asked.choices
        return usage(results[at : at + many] for at in range(0, len(results), many))

    async def _events(
        self,
        opened: AsyncExitStack,
        first: tuple[int, Token | None] | None,
        rest: AsyncGenerator[tuple[int, Token | None], None],
    ) -> AsyncGenerator[str, None]:
        more = {"usage": None} if self._asked.include_usage else {}
        async with opened, aclosing(rest):
            try:
                if self._opening is not None:
                    opening = [self._opening(index) for index in range(len(self._streams))]
                    for choice in opening:
                        yield event(self._common.with_choices([choice], **more))
                async for index, token in _chained(first, rest):
                    if token is None:
                        shown: dict[str, Any] | None = self._closing(index, self._streams[index].finish_reason)
                    else:
                        shown = self._shown(index, token)
                    if shown is not None:
                        yield event(self._common.with_choices([shown], **more))
                if self._asked.include_usage:
                    results = [await stream.result() for stream in self._streams]
                    yield event(self._common.with_choices([], usage=self._usage(results)))
                yield DONE
            except Exception as error:  # the status has been sent: the error is an event
                yield event(as_request_error(error).to_dict())


async def _chained(
    first: tuple[int, Token | None] | None, rest: AsyncIterator[tuple[int, Token | None]]
) -> AsyncIterator[tuple[int, Token | None]]:
    if first is not None:
        yield first
    async for item in rest:
        yield item


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Token | None], None]:
    """Yield the tokens of several streams as they arrive, each with the stream's index, and None at a stream's end."""
    if len(streams) == 1:
        async for token in streams[0]:
            yield 0, token
        yield 0, None
        return
    arrived: asyncio.Queue[tuple[int, Token | Exception | None]] = asyncio.Queue()

    async def forward(index: int, stream: Stream) -> None:
        try:
            async for token in stream:
                arrived.put_nowait((index, token))
            arrived.put_nowait((index, None))
        except Exception as error:
            arrived.put_nowait((index, error))

    # Not a TaskGroup: it would raise an exception group, for which no HTTP status is defined.
    tasks = [asyncio.ensure_future(forward(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
