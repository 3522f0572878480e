# SPDX-License-Identifier: Apache-2.0
"""A gate for each native object: every use of the object passes through the gate, and so does freeing it.

A native library does not check pointers: a call with a freed object crashes the process. So the gate frees the object
only when no thread uses it, and refuses new uses after `close`.
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

    No lock is used, because a signal handler or a finalizer may interrupt any of these methods and close the gate.
    Each step is one operation of the interpreter. A thread that enters first records its presence, and then checks
    whether the gate is closed. A thread that closes the gate first marks it as closed, and then checks whether a thread
    is inside. So at least one of the two threads sees the other.
    """

    def __init__(self) -> None:
        self._inside = Presence()
        self._closed = False
        self._first = [True]
        """The first thread that closes the gate removes the item."""
        self._free: list[Callable[[], None]] = []
        """The function that frees the object, until a thread takes it to call it."""
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
        """Raise ModelClosedError if the gate is closed. Call it between the steps of long work."""
        if self._closed:
            raise ModelClosedError("the model is closed: load it again")
        if self._pid != os.getpid():  # the threads that are inside belong to the parent process
            raise ModelClosedError("the model belongs to the process this one was forked from: load it in this one")

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """Close the gate, and call `free` when no thread is inside: now, or in the last thread that leaves.

        Returns without waiting for these threads. Only the first call has an effect.
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
        except IndexError:  # another thread has taken it
            return
        try:
            free()
        finally:
            self._freed.set()

    def wait(self) -> None:
        """Wait until the object is freed, if the gate is closed.

        Returns at once in a thread that is inside, as in a signal handler: the object is freed when
        that thread leaves. Also returns at once in a forked child, which does not have these threads.
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
