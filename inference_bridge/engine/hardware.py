# SPDX-License-Identifier: Apache-2.0
"""The cores and the memory that this process may use, within the limits of its container."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def physical_cores(cgroup: Path = _CGROUP) -> int:
    """Return the number of threads that decode fastest: physical cores, within CPU affinity and container quota.

    Memory bandwidth limits decoding, so a second thread on a core makes it slower.

    Args:
        cgroup: The directory of the container's limits.
    """
    counts = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    quota = _cpu_quota(cgroup)
    if quota is not None:
        counts.append(max(math.floor(quota), 1))
    return max(min(counts), 1)


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the number of cores whose time the container may use (cpu.max of cgroup v2, CFS quota of v1), or None."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return the number of bytes that can still be used without swapping, within the container's limit.

    Args:
        cgroup: The directory of the container's limits.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used, detail in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            stat = dict(line.split() for line in (cgroup / detail).read_text().splitlines())
        except (OSError, ValueError):
            continue
        # The container's count includes the page cache, and so weights mapped from disk. The kernel frees it on demand.
        left += int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return max(min(free, left), 0)
    return free


def process_memory() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(_process(os.getpid()).memory_info().rss)


@lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)
