# SPDX-License-Identifier: Apache-2.0
"""Adapters between sync and async: a blocking `_run` for coroutines, an asynchronous `_arun` for threads.

Each running operation has its own thread, which ends with the operation. Engines that write tokens into a `Sink`
themselves do not need these adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from ..errors import GenerationError
from ..request import Request
from ..types import Token
from .cooperative import LoopYield
from .mailbox import AsyncMailbox, Mailbox, Sink

Run = Callable[[Request], Iterator[Token]]
AsyncRun = Callable[[Request], AsyncIterator[Token]]


def start_in_thread(run: Run, request: Request, sink: Sink[Token]) -> None:
    """Put the tokens of `run(request)` into `sink`, in a new thread.

    Args:
        run: A model's `_run`.
        request: Its argument. The thread ends between two tokens if it is cancelled.
        sink: Closed at the end, with the error that `run` raised.
    """

    def pump() -> None:
        try:
            tokens = run(request)
            for token in tokens:
                if request.cancelled:
                    break
                sink.put(token)
            close = getattr(tokens, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            sink.close(error)
        else:
            sink.close()

    threading.Thread(target=pump, name="inference-bridge-run", daemon=True).start()


async def arun_in_thread(run: Run, request: Request) -> AsyncIterator[Token]:
    """Iterate over `run(request)` with `async for`. It runs in a new thread.

    Args:
        run: A model's `_run`.
        request: Its argument. It is cancelled if the iteration is closed before the end.

    Raises:
        TimeoutError: No token came before the request's deadline.
    """
    box: AsyncMailbox[Token] = AsyncMailbox(request.deadline)
    request.on_cancel(box.close)
    start_in_thread(run, request, box)
    try:
        async for token in box:
            yield token
    except GeneratorExit:
        request.cancel()
        raise


def run_in_thread_loop(arun: AsyncRun, request: Request) -> Iterator[Token]:
    """Iterate over `arun(request)` with `for`. It runs on an event loop in a new thread.

    The caller's thread is not used, because it may already run an event loop, as in a notebook.

    Args:
        arun: A model's `_arun`.
        request: Its argument. It is cancelled if the iterator is closed before the end.

    Returns:
        The tokens.

    Raises:
        TimeoutError: From the iterator: no token came before the request's deadline.
    """
    box: Mailbox[Token] = Mailbox(request.deadline)
    request.on_cancel(box.close)
    start_in_thread_loop(arun, request, box)
    return box.read(request.cancel)


def start_in_thread_loop(arun: AsyncRun, request: Request, sink: Sink[Token]) -> None:
    """Put the tokens of `arun(request)` into `sink`, on an event loop in a new thread.

    Args:
        arun: A model's `_arun`.
        request: Its argument. `arun` is cancelled when the request is.
        sink: Closed at the end, with the error that `arun` raised.
    """

    def main() -> None:
        asyncio.run(_pump(arun, request, sink))

    threading.Thread(target=main, name="inference-bridge-loop", daemon=True).start()


def start_in_task(arun: AsyncRun, request: Request, sink: Sink[Token]) -> asyncio.Task[None]:
    """Put the tokens of `arun(request)` into `sink`, in a new task of the running event loop.

    Args:
        arun: A model's `_arun`.
        request: Its argument. `arun` is cancelled when the request is.
        sink: Closed at the end, with the error that `arun` raised.

    Returns:
        The task. The caller need not keep it.
    """
    task = asyncio.get_running_loop().create_task(_pump(arun, request, sink))
    _tasks.add(task)  # the event loop holds only a weak reference
    task.add_done_callback(_tasks.discard)
    return task


_tasks: set[asyncio.Task[None]] = set()


async def _pump(arun: AsyncRun, request: Request, sink: Sink[Token]) -> None:
    """Put the tokens into `sink` until they end, the request is cancelled, or its time is over."""
    task, loop, loop_yield = asyncio.current_task(), asyncio.get_running_loop(), LoopYield()

    def cancel() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(task.cancel)  # type: ignore[union-attr]

    request.on_cancel(cancel)
    try:
        async with asyncio.timeout(request.remaining()), _closing(arun(request)) as tokens:
            async for token in tokens:
                sink.put(token)
                await loop_yield.if_due()
    except asyncio.CancelledError:
        sink.close(None if request.cancelled else GenerationError("the backend's own task was cancelled"))
    except BaseException as error:
        sink.close(error)
    else:
        sink.close()


@contextlib.asynccontextmanager
async def _closing(tokens: AsyncIterator[Token]) -> AsyncIterator[AsyncIterator[Token]]:
    try:
        yield tokens
    finally:
        close = getattr(tokens, "aclose", None)  # an iterator that is not a generator need not have it
        if close is not None:
            await close()
