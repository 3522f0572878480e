# SPDX-License-Identifier: Apache-2.0
"""The thread that owns a native engine.

Every call into an engine is made from one worker, turn by turn. A worker ends when it is
stopped, and at the latest before the interpreter goes: a thread that is still inside a
native library then would crash the process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from .._concurrency.background import run_into
from .._concurrency.presence import Presence
from ..errors import GenerationError, ModelClosedError

T = TypeVar("T")
_log = logging.getLogger(__name__)


_LAST_STEP = 1.0
"""Seconds to wait for a thread that has nothing left to do."""


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
    """A daemon thread that runs calls and turns loops. It ends with the last loop that is removed, unless `lasting`.

    `at_end` is its last call, and must not raise.
    """

    def __init__(self, name: str, *, lasting: bool = False, at_end: Callable[[], None] | None = None) -> None:
        self._pid = os.getpid()
        self._at_end = at_end
        self._lock = threading.RLock()
        self._woken: SimpleQueue[None] = SimpleQueue()
        """To put something into it may be interrupted by doing so again, which a Condition can't."""
        self._ended = threading.Event()
        self._callers = Presence()
        """In a method that locks, or that waits for the worker."""
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._loops: list[Loop] = []
        self._stopping = False
        self._exiting = False
        self._to_come = 1
        """How many loops are yet to be added."""
        self._lasting = lasting
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C, say, while it is waited for: it comes all the same
            with self._callers, self._lock:
                self._stopping = True
                self._woken.put(None)
            raise
        _running.add(self)

    def share(self) -> Worker:
        """The worker that is shared under this one's name, for one loop more: this one, if there is none."""
        with _lock:
            worker = _shared.get(self._thread.name)
            if worker is None or not worker.expect():
                worker = _shared[self._thread.name] = self
                worker.expect()
            return worker

    def expect(self) -> bool:
        """Have it last for one loop more than it was made for. False: it has ended already."""
        if self._pid != os.getpid():
            return False
        with self._callers, self._lock:
            self._to_come += not self._stopping
            return not self._stopping

    def give_back(self) -> None:
        """A loop that was to come won't."""
        with self._callers, self._lock:
            self._to_come -= 1
            self._end_without_loops()

    def _end_without_loops(self) -> None:
        if not (self._loops or self._to_come or self._lasting):
            self._stopping = True
            self._woken.put(None)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Have `function` run in the worker's thread, between two turns."""
        future: Future[T] = Future()
        with self._callers, self._lock:
            if self._stopping:
                raise ModelClosedError("the model is closed: load it again")
            self._calls.append((function, future))
            self._woken.put(None)
        return future

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the worker's thread and return what it returns, or raise what it raises."""
        if self.is_current:
            return function()
        with self._callers:
            return self.submit(function).result()

    async def acall(self, function: Callable[[], T]) -> T:
        """`call` for a coroutine. Cancelling its task ends the waiting, and the work too if it has not begun."""
        import asyncio

        with self._callers:  # its lock is held where a callback is added
            waiting = asyncio.wrap_future(self.submit(function))
        return await waiting

    def check_caller(self) -> None:
        """Raise GenerationError in the worker's own thread, which can't wait for itself: in a finalizer, say."""
        if self.is_current:
            raise GenerationError(
                "called in the engine's own thread, by a finalizer (__del__) or a callback: call the model elsewhere"
            )

    def add(self, loop: Loop) -> None:
        with self._callers, self._lock:
            self._loops.append(loop)
            self._to_come = max(self._to_come - 1, 0)

    def remove(self, loop: Loop, *, wait: bool = True) -> None:
        """Take a loop out and close it, in the worker's thread; `wait` for that, and for the worker's end. Idempotent.

        A finalizer does not wait: it may run in any thread, in the midst of whatever that does. Nor does a signal
        handler, or a `__del__`, that interrupts a method of the worker: the worker may need what that holds. In the
        worker's own thread, in the midst of a turn perhaps, which uses what is to be freed, the loop is closed after
        the turn. In a forked child, where the thread does not exist, this does nothing.
        """
        if self._pid != os.getpid():
            return
        wait = wait and not self._callers.here and not self.is_current
        loop.interrupt()
        with contextlib.suppress(ModelClosedError):  # the worker was stopped, which closes its loops
            closing = self.submit(lambda: self._close(loop))
            if wait:
                with self._callers:
                    closing.result()
        if wait and self._stopping:
            with self._callers:
                self._join()

    def _close(self, loop: Loop) -> None:
        """Between two turns, in the worker's thread."""
        with self._callers, self._lock:
            if loop not in self._loops:
                return
            self._loops.remove(loop)
        try:
            loop.close(False)
        finally:
            with self._callers, self._lock:
                self._end_without_loops()

    @property
    def is_current(self) -> bool:
        """Whether this is the worker's thread: nothing that it does may wait for what it is to do."""
        return threading.current_thread() is self._thread

    def wake(self) -> None:
        """There is work again. Cheap, from any thread."""
        self._woken.put(None)

    def stop(self, exiting: bool = False) -> None:
        """Interrupt the loops, close them, end the thread and wait for that. Idempotent.

        In a forked child, where the thread does not exist, this does nothing.
        """
        if self._pid != os.getpid():
            _running.discard(self)
            return
        with self._callers, self._lock:
            self._stopping = True
            self._exiting = exiting
            loops = list(self._loops)
            self._woken.put(None)
        for loop in loops:
            loop.interrupt()
        if not self.is_current:
            self._join()
        _running.discard(self)

    def _join(self) -> None:
        """Wait until the thread has ended, and is off the interpreter's list of threads.

        To take it off needs a lock, which the waiting thread has where a signal handler interrupted it in
        threading.Thread.start: so for the last step there is a limit.
        """
        self._ended.wait()
        self._thread.join(_LAST_STEP)

    def _main(self) -> None:
        busy = False
        while True:
            if not busy:
                self._woken.get()
            while not self._woken.empty():
                self._woken.get()
            with self._lock:
                calls, self._calls = self._calls, deque()
                stopping = self._stopping
            while calls:
                run_into(*calls.popleft())
            if stopping:
                break
            busy = self._turn_all()
        for loop in self._loops:
            try:
                loop.close(self._exiting)
            except BaseException:  # the others are to be closed all the same
                _log.exception("closing a loop failed")
        if self._at_end is not None:
            self._at_end()
        self._ended.set()

    def _turn_all(self) -> bool:
        # A method of its own, whose variables keep nothing alive while the worker sleeps.
        with self._lock:
            loops = list(self._loops)
        busy = False
        for loop in loops:
            try:
                busy = loop.turn() or busy
            except (
                BaseException
            ):  # a loop handles its own errors: this is a defect, and no caller must hang because of it
                _log.exception("a loop failed, and is closed")
                loop.interrupt()
                self._close(loop)
        return busy


_running: weakref.WeakSet[Worker] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[str, Worker] = weakref.WeakValueDictionary()
_lock = threading.RLock()
# A fork while it is held would leave it so in the child.
if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@atexit.register
@atexit.register  # a second time, in case Ctrl-C interrupts the first call at its very start
def _stop_all() -> None:
    """Stop every worker before the interpreter ends. Ctrl-C has to wait: a thread that is still inside a native
    library then would crash the process."""
    previous = None
    with contextlib.suppress(ValueError):  # not the main thread, which alone receives Ctrl-C
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in list(_running):
        while worker in _running:
            with contextlib.suppress(KeyboardInterrupt):  # it came just before
                worker.stop(exiting=True)
    if previous is not None:
        signal.signal(signal.SIGINT, previous)
