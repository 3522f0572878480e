# SPDX-License-Identifier: Apache-2.0
"""Work that takes too long for an event loop runs in other threads, which end when there is none left.

asyncio's own pool belongs to the application: if that fills it with calls that wait for a
model, the model must not wait for a free thread of the pool.

Threads that compute in Python take turns. Each of them may keep the interpreter's lock for
5 ms (sys.getswitchinterval), so an event loop would wait for all of them in a row.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

MAX_THREADS = 16
"""At once, for `submit`. Further work waits its turn."""

_lock = threading.Lock()
_waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
_threads = 0
_turn = threading.Lock()
_own = threading.local()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let other work go on meanwhile: the block waits for something, or runs native code without the interpreter."""
    if not getattr(_own, "turn", False):
        yield
        return
    _own.turn = False
    _turn.release()
    try:
        yield
    finally:
        _turn.acquire()
        _own.turn = True


def submit(function: Callable[[], T]) -> Future[T]:
    """Run `function`, which computes and waits for no other work, in a thread.

    If the future is cancelled before the function begins, the function is not run.

    Raises:
        RuntimeError: The system has no thread to spare, and none of those started before is left.
    """
    global _threads  # noqa: PLW0603
    from concurrent.futures import Future  # not with the package: it costs some milliseconds

    future: Future[T] = Future()
    with _lock:
        _waiting.append((function, future))
        start = _threads < MAX_THREADS
        _threads += start
    if start:
        try:
            # A daemon, so that a program that ends does not wait for it. Native code is behind a gate.
            threading.Thread(target=_work, name="inference-bridge-prepare", daemon=True).start()
        except RuntimeError:
            with _lock:
                _threads -= 1
                if not _threads:
                    _waiting.clear()
                    raise
    return future


async def off_loop(function: Callable[[], T]) -> T:
    """Return what `function`, which computes, returns or raises, while the event loop goes on.

    Cancelling the task ends the waiting, and the work too if it has not begun.
    """
    import asyncio

    return await asyncio.wrap_future(submit(function))


async def in_thread(function: Callable[[], T]) -> T:
    """Return what `function`, which may wait for something, returns or raises. It gets a thread of its own.

    Cancelling the task ends the waiting alone.
    """
    import asyncio
    from concurrent.futures import Future

    future: Future[T] = Future()
    work = threading.Thread(target=run_into, args=(function, future), name="inference-bridge-wait", daemon=True)
    work.start()
    return await asyncio.wrap_future(future)


def _work() -> None:
    global _threads  # noqa: PLW0603
    while True:
        with _lock:
            if not _waiting:
                _threads -= 1
                return
            function, future = _waiting.popleft()
        with _turn:
            _own.turn = True
            run_into(function, future)
            _own.turn = False
        del function, future  # they keep alive what should be freed


def run_into(function: Callable[[], Any], future: Future[Any]) -> None:
    """Run `function` and put its outcome into `future`, unless that was cancelled."""
    if future.set_running_or_notify_cancel():
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _in_child() -> None:
    """After a fork: the threads are the parent's."""
    global _lock, _turn, _threads  # noqa: PLW0603
    _lock, _turn = threading.Lock(), threading.Lock()
    _waiting.clear()
    _threads = 0


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
