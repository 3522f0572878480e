# SPDX-License-Identifier: Apache-2.0
"""The thread that owns a native engine.

Every call into an engine is made from one worker, turn by turn. A worker ends when it is
stopped, and at the latest before the interpreter goes: a thread that is still inside a
native library then would crash the process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from ..errors import ModelClosedError

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Loop(Protocol):
    """Something that a worker keeps turning."""

    def turn(self) -> bool:
        """Do one bounded piece of work. False: there was none, wake me when there is."""
        ...

    def interrupt(self) -> None:
        """Make a turn that is under way return soon; the end is near. Called from any thread."""
        ...

    def close(self, exiting: bool) -> None:
        """Free what is held. The last call, in the worker's thread.

        `exiting`: the interpreter is about to go, and only daemon threads may still wait for
        something. They go with it: told of an error now, they would print it.
        """
        ...


class Worker:
    """A daemon thread that runs calls and turns loops until it is stopped."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._condition = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._loops: list[Loop] = []
        self._woken = False
        self._stopping = False
        self._exiting = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        _running.add(self)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Have `function` run in the worker's thread, between two turns."""
        future: Future[T] = Future()
        with self._condition:
            if self._stopping:
                raise ModelClosedError("the model is closed: load it again")
            self._calls.append((function, future))
            self._condition.notify()
        return future

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the worker's thread and return what it returns, or raise what it raises."""
        if threading.current_thread() is self._thread:
            return function()
        return self.submit(function).result()

    def add(self, loop: Loop) -> None:
        with self._condition:
            self._loops.append(loop)

    def remove(self, loop: Loop, *, wait: bool = True) -> None:
        """Take a loop out and close it, in the worker's thread; `wait` for that. Idempotent.

        In a forked child, where the thread does not exist, this does nothing.
        """
        if self._pid != os.getpid():
            return

        def close() -> None:
            with self._condition:
                if loop not in self._loops:
                    return
                self._loops.remove(loop)
            loop.close(False)

        loop.interrupt()
        try:
            closing = self.submit(close) if threading.current_thread() is not self._thread else None
        except ModelClosedError:
            return  # the worker was stopped, which closed its loops
        if closing is None:
            close()
        elif wait:
            closing.result()

    def wake(self) -> None:
        """There is work again. Cheap, from any thread."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop(self, exiting: bool = False) -> None:
        """Interrupt the loops, close them, end the thread and wait for that. Idempotent.

        In a forked child, where the thread does not exist, this does nothing.
        """
        if self._pid != os.getpid():
            return
        with self._condition:
            self._stopping = True
            self._exiting = exiting
            loops = list(self._loops)
            self._condition.notify()
        for loop in loops:
            loop.interrupt()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        _running.discard(self)

    def _main(self) -> None:
        busy = False
        while True:
            with self._condition:
                while not (busy or self._woken or self._calls or self._stopping):
                    self._condition.wait()
                self._woken = False
                calls, self._calls = self._calls, deque()
                stopping = self._stopping
            while calls:
                _run(*calls.popleft())
            with self._condition:  # a call may have taken one out
                loops = list(self._loops)
            if stopping:
                break
            busy = False
            for loop in loops:
                try:
                    busy = loop.turn() or busy
                except Exception:  # a loop handles its own errors: this is a defect, and must hang nobody
                    _log.exception("a loop failed, and is closed")
                    self.remove(loop)
        for loop in loops:
            loop.close(self._exiting)


def _run(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


_running: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for worker in list(_running):
        worker.stop(exiting=True)
