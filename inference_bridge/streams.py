# SPDX-License-Identifier: Apache-2.0
"""The streams that `generate` and `chat` return.

A stream starts when it is first iterated and is used once. What it cost, how it ended
and which tools it called belong to it alone, whatever else the model does meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from ._concurrency.cooperative import LoopYield
from ._concurrency.loops import check_asyncio
from .errors import GenerationError
from .request import Request
from .types import FinishReason, GenerateMetrics, GenerateResult, Token, ToolCall

if TYPE_CHECKING:
    import asyncio
    from typing import Self

Ended = TypeVar("Ended", StopIteration, StopAsyncIteration)


class Runner(Protocol):
    """What a stream needs of its model."""

    def _begin(self, request: Request) -> None: ...
    def _end(self, request: Request) -> None: ...
    def _check_open(self) -> None: ...
    async def _amake_ready(self, request: Request) -> None: ...
    @property
    def _name(self) -> str: ...
    def _run(self, request: Request) -> Iterator[Token]: ...
    def _arun(self, request: Request) -> AsyncIterator[Token]: ...


class _Stream:
    """The state that the sync and async streams share: an operation from its first token to its last."""

    def __init__(self, runner: Runner, request: Request) -> None:
        self._runner = runner
        self._request = request
        self._begun = False
        self._done = False
        self._stepping = threading.Lock()

    @property
    def metrics(self) -> GenerateMetrics:
        """This operation's; complete once the stream has ended."""
        return self._request.metrics

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended; None until it has, and if it ended with an error."""
        return self._request.finish_reason if self._done else None

    @property
    def shortened(self) -> bool:
        """Whether max_tokens made a constrained answer shorter than the model would have made it. True from then on."""
        return self._request.shortened

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The complete tool calls among the tokens so far."""
        return self._request.result().tool_calls

    def __repr__(self) -> str:
        if not self._begun and not self._done:
            state = "not iterated"
        else:
            state = (self.finish_reason or self._request.error_type or "failed") if self._done else "running"
        return f"<{type(self).__name__} of {self._runner!r}: {state}>"

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

    def _closed_under(self, error: BaseException) -> bool:
        """Whether `error` is but what the backend made of being told to stop."""
        return isinstance(error, Exception) and self._request.cancelled and self._request.error is None


