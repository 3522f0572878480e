# SPDX-License-Identifier: Apache-2.0
"""Chooses the server of the next operation among several servers of one model."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds for which a failed server gets no operations: after its first failure, and the maximum. Each further failure
doubles the time."""

PREFERENCE = 0.5
"""How much busier, in operations per slot, the server may be that has the conversation in its prefix cache."""


@dataclass
class _Server:
    slots: int
    running: int = 0
    failures: int = 0
    out_until: float = 0.0
    trying: bool = False
    last: int = 0

    @property
    def load(self) -> float:
        return self.running / self.slots


class Balance:
    """Chooses the least busy server that works. Thread-safe. The caller passes the time, in seconds.

    A failed server is not used for a pause. Then one operation tries it. If the server answers, it is used again;
    otherwise the pause doubles.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        """`slots`: for each server, the number of operations that it runs at once. A server is named by its index."""
        self._servers = [_Server(max(number, 1)) for number in slots]
        self._turn = 0
        self._lock = threading.RLock()

    def choose(self, now: float, *, preferred: int | None = None, tried: Collection[int] = ()) -> int | None:
        """Choose a server and count an operation on it.

        Args:
            now: The time.
            preferred: The server that probably has the beginning of the prompt in its cache.
            tried: Servers that this operation has already tried.

        Returns:
            The index of the server. None if all were tried. A server in its pause is chosen only if no other server
            is left.
        """
        with self._lock:
            left = [index for index in range(len(self._servers)) if index not in tried]
            if not left:
                return None
            usable = [index for index in left if self._usable(self._servers[index], now)]
            if usable:
                chosen = min(usable, key=self._busyness)
                if preferred in usable:
                    least, wanted = self._servers[chosen], self._servers[preferred]
                    if wanted.load <= least.load + PREFERENCE:
                        chosen = preferred
            else:
                chosen = min(left, key=lambda index: self._servers[index].out_until)
            server = self._servers[chosen]
            server.running += 1
            server.trying = server.failures > 0
            self._turn += 1
            server.last = self._turn
            return chosen

    def ended(self, index: int) -> None:
        """Record that an operation on the server has ended or left it."""
        with self._lock:
            server = self._servers[index]
            server.running -= 1
            server.trying = False

    def answered(self, index: int) -> bool:
        """Record that the server answers. Return whether it had failed before."""
        with self._lock:
            server = self._servers[index]
            was_out = server.failures > 0
            server.failures, server.out_until, server.trying = 0, 0.0, False
            return was_out

    def failed(self, index: int, now: float) -> bool:
        """Record that the server did not answer.

        Returns:
            Whether a pause begins now. If several operations on the server fail together, only the first one counts.
        """
        with self._lock:
            server = self._servers[index]
            if server.failures and now < server.out_until:
                return False
            server.failures += 1
            server.trying = False
            server.out_until = now + min(FIRST_PAUSE * 2.0 ** min(server.failures - 1, 30), LONGEST_PAUSE)
            return True

    @staticmethod
    def _usable(server: _Server, now: float) -> bool:
        return server.failures == 0 or (now >= server.out_until and not server.trying)

    def _busyness(self, index: int) -> tuple[float, int]:
        server = self._servers[index]
        return server.load, server.last
