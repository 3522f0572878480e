# SPDX-License-Identifier: Apache-2.0
"""How many threads a step of llama.cpp runs on: one for each core that other programs leave free.

llama.cpp's threads wait for each other after every operation, several hundred times for one token, and spin while
they wait. Where another program has one of their cores, each wait lasts as long as the system lets that program run:
a step of 8 ms takes seconds, and two programs that do so stop each other. With one thread less neither waits.

What other programs take is measured and not tried out: it is the time for which the cores were busy, less this
process's own. So nothing is lost to trials while the machine is idle, and two programs that both measure come to rest
with half of the cores each.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from ...engine.hardware import physical_cores

if TYPE_CHECKING:
    from ...options import LoadConfig

WINDOW = 0.1
"""Seconds between two samples: the system counts a core's time in steps of 10 ms."""

CALM = 0.3
"""Seconds for which a core must have been free before a thread returns to it. One that is taken is left at once."""


class Sample(NamedTuple):
    """Seconds: the time, what the cores have worked in all, and what of that was for this process."""

    at: float
    busy: float
    own: float


class Threads:
    """How many threads the next step gets. Used by one thread.

    With `fixed` it is always that many. Otherwise it is between 1 and the physical cores that this process may use.
    """

    def __init__(
        self,
        fixed: int = 0,
        *,
        most: int | None = None,
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sample: Callable[[], Sample] | None = None,
    ) -> None:
        """Begin to measure. `most` threads, `cores` (logical ones), `clock` and `sample` are the system's own."""
        self.count = fixed or most or physical_cores()
        self._most = self.count
        self._cores = cores or len(_allowed())
        self._clock = clock
        self._sample = sample or measured
        self._calm = 0.0
        self._last = None if fixed or self._most == 1 else self._sample()

    @classmethod
    def of(cls, config: LoadConfig) -> Threads | None:
        """As the load options have it; None where `extra` sets llama.cpp's own parameters."""
        if isinstance(config.extra, Mapping) and {"n_threads", "n_threads_batch"} & config.extra.keys():
            return None
        return cls(config.threads or 0)

    def now(self) -> int:
        """How many threads the step that begins now is to run on."""
        last = self._last
        if last is not None and self._clock() - last.at >= WINDOW:
            self._last = self._sample()
            self._look(last, self._last)
        return self.count

    def _look(self, before: Sample, after: Sample) -> None:
        seconds = after.at - before.at
        others = max((after.busy - before.busy) - (after.own - before.own), 0.0) / seconds
        free = min(max(math.floor(self._cores - others + 0.5), 1), self._most)
        if free <= self.count:
            self.count, self._calm = free, 0.0
            return
        self._calm += seconds
        if self._calm >= CALM:
            self.count, self._calm = free, 0.0


def measured() -> Sample:
    """What the system tells now, of the cores that this process may use."""
    times = psutil.cpu_times(percpu=True)
    busy = sum(_busy(times[core]) for core in _allowed() if core < len(times))
    return Sample(time.monotonic(), busy, time.process_time() + _of_children())


def _busy(times: Any) -> float:
    """Seconds that a core has worked, or was kept from this machine by its host.

    Programs of low priority (nice) make way: their time counts only where this process is one of them.
    """
    counted = [times.user, times.system]
    counted += [getattr(times, name, 0.0) for name in ("irq", "softirq", "steal")]
    if _is_nice():
        counted.append(getattr(times, "nice", 0.0))
    return float(sum(counted))


def _is_nice() -> bool:
    return os.name == "posix" and os.getpriority(os.PRIO_PROCESS, 0) > 0


def _allowed() -> list[int]:
    """The logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _of_children() -> float:
    """CPU seconds of the child processes that have ended: a trial load is not another program."""
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
