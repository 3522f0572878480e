# SPDX-License-Identifier: Apache-2.0
"""One gate for each native object: every use of the object passes through it, and so does freeing.

A native library does not check pointers: a call that meets a freed object ends the process.
So an object is not freed while a thread uses it, and cannot be used once it is to be freed.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

from ..errors import ModelClosedError
from .presence import Presence


class Gate:
    """Guards one native object. Enter it with `with gate:` for each use. Any number of threads may be inside.

    Entering raises ModelClosedError after `close` was called, and in a forked child. A thread
    that is inside may enter again while the gate is open.

    There is no lock, because a signal handler or a finalizer may interrupt any of these methods
    and close the gate. Each step is one operation of the interpreter. A thread that enters says so
    before it looks whether the gate is closed; one that closes it says so before it looks whether
    a thread is inside. So at least one of the two sees the other.
    """

    def __init__(self) -> None:
        self._inside = Presence()
        self._closed = False
        self._first = [True]
        """Taken by the first that closes the gate."""
        self._free: list[Callable[[], None]] = []
        """What frees the object, until it is called."""
        self._freed = threading.Event()
        self._pid = os.getpid()
        _gates.add(self)

    def __enter__(self) -> None:
        self.check()
        self._inside.__enter__()
        if self._closed:
            self._leave()
            self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside.__exit__()
        if self._closed:
            self._end()

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self) -> None:
        """Raise ModelClosedError if the gate is closed. For work of several steps, between two of them."""
        if self._closed:
            raise ModelClosedError("the model is closed: load it again")
        if self._pid != os.getpid():  # the threads that are inside are the parent's
            raise ModelClosedError("the model belongs to the process this one was forked from: load it in this one")

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """Close the gate, and call `free` once no thread is inside: now, or in the last thread that leaves.

        Returns at once. Only the first call counts.
        """
        try:
            self._first.pop()
        except IndexError:
            return
        self._free.append(free)
        self._closed = True
        self._end()

    def _end(self) -> None:
        if self._inside:
            return
        try:
            free = self._free.pop()
        except IndexError:  # another thread is doing it
            return
        try:
            free()
        finally:
            self._freed.set()

    def wait(self) -> None:
        """Wait until the object is freed, if the gate is closed.

        Returns at once in a thread that is inside, as in a signal handler: the object is freed when
        that thread leaves. Returns at once in a forked child too, which has none of the threads.
        """
        if not self._closed or self._pid != os.getpid() or self._inside.here:
            return
        self._freed.wait()


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


@atexit.register
def _leave() -> None:
    """At exit, wait for the threads that are inside: a native library must not be in use when the process ends."""
    for gate in list(_gates):
        if gate._pid == os.getpid():
            gate.close()
            gate.wait()
