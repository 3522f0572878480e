# SPDX-License-Identifier: Apache-2.0
"""One gate for each native object: every use of it passes through, and so does its freeing.

A native library checks no pointer. A call that meets a freed object ends the process, so
nothing is freed while a thread is inside, and nobody enters once it is to be freed.
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
    """Guards one native object. Enter it with `with gate:` for each use; any number of threads may be inside.

    Entering raises ModelClosedError once `close` was called, and in a forked child. It may be
    entered again by a thread that is inside already.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._free: Callable[[], None] | None = None
        self._freed = threading.Event()
        self._pid = os.getpid()
        _gates.add(self)

    def __enter__(self) -> None:
        self.check()
        with self._lock:
            self.check()
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            last = self._free is not None and not self._users
        if last:
            self._end()

    @property
    def closed(self) -> bool:
        return self._free is not None

    def check(self) -> None:
        """Raise ModelClosedError where nobody may enter any more. For work of several steps, between those."""
        if self._free is not None:
            raise ModelClosedError("the model is closed: load it again")
        if self._pid != os.getpid():  # the lock may be held here for ever
            raise ModelClosedError("the model belongs to the process this one was forked from: load it in this one")

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """Let nobody in any more, and call `free` as soon as nobody is inside: now, or in the last user's thread.

        Returns at once. Only the first call counts.
        """
        with self._lock:
            if self._free is not None:
                return
            self._free = free
            unused = not self._users
        if unused:
            self._end()

    def _end(self) -> None:
        assert self._free is not None
        try:
            self._free()
        finally:
            self._freed.set()

    def wait(self) -> None:
        """Wait until the object is free, once the gate is closed. Not in a forked child, where its users are not."""
        if self._free is not None and self._pid == os.getpid():
            self._freed.wait()


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


@atexit.register
def _leave() -> None:
    """At exit, wait for the threads that are inside: a native library must not be in use when the process ends."""
    for gate in list(_gates):
        if gate._pid == os.getpid():
            gate.close()
            gate.wait()
