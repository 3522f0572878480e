# SPDX-License-Identifier: Apache-2.0
"""Queues that pass tokens from the thread that produces them to the thread or task that reads them.

A mailbox is unbounded, so a producer never waits for a consumer. A mailbox has one consumer and any number of
producers. `put` and `close` may be called from any thread and never block.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Sink(Protocol[T_contra]):
    """The writing end of a mailbox. The producer closes it at the end, with an error or without."""

    def put(self, item: T_contra) -> None:
        """Add an item. Never blocks.

        Args:
            item: The item.
        """
        ...

    def close(self, error: BaseException | None = None) -> None:
        """End the mailbox. Never blocks.

        Args:
            error: Raised at the reader after the items before it. None: the reader's iteration ends.
        """
        ...


class _Closed:
    """The last item of a mailbox."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Mailbox(Generic[T]):
    """A mailbox that a thread reads by iterating over it.

    The iteration waits for the next item. It ends when the mailbox was closed, or raises the error with which the
    mailbox was closed; further calls of `next` do the same.

    Args:
        deadline: A time of time.monotonic. If no item comes before it, the iteration raises TimeoutError.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._items: SimpleQueue[T | _Closed] = SimpleQueue()
        self._end: _Closed | None = None

    def put(self, item: T) -> None:
        """Add an item. See `Sink.put`."""
        self._items.put(item)

    def close(self, error: BaseException | None = None) -> None:
        """End the mailbox. See `Sink.close`."""
        self._items.put(_Closed(error))

    @property
    def waiting(self) -> bool:
        """Whether an item, or the end, can be read without waiting."""
        return not self._items.empty()

    def __iter__(self) -> Mailbox[T]:
        return self

    def __next__(self) -> T:
        if self._end is None:
            wait = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
            try:
                item = self._items.get(timeout=wait if wait is None else min(wait, threading.TIMEOUT_MAX))
            except Empty:
                raise TimeoutError from None
            if not isinstance(item, _Closed):
                return item
            self._end = item
        raise StopIteration if self._end.error is None else self._end.error

    def read(self, abandon: Callable[[], None]) -> Iterator[T]:
        """Return an iterator over the items.

        Args:
            abandon: Called if the reader closes the iterator before the end.
        """
        try:
            yield from self
        except GeneratorExit:
            abandon()
            raise


class AsyncMailbox(Generic[T]):
    """A `Mailbox` that a coroutine reads with `async for`.

    It belongs to the event loop that was running when it was created.

    Args:
        deadline: As in `Mailbox`.
    """

    def __init__(self, deadline: float | None = None) -> None:
        import asyncio

        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._items: deque[T | _Closed] = deque()
        self._end: _Closed | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Add an item. See `Sink.put`."""
        self._items.append(item)
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the mailbox. See `Sink.close`."""
        self._items.append(_Closed(error))
        self._wake()

    @property
    def waiting(self) -> bool:
        """Whether an item, or the end, can be read without waiting."""
        return bool(self._items)

    @property
    def ended(self) -> bool:
        """Whether the end was read."""
        return self._end is not None

    def __aiter__(self) -> AsyncMailbox[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items and self._end is None:
            self._waiter = self._loop.create_future()
            try:
                if not self._items:  # a producer may have put an item before it could see the waiter
                    await self._wait(self._waiter)
            finally:
                self._waiter = None
        if self._end is None:
            item = self._items.popleft()
            if not isinstance(item, _Closed):
                return item
            self._end = item
        raise StopAsyncIteration if self._end.error is None else self._end.error

    def _wake(self) -> None:
        # Waking a loop costs a system call, and is needed only if the consumer is waiting.
        if self._waiter is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits on it
                self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, waiter: asyncio.Future[None]) -> None:
        if self._deadline is None:
            await waiter
            return
        timer = self._loop.call_later(max(self._deadline - time.monotonic(), 0), _expire, waiter)
        try:
            await waiter
        finally:
            timer.cancel()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
