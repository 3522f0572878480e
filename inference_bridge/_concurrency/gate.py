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


class Gate:
    """Guards one native object. Enter it with `with gate:` for each use. Any number of threads may be inside.

    Entering raises ModelClosedError after `close` was called, and in a forked child. A thread
    that is inside may enter again while the gate is open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[int, int] = {}
        """How often each thread has entered, by its identifier."""
        self._free: Callable[[], None] | None = None
        self._freed = threading.Event()
        self._pid = os.getpid()
        _gates.add(self)

    def __enter__(self) -> None:
        self.check()
        thread = threading.get_ident()
        with self._lock:
            self.check()
            self._inside[thread] = self._inside.get(thread, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        with self._lock:
            self._inside[thread] -= 1
            if not self._inside[thread]:
                del self._inside[thread]
            last = self._free is not None and not self._inside
        if last:
            self._end()

    @property
    def closed(self) -> bool:
        return self._free is not None

    def check(self) -> None:
        """Raise ModelClosedError if the gate is closed. For work of several steps, between two of them."""
        if self._free is not None:
            raise ModelClosedError("the model is closed: load it again")
        if self._pid != os.getpid():  # the lock may be held here for ever
            raise ModelClosedError("the model belongs to the process this one was forked from: load it in this one")

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """Close the gate, and call `free` once no thread is inside: now, or in the last thread that leaves.

        Returns at once. Only the first call counts.
        """
        with self._lock:
            if self._free is not None:
                return
            self._free = free
            unused = not self._inside
        if unused:
            self._end()

    def _end(self) -> None:
        assert self._free is not None
        try:
            self._free()
        finally:
            self._freed.set()

    def wait(self) -> None:
        """Wait until the object is freed, if the gate is closed.

        Returns at once in a thread that is inside, as in a signal handler: the object is freed when
        that thread leaves. Returns at once in a forked child too, which has none of the threads.
        """
        if self._free is None or self._pid != os.getpid() or threading.get_ident() in self._inside:
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
