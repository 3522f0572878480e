# SPDX-License-Identifier: Apache-2.0
"""Which threads are inside a block, counted without a lock: what interrupts a thread may ask too."""

from __future__ import annotations

import threading


class Presence:
    """Enter it with `with presence:`, in any number of threads, each as often as it likes.

    Each step is one operation of the interpreter, on an entry that belongs to the thread alone.
    """

    def __init__(self) -> None:
        self._times: dict[int, int] = {}
        """How often each thread has entered, by its identifier."""

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # The last call comes before the store: Ctrl-C, which Python notices at calls, can't fall between the store and
        # the block, where nothing would undo it.
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
