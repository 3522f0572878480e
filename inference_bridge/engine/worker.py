# SPDX-License-Identifier: Apache-2.0
"""The thread that owns a native engine.

Every call into an engine is made by one worker, one turn after the other. A worker ends when it is stopped, and at the
latest before the interpreter shuts down: a thread that is still inside a native library then would crash the process.
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
"""Seconds to wait for a thread whose work is done."""


class Loop(Protocol):
    """Work that a worker does in repeated turns."""

    def turn(self) -> bool:
        """Do one bounded piece of work. Return False if there was none: the next turn is after `Worker.wake`."""
        ...

    def interrupt(self) -> None:
        """Make a running turn return soon, because `close` follows. Called from any thread."""
        ...

    def close(self, exiting: bool) -> None:
        """Free all resources. This is the last call. It is made in the worker's thread.

        Args:
            exiting: Whether the interpreter is shutting down. Then only daemon threads can still wait for a result.
                They end with the interpreter, and must not get an error: they would print it.
        """
        ...


class Worker:
    """A daemon thread that runs calls and the turns of loops.

    It ends when its last loop is removed.

    Args:
        name: The name of the thread. Workers that are shared have the same name.
        lasting: Whether it goes on without loops, until the interpreter shuts down.
        at_end: Called at the end, in the thread. It must not raise.
    """

    def __init__(self, name: str, *, lasting: bool = False, at_end: Callable[[], None] | None = None) -> None:
        self._pid = os.getpid()
        self._at_end = at_end
        self._lock = threading.RLock()
        self._woken: SimpleQueue[None] = SimpleQueue()
        """Wakes the thread. Unlike a Condition, a SimpleQueue is reentrant: a signal handler may interrupt `put` and
        call it again."""
        self._ended = threading.Event()
        self._callers = Presence()
        """The threads inside a method that takes the lock, or that waits for the worker."""
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._loops: list[Loop] = []
        self._stopping = False
        self._exiting = False
        self._expected = 1
        """Number of loops that will still be added."""
        self._lasting = lasting
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:  # such as Ctrl-C during the wait for the thread, which starts nevertheless
            with self._callers, self._lock:
                self._stopping = True
                self._woken.put(None)
            raise
        _running.add(self)

    def share(self) -> Worker:
        """Return the shared worker of this one's name, for one more loop. If there is none, this one becomes it."""
        with _lock:
            worker = _shared.get(self._thread.name)
            if worker is None or not worker.expect():
                worker = _shared[self._thread.name] = self
                worker.expect()
            return worker

    def expect(self) -> bool:
        """Keep the worker running for one more loop, which will be added. Return False if it has already ended."""
        if self._pid != os.getpid():
            return False
        with self._callers, self._lock:
            self._expected += not self._stopping
            return not self._stopping

    def give_back(self) -> None:
        """Undo `expect`: the loop will not be added."""
        with self._callers, self._lock:
            self._expected -= 1
            self._end_without_loops()

    def _end_without_loops(self) -> None:
        """End the thread if there is no loop and none is expected. The lock must be held."""
        if not (self._loops or self._expected or self._lasting):
            self._stopping = True
            self._woken.put(None)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the worker's thread, between two turns.

        Returns:
            A future with its result.

        Raises:
            ModelClosedError: The worker has ended.
        """
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
        """`call`, asynchronously. If its task is cancelled, the wait ends, and work that has not begun is not done."""
        import asyncio

        with self._callers:  # adding a callback takes the future's lock, so this thread must count as a caller
            waiting = asyncio.wrap_future(self.submit(function))
        return await waiting

    def check_caller(self) -> None:
        """Raise GenerationError in the worker's own thread, as in a finalizer: the thread can't wait for itself."""
        if self.is_current:
            raise GenerationError(
                "called in the engine's own thread, by a finalizer (__del__) or a callback: call the model elsewhere"
            )

    def add(self, loop: Loop) -> None:
        """Add a loop, one that was expected if there is any."""
        with self._callers, self._lock:
            self._loops.append(loop)
            self._expected = max(self._expected - 1, 0)

    def remove(self, loop: Loop, *, wait: bool = True) -> None:
        """Remove a loop, and close it in the worker's thread. Idempotent.

        In the worker's own thread the loop is closed later, because the current turn may use what is freed. In a forked
        child, where the thread does not exist, this does nothing.

        Args:
            loop: The loop.
            wait: Whether to wait until it is closed, and for the end of the worker if this was its last loop. A
                finalizer must not wait, because it may interrupt any code in any thread. A signal handler or `__del__`
                that interrupts a method of the worker never waits: the interrupted method may hold a lock that the
                worker needs.
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
        """Close a loop, in the worker's thread between two turns."""
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
        """Whether this is the worker's thread, which must not wait for its own work."""
        return threading.current_thread() is self._thread

    def wake(self) -> None:
        """Start the next turns, because there is work again. Takes microseconds. Called from any thread."""
        self._woken.put(None)

    def stop(self, exiting: bool = False) -> None:
        """Interrupt the loops, close them, end the thread and wait for its end. Idempotent.

        In a forked child, where the thread does not exist, this does nothing.

        Args:
            exiting: Whether the interpreter is shutting down: see `Loop.close`.
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
        """Wait until the thread has ended, and the interpreter has removed it from its list of threads.

        The removal takes a lock. If a signal handler that calls this has interrupted threading.Thread.start, its thread
        holds that lock. So the wait for the removal has a time limit.
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
            except BaseException:  # the other loops must be closed nevertheless
                _log.exception("closing a loop failed")
        if self._at_end is not None:
            self._at_end()
        self._ended.set()

    def _turn_all(self) -> bool:
        # A separate method, because local variables of `_main` would keep loops alive while the worker sleeps.
        with self._lock:
            loops = list(self._loops)
        busy = False
        for loop in loops:
            try:
                busy = loop.turn() or busy
            except BaseException:
                # A loop handles its own errors, so this is a defect. Its callers must get an error instead of a hang.
                _log.exception("a loop failed, and is closed")
                loop.interrupt()
                self._close(loop)
        return busy


_running: weakref.WeakSet[Worker] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[str, Worker] = weakref.WeakValueDictionary()
_lock = threading.RLock()
# Without this, a fork while another thread holds the lock would leave it locked in the child.
if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@atexit.register
@atexit.register  # a second time, in case Ctrl-C interrupts the first call at its very start
def _stop_all() -> None:
    """Stop every worker before the interpreter shuts down.

    Ctrl-C is ignored meanwhile: a thread that is still inside a native library at the end would crash the process.
    """
    previous = None
    with contextlib.suppress(ValueError):  # this is not the main thread, and only the main thread receives Ctrl-C
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in list(_running):
        while worker in _running:
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C was pressed just before it was ignored
                worker.stop(exiting=True)
    if previous is not None:
        signal.signal(signal.SIGINT, previous)
