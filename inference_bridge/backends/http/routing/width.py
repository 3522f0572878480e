# SPDX-License-Identifier: Apache-2.0
"""Adapts the number of operations that run at once on a server that does not state its number of slots."""

from __future__ import annotations

import threading

MOST = 256
"""The largest limit, which is also the largest `parallel_slots`."""

GAIN = 1.1
"""A doubled limit is kept if the throughput grows at least by this factor. For a smaller step, the factor is
proportionally smaller."""

_SETTLE, _MEASURE = 4, 8
"""Tokens for each operation in flight: first ignored, because new operations are still in prefill; then measured."""

_RETRY = 16
"""Number of measurements at the chosen limit before a larger limit is tried again: the server may have restarted, or
may have fewer other users."""


class Width:
    """A limit that grows while throughput grows and shrinks if the server refuses. Thread-safe.

    The limit doubles until the throughput grows by less than `GAIN`; then the smaller limit is used. If the server
    answers that it has too many requests (429, 503), the limit is halved and then grows by an eighth.
    Throughput is measured only while the limit is reached. The caller passes the time, in seconds.

    Attributes:
        limit: Maximum number of operations to run at once.
        generation: Increases with each halving. If several operations that were sent together are refused, only the
            first refusal counts, because the others have an older generation.
    """

    def __init__(self, start: int, most: int = MOST) -> None:
        self.limit = min(start, most)
        self.generation = 0
        self._most = most
        self._ceiling = most
        self._careful = False
        self._running = 0
        self._lower: tuple[int, float] | None = None
        self._growing = True
        self._settled = 0
        self._ignore = _SETTLE * self.limit
        self._count = 0
        self._since: float | None = None
        self._lock = threading.RLock()

    def began(self, count: int = 1) -> int:
        """Record that operations were sent. Return the generation."""
        with self._lock:
            self._running += count
            return self.generation

    def ended(self, count: int = 1) -> None:
        """Record that operations have ended."""
        with self._lock:
            self._running -= count

    def refused(self, generation: int) -> int:
        """Record a 429 or 503 for an operation sent in `generation`. Return the generation now."""
        with self._lock:
            if generation == self.generation:
                self.generation += 1
                reached = max(min(self.limit, self._running), 1)
                self._ceiling = max(reached - 1, 1)
                self._careful = True
                self._lower = None
                self._growing = True
                self._set(max(reached // 2, 1))
            return self.generation

    def produced(self, tokens: int, now: float) -> None:
        """Record tokens that arrived at `now`, and adjust the limit."""
        with self._lock:
            if self._running < self.limit:
                self._since = None  # the throughput of fewer operations says nothing about the limit
                return
            if self._ignore > 0:
                self._ignore -= tokens
                return
            if self._since is None:
                self._since, self._count = now, 0
                return
            self._count += tokens
            if self._count < _MEASURE * self.limit or now <= self._since:
                return
            rate = self._count / (now - self._since)
            self._since = None
            self._decide(rate)

    def _decide(self, rate: float) -> None:
        """Choose the next limit, after `rate` tokens a second at this one."""
        if not self._growing:
            self._settled += 1
            if self._settled < _RETRY:
                return
            self._settled, self._growing = 0, True
            self._ceiling, self._careful, self._lower = self._most, False, None
        if self._lower is not None:
            limit, before = self._lower
            if rate < before * (1 + (GAIN - 1) * (self.limit / limit - 1)):
                self._growing = False
                self._set(limit)
                return
        self._lower = self.limit, rate
        step = max(self.limit // 8, 1) if self._careful else self.limit
        larger = min(self.limit + step, self._ceiling)
        if larger == self.limit:
            self._growing = False
        else:
            self._set(larger)

    def _set(self, limit: int) -> None:
        self.limit = limit
        self._ignore = _SETTLE * limit
        self._since = None
