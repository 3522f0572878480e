# SPDX-License-Identifier: Apache-2.0
"""Work that takes too long for an event loop: run in threads that end as soon as there is none left.

asyncio's own pool would do, but it is the application's: where that fills it with calls that
wait for a model, the model would wait for a free thread of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

MAX_THREADS = 32
"""At once. Work beyond that waits its turn."""

_lock = threading.Lock()
_waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
_threads = 0


def submit(function: Callable[[], T]) -> Future[T]:
    """Run `function` in a thread. One that is cancelled before it begins is not run.

    Raises RuntimeError where the system gives no thread and none of the others is left to run it.
    """
    global _threads  # noqa: PLW0603
    future: Future[T] = Future()
    with _lock:
        _waiting.append((function, future))
        start = _threads < MAX_THREADS
        _threads += start
    if start:
        try:
            # A daemon, so that a program which ends does not wait: what must not be interrupted passes a gate.
            threading.Thread(target=_work, name="inference-bridge-prepare", daemon=True).start()
        except RuntimeError:
            with _lock:
                _threads -= 1
                if not _threads:
                    _waiting.clear()
                    raise
    return future


async def off_loop(function: Callable[[], T]) -> T:
    """What `function` returns, or raises, while the event loop goes on. Where the task is cancelled, nobody waits."""
    import asyncio

    return await asyncio.wrap_future(submit(function))


def _work() -> None:
    global _threads  # noqa: PLW0603
    while True:
        with _lock:
            if not _waiting:
                _threads -= 1
                return
            function, future = _waiting.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        del function, future  # they hold what is to be freed


def _in_child() -> None:
    """After a fork the threads are the parent's."""
    global _lock, _threads  # noqa: PLW0603
    _lock = threading.Lock()
    _waiting.clear()
    _threads = 0


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
