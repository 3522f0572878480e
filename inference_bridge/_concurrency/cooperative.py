# SPDX-License-Identifier: Apache-2.0
"""Keeps an event loop responsive while one of its tasks reads items that are already available.

A task that always finds the next item never suspends. Other tasks, timers, sockets and the task's own cancellation
would then have to wait until the task is done.
"""

from __future__ import annotations

import time

INTERVAL = 0.005
"""Seconds between two yields. A yield takes a few microseconds, so it costs well below 1 %."""


class LoopYield:
    """Suspends the task if the last yield was more than `INTERVAL` ago."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = 0.0

    async def if_due(self) -> None:
        """Let the other tasks of the event loop run, if the last yield was more than `INTERVAL` ago."""
        if time.monotonic() >= self._due:
            import asyncio

            await asyncio.sleep(0)
            self._due = time.monotonic() + INTERVAL
