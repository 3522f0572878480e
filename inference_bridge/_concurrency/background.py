# SPDX-License-Identifier: Apache-2.0
"""Runs work that takes too long for an event loop in threads. The threads end when no work is left.

asyncio's own thread pool is not used, because it belongs to the application. If the application fills it with calls
that wait for a model, the model must not wait for a free thread of this pool.

Only one of the threads computes at a time. Each thread may hold the interpreter's lock for 5 ms
(sys.getswitchinterval), so an event loop would otherwise have to wait for all of them, one after the other.
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
"""Maximum number of threads of `submit`. Further work waits in a queue."""

_lock = threading.Lock()
_waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
_threads = 0
_turn = threading.Lock()
_own = threading.local()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let another thread compute during the block, which waits, or runs native code without the interpreter's lock."""
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
    """Run `function` in a thread. It must not wait for other work that is submitted here.

    If the future is cancelled before the function begins, the function is not run.

    Returns:
        The future result.

    Raises:
        RuntimeError: The system cannot start a thread, and no earlier thread is running.
    """
    global _threads  # noqa: PLW0603
    from concurrent.futures import Future  # imported here because the import takes some milliseconds

    future: Future[T] = Future()
    with _lock:
        _waiting.append((function, future))
        start = _threads < MAX_THREADS
        _threads += start
    if start:
        try:
            # A daemon, so that a program that ends does not wait for it. At exit, a `Gate` waits for native code.
            threading.Thread(target=_work, name="inference-bridge-prepare", daemon=True).start()
        except RuntimeError as error:
            with _lock:
                _threads -= 1
                if _threads:
                    return future  # another thread runs it
                left = list(_waiting)
                _waiting.clear()
            for _, other in left:
                if other is not future and other.set_running_or_notify_cancel():
                    other.set_exception(error)
            raise
    return future


async def off_loop(function: Callable[[], T]) -> T:
    """Run `function`, which computes, in a thread of `submit`, and return its result. The event loop continues.

    If the task is cancelled, it no longer waits. If the work has not begun, it is not run.
    """
    import asyncio

    return await asyncio.wrap_future(submit(function))


async def in_thread(function: Callable[[], T]) -> T:
    """Run `function`, which may block, in a new thread, and return its result.

    If the task is cancelled, it no longer waits, but the work continues.
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
        del function, future  # otherwise they would keep the result alive


def run_into(function: Callable[[], Any], future: Future[Any]) -> None:
    """Run `function` and store its result or exception in `future`, unless the future was cancelled."""
    if future.set_running_or_notify_cancel():
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _in_child() -> None:
    """Reset the state in a forked child, which does not have the parent's threads."""
    global _lock, _turn, _threads  # noqa: PLW0603
    _lock, _turn = threading.Lock(), threading.Lock()
    _waiting.clear()
    _threads = 0


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
