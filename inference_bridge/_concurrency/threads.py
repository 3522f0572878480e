# SPDX-License-Identifier: Apache-2.0
"""Adapters between sync and async: a blocking `_run` for coroutines, an asynchronous `_arun` for threads.

One thread a running operation, which ends with it. Engines that push tokens by
themselves need none of this.
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
    """Drain `run(request)` into `sink`, in a thread of its own."""

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
    """`run(request)` for `async for`."""
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
    """`arun(request)` for `for`, on an event loop in a thread.

    Not on the caller's thread: that may run a loop of its own, as in a notebook.
    """
    box: Mailbox[Token] = Mailbox(request.deadline)
    request.on_cancel(box.close)
    start_in_thread_loop(arun, request, box)
    return box.read(request.cancel)


def start_in_thread_loop(arun: AsyncRun, request: Request, sink: Sink[Token]) -> None:
    """Drain `arun(request)` into `sink`, on an event loop in a thread."""

    def main() -> None:
        asyncio.run(_pump(arun, request, sink))

    threading.Thread(target=main, name="inference-bridge-loop", daemon=True).start()


def start_in_task(arun: AsyncRun, request: Request, sink: Sink[Token]) -> asyncio.Task[None]:
    """Drain `arun(request)` into `sink`, on the event loop that runs here."""
    task = asyncio.get_running_loop().create_task(_pump(arun, request, sink))
    _tasks.add(task)  # the loop itself would let go of it
    task.add_done_callback(_tasks.discard)
    return task


_tasks: set[asyncio.Task[None]] = set()


async def _pump(arun: AsyncRun, request: Request, sink: Sink[Token]) -> None:
    """Put the tokens into `sink` until they end, the request is cancelled, or its time is over."""
    task, loop, loop_yield = asyncio.current_task(), asyncio.get_running_loop(), LoopYield()

    def cancel() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself meanwhile
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
        close = getattr(tokens, "aclose", None)  # which an iterator of an author's own need not have
        if close is not None:
            await close()