class TokenStream(_Stream):
    """An iterator over an operation's `Token`s.

    Leaving `with`, `close()` from any thread, or dropping the stream ends the operation
    early and frees what it holds.
    """

    def __init__(self, runner: Runner, request: Request) -> None:
        super().__init__(runner, request)
        self._tokens: Iterator[Token] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        if self._request.forked:
            self._runner._check_open()
        with self._stepping:
            if self._done:
                raise StopIteration
            try:
                self._runner._check_open()
                if not self._begun:
                    self._begin()
                    _open.add(self)
                    self._tokens = iter(self._runner._run(self._request))
                token = next(self._tokens, None)
                if token is not None and not self._request.cancelled and self._request.accept(token):
                    return token
                self._release()
            except BaseException as error:
                raised = None if self._closed_under(error) else self._fail(error)
                self._release()
                if raised is error:
                    raise
                if raised is not None:
                    raise raised from raised.__cause__
            raise self._stopped(StopIteration)

    def _release(self) -> None:
        _open.discard(self)
        close = getattr(self._tokens, "close", None)
        if close is not None:
            close()

    def text(self) -> str:
        """Drain the stream, and return the text of all its tokens of kind "text".

        Raises GenerationError and its subclasses, with what there was until then as `partial`, and ModelClosedError.
        """
        return self.result().text

    def result(self) -> GenerateResult:
        """Drain the stream, and return everything that was generated: tokens, text, reasoning, tool calls, metrics.

        Tokens that were iterated before are among them. Raises as `text`.
        """
        for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation, from any thread. Idempotent; a finished stream stays as it is."""
        if self._request.forked:
            return
        if not self._done:
            self._request.cancel()
        # If another thread waits for the next token, the cancellation wakes it, and it tidies up.
        if self._stepping.acquire(blocking=False):
            try:
                self._end()
                self._release()
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
            self._request.dropped = True
            self.close()

    def _abandon(self) -> None:
        """Close what the backend has open, and not the operation: who would be told of its end, a trace say, may be
        gone. One that a thread is at goes with the thread."""
        if not self._request.forked and self._stepping.acquire(blocking=False):
            try:
                self._request.cancel()
                self._release()
            finally:
                self._stepping.release()


_open: weakref.WeakSet[TokenStream] = weakref.WeakSet()
"""Those that have begun, and hold what their backend opened for them."""


@atexit.register
def _close_what_is_open() -> None:
    """While the interpreter is whole. A backend's own closing is code like any other, which may fail once modules go:
    early releases of Python 3.13 crash where httpx2, on closing, makes a timedelta then."""
    left: list[TokenStream] = []
    with contextlib.suppress(RuntimeError):  # a thread that still runs has begun another
        left += _open
    with contextlib.ExitStack() as closing:  # whatever one of them raises
        for stream in left:
            closing.callback(stream._abandon)


class AsyncTokenStream(_Stream):
    """`TokenStream` for `async for`. Cancelling the task that iterates ends the operation.

    However fast the tokens come, the event loop's other tasks have their turns.
    """

    def __init__(self, runner: Runner, request: Request) -> None:
        super().__init__(runner, request)
        self._tokens: AsyncIterator[Token] | None = None
        self._scope: asyncio.Timeout | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_yield = LoopYield()
        self._released = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        if self._request.forked:
            self._runner._check_open()
        if not self._stepping.acquire(blocking=False):
            if self._request.cancelled:
                raise StopAsyncIteration
            raise RuntimeError("another task is waiting for this stream's next token")
        try:
            if self._done:
                raise StopAsyncIteration
            try:
                self._runner._check_open()
                if not self._begun:
                    check_asyncio(self._runner._name)
                    self._begin()
                    interrupt = weakref.WeakMethod(self._interrupt)  # the request must not keep the stream alive
                    self._request.on_cancel(lambda: (alive := interrupt()) and alive())
                token = await self._next()
                if token is not None and not self._request.cancelled and self._request.accept(token):
                    return token
                await self._release()
            except BaseException as error:
                raised = None if self._closed_under(error) else self._fail(error)
                await self._release()
                if raised is error:
                    raise
                if raised is not None:
                    raise raised from raised.__cause__
            raise self._stopped(StopAsyncIteration)
        finally:
            self._stepping.release()

    async def _next(self) -> Token | None:
        """The backend's next token, waited for until the request is cancelled or its time is over."""
        import asyncio

        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._request.remaining()) as self._scope:
                if self._request.cancelled or self._released:
                    return None
                if self._tokens is None:
                    await self._runner._amake_ready(self._request)
                    if self._request.cancelled or self._released:
                        return None
                    self._tokens = self._runner._arun(self._request)
                await self._loop_yield.if_due()
                return await anext(self._tokens, None)
        except TimeoutError:
            if self._scope is not None and self._scope.expired():
                raise self._request.timed_out() from None
            raise
        finally:
            self._scope = None

    def _interrupt(self) -> None:
        scope, loop = self._scope, self._loop
        if scope is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._expire, scope)

    def _expire(self, scope: asyncio.Timeout) -> None:
        if scope is self._scope and self._loop is not None and not scope.expired():
            scope.reschedule(self._loop.time())

    async def text(self) -> str:
        """Drain the stream, and return the text of all its tokens of kind "text".

        Raises GenerationError and its subclasses, with what there was until then as `partial`, and ModelClosedError.
        """
        return (await self.result()).text

    async def result(self) -> GenerateResult:
        """Drain the stream, and return everything that was generated: tokens, text, reasoning, tool calls, metrics.

        Tokens that were iterated before are among them. Raises as `text`.
        """
        async for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation, from any thread. Idempotent; a finished stream stays as it is."""
        if self._request.forked:
            return
        if not self._done:
            self._request.cancel()
        # If a task waits for the next token, the cancellation wakes it, and it tidies up.
        if self._stepping.acquire(blocking=False):
            try:
                self._end()
                self._released = True
                self._tokens = None  # a generator that is dropped, asyncio closes on the loop it ran on
            finally:
                self._stepping.release()

    async def aclose(self) -> None:
        """`close()`, and wait until what the operation held is freed, unless a task still iterates."""
        if self._request.forked:
            return
        if not self._done:
            self._request.cancel()
        if self._stepping.acquire(blocking=False):
            try:
                self._end()
                await self._release()
            finally:
                self._stepping.release()

    async def _release(self) -> None:
        tokens, self._tokens, self._released = self._tokens, None, True
        close = getattr(tokens, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._done and self._begun and not self._request.forked:
            self._request.dropped = True
            self._request.cancel()
            self._end()
