# SPDX-License-Identifier: Apache-2.0
"""The stream of a chat that the server may end early, at a stop sequence or before a second tool call."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import authoring
from ..streams import AsyncTokenStream
from ..types import FinishReason, GenerateMetrics, GenerateResult, Token

if TYPE_CHECKING:
    from typing import Self


class CutStream:
    """An `AsyncTokenStream` that reports which stop sequence ended it.

    With the contract's option `stop`, a stream does not report which of the strings was found. Stop sequences apply
    only to the visible text. A stop sequence is not found if a tool call interrupts it.

    Args:
        stream: The stream. It is closed with this one.
        stops: Strings that end the text and do not show in it.
        one_call: End the answer before a second tool call.
    """

    def __init__(self, stream: AsyncTokenStream, stops: Sequence[str] = (), one_call: bool = False) -> None:
        self.stop_sequence: str | None = None
        self._stream = stream
        self._stops = tuple(stops)
        self._one_call = one_call
        self._cut: FinishReason | None = None
        self._ready: deque[Token] = deque()
        self._tokens: list[Token] = []
        self._ended = False
        self._restart()

    def _restart(self) -> None:
        self._assembler = authoring.TextAssembler(self._stops) if self._stops else None
        self._fed = self._shown = ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended; None until it has."""
        return self._cut if self._cut is not None else self._stream.finish_reason

    @property
    def metrics(self) -> GenerateMetrics:
        """The operation's metrics; complete once the stream has ended."""
        return self._stream.metrics

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            await self._advance()
        self._tokens.append(token := self._ready.popleft())
        return token

    async def _advance(self) -> None:
        token = await anext(self._stream, None)
        if token is None:
            self._ended = True
            if self._assembler is not None:
                self._ready += self._assembler.finish()
            return
        if token.kind == "text" and self._assembler is not None:
            self._fed += token.text
            found = self._assembler.push(
                token.text.encode("utf-8", "replace"), token.id, token.logprob, token.top_logprobs
            )
            self._shown += "".join(one.text for one in found)
            self._ready += found
            if self._assembler.stopped:
                self.stop_sequence = self._found()
                await self._end("stop")
            return
        if self._assembler is not None:
            self._ready += self._assembler.finish()
            self._restart()
        if self._one_call and token.tool_call is not None and token.tool_call.index > 0:
            await self._end("tool_calls")
            return
        self._ready.append(token)

    def _found(self) -> str:
        """Return the stop sequence that follows the shown text. If several follow it, return the shortest."""
        return min((stop for stop in self._stops if self._fed.startswith(stop, len(self._shown))), key=len)

    async def _end(self, reason: FinishReason) -> None:
        self._ended = True
        self._cut = reason
        await self._stream.aclose()

    async def result(self) -> GenerateResult:
        """Drain the stream. Return everything that was generated, including tokens that were already iterated."""
        async for _ in self:
            pass
        return GenerateResult(tuple(self._tokens), self.finish_reason, self.metrics)

    def close(self) -> None:
        """End the operation, from any thread."""
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()
