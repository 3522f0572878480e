# SPDX-License-Identifier: Apache-2.0
"""The streams that `generate` and `chat` return.

A stream starts when it is first iterated, and can be iterated once. Its metrics, finish reason and tool calls are
those of its own operation, even if the model runs other operations at the same time.
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
    """The methods of a model that a stream calls."""

    def _begin(self, request: Request) -> None: ...
    def _end(self, request: Request) -> None: ...
    def _check_open(self) -> None: ...
    async def _amake_ready(self, request: Request) -> None: ...
    @property
    def _name(self) -> str: ...
    def _run(self, request: Request) -> Iterator[Token]: ...
    def _arun(self, request: Request) -> AsyncIterator[Token]: ...


class _Stream:
    """The state that the sync and async streams share: one operation, from its first token to its last."""

    def __init__(self, runner: Runner, request: Request) -> None:
        self._runner = runner
        self._request = request
        self._begun = False
        self._done = False
        self._stepping = threading.Lock()

    @property
    def metrics(self) -> GenerateMetrics:
        """The metrics of this operation. They are complete when the stream has ended."""
        return self._request.metrics

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended. None: it has not ended, or it ended with an error."""
        return self._request.finish_reason if self._done else None

    @property
    def shortened(self) -> bool:
        """Whether max_tokens made a constrained answer shorter than the model would have made it. May become True
        before the stream has ended."""
        return self._request.shortened

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that are complete so far."""
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
        """End the operation. Return the error that the caller should see, with the output so far as `partial`."""
        error = self._request.failure(error)
        self._request.cancel()
        self._end(error)
        if isinstance(error, GenerationError) and error.partial is None:
            error.partial = self._request.result()
        return error

    def _stopped(self, end: type[Ended]) -> BaseException:
        """Return what to raise when the backend has no more tokens: the error of the operation, or `end()`."""
        error = self._request.error
        if error is not None:
            return self._fail(error)
        self._end()
        return end()

    def _closed_under(self, error: BaseException) -> bool:
        """Return whether the backend raised `error` only because the operation was cancelled."""
        return isinstance(error, Exception) and self._request.cancelled and self._request.error is None


class TokenStream(_Stream):
    """An iterator over the `Token`s of an operation.

    Leaving a `with` block, calling `close()` from any thread, or dropping the stream ends the operation early and frees
    its slot.
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
        """Read the stream to its end. Return the text of all its tokens of kind "text".

        Raises:
            GenerationError: Generation failed. `partial` holds the output until then.
            ModelClosedError: The model was closed.
        """
        return self.result().text

    def result(self) -> GenerateResult:
        """Read the stream to its end. Return all that was generated: tokens, text, reasoning, tool calls, metrics.

        Tokens that were read before are included. Raises as `text`.
        """
        for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation. Idempotent; a finished stream does not change. May be called from any thread."""
        if self._request.forked:
            return
        if not self._done:
            self._request.cancel()
        # If another thread is waiting for the next token, the cancellation wakes that thread, which does the rest.
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
        """Close the backend's resources, but do not report the end of the operation: at exit, the receiver of the
        report, such as a trace, may no longer exist. If another thread is reading the stream, do nothing."""
        if not self._request.forked and self._stepping.acquire(blocking=False):
            try:
                self._request.cancel()
                self._release()
            finally:
                self._stepping.release()


_open: weakref.WeakSet[TokenStream] = weakref.WeakSet()
"""The running streams, whose backend has resources open for them."""


@atexit.register
def _close_open_streams() -> None:
    """Close the open streams at exit, before Python unloads modules.

    Later, the code with which a backend closes its resources may fail: in early releases of Python 3.13 the process
    crashes when httpx2 creates a timedelta while it closes a connection."""
    left: list[TokenStream] = []
    with contextlib.suppress(RuntimeError):  # a thread that still runs has started another stream
        left += _open
    with contextlib.ExitStack() as closing:  # closes all of them, even if one raises
        for stream in left:
            closing.callback(stream._abandon)


class AsyncTokenStream(_Stream):
    """`TokenStream` for `async for`. Cancelling the task that iterates ends the operation.

    Even if the tokens come fast, the other tasks of the event loop run in between.
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
        """Wait for the backend's next token, until the request is cancelled or its time is over."""
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
        """Read the stream to its end. Return the text of all its tokens of kind "text".

        Raises:
            TypeError, ValueError, UnsupportedError: A slow check found that an argument is wrong (see `agenerate`).
            GenerationError: Generation failed. `partial` holds the output until then.
            ModelClosedError: The model was closed.
        """
        return (await self.result()).text

    async def result(self) -> GenerateResult:
        """Read the stream to its end. Return all that was generated: tokens, text, reasoning, tool calls, metrics.

        Tokens that were read before are included. Raises as `text`.
        """
        async for _ in self:
            pass
        return self._request.result()

    def close(self) -> None:
        """End the operation. Idempotent; a finished stream does not change. May be called from any thread."""
        if self._request.forked:
            return
        if not self._done:
            self._request.cancel()
        # If a task is waiting for the next token, the cancellation wakes that task, which does the rest.
        if self._stepping.acquire(blocking=False):
            try:
                self._end()
                self._released = True
                self._tokens = None  # asyncio closes a dropped generator, on the loop on which it ran
            finally:
                self._stepping.release()

    async def aclose(self) -> None:
        """`close()`, and wait until the operation's resources are freed, unless another task is iterating."""
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
