# SPDX-License-Identifier: Apache-2.0
"""Choose the number of threads of each llama.cpp step: one for each core that other programs leave free.

llama.cpp's threads wait for each other after every operation, several hundred times for one token, and spin while
they wait. If another program runs on one of their cores, each wait lasts as long as the system lets that program run:
a step of 8 ms takes seconds, and two such programs stop each other. With one thread less neither program waits.

The load by other programs is measured, not found by trial: it is the CPU time of all cores minus that of this process.
So no time is lost to trials on an idle machine, and two programs that both measure settle at half of the cores each.
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
"""Seconds between two samples: the system counts CPU time in steps of 10 ms."""

FREE_SECONDS = 0.3
"""Seconds for which a core must have been free before a thread uses it again. A thread is removed without delay."""


class Sample(NamedTuple):
    """Seconds: the time of the sample, the CPU time of all cores, and the CPU time of this process."""

    at: float
    busy: float
    own: float


class Threads:
    """The number of threads of the next step. Used by one thread.

    With `fixed` the number is constant. Otherwise it is between 1 and the physical cores that this process may use.
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
        """Take the first sample.

        Args:
            fixed: The number of threads; 0: choose it.
            most: The largest number of threads to choose. Default: the number of physical cores.
            cores: The number of logical cores that this process may use. Default: asked of the system.
            clock: Returns the time in seconds.
            sample: Measures the CPU times.
        """
        self.count = fixed or most or physical_cores()
        self._most = self.count
        self._cores = cores or len(_allowed())
        self._clock = clock
        self._sample = sample or measured
        self._free_for = 0.0
        self._last = None if fixed or self._most == 1 else self._sample()

    @classmethod
    def of(cls, config: LoadConfig) -> Threads | None:
        """Create it from the load options. Return None if `extra` sets llama.cpp's parameters for threads."""
        if isinstance(config.extra, Mapping) and {"n_threads", "n_threads_batch"} & config.extra.keys():
            return None
        return cls(config.threads or 0)

    def now(self) -> int:
        """Return the number of threads for the step that begins now."""
        last = self._last
        if last is not None and self._clock() - last.at >= WINDOW:
            self._last = self._sample()
            self._adjust(last, self._last)
        return self.count

    def _adjust(self, before: Sample, after: Sample) -> None:
        """Set `count` to the number of cores that other programs left free between two samples."""
        seconds = after.at - before.at
        others = max((after.busy - before.busy) - (after.own - before.own), 0.0) / seconds
        free = min(max(math.floor(self._cores - others + 0.5), 1), self._most)
        if free <= self.count:
            self.count, self._free_for = free, 0.0
            return
        self._free_for += seconds
        if self._free_for >= FREE_SECONDS:
            self.count, self._free_for = free, 0.0


def measured() -> Sample:
    """Return a sample of the CPU times of the cores that this process may use."""
    times = psutil.cpu_times(percpu=True)
    busy = sum(_busy(times[core]) for core in _allowed() if core < len(times))
    return Sample(time.monotonic(), busy, time.process_time() + _of_children())


def _busy(times: Any) -> float:
    """Return the seconds for which a core was busy, or was withheld by the host of a virtual machine.

    The time of low-priority programs (nice) counts only if this process has low priority itself.
    """
    counted = [times.user, times.system]
    counted += [getattr(times, name, 0.0) for name in ("irq", "softirq", "steal")]
    if _is_nice():
        counted.append(getattr(times, "nice", 0.0))
    return float(sum(counted))


def _is_nice() -> bool:
    return os.name == "posix" and os.getpriority(os.PRIO_PROCESS, 0) > 0


def _allowed() -> list[int]:
    """Return the numbers of the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _of_children() -> float:
    """Return the CPU seconds of ended child processes, so that a trial load does not count as another program."""
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
