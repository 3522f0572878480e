# SPDX-License-Identifier: Apache-2.0
"""Streams that end before a second tool call, for `parallel_tool_calls=False`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inference_bridge import FinishReason, GenerateMetrics, GenerateResult, Token
from inference_bridge.streams import AsyncTokenStream, TokenStream

if TYPE_CHECKING:
    from typing import Self


class _Cut:
    """The base of the synchronous and the asynchronous stream.

    Args:
        stream: The stream. It is closed when a second call begins, and when this stream is closed.
    """

    def __init__(self, stream: TokenStream | AsyncTokenStream) -> None:
        self._stream = stream
        self._cut = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended. None: it has not ended, or it ended with an error."""
        return "tool_calls" if self._cut else self._stream.finish_reason

    @property
    def metrics(self) -> GenerateMetrics:
        return self._stream.metrics

    @property
    def shortened(self) -> bool:
        """Whether `max_tokens` made a constrained answer shorter."""
        return self._stream.shortened

    def _begins(self, token: Token) -> bool:
        """Record and return whether `token` belongs to a second call."""
        self._cut = token.tool_call is not None and token.tool_call.index > 0
        return self._cut

    def _result(self, result: GenerateResult) -> GenerateResult:
        tokens = [token for token in result.tokens if token.tool_call is None or token.tool_call.index == 0]
        return replace(result, tokens=tuple(tokens), finish_reason=self.finish_reason)


class OneCall(_Cut):
    """A `TokenStream` of an answer with at most one tool call."""

    _stream: TokenStream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        token = next(self._stream)
        if self._begins(token):
            self._stream.close()
            raise StopIteration
        return token

    def result(self) -> GenerateResult:
        for _ in self:
            pass
        return self._result(self._stream.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class AsyncOneCall(_Cut):
    """`OneCall` for an `AsyncTokenStream`."""

    _stream: AsyncTokenStream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        token = await anext(self._stream)
        if self._begins(token):
            await self._stream.aclose()
            raise StopAsyncIteration
        return token

    async def result(self) -> GenerateResult:
        async for _ in self:
            pass
        return self._result(await self._stream.result())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()
