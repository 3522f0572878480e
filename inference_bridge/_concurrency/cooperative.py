# SPDX-License-Identifier: Apache-2.0
"""An event loop's turns, while one of its tasks reads what need not be waited for.

A task that always finds the next item there never suspends, and keeps everything else from
its loop: other tasks, timers, sockets, and what would cancel it.
"""

from __future__ import annotations

import time

INTERVAL = 0.005
"""Seconds. A turn takes some microseconds, so that the cost is well below a hundredth."""


class Turns:
    """Gives the loop a turn where the last one it gave is longer ago than `INTERVAL`."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = 0.0

    async def give(self) -> None:
        if time.monotonic() >= self._due:
            import asyncio

            await asyncio.sleep(0)
            self._due = time.monotonic() + INTERVAL
