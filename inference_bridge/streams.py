# SPDX-License-Identifier: Apache-2.0
"""The streams that `generate` and `chat` return.

A stream starts when it is first iterated and is used once. What it cost, how it ended
and which tools it called belong to it alone, whatever else the model does meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from .errors import GenerationError
from .request import Request
from .types import FinishReason, GenerateMetrics, GenerateResult, Token, ToolCall

if TYPE_CHECKING:
    from typing import Self

Ended = TypeVar("Ended", StopIteration, StopAsyncIteration)


class Runner(Protocol):
    """What a stream needs of its model."""

    def _begin(self, request: Request) -> None: ...
    def _end(self, request: Request) -> None: ...
    def _check_open(self) -> None: ...
    def _run(self, request: Request) -> Iterator[Token]: ...
    def _arun(self, request: Request) -> AsyncIterator[Token]: ...


class _Stream:
    """What both colours share: the operation's life from its first token to its last."""

    def __init__(self, runner: Runner, request: Request) -> None:
        self._runner = runner
        self._request = request
        self._begun = False
        self._done = False

    @property
    def metrics(self) -> GenerateMetrics:
        """This operation's; complete once the stream has ended."""
        return self._request.metrics

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended; None until it has, and if it ended with an error."""
        return self._request.finish_reason if self._done else None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The complete tool calls among the tokens so far."""
        return self._request.result().tool_calls

    def _begin(self) -> None:
        self._begun = True
        self._request.begin()
        self._runner._begin(self._request)

    def _end(self, error: BaseException | None = None) -> None:
        if not self._done:
            self._done = True
            self._request.end(error)
            if self._begun:
                self._runner._end(self._request)

    def _fail(self, error: BaseException) -> BaseException:
        """End with `error`, as the caller should see it: typed, and with what there was until then."""
        error = self._request.failure(error)
        self._request.cancel()
        self._end(error)
        if isinstance(error, GenerationError) and error.partial is None:
            error.partial = self._request.result()
        return error

    def _stopped(self, end: type[Ended]) -> BaseException:
        """What to raise where the backend's tokens are over, and the operation with them."""
        error = self._request.error
        if error is not None:
            return self._fail(error)
        self._end()
        return end()


class TokenStream(_Stream):
    """An iterator over an operation's `Token`s.

    Leaving `with`, `close()` from any thread, or dropping the stream ends the operation
    early and frees what it holds.
    """

    def __init__(self, runner: Runner, request: Request) -> None:
        super().__init__(runner, request)
        self._tokens: Iterator[Token] = iter(())
        self._stepping = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        with self._stepping:
            if self._done:
                raise StopIteration
            try:
                self._runner._check_open()
                if not self._begun:
                    self._begin()
                    self._tokens = iter(self._runner._run(self._request))
                token = next(self._tokens, None)
                if token is not None and not self._request.cancelled and self._request.accept(token):
                    return token
                self._release()
            except BaseException as error:
                self._release()
                raised = self._fail(error)
                if raised is error:
                    raise
                raise raised from raised.__cause__
            raise self._stopped(StopIteration)

    def _release(self) -> None:
        close = getattr(self._tokens, "close", None)
        if close is not None:
            close()

    def text(self) -> str:
        """Drain the stream: the whole text, of tokens of kind "text"."""
        return self.result().text

    def result(self) -> GenerateResult:
        """Drain the stream: everything generated, tokens already iterated included."""
        for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation, from any thread. Idempotent; a finished stream stays as it is."""
        if not self._done:
            self._request.cancel()
        # If another thread waits for the next token, the cancellation wakes it, and it tidies up.
        if self._stepping.acquire(blocking=False):
            try:
                self._release()
                self._end()
            finally:
                self._stepping.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._done and self._begun:
            self.close()


class AsyncTokenStream(_Stream):
    """`TokenStream` for `async for`. Cancelling the task that iterates ends the operation."""

    def __init__(self, runner: Runner, request: Request) -> None:
        super().__init__(runner, request)
        self._tokens: AsyncIterator[Token] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        if self._done:
            raise StopAsyncIteration
        try:
            self._runner._check_open()
            if self._tokens is None:
                self._begin()
                self._tokens = self._runner._arun(self._request)
            token = await anext(self._tokens, None)
            if token is not None and not self._request.cancelled and self._request.accept(token):
                return token
            await self._release()
        except BaseException as error:
            raised = self._fail(error)
            await self._release()
            if raised is error:
                raise
            raise raised from raised.__cause__
        raise self._stopped(StopAsyncIteration)

    async def text(self) -> str:
        """Drain the stream: the whole text, of tokens of kind "text"."""
        return (await self.result()).text

    async def result(self) -> GenerateResult:
        """Drain the stream: everything generated, tokens already iterated included."""
        async for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation, from any thread. Idempotent; a finished stream stays as it is."""
        if not self._done:
            self._request.cancel()
            if not self._begun:
                self._end()

    async def aclose(self) -> None:
        """End the operation, and wait until what it held is freed."""
        self.close()
        await self._release()
        self._end()

    async def _release(self) -> None:
        # A task that waits in the generator ends by the cancellation, and it alone may close it.
        close = getattr(self._tokens, "aclose", None)
        if close is not None and not getattr(self._tokens, "ag_running", False):
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._done and self._begun:
            self._request.cancel()
            self._end()
