# SPDX-License-Identifier: Apache-2.0
"""Records which threads are inside a block, without a lock, so that signal handlers and finalizers can use it too."""

from __future__ import annotations

import threading


class Presence:
    """Enter it with `with presence:`. Any number of threads may be inside, and a thread may enter again.

    Each step is one operation of the interpreter, on an entry that only one thread uses.
    """

    def __init__(self) -> None:
        self._times: dict[int, int] = {}
        """How often each thread has entered, by its identifier."""

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # No call follows the store. Python handles Ctrl-C at calls, so it can't interrupt between the store and the
        # block, where nothing would undo the store.
        self._times[thread] = self._times.get(thread, 0) + 1

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        times = self._times[thread] - 1
        if times:
            self._times[thread] = times
        else:
            del self._times[thread]

    def __bool__(self) -> bool:
        """Whether any thread is inside."""
        return bool(self._times)

    @property
    def here(self) -> bool:
        """Whether this thread is inside."""
        return threading.get_ident() in self._times
